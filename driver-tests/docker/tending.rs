//! What serve does in the background, and who has to wait for its end.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::serve::{RunDir, Serve, eventually};
use crate::support::image::tar_of;
use crate::world::{Ground, World, base_image};

on_btrfs_and_xfs! {
    what_removed_trees_leave_goes_by_itself
    nothing_is_tended_that_is_not_to_be
}

fn tending(world: &World, run: &RunDir) -> Serve {
    let socket = run.path().join("docker.sock");
    let mut command = Serve::command(world, &socket);
    command.env_remove("REFLINKD_NO_TEND");
    let mut serve = Serve::launch(command, &socket);
    serve.wait_until_it_answers();
    serve
}

/// Containers that are made and removed.
fn come_and_go(serve: &Serve) {
    serve.layer("layer", "", &tar_of(&[("f", &vec![1; 100_000])]));
    for n in 0..4 {
        let id = format!("rw{n}");
        serve.create_rw(&id, "layer");
        fs::write(serve.get(&id).join("new"), vec![2; 100_000]).expect("write");
    }
    for n in 0..4 {
        serve.remove(&format!("rw{n}"));
    }
    serve.remove("layer");
}

/// The nice values of the process, and of its thread that tends.
fn niceness(serve: &Serve) -> Option<(i32, i32)> {
    // The 19th field; the second, in brackets, is the name.
    let nice = |stat: &str| stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok();
    let process = fs::read_to_string(format!("/proc/{}/stat", serve.pid())).expect("it runs");
    let tasks = fs::read_dir(format!("/proc/{}/task", serve.pid())).expect("it runs");
    let stats = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("stat")).ok());
    let tender = stats.into_iter().find(|stat| stat.contains("(tend)"))?;
    Some((nice(&process)?, nice(&tender)?))
}

fn what_removed_trees_leave_goes_by_itself(ground: Ground) {
    let world = World::on(ground);
    let run = RunDir::new();
    let serve = tending(&world, &run);
    eventually("its thread is nicer than others", || {
        niceness(&serve).is_some_and(|(process, tender)| tender == (process + 10).min(19))
    });
    come_and_go(&serve);
    eventually("groups or directories of removed trees are gone", || world.remains().is_empty());
    // Again, after it has slept.
    come_and_go(&serve);
    eventually("groups or directories of removed trees are gone", || world.remains().is_empty());
    if ground == Ground::Xfs {
        // Others' work is found, too.
        world.load(&base_image());
        world.ok(&["create", "--image", "base", "named"]);
        let places = world.places();
        serve.create_rw("rw", "");
        eventually("a spare is made", || world.places() == places + 2);
    }
    // With another process at it, too.
    for n in 0..3 {
        serve.create_rw(&format!("again{n}"), "");
        serve.remove(&format!("again{n}"));
        world.ok(&["tend"]);
    }
    eventually("groups or directories of removed trees are gone", || world.remains().is_empty());
}

fn nothing_is_tended_that_is_not_to_be(ground: Ground) {
    let world = World::on(ground);
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let config = world.files.path().join("config.toml");
    fs::write(&config, "tend = false\n").expect("write");
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflinkd"));
    command.arg("--root").arg(world.root()).arg("--config").arg(&config).args(["serve", "--docker"]).arg(&socket);
    let mut serve = Serve::launch(command, &socket);
    serve.wait_until_it_answers();
    come_and_go(&serve);
    let left = world.remains();
    assert!(!left.is_empty());
    // Longer than it gathers what is to be done.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(world.remains(), left);
    serve.stop();
}

#[test]
fn a_store_that_is_served_is_not_destroyed() {
    let world = World::simple();
    let run = RunDir::new();
    let mut serve = tending(&world, &run);
    serve.layer("layer", "", &tar_of(&[("f", b"x")]));
    let error = world.fails(&["destroy", "--yes"]);
    assert!(error.contains("another reflinkd is working in it"), "{error}");
    assert!(error.contains("hint: stop reflinkd serve first"), "{error}");
    assert!(serve.get("layer").join("f").exists(), "it is whole");
    serve.stop();
    world.ok(&["destroy", "--yes"]);
    assert!(!world.root().exists());
}
