//! Hands libFuzzer's bytes to [`ginnel_fuzz::offload::packets`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::offload::packets(data));
