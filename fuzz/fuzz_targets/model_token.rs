//! Hands libFuzzer's bytes to [`ginnel_fuzz::model::token`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ginnel_fuzz::model::token(data));
