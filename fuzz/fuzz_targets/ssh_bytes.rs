//! Hands libFuzzer's bytes to [`ginnel_fuzz::shell::bytes`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::shell::bytes(data));
