//! What a process that dies, or a power cut, leaves at each step: it is found, and finished or undone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use reflinkd::backend::{Access, Backend, GroupId, Tree};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::fixture::{World, entries};
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{MIB, random_bytes, write_random};

fn fill(root: &Path) {
    fs::create_dir_all(root.join("a/b")).expect("mkdir");
    for number in 0..20 {
        write_random(&root.join(format!("a/file-{number}")), 5000 * number);
    }
    std::os::unix::fs::symlink("file-1", root.join("a/b/link")).expect("symlink");
}

/// Where a tree's manifest is.
fn manifest(root: &Path) -> PathBuf {
    root.with_file_name(format!("manifest.{}", fs::metadata(root).expect("stat").ino()))
}

/// Leave at `fs.new` of a place what a clone leaves that dies: without a manifest, with a torn one, or whole.
fn half_made(world: &World, image: &Tree, tree: &Tree, step: usize) {
    let other = world.container(image, &format!("other-of-{}", tree.group().expect("it has one").0));
    let whole = manifest(&other.root());
    fs::rename(other.root(), tree.spare()).expect("rename");
    let its = manifest(&tree.spare());
    match step {
        0 => fs::remove_dir_all(tree.spare().join("a/b")).expect("remove"),
        1 => fs::write(its, &fs::read(&whole).expect("read")[..50]).expect("write"),
        _ => fs::rename(&whole, its).expect("rename"),
    }
    fs::remove_dir_all(other.place()).expect("remove");
}

#[test]
fn a_tree_half_made_is_undone() {
    for world in [World::xfs(), World::btrfs()] {
        let image = world.image("image", fill);
        for step in 0..3 {
            let settled = world.tree(&format!("settled-{step}"));
            half_made(&world, &image, &settled, step);
            assert!(!world.backend.exists(&settled).expect("exists"));
            assert_eq!(world.backend.settle(settled.place()).expect("settle"), None);
            assert_eq!(entries(settled.place()), BTreeSet::new());

            let destroyed = world.tree(&format!("destroyed-{step}"));
            half_made(&world, &image, &destroyed, step);
            world.backend.destroy(&destroyed).expect("destroy");
            assert_eq!(entries(destroyed.place()), BTreeSet::new());

            let again = world.tree(&format!("again-{step}"));
            half_made(&world, &image, &again, step);
            world.backend.clone_tree(&image, &again, Access::Writable, None).expect("clone where another died");
            assert_same("a clone where another died", &tree_digest(&image.root()), &tree_digest(&again.root()));
            let left = entries(again.place());
            assert_eq!(left.len(), 2, "the tree and its manifest: {left:?}");

            half_made(&world, &image, &again, step);
            let fresh = Tree::new(again.place(), Some(GroupId(1000)));
            world.backend.replace(&image, &fresh, None).expect("replace where another died");
            assert_eq!(entries(again.place()).len(), 2);
            assert_eq!(world.backend.settle(again.place()).expect("settle"), fresh.group());
        }
        world.reclaim();
        assert_eq!(entries(&world.trash()), BTreeSet::new());
    }
}

/// The exchange is done; the old tree may still be in the place, its manifest alone, or it may be half removed there.
#[test]
fn a_replacement_is_finished() {
    let world = World::xfs();
    let image = world.image("image", fill);
    for step in 0..3 {
        let (web, other) = (world.container(&image, &format!("web-{step}")), world.container(&image, "other"));
        let stale = manifest(&other.root());
        fs::rename(other.root(), web.spare()).expect("rename");
        fs::rename(&stale, manifest(&web.spare())).expect("rename");
        match step {
            0 => {}
            1 => fs::remove_dir_all(web.spare()).expect("remove"),
            _ => fs::remove_dir_all(web.spare().join("a/b")).expect("remove"),
        }
        assert_eq!(world.backend.settle(web.place()).expect("settle"), web.group());
        assert_eq!(entries(web.place()).len(), 2);
        assert_same("the tree that stayed", &tree_digest(&image.root()), &tree_digest(&web.root()));
        fs::remove_dir(other.place()).expect("rmdir");
    }
}

#[test]
fn a_removal_is_finished() {
    for world in [World::xfs(), World::btrfs()] {
        let image = world.image("image", fill);
        world.reclaim();
        // The tree is in the trash, its manifest isn't yet.
        let web = world.container(&image, "web");
        write_random(&web.root().join("own"), MIB);
        world.backend.sync().expect("sync");
        let stale = manifest(&web.root());
        fs::rename(web.root(), world.trash().join("11111111-1111-4111-8111-111111111111.fs")).expect("rename");
        assert!(stale.exists());
        world.backend.destroy(&web).expect("destroy again");
        assert_eq!(entries(web.place()), BTreeSet::new());
        let left = world.leftovers();
        assert_eq!((left.len(), left[0].charged), (1, MIB), "without a manifest what nobody shares counts");
        // A tree half taken apart, and a manifest whose tree is gone.
        let half = world.container(&image, "half");
        world.backend.destroy(&half).expect("destroy");
        for name in entries(&world.trash()).iter().filter(|name| name.ends_with(".fs")) {
            fs::remove_dir_all(world.trash().join(name).join("a/b")).expect("remove");
        }
        fs::write(world.trash().join("22222222-2222-4222-8222-222222222222.manifest"), "x").expect("write");
        assert_eq!(world.leftovers().len(), 2);
        assert_eq!(world.reclaim(), 2);
        assert_eq!(entries(&world.trash()), BTreeSet::new());
        assert_eq!(world.leftovers(), []);
    }
}

#[test]
fn what_is_acknowledged_outlives_a_power_cut() {
    let world = World::xfs();
    let image = world.image("image", fill);
    let before = tree_digest(&image.root());
    let web = world.container(&image, "web");
    let (reset, lost) = (world.container(&image, "reset"), world.container(&image, "lost"));
    fs::write(reset.root().join("own"), "own").expect("write");
    let fresh = Tree::new(reset.place(), Some(GroupId(77)));
    world.backend.replace(&image, &fresh, None).expect("replace");
    // What nobody promised to keep shows that the power is really cut.
    fs::write(lost.root().join("own"), random_bytes(MIB)).expect("write");

    world.fs.shut_down();
    let world = world.remounted();
    assert!(fs::read(lost.root().join("own")).unwrap_or_default().len() < MIB as usize, "the cut has lost nothing");
    for tree in [&image, &web, &fresh] {
        assert_same("a tree after a power cut", &before, &tree_digest(&tree.root()));
        assert_eq!(world.size(tree).charged, 0, "{tree:?} is untouched");
        assert_eq!(world.backend.settle(tree.place()).expect("settle"), tree.group());
    }
    assert!(world.backend.is_read_only(&image).expect("is_read_only"));
    assert_eq!(entries(fresh.place()).len(), 2);
}

/// Whatever is going on: what was acknowledged is whole, and so is every tree that is at its root.
#[test]
fn a_power_cut_at_any_moment_leaves_whole_trees() {
    let mut world = World::xfs();
    let image = world.image("image", fill);
    let before = tree_digest(&image.root());
    for round in 0..4 {
        let acknowledged = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (world, image, acknowledged) = (&world, &image, &acknowledged);
                scope.spawn(move || {
                    for turn in 0.. {
                        let place = world.fs.path().join(format!("snapshots/{round}-{thread}-{turn}"));
                        let tree = Tree::new(&place, Some(GroupId(turn)));
                        let made = fs::create_dir(&place).is_ok()
                            && world.backend.clone_tree(image, &tree, Access::Writable, None).is_ok();
                        if !made {
                            return;
                        }
                        acknowledged.lock().expect("nobody panics").push(tree);
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(300 + 170 * round));
            world.fs.shut_down();
        });
        world = world.remounted();
        let acknowledged = acknowledged.into_inner().expect("nobody panics");
        assert!(!acknowledged.is_empty(), "nothing was made in time");
        for tree in &acknowledged {
            assert!(world.backend.exists(tree).expect("exists"), "{tree:?} was acknowledged");
        }
        for place in
            entries(&world.fs.path().join("snapshots")).iter().filter(|name| name.starts_with(char::is_numeric))
        {
            let tree = Tree::new(world.fs.path().join("snapshots").join(place), None);
            world.backend.settle(tree.place()).expect("settle");
            assert!(!tree.spare().exists());
            if world.backend.exists(&tree).expect("exists") {
                assert_same(place, &before, &tree_digest(&tree.root()));
                assert_eq!(world.size(&tree).charged, 0);
            } else {
                assert_eq!(entries(tree.place()), BTreeSet::new());
            }
            world.backend.destroy(&tree).expect("destroy");
            fs::remove_dir(tree.place()).expect("nothing is left in the place");
        }
        world.reclaim();
    }
}

/// Give each of two places the other's manifest, as a roll-back does before the trees change places.
fn introduce(tree: &Tree, kept: &Tree) {
    for (of, to) in [(tree, kept), (kept, tree)] {
        let path = manifest(&of.root());
        fs::copy(&path, to.place().join(path.file_name().expect("it has a name"))).expect("copy");
    }
}

#[test]
fn a_roll_back_is_undone_or_finished() {
    for world in [World::xfs(), World::btrfs()] {
        let image = world.image("image", fill);
        for step in 0..3 {
            let web = world.container(&image, &format!("web-{step}"));
            write_random(&web.root().join("own"), MIB);
            let (old, was) = (tree_digest(&web.root()), world.tree(&format!("was-{step}")));
            world.backend.fork(&image, &was, Access::Writable, None).expect("fork");
            introduce(&web, &was);
            if step > 0 {
                renameat_with(CWD, was.root(), CWD, web.root(), RenameFlags::EXCHANGE).expect("exchange");
            }
            if step > 1 {
                // It came as far as this.
                for name in entries(web.place()) {
                    if name.starts_with("manifest.") && web.place().join(&name) != manifest(&web.root()) {
                        fs::remove_file(web.place().join(name)).expect("remove");
                    }
                }
            }
            // Nobody has to wait for that.
            assert_eq!(world.size(if step == 0 { &web } else { &was }).charged, MIB);
            assert_eq!(world.size(if step == 0 { &was } else { &web }).charged, 0);
            for place in [&web, &was] {
                world.backend.settle(place.place()).expect("settle");
                assert_eq!(entries(place.place()).len(), 2, "a tree and its manifest");
            }
            assert_eq!(world.size(if step == 0 { &web } else { &was }).charged, MIB);
            let (has_old, has_new) = if step == 0 { (&web, &was) } else { (&was, &web) };
            assert_eq!(old.len(), tree_digest(&has_old.root()).len());
            assert_eq!(old.len() - 1, tree_digest(&has_new.root()).len());
            world.backend.destroy(&was).expect("destroy");
            assert_eq!(entries(was.place()), BTreeSet::new());
            assert_eq!(world.size(&web).charged, if step == 0 { MIB } else { 0 });
        }
    }
}

/// Whenever the power goes: the container is what it was before or after, and so is what is kept of it.
#[test]
fn a_power_cut_while_rolling_back_loses_nothing() {
    let mut world = World::xfs();
    let image = world.image("image", fill);
    let web = world.container(&image, "web");
    fs::write(web.root().join("turn"), "start").expect("write");
    let kept = world.tree("kept");
    world.backend.fork(&web, &kept, Access::ReadOnly, None).expect("a snapshot");
    let before = tree_digest(&kept.root());
    let mut done = 0;
    for round in 0..4 {
        let asides: Mutex<Vec<(Tree, bool)>> = Mutex::default();
        std::thread::scope(|scope| {
            let (world, kept, web, asides) = (&world, &kept, &web, &asides);
            scope.spawn(move || {
                for turn in 0.. {
                    let was = Tree::new(world.fs.path().join(format!("snapshots/{round}-{turn}")), web.group());
                    if fs::create_dir(was.place()).is_err() {
                        return;
                    }
                    // Durable before it is rolled back, as what a power cut mustn't take.
                    let mark = File::create(web.root().join("mark"));
                    if mark.and_then(|mut mark| write!(mark, "{turn}").and_then(|()| mark.sync_all())).is_err() {
                        return;
                    }
                    let rolled = world.backend.roll_back(kept, web, None, &was, &mut || Ok(())).is_ok();
                    asides.lock().expect("nobody panics").push((was, rolled));
                    if !rolled {
                        return;
                    }
                }
            });
            std::thread::sleep(Duration::from_millis(400 + 130 * round));
            world.fs.shut_down();
        });
        world = world.remounted();
        world.backend.settle(web.place()).expect("settle");
        assert_eq!(entries(web.place()).len(), 2);
        let now = tree_digest(&web.root());
        let unmarked: BTreeMap<_, _> = now.clone().into_iter().filter(|(path, _)| path != b"mark").collect();
        assert_eq!(before.len(), unmarked.len(), "the container is whole");
        assert_same("the snapshot", &before, &tree_digest(&kept.root()));
        for (was, rolled) in asides.into_inner().expect("nobody panics") {
            world.backend.settle(was.place()).expect("settle");
            let there = world.backend.exists(&was).expect("exists");
            assert!(there || !rolled, "{was:?} was acknowledged");
            if there {
                assert_eq!(entries(was.place()).len(), 2);
                let marked = was.root().join("mark").exists();
                assert!(marked || !rolled, "{was:?} is what the container was");
                assert!(rolled || marked != now.contains_key(&b"mark"[..]), "one of both is");
                world.size(&was);
            }
            done += usize::from(rolled);
            world.backend.destroy(&was).expect("destroy");
            fs::remove_dir(was.place()).expect("nothing is left in the place");
        }
        world.size(&web);
        world.reclaim();
    }
    assert!(done > 4, "{done} were rolled back");
}
