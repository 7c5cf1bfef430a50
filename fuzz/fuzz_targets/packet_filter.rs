//! Hands libFuzzer's bytes to [`ginnel_fuzz::capture::filters`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::capture::filters(data));
