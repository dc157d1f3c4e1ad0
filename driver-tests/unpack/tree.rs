//! A tree as a flat map, read from a disk or told by the model.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

pub(crate) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// All that can be seen of a name.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) what: What,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
    /// The first name of the same inode.
    pub(crate) first: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Dir,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Char(u32, u32),
    Block(u32, u32),
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { what, mode, owner, mtime, xattrs, first } = self;
        let first = first.escape_ascii();
        write!(f, "{what:?} {mode:o} {owner:?} {mtime:?} {first} ")?;
        f.debug_list().entries(xattrs.iter().map(|(k, v)| format!("{}={v:?}", k.escape_ascii()))).finish()
    }
}

pub(crate) type Tree = BTreeMap<Vec<u8>, Seen>;

/// Read the tree at `root`; its own name is empty.
pub(crate) fn read(root: &Path) -> Tree {
    let (mut tree, mut first) = (Tree::new(), HashMap::new());
    visit(root, b"", &mut tree);
    // In the order of names, so that the first name of an inode is the least.
    for name in tree.keys().cloned().collect::<Vec<_>>() {
        let meta = root.join(OsStr::from_bytes(&name)).symlink_metadata().expect("stat");
        let leader = first.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
        let seen = tree.get_mut(&name).expect("just listed");
        seen.first = if seen.what == What::Dir { name } else { leader };
    }
    tree
}

fn visit(root: &Path, name: &[u8], tree: &mut Tree) {
    let path = if name.is_empty() { root.to_path_buf() } else { root.join(OsStr::from_bytes(name)) };
    let meta = path.symlink_metadata().expect("stat");
    let kind = meta.file_type();
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let what = if kind.is_dir() {
        What::Dir
    } else if kind.is_file() {
        What::File(std::fs::read(&path).expect("read"))
    } else if kind.is_symlink() {
        What::Symlink(std::fs::read_link(&path).expect("readlink").into_os_string().into_vec())
    } else if kind.is_fifo() {
        What::Fifo
    } else if kind.is_char_device() {
        What::Char(major, minor)
    } else {
        What::Block(major, minor)
    };
    if kind.is_dir() {
        for child in std::fs::read_dir(&path).expect("list") {
            let child = child.expect("list").file_name().into_vec();
            let below = if name.is_empty() { child } else { [name, b"/", &child].concat() };
            visit(root, &below, tree);
        }
    }
    let seen = Seen {
        what,
        mode: if kind.is_symlink() { 0o777 } else { meta.mode() & 0o7777 },
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).expect("below a second")),
        xattrs: xattrs(&path),
        first: Vec::new(),
    };
    tree.insert(name.to_vec(), seen);
}

fn xattrs(path: &Path) -> Xattrs {
    let mut list = [0_u8; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).expect("llistxattr");
    let names = list[..length].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = [0_u8; 4096];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).expect("lgetxattr");
            (name.to_vec(), value[..length].to_vec())
        })
        .collect()
}

/// Where a file has data, by the filesystem's own account (lseek(2), SEEK_DATA): pairs of start and end in bytes.
pub(crate) fn data_map(path: &Path) -> Vec<(u64, u64)> {
    use rustix::fs::{SeekFrom, seek};
    let file = std::fs::File::open(path).expect("open");
    let (mut map, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).expect("data ends somewhere");
        map.push((start, at));
    }
    map
}

/// Fail with the first difference.
pub(crate) fn assert_same(seen: &Tree, expected: &Tree, about: impl Fn() -> String) {
    for (name, want) in expected {
        let shown = name.escape_ascii();
        match seen.get(name) {
            None => panic!("{}\n{shown} is missing: {want:?}", about()),
            Some(got) if got != want => panic!("{}\n{shown}\nis       {got:?}\nnot what {want:?}", about()),
            Some(_) => {}
        }
    }
    if let Some((name, seen)) = seen.iter().find(|(name, _)| !expected.contains_key(*name)) {
        panic!("{}\n{} is too much: {seen:?}", about(), name.escape_ascii());
    }
}
