//! `shika_fuzz::upstream_http2` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shika_fuzz::upstream_http2(data));
