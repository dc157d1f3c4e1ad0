//! Trees come, are found again, and go.

use std::fs;
use std::os::unix::fs::MetadataExt;

use reflinkd::Kind;
use reflinkd::backend::{Access, Tree, Want};

use crate::fixture::{Fixture, entries};
use crate::support::or_emulated;
use crate::support::write_random;

pub(crate) fn create_makes_an_empty_writable_tree(f: &Fixture) {
    let tree = f.tree("new");
    assert!(!f.backend.exists(&tree).expect("exists"));
    f.backend.create(&tree, None).expect("create");
    assert!(f.backend.exists(&tree).expect("exists"));
    assert!(!f.backend.is_read_only(&tree).expect("is_read_only"));
    assert!(entries(&tree.root()).is_empty());
    let root = fs::symlink_metadata(tree.root()).expect("stat the root");
    assert!(root.is_dir());
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o755, 0, 0));
    fs::write(tree.root().join("file"), "x").expect("write into a new tree");
}

pub(crate) fn create_refuses_a_taken_place(f: &Fixture) {
    let tree = f.created("taken");
    fs::write(tree.root().join("file"), "mine").expect("write");
    let again = Tree::new(tree.place(), Some(f.group()));
    f.refused(Kind::Exists, tree.place(), || f.backend.create(&again, None));
    assert_eq!(fs::read_to_string(tree.root().join("file")).expect("read"), "mine");
}

pub(crate) fn create_needs_its_place(f: &Fixture) {
    let tree = Tree::new(f.fs().path().join("nowhere"), Some(f.group()));
    f.refused(Kind::NotFound, f.fs().path(), || f.backend.create(&tree, None));
    assert!(!f.backend.exists(&tree).expect("exists"));
    f.backend.destroy(&tree).expect("destroying what never was succeeds");
}

pub(crate) fn destroy_is_idempotent_and_leaves_the_place_empty(f: &Fixture) {
    let never = f.tree("never");
    f.backend.destroy(&never).expect("destroying what is not there succeeds");
    let work = f.created("work");
    fs::create_dir_all(work.root().join("a/b/c")).expect("mkdir");
    write_random(&work.root().join("a/b/file"), 100_000);
    let layer = f.tree("layer");
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("clone");
    for tree in [&work, &layer] {
        f.backend.destroy(tree).expect("destroy");
        assert!(!f.backend.exists(tree).expect("exists"));
        f.backend.destroy(tree).expect("destroying again succeeds");
        fs::remove_dir(tree.place()).expect("nothing is left in the place");
    }
}

pub(crate) fn clone_needs_a_source(f: &Fixture) {
    let (never, target) = (f.tree("never"), f.tree("target"));
    for access in [Access::Writable, Access::ReadOnly] {
        f.refused(Kind::NotFound, target.place(), || f.backend.clone_tree(&never, &target, access, None));
    }
    assert!(!f.backend.exists(&target).expect("exists"));
}

pub(crate) fn clone_refuses_a_taken_place(f: &Fixture) {
    let (from, to) = (f.created("from"), f.created("to"));
    fs::write(to.root().join("file"), "mine").expect("write");
    let again = Tree::new(to.place(), Some(f.group()));
    for access in [Access::Writable, Access::ReadOnly] {
        f.refused(Kind::Exists, to.place(), || f.backend.clone_tree(&from, &again, access, None));
    }
    assert_eq!(fs::read_to_string(to.root().join("file")).expect("read"), "mine");
    assert!(!f.backend.is_read_only(&to).expect("is_read_only"));
}

pub(crate) fn read_only_is_remembered(f: &Fixture) {
    let work = f.created("work");
    fs::write(work.root().join("file"), "x").expect("write");
    let (layer, open) = (f.tree("layer"), f.tree("open"));
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("clone read-only");
    f.backend.clone_tree(&layer, &open, Access::Writable, None).expect("clone a read-only tree writable");
    assert!(f.backend.is_read_only(&layer).expect("is_read_only"));
    assert!(!f.backend.is_read_only(&open).expect("is_read_only"));
    fs::write(open.root().join("file"), "y").expect("write into the writable clone");
    if f.setup.is_btrfs() {
        let error = fs::write(layer.root().join("file"), "y").expect_err("a read-only tree refuses writes");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
    let gone = f.tree("gone");
    f.refused(Kind::NotFound, gone.place(), || f.backend.is_read_only(&gone).map(drop));
}

pub(crate) fn reopening_finds_everything(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 100_000));
    let web = f.container(&image, "web");
    write_random(&web.root().join("own"), 50_000);
    let want = Want { sync: true, apparent: true };
    let before = f.backend.measure(&[&image, &web], want).expect("measure");
    let other = f.reopened();
    assert_eq!(other.instance().expect("instance"), f.backend.instance().expect("instance"));
    assert_eq!(other.quota_mode().expect("quota mode"), f.setup.mode());
    assert_eq!(other.measure(&[&image, &web], want).expect("measure"), before);
    assert!(other.is_read_only(&image).expect("is_read_only"));
    assert!(other.exists(&web).expect("exists"));
    let group = other.settle(web.place()).expect("settle");
    assert_eq!(group, f.setup.by_group().then(|| web.group().expect("trees of the suite have groups")));
    let highest = other.highest_group().expect("highest group");
    assert_eq!(highest, f.setup.by_group().then(|| web.group().expect("the last one taken")));
}

pub(crate) fn a_chain_of_130_clones_holds(f: &Fixture) {
    let steps = or_emulated(130, 30);
    let mut last = f.created("tree-0");
    for step in 1..=steps {
        fs::write(last.root().join(format!("file-{step}")), format!("{step}")).expect("write");
        let next = f.tree(&format!("tree-{step}"));
        f.backend.clone_tree(&last, &next, Access::Writable, None).unwrap_or_else(|e| panic!("clone {step}: {e}"));
        last = next;
    }
    assert_eq!(f.charged(&last), 0);
    for step in 1..=steps {
        let content = fs::read_to_string(last.root().join(format!("file-{step}"))).expect("read through the chain");
        assert_eq!(content, step.to_string());
    }
}

pub(crate) fn thirty_two_threads_clone_at_once(f: &Fixture) {
    let turns = or_emulated(10, 2);
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let image = &image;
            scope.spawn(move || {
                for turn in 0..turns {
                    let tree = f.container(image, &format!("c-{thread}-{turn}"));
                    fs::write(tree.root().join("own"), format!("{thread} {turn}")).expect("write");
                }
            });
        }
    });
    for thread in 0..32 {
        for turn in 0..turns {
            let tree = Tree::new(f.fs().path().join(format!("c-{thread}-{turn}")), None);
            assert!(f.backend.exists(&tree).expect("exists"));
            let own = fs::read_to_string(tree.root().join("own")).expect("read");
            assert_eq!(own, format!("{thread} {turn}"));
            assert!(!entries(tree.place()).contains("fs.new"), "nothing half made is left");
        }
    }
}
