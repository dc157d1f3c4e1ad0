//! Letting each step of a verb fail.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::verbs::{Inventory, MOST_STEPS, Verb, command, holds_limits, inventory};
use crate::world::{Ground, World};

/// How a step fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// This one alone.
    Once(&'static str),
    /// This one and all that come after it.
    Forever(&'static str),
}

/// What is done after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    /// Nobody remembers that it was at work, and the index is made from the records.
    Reboot,
}

pub(crate) const ALL: &[Way] = &[
    Way::Once("ENOSPC"),
    Way::Once("EDQUOT"),
    Way::Once("EIO"),
    Way::Forever("ENOSPC"),
    Way::Forever("EDQUOT"),
    Way::Forever("EIO"),
];

impl Way {
    pub(crate) fn errno(self) -> &'static str {
        match self {
            Self::Once(errno) | Self::Forever(errno) => errno,
        }
    }

    pub(crate) fn variable(self) -> &'static str {
        match self {
            Self::Once(_) => "REFLINKD_FAIL_AT",
            Self::Forever(_) => "REFLINKD_FAIL_FROM",
        }
    }
}

pub(crate) fn thorough() -> bool {
    std::env::var_os("REFLINKD_FULL").is_some_and(|value| value == "all")
}

/// In which ways a step fails, and what comes after: all, or for every other step one. XFS has those that Btrfs leaves out.
fn attempts(ground: Ground, step: usize) -> Vec<(Way, After)> {
    if thorough() {
        return ALL.iter().flat_map(|way| [(*way, After::Nothing), (*way, After::Reboot)]).collect();
    }
    if step > 1 && step.is_multiple_of(2) != (ground == Ground::SIMPLE) {
        return Vec::new();
    }
    let turn = step / 2;
    let after = if (turn / 2).is_multiple_of(2) { After::Nothing } else { After::Reboot };
    vec![(ALL[turn % ALL.len()], after)]
}

/// Let each step of each of these verbs fail, and say how often.
pub(crate) fn each(world: &World, verbs: &[Verb]) {
    let mut failures = 0;
    for verb in verbs {
        let own = fail_at_each(world, verb);
        assert!(own > 0, "{:?} has steps", verb.args);
        failures += own;
    }
    let names: Vec<_> = verbs.iter().map(Verb::name).collect();
    let _ =
        writeln!(std::io::stderr(), "   {failures} failures of steps of {} on {:?}", names.join(", "), world.ground);
}

/// Let a verb's first step fail, its second, and so on, until it has no more. How often one failed.
fn fail_at_each(world: &World, verb: &Verb) -> usize {
    let (undone, done) = verb.learn(world);
    let mut failures = 0;
    for step in 1..MOST_STEPS {
        for (way, after) in attempts(world.ground, step) {
            if !fail_at(world, verb, step, (way, after), (&undone, &done)) {
                return failures;
            }
            failures += 1;
        }
    }
    panic!("{:?} has no end", verb.args);
}

/// One attempt; `false` if the verb has no such step.
fn fail_at(
    world: &World,
    verb: &Verb,
    step: usize,
    (way, after): (Way, After),
    (undone, done): (&Inventory, &Inventory),
) -> bool {
    let names = world.files.path().join("steps");
    verb.prepare(world);
    fs::write(&names, "").expect("write");
    let mut command = command(world, &verb.args);
    command.env(way.variable(), step.to_string()).env("REFLINKD_FAIL_WITH", way.errno());
    let output = command.env("REFLINKD_STEPS", &names).stdin(Stdio::null()).output().expect("run it");
    let steps = fs::read_to_string(&names).expect("read");
    let Some(name) = steps.lines().nth(step - 1) else {
        assert!(output.status.success(), "{:?}: {output:?}", verb.args);
        verb.undo(world);
        return false;
    };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let what = format!("{:?}, {way:?} at step {step} ({name}), {after:?}: {said}", verb.args);
    let acknowledged = answered(output.status.code(), &said, way, &what);
    // Whoever only looks finds nothing half-made.
    world.ok(&["ps"]);
    world.ok(&["images"]);
    if after == After::Reboot {
        forget(world);
    }
    world.ok(&["df"]);
    let cleared = world.ok(&["gc", "--format", "json"]);
    let found = inventory(world);
    let fine = match (acknowledged, way) {
        (true, _) => found == *done,
        // What failed can't be undone either.
        (false, Way::Forever(_)) if found == *done => true,
        (false, Way::Once(_)) if found == *done => verb.is_in_place(),
        (false, _) => found == *undone || verb.other(undone).as_ref() == Some(&found),
    };
    assert!(fine, "{what}\ngc: {cleared}\n{found:#?}\nis not it; before: {undone:#?}\nafterwards: {done:#?}");
    holds_limits(world, &found, &what);
    let left = world.rows(&["gc", "--dry-run"]);
    assert!(left.is_empty(), "{what}: {left:#?}");
    let checked = world.ask(&["check"]);
    assert_eq!(checked.status, Some(0), "{what}, after gc: {}", checked.stdout);
    if after == After::Nothing {
        // What the records say is the same.
        forget(world);
        world.ok(&["gc"]);
        let again = inventory(world);
        let fine = again == found || verb.other(undone).as_ref() == Some(&again);
        assert!(fine, "{what}, and a reboot after gc\n{again:#?}\nis not what it was:\n{found:#?}");
    }
    verb.undo(world);
    true
}

/// Whether it was acknowledged; if not, by an error that says enough.
pub(crate) fn answered(status: Option<i32>, said: &str, way: Way, what: &str) -> bool {
    if status == Some(0) {
        return true;
    }
    assert_eq!(status, Some(1), "{what}: {said}");
    let error = said.lines().find(|line| line.starts_with("reflinkd: ")).unwrap_or_else(|| panic!("{what}: {said}"));
    assert!(error.starts_with("reflinkd: cannot "), "what failed, on which object? {what}: {said}");
    let (why, has_hint) = match way.errno() {
        "ENOSPC" => ("No space left on device", false),
        "EDQUOT" => ("Disk quota exceeded", true),
        _ => ("Input/output error", true),
    };
    assert!(error.contains(why), "why? {what}: {said}");
    assert!(!has_hint || said.contains("\nhint: "), "the way out? {what}: {said}");
    false
}

/// As after a reboot: the index is of before it.
pub(crate) fn forget(world: &World) {
    for name in ["index.current", "index.db", "index.db-journal"] {
        let _ = fs::remove_file(world.root().join(name));
    }
}
