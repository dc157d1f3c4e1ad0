//! Full disks, signals, and what dead processes leave.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::image::{Packing, TestImage};
use crate::support::{MB, MIB, random_bytes, reflinkd_command};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    an_interrupted_load_leaves_nothing
    a_killed_load_is_cleared_up_by_the_next_command_that_writes
    a_reset_cut_short_is_settled
    a_container_whose_reset_was_cut_short_can_be_removed
    strays_are_named_and_removed
}
on_every_ground! {
    a_load_that_runs_out_of_room_leaves_nothing
    removing_works_with_no_byte_free
}

/// An image whose load takes a while: many small files.
fn slow_image(files: usize) -> TestImage {
    let names: Vec<_> = (0..files).map(|n| format!("d{}/f{n}", n % 97)).collect();
    let entries: Vec<(&str, &[u8])> =
        names.iter().map(|name| (name.as_str(), &b"some content of a small file\n"[..])).collect();
    TestImage::new("slow").files(Packing::Gzip, &[("base", b"base")]).files(Packing::Gzip, &entries)
}

/// Start a load and send it a signal while its second layer is being unpacked.
fn signal_a_load(world: &World, path: &str, signal: Signal) -> std::process::ExitStatus {
    let mut load = reflinkd_command(world.root(), &["load", "-q", path])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawn");
    let begun = Instant::now();
    // The base layer, the second layer's draft and its work tree: three places, and two trees.
    while (world.places() < 3 || world.trees() < 2) && begun.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(load.try_wait().expect("wait").is_none(), "the load was over before it could be stopped");
    kill_process(Pid::from_raw(load.id().try_into().expect("pid")).expect("pid"), signal).expect("kill");
    load.wait().expect("wait")
}

fn an_interrupted_load_leaves_nothing(ground: Ground) {
    let world = World::on(ground);
    world.ok(&["images"]);
    let path = world.files.path().join("slow.tar");
    slow_image(ground.many(60_000)).write_archive(&path);
    let path = path.to_str().expect("UTF-8");
    for signal in [Signal::INT, Signal::TERM] {
        let status = signal_a_load(&world, path, signal);
        assert_eq!(status.code(), Some(130), "{signal:?}");
        assert_eq!((world.places(), world.all_trees().len()), (0, 0), "{signal:?}");
        assert!(world.rows(&["images"]).is_empty());
    }
}

/// A tree whose manifest is gone can't be counted: its container is named, with the way out.
#[test]
fn a_tree_that_cannot_be_counted_is_named() {
    let world = World::xfs().with_base();
    for name in ["one", "two"] {
        world.ok(&["create", "--image", "base", name]);
    }
    let place = world.tree("two").parent().expect("a place").to_path_buf();
    let manifest = fs::read_dir(&place).expect("list").map(|entry| entry.expect("list").path());
    let manifest = manifest.into_iter().find(|path| path.display().to_string().contains("/manifest.")).expect("one");
    fs::remove_file(&manifest).expect("unlink");
    for command in [&["ps", "-s"][..], &["df"]] {
        let error = world.fails(command);
        assert!(error.contains("container two ") && error.contains("hint: ") && error.contains("rm two"), "{error}");
    }
    world.ok(&["ps"]);
    world.ok(&["rm", "two"]);
    assert_eq!(world.rows(&["ps", "-s"]).len(), 1);
}

fn a_killed_load_is_cleared_up_by_the_next_command_that_writes(ground: Ground) {
    let world = World::on(ground);
    world.ok(&["images"]);
    let path = world.files.path().join("slow.tar");
    slow_image(ground.many(60_000)).write_archive(&path);
    let path = path.to_str().expect("UTF-8");
    let status = signal_a_load(&world, path, Signal::KILL);
    assert_eq!(status.signal(), Some(9));
    assert!(world.places() > 0, "it was killed in the middle");
    // A command that only reads removes nothing, and shows no half-made image.
    let places = world.places();
    assert!(world.rows(&["images"]).is_empty());
    assert_eq!(world.places(), places);
    let named = world.rows(&["gc", "--dry-run"]);
    assert!(
        named.iter().any(|row| row["type"] == "tree") && named.iter().any(|row| row["type"] == "layer"),
        "{named:#?}"
    );
    assert_eq!(world.places(), places, "a dry run removes nothing");
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
    assert_eq!(bytes(&world.row(&["df"], "total"), "size"), 0);
    // And a load after another killed one succeeds.
    signal_a_load(&world, path, Signal::KILL);
    world.ok(&["load", "-q", path]);
    // All but a place whose maker died before it had a record: that is named, and left to this.
    let strays = world.rows(&["gc", "--dry-run"]).iter().filter(|row| row["type"] == "place").count();
    assert_eq!(world.places(), 2 + strays);
    world.ok(&["gc"]);
    assert_eq!(world.places(), 2);
    // The same after a reboot.
    world.ok(&["rmi", "slow"]);
    signal_a_load(&world, path, Signal::KILL);
    world.fs.remount("rw");
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
}

fn a_load_that_runs_out_of_room_leaves_nothing(ground: Ground) {
    let world = World::of_size(300 * MIB, ground).with_room_for_metadata().with_base();
    let (places, trees) = (world.places(), world.all_trees());
    let image = TestImage::new("big")
        .files(Packing::Plain, &[("fits", &random_bytes(20 * MB))])
        .files(Packing::Plain, &[("too-big", &random_bytes(400 * MB))]);
    let path = world.files.path().join("big.tar");
    image.write_archive(&path);
    let error = world.fails(&["load", "-q", path.to_str().expect("UTF-8")]);
    assert!(error.contains("cannot load image big") && error.contains("too-big"), "{error}");
    assert!(error.contains("No space left on device"), "{error}");
    assert_eq!((world.places(), world.all_trees()), (places, trees));
    world.ok(&["gc"]);
    world.ok(&["create", "--image", "base", "c"]);
}

fn removing_works_with_no_byte_free(ground: Ground) {
    let world = World::of_size(400 * MIB, ground).with_room_for_metadata().with_base();
    world.load(&TestImage::new("spare").files(Packing::Plain, &[("x", &random_bytes(10 * MB))]));
    for name in ["a", "b", "full"] {
        world.ok(&["create", "--image", "base", name]);
    }
    let tree = world.tree("full");
    // In large pieces, then in ever smaller ones, until nothing goes in: data first, metadata by inline files.
    for (count, size) in [(10_000, MB), (10_000, 4096), (200_000, 1500)] {
        for n in 0..count {
            let path = tree.join(format!("fill-{size}-{n}"));
            let size = usize::try_from(size).expect("small");
            if fs::write(&path, vec![7; size])
                .and_then(|()| if size > 100_000 { fs::File::open(&path)?.sync_all() } else { Ok(()) })
                .is_err()
            {
                break;
            }
        }
        let _ = std::process::Command::new("sync").arg("-f").arg(world.fs.path()).status();
    }
    assert!(fs::write(tree.join("one-more"), vec![7; 1 << 20]).is_err(), "the disk is full");
    for args in [&["df"][..], &["ps"], &["rm", "a"], &["rmi", "spare"], &["gc"], &["rm", "full"], &["gc"]] {
        let answer = world.ask(args);
        assert_eq!(answer.status, Some(0), "{args:?} on a full disk: {}", answer.stderr);
    }
    assert_eq!(world.rows(&["ps"]).len(), 1, "b is left");
    assert_eq!(world.rows(&["images"]).len(), 1, "base is left");
    world.ok(&["create", "--image", "base", "c"]);
    assert_eq!(world.rows(&["ps"]).len(), 2);
    assert_eq!(world.places(), 4, "two layers, b and c");
}

/// Leave a container as a reset leaves it that is killed before the two trees change places.
fn cut_a_reset_short(world: &World, name: &str) -> std::path::PathBuf {
    let tree = world.tree(name);
    let (place, spare) = (tree.parent().expect("a place"), tree.with_file_name("fs.new"));
    let mut record = vec![0; 4096];
    let length = rustix::fs::getxattr(place, "trusted.reflinkd", &mut record[..]).expect("getxattr");
    let mut record: serde_json::Value = serde_json::from_slice(&record[..length]).expect("JSON");
    record["replacing"] = true.into();
    let flags = rustix::fs::XattrFlags::REPLACE;
    rustix::fs::setxattr(place, "trusted.reflinkd", record.to_string().as_bytes(), flags).expect("setxattr");
    world.clone_tree(&tree, &spare);
    world.fs.remount("rw");
    spare
}

fn a_reset_cut_short_is_settled(ground: Ground) {
    let world = World::on(ground).with_base();
    let limit = ground.limit(&["--size-limit", "10MB"]);
    world.ok(&[&["create", "--image", "base", "c"], limit].concat());
    let tree = world.tree("c");
    fs::write(tree.join("mine"), "x").expect("write");
    let spare = cut_a_reset_short(&world, "c");
    assert_eq!(world.rows(&["ps"]).len(), 1, "it is there all the time");
    world.ok(&["gc"]);
    assert!(!spare.exists());
    assert_eq!(fs::read_to_string(tree.join("mine")).expect("read"), "x");
    world.ok(&["reset", "c"]);
    assert!(!tree.join("mine").exists());
}

#[test]
fn after_a_power_cut_a_reset_container_is_charged_to_its_new_group() {
    let world = World::simple().with_base();
    world.ok(&["create", "--image", "base", "--size-limit", "50MB", "c"]);
    let place = world.tree("c").parent().expect("a place").to_path_buf();
    let mut record = vec![0; 4096];
    let length = rustix::fs::getxattr(&place, "trusted.reflinkd", &mut record[..]).expect("getxattr");
    let mut before: serde_json::Value = serde_json::from_slice(&record[..length]).expect("JSON");
    world.ok(&["reset", "c"]);
    crate::support::write_random(&place.join("fs/x"), 3 * MB);
    // The tree that stayed is the new one, the old one is gone, and the record is of before: nothing was settled.
    before["replacing"] = true.into();
    let flags = rustix::fs::XattrFlags::REPLACE;
    rustix::fs::setxattr(&place, "trusted.reflinkd", before.to_string().as_bytes(), flags).expect("setxattr");
    world.fs.remount("rw");
    world.ok(&["update", "--size-limit", "5MB", "c"]);
    let size = bytes(&world.row(&["ps", "-s"], "c"), "size");
    assert!((3 * MB..4 * MB).contains(&size), "{size}");
    let over = fs::write(place.join("fs/y"), random_bytes(10 * MB))
        .and_then(|()| fs::File::open(place.join("fs/y"))?.sync_all());
    assert_eq!(over.expect_err("over the limit").raw_os_error(), Some(libc::EDQUOT));
}

fn a_container_whose_reset_was_cut_short_can_be_removed(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let spare = cut_a_reset_short(&world, "c");
    world.ok(&["rm", "c"]);
    assert!(!spare.exists());
    assert_eq!((world.places(), world.all_trees().len()), (2, 2));
}

fn strays_are_named_and_removed(ground: Ground) {
    let world = World::on(ground).with_base();
    let stray = world.root().join("snapshots/00000000-0000-4000-8000-000000000000");
    fs::create_dir(&stray).expect("mkdir");
    // A record is there before its tree: a tree without one may be somebody's, and is for `check`.
    let lost = world.root().join("snapshots/00000000-0000-4000-8000-000000000001");
    fs::create_dir(&lost).expect("mkdir");
    world.make_tree(&lost.join("fs"));
    let named = world.rows(&["gc", "-n"]);
    assert!(named.iter().any(|row| row["type"] == "place" && row["id"] == "00000000-0000-4000-8000-000000000000"));
    assert!(stray.exists());
    let answer = world.ask(&["gc"]);
    assert_eq!(answer.status, Some(0), "{answer:?}");
    assert!(answer.stderr.contains("00000000-0000-4000-8000-000000000001 has a tree and no record"), "{answer:?}");
    assert!(answer.stderr.contains("check --repair"), "{answer:?}");
    assert!(!stray.exists() && lost.join("fs").exists());
    assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
}
