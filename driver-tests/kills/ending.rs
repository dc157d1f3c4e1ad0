//! Ending a verb before each of its steps, and the power right after the last.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::inventory::{Inventory, inventory};
use crate::support::reflinkd_command;
use crate::world::World;

/// More than any verb has.
pub(crate) const MOST_STEPS: usize = 500;

/// A verb and what comes before it.
pub(crate) struct Verb<'a> {
    args: Vec<&'a str>,
    /// Given before each attempt; succeed.
    before: Vec<Vec<&'a str>>,
    /// Given after each attempt; may fail, as there may be nothing to undo.
    after: Vec<Vec<&'a str>>,
    /// What else it may come to, made of what was there before.
    or: Option<fn(Inventory) -> Inventory>,
    cut: Option<fn(Inventory) -> Inventory>,
}

pub(crate) fn verb<'a>(args: &[&'a str]) -> Verb<'a> {
    Verb { args: args.to_vec(), before: Vec::new(), after: Vec::new(), or: None, cut: None }
}

impl<'a> Verb<'a> {
    pub(crate) fn before(mut self, args: &[&'a str]) -> Self {
        self.before.push(args.to_vec());
        self
    }

    /// Cut short it is done, undone, or this.
    pub(crate) fn or(mut self, more: fn(Inventory) -> Inventory) -> Self {
        self.or = Some(more);
        self
    }

    /// A power cut may leave this of it, made of what was there before, though it was acknowledged.
    pub(crate) fn or_after_a_cut(mut self, more: fn(Inventory) -> Inventory) -> Self {
        self.cut = Some(more);
        self
    }

    /// What was removed may be there again.
    fn removes(&self) -> bool {
        self.args.iter().take(2).any(|word| matches!(*word, "rm" | "rmi" | "remove"))
    }

    pub(crate) fn after(mut self, args: &[&'a str]) -> Self {
        self.after.push(args.to_vec());
        self
    }
}

/// The command of a verb: `reflinkd`'s, or where it begins with a front door's name a call of that.
fn command(world: &World, args: &[&str]) -> Command {
    if !matches!(args.first(), Some(&"docker" | &"containerd")) {
        return reflinkd_command(world.root(), args);
    }
    let own = std::env::current_exe().expect("a path");
    let program: PathBuf = own.ancestors().nth(2).expect("target/debug/deps").join("examples/reflinkd-verbs");
    assert!(program.exists(), "{} is missing: cargo build --example reflinkd-verbs", program.display());
    let mut command = Command::new(program);
    command.arg(world.root()).args(args);
    command
}

fn give(world: &World, args: &[&str]) -> Output {
    command(world, args).stdin(Stdio::null()).output().expect("run it")
}

/// Give a verb that must succeed.
pub(crate) fn ok(world: &World, args: &[&str]) {
    let output = give(world, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// End each of these verbs before each of its steps, and say how many there were.
pub(crate) fn each(world: &World, verbs: &[Verb<'_>]) {
    let mut steps = 0;
    for verb in verbs {
        let own = end_before_each(world, verb);
        assert!(own > 0, "{:?} has steps", verb.args);
        steps += own;
    }
    let names: Vec<_> = verbs.iter().map(|verb| verb.args[..2].join(" ")).collect();
    say(&format!("{steps} steps of {} on {:?}", names.join(", "), world.ground));
}

/// Print a line that is not kept back while the test succeeds.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "   ended before each of {line}");
}

/// End a verb before its first step, its second, and so on, until it comes to its end. How many it has.
fn end_before_each(world: &World, verb: &Verb<'_>) -> usize {
    let all = |verbs: &[Vec<&str>]| verbs.iter().for_each(|args| drop(give(world, args)));
    verb.before.iter().for_each(|args| ok(world, args));
    let undone = inventory(world);
    ok(world, &verb.args);
    let done = inventory(world);
    assert_ne!(undone, done, "{:?} does something", verb.args);
    all(&verb.after);
    let states: Vec<_> =
        [undone.clone(), done.clone()].into_iter().chain(verb.or.map(|more| more(undone.clone()))).collect();
    let names = world.files.path().join("steps");
    for step in 1..MOST_STEPS {
        verb.before.iter().for_each(|args| ok(world, args));
        fs::write(&names, "").expect("write");
        let mut command = command(world, &verb.args);
        command.env("REFLINKD_STOP_BEFORE", step.to_string()).env("REFLINKD_STEPS", &names);
        let output = command.stdin(Stdio::null()).output().expect("run it");
        if output.status.success() {
            world.fs.cut_power("rw");
            let mut states = vec![done.clone()];
            states.extend(verb.removes().then(|| undone.clone()));
            states.extend(verb.cut.map(|more| more(undone.clone())));
            is_whole(world, &states, &format!("{:?}, done, and the power cut", verb.args));
            all(&verb.after);
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
        all(&verb.after);
    }
    panic!("{:?} has no end", verb.args);
}

/// It is in one of these states, and nothing is left.
fn is_whole(world: &World, states: &[Inventory], what: &str) {
    // Whoever only looks finds nothing half-made.
    world.ok(&["ps"]);
    world.ok(&["images"]);
    // What is half-made is called that; the index is never another than the records.
    let checked = give(world, &["check"]);
    let checked = String::from_utf8_lossy(&checked.stdout);
    assert!(!checked.contains("index-"), "{what}: {checked}");
    let cleared = world.ok(&["gc", "--format", "json"]);
    let found = inventory(world);
    assert!(states.contains(&found), "{what}, gc: {cleared}\n{found:#?}\nis none of\n{states:#?}");
    let left = world.rows(&["gc", "--dry-run"]);
    assert!(left.is_empty(), "{what}: {left:#?}");
    let checked = give(world, &["check"]);
    assert!(checked.status.success(), "{what}, after gc: {}", String::from_utf8_lossy(&checked.stdout));
}
