//! Commits: what the image is, what it costs, and what is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};

use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{KIB, MB, fill, random_bytes, run, tree_digest, write_random};
use crate::world::{Appender, Ground, World, assert_begins_as_written, bytes};

const SLACK: u64 = 128 * KIB;

on_every_ground! {
    a_commit_shares_all_its_blocks_and_sizes_stay_true
}
on_btrfs_and_xfs! {
    the_image_has_the_tree_here_and_elsewhere
    whoever_goes_on_writing_changes_nothing
    the_configuration_says_what_was_asked
    what_cannot_be_committed_is_said_and_leaves_nothing
}

fn base_world(ground: Ground) -> World {
    let world = World::on(ground);
    let big = random_bytes(20 * MB);
    let files: &[(&str, &[u8])] =
        &[("big", &big), ("etc/a", b"a"), ("etc/b", b"b"), ("lib/x/y", b"y"), ("bin", b"a file")];
    world.load(&TestImage::new("base").tar(Packing::Plain, tar_of(files)).step("CMD [\"/old\"]"));
    world.ok(&["create", "--image", "base", "c"]);
    world
}

/// Everything that a layer has to tell.
fn change(tree: &Path) {
    fs::write(tree.join("etc/a"), "A").expect("write");
    fs::remove_file(tree.join("etc/b")).expect("unlink");
    fs::rename(tree.join("lib"), tree.join("moved")).expect("mv");
    fs::remove_file(tree.join("bin")).expect("unlink");
    fs::create_dir(tree.join("bin")).expect("mkdir");
    fs::set_permissions(tree.join("bin"), fs::Permissions::from_mode(0o1777)).expect("chmod");
    fs::write(tree.join("bin/new"), "new").expect("write");
    symlink("/etc/passwd", tree.join("bin/link")).expect("symlink");
    fs::hard_link(tree.join("big"), tree.join("bin/big")).expect("link");
    std::os::unix::fs::chown(tree.join("bin/new"), Some(1000), Some(70_000)).expect("chown");
    run("setfattr", &["-n", "user.k", "-v", "v", tree.join("etc").to_str().expect("UTF-8")]);
    run("mknod", &[tree.join("dev").to_str().expect("UTF-8"), "c", "1", "3"]);
}

fn inspect(world: &World, image: &str) -> Value {
    serde_json::from_str::<Value>(&world.ok(&["inspect", "--type", "image", image])).expect("JSON")[0].clone()
}

fn a_commit_shares_all_its_blocks_and_sizes_stay_true(ground: Ground) {
    let method = ground.size_method();
    let world = base_world(ground);
    write_random(&world.tree("c").join("ten"), 10 * MB);
    let (places, before) = (world.places(), world.used());
    world.ok(&["commit", "c", "img:1"]);
    assert_eq!(world.places(), places + 1, "one layer more, and nothing besides");
    let grown = world.used().saturating_sub(before);
    assert!(grown < 2 * MB, "{method}: a commit of 10 MB took {grown} bytes");
    let near = |found: u64, megabytes: u64, what: &str| {
        assert!(found.abs_diff(megabytes * MB) <= SLACK, "{method}, {what}: {found} instead of {megabytes} MB");
    };
    let size = |name: &str| bytes(&world.row(&["ps", "-s"], name), "size");
    near(size("c"), 10, "the container");
    let image = world.row_where(&["images"], "tag", "1");
    near(bytes(&image, "size"), 30, "the image");
    let df = |kind: &str| bytes(&world.row(&["df"], kind), "size");
    near(df("shared"), 10, "what both hold");
    world.ok(&["create", "--image", "img:1", "d"]);
    assert_eq!(size("d"), 0, "{method}: an untouched container of the commit");
    write_random(&world.tree("d").join("one"), MB);
    near(size("d"), 1, "a container of the commit");

    world.ok(&["commit", "d", "img:2"]);
    world.ok(&["rm", "c"]);
    world.ok(&["gc"]);
    near(size("d"), 1, "a container of the commit of what is gone");
    near(bytes(&world.row_where(&["images"], "tag", "1"), "size"), 30, "the image of what is gone");
    near(df("images"), 31, "all layers");
    near(df("shared"), 1, "what d and its commit hold");
    let (total, filesystem) = (df("total"), df("filesystem"));
    // The store itself, and what an empty filesystem has.
    assert!(total <= filesystem && filesystem - total < 80 * MB, "{method}: {total} of {filesystem}");
    world.ok(&["rm", "d"]);
    world.ok(&["rmi", "img:1", "img:2", "base"]);
    world.ok(&["gc"]);
    assert_eq!(world.places(), 0);
    assert!(world.remains().is_empty(), "{:?}", world.remains());
}

fn the_image_has_the_tree_here_and_elsewhere(ground: Ground) {
    let world = base_world(ground);
    change(&world.tree("c"));
    let then = tree_digest(&world.tree("c"));
    world.ok(&["clone", "c", "twin"]);
    world.ok(&["commit", "c", "img"]);
    world.ok(&["create", "--image", "img", "again"]);
    assert_eq!(tree_digest(&world.tree("again")), then, "the image's tree is the container's");
    assert_eq!(world.ok(&["diff", "again"]), "");

    // The same changes make the same layer, which is here already.
    let places = world.places();
    world.ok(&["commit", "twin", "img2"]);
    assert_eq!(world.places(), places, "one layer for both");
    assert_eq!(inspect(&world, "img2")["layers"], inspect(&world, "img")["layers"]);

    // Elsewhere there is nothing but the tar.
    let archive = world.files.path().join("img.tar");
    let archive = archive.to_str().expect("UTF-8");
    world.ok(&["save", "-o", archive, "img"]);
    let other = World::on(ground);
    other.ok(&["load", "-q", archive]);
    other.ok(&["create", "--image", "img", "c"]);
    assert_eq!(tree_digest(&other.tree("c")), then, "what the layer says is the tree, bit for bit");
    assert_eq!(inspect(&other, "img")["id"], inspect(&world, "img")["id"]);
}

fn whoever_goes_on_writing_changes_nothing(ground: Ground) {
    let world = base_world(ground);
    let log = world.tree("c").join("log");
    let writer = Appender::start(&log);
    let before = writer.written();
    world.ok(&["commit", "c", "img"]);
    let layers = world.rows(&["layers"]);
    let layer = layers.iter().find(|layer| layer["images"] == json!(["img:latest"])).expect("the layer");
    let root = Path::new(layer["directory"].as_str().expect("a path"));
    let then = tree_digest(root);
    let length = fs::metadata(root.join("log")).expect("stat").size();
    while fs::metadata(&log).expect("stat").size() <= length {
        std::thread::yield_now();
    }
    assert_eq!(tree_digest(root), then, "the committed tree stays as it was");
    assert_begins_as_written(&fs::read(root.join("log")).expect("read"), before, "the layer");
    // The tree is what its digest was taken of.
    world.ok(&["save", "-o", world.files.path().join("x.tar").to_str().expect("UTF-8"), "img"]);
}

fn the_configuration_says_what_was_asked(ground: Ground) {
    let world = base_world(ground);
    let nothing = world.ok(&["commit", "c", "same"]);
    assert_eq!(
        inspect(&world, "same")["layers"],
        inspect(&world, "base")["layers"],
        "without changes no layer is made"
    );
    assert_eq!(world.rows(&["history", "same"])[0]["layer"], Value::Null);
    change(&world.tree("c"));
    let id = world.ok(&[
        "commit",
        "-m",
        "why",
        "-a",
        "me",
        "-c",
        "CMD [\"/new\"]",
        "--change",
        "ENV A=1 B=2",
        "c",
        "reg.io/x/img:7",
    ]);
    assert_ne!(id, nothing);
    let image = inspect(&world, "reg.io/x/img:7");
    assert_eq!(image["id"], json!(id));
    assert_eq!((&image["config"]["config"]["Cmd"], &image["config"]["author"]), (&json!(["/new"]), &json!("me")));
    assert_eq!(image["config"]["config"]["Env"], json!(["PATH=/bin", "A=1", "B=2"]));
    assert_eq!(image["layers"].as_array().expect("a list").len(), 2);
    let history = world.rows(&["history", "reg.io/x/img:7"]);
    assert_eq!((&history[0]["comment"], &history[0]["created_by"]), (&json!("why"), &json!("reflinkd commit")));
    assert_eq!(history[0]["layer"], image["layers"][1]["diff_id"]);
    // A commit of a snapshot, and without a name.
    world.ok(&["snapshot", "c", "s"]);
    fs::write(world.tree("c").join("later"), "later").expect("write");
    let unnamed = world.ok(&["commit", "c@s"]);
    assert_eq!(inspect(&world, &unnamed)["layers"], image["layers"]);
    world.ok(&["rm", "c"]);
    world.ok(&["rmi", &unnamed]);
}

fn what_cannot_be_committed_is_said_and_leaves_nothing(ground: Ground) {
    let world = base_world(ground);
    world.ok(&["create", "--image", "base", "--read-only", "view"]);
    let tree = world.tree("c");
    let (places, images) = (world.places(), world.rows(&["images"]).len());
    let refused = |args: &[&str], why: &str| {
        let error = world.fails(&[&["commit"], args].concat());
        assert!(error.contains(why), "{args:?}: {error}");
        assert_eq!(world.places(), places, "{args:?} left something: {error}");
        assert_eq!(world.rows(&["images"]).len(), images);
    };
    refused(&["nobody", "img"], "there is no container nobody");
    refused(&["view", "img"], "it is read-only");
    refused(&["c", "UPPER:tag"], "UPPER");
    refused(&["c", &format!("img@sha256:{}", "a".repeat(64))], "has a digest");
    refused(&["-c", "RUN x", "c", "img"], "no such instruction");
    fs::create_dir(tree.join("d")).expect("mkdir");
    fs::write(tree.join("d/.wh.x"), "x").expect("write");
    refused(&["c", "img"], "d/.wh.x");
    fs::remove_file(tree.join("d/.wh.x")).expect("unlink");
    if ground.filesystem() == "btrfs" {
        let inside = tree.join("inside");
        run("btrfs", &["subvolume", "create", inside.to_str().expect("UTF-8")]);
        refused(&["c", "img"], "holds subvolumes of its own: inside");
        run("btrfs", &["subvolume", "delete", inside.to_str().expect("UTF-8")]);
    }
    // What a layer can't hold is left out, and said.
    // Made by mknod(2), as a path that is bound to must be short.
    rustix::fs::mknodat(rustix::fs::CWD, tree.join("socket"), rustix::fs::FileType::Socket, 0o600.into(), 0)
        .expect("mknod");
    let answer = world.ask(&["commit", "c", "img"]);
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    assert!(answer.stderr.contains("warning: left out 1 socket"), "{}", answer.stderr);
}

#[test]
fn a_full_disk_is_said_and_nothing_is_left() {
    let world = World::of_size(256 << 20, Ground::SIMPLE).with_base().with_room_for_metadata();
    world.ok(&["create", "--image", "base", "c"]);
    let tree = world.tree("c");
    for n in 0..20_000 {
        fs::write(tree.join(format!("file-with-a-longish-name-{n}")), n.to_string()).expect("write");
    }
    fill(&tree.join("fill"), 1 << 30);
    let (places, images) = (world.places(), world.rows(&["images"]).len());
    let error = world.fails(&["commit", "c", "img"]);
    assert!(error.contains("No space left"), "{error}");
    assert_eq!((world.places(), world.rows(&["images"]).len()), (places, images));
    fs::remove_file(tree.join("fill")).expect("unlink");
    world.ok(&["gc"]);
    world.ok(&["commit", "c", "img"]);
}
