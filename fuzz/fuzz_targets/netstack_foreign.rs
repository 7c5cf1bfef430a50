//! Hands libFuzzer's bytes to [`ginnel_fuzz::foreign::run`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::foreign::run(data));
