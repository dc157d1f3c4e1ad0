//! What must not change, written down.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use reflinkd::sys::btrfs::{BtrfsFd, subvol};
use sha2::{Digest, Sha256};

use crate::store::Store;

/// Everything of a store: of each file its inode, times, content and record; of each subvolume its id and last change.
pub(crate) fn of_all(store: &Store) -> BTreeMap<PathBuf, String> {
    let mut picture = BTreeMap::new();
    add(store.world.root(), &mut picture, &|path, facts| {
        let times = (facts.ctime(), facts.ctime_nsec(), facts.mtime(), facts.mtime_nsec());
        let mut value = vec![0; 8192];
        let record =
            rustix::fs::lgetxattr(path, "trusted.reflinkd", &mut value[..]).map(|length| value[..length].to_vec());
        let subvolume = subvolume(path).map(|info| (info.id, info.ctransid));
        format!("{} {:o} {times:?} {} {subvolume:?} {record:?}", facts.ino(), facts.mode(), content(path, facts))
    });
    picture
}

/// What a place's tree holds: names, inodes, and bytes.
pub(crate) fn of_tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut picture = BTreeMap::new();
    add(root, &mut picture, &|path, facts| format!("{} {:o} {}", facts.ino(), facts.mode(), content(path, facts)));
    picture
}

/// What tells one tree at a path from another: the id of the subvolume, or the inode.
pub(crate) fn identity(root: &Path) -> Option<u64> {
    let facts = fs::symlink_metadata(root).ok()?;
    Some(subvolume(root).map_or(facts.ino(), |info| info.id))
}

fn subvolume(path: &Path) -> Option<subvol::SubvolInfo> {
    let fd = BtrfsFd::open(path).ok()?;
    // A mount may show one that is deleted.
    fd.is_subvolume().ok()?.then(|| subvol::get_subvol_info(&fd).ok())?
}

fn content(path: &Path, facts: &fs::Metadata) -> String {
    match () {
        () if facts.is_file() => format!("{:x}", Sha256::digest(fs::read(path).expect("read"))),
        () if facts.is_symlink() => format!("{:?}", fs::read_link(path).expect("readlink")),
        () => String::new(),
    }
}

fn add(path: &Path, picture: &mut BTreeMap<PathBuf, String>, facts: &dyn Fn(&Path, &fs::Metadata) -> String) {
    let metadata = fs::symlink_metadata(path).expect("stat");
    picture.insert(path.to_path_buf(), facts(path, &metadata));
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("read").flatten() {
            add(&entry.path(), picture, facts);
        }
    }
}
