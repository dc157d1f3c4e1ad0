//! What has to work on any disk: looking at what is there, and giving room back. And making and unmaking a store.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::failing::{ALL, Way, answered, forget, thorough};
use crate::support::{Answer, reflinkd_command};
use crate::verbs::{MOST_STEPS, inventory};
use crate::world::{Ground, World, base_image};

on_btrfs_and_xfs! { who_looks_or_clears_up the_store_itself }

/// Run a command whose `step`th step fails; `None` if it has no such step.
fn failing(world: &World, args: &[&str], step: usize, way: Way) -> Option<(Answer, String)> {
    let names = world.files.path().join("steps");
    fs::write(&names, "").expect("write");
    let mut command = reflinkd_command(world.root(), args);
    command.env("REFLINKD_STEPS", &names).env(way.variable(), step.to_string());
    let output = command.env("REFLINKD_FAIL_WITH", way.errno()).stdin(Stdio::null()).output().expect("run it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let answer = Answer { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) };
    let steps = fs::read_to_string(&names).expect("read");
    let name = steps.lines().nth(step - 1)?;
    Some((answer, format!("{args:?}, {way:?} at step {step} ({name})")))
}

/// In which ways a step fails: all, or another one for each step.
fn ways(step: usize) -> &'static [Way] {
    if thorough() { ALL } else { &ALL[step % ALL.len()..][..1] }
}

/// What a dead process and a removed container left is there each time, half of the times after a reboot.
fn who_looks_or_clears_up(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "web"]);
    world.ok(&["snapshot", "web", "s"]);
    let there = inventory(&world);
    let mut failures = 0;
    for args in [&["ps", "-s"][..], &["df"], &["images"], &["layers"], &["check"], &["gc"]] {
        // With a reboot before it there are more than without.
        let (mut step, mut idle) = (0, 0);
        while idle < 2 {
            (step, idle) = (step + 1, idle + 1);
            for way in ways(step) {
                world.ok(&["create", "--image", "base", "gone"]);
                world.ok(&["rm", "gone"]);
                let mut died = reflinkd_command(world.root(), &["create", "--image", "base", "dead"]);
                died.env("REFLINKD_STOP_BEFORE", "4").stdin(Stdio::null()).output().expect("run it");
                if step.is_multiple_of(2) {
                    forget(&world);
                }
                let Some((answer, what)) = failing(&world, args, step, *way) else { continue };
                // Damage that a dead process left is found.
                let fine = answer.status == Some(0) || args == ["check"] && answer.status == Some(3);
                assert!(fine, "{what}: {answer:#?}");
                world.ok(&["gc"]);
                assert_eq!(inventory(&world), there, "{what}: {answer:#?}");
                world.ok(&["check"]);
                (idle, failures) = (0, failures + 1);
            }
        }
    }
    let _ = writeln!(
        std::io::stderr(),
        "   {failures} failures of steps of ps, df, images, layers, check, gc on {ground:?}"
    );
}

fn the_store_itself(ground: Ground) {
    let world = World::on(ground);
    let mut failures = 0;
    for step in 1..MOST_STEPS {
        let mut more = false;
        for way in ways(step) {
            if let Some((answer, what)) = failing(&world, &["init"], step, *way) {
                answered(answer.status, &answer.stderr, *way, &what);
                (more, failures) = (true, failures + 1);
            }
            world.ok(&["init"]);
            world.load(&base_image());
            world.ok(&["create", "--image", "base", "web"]);
            if let Some((answer, what)) = failing(&world, &["destroy", "--yes"], step, *way) {
                if !answered(answer.status, &answer.stderr, *way, &what) {
                    world.ok(&["destroy", "--yes"]);
                }
                (more, failures) = (true, failures + 1);
            }
            assert!(!world.root().join("store.json").exists(), "{way:?} at step {step}");
        }
        if !more {
            let _ = writeln!(std::io::stderr(), "   {failures} failures of steps of init, destroy on {ground:?}");
            return;
        }
    }
    panic!("init has no end");
}
