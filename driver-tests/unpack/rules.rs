//! One rule of the format or the specification a test.

use std::cell::Cell;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::layer::{Limits, Summary};

use super::fixture::scratch;
use super::restored::unpack;
use super::tree::{What, read};
use super::writer::{Raw, Style, Tar, record};

fn apply(root: &Path, tar: &[u8]) -> Summary {
    unpack(&mut &*tar, root, &Limits::default(), &|| false).expect("unpack")
}

fn names(root: &Path) -> Vec<String> {
    read(root).keys().skip(1).map(|name| name.escape_ascii().to_string()).collect()
}

fn file(name: &str) -> Raw {
    Raw::new(b'0', name).data(name)
}

fn dir(name: &str, mtime: i64) -> Raw {
    Raw { mtime: (mtime, 7), ..Raw::new(b'5', name) }
}

/// All orders of three.
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

#[test]
fn markers_hide_the_lower_layers_wherever_they_stand() {
    let opaque = [file("d/.wh..wh..opq"), file("d/sub/new"), file("d/low")];
    let whiteout = [file(".wh.d"), file("d/sub/new"), file("d/low")];
    for markers in [&opaque, &whiteout] {
        for order in ORDERS {
            let root = scratch();
            apply(
                root.path(),
                &Tar::of(&[dir("d", 5), file("d/gone"), dir("d/sub", 6), file("d/sub/gone"), file("d/low")]),
            );
            apply(root.path(), &Tar::of(&order.map(|at| markers[at].clone())));
            assert_eq!(names(root.path()), ["d", "d/low", "d/sub", "d/sub/new"], "{order:?}");
            let tree = read(root.path());
            // Its own entry is hidden with it by a whiteout, and not by an opaque marker.
            let expected = if markers[0].name == b".wh.d" { (0, 0) } else { (5, 7) };
            assert_eq!(tree[&b"d"[..]].mtime, expected, "{order:?}");
            assert_eq!(tree[&b"d/sub"[..]].mtime, (0, 0), "{order:?}");
        }
    }
}

#[test]
fn a_lower_directory_keeps_its_mtime_however_its_children_change() {
    let root = scratch();
    apply(root.path(), &Tar::of(&[dir(".", 3), dir("d", 5), file("d/a"), file("d/b"), dir("d/e", 6)]));
    let mut many = vec![file("d/new"), file("d/.wh.a"), file("d/e/.wh.nothing"), file("top")];
    // More directories than are kept open, so that `d` is closed and opened again in between.
    for number in 0..200 {
        many.push(file(&format!("x/{number}/file")));
        many.push(file(&format!("d/{number}")));
    }
    apply(root.path(), &Tar::of(&many));
    let tree = read(root.path());
    assert_eq!(tree[&b""[..]].mtime, (3, 7));
    assert_eq!(tree[&b"d"[..]].mtime, (5, 7));
    assert_eq!(tree[&b"d/e"[..]].mtime, (6, 7));
    assert_eq!(tree[&b"x/150"[..]].mtime, (0, 0));
}

#[test]
fn files_are_replaced_and_never_written_in_place() {
    let root = scratch();
    apply(root.path(), &Tar::of(&[file("a"), Raw::new(b'1', "b").link("a")]));
    apply(root.path(), &Tar::of(&[Raw::new(b'0', "a").data("new")]));
    let tree = read(root.path());
    assert_eq!(tree[&b"a"[..]].what, What::File(b"new".to_vec()));
    assert_eq!(tree[&b"b"[..]].what, What::File(b"a".to_vec()));
}

#[test]
fn a_hard_link_to_itself_or_its_sibling_loses_nothing() {
    let root = scratch();
    let link = |name: &str, target: &str| Raw::new(b'1', name).link(target);
    apply(root.path(), &Tar::of(&[file("a"), link("a", "a"), link("b", "a"), link("a", "b"), link("./a", "/b")]));
    assert_eq!(root.path().join("a").metadata().expect("stat").nlink(), 2);
}

#[test]
fn modes_are_exact_under_any_umask() {
    struct Restore(rustix::fs::Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            rustix::process::umask(self.0);
        }
    }
    let root = scratch();
    let _restore = Restore(rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077)));
    let with = |kind, name: &str, mode| Raw { mode, ..Raw::new(kind, name) };
    apply(
        root.path(),
        &Tar::of(&[with(b'5', "d", 0o1777), with(b'0', "f", 0o6666), with(b'6', "p", 0o666), file("i/x")]),
    );
    let tree = read(root.path());
    for (name, mode) in [(&b"d"[..], 0o1777), (b"f", 0o6666), (b"p", 0o666), (b"i", 0o755), (b"i/x", 0o644)] {
        assert_eq!(tree[name].mode, mode, "{}", name.escape_ascii());
    }
}

#[test]
fn only_files_have_data_whatever_their_header_says() {
    let mut tar = Tar::default();
    for (kind, name) in [(b'5', "d"), (b'2', "s"), (b'6', "p"), (b'1', "h")] {
        tar.entry(&file("target"), Style::Pax);
        let start = tar.0.len();
        tar.entry(&Raw::new(kind, name).link("target").data([1; 700]), Style::Pax);
        tar.0.truncate(start + 512);
    }
    let root = scratch();
    apply(root.path(), &tar.end());
    assert_eq!(names(root.path()), ["d", "h", "p", "s", "target"]);
}

#[test]
fn where_archives_end() {
    let root = scratch();
    assert_eq!(apply(root.path(), &[]), Summary::default());
    let one = Tar::of(&[file("a")]);
    let mut after = one.clone();
    after.extend([0xff; 5000]);
    assert_eq!(apply(root.path(), &after).entries, 1);
    let mut lone = one[..one.len() - 512].to_vec();
    lone.extend(Tar::of(&[file("b")]));
    let error = unpack(&mut &lone[..], root.path(), &Limits::default(), &|| false).unwrap_err();
    assert!(error.to_string().contains("single zero block"), "{error}");
}

#[test]
fn types_without_meaning_here_are_named() {
    for kind in [b'V', b'M', b'D', b'N', b'Z'] {
        let root = scratch();
        let error = unpack(&mut &Tar::of(&[Raw::new(kind, "odd")])[..], root.path(), &Limits::default(), &|| false)
            .unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
        assert!(error.to_string().starts_with("entry \"odd\": it"), "{error}");
    }
}

#[test]
fn headers_before_an_entry() {
    let mut tar = Tar::default();
    let mut global = Vec::new();
    record(&mut global, b"uid", b"1234");
    record(&mut global, b"comment", b"whatever");
    tar.block(b'g', b"global", &global);
    tar.pax(&[("hdrcharset", b"BINARY"), ("path", b"\xff"), ("size", b"3"), ("gid", b"4000000000")]);
    // The header says 2 bytes: the record's 3 count.
    let start = tar.0.len();
    tar.entry(&Raw::new(b'7', "other").data("ab"), Style::Pax);
    tar.0[start + 514] = b'c';
    let root = scratch();
    let summary = apply(root.path(), &tar.end());
    assert_eq!(summary.bytes, 3);
    let tree = read(root.path());
    let seen = &tree[&b"\xff"[..]];
    assert_eq!((&seen.what, seen.owner), (&What::File(b"abc".to_vec()), (1234, 4_000_000_000)));
    for kind in *b"xLK" {
        let mut tar = Tar::default();
        for _ in 0..2 {
            tar.block(kind, b"twice", if kind == b'x' { b"9 path=x\n" } else { b"x\0" });
        }
        tar.entry(&file("a"), Style::Pax);
        let error = unpack(&mut &tar.end()[..], root.path(), &Limits::default(), &|| false).unwrap_err();
        assert!(error.to_string().contains("two "), "{error}");
    }
    let mut tar = Tar::default();
    tar.block(b'x', b"big", &vec![b'0'; (1 << 20) + 1]);
    let error = unpack(&mut &tar.end()[..], root.path(), &Limits::default(), &|| false).unwrap_err();
    assert!(error.to_string().contains("larger than 1048576"), "{error}");
}

#[test]
fn limits_say_which_and_how_to_raise_it() {
    let root = scratch();
    let tar = Tar::of(&[Raw::new(b'0', "a").data([0; 10_000]), file("b/c")]);
    let with = |limits: &Limits| unpack(&mut &tar[..], root.path(), limits, &|| false);
    let error = with(&Limits { max_bytes: 10_000, ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("limit of 10000 bytes"), "{error}");
    assert!(error.hint().expect("hint").contains("--max-layer-size"));
    assert!(names(root.path()).is_empty(), "refused before anything was written");
    let error = with(&Limits { max_entries: 2, ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("more entries than the limit of 2"), "{error}");
    assert!(error.hint().expect("hint").contains("max_layer_entries"));
    let error = with(&Limits { max_depth: 1, ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("more components than the limit of 1"), "{error}");
    assert!(error.hint().expect("hint").contains("max_path_depth"));
    let exact = Limits { max_bytes: tar.len() as u64, max_entries: 3, max_depth: 2 };
    assert_eq!(with(&exact).expect("at the limits"), Summary { entries: 3, bytes: 10_003, foreign_attributes: 0 });
}

#[test]
fn stops_when_told_to() {
    let tar = Tar::of(&[Raw::new(b'0', "a").data(vec![1; 4 << 20])]);
    let root = scratch();
    let asked = Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() > 8
    };
    let error = unpack(&mut &tar[..], root.path(), &Limits::default(), &cancelled).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    assert!(root.path().join("a").metadata().expect("stat").len() < 4 << 20);
}

#[test]
fn merged_directories_lose_attributes_that_the_new_entry_lacks() {
    let root = scratch();
    let with = |key: &str| {
        let mut raw = dir("d", 1);
        raw.xattrs.insert(key.into(), b"v".to_vec());
        raw
    };
    apply(root.path(), &Tar::of(&[with("user.old"), file("d/x")]));
    apply(root.path(), &Tar::of(&[with("user.new")]));
    assert_eq!(names(root.path()), ["d", "d/x"]);
    let tree = read(root.path());
    assert_eq!(tree[&b"d"[..]].xattrs.keys().collect::<Vec<_>>(), [&b"user.new".to_vec()]);
}

#[test]
fn a_parent_symlink_that_changes_is_followed_anew() {
    let sym = |target: &str| Raw::new(b'2', "l").link(target);
    let root = scratch();
    apply(root.path(), &Tar::of(&[dir("one", 1), dir("two", 2), sym("/one")]));
    apply(root.path(), &Tar::of(&[file("l/a"), sym("two"), file("l/b"), dir("l", 3), file("l/c")]));
    assert_eq!(names(root.path()), ["l", "l/c", "one", "one/a", "two", "two/b"]);
    let tree = read(root.path());
    assert_eq!([tree[&b"one"[..]].mtime, tree[&b"two"[..]].mtime, tree[&b"l"[..]].mtime], [(1, 7), (2, 7), (3, 7)]);
    // The same by a whiteout: hidden, the symlink leads nowhere, and a directory is implied in its place.
    let root = scratch();
    apply(root.path(), &Tar::of(&[dir("one", 1), sym("one")]));
    apply(root.path(), &Tar::of(&[file("l/a"), file(".wh.l"), file("l/b")]));
    assert_eq!(names(root.path()), ["l", "l/b", "one", "one/a"]);
}
