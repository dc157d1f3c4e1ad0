//! Sizes in the cases that take more than one tree, another process, or a filesystem of another kind.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reflinkd::Kind;
use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Access, Backend, GroupId, Tree, TreeSize, Want};

use crate::fixture::{World, entries};
use crate::support::{LoopFs, MIB, QuotaSetup, arg, random_bytes, run, write_random};

const BLOCK: u64 = 4096;

fn change(path: &Path, at: u64, bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(&random_bytes(bytes), at).expect("write");
}

/// Give a file another change time and nothing else.
fn touch(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("chmod");
}

#[test]
fn only_what_can_share_is_probed_true() {
    let cases = [
        (LoopFs::xfs(300 * MIB), true),
        (LoopFs::btrfs(300 * MIB, QuotaSetup::None), true),
        (LoopFs::ext4(64 * MIB), false),
        (LoopFs::tmpfs(64 * MIB), false),
    ];
    for (fs, can) in cases {
        let before = entries(fs.path());
        assert_eq!(Reflink::probe(fs.path()).expect("probe"), can, "{}", fs.path().display());
        assert_eq!(entries(fs.path()), before);
        let gone = Reflink::probe(&fs.path().join("gone")).expect_err("there is no such directory");
        assert_eq!(gone.kind(), Kind::NotFound);
    }
}

/// A layer's files reach a container through two layers and a tree that was worked in.
#[test]
fn a_chain_of_layers_is_counted_by_the_layer() {
    let world = World::xfs();
    let base = world.image("base", |root| {
        write_random(&root.join("kept"), 4 * MIB);
        write_random(&root.join("changed"), 4 * MIB);
    });
    let work = world.container(&base, "work");
    change(&work.root().join("changed"), 0, MIB);
    write_random(&work.root().join("added"), 2 * MIB);
    assert_eq!(world.size(&work).charged, 3 * MIB);
    let layer = world.cloned(&work, "layer", Access::ReadOnly);
    assert_eq!(world.size(&work).charged, 3 * MIB, "committed, it still holds what it wrote");
    world.backend.destroy(&work).expect("destroy");
    let web = world.container(&layer, "web");
    for (file, at) in [("kept", MIB), ("changed", 0), ("added", 0)] {
        change(&web.root().join(file), at, BLOCK);
    }
    assert_eq!(world.size(&web), TreeSize { charged: 3 * BLOCK, apparent: Some(10 * MIB) });
    let commit = world.cloned(&web, "commit", Access::ReadOnly);
    assert_eq!(world.size(&web).charged, 3 * BLOCK);
    assert_eq!(world.size(&commit), TreeSize { charged: 0, apparent: Some(0) });
}

/// Nobody can tell any more what was the base's: what is shared doesn't count, what isn't does.
#[test]
fn without_its_base_a_tree_has_what_it_shares_with_nobody() {
    let world = World::xfs();
    let fill = |root: &Path| {
        write_random(&root.join("one"), 2 * MIB);
        write_random(&root.join("two"), 2 * MIB);
    };
    let image = world.image("image", fill);
    let other = world.container(&image, "other");
    let web = world.container(&image, "web");
    change(&web.root().join("one"), MIB, BLOCK);
    touch(&web.root().join("two"));
    write_random(&web.root().join("own"), MIB);
    let exact = TreeSize { charged: MIB + BLOCK, apparent: Some(5 * MIB) };
    assert_eq!(world.size(&web), exact);
    // Another tree in the place of the base isn't the base.
    world.backend.destroy(&image).expect("destroy");
    world.backend.create(&image, None).expect("create");
    fill(&image.root());
    assert_eq!(world.size(&web), exact, "the other clone has the image's blocks still");
    run("cp", &["--reflink=always", arg(&web.root().join("own")), arg(&web.root().join("copy"))]);
    assert_eq!(world.size(&web).charged, BLOCK, "a copy inside can't be told from the base's");
    fs::remove_file(web.root().join("copy")).expect("remove");
    world.backend.destroy(&other).expect("destroy");
    world.backend.destroy(&image).expect("destroy");
    world.reclaim();
    assert_eq!(world.size(&web).charged, 5 * MIB, "nobody else has any of it: it is the touched files' own");

    let base = world.created("base");
    fill(&base.root());
    let twin = world.container(&base, "twin");
    touch(&twin.root().join("one"));
    change(&twin.root().join("two"), 0, BLOCK);
    assert_eq!(world.size(&twin), TreeSize { charged: BLOCK, apparent: Some(4 * MIB) }, "its base can be written to");
}

/// What a store moves with its filesystem: places are found below ROOT, wherever that is.
#[test]
fn a_base_is_found_below_another_root() {
    let world = World::xfs();
    let image = world.image("image", |root| write_random(&root.join("data"), 2 * MIB));
    let web = world.container(&image, "web");
    touch(&web.root().join("data"));
    let elsewhere = world.fs.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("mkdir");
    fs::rename(world.fs.path().join("snapshots"), elsewhere.join("snapshots")).expect("rename");
    let moved = Reflink::open(&elsewhere, 1).expect("open");
    let tree = Tree::new(elsewhere.join("snapshots/web"), web.group());
    let size = moved.measure(&[&tree], Want { sync: true, apparent: false }).expect("measure").sizes[0];
    assert_eq!(size, TreeSize { charged: 0, apparent: None });
}

#[test]
fn a_tree_may_change_while_it_is_measured_and_cloned() {
    let world = World::xfs();
    let image = world.image("image", |root| {
        for number in 0..200 {
            fs::create_dir_all(root.join(format!("dir-{number}/below"))).expect("mkdir");
            write_random(&root.join(format!("dir-{number}/below/file")), 5000);
        }
    });
    let web = world.container(&image, "web");
    let want = Want { sync: false, apparent: true };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0_u32.. {
                let path = web.root().join(format!("dir-{}", turn % 200));
                let _ = fs::remove_dir_all(&path);
                fs::create_dir_all(path.join("below")).expect("mkdir");
                write_random(&path.join("below/file"), 100);
                fs::rename(path.join("below"), path.join("moved")).expect("rename");
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let measured = (0..100).try_for_each(|_| world.backend.measure(&[&web], want).map(drop));
        let cloned = (0..10).try_for_each(|turn| {
            world.backend.clone_tree(&web, &world.tree(&format!("twin-{turn}")), Access::Writable, None)
        });
        stop.store(true, Ordering::Relaxed);
        measured.expect("measure a busy tree");
        cloned.expect("clone a busy tree");
    });
    // Removed and taken apart meanwhile: a number from before, or that it is gone.
    std::thread::scope(|scope| {
        let measuring = scope.spawn(|| {
            loop {
                match world.backend.measure(&[&web], want) {
                    Ok(_) => {}
                    Err(e) => return e,
                }
            }
        });
        world.backend.destroy(&web).expect("destroy");
        world.reclaim();
        let end = measuring.join().expect("no panic");
        assert_eq!(end.kind(), Kind::NotFound, "{end}");
    });
}

#[test]
fn what_is_mounted_in_a_tree_is_none_of_it() {
    let world = World::xfs();
    let web = world.created("web");
    fs::create_dir(web.root().join("proc")).expect("mkdir");
    write_random(&web.root().join("own"), MIB);
    run("mount", &["-t", "tmpfs", "none", arg(&web.root().join("proc"))]);
    write_random(&web.root().join("proc/file"), MIB);
    let size = world.size(&web);
    run("umount", &[arg(&web.root().join("proc"))]);
    assert_eq!(size, TreeSize { charged: MIB, apparent: Some(MIB) });
}

/// XFS allocates ahead of a file that is being appended to; when it is closed that is given back.
#[test]
fn room_ahead_of_a_writer_counts_until_it_closes() {
    let world = World::xfs();
    let web = world.created("web");
    let log = File::create(web.root().join("log")).expect("create");
    for number in 0..300 {
        log.write_all_at(&random_bytes(BLOCK), number * BLOCK).expect("write");
    }
    let size = world.size(&web);
    assert!((300 * BLOCK..600 * BLOCK).contains(&size.charged), "{size:?}");
    assert_eq!(size.apparent, Some(300 * BLOCK));
    drop(log);
    assert_eq!(world.size(&web).charged, 300 * BLOCK);
}

/// Compressed extents count by their length in the file, once, and those of the base not at all.
#[test]
fn compressed_and_inline_data_on_btrfs() {
    let world = World::btrfs();
    run("mount", &["-o", "remount,compress-force=zstd", arg(world.fs.path())]);
    let text = "all work and no play makes jack a dull boy\n".repeat(25_000);
    let length = text.len() as u64;
    let blocks = length.div_ceil(BLOCK) * BLOCK;
    let image = world.image("image", |root| {
        fs::write(root.join("text"), &text).expect("write");
        fs::write(root.join("inline"), "a few bytes").expect("write");
    });
    let web = world.container(&image, "web");
    touch(&web.root().join("text"));
    assert_eq!(world.size(&web), TreeSize { charged: 0, apparent: Some(length) });
    fs::write(web.root().join("own"), &text).expect("write");
    run("sync", &["-f", arg(&web.root())]);
    run("cp", &["--reflink=always", arg(&web.root().join("own")), arg(&web.root().join("copy"))]);
    run("cp", &["--reflink=always", arg(&web.root().join("text")), arg(&web.root().join("of-the-image"))]);
    assert_eq!(world.size(&web).charged, blocks);
    fs::write(web.root().join("small"), "x".repeat(1000)).expect("write");
    let inline = world.size(&web).charged - blocks;
    assert!((1000..=BLOCK).contains(&inline), "1,000 bytes inline count {inline}");
}

#[test]
fn a_nested_snapshot_shares_with_its_tree() {
    let world = World::btrfs();
    let image = world.image("image", |root| write_random(&root.join("data"), MIB));
    let web = world.container(&image, "web");
    let (inner, snapshot) = (web.root().join("inner"), web.root().join("snapshot"));
    run("btrfs", &["subvolume", "create", arg(&inner)]);
    (0..20).for_each(|number| write_random(&inner.join(format!("file-{number}")), 10 * BLOCK));
    run("btrfs", &["subvolume", "snapshot", arg(&inner), arg(&snapshot)]);
    let size = world.size(&web);
    assert_eq!(size, TreeSize { charged: 200 * BLOCK, apparent: Some(2 * 200 * BLOCK) });
}

/// So that project quotas, once they are switched on, find each tree's own.
#[test]
fn trees_on_xfs_have_a_project_of_their_own() {
    let world = World::xfs();
    let image = world.image("image", |root| fs::create_dir(root.join("dir")).expect("mkdir"));
    let web = world.container(&image, "web");
    let made = world.created("made");
    fs::write(web.root().join("dir/new"), "x").expect("write");
    fs::create_dir(made.root().join("new")).expect("mkdir");
    let project = |path: &Path| {
        let said = run("xfs_io", &["-r", "-c", "lsproj", arg(path)]);
        said.trim().trim_start_matches("projid = ").parse::<u32>().unwrap_or_else(|e| panic!("{said:?}: {e}"))
    };
    let of = |tree: &Tree| 0x7e57_0000 + tree.group().expect("it has one").0;
    for (path, tree) in [("", &web), ("dir", &web), ("dir/new", &web), ("", &made), ("new", &made)] {
        assert_eq!(project(&tree.root().join(path)), of(tree), "{path} of {tree:?}");
    }
    // It shares its group with the tree that it was made in.
    assert_eq!(project(&image.root()), 0, "nobody writes into a layer");
    let fresh = Tree::new(web.place(), Some(GroupId(99)));
    world.backend.replace(&image, &fresh, None).expect("replace");
    assert_eq!(project(&fresh.root().join("dir")), of(&fresh));
}
