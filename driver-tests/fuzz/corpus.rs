//! Replays the corpus of the fuzz targets on stable Rust, and every input of it changed in a few ways.
//!
//! The corpus is what fuzzing found worth keeping (`make fuzz`), and every input that ever failed. Needs root and
//! /dev/shm, as the targets unpack layers and have a store there.

#![allow(clippy::unwrap_used)]

#[path = "../../src/daemon/containerd/api/mod.rs"]
mod api;
mod bodies;
mod hall;
#[path = "../unpack/random.rs"]
mod random;
#[path = "../unpack/restored.rs"]
mod restored;
#[path = "../containerd/store.rs"]
mod store;
mod targets;
#[path = "../unpack/tree.rs"]
mod tree;
#[path = "../unpack/writer.rs"]
mod writer;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use random::Random;

/// Most bytes of all inputs together.
const MOST_BYTES: usize = 400_000;
/// Changed inputs for each one of the corpus.
const CHANGED: u64 = 8;
/// Longest that one input may take; all take milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The inputs of a target, by name.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("driver-tests/fuzz/corpus").join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut inputs: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect();
    inputs.sort();
    inputs
}

/// Run a target; a failure says which input it was.
fn run(target: &str, name: &str, data: &[u8]) {
    let begun = Instant::now();
    let done = std::panic::catch_unwind(|| targets::run(target, data));
    assert!(done.is_ok(), "{target} fails on {name}");
    assert!(begun.elapsed() < PATIENCE, "{target} took {:?} for {name}", begun.elapsed());
}

#[test]
fn what_was_found_is_found_no_more() {
    let mut bytes = 0;
    for (target, _) in targets::TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 10, "{target} has {} inputs", inputs.len());
        for (path, data) in inputs {
            bytes += data.len();
            run(target, &path.display().to_string(), &data);
        }
    }
    assert!(bytes < MOST_BYTES, "{bytes} bytes");
}

#[test]
fn seeds_hold() {
    for (target, data) in targets::seeds() {
        run(target, &format!("{}", data.escape_ascii()), &data);
    }
}

#[test]
fn what_is_like_it_holds_too() {
    let mut random = Random(1);
    for (target, _) in targets::TARGETS {
        let inputs = inputs(target);
        for (path, data) in &inputs {
            for _ in 0..CHANGED {
                let seed = random.next();
                let other = &inputs[random.below(inputs.len())].1;
                let changed = changed(&mut Random(seed), data, other);
                run(target, &format!("{} changed by {seed}: {}", path.display(), changed.escape_ascii()), &changed);
            }
        }
    }
}

/// A few changes as a fuzzer makes them.
fn changed(random: &mut Random, data: &[u8], other: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(data.len() + 1);
        let length = random.below((data.len() - at).min(64) + 1);
        match random.below(6) {
            0 if at < data.len() => data[at] ^= 1 << random.below(8),
            1 if at < data.len() => data[at] = random.pick(&[0, 1, b'/', b'0', b'9', b'"', 0x7f, 0x80, 0xff]),
            2 => drop(data.drain(at..at + length)),
            3 => data.truncate(at),
            4 => {
                let copy = data[at..at + length].to_vec();
                data.splice(at..at, copy);
            }
            _ => {
                let from = random.below(other.len() + 1);
                data.truncate(at);
                data.extend(&other[from..]);
            }
        }
    }
    data
}
