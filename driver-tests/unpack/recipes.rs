//! Tars that are hard to write again, because the tree has not all that they had, or has it elsewhere.
//!
//! The other modules here unpack by [`super::restored`] too, so that each tar of theirs is written again.

use std::path::Path;

use reflinkd::layer::recipe::restore;
use reflinkd::layer::{IdMaps, Limits, record};

use super::fixture::{Tmpfs, scratch};
use super::restored::unpack;
use super::tree::{What, read};
use super::writer::{Raw, Style, Tar};
use super::{cases, doubtful};

fn file(name: &str, data: &str) -> Raw {
    Raw::new(b'0', name).data(data)
}

fn sym(name: &str, target: &str) -> Raw {
    Raw::new(b'2', name).link(target)
}

fn link(name: &str, target: &str) -> Raw {
    Raw::new(b'1', name).link(target)
}

fn dir(name: &str) -> Raw {
    Raw::new(b'5', name)
}

/// The names in a tree, those of files with what is in them.
fn listed(root: &Path) -> Vec<String> {
    let shown = |(name, seen): (Vec<u8>, super::tree::Seen)| match seen.what {
        What::File(data) => format!("{}={}", name.escape_ascii(), data.escape_ascii()),
        _ => name.escape_ascii().to_string(),
    };
    read(root).into_iter().filter(|(name, _)| !name.is_empty()).map(shown).collect()
}

#[test]
fn what_the_tree_has_no_more_or_elsewhere() {
    let lower = [dir("usr"), dir("usr/bin"), sym("bin", "usr/bin"), file("usr/bin/old", "lower"), dir("other")];
    let cases: &[(&str, &[Raw], &[&str])] = &[
        ("a name twice", &[file("f", "one"), file("f", "two")], &["f=two"]),
        ("a name thrice", &[file("f", "one"), file("./f", "two"), file("/f", "three")], &["f=three"]),
        ("the same twice", &[file("f", "one"), file("f", "one")], &["f=one"]),
        ("nothing in place of it", &[file("f", "one"), file("f", "")], &["f="]),
        ("a directory in place", &[file("f", "one"), dir("f"), file("f/g", "two")], &["f", "f/g=two"]),
        ("a link in place", &[file("f", "one"), sym("f", "usr/bin/old")], &["f"]),
        ("a hard link in place", &[file("g", "two"), file("f", "one"), link("f", "g")], &["f=two", "g=two"]),
        ("the other name goes", &[file("f", "one"), link("g", "f"), file("f", "two")], &["f=two", "g=one"]),
        ("both names go", &[file("f", "one"), link("g", "f"), file("f", "two"), sym("g", "f")], &["f=two", "g"]),
        (
            "swapped",
            &[file("a", "A"), link("b", "a"), file("a", "B"), link("c", "a"), file("b", "C")],
            &["a=B", "b=C", "c=B"],
        ),
        (
            "a file in place of a directory",
            &[file("d/e/f", "one"), file("d/g", "two"), link("h", "d/g"), file("d", "three")],
            &["d=three", "h=two"],
        ),
        (
            "a directory that comes back",
            &[file("d/f", "one"), file("d", "x"), dir("d"), file("d/f", "two")],
            &["d", "d/f=two"],
        ),
        ("through a symlink", &[file("bin/f", "one")], &["usr/bin/f=one"]),
        (
            "through a symlink that goes",
            &[file("bin/f", "one"), dir("bin"), file("bin/f", "two")],
            &["bin", "bin/f=two", "usr/bin/f=one"],
        ),
        (
            "through a symlink that turns",
            &[file("bin/f", "one"), sym("bin", "other"), file("bin/f", "two")],
            &["other/f=two", "usr/bin/f=one"],
        ),
        ("through a symlink, then hidden", &[file("bin/f", "one"), file(".wh.bin", "")], &["usr/bin/f=one"]),
        (
            "replaced through a symlink",
            &[file("bin/f", "one"), file("usr/bin/f", "two"), file("bin/f", "three")],
            &["usr/bin/f=three"],
        ),
        ("before an opaque root", &[file("f", "one"), file("f", "two"), file(".wh..wh..opq", "")], &["f=two"]),
        (
            "markers with data, and AUFS's own",
            &[file(".wh.f", "data"), file(".wh..wh.plnk/1", "aufs"), file("d/.wh..wh..opq", "x")],
            &[],
        ),
        ("nothing in files", &[file("a", ""), file("b", ""), file("a", "")], &["a=", "b="]),
        ("content in a fifo's place", &[Raw::new(b'6', "p"), file("p", "one"), Raw::new(b'6', "p")], &["p"]),
    ];
    for (what, entries, expected) in cases {
        let root = scratch();
        unpack(&mut &Tar::of(&lower)[..], root.path(), &Limits::default(), &|| false).expect(what);
        let before = root.path().metadata().and_then(|root| root.modified()).expect("stat");
        let tar = Tar::of(entries);
        unpack(&mut &tar[..], root.path(), &Limits::default(), &|| false).unwrap_or_else(|e| panic!("{what}: {e}"));
        let seen = listed(root.path());
        for expected in *expected {
            assert!(seen.iter().any(|seen| seen == expected), "{what}: {expected} is missing in {seen:?}");
        }
        assert!(!seen.iter().any(|seen| seen.contains(".reflinkd-")), "{what}: {seen:?}");
        let after = root.path().metadata().and_then(|root| root.modified()).expect("stat");
        assert_eq!(before, after, "{what}: the root's time");
    }
}

#[test]
fn the_end_of_the_stream_and_not_of_the_archive() {
    let entries = [file("f", "one"), file("g", &"x".repeat(700))];
    let whole = Tar::of(&entries);
    let headless = &whole[..whole.len() - 1024];
    for tail in [&[][..], &[0; 512], &[0; 1024], &[0; 10240], b"garbage", &[&[0; 1024][..], &[7; 1 << 20]].concat()] {
        let tar = [headless, tail].concat();
        let root = scratch();
        let unpacked = unpack(&mut &tar[..], root.path(), &Limits::default(), &|| false);
        // Only a header could stand there.
        assert_eq!(unpacked.is_err(), tail == b"garbage", "{unpacked:?}");
    }
    let limits = Limits { max_bytes: 4096, ..Limits::default() };
    let long = [&whole[..], &[0; 4096]].concat();
    let error = unpack(&mut &long[..], scratch().path(), &limits, &|| false).expect_err("too long");
    assert!(error.to_string().contains("larger than the limit"), "{error}");
}

#[test]
fn doubtful_and_hostile_tars_that_unpack() {
    let mut unpacked = 0;
    let corpus = |target: &str| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("driver-tests/fuzz/corpus").join(target);
        let inputs = std::fs::read_dir(dir).expect("the corpus").map(|file| file.expect("list").path());
        inputs.map(|path| std::fs::read(path).expect("read")).collect::<Vec<_>>()
    };
    let fuzzed = ["tar", "unpack"].into_iter().flat_map(corpus).filter_map(|data| Some(data.get(1..)?.to_vec()));
    let cases = cases::all().into_iter().map(|case| case.tar);
    let limits = Limits { max_bytes: 64 << 20, ..Limits::default() };
    for tar in doubtful::all().into_iter().map(|doubt| doubt.tar).chain(cases).chain(fuzzed) {
        for lower in [Vec::new(), cases::lower("/nowhere")] {
            let root = Tmpfs::new();
            unpack(&mut &lower[..], root.path(), &limits, &|| false).expect("the lower layer");
            unpacked += usize::from(unpack(&mut &tar[..], root.path(), &limits, &|| false).is_ok());
        }
    }
    assert!(unpacked > 150, "{unpacked}");
}

#[test]
fn many_that_moved_are_found_by_one_walk() {
    // Deeper than what a walk keeps open, and each file through a symlink.
    let deep = vec!["d"; 100].join("/");
    let mut entries = vec![dir(&deep), sym("s", &deep)];
    for number in 0..2000 {
        entries.push(file(&format!("s/{number}/f"), &format!("{number}")));
        entries.push(link(&format!("other/{}/{number}", number % 7), &format!("s/{number}/f")));
        if number % 3 == 0 {
            entries.push(file(&format!("s/{number}/f"), "replaced"));
        }
        if number % 6 == 0 {
            entries.push(sym(&format!("other/{}/{number}", number % 7), "nowhere"));
        }
    }
    let root = scratch();
    unpack(&mut &Tar::of(&entries)[..], root.path(), &Limits::default(), &|| false).expect("unpack");
}

#[test]
fn a_recipe_is_small() {
    const FILES: usize = 50_000;
    let mut tar = Tar::default();
    for number in 0..FILES {
        let name = format!("usr/share/package-{}/directory/{number}.py", number / 100);
        tar.entry(
            &Raw { mtime: (1_700_000_000 + number as i64 % 977, 0), ..file(&name, &format!("{number}")) },
            Style::Pax,
        );
    }
    let tar = tar.end();
    let (root, place) = (Tmpfs::new(), scratch());
    let recipe = place.path().join("recipe");
    record(&mut &tar[..], root.path(), &recipe, &Limits::default(), &IdMaps::default(), &|| false).expect("unpack");
    let mut out = Vec::new();
    restore(&recipe, root.path(), &mut out, &|| false).expect("restore");
    assert!(out == tar);
    let (small, all) = (recipe.metadata().expect("stat").len(), tar.len() as u64);
    assert!(small * 100 < all * 15, "{small} of {all} bytes");
}
