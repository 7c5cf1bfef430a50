//! Hands libFuzzer's bytes to [`ginnel_fuzz::resolver::messages`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::resolver::messages(data));
