//! One tree in the place of another, and what a crash in the middle leaves.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use reflinkd::Kind;
use reflinkd::backend::Tree;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::fixture::{Fixture, entries};
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{or_emulated, write_random};

pub(crate) fn the_path_never_vanishes(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let web = f.container(&image, "web");
    let (path, stop) = (web.root().join("file"), AtomicBool::new(false));
    let turns = or_emulated(100, 20);
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0;
            while !stop.load(Ordering::Relaxed) {
                let content = fs::read_to_string(&path).expect("the path is always there");
                assert_eq!(content, "image");
                reads += 1;
            }
            reads
        });
        let replacing = (0..turns).try_for_each(|_| {
            let fresh = Tree::new(web.place(), Some(f.group()));
            f.backend.replace(&image, &fresh, None)
        });
        stop.store(true, Ordering::Relaxed);
        replacing.expect("replace");
        reader.join().expect("the reader")
    });
    assert!(reads > turns, "the reader looked {reads} times only");
    assert!(!web.spare().exists(), "the old trees are gone");
}

pub(crate) fn the_new_tree_is_the_origins(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 1_000_000));
    let web = f.container(&image, "web");
    fs::remove_file(web.root().join("data")).expect("remove");
    write_random(&web.root().join("own"), 3_000_000);
    let fresh = Tree::new(web.place(), Some(f.group()));
    f.backend.replace(&image, &fresh, None).expect("replace");
    assert_same("the replaced tree", &tree_digest(&image.root()), &tree_digest(&fresh.root()));
    assert!(!f.backend.is_read_only(&fresh).expect("is_read_only"));
    assert_eq!(f.charged(&fresh), 0);
    let group = f.backend.settle(web.place()).expect("settle");
    assert_eq!(group, f.setup.by_group().then(|| fresh.group().expect("it has one")));
    let live = f.reclaim(&[&image, &fresh]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    fs::write(fresh.root().join("new"), "x").expect("write into the replaced tree");
}

pub(crate) fn a_failed_replace_changes_nothing(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let web = f.container(&image, "web");
    fs::write(web.root().join("own"), "own").expect("write");
    let (never, nothing) = (f.tree("never"), f.tree("nothing"));
    let fresh = Tree::new(web.place(), Some(f.group()));
    f.refused(Kind::NotFound, web.place(), || f.backend.replace(&never, &fresh, None));
    f.refused(Kind::NotFound, nothing.place(), || f.backend.replace(&image, &nothing, None));
    assert_eq!(fs::read_to_string(web.root().join("own")).expect("read"), "own");
}

pub(crate) fn settle_undoes_an_unfinished_replace(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let (web, other) = (f.container(&image, "web"), f.container(&image, "other"));
    fs::write(web.root().join("own"), "own").expect("write");
    // As a crash leaves it that comes after the clone and before the exchange.
    f.put_spare(&other, &web);
    for _ in 0..2 {
        let group = f.backend.settle(web.place()).expect("settle");
        assert_eq!(group, f.setup.by_group().then(|| web.group().expect("it has one")));
        assert!(!web.spare().exists());
        assert_eq!(fs::read_to_string(web.root().join("own")).expect("read"), "own");
    }
    let empty = f.place("empty");
    assert_eq!(f.backend.settle(&empty).expect("settle an empty place"), None);
    assert!(entries(&empty).is_empty());
}

pub(crate) fn settle_finishes_a_replace(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let (web, other) = (f.container(&image, "web"), f.container(&image, "other"));
    fs::write(web.root().join("own"), "old").expect("write");
    // As a crash leaves it that comes after the exchange and before the old tree is destroyed.
    f.put_spare(&other, &web);
    renameat_with(CWD, web.spare(), CWD, web.root(), RenameFlags::EXCHANGE).expect("exchange");
    let group = f.backend.settle(web.place()).expect("settle");
    assert_eq!(group, f.setup.by_group().then(|| other.group().expect("it has one")));
    assert!(!web.spare().exists());
    assert!(!web.root().join("own").exists(), "the old tree is gone");
    let fresh = Tree::new(web.place(), group);
    let live = f.reclaim(&[&image, &fresh]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    f.backend.destroy(&fresh).expect("destroy");
    fs::remove_dir(web.place()).expect("nothing is left in the place");
}
