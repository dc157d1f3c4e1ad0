//! Limits, in each quota mode as far as the mode can hold them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::backend::{Access, Guarantee, QuotaMode, Quotas, Tree};

use crate::fixture::{Fixture, Setup};
use crate::nested::make_subvolume;
use crate::support::{MB, MIB, fill, random_bytes, write_random};

const LIMIT: u64 = 10 * MIB;

fn quotas(f: &Fixture) -> &dyn Quotas {
    f.backend.quotas().expect("this mode holds limits")
}

/// Write at `path` until the limit stops it: just below `limit`.
#[track_caller]
fn assert_stops(f: &Fixture, path: &Path, limit: u64) {
    let written = fill(path, 10 * limit);
    assert!((limit - 2 * MIB..=limit).contains(&written), "a limit of {limit} stopped a writer at {written}");
    let more = OpenOptions::new().append(true).open(path).and_then(|mut file| file.write_all(&random_bytes(MIB)));
    let error = more.expect_err("the limit still holds");
    assert_eq!(error.raw_os_error(), Some(f.setup.refusal()), "{error}");
}

fn limited(f: &Fixture, image: &Tree, name: &str, limit: u64) -> Tree {
    let tree = f.tree(name);
    f.backend.clone_tree(image, &tree, Access::Writable, Some(limit)).expect("clone with a limit");
    tree
}

/// Where nothing counts a limit is refused in all three ways, and leaves nothing; where something counts it
/// is taken.
pub(crate) fn no_limits_where_nothing_counts(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let web = f.container(&image, "web");
    let (one, two) = (f.tree("one"), f.tree("two"));
    let fresh = Tree::new(web.place(), Some(f.group()));
    let create = || f.backend.create(&one, Some(LIMIT));
    let clone = || f.backend.clone_tree(&image, &two, Access::Writable, Some(LIMIT));
    let replace = || f.backend.replace(&image, &fresh, Some(LIMIT));
    if f.setup.limits() {
        create().and_then(|()| clone()).and_then(|()| replace()).expect("this mode holds limits");
        return;
    }
    assert!(f.backend.quotas().is_none());
    f.refused(Kind::Unsupported, one.place(), create);
    f.refused(Kind::Unsupported, two.place(), clone);
    fs::write(web.root().join("own"), "own").expect("write");
    f.refused(Kind::Unsupported, web.place(), replace);
    assert_eq!(fs::read_to_string(web.root().join("own")).expect("read"), "own");
}

pub(crate) fn a_limit_holds(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let image = f.image("image", |root| write_random(&root.join("data"), MB));
    let web = limited(f, &image, "web", LIMIT);
    assert_stops(f, &web.root().join("log"), LIMIT);
    assert!(f.charged(&web) <= LIMIT);
    // Its neighbours are free to go on.
    let free = f.container(&image, "free");
    write_random(&free.root().join("log"), 2 * LIMIT);
    f.backend.sync().expect("sync");
}

pub(crate) fn a_limit_does_not_count_the_origin(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let image = f.image("image", |root| write_random(&root.join("data"), 3 * LIMIT));
    let web = limited(f, &image, "web", LIMIT);
    assert_stops(f, &web.root().join("log"), LIMIT);
    f.backend.sync().expect("sync");
    fs::remove_file(web.root().join("data")).expect("remove what is the image's");
    fs::remove_file(web.root().join("log")).expect("remove what is the container's");
    f.backend.sync().expect("sync");
    let makes_room = quotas(f).guarantee() == Guarantee::CountsTheClone;
    assert_stops(f, &web.root().join("log"), if makes_room { 4 * LIMIT } else { LIMIT });
}

pub(crate) fn a_full_tree_can_be_emptied_and_raised(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let image = f.image("image", |root| write_random(&root.join("data"), MB));
    let web = limited(f, &image, "web", LIMIT);
    let log = web.root().join("log");
    assert_stops(f, &log, LIMIT);
    f.backend.sync().expect("sync");
    quotas(f).set_limit(&web, Some(3 * LIMIT)).expect("raise the limit");
    let more = fill(&log, 10 * LIMIT);
    assert!((2 * LIMIT - 2 * MIB..=2 * LIMIT + MIB).contains(&more), "raised by {}, took {more}", 2 * LIMIT);
    fs::remove_file(&log).expect("unlink works at the limit");
    f.backend.sync().expect("sync");
    write_random(&log, 2 * LIMIT);
    quotas(f).set_limit(&web, None).expect("lift the limit");
    write_random(&web.root().join("more"), 4 * LIMIT);
    f.backend.sync().expect("sync");
    // Below what is there: nothing is lost, nothing can be added.
    quotas(f).set_limit(&web, Some(LIMIT)).expect("lower the limit");
    assert!(fill(&web.root().join("third"), 10 * LIMIT) <= MIB, "a limit below what is charged lets nothing in");
    let gone = f.tree("gone");
    f.refused(Kind::NotFound, gone.place(), || quotas(f).set_limit(&gone, Some(LIMIT)));
    f.backend.destroy(&web).expect("a tree at its limit can be destroyed");
}

pub(crate) fn every_way_to_a_tree_takes_a_limit(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let made = f.tree("made");
    f.backend.create(&made, Some(LIMIT)).expect("create with a limit");
    assert_stops(f, &made.root().join("log"), LIMIT);
    let image = f.image("image", |root| write_random(&root.join("data"), MB));
    let web = f.container(&image, "web");
    write_random(&web.root().join("log"), 2 * LIMIT);
    let fresh = Tree::new(web.place(), Some(f.group()));
    f.backend.replace(&image, &fresh, Some(LIMIT)).expect("replace with a limit");
    assert_stops(f, &fresh.root().join("log"), LIMIT);
}

/// The limit is the tree's, not its content's: clones have the limit they are given, or none.
pub(crate) fn a_clone_has_its_own_limit(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let image = f.image("image", |root| write_random(&root.join("data"), MB));
    let web = limited(f, &image, "web", LIMIT);
    write_random(&web.root().join("log"), 8 * MB);
    let free = f.container(&web, "free");
    write_random(&free.root().join("more"), 2 * LIMIT);
    f.backend.sync().expect("sync");
    let larger = limited(f, &web, "larger", 3 * LIMIT);
    assert_stops(f, &larger.root().join("more"), 3 * LIMIT);
}

/// A mode that says its limits hold is held to it, and one that says they are escaped tells the truth.
pub(crate) fn subvolumes_inside_count_as_guaranteed(f: &Fixture) {
    if !f.setup.limits() {
        return assert!(f.backend.quotas().is_none());
    }
    let image = f.image("image", |root| write_random(&root.join("data"), MB));
    let web = limited(f, &image, "web", LIMIT);
    let inner = web.root().join("inner");
    if f.setup.on_btrfs() {
        make_subvolume(&inner);
    } else {
        fs::create_dir(&inner).expect("mkdir");
    }
    match (f.setup, quotas(f).guarantee()) {
        (Setup::Simple | Setup::ZstdSimple, Guarantee::Holds) | (Setup::XfsPrjquota, Guarantee::CountsTheClone) => {
            assert_stops(f, &inner.join("log"), LIMIT);
        }
        (Setup::Full, Guarantee::EscapedByNestedSubvolumes) => write_random(&inner.join("log"), 2 * LIMIT),
        (setup, guarantee) => panic!("{setup:?} claims {guarantee:?}"),
    }
}

pub(crate) fn quota_mode_can_be_switched(f: &Fixture) {
    let switch = |mode| {
        f.backend.set_quota_mode(mode).unwrap_or_else(|e| panic!("switch to {mode:?}: {e}"));
        assert_eq!(f.backend.quota_mode().expect("quota mode"), mode);
        assert_eq!(
            f.backend.quotas().is_some(),
            matches!(mode, QuotaMode::Simple | QuotaMode::Full | QuotaMode::Project)
        );
    };
    f.backend.set_quota_mode(QuotaMode::Inconsistent).expect_err("nobody can ask for wrong numbers");
    assert_eq!(f.backend.quota_mode().expect("quota mode"), f.setup.mode());
    match f.setup {
        Setup::Memory | Setup::Xfs | Setup::ReflinkOnBtrfs => {
            switch(QuotaMode::None);
            for mode in [QuotaMode::Simple, QuotaMode::Full] {
                f.refused(Kind::Unsupported, f.fs().path(), || f.backend.set_quota_mode(mode));
            }
        }
        Setup::XfsPrjquota => {
            switch(QuotaMode::Project);
            for mode in [QuotaMode::None, QuotaMode::Simple, QuotaMode::Full] {
                f.refused(Kind::Unsupported, f.fs().path(), || f.backend.set_quota_mode(mode));
            }
        }
        Setup::None | Setup::Zstd => {
            for mode in [QuotaMode::Simple, QuotaMode::None, QuotaMode::Full, QuotaMode::None] {
                switch(mode);
                switch(mode);
                let tree = f.created(&format!("in-{mode:?}-{:?}", f.group()));
                write_random(&tree.root().join("data"), MB);
                let charged = f.charged(&tree);
                assert!((MB..MB + 128 * 1024).contains(&charged), "{mode:?}: {charged}");
                f.backend.destroy(&tree).expect("destroy");
                f.reclaim(&[]);
            }
        }
        Setup::Simple | Setup::ZstdSimple | Setup::Full => {
            switch(f.setup.mode());
            switch(QuotaMode::None);
        }
        Setup::Inconsistent => switch(QuotaMode::None),
    }
}
