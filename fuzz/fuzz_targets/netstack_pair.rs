//! Hands libFuzzer's bytes to [`ginnel_fuzz::netstack::pair`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::netstack::pair(data));
