//! What there is in a store, as its users see it and as it is on disk.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::support::{arg, run, tree_digest};
use crate::world::{Ground, World};

/// All that a user sees of a store, and what is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inventory {
    /// Numbers of layers by name.
    images: BTreeMap<String, String>,
    /// Pictures of trees by name. No name looks like the beginning of an ID.
    containers: BTreeMap<String, String>,
    /// Bytes that containers may write, by name, for those that have a limit.
    pub(crate) limits: BTreeMap<String, u64>,
    /// Container and label.
    snapshots: Vec<String>,
    layers: usize,
    /// What front doors have: kinds, parents and pictures, by owner and key.
    keys: BTreeMap<String, String>,
    places: usize,
    trees: usize,
}

fn text(row: &Value, field: &str) -> String {
    row[field].as_str().map_or_else(|| row[field].to_string(), str::to_string)
}

pub(crate) fn inventory(world: &World) -> Inventory {
    let images = world
        .rows(&["images"])
        .iter()
        .map(|row| (format!("{}:{}", text(row, "repository"), text(row, "tag")), text(row, "layers")))
        .collect();
    let rows = world.rows(&["ps"]);
    let limits = rows.iter().filter_map(|row| Some((text(row, "name"), row["size_limit"].as_u64()?))).collect();
    let containers = rows.iter().map(|row| text(row, "name"));
    let containers: BTreeMap<_, _> = containers.map(|name| (name.clone(), picture(&world.tree(&name)))).collect();
    let mut snapshots: Vec<String> = Vec::new();
    for container in containers.keys() {
        let rows = world.rows(&["snapshots", container]);
        snapshots.extend(rows.iter().map(|row| format!("{container}@{}", text(row, "label"))));
    }
    let (keyed, layers): (Vec<_>, Vec<_>) =
        world.rows(&["layers"]).into_iter().partition(|row| !row["key"].is_null());
    let told = |row: &Value| {
        let at = row["directory"].as_str().map(|at| picture(Path::new(at)));
        (format!("{} {}", text(row, "owner"), text(row, "key")), format!("{} {} {at:?}", row["kind"], row["parent"]))
    };
    snapshots.sort();
    Inventory {
        images,
        containers,
        limits,
        snapshots,
        layers: layers.len(),
        keys: keyed.iter().map(told).collect(),
        places: world.places(),
        trees: world.all_trees().len(),
    }
}

/// The limits in force are those that containers have.
pub(crate) fn holds_limits(world: &World, found: &Inventory, what: &str) {
    if world.ground != Ground::SIMPLE {
        return;
    }
    let table = run("btrfs", &["qgroup", "show", "-r", "--raw", arg(world.fs.path())]);
    let of = |line: &str| line.split_whitespace().nth(3).and_then(|limit| limit.parse::<u64>().ok());
    let mut in_force: Vec<u64> = table.lines().filter(|line| line.starts_with("1/")).filter_map(of).collect();
    in_force.sort_unstable();
    let mut said: Vec<u64> = found.limits.values().copied().collect();
    said.sort_unstable();
    assert_eq!(in_force, said, "limits in force, {what}");
}

/// Without times, which each attempt has others of.
fn picture(tree: &Path) -> String {
    let entries = tree_digest(tree).into_iter().map(|(path, facts)| {
        let content = facts.sha256.map(|hash| hash[..4].to_vec());
        format!("{} {} {:o} {} {content:02x?}", String::from_utf8_lossy(&path), facts.kind, facts.mode, facts.size)
    });
    entries.collect::<Vec<_>>().join("\n")
}

impl Inventory {
    /// The same with one snapshot more.
    pub(crate) fn with(mut self, snapshot: &str) -> Self {
        self.snapshots.push(snapshot.to_string());
        self.snapshots.sort();
        (self.places, self.trees) = (self.places + 1, self.trees + 1);
        self
    }

    /// The same with a tree under another key, on another parent.
    pub(crate) fn renamed(mut self, (key, parent): (&str, &str), (new_key, new_parent): (&str, &str)) -> Self {
        let told = self.keys.remove(key).expect("it is there");
        self.keys.insert(new_key.to_string(), told.replacen(parent, new_parent, 1));
        self
    }

    /// The same without a key that has no tree.
    pub(crate) fn without(mut self, owner: &str, key: &str) -> Self {
        self.keys.remove(&format!("{owner} {key}")).expect("it is there");
        self.places -= 1;
        self
    }

    /// The same with a key's tree committed.
    pub(crate) fn sealed(mut self, owner: &str, key: &str) -> Self {
        let told = self.keys.get_mut(&format!("{owner} {key}")).expect("it is there");
        *told = told.replacen("\"container\"", "\"layer\"", 1);
        self
    }
}
