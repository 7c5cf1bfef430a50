//! Hands libFuzzer's bytes to [`ginnel_fuzz::packet::options`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::packet::options(data));
