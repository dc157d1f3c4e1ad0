//! Forks: clones that are compared with what their source is compared with.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::backend::changes::{Comparison, What};
use reflinkd::backend::{Access, Own, SizeMethod, Tree};

use crate::fixture::{Fixture, Setup};
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{KIB, MB, MIB, random_bytes, write_random};

/// What an image has for the cases here.
pub(crate) fn fill(root: &Path) {
    let path = |name: &str| root.join(name);
    for directory in ["etc", "usr/bin", "usr/share/doc", "moved/below", "gone"] {
        fs::create_dir_all(path(directory)).expect("mkdir");
    }
    for number in 0..20 {
        write_random(&path(&format!("usr/share/doc/file-{number}")), 3000 + 700 * number);
    }
    for name in ["etc/large", "etc/kept", "etc/replaced", "moved/one", "moved/below/two", "gone/file", "etc/emptied"]
    {
        write_random(&path(name), 200 * KIB);
    }
    write_random(&path("usr/bin/tool"), 50 * KIB);
    fs::hard_link(path("usr/bin/tool"), path("usr/bin/tool-2")).expect("link");
    fs::hard_link(path("usr/bin/tool"), path("usr/bin/tool-3")).expect("link");
    std::os::unix::fs::symlink("tool", path("usr/bin/link")).expect("symlink");
}

/// What a container does to it.
pub(crate) fn write(root: &Path) {
    let path = |name: &str| root.join(name);
    let file = OpenOptions::new().write(true).open(path("etc/large")).expect("open");
    file.write_all_at(&random_bytes(8 * KIB), 64 * KIB).expect("overwrite two blocks");
    write_random(&path("etc/new"), MIB);
    fs::write(path("etc/small"), "of a few bytes").expect("write");
    fs::remove_file(path("etc/replaced")).expect("remove");
    write_random(&path("etc/replaced"), 100 * KIB);
    fs::write(path("etc/emptied"), "").expect("truncate");
    fs::rename(path("moved"), path("usr/elsewhere")).expect("rename a directory");
    write_random(&path("usr/elsewhere/below/added"), 30 * KIB);
    fs::remove_dir_all(path("gone")).expect("remove");
    fs::remove_file(path("usr/bin/tool-2")).expect("remove one name of several");
    fs::hard_link(path("etc/new"), path("usr/new-too")).expect("link");
    fs::rename(path("usr/share/doc/file-3"), path("usr/share/doc/renamed")).expect("rename");
}

/// An image, and a container of it that was written to.
fn written(f: &Fixture) -> (Tree, Tree) {
    let image = f.image("image", fill);
    let web = f.container(&image, "web");
    write(&web.root());
    f.backend.sync().expect("sync");
    (image, web)
}

fn forked(f: &Fixture, from: &Tree, name: &str, access: Access) -> Tree {
    let fork = f.tree(name);
    f.backend.fork(from, &fork, access, None).unwrap_or_else(|e| panic!("fork {name}: {e}"));
    fork
}

fn own(f: &Fixture, tree: &Tree, parent: &Tree) -> Own {
    f.backend.sync().expect("sync");
    f.backend.own(tree, Some(parent)).expect("own")
}

/// What is told of a tree compared with `parent`.
pub(crate) fn changes(f: &Fixture, parent: &Tree, tree: &Tree) -> Vec<(String, What)> {
    let scratch = f.tree(&format!("scratch-{:?}", f.group()));
    let wanted = Comparison { parent: Some(parent), tree, scratch: Some(&scratch), sizes: false };
    let changes = f.backend.changes(&wanted).expect("changes").list;
    fs::remove_dir(scratch.place()).expect("the scratch place is empty again");
    changes.into_iter().map(|change| (change.path.display().to_string(), change.what)).collect()
}

/// What `write` wrote, as far as it is on disk by itself.
const WRITTEN: std::ops::Range<u64> = 1_190_000..1_900_000;

pub(crate) fn a_fork_is_equal_and_independent(f: &Fixture) {
    let (image, web) = written(f);
    let before = tree_digest(&web.root());
    let fork = forked(f, &web, "fork", Access::Writable);
    assert_same("the fork", &before, &tree_digest(&fork.root()));
    assert!(!f.backend.is_read_only(&fork).expect("is_read_only"));
    write_random(&fork.root().join("etc/large"), 10);
    fs::remove_dir_all(fork.root().join("usr")).expect("remove");
    assert_same("the source of a changed fork", &before, &tree_digest(&web.root()));
    let fork = forked(f, &web, "second", Access::Writable);
    write_random(&web.root().join("etc/large"), 10);
    fs::remove_dir_all(web.root().join("usr")).expect("remove");
    assert_same("the fork of a changed source", &before, &tree_digest(&fork.root()));
    f.backend.destroy(&web).expect("destroy the source");
    assert_same("the fork whose source is gone", &before, &tree_digest(&fork.root()));
    assert!(f.backend.exists(&image).expect("exists"));
}

pub(crate) fn a_read_only_fork_refuses_writes(f: &Fixture) {
    let (_, web) = written(f);
    let before = tree_digest(&web.root());
    let kept = forked(f, &web, "kept", Access::ReadOnly);
    assert!(f.backend.is_read_only(&kept).expect("is_read_only"));
    if f.setup.is_btrfs() {
        let error = fs::write(kept.root().join("new"), "x").expect_err("it is read-only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
    let of_it = f.container(&kept, "of-it");
    fs::remove_dir_all(of_it.root().join("usr")).expect("remove");
    write_random(&of_it.root().join("etc/large"), 10);
    assert_same("a read-only fork", &before, &tree_digest(&kept.root()));
}

pub(crate) fn a_fork_holds_what_its_source_holds(f: &Fixture) {
    let (image, web) = written(f);
    let of_source = own(f, &web, &image);
    assert!(WRITTEN.contains(&of_source.bytes()), "{} bytes", of_source.bytes());
    let fork = forked(f, &web, "fork", Access::Writable);
    let kept = forked(f, &web, "kept", Access::ReadOnly);
    let again = forked(f, &kept, "again", Access::Writable);
    let has_addresses = f.setup != Setup::Memory;
    assert_eq!(!of_source.blocks.is_empty(), has_addresses);
    for tree in [&web, &fork, &kept, &again] {
        assert_eq!(own(f, tree, &image), of_source, "{tree:?}");
    }
    // What nobody has touched is nobody's own.
    let untouched = f.container(&image, "untouched");
    let nothing = forked(f, &untouched, "nothing", Access::Writable);
    assert_eq!(own(f, &nothing, &image), Own::default());
    // What is written later is each one's alone.
    write_random(&again.root().join("later"), MB);
    write_random(&web.root().join("etc/small"), 50_000);
    let later = own(f, &again, &image);
    let grown = later.bytes() - of_source.bytes();
    assert!((MB..MB + 128 * KIB).contains(&grown), "{grown} bytes more");
    assert_eq!(later.apparent, of_source.apparent + MB);
    assert!(of_source.blocks.iter().all(|range| later.blocks.gaps(range).next().is_none()), "it has those still");
    assert_eq!(own(f, &fork, &image), of_source);
    f.backend.destroy(&web).expect("destroy");
    f.backend.destroy(&kept).expect("destroy");
    f.reclaim(&[&image, &fork, &again, &untouched, &nothing]);
    assert_eq!(own(f, &fork, &image), of_source, "the source is gone");
    assert_eq!(own(f, &again, &image), later, "all between it and the image are gone");
}

/// By what each kind of counting says of what several trees have.
pub(crate) fn a_fork_is_measured_by_itself(f: &Fixture) {
    let (image, web) = written(f);
    let fork = forked(f, &web, "fork", Access::Writable);
    let kept = forked(f, &web, "kept", Access::ReadOnly);
    let of_source = f.sizes(&[&web])[0];
    let sizes = f.sizes(&[&fork, &kept]);
    match f.setup.method() {
        // Who wrote it is charged, or nobody while several have it.
        SizeMethod::SimpleQuota | SizeMethod::Qgroup => assert!(sizes[0].charged <= f.setup.overhead()),
        SizeMethod::Extents if f.setup.is_btrfs() => assert!(sizes[0].charged <= f.setup.overhead()),
        // What the image doesn't have is the tree's own, whoever has it too.
        SizeMethod::Extents | SizeMethod::Blocks => {
            assert_eq!(sizes, [of_source, of_source]);
            assert!(WRITTEN.contains(&of_source.charged), "{of_source:?}");
        }
        SizeMethod::ProjectQuota => {
            assert_eq!(sizes[0].apparent, of_source.apparent);
            let distance = sizes[0].charged.abs_diff(of_source.charged);
            assert!(distance <= f.setup.overhead(), "{sizes:?}, the source {of_source:?}");
        }
    }
    let before = f.charged(&fork);
    write_random(&fork.root().join("later"), MB);
    let grown = f.charged(&fork) - before;
    assert!((MB..=MB + 4096 + f.setup.overhead()).contains(&grown), "{grown} bytes more");
    assert!(f.backend.exists(&image).expect("exists"));
}

pub(crate) fn a_fork_differs_from_the_image_as_its_source_does(f: &Fixture) {
    let (image, web) = written(f);
    let of_source = changes(f, &image, &web);
    let has = |path: &str, what| of_source.contains(&(path.to_owned(), what));
    assert!(has("moved", What::Deleted) && has("usr/elsewhere/below/two", What::Added), "{of_source:?}");
    assert!(has("etc/large", What::Modified) && has("gone", What::Deleted), "{of_source:?}");
    let fork = forked(f, &web, "fork", Access::Writable);
    let kept = forked(f, &fork, "kept", Access::ReadOnly);
    for tree in [&fork, &kept] {
        assert_eq!(changes(f, &image, tree), of_source);
    }
    f.backend.destroy(&web).expect("destroy");
    assert_eq!(changes(f, &image, &kept), of_source);
    fs::rename(fork.root().join("usr/elsewhere"), fork.root().join("moved")).expect("rename it back");
    fs::remove_file(fork.root().join("moved/below/added")).expect("remove");
    let now = changes(f, &image, &fork);
    assert!(!now.iter().any(|(path, what)| path.starts_with("moved") && *what != What::Touched), "{now:?}");
    assert!(now.contains(&("etc/large".to_owned(), What::Modified)), "{now:?}");
}

pub(crate) fn a_fork_needs_what_a_clone_needs(f: &Fixture) {
    let (_, web) = written(f);
    let (never, nothing) = (f.tree("never"), f.tree("nothing"));
    f.refused(Kind::NotFound, nothing.place(), || f.backend.fork(&never, &nothing, Access::Writable, None));
    f.refused(Kind::Exists, web.place(), || f.backend.fork(&web, &web, Access::Writable, None));
    f.refused(Kind::NotFound, never.place(), || f.backend.own(&never, None).map(drop));
    if !f.setup.limits() {
        let limited = || f.backend.fork(&web, &nothing, Access::Writable, Some(MIB));
        f.refused(Kind::Unsupported, nothing.place(), limited);
    }
    // What began empty is all its own, and so is a fork of it.
    let scratch = f.created("from-nothing");
    write_random(&scratch.root().join("file"), MB);
    let fork = forked(f, &scratch, "fork-of-nothing", Access::Writable);
    f.backend.sync().expect("sync");
    let all = |tree| f.backend.own(tree, None).expect("own");
    assert_eq!(all(&fork), all(&scratch));
    assert!((MB..MB + 8 * KIB).contains(&all(&fork).bytes()));
    assert_eq!(all(&fork).apparent, MB);
}

/// A fork's limit counts what its writers add, and of what it inherited what [`reflinkd::backend::Inherited`] says.
pub(crate) fn a_fork_has_its_own_limit(f: &Fixture) {
    use reflinkd::backend::Inherited;

    let Some(quotas) = f.backend.quotas() else { return assert!(!f.setup.limits()) };
    let image = f.image("image", |root| write_random(&root.join("data"), 20 * MIB));
    let web = f.container(&image, "web");
    write_random(&web.root().join("own"), 4 * MIB);
    f.backend.sync().expect("sync");
    let fork = f.tree("fork");
    f.backend.fork(&web, &fork, Access::Writable, Some(10 * MIB)).expect("fork with a limit");
    let inherited = if quotas.inherited() == Inherited::Both { 4 * MIB } else { 0 };
    let written = crate::support::fill(&fork.root().join("log"), 40 * MIB);
    let room = 10 * MIB - inherited;
    assert!((room - 2 * MIB..=room).contains(&written), "of {room} bytes {written} could be written");
}

/// Of a tree that was made from another in several steps, and not by forks alone.
pub(crate) fn own_is_told_of_any_ancestor(f: &Fixture) {
    let image = f.image("image", fill);
    let work = f.container(&image, "work");
    write_random(&work.root().join("layer"), MB);
    fs::rename(work.root().join("etc"), work.root().join("usr/etc")).expect("rename");
    let layer = Tree::new(f.place("layer"), work.group());
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("commit");
    f.backend.destroy(&work).expect("destroy");
    let web = f.container(&layer, "web");
    write_random(&web.root().join("own"), 2 * MB);
    let fork = forked(f, &web, "fork", Access::ReadOnly);
    let assert_holds = |tree: &Tree, parent: &Tree, bytes: u64| {
        let own = own(f, tree, parent);
        let held = own.bytes();
        assert!((bytes..bytes + 3 * 4096).contains(&held), "{tree:?} holds {held} beyond {parent:?}, not {bytes}");
        assert_eq!(own.apparent, bytes);
    };
    assert_holds(&layer, &image, MB);
    for tree in [&web, &fork] {
        assert_holds(tree, &layer, 2 * MB);
        assert_holds(tree, &image, 3 * MB);
    }
    let (of_layer, of_web) = (own(f, &layer, &image).blocks, own(f, &web, &image).blocks);
    assert!(of_layer.iter().all(|range| of_web.gaps(range).next().is_none()), "what the layer has the clone has");
}

/// Where the filesystem counts by groups: each byte once, whoever has it, and as long as anybody has it.
pub(crate) fn groups_are_charged_for_what_their_forks_keep(f: &Fixture) {
    let (image, web) = written(f);
    let groups = [web.group().expect("it has one")].into();
    let charged = || f.backend.charged(&groups).expect("charged");
    let before = charged();
    assert_eq!(before.is_some(), f.setup.counts_simply());
    let Some(before) = before else { return };
    assert!((WRITTEN.start..WRITTEN.end + f.setup.overhead()).contains(&before), "{before}");
    let kept = Tree::new(f.place("kept"), web.group());
    f.backend.fork(&web, &kept, Access::ReadOnly, None).expect("fork");
    let fork = forked(f, &web, "fork", Access::Writable);
    f.backend.destroy(&web).expect("destroy");
    f.reclaim(&[&image, &web, &fork]);
    let after = charged().expect("as before");
    assert!(after.abs_diff(before) <= f.setup.overhead(), "{before} before, {after} after");
    let own = f.backend.charged(&[fork.group().expect("it has one")].into()).expect("charged").expect("as before");
    assert!(own <= f.setup.overhead(), "{own}");
}
