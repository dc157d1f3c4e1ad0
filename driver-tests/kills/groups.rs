//! `gc` ended while it drops the quota groups that removed trees leave.

use std::fs;
use std::process::Stdio;

use crate::ending::say;
use crate::support::{arg, reflinkd_command, run};
use crate::verbs::MOST_STEPS;
use crate::world::{World, base_image};

/// Of a subvolume whose data another one held longer the kernel keeps the group.
#[test]
fn dropping_groups() {
    let world = World::simple();
    world.load(&base_image());
    world.ok(&["gc"]);
    let before = groups(&world);
    for step in 1..MOST_STEPS {
        world.ok(&["create", "--image", "base", "web"]);
        fs::write(world.tree("web").join("own"), vec![step as u8; 1 << 20]).expect("write");
        world.ok(&["clone", "web", "other"]);
        world.ok(&["rm", "web"]);
        world.ok(&["gc"]);
        world.ok(&["rm", "other"]);
        let mut gc = reflinkd_command(world.root(), &["gc"]);
        gc.env("REFLINKD_STOP_BEFORE", step.to_string());
        let ended = gc.stdin(Stdio::null()).output().expect("run the built reflinkd").status;
        world.ok(&["gc"]);
        assert_eq!(groups(&world), before, "gc, ended before step {step}");
        if ended.success() {
            say(&format!("{} steps of gc, with groups to be dropped", step - 1));
            assert!(step > 3, "gc drops two groups and a member of one");
            return;
        }
    }
    panic!("gc has no end");
}

/// Quota groups of this store, and those that are no subvolume's.
fn groups(world: &World) -> Vec<String> {
    let list = run("btrfs", &["qgroup", "show", arg(world.fs.path())]);
    let is_left = |line: &&str| line.starts_with("1/") || line.ends_with("<stale>");
    list.lines().filter(is_left).map(str::to_string).collect()
}
