//! Verbs of the command line, and calls of Docker and containerd, each with what has to come before it: for tests that let each go
//! wrong at each of its durable steps (`sys::durable`), and hold what is left to what was there before and afterwards.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::support::reflinkd_command;
use crate::world::World;

pub(crate) mod inventory;
pub(crate) mod tables;

pub(crate) use inventory::{Inventory, holds_limits, inventory};

/// More than any verb has.
pub(crate) const MOST_STEPS: usize = 500;

/// A verb and what comes before it.
pub(crate) struct Verb {
    pub(crate) args: Vec<String>,
    /// Given before each attempt; succeed.
    before: Vec<Vec<String>>,
    /// Given after each attempt; may fail, as there may be nothing to undo.
    after: Vec<Vec<String>>,
    /// What else it may come to, made of what was there before.
    or: Option<fn(Inventory) -> Inventory>,
    cut: Option<fn(Inventory) -> Inventory>,
    in_place: bool,
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_string()).collect()
}

pub(crate) fn verb(args: &[&str]) -> Verb {
    Verb { args: owned(args), before: Vec::new(), after: Vec::new(), or: None, cut: None, in_place: false }
}

impl Verb {
    pub(crate) fn before(mut self, args: &[&str]) -> Self {
        self.before.push(owned(args));
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

    /// It writes into a tree that its client removes if it fails.
    pub(crate) fn in_place(mut self) -> Self {
        self.in_place = true;
        self
    }

    pub(crate) fn is_in_place(&self) -> bool {
        self.in_place
    }

    pub(crate) fn after(mut self, args: &[&str]) -> Self {
        self.after.push(owned(args));
        self
    }

    /// What it is called where it is counted.
    pub(crate) fn name(&self) -> String {
        self.args.iter().take(2).map(String::as_str).collect::<Vec<_>>().join(" ")
    }

    /// Give what comes before it.
    pub(crate) fn prepare(&self, world: &World) {
        self.before.iter().for_each(|args| ok(world, args));
    }

    /// Undo it, and what came before it.
    pub(crate) fn undo(&self, world: &World) {
        self.after.iter().for_each(|args| drop(give(world, args)));
    }

    /// What is there before it and afterwards.
    pub(crate) fn learn(&self, world: &World) -> (Inventory, Inventory) {
        self.prepare(world);
        let undone = inventory(world);
        ok(world, &self.args);
        let done = inventory(world);
        assert_ne!(undone, done, "{:?} does something", self.args);
        self.undo(world);
        (undone, done)
    }

    /// What it may come to besides what was there before, and afterwards.
    pub(crate) fn other(&self, undone: &Inventory) -> Option<Inventory> {
        self.or.map(|more| more(undone.clone()))
    }

    /// What may be there when it was acknowledged and the power was cut.
    pub(crate) fn after_a_cut(&self, undone: &Inventory, done: &Inventory) -> Vec<Inventory> {
        // What was removed may be there again.
        let removes = self.args.iter().take(2).any(|word| matches!(word.as_str(), "rm" | "rmi" | "remove"));
        let mut states = vec![done.clone()];
        states.extend(removes.then(|| undone.clone()));
        states.extend(self.cut.map(|more| more(undone.clone())));
        states
    }
}

/// The command of a verb: `reflinkd`'s, or where it begins with a front door's name a call of that.
pub(crate) fn command(world: &World, args: &[String]) -> Command {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if !matches!(args.first(), Some(&"docker" | &"containerd")) {
        return reflinkd_command(world.root(), &args);
    }
    let own = std::env::current_exe().expect("a path");
    let program: PathBuf = own.ancestors().nth(2).expect("target/debug/deps").join("examples/reflinkd-verbs");
    assert!(program.exists(), "{} is missing: cargo build --example reflinkd-verbs", program.display());
    let mut command = Command::new(program);
    command.arg(world.root()).args(args);
    command
}

pub(crate) fn give(world: &World, args: &[String]) -> Output {
    command(world, args).stdin(Stdio::null()).output().expect("run it")
}

/// Give a verb that must succeed.
pub(crate) fn ok(world: &World, args: &[String]) {
    let output = give(world, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `$each` with the world and the verbs of each table, on Btrfs and XFS.
macro_rules! for_each_table {
    ($each:path) => {
        for_each_table! { $each: making containers copies_of_containers snapshots images loads layers_of_containers
            dockers_layers dockers_containers containerds_snapshots }
    };
    ($each:path: $($table:ident)+) => {
        on_btrfs_and_xfs! { $($table)+ }
        $(fn $table(ground: $crate::world::Ground) {
            let (world, verbs) = $crate::verbs::tables::$table(ground);
            $each(&world, &verbs);
        })+
    };
}
