//! `shika_fuzz::bootstrap` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shika_fuzz::bootstrap(data));
