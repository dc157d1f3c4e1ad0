//! Disks that somebody else has filled to the last block.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use crate::give::{ask, ask_with, ok, rows};
use crate::inventory::{inventory, untouched_by};
use crate::serve::Serve;
use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{GIB, MB, MIB, QuotaSetup, arg, fill, random_bytes};
use crate::world::{Ground, World, base_image, small_image};

/// What there is no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// Data; Btrfs has some for metadata.
    Data,
    /// Anything.
    All,
}

/// A store with some of everything.
struct Disk {
    world: World,
    full: Full,
}

impl Disk {
    fn on(ground: Ground, full: Full) -> Self {
        let disk = Self { world: World::of_size(400 * MIB, ground).with_room_for_metadata(), full };
        disk.archive("base.tar", &base_image());
        disk.archive("other.tar", &small_image("other"));
        disk.archive("again.tar", &small_image("again"));
        disk.archive("spare.tar", &TestImage::new("spare").files(Packing::Plain, &[("x", &random_bytes(8 * MB))]));
        disk.archive("big.tar", &TestImage::new("big").files(Packing::Plain, &[("big", &random_bytes(20 * MB))]));
        fs::write(disk.file("root.tar"), tar_of(&[("x", b"x")])).expect("write");
        fs::write(disk.file("big"), random_bytes(20 * MB)).expect("write");
        fs::write(disk.file("small"), "mine").expect("write");
        disk.ok(&["load", "-q", &disk.file("base.tar")]);
        disk.ok(&["load", "-q", &disk.file("spare.tar")]);
        for name in ["a", "b", "c", "d", "gone"] {
            disk.ok(&["create", "--image", "base", name]);
            disk.ok(&["cp", &disk.file("small"), &format!("{name}:/mine")]);
        }
        for name in ["a", "b", "c", "gone"] {
            disk.ok(&["snapshot", name, "first"]);
        }
        disk.ok(&["tag", "base", "untagged"]);
        disk.ok(&["docker", "reserve", "layer"]);
        disk.ok(&["docker", "prepare", "box"]);
        for verb in [&["prepare", "x"][..], &["apply", "x", &disk.file("root.tar")], &["commit", "x", "base"]] {
            disk.ok(&[&["containerd"], verb].concat());
        }
        disk.ok(&["containerd", "prepare", "box", "base"]);
        disk.ok(&["containerd", "prepare", "taken", "base"]);
        disk.ok(&["containerd", "prepare", "gone", "base"]);
        disk
    }

    fn root(&self) -> &Path {
        self.world.root()
    }

    fn archive(&self, name: &str, image: &TestImage) {
        image.write_archive(Path::new(&self.file(name)));
    }

    fn file(&self, name: &str) -> String {
        arg(&self.world.files.path().join(name)).to_string()
    }

    fn ok(&self, args: &[&str]) -> String {
        ok(self.root(), args)
    }

    /// Data in ever smaller pieces until nothing goes in; then small files, which Btrfs keeps among its metadata.
    fn fill(&self) {
        let ballast = self.world.fs.path().join("ballast");
        fs::create_dir(&ballast).expect("mkdir");
        let sync = || drop(std::process::Command::new("sync").arg("-f").arg(&ballast).status());
        let mut round = 0;
        // What was in memory only may find no room when it is written, and is room then.
        while fill(&ballast.join(format!("data-{round}")), GIB) > 0 && round < 20 {
            sync();
            round += 1;
        }
        let (small, most) = match self.full {
            Full::Data => (4096, 20_000),
            Full::All => (1500, 200_000),
        };
        for round in 0..3 {
            for n in 0..most {
                let made = fs::write(ballast.join(format!("{small}-{round}-{n}")), vec![7; small]);
                if made.is_err() {
                    break;
                }
            }
            sync();
        }
        if self.full == Full::All {
            let refused = (0..200_000).find(|n| fs::create_dir(ballast.join(format!("directory-{n}"))).is_err());
            assert!(refused.is_some(), "there is room for another directory");
        }
    }

    /// Take away what fills the disk, with a sync every now and then: a Btrfs without room for metadata may abort a transaction
    /// that takes out too much.
    fn make_room(&self) {
        let ballast = self.world.fs.path().join("ballast");
        let directory = File::open(&ballast).expect("open");
        // What finds no room now may find some later.
        let sync = || {
            let _ = rustix::fs::syncfs(&directory);
        };
        let names = fs::read_dir(&ballast).expect("list").map(|entry| entry.expect("list").path());
        let (data, small): (Vec<_>, Vec<_>) = names
            .partition(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"data-")));
        for some in data.chunks(1).chain(small.chunks(500)) {
            for path in some {
                let remove = || fs::remove_file(path).or_else(|_| fs::remove_dir(path));
                if remove().is_err() {
                    sync();
                    remove().expect("make room");
                }
            }
            sync();
        }
    }

    /// What is shown, looked for, and taken away works whatever is full.
    fn can_be_looked_at(&self, after: &str) {
        for args in [&["ps", "-s"][..], &["df"]] {
            let answer = ask(self.root(), args);
            assert_eq!(answer.status, Some(0), "{args:?} after {after}: {}", answer.stderr);
        }
    }

    fn is_healthy(&self, when: &str) {
        let checked = ask(self.root(), &["check"]);
        assert_eq!(checked.status, Some(0), "{when}: {}{}", checked.stdout, checked.stderr);
    }

    /// Done, or refused for want of room with nothing changed of what there is. Whether it was done.
    fn whole(&self, args: &[&str], input: Option<&str>, there_is: &mut Vec<String>) -> bool {
        let input = input.map_or_else(Stdio::null, |file| File::open(file).expect("open").into());
        let answer = ask_with(self.root(), args, input);
        let said = &answer.stderr;
        let before = std::mem::replace(there_is, inventory(self.root()));
        let what = args.join(" ");
        match answer.status {
            Some(0) => {}
            Some(1) => {
                assert!(said.contains("No space left on device"), "{what} says why: {said}");
                if !matches!(args[0], "docker" | "containerd") {
                    assert!(said.contains("hint: "), "{what} has a way out: {said}");
                }
                let untouched = |all| untouched_by(args, all);
                assert_eq!(untouched(there_is.clone()), untouched(before), "{what}, refused: {said}");
            }
            status => panic!("{what} ended with {status:?}: {said}"),
        }
        self.can_be_looked_at(&what);
        answer.status == Some(0)
    }
}

fn adding(disk: &Disk) -> Vec<(Vec<String>, Option<String>)> {
    let file = |name: &str| disk.file(name);
    let verbs: &[(&[&str], Option<&str>)] = &[
        (&["create", "--image", "base", "new"], None),
        (&["create", "--image", "base", "--read-only", "view"], None),
        (&["clone", "a", "cloned"], None),
        (&["clone", "a@first", "from-snapshot"], None),
        (&["snapshot", "a", "second"], None),
        (&["rollback", "b", "first"], None),
        (&["reset", "c"], None),
        (&["commit", "a", "committed"], None),
        (&["commit", "b", "committed-too"], None),
        (&["tag", "base", "tagged"], None),
        // What is left has to be written.
        (&["rmi", "untagged"], None),
        (&["rename", "d", "renamed"], None),
        (&["cp", "SMALL", "a:/new"], None),
        (&["cp", "BIG", "a:/big"], None),
        (&["cp", "-", "a:/etc"], Some("TAR")),
        (&["load", "-q", "OTHER"], None),
        (&["load", "-q"], Some("LOADED")),
        (&["load", "-q", "IMAGE"], None),
        (&["import", "TAR", "imported"], None),
        (&["docker", "reserve", "new"], None),
        (&["docker", "prepare", "new-box"], None),
        (&["docker", "apply", "layer", "TAR"], None),
        (&["containerd", "prepare", "new", "base"], None),
        (&["containerd", "view", "look", "base"], None),
        (&["containerd", "apply", "taken", "TAR"], None),
        (&["containerd", "label", "base", "a", "b"], None),
        (&["containerd", "commit", "box", "done"], None),
    ];
    let named = |arg: &str| match arg {
        "SMALL" => file("small"),
        "BIG" => file("big"),
        "TAR" => file("root.tar"),
        "OTHER" => file("other.tar"),
        "LOADED" => file("again.tar"),
        "IMAGE" => file("big.tar"),
        arg => arg.to_string(),
    };
    verbs.iter().map(|(args, input)| (args.iter().map(|arg| named(arg)).collect(), input.map(named))).collect()
}

fn a_full_disk(ground: Ground, full: Full) {
    let disk = Disk::on(ground, full);
    let serve = Serve::start(&disk.world);
    for id in ["served", "served-too"] {
        serve.create_rw(id, "");
    }
    disk.fill();
    let (mut undone, mut there_is) = (Vec::new(), inventory(disk.root()));
    for (args, input) in adding(&disk) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        if !disk.whole(&args, input.as_deref(), &mut there_is) {
            undone.push((args.iter().map(ToString::to_string).collect::<Vec<_>>(), input));
        }
    }
    assert!(undone.iter().any(|(args, _)| args[0] == "load"), "the disk is full");
    disk.is_healthy("on a full disk");

    // It makes room by itself for whoever serves.
    serve.remove("served");
    for args in [
        &["rm", "gone"][..],
        &["rm", "c@first"],
        &["rmi", "spare"],
        &["docker", "remove", "box"],
        &["containerd", "remove", "gone"],
        &["gc"],
        &["gc", "--dry-run"],
    ] {
        let answer = ask(disk.root(), args);
        assert_eq!(answer.status, Some(0), "{args:?} on a full disk: {}", answer.stderr);
        disk.can_be_looked_at(&args.join(" "));
    }
    assert!(!inventory(disk.root()).iter().any(|line| line.starts_with("container gone")));
    disk.is_healthy("after removals on a full disk");

    disk.make_room();
    disk.ok(&["gc"]);
    // One that has no tree yet goes with the index that has to be given up on a full disk, as by a reboot.
    disk.ok(&["docker", "reserve", "layer"]);
    serve.create_rw("new-served", "");
    serve.ok("GraphDriver.Get", &json!({ "ID": "new-served" }));
    serve.remove("served-too");
    for (args, input) in undone {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        assert!(disk.whole(&args, input.as_deref(), &mut there_is), "{args:?} with room again");
    }
    disk.is_healthy("with room again");
    disk.ok(&["gc"]);
    let left = rows(disk.root(), &["gc", "--dry-run"]);
    assert!(left.iter().all(|row| row["type"] == "docker-layer"), "{left:#?}");
}

/// Beyond those of `cargo test` only where all are asked for.
fn full_disks(ground: Ground, short: Full, more: &[(Ground, Full)]) {
    a_full_disk(ground, short);
    if std::env::var_os("REFLINKD_ALL_DISKS").is_some() {
        more.iter().for_each(|(ground, full)| a_full_disk(*ground, *full));
    }
}

#[test]
fn btrfs() {
    let none = Ground::Btrfs(QuotaSetup::None);
    full_disks(
        Ground::SIMPLE,
        Full::All,
        &[
            (Ground::SIMPLE, Full::Data),
            (none, Full::Data),
            (none, Full::All),
            (Ground::Btrfs(QuotaSetup::Full), Full::All),
        ],
    );
}

#[test]
fn xfs() {
    full_disks(Ground::Xfs, Full::All, &[(Ground::Xfs, Full::Data)]);
}
