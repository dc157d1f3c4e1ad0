//! Snapshots, rollbacks and clones: what each is, what each holds, and what is refused.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{KIB, MB, Process, QuotaSetup, fill, random_bytes, run, tree_digest, write_random};
use crate::world::{Appender, Ground, World, assert_begins_as_written, bytes};

const SLACK: u64 = 128 * KIB;

on_every_ground! {
    sizes_stay_true_through_snapshots_rollbacks_and_clones
    what_cannot_be_is_refused_and_leaves_nothing
}
on_btrfs_and_xfs! {
    a_container_is_as_its_snapshot_again_and_what_it_was_is_kept
    a_reader_of_the_name_never_misses_it
    a_rule_keeps_what_it_says_and_no_more
    snapshots_outlive_the_index_and_other_names
    what_runs_is_kept_as_of_one_moment
}

/// Tells a thread to end, also when the test fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn world(ground: Ground) -> World {
    let world = World::on(ground);
    let big = random_bytes(20 * MB);
    world.load(&TestImage::new("base").tar(Packing::Plain, tar_of(&[("big", &big), ("etc/a", b"a")])));
    world.ok(&["create", "--image", "base", "a"]);
    world
}

fn size(world: &World, name: &str) -> u64 {
    bytes(&world.row(&["ps", "-s"], name), "size")
}

/// A snapshot's whole own data, and what it holds alone.
fn snapshot_sizes(world: &World, name: &str) -> (u64, u64) {
    let row = world.row(&["snapshots", "-s"], name);
    (bytes(&row, "size"), bytes(&row, "unique"))
}

fn near(found: u64, megabytes: u64, what: &str) {
    let expected = megabytes * MB;
    assert!(found.abs_diff(expected) <= SLACK, "{what}: {found} instead of {expected}");
}

fn sizes_stay_true_through_snapshots_rollbacks_and_clones(ground: Ground) {
    let method = ground.size_method();
    let empty = World::on(ground);
    empty.ok(&["images"]);
    let world = world(ground);
    let before = empty.used();
    let agrees = |when: &str| {
        world.ok(&["gc"]);
        let (total, grown) = (bytes(&world.row(&["df"], "total"), "size"), world.used() - before);
        // 1 MB: what the store itself takes besides trees.
        let slack = grown / 50 + MB;
        assert!(total.abs_diff(grown) <= slack, "{method}, {when}: df says {total}, the filesystem grew by {grown}");
    };
    let tree = world.tree("a");
    write_random(&tree.join("ten"), 10 * MB);
    world.ok(&["snapshot", "a", "first"]);
    near(size(&world, "a"), 10, "a after its snapshot");
    let (own, alone) = snapshot_sizes(&world, "a@first");
    near(own, 10, "the snapshot");
    near(alone, 0, "the snapshot alone");
    agrees("after a snapshot");

    write_random(&tree.join("five"), 5 * MB);
    fs::remove_file(tree.join("ten")).expect("unlink");
    near(size(&world, "a"), 5, "a after it deleted what the snapshot has");
    near(snapshot_sizes(&world, "a@first").1, 10, "what the snapshot alone has now");
    let inspected: serde_json::Value = serde_json::from_str(&world.ok(&["inspect", "a"])).expect("JSON");
    assert_eq!(inspected[0]["snapshots"], serde_json::json!(["first"]));
    match inspected[0]["charged"].as_u64() {
        Some(charged) => near(charged, 15, "what counts against a's limit"),
        None => assert_ne!(ground, Ground::SIMPLE, "simple quotas tell"),
    }
    agrees("after deleting");

    assert_eq!(world.ok(&["rollback", "a", "first"]), "a@replaced-1");
    near(size(&world, "a"), 10, "a rolled back");
    near(snapshot_sizes(&world, "a@replaced-1").1, 5, "what was replaced");
    write_random(&tree.join("three"), 3 * MB);
    assert_eq!(world.ok(&["rollback", "a", "first"]), "a@replaced-2");
    near(size(&world, "a"), 10, "a rolled back twice");
    let (own, alone) = snapshot_sizes(&world, "a@replaced-2");
    near(own, 13, "what was replaced the second time");
    near(alone, 3, "that alone");
    agrees("after two rollbacks");

    let details = world.rows(&["df", "-v"]);
    let a = details.iter().find(|row| row["type"] == "container" && row["name"] == "a").expect("a");
    near(bytes(a, "shared"), 10, "what a shares");
    near(bytes(a, "unique"), 0, "what a has alone");

    world.ok(&["clone", "a", "b"]);
    world.ok(&["clone", "a@replaced-1", "c"]);
    near(size(&world, "b"), 10, "the clone");
    near(size(&world, "c"), 5, "the clone of a snapshot");
    write_random(&world.tree("b").join("two"), 2 * MB);
    near(size(&world, "b"), 12, "the clone with its own");
    near(size(&world, "a"), 10, "the original beside it");
    agrees("with clones");
    world.ok(&["rm", "a"]);
    assert!(world.rows(&["snapshots"]).is_empty(), "a container takes its snapshots along");
    near(size(&world, "b"), 12, "the clone of what is gone");
    near(size(&world, "c"), 5, "the clone of a snapshot that is gone");
    agrees("after the original is gone");
    world.ok(&["rm", "b", "c"]);
    world.ok(&["gc"]);
    assert_eq!(bytes(&world.row(&["df"], "containers"), "size"), 0);
    world.ok(&["rmi", "base"]);
    world.ok(&["gc"]);
    assert!(world.remains().is_empty(), "{:?}", world.remains());
    assert_eq!(world.places(), 0);
    let left = world.used().saturating_sub(before);
    assert!(left <= 2 * MB, "{method}: {left} bytes are left of nothing");
}

fn a_container_is_as_its_snapshot_again_and_what_it_was_is_kept(ground: Ground) {
    let world = world(ground);
    let tree = world.tree("a");
    fs::write(tree.join("etc/a"), "changed").expect("write");
    fs::create_dir_all(tree.join("new/deep")).expect("mkdir");
    fs::hard_link(tree.join("etc/a"), tree.join("new/deep/link")).expect("link");
    let then = tree_digest(&tree);
    let label = world.ok(&["snapshot", "a"]);
    assert!(label.starts_with("a@20"), "a label is made of the time: {label}");
    world.ok(&["snapshot", "a", "before"]);
    assert_eq!(tree_digest(&world.tree("a@before")), then);
    if ground.filesystem() == "btrfs" {
        let refused = fs::write(world.tree("a@before").join("x"), "x").expect_err("a snapshot refuses writes");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    }
    let diff = world.ok(&["diff", "a"]);

    fs::remove_dir_all(tree.join("new")).expect("rm");
    fs::rename(tree.join("etc"), tree.join("other")).expect("mv");
    let later = tree_digest(&tree);
    world.ok(&["rollback", "a", "before"]);
    assert_eq!(tree_digest(&tree), then);
    assert_eq!(world.ok(&["diff", "a"]), diff, "compared with its image as before");
    assert_eq!(world.ok(&["diff", "a@before"]), diff);
    let tar = world.files.path().join("a.tar");
    world.ok(&["export", "a@before", "-o", tar.to_str().expect("UTF-8")]);
    let exported = fs::read(&tar).expect("read");
    world.ok(&["export", "a", "-o", tar.to_str().expect("UTF-8")]);
    assert!(fs::read(&tar).expect("read") == exported, "the same tree is the same tar");
    assert_eq!(tree_digest(&world.tree("a@replaced-1")), later);
    world.ok(&["rollback", "a", "replaced-1"]);
    assert_eq!(tree_digest(&tree), later, "there and back");
    assert_eq!(world.ok(&["rollback", "--discard", "a", "before"]), "");
    assert_eq!(world.rows(&["snapshots", "a"]).len(), 4, "two taken, two replaced, one of those not kept");

    world.ok(&["clone", "a", "twin"]);
    assert_eq!(tree_digest(&world.tree("twin")), then);
    fs::write(world.tree("twin").join("etc/a"), "the twin's").expect("write");
    assert_eq!(tree_digest(&tree), then, "the original is apart from its clone");
    assert!(world.ok(&["diff", "twin"]).contains("C /etc/a"));
}

/// Whoever opens the name of a container while it is rolled back finds the one tree or the other.
fn a_reader_of_the_name_never_misses_it(ground: Ground) {
    let world = world(ground);
    let (marker, stop) = (world.tree("a").join("etc/a"), AtomicBool::new(false));
    world.ok(&["snapshot", "a", "s"]);
    let rollbacks = ground.many(1000).min(if ground == Ground::SIMPLE { 1000 } else { 100 });
    let opened = std::thread::scope(|scope| {
        let end = End(&stop);
        let reader = scope.spawn(|| {
            let mut opened = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                fs::File::open(&marker).expect("the name is there all the time");
                opened += 1;
            }
            opened
        });
        for n in 0..rollbacks {
            let discard: &[&str] = if n % 2 == 0 { &["--discard"] } else { &[] };
            world.ok(&[&["rollback", "--force", "a", "s"], discard].concat());
        }
        drop(end);
        reader.join().expect("the reader")
    });
    assert!(opened > rollbacks as u64, "opened {opened} times");
    assert_eq!(world.rows(&["snapshots", "a"]).len(), 1 + rollbacks / 2, "what was replaced stays");
}

fn what_cannot_be_is_refused_and_leaves_nothing(ground: Ground) {
    let world = world(ground);
    world.ok(&["create", "--image", "base", "--read-only", "view"]);
    world.ok(&["snapshot", "a", "s"]);
    let (places, rows) = (world.places(), world.rows(&["ps"]).len());
    let refused = |args: &[&str], why: &str| {
        let error = world.fails(args);
        assert!(error.contains(why), "{args:?}: {error}");
        assert_eq!(world.places(), places, "{args:?} left something: {error}");
        assert_eq!(world.rows(&["ps"]).len(), rows);
    };
    for label in ["", "-x", "a/b", "..", "a@b", "ä", "a b"] {
        refused(&["snapshot", "a", "--", label], "invalid label");
    }
    refused(&["snapshot", "a", &"x".repeat(129)], "invalid label");
    refused(&["snapshot", "a", "s"], "there is a snapshot a@s already");
    refused(&["snapshot", "nobody"], "there is no container nobody");
    refused(&["snapshot", "view"], "it is read-only");
    refused(&["snapshot", "--keep", "daily", "a"], "invalid rule");
    refused(&["rollback", "a", "other"], "container a has no snapshot other");
    refused(&["rollback", "view", "s"], "it is read-only");
    refused(&["rollback", "nobody", "s"], "there is no container nobody");
    refused(&["clone", "a", "a"], "the name a is taken");
    refused(&["clone", "a", "view"], "the name view is taken");
    refused(&["clone", "a", "-x"].map(|arg| if arg == "-x" { "a/b" } else { arg }), "invalid container name");
    refused(&["clone", "a@other"], "container a has no snapshot other");
    refused(&["clone", "view", "twin"], "it is read-only");
    refused(&["rm", "a@other"], "cannot remove snapshot a@other: container a has no snapshot other");
    refused(&["diff", "a@other"], "container a has no snapshot other");
    for verb in ["rm", "clone", "mount", "diff", "commit"] {
        refused(&[verb, "a@"], "\"a@\" names no snapshot");
        refused(&[verb, "@s"], "\"@s\" names no snapshot");
        refused(&[verb, "a@s@s"], "container a has no snapshot s@s");
        refused(&[verb, "nobody@s"], "there is no container nobody");
    }
    for verb in [&["rename", "a@s", "b"][..], &["reset", "a@s"], &["snapshot", "a@s"], &["rollback", "a@s", "s"]] {
        refused(verb, "hint: a@s would be a snapshot");
    }
    refused(&["rollback", "a", ""], "invalid label");
    refused(&["snapshots", "nobody"], "there is no container nobody");

    // What is in use isn't exchanged or removed.
    let tree = world.tree("a");
    let user = Process::spawn(std::process::Command::new("sleep").arg("600").current_dir(&tree));
    refused(&["rollback", "a", "s"], &format!("process {} (sleep) has its working directory there", user.id()));
    drop(user);

    if ground.filesystem() == "btrfs" {
        let inside = tree.join("inside");
        run("btrfs", &["subvolume", "create", inside.to_str().expect("UTF-8")]);
        refused(&["snapshot", "a", "t"], "holds subvolumes of its own: inside");
        refused(&["clone", "a", "twin"], "holds subvolumes of its own: inside");
        // What is replaced keeps them.
        world.ok(&["rollback", "a", "s"]);
        assert!(!tree.join("inside").exists());
        assert!(world.tree("a@replaced-1").join("inside").exists());
        world.ok(&["rm", "a@replaced-1"]);
    }
    world.ok(&["rm", "a@s"]);
    assert!(world.rows(&["snapshots"]).is_empty());
}

fn a_rule_keeps_what_it_says_and_no_more(ground: Ground) {
    let world = world(ground);
    world.ok(&["create", "--image", "base", "b"]);
    world.ok(&["create", "--image", "base", "--read-only", "view"]);
    world.ok(&["snapshot", "a", "mine"]);
    let names = || world.ok(&["snapshots", "-q"]).lines().map(str::to_string).collect::<Vec<_>>();
    for _ in 0..4 {
        world.ok(&["snapshot", "--keep", "last=2", "a"]);
    }
    assert_eq!(names().len(), 3, "{:?}", names());
    let kept = names();
    assert!(kept.contains(&"a@mine".to_string()), "no rule removes what a user made: {kept:?}");
    let said = world.ok(&["snapshot", "--keep", "hourly=24,daily=7"]);
    assert!(said.contains("a@20") && said.contains("b@20") && !said.contains("view"), "{said}");
    assert!(said.contains("removed a@20"), "two of one hour are one too many: {said}");
    // At most two automatic ones of a, if the hour has changed meanwhile.
    assert!((3..=4).contains(&names().len()), "{:?}", names());
}

fn snapshots_outlive_the_index_and_other_names(ground: Ground) {
    let world = world(ground);
    write_random(&world.tree("a").join("x"), 2 * MB);
    world.ok(&["snapshot", "a", "s"]);
    world.ok(&["clone", "a", "b"]);
    world.ok(&["rename", "a", "renamed"]);
    fs::remove_file(world.root().join("index.db")).expect("unlink");
    assert_eq!(world.ok(&["snapshots", "-q"]), "renamed@s");
    near(size(&world, "renamed"), 2, "a relative without the index");
    near(size(&world, "b"), 2, "a clone without the index");
    world.ok(&["rollback", "renamed", "s"]);
    world.ok(&["rm", "renamed"]);
    near(size(&world, "b"), 2, "a clone of what is gone");
    world.ok(&["gc"]);
    near(size(&world, "b"), 2, "a clone after a collection");
}

/// A running container's clone and snapshot hold all that was written before, and a beginning of what is written meanwhile.
fn what_runs_is_kept_as_of_one_moment(ground: Ground) {
    let world = world(ground);
    let writer = Appender::start(&world.tree("a").join("log"));
    for n in 0..5 {
        let (label, name) = (format!("s{n}"), format!("twin{n}"));
        let before = writer.written();
        world.ok(&["snapshot", "a", &label]);
        world.ok(&["clone", "a", &name]);
        for tree in [world.tree(&format!("a@{label}")), world.tree(&name)] {
            assert_begins_as_written(&fs::read(tree.join("log")).expect("read"), before, &format!("{tree:?}"));
        }
    }
}

/// What a container has written counts against its limit after a rollback, and in its clone.
#[test]
fn nothing_hands_out_a_fresh_limit() {
    for setup in [QuotaSetup::Simple, QuotaSetup::Full] {
        let world = World::on(Ground::Btrfs(setup)).with_base();
        world.ok(&["create", "--image", "base", "--size-limit", "30MB", "a"]);
        write_random(&world.tree("a").join("twenty"), 20 * MB);
        world.ok(&["snapshot", "a", "s"]);
        for _ in 0..3 {
            world.ok(&["rollback", "--discard", "a", "s"]);
        }
        let written = fill(&world.tree("a").join("more"), 20 * MB);
        assert!(written < 11 * MB, "{setup:?}: {written} bytes more than 20 MB under a limit of 30");
        fs::remove_file(world.tree("a").join("more")).expect("unlink");
        if setup == QuotaSetup::Simple {
            let answer = world.ask(&["clone", "a", "b"]);
            assert_eq!(answer.status, Some(0), "{}", answer.stderr);
            assert!(answer.stderr.contains("counts against its limit"), "{}", answer.stderr);
            let written = fill(&world.tree("b").join("more"), 20 * MB);
            assert!(written < 11 * MB, "{written} bytes more than 20 MB in a clone under a limit of 30");
            // What a snapshot alone holds counts, until it goes.
            fs::remove_file(world.tree("a").join("twenty")).expect("unlink");
            let written = fill(&world.tree("a").join("more"), 20 * MB);
            assert!(written < 11 * MB, "{written} bytes although a snapshot holds 20 MB");
            world.ok(&["update", "--size-limit", "60MB", "b"]);
            let written = fill(&world.tree("b").join("yet"), 60 * MB);
            assert!((28 * MB..31 * MB).contains(&written), "{written} bytes when 30 of 60 MB are used");
        }
    }
}

/// A full disk refuses with one error and leaves nothing; removing works.
#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let world = World::of_size(256 << 20, Ground::SIMPLE).with_base().with_room_for_metadata();
    world.ok(&["create", "--image", "base", "a"]);
    world.ok(&["snapshot", "a", "s"]);
    let tree = world.tree("a");
    fill(&tree.join("fill"), 1 << 30);
    for n in 0..2000 {
        if fs::write(tree.join(format!("small{n}")), random_bytes(2000)).is_err() {
            break;
        }
    }
    let places = world.places();
    for args in [&["snapshot", "a", "t"][..], &["clone", "a", "b"], &["rollback", "a", "s"]] {
        let answer = world.ask(args);
        match answer.status {
            // A snapshot takes hardly any room: the filesystem may have found it.
            Some(0) => {}
            _ => {
                assert!(answer.stderr.contains("No space left"), "{args:?}: {}", answer.stderr);
                assert_eq!(world.places(), places, "{args:?} left something");
            }
        }
    }
    world.ok(&["rm", "-f", "a"]);
    world.ok(&["gc"]);
    assert!(world.rows(&["snapshots"]).is_empty());
}
