//! The power cut where a verb ends, or where it could undo nothing, before each of its steps: for those that take two steps by
//! one after the other, which a cut could part.

use std::process::Stdio;

use crate::ending::is_whole;
use crate::verbs::{MOST_STEPS, Verb, command, tables};
use crate::world::{Ground, World};

on_btrfs_and_xfs! { a_layer_over_a_tree }

/// The limit in force and the one that is written down are the same, whichever of the two it is.
#[test]
fn a_limit() {
    let (world, verbs) = tables::containers(Ground::SIMPLE);
    each(&world, &verbs, "update");
}

/// The tree is there until the layer is.
fn a_layer_over_a_tree(ground: Ground) {
    let (world, verbs) = tables::dockers_layers(ground);
    each(&world, &verbs, "apply");
}

/// Each of the verbs that have this word.
fn each(world: &World, verbs: &[Verb], word: &str) {
    let wanted: Vec<_> = verbs.iter().filter(|verb| verb.args.iter().any(|arg| arg == word)).collect();
    assert!(!wanted.is_empty(), "{word}");
    wanted.into_iter().for_each(|verb| cut_at_each(world, verb));
}

fn cut_at_each(world: &World, verb: &Verb) {
    let (undone, done) = verb.learn(world);
    let mut states = vec![undone.clone(), done.clone()];
    states.extend(verb.other(&undone));
    for step in 1..MOST_STEPS {
        for variable in ["REFLINKD_STOP_BEFORE", "REFLINKD_FAIL_FROM"] {
            verb.prepare(world);
            let mut command = command(world, &verb.args);
            let output = command.env(variable, step.to_string()).stdin(Stdio::null()).output().expect("run it");
            world.fs.cut_power("rw");
            let acknowledged = output.status.success();
            let what = format!("{:?}, {variable} {step}, and the power cut: {output:?}", verb.args);
            let states = if acknowledged { &verb.after_a_cut(&undone, &done) } else { &states };
            is_whole(world, states, &what);
            verb.undo(world);
            if acknowledged && variable == "REFLINKD_STOP_BEFORE" {
                return;
            }
        }
    }
    panic!("{:?} has no end", verb.args);
}
