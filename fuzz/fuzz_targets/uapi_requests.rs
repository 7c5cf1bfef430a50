//! Hands libFuzzer's bytes to [`ginnel_fuzz::uapi::requests`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::uapi::requests(data));
