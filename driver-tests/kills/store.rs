//! Making a store where none is, and unmaking it.

use std::process::Stdio;

use crate::ending::say;
use crate::support::reflinkd_command;
use crate::verbs::MOST_STEPS;
use crate::world::{Ground, World, base_image};

on_btrfs_and_xfs! { the_store_itself }

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
