//! The verbs, by what they need.

use std::fs;

use super::inventory::Inventory;
use super::{Verb, ok, owned, verb};
use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{arg, run};
use crate::world::{Ground, World, small_image};

/// A world, and what is to be done in it.
pub(crate) type Table = (World, Vec<Verb>);

pub(crate) fn making(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    let verbs = vec![
        verb(&["create", "--image", "base", "web"]).after(&["rm", "web"]),
        verb(&["create", "--image", "base", "--read-only", "web"]).after(&["rm", "web"]),
    ];
    (world, verbs)
}

pub(crate) fn containers(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    let file = arg(&file).to_string();
    let create = ["create", "--image", "base", "web"];
    let mut verbs = vec![
        verb(&["rm", "web"]).before(&create).after(&["rm", "web"]),
        verb(&["rename", "web", "www"]).before(&create).after(&["rm", "web"]).after(&["rm", "www"]),
        verb(&["reset", "web"]).before(&create).before(&["cp", &file, "web:/mine"]).after(&["rm", "web"]),
    ];
    if ground.holds_limits() {
        let limited = [&create[..3], &["--size-limit", "50MB", "web"]].concat();
        verbs.push(verb(&["update", "--size-limit", "70MB", "web"]).before(&limited).after(&["rm", "web"]));
        verbs.push(verb(&["update", "--size-limit", "none", "web"]).before(&limited).after(&["rm", "web"]));
    }
    (world, verbs)
}

pub(crate) fn copies_of_containers(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "other"]);
    world.ok(&["snapshot", "other", "first"]);
    let verbs = vec![
        verb(&["clone", "other", "web"]).after(&["rm", "web"]),
        verb(&["clone", "other@first", "web"]).after(&["rm", "web"]),
    ];
    (world, verbs)
}

// A rollback that is cut short may have kept the snapshot once more, by the name that what it replaces would have got.
pub(crate) fn snapshots(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    let (file, create) = (arg(&file).to_string(), ["create", "--image", "base", "web"]);
    let (keep, change) = (["snapshot", "web", "s"], ["cp", &file, "web:/mine"]);
    let verbs = vec![
        verb(&keep).before(&create).after(&["rm", "web"]),
        verb(&["rm", "web@s"]).before(&create).before(&keep).after(&["rm", "web"]),
        verb(&["rollback", "web", "s"])
            .or(|undone| undone.with("web@replaced-1"))
            .before(&create)
            .before(&keep)
            .before(&change)
            .after(&["rm", "web"]),
    ];
    (world, verbs)
}

pub(crate) fn images(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    let archive = world.files.path().join("other.tar");
    TestImage::new("other").files(Packing::Gzip, &[("only", b"in this")]).write_archive(&archive);
    let load = ["load", "-q", "-i", arg(&archive)];
    let verbs = vec![
        verb(&["tag", "base", "second"]).after(&["rmi", "second"]),
        verb(&["tag", "base", "second"])
            .before(&load)
            .before(&["tag", "other", "second"])
            .after(&["rmi", "second"])
            .after(&["rmi", "other"]),
        verb(&["rmi", "second"]).before(&["tag", "base", "second"]).after(&["rmi", "second"]),
        verb(&["rmi", "other"]).before(&load).after(&["rmi", "other"]),
    ];
    (world, verbs)
}

pub(crate) fn loads(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    let archive = world.files.path().join("other.tar");
    let image = small_image("other").files(Packing::Gzip, &[("only", b"in this")]);
    image.write_archive(&archive);
    let tar = world.files.path().join("tree.tar");
    run("tar", &["-C", "/etc", "-cf", arg(&tar), "hostname"]);
    let verbs = vec![
        verb(&["load", "-q", "-i", arg(&archive)]).after(&["rmi", "other"]),
        verb(&["import", arg(&tar), "imported"]).after(&["rmi", "imported"]),
    ];
    (world, verbs)
}

pub(crate) fn layers_of_containers(ground: Ground) -> Table {
    let world = World::on(ground).with_base();
    let file = world.files.path().join("file");
    fs::write(&file, "mine").expect("write");
    world.ok(&["create", "--image", "base", "web"]);
    world.ok(&["cp", arg(&file), "web:/mine"]);
    let verbs = vec![verb(&["commit", "web", "committed"]).after(&["rmi", "committed"])];
    (world, verbs)
}

/// A world with the tars of two layers.
fn with_tars(ground: Ground) -> (World, [String; 2]) {
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

pub(crate) fn dockers_layers(ground: Ground) -> Table {
    let (world, [one, two]) = with_tars(ground);
    ok(&world, &owned(&["docker", "reserve", "layer1"]));
    ok(&world, &owned(&["docker", "apply", "layer1", &one]));
    let second = ["docker", "reserve", "layer2", "layer1"];
    let begun = ["docker", "prepare", "layer2", "layer1"];
    let gone = ["docker", "remove", "layer2"];
    let apply = ["docker", "apply", "layer2", &two, "layer1"];
    let verbs = vec![
        verb(&second).or_after_a_cut(|undone| undone).after(&gone),
        verb(&apply).or(forgotten).before(&second).after(&gone),
        verb(&apply).before(&begun).after(&gone),
        verb(&gone).before(&second).before(&apply).after(&gone),
    ];
    (world, verbs)
}

/// That the init layer became the container isn't synced: whoever asks for the container gets it (decision 011).
fn still_init(undone: Inventory) -> Inventory {
    undone.renamed(("docker web", "\"web-init\""), ("docker web-init", "\"layer1\""))
}

pub(crate) fn dockers_containers(ground: Ground) -> Table {
    let (world, [one, _]) = with_tars(ground);
    ok(&world, &owned(&["docker", "reserve", "layer1"]));
    ok(&world, &owned(&["docker", "apply", "layer1", &one]));
    let init = ["docker", "prepare", "web-init", "layer1"];
    let web = ["docker", "prepare", "web", "web-init"];
    let on_top = ["docker", "prepare", "top", "web"];
    let (gone, init_gone, top_gone) =
        (["docker", "remove", "web"], ["docker", "remove", "web-init"], ["docker", "remove", "top"]);
    let verbs = vec![
        verb(&init).after(&init_gone),
        verb(&web).or_after_a_cut(|undone| undone).before(&init).after(&gone).after(&init_gone),
        verb(&gone).or_after_a_cut(still_init).before(&init).before(&web).after(&gone).after(&init_gone),
        verb(&init_gone).before(&init).after(&init_gone),
        // What something is based on is sealed first, and stays so.
        verb(&on_top)
            .or(|undone| undone.sealed("docker", "web"))
            .before(&init)
            .before(&web)
            .after(&top_gone)
            .after(&gone)
            .after(&init_gone),
    ];
    (world, verbs)
}

pub(crate) fn containerds_snapshots(ground: Ground) -> Table {
    let (world, [one, two]) = with_tars(ground);
    for verb in [&["prepare", "x"][..], &["apply", "x", &one], &["commit", "x", "base"]] {
        ok(&world, &owned(&[&["containerd"], verb].concat()));
    }
    let prepare = ["containerd", "prepare", "web", "base"];
    let (gone, done_gone) = (["containerd", "remove", "web"], ["containerd", "remove", "done"]);
    let verbs = vec![
        verb(&prepare).after(&gone),
        verb(&["containerd", "view", "look", "base"]).after(&["containerd", "remove", "look"]),
        verb(&["containerd", "apply", "web", &two]).in_place().before(&prepare).after(&gone),
        verb(&["containerd", "commit", "web", "done"]).before(&prepare).after(&gone).after(&done_gone),
        verb(&gone).before(&prepare).after(&gone),
    ];
    (world, verbs)
}
