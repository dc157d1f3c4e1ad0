//! A picture of a tree that two trees can be compared by.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use reflinkd::sys::reflink::{SYNC, flags as flags_of};
use rustix::fs::IFlags;
use sha2::{Digest, Sha256};

/// Everything that a faithful copy or snapshot of an entry keeps.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct EntryFacts {
    /// `file`, `dir`, `link`, `char`, `block`, `fifo`, `socket`.
    pub(crate) kind: &'static str,
    /// Permission bits with set-id and sticky ones.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes; 0 for all but regular files and symlinks, where filesystems differ.
    pub(crate) size: u64,
    /// Seconds and ns.
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    /// Of a symlink.
    pub(crate) target: Option<Vec<u8>>,
    /// SHA-256 that a regular file's content has, in a form of its own.
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Inode flags of a file or directory that chattr(1) sets, of those that filesystems have in common.
    pub(crate) flags: u32,
    /// The first path, in order of bytes, of the same file: equal for all names of one file.
    pub(crate) first_name: Vec<u8>,
}

impl fmt::Debug for EntryFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let Self { kind, mode, uid, gid, size, mtime, rdev, .. } = self;
        write!(f, "{kind} {mode:04o} {uid}:{gid} size {size} mtime {}.{:09} rdev {rdev:x}", mtime.0, mtime.1)?;
        if let Some(target) = &self.target {
            write!(f, " -> {}", text(target))?;
        }
        if let Some(hash) = &self.sha256 {
            write!(f, " sha256 {:02x?}", &hash[..4])?;
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}={value:02x?}", text(name))?;
        }
        if self.flags != 0 {
            write!(f, " flags {:x}", self.flags)?;
        }
        write!(f, " first {}", text(&self.first_name))
    }
}

/// The facts of the directory `root` (as the empty path) and all below, by path relative to it, as bytes.
/// Subvolumes and mounts below are walked like directories.
pub(crate) fn tree_digest(root: &Path) -> BTreeMap<Vec<u8>, EntryFacts> {
    let mut paths = vec![Vec::new()];
    let mut at = 0;
    while at < paths.len() {
        let path = full(root, &paths[at]);
        if fs::symlink_metadata(&path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display())).is_dir() {
            for entry in fs::read_dir(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display())) {
                let name = entry.unwrap_or_else(|e| panic!("read {}: {e}", path.display())).file_name();
                let mut below = paths[at].clone();
                if !below.is_empty() {
                    below.push(b'/');
                }
                below.extend(name.into_vec());
                paths.push(below);
            }
        }
        at += 1;
    }
    paths.sort();
    let mut names = HashMap::new();
    paths.into_iter().map(|path| (path.clone(), facts(root, path, &mut names))).collect()
}

/// Names the first few differences; panics with them, and with `what`, if there are any.
#[track_caller]
pub(crate) fn assert_same(what: &str, left: &BTreeMap<Vec<u8>, EntryFacts>, right: &BTreeMap<Vec<u8>, EntryFacts>) {
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let different = paths.into_iter().filter(|path| left.get(*path) != right.get(*path));
    let shown: Vec<String> = different
        .take(5)
        .map(|path| {
            let side = |facts: Option<&EntryFacts>| facts.map_or("absent".to_string(), |f| format!("{f:?}"));
            format!("/{}\n   {}\n   {}", String::from_utf8_lossy(path), side(left.get(path)), side(right.get(path)))
        })
        .collect();
    assert!(shown.is_empty(), "{what}: trees differ\n{}", shown.join("\n"));
}

/// Where the entry `path` of [`tree_digest`] is.
pub(crate) fn full(root: &Path, path: &[u8]) -> std::path::PathBuf {
    if path.is_empty() { root.to_path_buf() } else { root.join(std::ffi::OsStr::from_bytes(path)) }
}

fn facts(root: &Path, path: Vec<u8>, names: &mut HashMap<(u64, u64), Vec<u8>>) -> EntryFacts {
    let at = full(root, &path);
    let meta = fs::symlink_metadata(&at).unwrap_or_else(|e| panic!("stat {}: {e}", at.display()));
    let kind = meta.file_type();
    let (is_file, is_link) = (kind.is_file(), kind.is_symlink());
    let kind = match () {
        () if is_file => "file",
        () if is_link => "link",
        () if kind.is_dir() => "dir",
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    };
    EntryFacts {
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if is_file || is_link { meta.size() } else { 0 },
        mtime: (meta.mtime(), meta.mtime_nsec()),
        rdev: meta.rdev(),
        target: is_link.then(|| fs::read_link(&at).expect("read a symlink").into_os_string().into_vec()),
        sha256: is_file.then(|| sha256(&at)),
        xattrs: xattrs(&at),
        flags: if is_file || kind == "dir" { flags(&at) } else { 0 },
        first_name: names.entry((meta.dev(), meta.ino())).or_insert(path).clone(),
    }
}

/// Of the parts that aren't zero, whether what is zero is a hole or not: sparse files of GiBs take no time.
fn sha256(path: &Path) -> [u8; 32] {
    const PART: u64 = 1 << 20;
    let mut hash = Sha256::new();
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    let mut part = vec![0; PART as usize];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => break,
            data => data.unwrap_or_else(|e| panic!("find data in {}: {e}", path.display())) / PART * PART,
        };
        let length = read_part(&file, &mut part, at).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        let bytes = &part[..length];
        if bytes.iter().any(|&byte| byte != 0) {
            hash.update(at.to_le_bytes());
            hash.update(bytes);
        }
        at += PART;
    }
    hash.finalize().into()
}

/// As much as there is from `at` on.
fn read_part(file: &fs::File, part: &mut [u8], at: u64) -> std::io::Result<usize> {
    let mut length = 0;
    while length < part.len() {
        match file.read_at(&mut part[length..], at + length as u64)? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

fn flags(path: &Path) -> u32 {
    let kept = IFlags::IMMUTABLE | IFlags::APPEND | IFlags::NODUMP | IFlags::NOATIME | SYNC;
    let file = fs::File::open(path).unwrap_or_else(|e| panic!("open {}: {e}", path.display()));
    flags_of(&file).unwrap_or_else(|e| panic!("get the flags of {}: {e}", path.display())).intersection(kept).bits()
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.unwrap_or_else(|e| panic!("list the xattrs of {}: {e}", path.display())),
    };
    let names = names[..length].split(|&b| b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..])
                .unwrap_or_else(|e| panic!("get xattr {} of {}: {e}", String::from_utf8_lossy(name), path.display()));
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}
