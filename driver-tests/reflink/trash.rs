//! Removal: on a full disk, of what stands in the way, and by several at once.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::{Access, Backend, Tree};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, mkdirat, openat};

use crate::fixture::{PATIENCE, World, entries};
use crate::support::{KIB, LoopFs, MB, MIB, QuotaSetup, arg, fill, random_bytes, run, write_random};

fn small(root: &Path) {
    fs::create_dir(root.join("dir")).expect("mkdir");
    (0..5).for_each(|number| write_random(&root.join(format!("dir/file-{number}")), 10_000));
}

fn reclaim(world: &World, patience: Duration) -> u64 {
    world.backend.reclaim(&BTreeSet::new(), patience).expect("reclaim")
}

/// Take all room, down to the last block and inode.
fn fill_up(world: &World) {
    for number in 0..4 {
        fill(&world.fs.path().join(format!("filler-{number}")), 8 << 30);
        world.backend.sync().expect("sync");
    }
    let mut number = 0;
    while File::create(world.fs.path().join(format!("empty-{number}"))).is_ok() {
        number += 1;
    }
}

fn destroy_works_on_a_full_disk(world: &World) -> usize {
    let image = world.image("image", small);
    world.reclaim();
    let trees: Vec<Tree> = (0..40).map(|n| world.container(&image, &format!("web-{n}"))).collect();
    for tree in &trees {
        write_random(&tree.root().join("own"), 100_000);
    }
    world.backend.sync().expect("sync");
    fill_up(world);
    for tree in &trees {
        world.backend.destroy(tree).expect("destroy on a full disk");
        assert!(!world.backend.exists(tree).expect("exists"));
        fs::remove_dir(tree.place()).expect("nothing is left in the place");
    }
    let moved = entries(&world.trash()).iter().filter(|name| name.ends_with(".fs")).count();
    assert_eq!(world.reclaim(), moved as u64);
    assert_eq!(entries(&world.trash()), BTreeSet::new());
    moved
}

#[test]
fn destroy_works_on_a_full_xfs() {
    let world = World::on(LoopFs::xfs(320 * MIB));
    let moved = destroy_works_on_a_full_disk(&world);
    // The trash gets no further block, so that after a few the rest had to be taken apart in place.
    assert!(moved < 40, "the disk wasn't full: all went into the trash");
    let next = world.created("next");
    write_random(&next.root().join("own"), MB);
    world.backend.sync().expect("there is room again");
}

#[test]
fn destroy_works_on_a_full_btrfs() {
    destroy_works_on_a_full_disk(&World::on(LoopFs::btrfs(300 * MIB, QuotaSetup::None)));
}

#[test]
fn a_clone_that_finds_no_room_leaves_nothing() {
    let world = World::on(LoopFs::xfs(320 * MIB));
    let image = world.image("image", |root| {
        for number in 0..3000 {
            write_random(&root.join(format!("file-{number}")), 100);
        }
    });
    world.reclaim();
    let tree = world.tree("web");
    fill(&world.fs.path().join("filler"), 1 << 30);
    let error = world.backend.clone_tree(&image, &tree, reflinkd::backend::Access::Writable, None);
    assert_eq!(error.expect_err("there is no room").kind(), Kind::NoSpace);
    assert_eq!(entries(tree.place()), BTreeSet::new());
    assert_eq!(world.leftovers(), []);
}

/// Flags, modes, and a depth that no path reaches.
#[test]
fn nothing_inside_a_tree_keeps_it() {
    for world in [World::xfs(), World::btrfs()] {
        let image = world.image("image", small);
        let web = world.container(&image, "web");
        let path = |name: &str| web.root().join(name);
        let mut directory = openat(rustix::fs::CWD, web.root(), OFlags::PATH, Mode::empty()).expect("open");
        for _ in 0..3000 {
            mkdirat(&directory, "deeper", Mode::RWXU).expect("mkdir");
            directory = openat(&directory, "deeper", OFlags::PATH, Mode::empty()).expect("open");
        }
        drop(directory);
        fs::create_dir(path("locked")).expect("mkdir");
        write_random(&path("locked/file"), 5000);
        write_random(&path("appended"), 5000);
        run("chattr", &["+i", arg(&path("dir/file-1")), arg(&path("locked/file")), arg(&path("locked"))]);
        run("chattr", &["+a", arg(&path("appended"))]);
        run("chattr", &["+i", arg(&path("dir")), arg(&web.root())]);
        assert_eq!(world.size(&web).charged, 2 * 8192);
        world.backend.destroy(&web).expect("destroy");
        assert_eq!(entries(web.place()), BTreeSet::new());
        world.reclaim();
        assert_eq!(entries(&world.trash()), BTreeSet::new());
    }
}

#[test]
fn a_mount_in_the_way_is_named_and_waited_for() {
    let world = World::xfs();
    let image = world.image("image", small);
    world.reclaim();
    let (web, inside) = (world.container(&image, "web"), world.container(&image, "inside"));
    run("mount", &["-t", "tmpfs", "none", arg(&web.root())]);
    let error = world.backend.destroy(&web).expect_err("something is mounted on it");
    // What is mounted there is no tree, and what tells of the one below is no stale manifest.
    let settled = world.backend.settle(web.place()).expect_err("it isn't taken for a tree");
    run("umount", &[arg(&web.root())]);
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("umount")), "{error:?}");
    assert_eq!(settled.kind(), Kind::InUse, "{settled}");
    assert_eq!(world.size(&web).charged, 0, "its manifest is there");
    world.backend.destroy(&web).expect("destroy");

    run("mount", &["-t", "tmpfs", "none", arg(&inside.root().join("dir"))]);
    world.backend.destroy(&inside).expect("a tree with a mount in it can be moved");
    let removed = world.reclaim();
    let left = world.leftovers();
    for name in entries(&world.trash()).iter().filter(|name| name.ends_with(".fs")) {
        run("umount", &[arg(&world.trash().join(name).join("dir"))]);
    }
    assert_eq!((removed, left.len()), (1, 1), "it doesn't keep the other");
    assert_eq!(world.reclaim(), 1);
    assert_eq!(world.leftovers(), []);
}

#[test]
fn the_trash_is_made_again() {
    let world = World::xfs();
    let image = world.image("image", small);
    world.reclaim();
    fs::remove_dir(world.trash()).expect("rmdir");
    assert_eq!(world.leftovers(), []);
    assert_eq!(world.reclaim(), 0);
    world.backend.destroy(&image).expect("destroy");
    assert_eq!(world.leftovers().len(), 1);
}

/// Two at once take nothing apart twice and leave nothing; one that must not wait goes on.
#[test]
fn several_reclaim_at_once() {
    let world = World::xfs();
    let image = world.image("image", small);
    world.reclaim();
    for tree in (0..30).map(|n| world.container(&image, &format!("web-{n}"))) {
        world.backend.destroy(&tree).expect("destroy");
    }
    assert_eq!(reclaim(&world, Duration::ZERO), 1, "without patience one at a time");
    let others = [world.reopened(), world.reopened()];
    let removed: u64 = std::thread::scope(|scope| {
        let start =
            |other| scope.spawn(move || Backend::reclaim(other, &BTreeSet::new(), PATIENCE).expect("reclaim"));
        let threads: Vec<_> = others.iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });
    assert_eq!(removed, 29);
    assert_eq!(entries(&world.trash()), BTreeSet::new());

    world.backend.destroy(&image).expect("destroy");
    let held = File::open(world.trash()).expect("open");
    flock(&held, FlockOperation::LockExclusive).expect("lock");
    let start = Instant::now();
    assert_eq!(reclaim(&world, Duration::from_millis(100)), 0);
    assert!((Duration::from_millis(100)..PATIENCE).contains(&start.elapsed()), "{:?}", start.elapsed());
    drop(held);
    assert_eq!(world.reclaim(), 1);
}

/// XFS frees the blocks of a removed file in the background: reclaim waits for that.
#[test]
fn reclaimed_space_is_there_at_once() {
    let world = World::xfs();
    let before = world.used();
    let web = world.created("web");
    let file =
        OpenOptions::new().create(true).write(true).truncate(true).open(web.root().join("pieces")).expect("open");
    let block = random_bytes(4096);
    for number in 0..20_000 {
        file.write_all_at(&block, number * 8192).expect("write");
    }
    drop(file);
    world.backend.sync().expect("sync");
    let size = world.size(&web).charged;
    assert!(size >= 20_000 * 4096);
    world.backend.destroy(&web).expect("destroy");
    assert_eq!(world.leftovers()[0].charged, size + 512 + 4096, "its data, an inode and a manifest of one block");
    world.reclaim();
    let after = world.backend.space().expect("space").used;
    assert!(after < before + MB, "used {before} before, {after} after");
}

/// What comes back with a removed tree is what no relative of it has.
#[test]
fn what_a_fork_has_does_not_come_back_with_its_source() {
    let world = World::xfs();
    let image = world.image("image", |root| write_random(&root.join("data"), MIB));
    world.reclaim();
    let web = world.container(&image, "web");
    write_random(&web.root().join("own"), 3 * MIB);
    let kept = world.tree("kept");
    world.backend.fork(&web, &kept, Access::ReadOnly, None).expect("fork");
    write_random(&web.root().join("later"), 2 * MIB);
    world.backend.sync().expect("sync");
    world.backend.destroy(&web).expect("destroy");
    let charged = || world.leftovers().iter().map(|left| left.charged).sum::<u64>();
    assert!((2 * MIB..2 * MIB + 64 * KIB).contains(&charged()), "{}", charged());
    let before = world.used();
    world.reclaim();
    assert!((before - world.used()).abs_diff(2 * MIB) < 64 * KIB);
    world.backend.destroy(&kept).expect("destroy");
    assert!((3 * MIB..3 * MIB + 64 * KIB).contains(&charged()), "nobody else has it any more: {}", charged());
}
