//! Hands libFuzzer's bytes to [`ginnel_fuzz::socks::messages`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::socks::messages(data));
