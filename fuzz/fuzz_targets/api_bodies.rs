//! Hands libFuzzer's bytes to [`ginnel_fuzz::api::bodies`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::api::bodies(data));
