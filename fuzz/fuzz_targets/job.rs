#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| context_injector::fuzzing::job(input));
