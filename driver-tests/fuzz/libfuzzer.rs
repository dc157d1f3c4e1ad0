//! One target under libFuzzer, that which `FUZZ_TARGET` names.

#![no_main]
// It shares modules with the tests, and not all that is in them.
#![allow(dead_code)]

#[path = "../../src/daemon/containerd/api/mod.rs"]
mod api;
mod bodies;
mod hall;
#[path = "../unpack/restored.rs"]
mod restored;
#[path = "../containerd/store.rs"]
mod store;
mod targets;
#[path = "../unpack/tree.rs"]
mod tree;
#[path = "../unpack/writer.rs"]
mod writer;

use std::sync::LazyLock;

static TARGET: LazyLock<String> =
    LazyLock::new(|| std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target"));

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::run(&TARGET, data));
