//! `shika_fuzz::proxy_protocol` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shika_fuzz::proxy_protocol(data));
