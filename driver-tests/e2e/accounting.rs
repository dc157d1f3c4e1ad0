//! What every byte belongs to: the five-container table, the four operations, `df -v` computed by hand.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{KIB, MB, MIB, QuotaSetup, large_file, or_emulated, run, tree_digest, write_blocks, write_random};
use crate::world::{Ground, World, bytes};

const SLACK: u64 = 128 * KIB;

on_every_ground! {
    five_containers_are_accounted_to_the_byte
    the_four_operations_charge_what_they_change
}
on_btrfs_and_xfs! {
    df_verbose_is_what_one_computes_by_hand
}
on_every_btrfs! {
    subvolumes_made_inside_are_counted_shown_and_removed
}

/// An image of some size, so that 2 % of it is more than a few blocks of metadata.
fn sizable(name: &str, megabytes: u64) -> TestImage {
    let big = crate::support::random_bytes(megabytes * MB);
    TestImage::new(name).tar(Packing::Plain, tar_of(&[("big", &big), ("etc/passwd", b"root:x:0:0::/root:/bin/sh\n")]))
}

/// With clones made ahead where a clone is one of every file, the numbers are the same.
#[test]
fn five_containers_from_spares_are_accounted_to_the_byte() {
    five_containers(&World::xfs(), &create_from_spare);
}

#[test]
fn the_four_operations_charge_what_they_change_in_what_was_a_spare() {
    four_operations(&World::of_size(6144 * MIB, Ground::Xfs), &create_from_spare);
}

fn five_containers_are_accounted_to_the_byte(ground: Ground) {
    five_containers(&World::on(ground), &create);
}

fn the_four_operations_charge_what_they_change(ground: Ground) {
    four_operations(&World::of_size(6144 * MIB, ground), &create);
}

fn create(world: &World, image: &str, name: &str) {
    world.ok(&["create", "--image", image, name]);
}

/// All but the first of an image take over the spare that is made here after each.
fn create_from_spare(world: &World, image: &str, name: &str) {
    let spares = || bytes(&world.row(&["df"], "spares"), "count");
    let there = spares();
    create(world, image, name);
    assert_eq!(spares(), 0, "of {there} spares none is left when {name} is made");
    world.ok(&["tend"]);
    assert_eq!(spares(), 1, "the spare is made again");
}

fn five_containers(world: &World, create: &dyn Fn(&World, &str, &str)) {
    let method = world.ground.size_method();
    world.ok(&["images"]);
    let before = world.used();
    // Of which the first container writes one, the second two.
    let part = or_emulated(10, 5) * MB;
    world.load(&sizable("nginx", part * 6 / MB));
    let image = bytes(&world.rows(&["images"])[0], "size");
    for n in 1..=5 {
        create(world, "nginx", &format!("web{n}"));
    }
    for row in world.rows(&["ps", "-s"]) {
        assert_eq!((bytes(&row, "size"), bytes(&row, "virtual_size")), (0, image), "{method}: untouched {row}");
    }
    assert!(world.ok(&["ps", "-s"]).lines().skip(1).all(|line| line.contains(" 0B ")), "{method}: untouched is 0B");
    for n in 1..=5_u64 {
        write_random(&world.tree(&format!("web{n}")).join("test.log"), n * part);
    }
    for n in 1..=5_u64 {
        let row = world.row(&["ps", "-s"], &format!("web{n}"));
        let (size, written) = (bytes(&row, "size"), n * part);
        assert!((written..=written + SLACK).contains(&size), "{method}: web{n} wrote {written}, charged {size}");
        assert_eq!(bytes(&row, "virtual_size"), image + size, "{method}");
        assert_eq!(bytes(&row, "apparent_size"), written, "{method}");
        assert_eq!(row["size_method"], method);
        assert_eq!(row["stale"], false);
    }
    let total = bytes(&world.row(&["df"], "total"), "size");
    let grown = world.used() - before;
    let expected = image + 15 * part;
    assert!(total.abs_diff(grown) * 50 <= grown, "{method}: df says {total}, the filesystem grew by {grown}");
    assert!(total.abs_diff(expected) * 50 <= expected, "{method}: df says {total}, by hand it is {expected}");
    world.ok(&["rm", "web1", "web2", "web3", "web4", "web5"]);
    world.ok(&["gc"]);
    let left = bytes(&world.row(&["df"], "total"), "size");
    assert!(left.abs_diff(image) * 50 <= image, "{method}: after rm df says {left}, the image is {image}");
    let grown = world.used() - before;
    assert!(grown.abs_diff(image) * 50 <= image + 10 * MIB, "{method}: after rm {grown} of {image} are used");
}

fn four_operations(world: &World, create: &dyn Fn(&World, &str, &str)) {
    let ground = world.ground;
    let (method, large) = (ground.size_method(), large_file());
    let file = world.files.path().join("big");
    write_blocks(&file, large / 4096);
    let archive = world.files.path().join("root.tar");
    run("tar", &["-C", world.files.path().to_str().expect("UTF-8"), "-cf", archive.to_str().expect("UTF-8"), "big"]);
    fs::remove_file(&file).expect("unlink");
    world.ok(&["import", archive.to_str().expect("UTF-8"), "big"]);
    fs::remove_file(&archive).expect("unlink");
    for name in ["a", "b"] {
        create(world, "big", name);
    }
    let (a, b) = (world.tree("a"), world.tree("b"));
    // A mount with access times would charge what reading writes.
    world.fs.no_access_times();
    let sibling = tree_digest(&b);
    let size = |name: &str| bytes(&world.row(&["ps", "-s"], name), "size");

    // read: charges nothing, copies nothing
    assert_eq!(tree_digest(&a), sibling, "{method}");
    assert_eq!(size("a"), 0, "{method}: reading charges nothing");

    // modify one block of a large image file: only the block is charged
    let opened = OpenOptions::new().write(true).open(a.join("big")).expect("open");
    opened.write_all_at(&[0xa5; 4096], large / 2).expect("write");
    drop(opened);
    let charged = size("a");
    let block = if ground.charges_overwriting() { 4096 } else { 0 };
    assert!((block..=block + SLACK).contains(&charged), "{method}: one block charged {charged}");
    assert_eq!(tree_digest(&b), sibling, "{method}: the sibling is unchanged");
    create(world, "big", "c");
    assert_eq!(tree_digest(&world.tree("c")), sibling, "{method}: the image is unchanged");

    // add: only this container has it
    write_random(&a.join("added"), 5 * MB);
    let grown = size("a") - charged;
    assert!((5 * MB..=5 * MB + SLACK).contains(&grown), "{method}: adding 5 MB charged {grown}");
    assert!(!b.join("added").exists());
    assert_eq!((size("b"), size("c")), (0, 0), "{method}");

    // delete: gone here, image intact
    fs::remove_file(a.join("big")).expect("unlink");
    assert!(!a.join("big").exists());
    assert_eq!(tree_digest(&b), sibling, "{method}");
    assert_eq!(fs::metadata(b.join("big")).expect("stat").size(), large);
}

fn df_verbose_is_what_one_computes_by_hand(ground: Ground) {
    let world = World::on(ground);
    let base = tar_of(&[("base", &crate::support::random_bytes(20 * MB))]);
    let image = |name: &str, megabytes: u64| {
        let own = crate::support::random_bytes(megabytes * MB);
        TestImage::new(name).tar(Packing::Gzip, base.clone()).tar(Packing::Plain, tar_of(&[(name, &own)]))
    };
    let (one, two) = (image("one", 5), image("two", 8));
    world.load(&one);
    world.load(&two);
    for (name, image) in [("c1", "one"), ("c2", "one"), ("c3", "two")] {
        world.ok(&["create", "--image", image, name]);
    }
    write_random(&world.tree("c1").join("x"), 3 * MB);
    write_random(&world.tree("c3").join("x"), 4 * MB);

    // Nothing is left of what was made in passing.
    world.ok(&["gc"]);
    let layers = world.rows(&["layers"]);
    assert_eq!(layers.len(), 3, "the base is there once: {layers:#?}");
    let layer = |diff_id: &str| {
        let found = layers.iter().find(|layer| layer["diff_id"] == diff_id).expect("layer");
        bytes(found, "size")
    };
    let (base, own_one, own_two) = (layer(&one.diff_ids()[0]), layer(&one.diff_ids()[1]), layer(&two.diff_ids()[1]));
    for (size, written) in [(base, 20 * MB), (own_one, 5 * MB), (own_two, 8 * MB)] {
        assert!((written..=written + SLACK).contains(&size), "a layer of {written} is charged {size}");
    }

    let rows = world.rows(&["df", "-v"]);
    let row = |kind: &str, name: &str| {
        let found = rows.iter().find(|row| row["type"] == kind && (name.is_empty() || row["name"] == name));
        found.unwrap_or_else(|| panic!("no {kind} {name} in {rows:#?}")).clone()
    };
    for (name, own, containers) in [("one:latest", own_one, 2), ("two:latest", own_two, 1)] {
        let image = row("image", name);
        assert_eq!(bytes(&image, "size"), base + own);
        assert_eq!(bytes(&image, "shared"), base);
        assert_eq!(bytes(&image, "unique"), own);
        assert_eq!(bytes(&image, "containers"), containers);
    }
    let sizes: Vec<u64> = ["c1", "c2", "c3"].iter().map(|name| bytes(&row("container", name), "size")).collect();
    assert!((3 * MB..=3 * MB + SLACK).contains(&sizes[0]));
    assert_eq!(sizes[1], 0);
    assert!((4 * MB..=4 * MB + SLACK).contains(&sizes[2]));
    assert_eq!(bytes(&row("container", "c1"), "virtual_size"), base + own_one + sizes[0]);
    assert_eq!(bytes(&row("container", "c3"), "virtual_size"), base + own_two + sizes[2]);

    let images = row("images", "");
    assert_eq!((bytes(&images, "count"), bytes(&images, "active")), (2, 2));
    assert_eq!(bytes(&images, "size"), base + own_one + own_two);
    assert_eq!(bytes(&images, "reclaimable"), 0);
    assert_eq!(bytes(&row("containers", ""), "size"), sizes.iter().sum::<u64>());
    // Where trees share no inodes, what each takes by itself is a row of its own; and what was removed by the loads.
    let beside = |rows: &dyn Fn(&str) -> serde_json::Value| {
        ["spares", "metadata", "pending"].iter().map(|kind| bytes(&rows(kind), "size")).sum::<u64>()
    };
    let data = base + own_one + own_two + sizes.iter().sum::<u64>();
    assert_eq!(bytes(&row("total", ""), "size"), data + beside(&|kind| row(kind, "")));

    // With two's only container gone, what two has alone could be given back.
    world.ok(&["rm", "c3"]);
    world.ok(&["gc"]);
    assert_eq!(bytes(&world.row(&["df"], "images"), "reclaimable"), own_two);
    world.ok(&["rmi", "two"]);
    world.ok(&["gc"]);
    let rest = bytes(&world.row(&["df"], "total"), "size") - beside(&|kind| world.row(&["df"], kind));
    assert_eq!(rest, base + own_one + sizes[0]);
}

#[test]
fn a_limit_counts_the_containers_writes_and_never_its_image() {
    let world = World::simple();
    world.load(&sizable("big", 100));
    world.ok(&["create", "--image", "big", "--size-limit", "20MB", "c"]);
    let tree = world.tree("c");
    write_random(&tree.join("fits"), 15 * MB);
    let too_much = fs::write(tree.join("more"), crate::support::random_bytes(10 * MB))
        .and_then(|()| fs::File::open(tree.join("more"))?.sync_all());
    assert_eq!(too_much.expect_err("over the limit").raw_os_error(), Some(libc::EDQUOT));
    fs::remove_file(tree.join("more")).expect("unlink works at the limit");

    // Image data overwritten counts; a subvolume made inside doesn't escape.
    run("btrfs", &["subvolume", "create", tree.join("inside").to_str().expect("UTF-8")]);
    let escape = fs::write(tree.join("inside/x"), crate::support::random_bytes(10 * MB))
        .and_then(|()| fs::File::open(tree.join("inside/x"))?.sync_all());
    assert_eq!(escape.expect_err("no escape").raw_os_error(), Some(libc::EDQUOT));

    // Live: raised, then lifted.
    world.ok(&["update", "--size-limit", "60MB", "c"]);
    write_random(&tree.join("inside/y"), 20 * MB);
    world.ok(&["update", "--size-limit", "none", "c"]);
    write_random(&tree.join("z"), 60 * MB);
    assert_eq!(world.row(&["ps"], "c")["size_limit"], serde_json::Value::Null);
    world.ok(&["update", "--size-limit", "200MB", "c"]);
    assert_eq!(bytes(&world.row(&["ps"], "c"), "size_limit"), 200 * MB);
}

#[test]
fn where_nothing_holds_a_limit_it_is_refused() {
    let grounds = [QuotaSetup::None, QuotaSetup::Inconsistent].map(Ground::Btrfs).into_iter().chain([Ground::Xfs]);
    for ground in grounds {
        let world = World::on(ground).with_base();
        let places = world.places();
        let error = world.fails(&["create", "--image", "base", "--size-limit", "10MB", "c"]);
        let way_out = match ground {
            Ground::Btrfs(QuotaSetup::Inconsistent) => "btrfs quota rescan",
            Ground::Btrfs(_) | Ground::Zstd => "reflinkd quota enable --simple",
            Ground::Xfs | Ground::XfsPrjquota => "-o prjquota",
        };
        assert!(error.contains("cannot create container c: "), "{error}");
        assert!(error.split("hint: ").nth(1).is_some_and(|hint| hint.contains(way_out)), "{error}");
        assert_eq!(world.places(), places, "nothing is left behind");
        world.ok(&["create", "--image", "base", "c"]);
        let error = world.fails(&["update", "--size-limit", "10MB", "c"]);
        assert!(error.contains("cannot limit container c to 10000000 bytes: ") && error.contains(way_out), "{error}");
        world.ok(&["update", "--size-limit", "none", "c"]);
        assert_eq!(world.row(&["ps"], "c")["size_limit"], serde_json::Value::Null);
    }
}

#[test]
fn a_limit_that_holds_in_part_is_said_to() {
    let world = World::on(Ground::Btrfs(QuotaSetup::Full)).with_base();
    let answer = world.ask(&["create", "--image", "base", "--size-limit", "20MB", "c"]);
    assert_eq!(answer.status, Some(0));
    assert!(answer.stderr.contains("warning: ") && answer.stderr.contains("subvolumes"), "{}", answer.stderr);
    let tree = world.tree("c");
    write_random(&tree.join("fits"), 10 * MB);
    let too_much = fs::write(tree.join("more"), crate::support::random_bytes(20 * MB))
        .and_then(|()| fs::File::open(tree.join("more"))?.sync_all());
    assert_eq!(too_much.expect_err("over the limit").raw_os_error(), Some(libc::EDQUOT));
}

/// What is charged is what is on disk, whatever reading it gives.
#[test]
fn what_compresses_is_charged_compressed() {
    let world = World::on(Ground::Zstd);
    let text = |megabytes: u64| "all work and no play\n".repeat(usize::try_from(megabytes * MB / 21).expect("small"));
    let layer = tar_of(&[("text", text(20).as_bytes())]);
    world.load(&TestImage::new("text").tar(Packing::Plain, layer));
    let image = bytes(&world.rows(&["images"])[0], "size");
    world.ok(&["create", "--image", "text", "c"]);
    let tree = world.tree("c");
    let size = || bytes(&world.row(&["ps", "-s"], "c"), "size");
    assert_eq!(size(), 0);

    let before = world.used();
    fs::write(tree.join("log"), text(30)).expect("write");
    let (charged, grown) = (size(), world.used() - before);
    assert!((1..3 * MB).contains(&charged), "30 MB that compress were charged {charged}");
    assert!(charged.abs_diff(grown) <= SLACK, "charged {charged}, the filesystem grew by {grown}");
    assert_eq!(bytes(&world.row(&["ps", "-s"], "c"), "apparent_size"), text(30).len() as u64);

    // One block of a compressed extent of the image: the new one is charged, what it hides isn't.
    let opened = OpenOptions::new().write(true).open(tree.join("text")).expect("open");
    opened.write_all_at(&[b'x'; 4096], 10 * MIB).expect("write");
    drop(opened);
    let block = size() - charged;
    assert!((1..=4096).contains(&block), "one block was charged {block}");
    let mut expected = text(20).into_bytes();
    expected[10 << 20..(10 << 20) + 4096].fill(b'x');
    assert!(fs::read(tree.join("text")).expect("read") == expected, "the file is what was written");
    world.ok(&["rm", "c"]);
    world.ok(&["gc"]);
    let left = world.used();
    assert!(left.abs_diff(before) <= SLACK, "{before} were used before, {left} after");
    assert_eq!(bytes(&world.rows(&["images"])[0], "size"), image);
}

fn subvolumes_made_inside_are_counted_shown_and_removed(ground: Ground) {
    let method = ground.size_method();
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let tree = world.tree("c");
    for path in ["sub", "sub/deeper"] {
        run("btrfs", &["subvolume", "create", tree.join(path).to_str().expect("UTF-8")]);
    }
    write_random(&tree.join("sub/deeper/x"), 5 * MB);
    let row = world.row(&["ps", "-s"], "c");
    assert!((5 * MB..=5 * MB + SLACK).contains(&bytes(&row, "size")), "{method}: {row}");
    assert_eq!(bytes(&row, "apparent_size"), 5 * MB, "{method}");
    let shown: serde_json::Value = serde_json::from_str(&world.ok(&["inspect", "c"])).expect("JSON");
    assert_eq!(shown[0]["subvolumes"], serde_json::json!(["sub", "sub/deeper"]), "{method}");
    run("chattr", &["+i", tree.join("sub/deeper").to_str().expect("UTF-8")]);
    run("btrfs", &["property", "set", tree.join("sub").to_str().expect("UTF-8"), "ro", "true"]);
    world.ok(&["rm", "c"]);
    assert!(!tree.exists());
    assert!(!world.all_trees().iter().any(|path| path.contains("sub")), "{:?}", world.all_trees());
}
