//! Hostile layers, each with what is to become of it. They are given to the unpacker alone, to the whole program,
//! and to the fuzzer as a start.

use super::writer::{Raw, Style, Tar, record};

/// What is to become of a layer.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fate {
    /// Refused as bad input, in a message with this in it.
    Refused(&'static str),
    /// Unpacked: and then the tree has this name.
    Contained(&'static str),
    /// Unpacked: and then the tree has, not behind a symlink of its own, this file of [`EVIL`].
    Written(&'static str),
}
use Fate::{Contained, Refused, Written};

/// What hostile files hold.
pub(crate) const EVIL: &str = "evil";

/// A layer, and what it is called in a failure.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) what: String,
    pub(crate) tar: Vec<u8>,
    pub(crate) fate: Fate,
}

pub(crate) fn file(name: &str) -> Raw {
    Raw::new(b'0', name).data(EVIL)
}

pub(crate) fn link(name: &str, target: &str) -> Raw {
    Raw::new(b'1', name).link(target)
}

pub(crate) fn sym(name: &str, target: &str) -> Raw {
    Raw::new(b'2', name).link(target)
}

pub(crate) fn dir(name: &str) -> Raw {
    Raw::new(b'5', name)
}

pub(crate) fn device(name: &str, rdev: (u32, u32)) -> Raw {
    Raw { rdev, ..Raw::new(b'3', name) }
}

/// What the layers below left: symlinks that lead to the directory `outside`, or towards it, in every way.
pub(crate) fn lower(outside: &str) -> Vec<u8> {
    let mut entries = vec![dir("dir"), dir("usr"), Raw::new(b'0', "file").data("lower")];
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
        entries.push(sym(name, target));
    }
    Tar::of(&entries)
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = named()
        .into_iter()
        .chain(swapped())
        .map(|(what, entries, fate)| Case { what: what.into(), tar: Tar::of(&entries), fate })
        .collect();
    cases.extend(long_names());
    cases.extend(records());
    cases
}

const LEAVES: Fate = Refused("name leaves the root");

/// Names and links that point out.
fn named() -> Vec<(&'static str, Vec<Raw>, Fate)> {
    vec![
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
        ("absolute file", vec![file("/etc/passwd")], Written("etc/passwd")),
        ("many slashes", vec![file("////x//y")], Written("x/y")),
        ("file through an absolute symlink", vec![file("abs/file")], Refused("leads to nothing")),
        ("file through a climbing symlink", vec![file("climb/file")], Refused("leads to nothing")),
        ("file through a climb to the root", vec![file("deep/new")], Written("new")),
        ("file through a slash symlink", vec![file("slash/new")], Written("new")),
        ("file through a nested climb", vec![file("dir/up/file")], Refused("leads to nothing")),
        ("file through /proc", vec![file("magic/file")], Refused("leads to nothing")),
        ("magic link made by the layer", vec![sym("m", "/proc/self/root"), file("m/x")], Refused("leads to nothing")),
        ("file through a loop", vec![file("loop/file")], Refused("circle")),
        ("two-step loop", vec![sym("p", "q"), sym("q", "p"), file("p/x")], Refused("circle")),
        ("file through a file", vec![file("file/x")], Refused("is not a directory")),
        ("file through a symlink to a file", vec![file("tofile/x")], Refused("doesn't lead to a directory")),
        ("directory below a dangling symlink", vec![dir("dangling/x")], Refused("leads to nothing")),
        ("symlink then file through it", vec![sym("s", "../canary"), file("s/file")], Refused("leads to nothing")),
        ("symlink then file over it", vec![sym("s", "../canary/file"), file("s")], Written("s")),
        ("file over a lower symlink", vec![file("abs")], Written("abs")),
        ("directory over a symlink out", vec![dir("abs"), file("abs/file")], Written("abs/file")),
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
        ("hard link to a symlink out", vec![link("x", "abs"), file("x")], Written("x")),
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
        ("whiteout of a symlink out", vec![file(".wh.abs"), file("y")], Written("y")),
        ("opaque through a symlink out", vec![file("abs/.wh..wh..opq")], Contained("abs")),
        ("opaque root with symlinks out", vec![file(".wh..wh..opq"), file("y")], Written("y")),
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
        ("dot-dot with a control character", vec![file("../\x1b[2J")], LEAVES),
        ("dots that are a name", vec![file(".../.. /..x")], Written(".../.. /..x")),
        ("backslashes", vec![file("..\\..\\canary\\file")], Written("..\\..\\canary\\file")),
        ("whiteout of too long a name", vec![file(&format!(".wh.{}", "n".repeat(256)))], Refused("name too long")),
        ("AUFS link directory with dot-dot", vec![file(".wh..wh.plnk/../../x")], LEAVES),
        ("AUFS file", vec![file(".wh..wh.aufs"), file("y")], Written("y")),
        (
            "hard link to an AUFS file",
            vec![file(".wh..wh.plnk/1.2"), link("x", ".wh..wh.plnk/1.2")],
            Refused("doesn't exist"),
        ),
        ("hard link to itself", vec![link("x", "x")], Refused("doesn't exist")),
        ("hard link to a later entry", vec![link("x", "later"), file("later")], Refused("doesn't exist")),
        ("hard link to a whiteout", vec![file(".wh.file"), link("x", ".wh.file")], Refused("doesn't exist")),
        ("symlink through itself", vec![sym("s", "s/s"), file("s/x")], Refused("circle")),
        ("symlink to the machine's devices", vec![sym("d", "/dev"), file("d/mem")], Refused("leads to nothing")),
        ("symlink to a descriptor", vec![sym("d", "/proc/self/fd/0"), file("d/x")], Refused("leads to nothing")),
        ("climb over a symlink to the root", vec![sym("a", "/"), sym("b", "a/../.."), file("b/new")], Written("new")),
        ("file below a device", vec![device("d", (1, 1)), file("d/x")], Refused("is not a directory")),
    ]
}

/// Names that become something else in the middle of a layer.
fn swapped() -> Vec<(&'static str, Vec<Raw>, Fate)> {
    let described = |mut raw: Raw| {
        raw.xattrs.insert(b"trusted.evil".to_vec(), b"evil".to_vec());
        Raw { uid: 66, gid: 66, mode: 0o7777, mtime: (66, 66), ..raw }
    };
    vec![
        // The kernel's memory: whoever opens the device to write the file writes there.
        ("file over a device", vec![device("d", (1, 1)), file("d")], Written("d")),
        ("file over a hard link to a device", vec![device("d", (1, 1)), link("l", "d"), file("l")], Written("l")),
        // Whoever opens the FIFO to write the file waits for ever.
        ("file over a FIFO", vec![Raw::new(b'6', "p"), file("p")], Written("p")),
        ("whiteout of a symlink, then through it", vec![file(".wh.abs"), file("abs/new")], Written("abs/new")),
        (
            "opaque root, then through what it hid",
            vec![file(".wh..wh..opq"), file("climb/new")],
            Written("climb/new"),
        ),
        (
            "directory swapped, then a whiteout through it",
            vec![file("d/x"), sym("d", "../canary"), file("d/.wh.file")],
            Contained("d"),
        ),
        (
            "directory swapped, then an opaque marker through it",
            vec![file("d/x"), sym("d", "../canary"), file("d/.wh..wh..opq")],
            Contained("d"),
        ),
        (
            "directory swapped, then a hard link through it",
            vec![file("d/x"), sym("d", "../canary"), link("y", "d/file")],
            Refused("leads to nothing"),
        ),
        (
            "directory swapped and swapped back",
            vec![file("d/x"), sym("d", "../canary"), dir("d"), file("d/file")],
            Written("d/file"),
        ),
        (
            "parent swapped below a hard link's target",
            vec![file("d/e/x"), sym("d/e", "../../canary"), link("y", "d/e/file")],
            Refused("leads to nothing"),
        ),
        ("symlink out with attributes and times", vec![described(sym("s", "../canary/file"))], Contained("s")),
        ("hard link to a symlink out, described", vec![described(link("x", "abs"))], Contained("x")),
        ("directory over a symlink out, described", vec![described(dir("abs"))], Contained("abs")),
        ("file, directory, file of one name", vec![file("n"), file("n/x"), file("n")], Refused("is not a directory")),
        ("file, directory, file by entries", vec![file("n"), dir("n"), file("n/x"), file("n")], Written("n")),
    ]
}

/// The same names by PAX and GNU records.
fn long_names() -> Vec<Case> {
    let long = format!("{}/../../canary/file", "x/".repeat(60));
    let mut cases = Vec::new();
    for style in [Style::Pax, Style::Gnu] {
        for raw in [file(&long), link("x", &long)] {
            let mut tar = Tar::default();
            tar.entry(&raw, style);
            cases.push(Case { what: format!("long dot-dot, {style:?}, {}", raw.kind), tar: tar.end(), fate: LEAVES });
        }
    }
    cases
}

/// Records that lie.
fn records() -> Vec<Case> {
    let one = |key: &str, value: &[u8], why| {
        let mut tar = Tar::default();
        tar.pax(&[(key, value)]);
        tar.entry(&file("plain"), Style::Pax);
        Case { what: format!("record {key}={}", value.escape_ascii()), tar: tar.end(), fate: Refused(why) }
    };
    let mut cases = vec![
        one("path", b"../canary/file", "leaves the root"),
        one("path", b"a\0b", "NUL"),
        one("size", b"18446744073709551615", "not a number"),
        one("size", b"9223372036854775807", "larger than the limit"),
        one("size", b"-1", "not a number"),
        one("uid", b"4294967295", "uid"),
        one("gid", b"99999999999", "gid"),
        one("mtime", b"yesterday", "mtime"),
        one("GNU.sparse.map", b"0,4", "length"),
        one("GNU.sparse.name", b"", "malformed"),
        one("SCHILY.xattr.", b"x", "empty"),
        one("SCHILY.xattr.user.", b"x", "attribute \"user.\""),
        one("LIBARCHIVE.xattr.user.%zz", b"eA==", "badly encoded"),
    ];
    for (key, value) in [
        (&b"path"[..], &b"../canary/file"[..]),
        (b"linkpath", b"../canary/file"),
        (b"size", b"9"),
        (b"GNU.sparse.size", b"9"),
        (b"SCHILY.xattr.user.a", b"b"),
    ] {
        let mut global = Vec::new();
        record(&mut global, key, value);
        let mut tar = Tar::default();
        tar.block(b'g', b"global", &global);
        tar.entry(&file("plain"), Style::Pax);
        let what = format!("global {}", key.escape_ascii());
        cases.push(Case { what, tar: tar.end(), fate: Refused("global PAX header") });
    }
    cases
}
