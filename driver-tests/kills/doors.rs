//! The calls of Docker and containerd.

use std::fs;

use crate::ending::{each, ok, verb};
use crate::inventory::Inventory;
use crate::support::arg;
use crate::support::image::tar_of;
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    dockers_layers
    dockers_containers
    containerds_snapshots
}

/// A world with the tars of two layers.
fn world(ground: Ground) -> (World, [String; 2]) {
    let world = World::on(ground);
    world.ok(&["images"]);
    let tar = |name: &str, entries: &[(&str, &[u8])]| {
        let path = world.files.path().join(name);
        fs::write(&path, tar_of(entries)).expect("write");
        arg(&path).to_string()
    };
    let tars = [
        tar("one", &[("etc/", b""), ("etc/one", b"one\n"), ("etc/old", b"old\n")]),
        tar("two", &[("etc/two", b"two\n"), ("etc/.wh.old", b"")]),
    ];
    (world, tars)
}

/// What is only reserved needn't outlive a reboot: Docker makes a layer again that it has no tree of.
fn forgotten(undone: Inventory) -> Inventory {
    undone.without("docker", "layer2")
}

fn dockers_layers(ground: Ground) {
    let (world, [one, two]) = world(ground);
    let layer = ["docker", "reserve", "layer1"];
    ok(&world, &layer);
    ok(&world, &["docker", "apply", "layer1", &one]);
    let second = ["docker", "reserve", "layer2", "layer1"];
    let gone = ["docker", "remove", "layer2"];
    let apply = ["docker", "apply", "layer2", &two, "layer1"];
    each(
        &world,
        &[
            verb(&second).or_after_a_cut(|undone| undone).after(&gone),
            verb(&apply).or(forgotten).before(&second).after(&gone),
            verb(&gone).before(&second).before(&apply).after(&gone),
        ],
    );
}

/// That the init layer became the container isn't synced: whoever asks for the container gets it (decision 011).
fn still_init(undone: Inventory) -> Inventory {
    undone.renamed(("docker web", "\"web-init\""), ("docker web-init", "\"layer1\""))
}

fn dockers_containers(ground: Ground) {
    let (world, [one, _]) = world(ground);
    ok(&world, &["docker", "reserve", "layer1"]);
    ok(&world, &["docker", "apply", "layer1", &one]);
    let init = ["docker", "prepare", "web-init", "layer1"];
    let web = ["docker", "prepare", "web", "web-init"];
    let (gone, init_gone) = (["docker", "remove", "web"], ["docker", "remove", "web-init"]);
    each(
        &world,
        &[
            verb(&init).after(&init_gone),
            verb(&web).or_after_a_cut(|undone| undone).before(&init).after(&gone).after(&init_gone),
            verb(&gone).or_after_a_cut(still_init).before(&init).before(&web).after(&gone).after(&init_gone),
            verb(&init_gone).before(&init).after(&init_gone),
        ],
    );
}

fn containerds_snapshots(ground: Ground) {
    let (world, [one, two]) = world(ground);
    for verb in [&["prepare", "x"][..], &["apply", "x", &one], &["commit", "x", "base"]] {
        ok(&world, &[&["containerd"], verb].concat());
    }
    let prepare = ["containerd", "prepare", "web", "base"];
    let (gone, done_gone) = (["containerd", "remove", "web"], ["containerd", "remove", "done"]);
    each(
        &world,
        &[
            verb(&prepare).after(&gone),
            verb(&["containerd", "view", "look", "base"]).after(&["containerd", "remove", "look"]),
            verb(&["containerd", "apply", "web", &two]).before(&prepare).after(&gone),
            verb(&["containerd", "commit", "web", "done"]).before(&prepare).after(&gone).after(&done_gone),
            verb(&gone).before(&prepare).after(&gone),
        ],
    );
}
