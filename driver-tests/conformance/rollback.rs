//! Rolling back: a fork in the place of a tree, which is kept.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use reflinkd::Kind;
use reflinkd::backend::{Access, Tree};

use crate::fixture::{Fixture, entries};
use crate::forks::{changes, fill, write};
use crate::nested::make_subvolume;
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{MB, MIB, write_random};

/// A container with a snapshot of what it was after it was written to, and what it has become since.
struct World {
    image: Tree,
    web: Tree,
    kept: Tree,
}

impl World {
    fn new(f: &Fixture) -> Self {
        let image = f.image("image", fill);
        let web = f.container(&image, "web");
        write(&web.root());
        let kept = Tree::new(f.place("kept"), web.group());
        f.backend.fork(&web, &kept, Access::ReadOnly, None).expect("a snapshot");
        write_random(&web.root().join("later"), MB);
        fs::remove_dir_all(web.root().join("etc")).expect("remove");
        Self { image, web, kept }
    }

    /// A place for what the container is now.
    fn aside(&self, f: &Fixture, name: &str) -> Tree {
        Tree::new(f.place(name), self.web.group())
    }
}

pub(crate) fn a_tree_is_rolled_back(f: &Fixture) {
    let World { image, web, kept } = World::new(f);
    let (then, later) = (tree_digest(&kept.root()), tree_digest(&web.root()));
    let of_kept = changes(f, &image, &kept);
    let was = Tree::new(f.place("was"), web.group());
    f.backend.roll_back(&kept, &web, None, &was, &mut || Ok(())).expect("roll back");
    assert_same("the tree", &then, &tree_digest(&web.root()));
    assert_same("what it was", &later, &tree_digest(&was.root()));
    assert_same("the snapshot", &then, &tree_digest(&kept.root()));
    assert_eq!(changes(f, &image, &web), of_kept);
    for tree in [&web, &was] {
        assert!(!f.backend.is_read_only(tree).expect("is_read_only"));
        fs::write(tree.root().join("more"), "x").expect("write");
        f.backend.settle(tree.place()).expect("settle");
        let left = entries(tree.place());
        assert!(left.len() <= 2, "the tree, and what tells of it: {left:?}");
    }
    let own = |tree: &Tree| f.backend.own(tree, Some(&image)).expect("own");
    f.backend.sync().expect("sync");
    let (now, before) = (own(&web), own(&was));
    assert!(now.apparent != before.apparent && now.bytes() > MB, "{before:?}, {now:?}");
    assert!(before.bytes() > MB, "what was written later is in what is kept: {before:?}");
    assert_eq!(f.sizes(&[&web, &was, &kept]).len(), 3, "all can be measured");
    // And forth again, from what was kept.
    let fourth = Tree::new(f.place("fourth"), web.group());
    fs::remove_file(was.root().join("more")).expect("remove");
    let later = tree_digest(&was.root());
    f.backend.roll_back(&was, &web, None, &fourth, &mut || Ok(())).expect("roll forth");
    assert_same("the tree again", &later, &tree_digest(&web.root()));
    for tree in [&was, &fourth, &kept, &web] {
        f.backend.destroy(tree).expect("destroy");
        fs::remove_dir(tree.place()).expect("nothing is left in the place");
    }
    let live = f.reclaim(&[&image]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
}

pub(crate) fn the_path_stays_while_rolling_back(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let web = f.container(&image, "web");
    let kept = f.tree("kept");
    f.backend.fork(&web, &kept, Access::ReadOnly, None).expect("a snapshot");
    let (path, stop) = (web.root().join("file"), AtomicBool::new(false));
    let reads = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(fs::read_to_string(&path).expect("the path is always there"), "image");
                assert!(!f.backend.is_read_only(&web).expect("what is known of it, too"));
                reads += 1;
            }
            reads
        });
        let rolling = (0..30).try_for_each(|turn| {
            let was = Tree::new(f.place(&format!("was-{turn}")), web.group());
            f.backend.roll_back(&kept, &web, None, &was, &mut || Ok(()))
        });
        stop.store(true, Ordering::Relaxed);
        rolling.expect("roll back");
        reader.join().expect("the reader")
    });
    assert!(reads > 30, "the reader looked {reads} times only");
}

pub(crate) fn a_failed_roll_back_leaves_everything(f: &Fixture) {
    let world = World::new(f);
    let World { web, kept, .. } = &world;
    let before = tree_digest(&web.root());
    let (never, was, taken) = (f.tree("never"), world.aside(f, "was"), world.aside(f, "taken"));
    f.backend.create(&taken, None).expect("create");
    let charged = f.charged(web);
    f.refused(Kind::NotFound, was.place(), || f.backend.roll_back(&never, web, None, &was, &mut || Ok(())));
    f.refused(Kind::NotFound, was.place(), || f.backend.roll_back(kept, &never, None, &was, &mut || Ok(())));
    f.refused(Kind::Exists, taken.place(), || f.backend.roll_back(kept, web, None, &taken, &mut || Ok(())));
    assert_eq!(fs::read_dir(taken.root()).expect("read").count(), 0);
    let nowhere = Tree::new(f.fs().path().join("nowhere"), web.group());
    f.refused(Kind::NotFound, web.place(), || f.backend.roll_back(kept, web, None, &nowhere, &mut || Ok(())));
    if !f.setup.limits() {
        f.refused(Kind::Unsupported, was.place(), || f.backend.roll_back(kept, web, Some(MIB), &was, &mut || Ok(())));
    }
    // The exchange itself is what fails: nobody can move what something is mounted on.
    crate::support::run("mount", &["--bind", "/proc", crate::support::arg(&web.root())]);
    let busy = f.backend.roll_back(kept, web, None, &was, &mut || Ok(()));
    crate::support::run("umount", &[crate::support::arg(&web.root())]);
    busy.expect_err("something is mounted on the tree");
    assert_eq!(entries(was.place()), [""; 0].map(String::from).into());
    assert_same("the tree", &before, &tree_digest(&web.root()));
    assert!(f.charged(web).abs_diff(charged) <= f.setup.overhead());
    f.backend.roll_back(kept, web, None, &was, &mut || Ok(())).expect("nothing stands in the way any more");
    assert_same("what it was", &before, &tree_digest(&was.root()));
}

pub(crate) fn subvolumes_inside_stay_with_what_is_kept(f: &Fixture) {
    let world = World::new(f);
    let World { web, kept, .. } = &world;
    let inner = web.root().join("inner");
    let make = |path: &Path| {
        if f.setup.on_btrfs() {
            make_subvolume(path);
        } else {
            fs::create_dir(path).expect("mkdir");
        }
        write_random(&path.join("file"), MB);
    };
    make(&inner);
    let (then, before) = (tree_digest(&kept.root()), tree_digest(&web.root()));
    let was = world.aside(f, "was");
    f.backend.roll_back(kept, web, None, &was, &mut || Ok(())).expect("roll back what has a subvolume inside");
    assert_same("what it was", &before, &tree_digest(&was.root()));
    assert_same("the tree", &then, &tree_digest(&web.root()));
    assert_eq!(f.backend.nested(&was).expect("nested").len(), usize::from(f.setup.is_btrfs()));
    // And the way back, where a snapshot would have an empty directory.
    let again = world.aside(f, "again");
    if !f.setup.is_btrfs() {
        f.backend.roll_back(&was, web, None, &again, &mut || Ok(())).expect("roll back to it");
        return assert_same("the tree", &before, &tree_digest(&web.root()));
    }
    let back = || f.backend.roll_back(&was, web, None, &again, &mut || Ok(()));
    let error = f.refused(Kind::Unsupported, again.place(), back);
    assert!(error.to_string().contains("inner"), "{error}");
    assert_same("the tree", &then, &tree_digest(&web.root()));
    f.backend.destroy(&was).expect("destroy");
    fs::remove_dir(was.place()).expect("nothing is left in the place");
}

/// The limit is the container's, also after it was rolled back: what its writers add, and of what is kept what the mode
/// counts.
pub(crate) fn a_limit_outlives_a_roll_back(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    const LIMIT: u64 = 20 * MIB;
    let image = f.image("image", |root| write_random(&root.join("data"), 3 * MIB));
    let web = f.tree("web");
    f.backend.clone_tree(&image, &web, Access::Writable, Some(LIMIT)).expect("clone with a limit");
    let kept = Tree::new(f.place("kept"), web.group());
    f.backend.fork(&web, &kept, Access::ReadOnly, None).expect("a snapshot");
    write_random(&web.root().join("own"), 8 * MIB);
    f.backend.sync().expect("sync");
    let was = Tree::new(f.place("was"), web.group());
    f.backend.roll_back(&kept, &web, Some(LIMIT), &was, &mut || Ok(())).expect("roll back");
    // Btrfs's simple quotas charge the group for what is kept.
    let counted = if f.setup.counts_simply() { 8 * MIB } else { 0 };
    let stops = |room: u64, name: &str| {
        let written = crate::support::fill(&web.root().join(name), 10 * LIMIT);
        let expected = room.saturating_sub(2 * MIB)..=room + f.setup.overhead();
        assert!(expected.contains(&written), "{name}: {written} of {room} bytes");
    };
    stops(LIMIT - counted, "log");
    f.backend.destroy(&was).expect("destroy");
    f.reclaim(&[&image, &web, &kept]);
    f.backend.sync().expect("sync");
    stops(counted, "more");
    f.backend.destroy(&web).expect("destroy");
    f.backend.destroy(&kept).expect("destroy");
    let live = f.reclaim(&[&image]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
}
