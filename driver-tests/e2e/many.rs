//! Many processes at once.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use crate::support::image::{Packing, TestImage};
use crate::support::{MB, Process, random_bytes, reflinkd_command};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    eight_processes_lose_and_leak_nothing
    one_name_is_given_once
    an_image_loaded_by_eight_at_once_is_unpacked_once
    creating_and_removing_an_image_race_without_harm
    relatives_come_and_go_under_everyones_eyes
}

fn eight_processes_lose_and_leak_nothing(ground: Ground) {
    let world = World::on(ground).with_base();
    let (root, rounds) = (world.root(), ground.many(200));
    std::thread::scope(|scope| {
        for worker in 0..8 {
            scope.spawn(move || {
                for n in 0..rounds {
                    let name = format!("w{worker}-{n}");
                    let run = |args: &[&str]| {
                        let output = reflinkd_command(root, args).stdin(Stdio::null()).output().expect("run");
                        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
                    };
                    run(&["create", "--image", "base", &name]);
                    // Every tenth stays.
                    if n % 10 != 0 {
                        run(&["rm", &name]);
                    }
                }
            });
        }
    });
    let left = 8 * rounds / 10;
    assert_eq!(world.rows(&["ps"]).len(), left);
    assert_eq!((world.places(), world.all_trees().len()), (left + 2, left + 2));
    let named: Vec<_> =
        world.rows(&["ps"]).iter().map(|row| row["name"].as_str().expect("text").to_string()).collect();
    world.ok(&["rm"].into_iter().chain(named.iter().map(String::as_str)).collect::<Vec<_>>());
    world.ok(&["rmi", "base"]);
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
    assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    assert_eq!(world.remains(), [""; 0]);
}

fn one_name_is_given_once(ground: Ground) {
    let world = World::on(ground).with_base();
    let mut racers: Vec<_> = (0..8)
        .map(|_| {
            let mut command = reflinkd_command(world.root(), &["create", "--image", "base", "one"]);
            Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        })
        .collect();
    let won = racers
        .iter_mut()
        .filter_map(|racer| racer.child().wait().ok())
        .filter(std::process::ExitStatus::success)
        .count();
    assert_eq!(won, 1);
    assert_eq!((world.rows(&["ps"]).len(), world.places()), (1, 3));
}

fn an_image_loaded_by_eight_at_once_is_unpacked_once(ground: Ground) {
    let world = World::on(ground);
    world.ok(&["images"]);
    let image = TestImage::new("shared")
        .files(Packing::Gzip, &[("a", &random_bytes(20 * MB))])
        .files(Packing::Gzip, &[("b", &random_bytes(20 * MB))]);
    let path = world.files.path().join("image.tar");
    image.write_archive(&path);
    let mut loads: Vec<_> = (0..8)
        .map(|_| {
            let mut command = reflinkd_command(world.root(), &["load", path.to_str().expect("UTF-8")]);
            Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()))
        })
        .collect();
    let mut unpacked = 0;
    for load in &mut loads {
        let mut said = String::new();
        let stderr = load.child().stderr.as_mut().expect("piped");
        std::io::Read::read_to_string(stderr, &mut said).expect("read");
        assert!(load.child().wait().expect("wait").success(), "{said}");
        unpacked += said.lines().filter(|line| line.ends_with("Load complete")).count();
    }
    assert_eq!(unpacked, 2, "each layer by one of them");
    assert_eq!((world.rows(&["images"]).len(), world.places()), (1, 2));
    let total = bytes(&world.row(&["df"], "total"), "size");
    assert!(total < 41 * MB, "{total}");
}

fn creating_and_removing_an_image_race_without_harm(ground: Ground) {
    let world = World::on(ground);
    for round in 0..20 {
        world.load(&TestImage::new("racy").files(Packing::Plain, &[("x", format!("{round}").as_bytes())]));
        let spawn = |args: &[&str]| {
            let mut command = reflinkd_command(world.root(), args);
            Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
        };
        let (mut create, mut remove) = (spawn(&["create", "--image", "racy", "c"]), spawn(&["rmi", "racy"]));
        let created = create.child().wait().expect("wait").success();
        remove.child().wait().expect("wait");
        if created {
            assert_eq!(std::fs::read_to_string(world.tree("c").join("x")).expect("whole"), format!("{round}"));
            world.ok(&["rm", "c"]);
        }
        world.ask(&["rmi", "racy"]);
        world.ok(&["gc"]);
        assert_eq!(world.places(), 0, "round {round}");
    }
}

/// Containers, their snapshots, clones and commits are made and removed by some, while others ask what there is. Those who
/// change something may find that another was sooner; those who ask are answered.
fn relatives_come_and_go_under_everyones_eyes(ground: Ground) {
    const SOONER: [&str; 8] = [
        "is taken",
        "already",
        "another reflinkd is working on it",
        "it is gone",
        "there is no container",
        "there is no image",
        "has no snapshot",
        // Another reflinkd, which is measuring it, say.
        "has a file open there",
    ];
    // Names that no ID begins with.
    const CHANGES: [&[&str]; 16] = [
        &["create", "--image", "base", "x"],
        &["snapshot", "x", "s"],
        &["clone", "x", "y"],
        &["snapshot", "y"],
        &["rollback", "x", "s"],
        &["commit", "y", "img"],
        &["clone", "x@s", "z"],
        &["snapshot", "--keep", "last=1", "y"],
        &["rm", "x@s"],
        &["commit", "z", "img"],
        &["rollback", "--discard", "x", "replaced-1"],
        &["rename", "z", "y"],
        &["rm", "y"],
        &["rmi", "img"],
        &["rm", "z"],
        &["rm", "x"],
    ];
    const ASKS: [&[&str]; 4] = [&["ps", "-s"], &["df", "-v"], &["snapshots", "-s"], &["gc", "-n"]];
    let world = World::on(ground).with_base();
    let root = world.root();
    let answer = |args: &[&str]| {
        let output = reflinkd_command(root, args).stdin(Stdio::null()).output().expect("run");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    std::thread::scope(|scope| {
        for worker in 0..6 {
            scope.spawn(move || {
                for n in 0..32 {
                    // Each in an order of its own: the steps are coprime to the number of verbs.
                    let (done, error) = answer(CHANGES[(worker + n * (2 * worker + 1)) % CHANGES.len()]);
                    assert!(done || SOONER.iter().any(|sooner| error.contains(sooner)), "{error}");
                    if let Some(tree) = reflinkd_tree(root, "x") {
                        // It may be removed at any moment.
                        let _ = std::fs::write(tree.join(format!("file{n}")), random_bytes(20_000));
                    }
                }
            });
        }
        for asker in 0..2 {
            scope.spawn(move || {
                for n in 0..32 {
                    let asked = ASKS[(asker + n) % ASKS.len()];
                    let (done, error) = answer(asked);
                    assert!(done, "{asked:?}: {error}");
                }
            });
        }
    });
    let containers: Vec<_> = world.rows(&["ps"]).iter().map(|row| row["name"].to_string().replace('"', "")).collect();
    for row in world.rows(&["snapshots"]) {
        let name = row["name"].as_str().expect("text");
        assert!(containers.iter().any(|container| name.starts_with(&format!("{container}@"))), "{name}: whose?");
    }
    for name in &containers {
        world.ok(&["rm", name]);
    }
    for image in world.rows(&["images"]) {
        world.ok(&["rmi", "-f", image["id"].as_str().expect("text")]);
    }
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
    assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    assert_eq!(world.remains(), [""; 0]);
}

/// Where a container is, if there is one.
fn reflinkd_tree(root: &Path, name: &str) -> Option<PathBuf> {
    let output = reflinkd_command(root, &["mount", name]).stdin(Stdio::null()).output().expect("run");
    let path = String::from_utf8(output.stdout).expect("UTF-8");
    output.status.success().then(|| PathBuf::from(path.trim_end()))
}
