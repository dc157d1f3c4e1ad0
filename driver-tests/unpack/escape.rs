//! Hostile archives. Each is unpacked into a tree beside a canary; whatever happens inside, nothing outside
//! may change, and what can't be meant must be refused in words that name the entry.

use std::os::unix::fs::symlink;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::layer::{Limits, unpack};

use super::fixture::scratch;
use super::tree::{What, read};
use super::writer::{Raw, Style, Tar, record};

/// What is to become of an archive.
enum Fate {
    /// Refused as bad input, in a message with this in it.
    Refused(&'static str),
    /// Unpacked: and then the tree has this name.
    Contained(&'static str),
}
use Fate::{Contained, Refused};

/// Unpack into `<dir>/root`, beside `<dir>/canary`. Lower layers left symlinks in the root that point out.
fn fate(what: &str, tar: &[u8], fate: &Fate) {
    let dir = scratch();
    let (root, canary) = (dir.path().join("root"), dir.path().join("canary"));
    for path in [&root, &canary, &canary.join("sub"), &root.join("dir"), &root.join("usr")] {
        std::fs::create_dir(path).expect("mkdir");
    }
    std::fs::write(canary.join("file"), "untouched").expect("write");
    std::fs::write(root.join("file"), "lower").expect("write");
    let outside = canary.to_str().expect("UTF-8");
    for (name, target) in [
        ("abs", outside),
        ("climb", "../canary"),
        ("deep", "../../../../../../../../../../../../"),
        ("magic", "/proc/self/cwd"),
        ("loop", "loop"),
        ("dangling", "nowhere"),
        ("tofile", "file"),
        ("slash", "/"),
        ("dir/up", "../../canary"),
    ] {
        symlink(target, root.join(name)).expect("symlink");
    }
    let before = (read(&canary), std::fs::read_dir(dir.path()).expect("list").count());
    let result = unpack(&mut &*tar, &root, &Limits::default(), &|| false);
    let after = (read(&canary), std::fs::read_dir(dir.path()).expect("list").count());
    assert_eq!(before, after, "{what}: the canary changed");
    match (result, fate) {
        (Err(error), Refused(why)) => {
            let text = error.to_string();
            assert!(text.contains(why), "{what}: {text}");
            assert_eq!(error.kind(), Kind::BadInput, "{what}: {text}");
        }
        (Ok(_), Contained(name)) => {
            assert!(root.join(name).symlink_metadata().is_ok(), "{what}: {name} isn't there");
        }
        (result, Refused(why)) => panic!("{what}: {result:?}, not refused for: {why}"),
        (result, Contained(_)) => panic!("{what}: {result:?}"),
    }
}

fn file(name: &str) -> Raw {
    Raw::new(b'0', name).data("evil")
}

fn link(name: &str, target: &str) -> Raw {
    Raw::new(b'1', name).link(target)
}

fn sym(name: &str, target: &str) -> Raw {
    Raw::new(b'2', name).link(target)
}

fn dir(name: &str) -> Raw {
    Raw::new(b'5', name)
}

#[test]
fn names_and_links_that_point_out() {
    const LEAVES: Fate = Refused("name leaves the root");
    let cases: Vec<(&str, Vec<Raw>, Fate)> = vec![
        ("dot-dot file", vec![file("../canary/file")], Refused("entry \"../canary/file\": name leaves the root")),
        ("dot-dot in the middle", vec![file("dir/../../canary/file")], LEAVES),
        ("dot-dot at the end", vec![dir("dir/..")], LEAVES),
        ("only dot-dot", vec![dir("..")], LEAVES),
        ("absolute dot-dot", vec![file("/../canary/file")], LEAVES),
        ("dot-dot that stays inside", vec![file("dir/../x")], LEAVES),
        ("dot-dot directory", vec![dir("../new")], LEAVES),
        ("dot-dot symlink", vec![sym("../new", "x")], LEAVES),
        ("dot-dot fifo", vec![Raw::new(b'6', "../new")], LEAVES),
        ("dot-dot device", vec![Raw::new(b'3', "../new")], LEAVES),
        ("dot-dot whiteout", vec![file("../canary/.wh.file")], LEAVES),
        ("dot-dot opaque", vec![file("../canary/.wh..wh..opq")], LEAVES),
        ("whiteout of dot-dot", vec![file(".wh...")], Refused("names no file")),
        ("whiteout of dot", vec![file("dir/.wh..")], Refused("names no file")),
        ("whiteout of nothing", vec![file(".wh.")], Refused("names no file")),
        ("entry inside a whiteout", vec![file(".wh.dir/x")], Refused("whiteout can't have")),
        ("absolute file", vec![file("/etc/passwd")], Contained("etc/passwd")),
        ("many slashes", vec![file("////x//y")], Contained("x/y")),
        ("file through an absolute symlink", vec![file("abs/file")], Refused("leads to nothing")),
        ("file through a climbing symlink", vec![file("climb/file")], Refused("leads to nothing")),
        ("file through a climb to the root", vec![file("deep/new")], Contained("new")),
        ("file through a slash symlink", vec![file("slash/new")], Contained("new")),
        ("file through a nested climb", vec![file("dir/up/file")], Refused("leads to nothing")),
        ("file through /proc", vec![file("magic/file")], Refused("leads to nothing")),
        ("magic link made by the layer", vec![sym("m", "/proc/self/root"), file("m/x")], Refused("leads to nothing")),
        ("file through a loop", vec![file("loop/file")], Refused("circle")),
        ("two-step loop", vec![sym("p", "q"), sym("q", "p"), file("p/x")], Refused("circle")),
        ("file through a file", vec![file("file/x")], Refused("is not a directory")),
        ("file through a symlink to a file", vec![file("tofile/x")], Refused("doesn't lead to a directory")),
        ("directory below a dangling symlink", vec![dir("dangling/x")], Refused("leads to nothing")),
        ("symlink then file through it", vec![sym("s", "../canary"), file("s/file")], Refused("leads to nothing")),
        ("symlink then file over it", vec![sym("s", "../canary/file"), file("s")], Contained("s")),
        ("file over a lower symlink", vec![file("abs")], Contained("abs")),
        ("directory over a symlink out", vec![dir("abs"), file("abs/file")], Contained("abs/file")),
        (
            "directory swapped for a symlink",
            vec![dir("d"), file("d/x"), sym("d", "../canary"), file("d/file")],
            Refused("leads to nothing"),
        ),
        (
            "cached directory swapped",
            vec![file("dir/x"), sym("dir", "/../canary"), file("dir/file")],
            Refused("leads to nothing"),
        ),
        (
            "swapped below a cached path",
            vec![file("usr/a/b/c"), sym("usr/a", "../../canary"), file("usr/a/b/d")],
            Refused("not"),
        ),
        ("hard link out", vec![link("x", "../canary/file")], LEAVES),
        ("hard link to an absolute name", vec![link("x", "/canary/file")], Refused("doesn't exist")),
        ("hard link through a symlink", vec![link("x", "climb/file")], Refused("leads to nothing")),
        ("hard link to a symlink out", vec![link("x", "abs"), file("x")], Contained("x")),
        (
            "hard link to a symlink, then through",
            vec![link("x", "climb"), file("x/file")],
            Refused("leads to nothing"),
        ),
        ("hard link to a directory", vec![link("x", "dir")], Refused("directory can't be linked")),
        ("hard link to the root", vec![link("x", "/")], Refused("directory can't be linked")),
        ("hard link to nothing", vec![link("x", "")], Refused("links to nothing")),
        ("hard link whose place holds its target", vec![file("t/x"), link("t", "t/x")], Refused("hard link to")),
        ("whiteout through a symlink out", vec![file("climb/.wh.file")], Contained("climb")),
        ("whiteout of a symlink out", vec![file(".wh.abs"), file("y")], Contained("y")),
        ("opaque through a symlink out", vec![file("abs/.wh..wh..opq")], Contained("abs")),
        ("opaque root with symlinks out", vec![file(".wh..wh..opq"), file("y")], Contained("y")),
        ("root as a file", vec![file("/")], Refused("root of the tree can only be")),
        ("root as a symlink", vec![sym("./", "../canary")], Refused("root of the tree can only be")),
        ("no name", vec![file("")], Refused("has no name")),
        ("component too long", vec![Raw::new(b'0', [b'n'; 256])], Refused("name too long")),
        ("parent too long", vec![Raw::new(b'0', [&[b'n'; 256][..], b"/x"].concat())], Refused("name too long")),
        ("symlink to nothing", vec![sym("x", "")], Refused("links to nothing")),
        ("symlink of 5000 bytes", vec![Raw::new(b'2', "x").link([b't'; 5000])], Refused("name too long")),
        (
            "device number past the kernel's",
            vec![Raw { rdev: (4096, 0), ..Raw::new(b'3', "x") }],
            Refused("device numbers"),
        ),
    ];
    assert!(cases.len() >= 40);
    for (what, entries, expected) in cases {
        fate(what, &Tar::of(&entries), &expected);
    }
}

#[test]
fn the_same_names_by_pax_and_gnu_records() {
    for style in [Style::Pax, Style::Gnu] {
        let long = format!("{}/../../canary/file", "x/".repeat(60));
        let mut tar = Tar::default();
        tar.entry(&file(&long), style);
        fate("long dot-dot", &tar.end(), &Refused("leaves the root"));
        let mut tar = Tar::default();
        tar.entry(&link("x", &long), style);
        fate("long dot-dot link", &tar.end(), &Refused("leaves the root"));
    }
    for (key, value, why) in [
        ("path", &b"../canary/file"[..], "leaves the root"),
        ("path", b"a\0b", "NUL"),
        ("size", b"18446744073709551615", "not a number"),
        ("size", b"9223372036854775807", "larger than the limit"),
        ("size", b"-1", "not a number"),
        ("uid", b"4294967295", "uid"),
        ("gid", b"99999999999", "gid"),
        ("mtime", b"yesterday", "mtime"),
        ("GNU.sparse.map", b"0,4", "length"),
        ("GNU.sparse.name", b"", "malformed"),
        ("SCHILY.xattr.", b"x", "empty"),
        ("SCHILY.xattr.nonsense", b"x", "attribute \"nonsense\""),
    ] {
        let mut tar = Tar::default();
        tar.pax(&[(key, value)]);
        tar.entry(&file("plain"), Style::Pax);
        let expected = if key == "SCHILY.xattr.nonsense" { None } else { Some(Refused(why)) };
        match expected {
            Some(expected) => fate(key, &tar.end(), &expected),
            // The filesystem's answer: its kind is another.
            None => {
                let dir = scratch();
                let error = unpack(&mut &tar.end()[..], dir.path(), &Limits::default(), &|| false).unwrap_err();
                assert!(error.to_string().contains(why), "{error}");
                assert_eq!(error.kind(), Kind::Unsupported);
            }
        }
    }
    let mut tar = Tar::default();
    let mut global = Vec::new();
    record(&mut global, b"path", b"../canary/file");
    tar.block(b'g', b"global", &global);
    tar.entry(&file("plain"), Style::Pax);
    fate("global path", &tar.end(), &Refused("global PAX header"));
}

/// Every byte of a good archive, in turn, turned into something else: never a panic, never the canary.
#[test]
fn damaged_headers() {
    let mut tar = Tar::default();
    tar.entry(&Raw { mtime: (5, 5), ..file("dir/x") }, Style::Pax);
    tar.entry(&sym("s", "../canary"), Style::Gnu);
    tar.entry(&Raw::new(b'0', [b'l'; 150]), Style::Gnu);
    let good = tar.end();
    let dir = scratch();
    let canary = dir.path().join("canary");
    std::fs::create_dir(&canary).expect("mkdir");
    for at in (0..good.len()).step_by(3) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x55;
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        let _ = unpack(&mut &damaged[..], &root, &Limits::default(), &|| false);
        std::fs::remove_dir_all(&root).expect("clean up");
    }
    assert_eq!(read(&canary).len(), 1);
}

#[test]
fn every_truncation_in_an_entry_is_an_error() {
    let mut tar = Tar::default();
    tar.entry(&Raw::new(b'0', "a").data([7; 700]), Style::Pax);
    let first = tar.0.len();
    tar.entry(&Raw::new(b'0', [b'l'; 150]).data("x"), Style::Gnu);
    let second = tar.0.len();
    let whole = tar.end();
    let cut = |length: usize| {
        let dir = scratch();
        unpack(&mut &whole[..length], dir.path(), &Limits::default(), &|| false)
    };
    for length in 0..=whole.len() {
        // The boundaries before a header, and after the first zero block, are ends that others accept too.
        let end = [0, first, second, second + 512, whole.len()].contains(&length);
        match cut(length) {
            Ok(_) => assert!(end, "{length} of {} bytes were accepted", whole.len()),
            Err(error) => {
                assert!(!end, "{length}: {error}");
                assert!(error.to_string().contains("truncated"), "{error}");
                assert_eq!(error.kind(), Kind::BadInput);
            }
        }
    }
}

#[test]
fn a_mount_in_the_tree_is_not_entered() {
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    for tar in [
        Tar::of(&[file("dir/mount/x")]),
        Tar::of(&[file("dir/.wh.mount")]),
        Tar::of(&[file(".wh.dir")]),
        Tar::of(&[file("dir")]),
        Tar::of(&[file("dir/.wh..wh..opq")]),
        Tar::of(&[link("x", "dir/mount/inside")]),
    ] {
        let dir = scratch();
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        let mount = root.join("dir/mount");
        std::fs::create_dir_all(&mount).expect("mkdir");
        std::fs::create_dir(&other).expect("mkdir");
        std::fs::write(other.join("inside"), "x").expect("write");
        rustix::mount::mount_bind(&other, &mount).expect("these tests need root");
        let guard = Unmount(&mount);
        let error = unpack(&mut &tar[..], &root, &Limits::default(), &|| false).expect_err("refused");
        assert_eq!(
            read(&other).get(&b"inside"[..]).map(|seen| &seen.what),
            Some(&What::File(b"x".to_vec())),
            "{error}"
        );
        drop(guard);
    }
}
