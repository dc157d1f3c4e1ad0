//! Ways to damage a store.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{XattrFlags, removexattr, setxattr};
use serde_json::Value;

use crate::store::Store;
use crate::support::{arg, run};
use crate::world::Ground;

const RECORD: &str = "trusted.reflinkd";

/// Write into a tree that refuses writes, and leave no trace of how.
pub(crate) fn write_into(store: &Store, tree: &Path, change: impl FnOnce(&Path)) {
    if store.world.ground.filesystem() == "btrfs" {
        run("btrfs", &["property", "set", arg(tree), "ro", "false"]);
        change(tree);
        store.sync();
        run("btrfs", &["property", "set", "-f", arg(tree), "ro", "true"]);
    } else {
        change(tree);
    }
    store.sync();
}

/// Delete a tree as a user would.
pub(crate) fn delete_tree(store: &Store, tree: &Path) {
    match store.world.ground {
        Ground::Btrfs(_) | Ground::Zstd => drop(run("btrfs", &["subvolume", "delete", "-c", arg(tree)])),
        Ground::Xfs | Ground::XfsPrjquota => fs::remove_dir_all(tree).expect("rm -r"),
    }
}

pub(crate) fn delete_place(store: &Store, place: &Path) {
    delete_tree(store, &place.join("fs"));
    fs::remove_dir_all(place).expect("rm -r");
}

pub(crate) fn remove_record(place: &Path) {
    removexattr(place, RECORD).expect("removexattr");
}

pub(crate) fn set_record(place: &Path, record: &[u8]) {
    setxattr(place, RECORD, record, XattrFlags::empty()).expect("setxattr");
}

pub(crate) fn record(place: &Path) -> Value {
    let mut value = vec![0; 8192];
    let length = rustix::fs::getxattr(place, RECORD, &mut value[..]).expect("getxattr");
    serde_json::from_slice(&value[..length]).expect("JSON")
}

/// Change the index by hand.
pub(crate) fn sql(store: &Store, statement: &str) {
    let index = rusqlite::Connection::open(store.world.root().join("index.db")).expect("open the index");
    index.execute_batch("PRAGMA journal_mode = PERSIST").expect("journal");
    assert_eq!(index.execute(statement, []).expect("change the index"), 1, "{statement}");
}

/// Overwrite bytes of a file.
pub(crate) fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("open");
    file.write_all_at(bytes, at).expect("write");
}

/// Let the index be made anew by what is on disk now.
pub(crate) fn reindex(store: &Store) {
    fs::remove_file(store.world.root().join("index.current")).expect("unlink");
    store.world.ask(&["ps"]);
}

pub(crate) fn uuid(place: &Path) -> String {
    place.file_name().expect("a name").to_str().expect("UTF-8").to_string()
}
