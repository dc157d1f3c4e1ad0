//! One target, that of the binary's name, under libFuzzer.

#![no_main]
// Each binary uses another part of what they share.
#![allow(dead_code)]

#[path = "../unpack/restored.rs"]
mod restored;
mod targets;
#[path = "../unpack/tree.rs"]
mod tree;
#[path = "../unpack/writer.rs"]
mod writer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::run(env!("CARGO_BIN_NAME"), data));
