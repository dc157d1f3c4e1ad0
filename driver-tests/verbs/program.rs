//! One verb of a front door on a store, in a process of its own that a test can end, or let fail: what `reflinkd serve` does for one call.
//!
//! ```text
//! reflinkd-verbs ROOT docker     reserve KEY [PARENT] | prepare KEY [PARENT] | apply KEY TAR [PARENT] | remove KEY
//! reflinkd-verbs ROOT containerd prepare KEY [PARENT] | view KEY PARENT | apply KEY TAR | commit KEY NAME |
//!                                label KEY NAME VALUE | remove KEY
//! ```

#![allow(clippy::print_stderr)]

use std::collections::BTreeMap;
use std::fs::File;
use std::process::ExitCode;

use reflinkd::engine::containerd::{LabelChange, Labels, Space};
use reflinkd::engine::keyed::NewKeyed;
use reflinkd::engine::{Engine, Settings};
use reflinkd::layer::IdMaps;
use reflinkd::store::Owner;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    // As the command line would say it.
    match error.downcast::<reflinkd::Error>() {
        Ok(error) => {
            eprintln!("reflinkd: {error}");
            error.hint().into_iter().for_each(|hint| eprintln!("hint: {hint}"));
        }
        Err(error) => eprintln!("{error}"),
    }
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [root, door, rest @ ..] = arguments.as_slice() else { return Err("usage: see the source".into()) };
    let engine = Engine::open(Settings { root: root.into(), tend: false, ..Settings::default() })?;
    match *door {
        "docker" => docker(&engine, rest),
        "containerd" => containerd(&engine, rest),
        _ => Err(format!("{door} is no front door").into()),
    }
}

fn docker(engine: &Engine, arguments: &[&str]) -> Result<()> {
    let trees = engine.keyspace(Owner::docker(), 0, IdMaps::default());
    match *arguments {
        ["reserve", key] => trees.reserve(&NewKeyed { key, ..NewKeyed::default() })?,
        ["reserve", key, parent] => trees.reserve(&NewKeyed { key, parent: Some(parent), ..NewKeyed::default() })?,
        ["prepare", key] => trees.prepare(&NewKeyed { key, ..NewKeyed::default() })?,
        ["prepare", key, parent] => trees.prepare(&NewKeyed { key, parent: Some(parent), ..NewKeyed::default() })?,
        ["apply", key, tar] => drop(trees.apply(key, None, &mut File::open(tar)?)?),
        ["apply", key, tar, parent] => drop(trees.apply(key, Some(parent), &mut File::open(tar)?)?),
        ["remove", key] => trees.remove(key)?,
        _ => return Err(format!("no such verb: {arguments:?}").into()),
    }
    Ok(())
}

fn containerd(engine: &Engine, arguments: &[&str]) -> Result<()> {
    let space = Space { name: "default".into(), size_limit: None, remap_ids: false, reuse: Vec::new() };
    let snapshots = engine.snapshots_of(&space);
    match *arguments {
        ["prepare", key] => drop(snapshots.prepare(key, None, Labels::new())?),
        ["prepare", key, parent] => drop(snapshots.prepare(key, Some(parent), Labels::new())?),
        ["view", key, parent] => drop(snapshots.view(key, Some(parent), Labels::new())?),
        ["apply", key, tar] => snapshots.apply(key, &mut File::open(tar)?, true)?,
        ["commit", key, name] => snapshots.commit(name, key, None, Labels::new())?,
        ["label", key, name, value] => {
            let change = BTreeMap::from([(name.to_string(), Some(value.to_string()))]);
            drop(snapshots.update(key, LabelChange::Some(change))?);
        }
        ["remove", key] => snapshots.remove(key)?,
        _ => return Err(format!("no such verb: {arguments:?}").into()),
    }
    Ok(())
}
