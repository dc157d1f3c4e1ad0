//! What is charged, to whom, by which method; and that it comes back.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::backend::{Access, SizeMethod, Tree, TreeSize, Want};

use crate::fixture::{Fixture, Setup};
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{MB, MIB, large_file, or_emulated, random_bytes, write_blocks, write_random};

pub(crate) const BLOCK: u64 = 4096;

/// Exactly the blocks in memory; on real filesystems never less than the bytes, and little more.
#[track_caller]
pub(crate) fn assert_charged(f: &Fixture, charged: u64, bytes: u64) {
    let blocks = bytes.div_ceil(BLOCK) * BLOCK;
    let most = blocks + f.setup.overhead();
    let least = if f.setup == Setup::Memory { blocks } else { bytes };
    assert!((least..=most).contains(&charged), "{bytes} bytes were written, {charged} charged, not {least}..={most}");
}

pub(crate) fn the_method_is_the_modes(f: &Fixture) {
    assert_eq!(f.backend.quota_mode().expect("quota mode"), f.setup.mode());
    assert_eq!(f.backend.quotas().is_some(), f.setup.limits());
    let tree = f.created("tree");
    for sync in [false, true] {
        let measured = f.backend.measure(&[&tree], Want { sync, apparent: false }).expect("measure");
        assert_eq!(measured.method, f.setup.method());
        assert_eq!(measured.sizes.len(), 1);
        assert_eq!(measured.sizes[0].apparent, None, "nobody asked for it");
    }
    let nothing = f.backend.measure(&[], Want { sync: true, apparent: true }).expect("measure nothing");
    assert_eq!((nothing.method, nothing.sizes), (f.setup.method(), vec![]));
}

pub(crate) fn an_untouched_clone_charges_nothing(f: &Fixture) {
    let image = f.image("image", |root| {
        write_random(&root.join("large"), 5 * MB);
        for small in 0..200 {
            write_random(&root.join(format!("small-{small}")), 1000);
        }
    });
    let (web, layer) = (f.container(&image, "web"), f.tree("layer"));
    f.backend.clone_tree(&web, &layer, Access::ReadOnly, None).expect("clone");
    let untouched = TreeSize { charged: 0, apparent: Some(0) };
    assert_eq!(f.sizes(&[&web, &layer]), [untouched, untouched]);
}

pub(crate) fn reading_charges_nothing(f: &Fixture) {
    // Access times are metadata, which a clone pays for: with relatime a first look at a file isn't free.
    f.fs().no_access_times();
    let image = f.image("image", |root| {
        write_random(&root.join("data"), 5 * MB);
        (0..500).for_each(|small| write_random(&root.join(format!("small-{small}")), 100));
    });
    let web = f.container(&image, "web");
    f.backend.sync().expect("sync");
    let used = f.backend.space().expect("space").used;
    assert_same("a clone and its image", &tree_digest(&image.root()), &tree_digest(&web.root()));
    assert_eq!(f.sizes(&[&web]), [TreeSize { charged: 0, apparent: Some(0) }]);
    let grown = f.backend.space().expect("space").used.saturating_sub(used);
    assert!(grown < MB, "reading 5 MB copied {grown} bytes");
}

pub(crate) fn charges_are_exact(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 7 * MB));
    let part = or_emulated(10, 2) * MB;
    let sizes = [part, 2 * part, 3 * part];
    let trees: Vec<Tree> = sizes.iter().map(|size| f.container(&image, &format!("web-{size}"))).collect();
    for (tree, size) in trees.iter().zip(sizes) {
        write_random(&tree.root().join("test.log"), size);
    }
    // In an order of its own: the answers follow the question.
    let asked = [&trees[2], &trees[0], &trees[1]];
    for (size, bytes) in f.sizes(&asked).into_iter().zip([sizes[2], sizes[0], sizes[1]]) {
        assert_charged(f, size.charged, bytes);
        assert_eq!(size.apparent, Some(bytes));
    }
    // What is still open and never saw fsync counts too.
    let more = File::create(trees[0].root().join("open")).expect("create");
    more.write_all_at(&random_bytes(MIB), 0).expect("write");
    assert_charged(f, f.charged(&trees[0]), part + MIB);
}

pub(crate) fn one_block_of_a_large_file_charges_one_block(f: &Fixture) {
    let large = large_file();
    let image = f.image("image", |root| write_blocks(&root.join("large"), large / BLOCK));
    let (web, sibling) = (f.container(&image, "web"), f.container(&image, "sibling"));
    let changed_at = large / 2 + 17 * BLOCK;
    let block = random_bytes(BLOCK);
    let path = web.root().join("large");
    let file = OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(&block, changed_at).expect("write");
    file.sync_all().expect("fsync");
    let sizes = f.sizes(&[&web, &sibling]);
    assert_charged(f, sizes[0].charged, f.setup.charge(0, BLOCK, 0));
    assert_eq!(sizes[0].apparent, Some(large), "the changed file's length");
    assert_eq!(sizes[1], TreeSize { charged: 0, apparent: Some(0) });
    let open = |tree: &Tree| File::open(tree.root().join("large")).expect("open");
    let files = [open(&image), open(&sibling), open(&web)];
    let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for start in (0..large).step_by(1 << 20) {
        files[0].read_exact_at(&mut one, start).expect("read");
        files[1].read_exact_at(&mut other, start).expect("read");
        assert!(one == other, "image and sibling differ in the MiB at {start}");
        files[2].read_exact_at(&mut other, start).expect("read");
        if (start..start + MIB).contains(&changed_at) {
            let at = usize::try_from(changed_at - start).expect("small");
            one[at..at + block.len()].copy_from_slice(&block);
        }
        // What write_blocks stamped: the image is what it was when it was made.
        let stamp = u64::from_le_bytes(one[..8].try_into().expect("eight bytes"));
        assert_eq!(stamp, start / BLOCK);
        assert!(one == other, "the container differs outside of its block, in the MiB at {start}");
    }
}

pub(crate) fn deleting_keeps_the_image(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 5 * MB));
    let before = fs::read(image.root().join("data")).expect("read");
    let (web, sibling) = (f.container(&image, "web"), f.container(&image, "sibling"));
    fs::remove_file(web.root().join("data")).expect("remove");
    assert!(!web.root().join("data").exists());
    for tree in [&image, &sibling] {
        assert!(fs::read(tree.root().join("data")).expect("read") == before);
    }
    let sizes = f.sizes(&[&web, &sibling]);
    assert!(sizes[0].charged <= f.setup.overhead(), "deleting charged {}", sizes[0].charged);
    assert_eq!(sizes[0].apparent, Some(0));
    assert_eq!(sizes[1].charged, 0);
}

pub(crate) fn apparent_counts_files_made_or_changed(f: &Fixture) {
    let image = f.image("image", |root| {
        write_random(&root.join("kept"), MB);
        write_random(&root.join("changed"), 2 * MB);
        write_random(&root.join("cut"), 4 * MB);
    });
    let web = f.container(&image, "web");
    let path = |name: &str| web.root().join(name);
    write_random(&path("new"), 8 * MB);
    fs::hard_link(path("new"), path("new-too")).expect("link");
    let open = |name: &str| OpenOptions::new().write(true).open(path(name)).expect("open");
    open("changed").write_all_at(b"x", 1_000_000).expect("write");
    open("cut").set_len(3 * MB + 1).expect("truncate");
    File::create(path("sparse")).and_then(|f| f.set_len(16 * MB)).expect("create a sparse file");
    std::os::unix::fs::symlink("x".repeat(100), path("link")).expect("symlink");
    fs::create_dir(path("directory")).expect("mkdir");
    let size = f.sizes(&[&web])[0];
    assert_eq!(size.apparent, Some(8 * MB + 2 * MB + 3 * MB + 1 + 16 * MB));
    // Cutting a file in the middle of a block rewrites the block or doesn't.
    let cut = if f.setup == Setup::Memory || size.charged > 8 * MB + 2 * BLOCK { BLOCK } else { 0 };
    let removed = (4 * MB).div_ceil(BLOCK) - (3 * MB + 1).div_ceil(BLOCK);
    assert_charged(f, size.charged, f.setup.charge(8 * MB, BLOCK + cut, removed * BLOCK));
}

pub(crate) fn what_the_origin_wrote_is_not_charged_to_its_clones(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 2 * MB));
    let web = f.container(&image, "web");
    write_random(&web.root().join("first"), 4 * MB);
    let twin = f.container(&web, "twin");
    write_random(&twin.root().join("second"), MB);
    let size = f.sizes(&[&twin])[0];
    assert_charged(f, size.charged, MB);
    assert_eq!(size.apparent, Some(MB));
    // What is written at the origin later neither.
    write_random(&web.root().join("third"), 3 * MB);
    assert_charged(f, f.charged(&twin), MB);
}

pub(crate) fn a_group_is_charged_together(f: &Fixture) {
    if f.setup.method() != SizeMethod::SimpleQuota {
        // Elsewhere a number is of one tree, and groups are nothing or only carry limits.
        let tree = f.created("tree");
        write_random(&tree.root().join("data"), MB);
        assert_charged(f, f.charged(&tree), MB);
        return;
    }
    let image = f.image("image", |root| write_random(&root.join("data"), 5 * MB));
    let live = f.reclaim(&[&image]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    let charged = f.charged(&image);
    assert!((5 * MB..5 * MB + 2 * f.setup.overhead()).contains(&charged), "the layer's group holds {charged} bytes");
}

pub(crate) fn what_a_clone_keeps_does_not_come_back(f: &Fixture) {
    let live = |tree: &Tree| tree.group().into_iter().collect();
    // The tree it was made in is removed, and perhaps not cleaned up yet.
    let image = f.image("image", |root| write_random(&root.join("data"), 5 * MB));
    f.backend.sync().expect("sync");
    let pending: u64 = f.backend.leftovers(&live(&image)).expect("leftovers").iter().map(|left| left.charged).sum();
    // But for inodes and directories of its own.
    assert!(pending < MB, "{pending} bytes are to come back");
}

pub(crate) fn measuring_needs_trees(f: &Fixture) {
    let (there, gone) = (f.created("there"), f.tree("gone"));
    let want = Want { sync: false, apparent: true };
    f.refused(Kind::NotFound, gone.place(), || f.backend.measure(&[&there, &gone], want).map(drop));
}

pub(crate) fn space_moves_and_comes_back(f: &Fixture) {
    let tree = f.created("tree");
    f.backend.sync().expect("sync");
    let before = f.backend.space().expect("space");
    assert!(before.used <= before.total && before.available <= before.total, "{before:?}");
    let written = or_emulated(50, 10) * MB;
    write_random(&tree.root().join("data"), written);
    f.backend.sync().expect("sync");
    let full = f.backend.space().expect("space");
    let grown = full.used.saturating_sub(before.used);
    assert!((written..written + MB).contains(&grown), "{written} bytes took {grown}");
    assert_eq!(full.total, before.total);
    f.backend.destroy(&tree).expect("destroy");
    f.reclaim(&[]);
    let after = f.backend.space().expect("space");
    assert!(after.used < before.used + MB, "used {} before, {} after", before.used, after.used);
}

pub(crate) fn reclaim_leaves_nothing(f: &Fixture) {
    let groups_before = f.kernel_groups();
    let image = f.image("image", |root| write_random(&root.join("data"), 2 * MB));
    let trees: Vec<Tree> = (0..5).map(|n| f.container(&image, &format!("web-{n}"))).collect();
    let write = |root: &Path| write_random(&root.join("own"), MB);
    trees.iter().for_each(|tree| write(&tree.root()));
    f.backend.sync().expect("sync");
    trees[1..].iter().for_each(|tree| f.backend.destroy(tree).expect("destroy"));
    let live = f.reclaim(&[&image, &trees[0]]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    assert_charged(f, f.charged(&trees[0]), MB);
    if f.setup.limits() {
        assert!(f.kernel_groups().len() <= groups_before.len() + 2, "{:?}", f.kernel_groups());
    }
    f.backend.destroy(&trees[0]).expect("destroy");
    f.backend.destroy(&image).expect("destroy");
    let live = f.reclaim(&[]);
    assert_eq!(live, BTreeSet::new());
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    assert_eq!(f.kernel_groups(), groups_before);
    assert_eq!(f.backend.highest_group().expect("highest group"), None);
}
