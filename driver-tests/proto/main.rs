//! The code of containerd's services in src/daemon/containerd/api is what its protos give. They are from its repository's
//! `api/`, at v2.4.0-beta.0: fields are only ever added, and nothing is asked of a peer that containerd 1.6 hasn't.
//!
//! ```text
//! make proto                # after a change of a proto or of a version: write it anew
//! ```
//!
//! No protoc: protox reads the protos, tonic-prost-build writes Rust.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const PROTOS: [&str; 4] = [
    "services/content/v1/content.proto",
    "services/diff/v1/diff.proto",
    "services/leases/v1/leases.proto",
    "services/snapshots/v1/snapshots.proto",
];

/// Files by name.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("read {}: {e}", directory.display()));
    let paths = entries.map(|entry| entry.expect("read a directory").path());
    let generated = paths.filter(|path| path.extension().is_some_and(|e| e == "rs") && !path.ends_with("mod.rs"));
    generated
        .map(|path| {
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("read a file"))
        })
        .collect()
}

#[test]
fn the_code_is_what_the_protos_give() {
    let protos = Path::new(env!("CARGO_MANIFEST_DIR"));
    let api = protos.join("../../src/daemon/containerd/api");
    let out = tempfile::tempdir().expect("mkdir");
    let mut descriptors = protox::compile(PROTOS, [protos]).expect("containerd's protos are well-formed");
    // Comments, in which rustdoc would find examples of Rust.
    descriptors.file.iter_mut().for_each(|file| file.source_code_info = None);
    tonic_prost_build::configure()
        .out_dir(out.path())
        .build_transport(false)
        .bytes(".containerd.services.content.v1")
        .compile_fds(descriptors)
        .expect("write Rust");
    let new = files(out.path());
    if std::env::var_os("REFLINKD_WRITE_API").is_some() {
        for (name, text) in &new {
            fs::write(api.join(name), text).expect("write");
        }
    }
    assert_eq!(new.len(), 5, "{:?}", new.keys());
    assert!(files(&api) == new, "src/daemon/containerd/api is another: see the head of this file");
}
