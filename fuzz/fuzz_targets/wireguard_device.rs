//! Hands libFuzzer's bytes to [`ginnel_fuzz::wireguard::device`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::wireguard::device(data));
