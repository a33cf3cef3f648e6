//! `shika_fuzz::client_hello` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shika_fuzz::client_hello(data));
