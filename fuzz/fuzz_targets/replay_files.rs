//! Hands libFuzzer's bytes to [`ginnel_fuzz::capture::files`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::capture::files(data));
