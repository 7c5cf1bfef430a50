//! Hands libFuzzer's bytes to [`ginnel_fuzz::shell::acceptance`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::shell::acceptance(data));
