//! What there is in a store, as its users see it and as it is on disk.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::give::{ok, rows};
use crate::support::tree_digest;

/// A line for each thing, without times and sizes.
pub(crate) fn inventory(root: &Path) -> Vec<String> {
    let text = |row: &Value, field: &str| row[field].as_str().map_or_else(|| row[field].to_string(), str::to_string);
    let mut all = Vec::new();
    for row in rows(root, &["images"]) {
        all.push(format!("image {}:{} {}", text(&row, "repository"), text(&row, "tag"), text(&row, "id")));
    }
    for row in rows(root, &["ps"]) {
        let (name, id) = (text(&row, "name"), text(&row, "id"));
        all.push(format!("container {name} {id} {}", picture(&tree_of(root, &name, &id))));
    }
    for row in rows(root, &["snapshots"]) {
        all.push(format!("snapshot {}", text(&row, "name")));
    }
    for row in rows(root, &["layers"]) {
        let at = row["directory"].as_str().map(|at| picture(Path::new(at)));
        let facts = ["owner", "key", "kind", "parent", "diff_id"].map(|field| text(&row, field)).join(" ");
        all.push(format!("layer {facts} {}", at.unwrap_or_default()));
    }
    all.sort();
    all.push(format!("places {}", std::fs::read_dir(root.join("snapshots")).expect("list").count()));
    all
}

/// Where a container's tree is, which stays there as long as the container.
fn tree_of(root: &Path, name: &str, id: &str) -> PathBuf {
    thread_local! {
        static KNOWN: RefCell<HashMap<String, PathBuf>> = RefCell::default();
    }
    KNOWN.with_borrow_mut(|known| {
        known.entry(id.to_string()).or_insert_with(|| PathBuf::from(ok(root, &["mount", name]))).clone()
    })
}

/// What a refused verb must leave as it was: all but the tree that containerd's layer went to, which is only good to be removed.
pub(crate) fn untouched_by(args: &[&str], mut all: Vec<String>) -> Vec<String> {
    if let ["containerd", "apply", key, ..] = args {
        let tree = format!("layer containerd {key} ");
        all.retain(|line| !line.starts_with(&tree));
    }
    all
}

/// What is in a tree, in one number.
fn picture(tree: &Path) -> String {
    let entries = tree_digest(tree).into_iter().map(|(path, facts)| {
        let content = facts.sha256.map(|hash| hash[..4].to_vec());
        format!("{} {} {:o} {} {content:02x?}", String::from_utf8_lossy(&path), facts.kind, facts.mode, facts.size)
    });
    crate::support::image::sha256(entries.collect::<Vec<_>>().join("\n").as_bytes())
}
