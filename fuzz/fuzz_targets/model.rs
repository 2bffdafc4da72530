//! Files that are hostile on purpose: the reader and the pass answer each with a model or with an error.
//!
//! `cargo fuzz run model`, with the models of `models/` for a corpus. What it finds becomes a test in `tests/hostile.rs`, which
//! damages every case of `tests/cases` in the same spirit at each run of the tests.
#![no_main]

use libfuzzer_sys::fuzz_target;
#[path = "../../tests/common/process.rs"]
mod process;

fuzz_target!(|bytes: &[u8]| {
    let _ = process::process(bytes.to_vec());
});
