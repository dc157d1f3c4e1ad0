//! Writes what fuzzing begins with below a directory: the hostile and the doubtful archives of the tests, and a
//! good example of everything else.

// It shares their modules, and not all that is in them.
#![allow(dead_code)]

#[path = "../../src/daemon/containerd/api/mod.rs"]
mod api;
mod bodies;
#[path = "../unpack/cases.rs"]
mod cases;
#[path = "../unpack/doubtful.rs"]
mod doubtful;
mod hall;
#[path = "../unpack/listing.rs"]
mod listing;
#[path = "../unpack/restored.rs"]
mod restored;
#[path = "../containerd/store.rs"]
mod store;
mod targets;
#[path = "../unpack/tree.rs"]
mod tree;
#[path = "../unpack/writer.rs"]
mod writer;

use std::path::PathBuf;

fn main() {
    let corpus = PathBuf::from(std::env::args_os().nth(1).expect("a directory"));
    let tars = cases::all().into_iter().map(|case| case.tar).chain(doubtful::all().into_iter().map(|doubt| doubt.tar));
    let mut seeds = targets::seeds();
    for tar in tars.filter(|tar| tar.len() < 16_384) {
        // Their checksums are right: libFuzzer's changes are to be made right, too.
        let data = [&[1], &tar[..]].concat();
        seeds.extend([("tar", data.clone()), ("unpack", data)]);
        seeds.push(("decompress", tar));
    }
    for (number, (target, data)) in seeds.iter().enumerate() {
        let dir = corpus.join(target);
        std::fs::create_dir_all(&dir).expect("mkdir");
        std::fs::write(dir.join(format!("seed-{number:04}")), data).expect("write");
    }
}
