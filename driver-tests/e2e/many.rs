//! Many processes at once.

use std::process::Stdio;

use crate::support::image::{Packing, TestImage};
use crate::support::{MB, Process, random_bytes, reflinkd_command};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    eight_processes_lose_and_leak_nothing
    one_name_is_given_once
    an_image_loaded_by_eight_at_once_is_unpacked_once
    creating_and_removing_an_image_race_without_harm
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
