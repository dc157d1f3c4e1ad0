//! What real layers have and few tests of tar readers do.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::layer::{Limits, Summary};

use super::cases::{dir, file, link, sym};
use super::fixture::scratch;
use super::generate::CAPABILITY;
use super::restored::unpack;
use super::tree::{Tree, What, data_map, read};
use super::writer::{Raw, Style, Tar};

fn apply(root: &Path, entries: &[Raw]) -> Summary {
    unpack(&mut &Tar::of(entries)[..], root, &Limits::default(), &|| false).expect("unpack")
}

fn tree_of(entries: &[Raw]) -> Tree {
    let root = scratch();
    apply(root.path(), entries);
    read(root.path())
}

fn with(raw: Raw, name: &str, value: &[u8]) -> Raw {
    let xattrs = BTreeMap::from([(name.into(), value.to_vec())]);
    Raw { xattrs, ..raw }
}

/// One of each type that can have other names.
fn linkable() -> [Raw; 5] {
    let device = |kind, name: &str| Raw { rdev: (8, 1), ..Raw::new(kind, name) };
    [file("file"), sym("symlink", "file"), device(b'3', "char"), device(b'4', "block"), Raw::new(b'6', "fifo")]
}

#[test]
fn anything_but_a_directory_has_hard_links() {
    for raw in linkable() {
        let root = scratch();
        let name = String::from_utf8(raw.name.clone()).expect("UTF-8");
        // In the same layer, through a symlinked parent, and in a layer above.
        apply(
            root.path(),
            &[dir("d"), sym("to-d", "d"), raw.clone(), link("d/two", &name), link("three", "to-d/two")],
        );
        apply(root.path(), &[link("to-d/four", "/three")]);
        let first = root.path().join(&name).symlink_metadata().expect("stat");
        assert_eq!(first.nlink(), 4, "{name}");
        for other in ["d/two", "three", "d/four"] {
            let other = root.path().join(other).symlink_metadata().expect("stat");
            assert_eq!((other.ino(), other.mode()), (first.ino(), first.mode()), "{name}");
        }
    }
}

#[test]
fn every_type_keeps_trusted_attributes() {
    let all: Vec<_> =
        linkable().into_iter().chain([dir("dir")]).map(|raw| with(raw, "trusted.key", b"a\0=\n")).collect();
    let tree = tree_of(&all);
    for raw in &all {
        let seen = &tree[&raw.name].xattrs;
        assert_eq!(seen.get(&b"trusted.key"[..]), Some(&b"a\0=\n".to_vec()), "{}", raw.name.escape_ascii());
    }
}

#[test]
fn a_capability_survives_the_owner_and_further_names() {
    // The link's header is of another owner: whoever applied it would lose the capability to chown.
    let capable = with(Raw { uid: 5, mode: 0o4755, ..file("tool") }, "security.capability", &CAPABILITY);
    let tree = tree_of(&[capable, Raw { uid: 7, mode: 0o600, mtime: (9, 9), ..link("other", "tool") }]);
    let seen = &tree[&b"other"[..]];
    assert_eq!((seen.owner, seen.mode, seen.mtime), ((5, 0), 0o4755, (0, 0)));
    assert_eq!(seen.xattrs.get(&b"security.capability"[..]), Some(&CAPABILITY.to_vec()));
    assert_eq!(tree[&b"tool"[..]].xattrs, seen.xattrs);
}

#[test]
fn attributes_of_other_systems_are_left_out() {
    let root = scratch();
    let summary = apply(
        root.path(),
        &[with(file("a"), "com.apple.provenance", b"x"), with(dir("d"), "btrfs.compression", b"zstd")],
    );
    assert_eq!(summary.foreign_attributes, 2);
    assert!(read(root.path()).values().all(|seen| seen.xattrs.is_empty()));
}

#[test]
fn markers_of_what_is_not_there_make_nothing() {
    let root = scratch();
    apply(root.path(), &[file("file"), sym("nowhere", "missing"), Raw { mtime: (5, 0), ..dir("d") }]);
    let before = read(root.path());
    let markers = [
        ".wh.nothing",
        "d/.wh.nothing",
        "missing/.wh.x",
        "missing/.wh..wh..opq",
        "file/.wh.x",
        "file/.wh..wh..opq",
        "nowhere/.wh.x",
        "nowhere/.wh..wh..opq",
        "d/.wh..wh..opq",
    ];
    let summary = apply(root.path(), &markers.map(|name| Raw::new(b'0', name)));
    assert_eq!(summary.entries, 9);
    super::tree::assert_same(&read(root.path()), &before, || "markers".to_string());
}

#[test]
fn an_opaque_root_keeps_its_own_attributes() {
    let root = scratch();
    let attributes = Raw { uid: 5, mode: 0o1777, mtime: (7, 7), ..dir("./") };
    apply(root.path(), &[with(attributes, "user.key", b"v"), file("gone"), file("d/gone")]);
    apply(root.path(), &[file("d/new"), file(".wh..wh..opq")]);
    let tree = read(root.path());
    assert_eq!(tree.keys().map(Vec::as_slice).collect::<Vec<_>>(), [&b""[..], b"d", b"d/new"]);
    let seen = &tree[&b""[..]];
    assert_eq!((seen.owner.0, seen.mode, seen.mtime), (5, 0o1777, (7, 7)));
    assert_eq!(seen.xattrs.len(), 1);
}

#[test]
fn times_before_1970_are_exact_on_every_type() {
    for (style, mtime) in [(Style::Pax, (-2_000_000_000, 999_999_999)), (Style::Gnu, (-1, 0))] {
        let mut tar = Tar::default();
        for raw in linkable().into_iter().chain([dir("dir"), dir("./")]) {
            tar.entry(&Raw { mtime, ..raw }, style);
        }
        let root = scratch();
        unpack(&mut &tar.end()[..], root.path(), &Limits::default(), &|| false).expect("unpack");
        // First: reading the tree moves access times.
        let file = root.path().join("file").metadata().expect("stat");
        assert_eq!((file.atime(), file.atime_nsec()), (mtime.0, mtime.1.into()), "access times are the mtime, too");
        for (name, seen) in read(root.path()) {
            assert_eq!(seen.mtime, mtime, "{}", name.escape_ascii());
        }
    }
}

#[test]
fn a_directory_becomes_a_file_and_a_directory_again() {
    let steps = [dir("./"), dir("n"), file("n/old"), file("n"), Raw { mtime: (5, 0), ..dir("n") }, file("n/new")];
    let whole = tree_of(&steps);
    let root = scratch();
    for step in &steps {
        apply(root.path(), std::slice::from_ref(step));
    }
    super::tree::assert_same(&read(root.path()), &whole, || "a layer for each step".to_string());
    assert_eq!(whole.keys().map(Vec::as_slice).collect::<Vec<_>>(), [&b""[..], b"n", b"n/new"]);
    assert_eq!(whole[&b"n"[..]].mtime, (5, 0));
}

/// A path of exactly `length` bytes, of components of 200.
fn path(length: usize) -> String {
    let mut path = vec!["d".repeat(200); length / 201].join("/");
    if path.len() < length {
        path.push('/');
        path.extend(std::iter::repeat_n('e', length - path.len()));
    }
    path
}

#[test]
fn names_as_long_as_the_kernel_has_them_and_paths_longer() {
    for length in [255, 4094, 4095, 4096, 4097, 5000] {
        let root = scratch();
        let name = path(length);
        assert_eq!(name.len(), length);
        let entries = [file(&name), link("link", &name), sym("l", "d"), Raw::new(b'0', format!("{name}.wh.no"))];
        let summary = apply(root.path(), &entries);
        assert!(summary.entries >= 4, "{length}");
        assert_eq!(root.path().join("link").metadata().expect("stat").nlink(), 2, "{length}");
        apply(
            root.path(),
            &[Raw::new(
                b'0',
                name.rsplit_once('/')
                    .map_or(format!(".wh.{name}"), |(dir, last)| format!("{dir}/.wh.{last}"))
                    .get(..)
                    .expect("whole"),
            )],
        );
        // A whiteout's marker has four bytes more than what it hides, and no file of the tree has its name.
        assert_eq!(root.path().join("link").metadata().expect("stat").nlink(), 1, "{length}");
        apply(root.path(), &[Raw::new(b'0', format!(".wh.{}", "d".repeat(200)))]);
    }
}

#[test]
fn symlinks_as_long_as_the_kernel_has_them() {
    let tree = tree_of(&[sym("s", &"t".repeat(4095))]);
    assert_eq!(tree[&b"s"[..]].what, What::Symlink(vec![b't'; 4095]));
    let root = scratch();
    let error = unpack(&mut &Tar::of(&[sym("s", &"t".repeat(4096))])[..], root.path(), &Limits::default(), &|| false)
        .expect_err("longer than any path");
    assert!(error.to_string().contains("name too long"), "{error}");
    assert_eq!(error.kind(), Kind::BadInput);
}

/// The same map in GNU tar's four encodings, by hand: a hole at the start, one inside, one at the end.
#[test]
fn holes_stay_where_the_map_has_them() {
    const BLOCK: u64 = 4096;
    let parts = [(BLOCK, BLOCK), (4 * BLOCK, 2 * BLOCK)];
    let data = vec![7; 3 * BLOCK as usize];
    let size = (10 * BLOCK).to_string();
    let flat: Vec<String> =
        parts.iter().flat_map(|(offset, length)| [offset.to_string(), length.to_string()]).collect();
    let pax = |records: &[(&str, &[u8])], data: &[u8]| {
        let mut tar = Tar::default();
        tar.pax(records);
        tar.entry(&Raw::new(b'0', "sparse").data(data), Style::Pax);
        tar.end()
    };
    let map_1_0 = format!("2\n{}\n", flat.join("\n"));
    let mut padded = map_1_0.into_bytes();
    padded.resize(512, 0);
    padded.extend(&data);
    let old_gnu = {
        let mut tar = Tar::default();
        tar.entry(&Raw::new(b'S', "sparse").data(&data), Style::Gnu);
        let mut bytes = tar.end();
        for (at, number) in flat.iter().enumerate() {
            let number: u64 = number.parse().expect("a number");
            bytes[386 + at * 12..][..12].copy_from_slice(format!("{number:011o}\0").as_bytes());
        }
        bytes[483..495].copy_from_slice(format!("{:011o}\0", 10 * BLOCK).as_bytes());
        super::doubtful::sum(&mut bytes[..512]);
        bytes
    };
    let number = |at: usize| flat[at].as_bytes();
    for (what, tar) in [
        ("old GNU", old_gnu),
        (
            "PAX 0.0",
            pax(
                &[
                    ("GNU.sparse.size", size.as_bytes()),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.offset", number(0)),
                    ("GNU.sparse.numbytes", number(1)),
                    ("GNU.sparse.offset", number(2)),
                    ("GNU.sparse.numbytes", number(3)),
                ],
                &data,
            ),
        ),
        (
            "PAX 0.1",
            pax(&[("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.map", flat.join(",").as_bytes())], &data),
        ),
        (
            "PAX 1.0",
            pax(
                &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())],
                &padded,
            ),
        ),
    ] {
        let root = scratch();
        unpack(&mut &tar[..], root.path(), &Limits::default(), &|| false).unwrap_or_else(|e| panic!("{what}: {e}"));
        let path = root.path().join("sparse");
        assert_eq!(data_map(&path), parts.map(|(start, length)| (start, start + length)), "{what}");
        let meta = path.metadata().expect("stat");
        assert_eq!((meta.len(), meta.blocks() * 512), (10 * BLOCK, 3 * BLOCK), "{what}");
    }
}

#[test]
fn layers_without_entries_are_layers() {
    for tar in [Vec::new(), vec![0; 512], vec![0; 10_240]] {
        let root = scratch();
        let summary = unpack(&mut &tar[..], root.path(), &Limits::default(), &|| false).expect("unpack");
        assert_eq!(summary, Summary::default());
    }
}
