//! The commands.

use std::fs;
use std::process::Stdio;

use crate::ending::{MOST_STEPS, each, say, verb};
use crate::support::image::{Packing, TestImage};
use crate::support::{arg, reflinkd_command, run};
use crate::world::{Ground, World, base_image, small_image};

on_btrfs_and_xfs! {
    making
    containers
    copies_of_containers
    snapshots
    images
    loads
    layers_of_containers
    the_store_itself
}

/// Making a store where none is.
fn the_store_itself(ground: Ground) {
    let world = World::on(ground);
    let names = world.files.path().join("steps");
    for step in 1..MOST_STEPS {
        let mut command = reflinkd_command(world.root(), &["init"]);
        command.env("REFLINKD_STOP_BEFORE", step.to_string()).env("REFLINKD_STEPS", &names);
        let ended = command.stdin(Stdio::null()).output().expect("run the built reflinkd").status;
        world.ok(&["init"]);
        world.load(&base_image());
        world.ok(&["create", "--image", "base", "web"]);
        world.ok(&["rm", "web"]);
        world.ok(&["rmi", "base"]);
        assert_eq!((world.places(), world.all_trees().len()), (0, 0), "before step {step}");
        world.check_root();
        // And unmaking it.
        let mut command = reflinkd_command(world.root(), &["destroy", "--yes"]);
        command.env("REFLINKD_STOP_BEFORE", step.to_string());
        let destroyed = command.stdin(Stdio::null()).output().expect("run the built reflinkd").status;
        if !destroyed.success() {
            world.ok(&["destroy", "--yes"]);
        }
        assert!(!world.root().join("store.json").exists(), "before step {step}");
        if ended.success() && destroyed.success() {
            say(&format!("{} steps of init, and those of destroy, on {ground:?}", step - 1));
            assert!(step > 5, "init has steps");
            return;
        }
    }
    panic!("init has no end");
}

fn making(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    each(
        &world,
        &[
            verb(&["create", "--image", "base", "web"]).after(&["rm", "web"]),
            verb(&["create", "--image", "base", "--read-only", "web"]).after(&["rm", "web"]),
        ],
    );
}

fn containers(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    let file = arg(&file).to_string();
    let create = ["create", "--image", "base", "web"];
    each(
        &world,
        &[
            verb(&["rm", "web"]).before(&create).after(&["rm", "web"]),
            verb(&["rename", "web", "www"]).before(&create).after(&["rm", "web"]).after(&["rm", "www"]),
            verb(&["reset", "web"]).before(&create).before(&["cp", &file, "web:/mine"]).after(&["rm", "web"]),
        ],
    );
}

fn copies_of_containers(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    world.ok(&["snapshot", "other", "first"]);
    each(
        &world,
        &[
            verb(&["clone", "other", "web"]).after(&["rm", "web"]),
            verb(&["clone", "other@first", "web"]).after(&["rm", "web"]),
        ],
    );
}

// A rollback that is cut short may have kept the snapshot once more, by the name that what it replaces would have got.
fn snapshots(ground: Ground) {
    let world = World::on(ground).with_base();
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    let (file, create) = (arg(&file).to_string(), ["create", "--image", "base", "web"]);
    let (keep, change) = (["snapshot", "web", "s"], ["cp", &file, "web:/mine"]);
    each(
        &world,
        &[
            verb(&keep).before(&create).after(&["rm", "web"]),
            verb(&["rm", "web@s"]).before(&create).before(&keep).after(&["rm", "web"]),
            verb(&["rollback", "web", "s"])
                .or(|undone| undone.with("web@replaced-1"))
                .before(&create)
                .before(&keep)
                .before(&change)
                .after(&["rm", "web"]),
        ],
    );
}

fn images(ground: Ground) {
    let world = World::on(ground).with_base();
    let archive = world.files.path().join("other.tar");
    TestImage::new("other").files(Packing::Gzip, &[("only", b"in this")]).write_archive(&archive);
    let load = ["load", "-q", "-i", arg(&archive)];
    each(
        &world,
        &[
            verb(&["tag", "base", "second"]).after(&["rmi", "second"]),
            verb(&["rmi", "second"]).before(&["tag", "base", "second"]).after(&["rmi", "second"]),
            verb(&["rmi", "other"]).before(&load).after(&["rmi", "other"]),
        ],
    );
}

fn loads(ground: Ground) {
    let world = World::on(ground).with_base();
    let archive = world.files.path().join("other.tar");
    let image = small_image("other").files(Packing::Gzip, &[("only", b"in this")]);
    image.write_archive(&archive);
    let tar = world.files.path().join("tree.tar");
    run("tar", &["-C", "/etc", "-cf", arg(&tar), "hostname"]);
    each(
        &world,
        &[
            verb(&["load", "-q", "-i", arg(&archive)]).after(&["rmi", "other"]),
            verb(&["import", arg(&tar), "imported"]).after(&["rmi", "imported"]),
        ],
    );
}

fn layers_of_containers(ground: Ground) {
    let world = World::on(ground).with_base();
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    world.ok(&["create", "--image", "base", "web"]);
    world.ok(&["cp", arg(&file), "web:/mine"]);
    each(&world, &[verb(&["commit", "web", "committed"]).after(&["rmi", "committed"])]);
}
