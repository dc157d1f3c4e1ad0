//! Pools whose host runs full: nothing is added below the reserve, what is too large is broken off before the host is full, and
//! what removes works all the time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::give::{ask, ask_with, ok, rows};
use crate::inventory::{inventory, untouched_by};
use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{LoopFs, MB, MIB, Scratch, arg, random_bytes, require_root, run, scratch};
use crate::world::{base_image, bytes, small_image};

/// `host_reserve` by default.
const RESERVE: u64 = 500 * MB;
/// What comes in and finds no room.
const TOO_MUCH: u64 = 240 * MB;

/// A pool with some things in it, on a host of its own.
struct Pooled {
    host: LoopFs,
    files: Scratch,
    root: PathBuf,
}

impl Pooled {
    /// On a host with somewhat more room than the reserve, which the pool believes to have.
    fn of(pool: &str, host: LoopFs) -> Self {
        require_root();
        let pooled = Self { root: host.path().join("store"), files: scratch("pooled"), host };
        pooled.ok(&["init", "--pool-fs", pool, "--pool-size", "3GB"]);
        pooled.archive("base.tar", &base_image());
        pooled.archive("other.tar", &small_image("other"));
        let big = random_bytes(TOO_MUCH);
        pooled.archive("big.tar", &TestImage::new("big").files(Packing::Plain, &[("big", &big)]));
        fs::write(pooled.file("root.tar"), tar_of(&[("x", b"x")])).expect("write");
        fs::write(pooled.file("big-root.tar"), tar_of(&[("big", &big)])).expect("write");
        fs::write(pooled.file("small"), "mine").expect("write");
        fs::write(pooled.file("big"), &big).expect("write");
        pooled.ok(&["load", "-q", &pooled.file("base.tar")]);
        for name in ["a", "b", "gone"] {
            pooled.ok(&["create", "--image", "base", name]);
        }
        pooled.ok(&["snapshot", "a", "first"]);
        pooled.ok(&["cp", &pooled.file("small"), "a:/mine"]);
        pooled.ok(&["tag", "base", "untagged"]);
        pooled.ok(&["docker", "reserve", "layer"]);
        pooled.ok(&["docker", "prepare", "box"]);
        for verb in [&["prepare", "x"][..], &["apply", "x", &pooled.file("root.tar")], &["commit", "x", "base"]] {
            pooled.ok(&[&["containerd"], verb].concat());
        }
        pooled.ok(&["containerd", "prepare", "box", "base"]);
        pooled
    }

    fn archive(&self, name: &str, image: &TestImage) {
        image.write_archive(Path::new(&self.file(name)));
    }

    fn file(&self, name: &str) -> String {
        arg(&self.files.path().join(name)).to_string()
    }

    fn ok(&self, args: &[&str]) -> String {
        ok(&self.root, args)
    }

    /// Bytes that are free on the host.
    fn free(&self) -> u64 {
        run("sync", &["-f", arg(self.host.path())]);
        let stat = rustix::fs::statvfs(self.host.path()).expect("statvfs");
        stat.f_bavail * stat.f_frsize
    }

    /// Let somebody else's file take all of the host but so much.
    fn leave(&self, free: u64) {
        let file = self.make_room();
        let now = self.free();
        assert!(now > free, "{now} are free");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, now - free).expect("fallocate");
    }

    /// Take that file's blocks away. Removing it would do so in the background, on XFS.
    fn make_room(&self) -> File {
        File::create(self.host.path().join("ballast")).expect("create or truncate")
    }

    /// A verb is refused by the guard, with all that its user has to know, and nothing is begun.
    fn refused(&self, args: &[&str], input: Stdio, before: &[String]) {
        let answer = ask_with(&self.root, args, input);
        let said = &answer.stderr;
        assert_eq!(answer.status, Some(1), "{args:?} is refused: {said}");
        let pool = self.root.with_extension("pool");
        for part in ["only ", " are free on the filesystem that ", arg(&pool), " are kept in reserve"] {
            assert!(said.contains(part), "{args:?} says {part:?}: {said}");
        }
        if !matches!(args[0], "docker" | "containerd") {
            assert!(said.contains("hint: ") && said.contains("reflinkd gc"), "{args:?}: {said}");
        }
        let untouched = |all| untouched_by(args, all);
        assert_eq!(untouched(inventory(&self.root)), untouched(before.to_vec()), "{args:?}");
    }

    fn is_well(&self, what: &str) {
        let info = &rows(&self.root, &["info"])[0];
        assert_eq!(info["read_only"], false, "{what}");
        let checked = ask(&self.root, &["check"]);
        assert_eq!(checked.status, Some(0), "{what}: {}{}", checked.stdout, checked.stderr);
    }
}

/// With what each verb reads.
fn given(file: Option<&str>) -> Stdio {
    file.map_or_else(Stdio::null, |file| File::open(file).expect("open").into())
}

/// All that add something.
fn below_the_reserve_nothing_is_added(pooled: &Pooled) {
    pooled.leave(RESERVE - 60 * MB);
    let file = |name: &str| pooled.file(name);
    let (other, tar, small, out) = (file("other.tar"), file("root.tar"), file("small"), file("out.tar"));
    let adding: &[(&[&str], Option<&str>)] = &[
        (&["load", "-q", &other], None),
        (&["load", "-q"], Some(&other)),
        (&["import", &tar, "imported"], None),
        (&["create", "--image", "base", "new"], None),
        (&["create", "--image", "base", "--read-only", "new"], None),
        (&["clone", "a", "new"], None),
        (&["clone", "a@first", "new"], None),
        (&["snapshot", "a", "second"], None),
        (&["rollback", "a", "first"], None),
        (&["commit", "a", "new"], None),
        (&["reset", "a"], None),
        (&["tag", "base", "new"], None),
        (&["cp", &small, "a:/new"], None),
        (&["cp", "-", "a:/etc"], Some(&tar)),
        // Compressed layers are kept in the store first.
        (&["save", "base", "--format", "oci-archive", "--compress", "zstd", "-o", &out], None),
        (&["docker", "reserve", "new"], None),
        (&["docker", "prepare", "new"], None),
        (&["docker", "apply", "layer", &tar], None),
        (&["containerd", "prepare", "new", "base"], None),
        (&["containerd", "view", "new", "base"], None),
        (&["containerd", "apply", "box", &tar], None),
    ];
    let before = inventory(&pooled.root);
    for (args, input) in adding {
        pooled.refused(args, given(*input), &before);
    }
    let warned = ask(&pooled.root, &["info"]).stderr;
    assert!(warned.contains("nothing is added to the store"), "{warned}");
    for args in [
        &["ps", "-s"][..],
        &["images"],
        &["layers"],
        &["df", "-v"],
        &["snapshots", "-s"],
        &["diff", "a"],
        &["inspect", "a", "base"],
        &["export", "a", "-o", &out],
        &["save", "base", "-o", &file("saved.tar")],
        &["cp", "a:/mine", &file("copied")],
        &["rename", "b", "c"],
        &["rm", "gone"],
        &["rm", "a@first"],
        &["rmi", "untagged"],
        &["docker", "remove", "box"],
        &["containerd", "remove", "box"],
        &["gc"],
    ] {
        pooled.ok(args);
    }
    pooled.is_well("below the reserve");
    pooled.make_room();
    pooled.ok(&["rename", "c", "b"]);
    pooled.ok(&["snapshot", "a", "first"]);
    pooled.ok(&["containerd", "prepare", "box", "base"]);
}

/// What begins above the reserve and is too large.
fn what_is_too_large_is_broken_off(pooled: &Pooled) {
    let file = |name: &str| pooled.file(name);
    let (big, image, tar) = (file("big"), file("big.tar"), file("big-root.tar"));
    let large: &[(&[&str], Option<&str>)] = &[
        (&["load", "-q", &image], None),
        (&["load", "-q"], Some(&image)),
        (&["import", &tar, "imported"], None),
        (&["cp", &big, "a:/big"], None),
        (&["cp", "-", "a:/etc"], Some(&tar)),
        (&["docker", "apply", "layer", &tar], None),
        (&["containerd", "apply", "box", &tar], None),
    ];
    let before = inventory(&pooled.root);
    for (args, input) in large {
        pooled.leave(RESERVE + 70 * MB);
        pooled.refused(args, given(*input), &before);
        let free = pooled.free();
        assert!(free > RESERVE - 50 * MB, "{args:?} was broken off when {free} were left");
        pooled.ok(&["gc"]);
        pooled.make_room();
    }
    pooled.is_well("after what was too large");
}

/// What a container wrote is in memory when the host has no room for it. Btrfs would turn read-only; XFS tells whoever syncs, and
/// who only counts goes on.
fn on_a_full_host_xfs_is_looked_at_and_emptied(pooled: &Pooled) {
    for command in [&["df"][..], &["ps", "-s"], &["gc"], &["rm", "filler"]] {
        pooled.make_room();
        pooled.ok(&["create", "--image", "base", "filler"]);
        let tree = PathBuf::from(pooled.ok(&["mount", "filler"]));
        pooled.leave(4 * MB);
        fs::write(tree.join("lost"), random_bytes(40 * MB)).expect("into memory");
        pooled.ok(command);
        assert_eq!(rows(&pooled.root, &["info"])[0]["read_only"], false);
        if command[0] != "rm" {
            pooled.ok(&["rm", "filler"]);
        }
    }
    pooled.make_room();
    pooled.ok(&["gc"]);
    pooled.is_well("after a full host");
}

/// With room again all goes on.
fn everything_goes_on(pooled: &Pooled) {
    let file = |name: &str| pooled.file(name);
    for args in [
        &["load", "-q", &file("other.tar")][..],
        &["load", "-q", &file("big.tar")],
        &["import", &file("root.tar"), "imported"],
        &["create", "--image", "base", "new"],
        &["clone", "a", "clone"],
        &["snapshot", "a", "second"],
        &["rollback", "a", "first"],
        &["commit", "a", "committed"],
        &["reset", "a"],
        &["tag", "base", "tagged"],
        &["cp", &file("big"), "b:/big"],
        &["docker", "apply", "layer", &file("root.tar")],
        &["containerd", "remove", "box"],
        &["containerd", "prepare", "box", "base"],
        &["containerd", "apply", "box", &file("root.tar")],
        &["rm", "new", "clone", "b"],
        &["rmi", "big", "imported", "committed"],
        &["gc"],
    ] {
        pooled.ok(args);
    }
    let occupied = bytes(&rows(&pooled.root, &["info"])[0]["pool"], "occupied");
    assert!(occupied < 150 * MB, "what is freed is the host's again: {occupied} are left");
    pooled.is_well("at the end");
    pooled.ok(&["destroy", "--yes"]);
}

fn a_host_runs_full(pool: &str, host: LoopFs) {
    let pooled = Pooled::of(pool, host);
    if pool == "xfs" {
        on_a_full_host_xfs_is_looked_at_and_emptied(&pooled);
    }
    below_the_reserve_nothing_is_added(&pooled);
    what_is_too_large_is_broken_off(&pooled);
    everything_goes_on(&pooled);
}

const HOST: u64 = 1500 * MIB;

fn all_hosts() -> bool {
    std::env::var_os("REFLINKD_ALL_DISKS").is_some()
}

#[test]
fn of_btrfs() {
    a_host_runs_full("btrfs", LoopFs::ext4(HOST));
    if all_hosts() {
        a_host_runs_full("btrfs", LoopFs::xfs(HOST));
    }
}

#[test]
fn of_xfs() {
    a_host_runs_full("xfs", LoopFs::xfs(HOST));
    if all_hosts() {
        a_host_runs_full("xfs", LoopFs::ext4(HOST));
    }
}
