//! Trees to clone, and what has to be true of their clones.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use reflinkd::backend::clone::{Cloned, Content, Counts, Source, clone_tree};
use reflinkd::sys::reflink;
use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, SeekFrom, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    seek, utimensat,
};

use crate::support::{LoopFs, MIB, QuotaSetup, random_bytes};

/// A filesystem, and how content is cloned on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setup {
    Xfs,
    Btrfs,
    /// Copies.
    Ext4,
    /// Copies.
    Tmpfs,
}

impl Setup {
    pub(crate) fn make(self) -> LoopFs {
        match self {
            Self::Xfs => LoopFs::xfs(1024 * MIB),
            Self::Btrfs => LoopFs::btrfs(1024 * MIB, QuotaSetup::None),
            Self::Ext4 => LoopFs::ext4(512 * MIB),
            Self::Tmpfs => LoopFs::tmpfs(512 * MIB),
        }
    }

    pub(crate) fn content(self) -> Content {
        match self {
            Self::Xfs | Self::Btrfs => Content::Reflink,
            Self::Ext4 | Self::Tmpfs => Content::Copy,
        }
    }

    /// Inode flags that the filesystem has, one by one.
    pub(crate) fn flags(self) -> &'static [IFlags] {
        let all = &[IFlags::IMMUTABLE, IFlags::APPEND, IFlags::NODUMP, IFlags::NOATIME, reflink::SYNC];
        match self {
            Self::Xfs | Self::Btrfs | Self::Ext4 => all,
            Self::Tmpfs => &all[..4],
        }
    }
}

/// Clone `from` beside it, as a tree that nobody writes to.
pub(crate) fn clone(setup: Setup, from: &Path) -> (PathBuf, Cloned) {
    let to = from.with_file_name("to");
    let cloned = clone_tree(from, &to, Source::Still, setup.content(), None).expect("clone a tree");
    (to, cloned)
}

/// A tree with one of everything at `root`, and what a clone counts of it.
pub(crate) fn everything(setup: Setup, root: &Path) -> Counts {
    let mut counts = Counts::default();
    let make = |path: &Path| fs::create_dir(path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
    make(root);
    for name in ["modes", "names", "nodes", "links", "links/below", "xattrs", "flags", "times"] {
        make(&root.join(name));
    }
    counts.directories += 9;
    let mut files = modes(&root.join("modes"), &mut counts);
    files += names(&root.join("names"), &mut counts);
    nodes(&root.join("nodes"), &mut counts);
    files += links(&root.join("links"), &mut counts);
    files += xattrs(&root.join("xattrs"), &mut counts);
    files += times(&root.join("times"), &mut counts);
    files += flags(setup, &root.join("flags"), &mut counts);
    match setup.content() {
        Content::Reflink => counts.cloned += files,
        Content::Copy => counts.copied += files,
    }
    counts
}

/// Permissions and owners.
fn modes(at: &Path, counts: &mut Counts) -> u64 {
    let mut files = 0;
    for mode in [0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o6711, 0o1666, 0o7777] {
        for (uid, gid) in [(0, 0), (1000, 0), (0, 1000), (100_000, 100_001)] {
            let file = at.join(format!("file-{mode:o}-{uid}-{gid}"));
            fs::write(&file, mode.to_string()).unwrap();
            let directory = at.join(format!("directory-{mode:o}-{uid}-{gid}"));
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("inside"), "").unwrap();
            for path in [file, directory] {
                chown(&path, Some(uid), Some(gid)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            }
            files += 1;
            counts.directories += 1;
            counts.empty += 1;
        }
    }
    files
}

fn names(at: &Path, counts: &mut Counts) -> u64 {
    let long = [b'n'; 255];
    let names: [&[u8]; 6] = [b"\xff\xfe not UTF-8 \x80", b"new\nline", b" ", b"...", &long, "\u{1f980}".as_bytes()];
    for name in names {
        fs::write(at.join(OsStr::from_bytes(name)), "text").unwrap();
    }
    let long = at.join(OsStr::from_bytes(&[b'd'; 255]));
    fs::create_dir(&long).unwrap();
    fs::write(long.join("inside"), "text").unwrap();
    counts.directories += 1;
    names.len() as u64 + 1
}

/// What has no content: symlinks, devices, FIFOs, sockets.
fn nodes(at: &Path, counts: &mut Counts) {
    let long = "t".repeat(1000);
    for (name, target) in
        [("relative", "../names"), ("absolute", "/etc/passwd"), ("nowhere", "no/where"), ("long", &long)]
    {
        symlink(target, at.join(name)).unwrap();
        counts.symlinks += 1;
    }
    lchown(at.join("nowhere"), Some(1000), Some(1001)).unwrap();
    lsetxattr(at.join("nowhere"), "trusted.label", b"on a link", XattrFlags::empty()).unwrap();
    let kinds = [
        ("character", FileType::CharacterDevice, makedev(1, 3)),
        ("block", FileType::BlockDevice, makedev(7, 0x3ffff)),
        ("whiteout", FileType::CharacterDevice, makedev(0, 0)),
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
    ];
    for (name, kind, device) in kinds {
        for (suffix, mode, owner) in [("", 0o640, 0), ("-foreign", 0o4666, 1000)] {
            let path = at.join(format!("{name}{suffix}"));
            mknodat(CWD, &path, kind, Mode::empty(), device).unwrap();
            chown(&path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            counts.nodes += 1;
        }
    }
    lsetxattr(at.join("fifo"), "trusted.label", b"on a FIFO", XattrFlags::empty()).unwrap();
}

/// Several names of one inode, in one directory and in others, of all kinds of inodes.
fn links(at: &Path, counts: &mut Counts) -> u64 {
    fs::write(at.join("file"), "linked").unwrap();
    fs::write(at.join("empty"), "").unwrap();
    symlink("target", at.join("symlink")).unwrap();
    mknodat(CWD, at.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    mknodat(CWD, at.join("device"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 5)).unwrap();
    for name in ["file", "empty", "symlink", "fifo", "device"] {
        for further in [at.join(format!("{name}-2")), at.join("below").join(name), at.with_file_name(name)] {
            fs::hard_link(at.join(name), further).unwrap();
            counts.links += 1;
        }
    }
    // One with its other name outside of the tree.
    let outside = at.parent().unwrap().with_file_name("outside");
    fs::write(&outside, "outside").unwrap();
    fs::hard_link(&outside, at.join("outside")).unwrap();
    counts.empty += 1;
    counts.symlinks += 1;
    counts.nodes += 2;
    2
}

/// `struct posix_acl_xattr_header` and its entries (linux/posix_acl_xattr.h): read for user 1000 besides the usual.
pub(crate) const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\
    \x02\0\x04\0\xe8\x03\0\0\
    \x04\0\x05\0\xff\xff\xff\xff\
    \x10\0\x05\0\xff\xff\xff\xff\
    \x20\0\x01\0\xff\xff\xff\xff";
/// `struct vfs_ns_cap_data` of revision 2 (linux/capability.h): CAP_NET_RAW, permitted and effective.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn xattrs(at: &Path, counts: &mut Counts) -> u64 {
    let set = |path: &Path, name: &str, value: &[u8]| {
        lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("{name} {}: {e}", path.display()));
    };
    let (file, directory) = (at.join("file"), at.join("directory"));
    fs::write(&file, "text").unwrap();
    chown(&file, Some(1000), Some(1000)).unwrap();
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("before the ACL"), "text").unwrap();
    fs::create_dir(directory.join("inside")).unwrap();
    for path in [&file, &directory] {
        set(path, "user.text", b"value");
        set(path, "user.empty", b"");
        set(path, "trusted.bytes", &[0, 1, 2, 0xff]);
        set(path, "trusted.overlay.opaque", b"y");
        set(path, "security.other", b"label");
        // Past what fits into an inode.
        set(path, "user.long", &random_bytes(2000));
        set(path, "system.posix_acl_access", ACL);
    }
    set(&directory, "system.posix_acl_default", ACL);
    set(&file, "security.capability", CAPABILITY);
    let empty = at.join("empty");
    fs::write(&empty, "").unwrap();
    set(&empty, "user.only", b"an attribute");
    let root = at.parent().unwrap();
    set(root, "user.root", b"of the tree");
    counts.directories += 2;
    counts.empty += 1;
    2
}

fn times(at: &Path, counts: &mut Counts) -> u64 {
    let cases = [(1, 1), (-1, 999_999_999), (0, 0), (4_000_000_000, 123_456_789), (1_700_000_000, 500)];
    for (number, (seconds, nanoseconds)) in cases.into_iter().enumerate() {
        fs::write(at.join(format!("file-{number}")), "text").unwrap();
        symlink("nowhere", at.join(format!("symlink-{number}"))).unwrap();
        fs::create_dir(at.join(format!("directory-{number}"))).unwrap();
        fs::write(at.join(format!("directory-{number}/inside")), "").unwrap();
        for kind in ["file", "symlink", "directory"] {
            let path = at.join(format!("{kind}-{number}"));
            let last_modification = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let last_access = Timespec { tv_sec: seconds + 100, tv_nsec: nanoseconds };
            let times = Timestamps { last_access, last_modification };
            utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        counts.symlinks += 1;
        counts.directories += 1;
        counts.empty += 1;
    }
    cases.len() as u64
}

/// Each flag on a file, on a file with two names, and on a directory with something in it.
fn flags(setup: Setup, at: &Path, counts: &mut Counts) -> u64 {
    for flag in setup.flags() {
        let path = |kind: &str| at.join(format!("{kind}-{:x}", flag.bits()));
        fs::write(path("file"), "text").unwrap();
        fs::write(path("linked"), "text").unwrap();
        fs::hard_link(path("linked"), path("link")).unwrap();
        fs::create_dir_all(path("directory").join("inside")).unwrap();
        fs::write(path("directory").join("inside/file"), "text").unwrap();
        for kind in ["file", "linked", "directory"] {
            set_flags(&path(kind), *flag);
        }
        counts.links += 1;
        counts.directories += 2;
    }
    3 * setup.flags().len() as u64
}

pub(crate) fn set_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    reflink::set_flags(&file, flags, IFlags::all()).unwrap_or_else(|e| panic!("{flags:?} {}: {e}", path.display()));
}

/// A file of 1 MiB with data in two places and holes around them.
pub(crate) fn holey(path: &Path, length: u64) {
    let file = File::create_new(path).unwrap();
    file.set_len(length).unwrap();
    file.write_all_at(&random_bytes(8192), 65536).unwrap();
    file.write_all_at(&random_bytes(4096), length - 65536).unwrap();
}

/// Where the data of a file is: starts and ends.
pub(crate) fn data_map(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut map, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
        at = seek(&file, SeekFrom::Hole(start)).unwrap();
        map.push((start, at));
    }
    map
}

/// Inode and change time of each entry are those of the clone's, every name is listed once, and directories are numbered.
#[track_caller]
pub(crate) fn assert_listed(cloned: &Cloned, to: &Path) {
    let mut paths = vec![None; cloned.entries.len() + 1];
    paths[0] = Some(to.to_path_buf());
    let mut directories: Vec<_> = cloned.entries.iter().filter(|e| e.child.is_some()).collect();
    directories.sort_by_key(|e| e.child);
    for entry in directories {
        let parent = paths[entry.directory as usize].as_ref().expect("parents have lower numbers");
        paths[entry.child.unwrap() as usize] = Some(parent.join(OsStr::from_bytes(&entry.name)));
    }
    let path_of = |entry: &reflinkd::backend::clone::Entry| {
        paths[entry.directory as usize]
            .as_ref()
            .expect("its directory is listed")
            .join(OsStr::from_bytes(&entry.name))
    };
    let mut listed: Vec<PathBuf> = cloned.entries.iter().map(path_of).collect();
    for (entry, path) in cloned.entries.iter().zip(&listed) {
        let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
        let (seconds, nanoseconds) = entry.ctime;
        assert_eq!(
            (entry.inode, seconds, i64::from(nanoseconds)),
            (meta.ino(), meta.ctime(), meta.ctime_nsec()),
            "{}",
            path.display()
        );
        assert_eq!(entry.kind, FileType::from_raw_mode(meta.mode()), "{}", path.display());
        assert_eq!(entry.child.is_some(), meta.is_dir());
        // What was written is allocated later.
        assert!(entry.blocks == meta.blocks() || cloned.counts.copied > 0, "{}", path.display());
    }
    let root = fs::symlink_metadata(to).unwrap();
    assert_eq!((cloned.root.inode, cloned.root.child, &*cloned.root.name), (root.ino(), Some(0), &b""[..]));
    listed.push(to.to_path_buf());
    listed.sort();
    let mut there = vec![to.to_path_buf()];
    let mut at = 0;
    while at < there.len() {
        if there[at].symlink_metadata().unwrap().is_dir() {
            let below: Vec<PathBuf> = fs::read_dir(&there[at]).unwrap().map(|entry| entry.unwrap().path()).collect();
            there.extend(below);
        }
        at += 1;
    }
    there.sort();
    assert_eq!(listed, there);
}
