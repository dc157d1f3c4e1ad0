//! Trees of shapes that hurt, cloned and removed; all of it again with 64 descriptors.

use std::ffi::CStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use reflinkd::backend::clone::Counts;
use reflinkd::backend::remove::remove_tree;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, linkat, mkdirat, openat, statat, symlinkat};

use crate::fixture::{Setup, assert_listed, clone};
use crate::support::digest::assert_same;
use crate::support::{arg, tree_digest};

/// Below PATH_MAX twice over by names of one byte, and beyond it by the longer ones.
const DEPTH: usize = 3000;

fn open(at: &OwnedFd, name: &str) -> OwnedFd {
    openat(at, name, OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
        .unwrap_or_else(|e| panic!("open {name}: {e}"))
}

fn top(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::DIRECTORY, Mode::empty()).unwrap()
}

fn file(at: &OwnedFd, name: &str, text: &str) {
    let file = openat(at, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL, Mode::RUSR).unwrap();
    rustix::io::write(file, text.as_bytes()).unwrap();
}

/// Nested directories of that name with what `furnish` puts in each, given its depth; the deepest one.
fn nest(root: &Path, name: &str, mut furnish: impl FnMut(usize, &OwnedFd)) -> OwnedFd {
    fs::create_dir(root).unwrap();
    let mut at = top(root);
    for depth in 0..DEPTH {
        mkdirat(&at, name, Mode::RWXU).unwrap();
        at = open(&at, name);
        furnish(depth, &at);
    }
    at
}

/// All names in a directory with what stat says of each, in order.
fn listing(at: &OwnedFd) -> Vec<(Vec<u8>, Stat)> {
    let names = Dir::read_from(at).unwrap().map(|entry| entry.unwrap().file_name().to_owned());
    let facts = |name: &CStr| statat(at, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let mut all: Vec<_> = names.map(|name| (name.to_bytes().to_vec(), facts(&name))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

/// Compare two nests of any depth, and one directory beside each step of them, by what stat says.
fn assert_same_nest(from: &Path, to: &Path, name: &str) {
    let (mut from, mut to) = (top(from), top(to));
    let pick = |facts: &Stat| (facts.st_mode, facts.st_uid, facts.st_mtime, facts.st_mtime_nsec, facts.st_nlink);
    for depth in 0..=DEPTH {
        let alike = |from: &OwnedFd, to: &OwnedFd| {
            let (from, to) = (listing(from), listing(to));
            assert!(from.iter().zip(&to).all(|(a, b)| a.0 == b.0 && (a.0 == b".." || pick(&a.1) == pick(&b.1))));
            assert_eq!(from.len(), to.len());
            from
        };
        let entries = alike(&from, &to);
        for (beside, facts) in entries.iter().filter(|(beside, _)| !matches!(&**beside, b"." | b"..")) {
            if beside != name.as_bytes() && FileType::from_raw_mode(facts.st_mode).is_dir() {
                let beside = std::str::from_utf8(beside).unwrap();
                alike(&open(&from, beside), &open(&to, beside));
            }
        }
        if depth < DEPTH {
            (from, to) = (open(&from, name), open(&to, name));
        }
    }
}

fn nested(setup: Setup, name: &str) {
    let fs = setup.make();
    let from = fs.path().join("from");
    let deepest = nest(&from, name, |_, _| {});
    file(&deepest, "file", "deep");
    drop(deepest);
    let (to, cloned) = clone(setup, &from);
    let directories = DEPTH as u64 + 1;
    assert_eq!(cloned.counts, Counts { directories, cloned: 1, ..Counts::default() });
    assert_same_nest(&from, &to, name);
    assert_eq!(remove_tree(&to).expect("remove the clone"), directories + 1);
    assert_eq!(remove_tree(&from).expect("remove the source"), directories + 1);
}

#[test]
fn three_thousand_nested_directories() {
    nested(Setup::Xfs, "d");
    nested(Setup::Xfs, &"long".repeat(60));
}

#[test]
fn three_thousand_nested_directories_on_btrfs() {
    nested(Setup::Btrfs, &"long".repeat(60));
}

/// Nested directories with others beside each of them, so that many wait for their turn.
#[test]
fn a_comb() {
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    nest(&from, "m", |_, at| {
        for beside in ["a", "z"] {
            mkdirat(at, beside, Mode::RWXU).unwrap();
            file(&open(at, beside), "file", "text");
        }
    });
    let (to, cloned) = clone(Setup::Xfs, &from);
    let steps = DEPTH as u64;
    assert_eq!(cloned.counts, Counts { directories: 3 * steps + 1, cloned: 2 * steps, ..Counts::default() });
    assert_same_nest(&from, &to, "m");
    assert_eq!(remove_tree(&to).expect("remove the clone"), 5 * steps + 1);
    assert_eq!(remove_tree(&from).expect("remove the source"), 5 * steps + 1);
}

/// Files, symlinks and FIFOs whose names are some above and some below what a path can name.
#[test]
fn links_across_depths() {
    const NAME: &str = "directory";
    const EVERY: usize = 500;
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    let originals = fs.path().join("originals");
    fs::create_dir(&originals).unwrap();
    let originals = top(&originals);
    file(&originals, "file", "linked");
    symlinkat("target", &originals, "symlink").unwrap();
    rustix::fs::mknodat(&originals, "fifo", FileType::Fifo, Mode::RUSR, 0).unwrap();
    let kinds = ["file", "symlink", "fifo"];
    nest(&from, NAME, |depth, at| {
        if depth % EVERY == 0 {
            for kind in kinds {
                linkat(&originals, kind, at, kind, AtFlags::empty()).unwrap();
            }
        }
    });
    // So that the clone's have as many names.
    for kind in kinds {
        rustix::fs::unlinkat(&originals, kind, AtFlags::empty()).unwrap();
    }
    let (to, cloned) = clone(Setup::Xfs, &from);
    let sites = (DEPTH / EVERY) as u64;
    let counts = Counts {
        directories: DEPTH as u64 + 1,
        cloned: 1,
        symlinks: 1,
        nodes: 1,
        links: 3 * (sites - 1),
        ..Counts::default()
    };
    assert_eq!(cloned.counts, counts);
    assert_same_nest(&from, &to, NAME);
    let mut at = top(&to);
    let mut inodes = Vec::new();
    for depth in 0..DEPTH {
        at = open(&at, NAME);
        if depth % EVERY == 0 {
            inodes.push(kinds.map(|kind| statat(&at, kind, AtFlags::SYMLINK_NOFOLLOW).unwrap().st_ino));
        }
    }
    assert!(inodes.windows(2).all(|pair| pair[0] == pair[1]), "{inodes:?}");
    remove_tree(&to).expect("remove the clone");
    remove_tree(&from).expect("remove the source");
}

#[test]
fn twenty_thousand_files_in_one_directory() {
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    fs::create_dir(&from).unwrap();
    let at = top(&from);
    for number in 0..20_000 {
        file(&at, &number.to_string(), if number % 10 == 0 { "text" } else { "" });
    }
    let (to, cloned) = clone(Setup::Xfs, &from);
    assert_eq!(cloned.counts, Counts { directories: 1, cloned: 2000, empty: 18_000, ..Counts::default() });
    assert_listed(&cloned, &to);
    assert_same("a clone", &tree_digest(&from), &tree_digest(&to));
    assert_eq!(remove_tree(&to).expect("remove the clone"), 20_001);
}

#[test]
fn twenty_thousand_directories_in_one() {
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    fs::create_dir(&from).unwrap();
    let at = top(&from);
    for number in 0..20_000 {
        mkdirat(&at, number.to_string(), Mode::RWXU).unwrap();
    }
    let (to, cloned) = clone(Setup::Xfs, &from);
    assert_eq!(cloned.counts, Counts { directories: 20_001, ..Counts::default() });
    assert_listed(&cloned, &to);
    assert_eq!(remove_tree(&to).expect("remove the clone"), 20_001);
}

/// Descriptors are bounded: the tests above again, in a process that can open 64 files.
#[test]
fn sixty_four_descriptors_are_enough() {
    let tests = [
        "shapes::three_thousand_nested_directories",
        "shapes::a_comb",
        "shapes::links_across_depths",
        "shapes::twenty_thousand_directories_in_one",
    ];
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("prlimit");
    command.args(["--nofile=64", arg(&program), "--test-threads=1", "--exact"]).args(tests);
    let output = command.output().expect("run prlimit");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("test result: ok. 4 passed"), "{said}");
}
