//! Ending a verb before each of its steps, and the power right after the last.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;

use crate::verbs::{Inventory, MOST_STEPS, Verb, command, holds_limits, inventory};
use crate::world::World;

/// End each of these verbs before each of its steps, and say how many there were.
pub(crate) fn each(world: &World, verbs: &[Verb]) {
    let mut steps = 0;
    for verb in verbs {
        let own = end_before_each(world, verb);
        assert!(own > 0, "{:?} has steps", verb.args);
        steps += own;
    }
    let names: Vec<_> = verbs.iter().map(Verb::name).collect();
    say(&format!("{steps} steps of {} on {:?}", names.join(", "), world.ground));
}

/// Print a line that is not kept back while the test succeeds.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "   ended before each of {line}");
}

/// End a verb before its first step, its second, and so on, until it comes to its end. How many it has.
fn end_before_each(world: &World, verb: &Verb) -> usize {
    let (undone, done) = verb.learn(world);
    let mut states = vec![undone.clone(), done.clone()];
    states.extend(verb.other(&undone));
    let names = world.files.path().join("steps");
    for step in 1..MOST_STEPS {
        verb.prepare(world);
        fs::write(&names, "").expect("write");
        let mut command = command(world, &verb.args);
        command.env("REFLINKD_STOP_BEFORE", step.to_string()).env("REFLINKD_STEPS", &names);
        let output = command.stdin(Stdio::null()).output().expect("run it");
        if output.status.success() {
            world.fs.cut_power("rw");
            is_whole(world, &verb.after_a_cut(&undone, &done), &format!("{:?}, done, and the power cut", verb.args));
            verb.undo(world);
            return step - 1;
        }
        let steps = fs::read_to_string(&names).expect("read");
        let what = format!("{:?}, ended before step {step}: {}", verb.args, steps.lines().last().unwrap_or_default());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{what}: {said}");
        // Every other time nobody remembers that it was at work, as after a reboot.
        if step % 2 == 0 {
            let _ = fs::remove_file(world.root().join("index.current"));
        }
        is_whole(world, &states, &what);
        verb.undo(world);
    }
    panic!("{:?} has no end", verb.args);
}

/// It is in one of these states, and nothing is left.
pub(crate) fn is_whole(world: &World, states: &[Inventory], what: &str) {
    // Whoever only looks finds nothing half-made.
    world.ok(&["ps"]);
    world.ok(&["images"]);
    // What is half-made is called that; the index is never another than the records.
    let checked = world.ask(&["check"]).stdout;
    assert!(!checked.contains("index-"), "{what}: {checked}");
    let cleared = world.ok(&["gc", "--format", "json"]);
    let found = inventory(world);
    assert!(states.contains(&found), "{what}, gc: {cleared}\n{found:#?}\nis none of\n{states:#?}");
    holds_limits(world, &found, what);
    let left = world.rows(&["gc", "--dry-run"]);
    assert!(left.is_empty(), "{what}: {left:#?}");
    let checked = world.ask(&["check"]);
    assert_eq!(checked.status, Some(0), "{what}, after gc: {}", checked.stdout);
}
