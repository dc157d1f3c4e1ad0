//! Random edits of a tree, all kinds that a process in a container has.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use reflinkd::sys::btrfs::{BtrfsFd, Create, subvol};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, chmodat, chownat,
    fallocate, lremovexattr, lsetxattr, mknodat, renameat_with, utimensat,
};
use rustix::fs::{Gid, Uid};

/// Edits that a layer is made with.
pub(crate) const FILLING: usize = 80;
/// Edits between two comparisons.
pub(crate) const STEPS: usize = 25;

/// The first so many, or what CHANGES_SEED says: one number, or a range (`20..500`).
pub(crate) fn seeds(most: u64) -> Range<u64> {
    let Ok(text) = std::env::var("CHANGES_SEED") else { return 0..most };
    let number = |text: &str| text.parse().expect("CHANGES_SEED is a number, or two with .. between");
    let one = || number(&text)..number(&text) + 1;
    text.split_once("..").map_or_else(one, |(from, to)| number(from)..number(to))
}

/// xorshift64*: the same numbers for the same seed, everywhere.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { of.get(self.below(of.len() as u64) as usize) }
    }
}

/// What is in a tree now, subvolumes in it included.
struct Listing {
    directories: Vec<PathBuf>,
    files: Vec<PathBuf>,
    others: Vec<PathBuf>,
    subvolumes: Vec<PathBuf>,
}

fn list(root: &Path) -> Listing {
    let mut listing = Listing {
        directories: vec![root.to_path_buf()],
        files: Vec::new(),
        others: Vec::new(),
        subvolumes: Vec::new(),
    };
    let mut at = 0;
    while let Some(directory) = listing.directories.get(at).cloned() {
        at += 1;
        let entries = fs::read_dir(&directory).expect("read a directory");
        let mut entries: Vec<_> = entries.map(|entry| entry.expect("read a directory").path()).collect();
        entries.sort();
        for path in entries {
            let facts = fs::symlink_metadata(&path).expect("stat");
            match () {
                () if facts.is_dir() => {
                    if facts.ino() == 256 {
                        listing.subvolumes.push(path.clone());
                    }
                    listing.directories.push(path);
                }
                () if facts.is_file() => listing.files.push(path),
                () => listing.others.push(path),
            }
        }
    }
    listing
}

/// What there is, by the number of kinds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Edits {
    Everywhere = 27,
    /// And files that share blocks.
    WithReflinks = 30,
    /// And subvolumes.
    WithSubvolumes = 32,
}

/// Edits one tree.
#[derive(Debug)]
pub(crate) struct Editor {
    root: PathBuf,
    pub(crate) random: Random,
    edits: Edits,
    /// What was done, for messages.
    pub(crate) log: Vec<String>,
}

impl Editor {
    pub(crate) fn new(root: &Path, seed: u64, edits: Edits) -> Self {
        Self { root: root.to_path_buf(), random: Random::new(seed), edits, log: Vec::new() }
    }

    /// What comes next is done to another tree.
    pub(crate) fn goes_on(&mut self, root: &Path) {
        self.root = root.to_path_buf();
        self.log.push("a fork".to_string());
    }

    /// One edit. One that the filesystem refuses (a directory into itself, say) changes nothing.
    pub(crate) fn step(&mut self) {
        let listing = list(&self.root);
        let all: Vec<_> = [&listing.files, &listing.others, &listing.directories[1..].to_vec()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let random = &mut self.random;
        let pick = |random: &mut Random, of: &[PathBuf]| random.one(of).cloned().unwrap_or_default();
        let (file, any, another) = (pick(random, &listing.files), pick(random, &all), pick(random, &all));
        // A sparse one has GiBs.
        let small = Some(&file).filter(|file| file.metadata().is_ok_and(|facts| facts.len() < 16 << 20));
        let small = small.cloned().unwrap_or_default();
        let directory = pick(random, &listing.directories);
        let not_directories: Vec<_> = listing.files.iter().chain(&listing.others).cloned().collect();
        let flat = pick(random, &not_directories);
        let name = directory.join(new_name(random));
        // Names that were there before: things come back at them.
        let known = if random.below(3) == 0 { any.clone() } else { name.clone() };
        let (what, done) = match random.below(self.edits as u64) {
            0 | 1 => ("write", write(&file, random)),
            2 => ("truncate", truncate(&file, random)),
            3 | 4 => ("overwrite and put the time back", overwrite(&file, random)),
            5 => ("write the same again", rewrite(&small)),
            6 => ("chmod", chmod(&any, random)),
            7 => ("chown", chown(&any, random)),
            8 => ("set an xattr", set_xattr(&any, random)),
            9 => ("remove an xattr", remove_xattr(&any, random)),
            10 | 11 => ("link", fs::hard_link(&flat, &name)),
            12 => ("unlink", fs::remove_file(&flat)),
            13 | 14 => ("rename", fs::rename(&any, &name)),
            15 => ("rename over", fs::rename(&any, &another)),
            16 => ("exchange", exchange(&any, &another)),
            17 => ("remove a tree", remove(&any, &listing)),
            18 => ("make anew as something else", remove(&any, &listing).and_then(|()| make(&any, random))),
            19 => ("make anew as it was", make_as_it_was(&small)),
            20 | 21 => ("make", make(&known, random)),
            22 => ("make a tree", make_tree(&name, random)),
            23 => ("retarget a symlink", retarget(&flat, random)),
            24 => ("utimes", utimes(&any, random)),
            25 => ("punch a hole", punch(&file, random)),
            26 => ("read", fs::read(&small).map(drop)),
            27 => ("reflink", reflink(&file, &known)),
            28 => ("sync", File::open(&file).and_then(|file| file.sync_all())),
            29 => ("sync all", File::open(&self.root).and_then(|root| rustix::fs::syncfs(root).map_err(Into::into))),
            30 => ("make a subvolume", subvolume(&name)),
            _ => ("snapshot inside", snapshot(&self.root, &listing, &name, random)),
        };
        let outcome = done.map_or_else(|e| format!(" ({e})"), |()| String::new());
        self.log.push(format!("{what}: {any:?} {another:?} {file:?} {flat:?} {known:?} {name:?}{outcome}"));
    }
}

/// One of a few, so that they meet again; some are no UTF-8, some have all that a line may not have.
fn new_name(random: &mut Random) -> &'static OsStr {
    const NAMES: [&[u8]; 18] = [
        b"a",
        b"b",
        b"c",
        b"d",
        b"e",
        b"f",
        b"A",
        b"a.b",
        b"a-b",
        b"o257-6-0",
        b"\xff\xfe",
        b"new\nline",
        b" ",
        b"\\",
        b"ab",
        b"\xc3\xa9",
        // Past what a ustar header holds: one alone, one in a directory of its kind.
        &[b'l'; 101],
        &[b'\xff'; 60],
    ];
    OsStr::from_bytes(random.one(&NAMES).expect("some"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn write(file: &Path, random: &mut Random) -> io::Result<()> {
    let at = random.below(100_000);
    let length = 1 + random.below(20_000);
    open(file)?.write_all_at(&random.bytes(length), at)
}

fn truncate(file: &Path, random: &mut Random) -> io::Result<()> {
    let size = if random.below(3) == 0 { 0 } else { random.below(150_000) };
    open(file)?.set_len(size)
}

/// Within one tick of the clock, or not: the time is the same to the ns.
fn overwrite(path: &Path, random: &mut Random) -> io::Result<()> {
    let file = open(path)?;
    let facts = file.metadata()?;
    if facts.size() > 0 {
        let at = random.below(facts.size());
        let length = 1 + random.below((facts.size() - at).min(100_000));
        file.write_all_at(&random.bytes(length), at)?;
    }
    put_back(path, &facts)
}

fn rewrite(path: &Path) -> io::Result<()> {
    let (content, facts) = (fs::read(path)?, fs::symlink_metadata(path)?);
    open(path)?.write_all_at(&content, 0)?;
    put_back(path, &facts)
}

fn put_back(path: &Path, facts: &fs::Metadata) -> io::Result<()> {
    let time = |sec, nsec| Timespec { tv_sec: sec, tv_nsec: nsec };
    let times = Timestamps {
        last_access: time(facts.atime(), facts.atime_nsec()),
        last_modification: time(facts.mtime(), facts.mtime_nsec()),
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn chmod(path: &Path, random: &mut Random) -> io::Result<()> {
    let mode = [0o600, 0o644, 0o4755, 0o1777][random.below(4) as usize];
    if fs::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    Ok(chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?)
}

fn chown(path: &Path, random: &mut Random) -> io::Result<()> {
    let id = |random: &mut Random| [0, 1, 2, 3_000_000_000][random.below(4) as usize];
    let (uid, gid) = (Uid::from_raw(id(random)), Gid::from_raw(id(random)));
    Ok(chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

const XATTRS: [&str; 4] = ["security.selinux", "trusted.two", "security.capability", "user.a=b\n"];

fn set_xattr(path: &Path, random: &mut Random) -> io::Result<()> {
    let name = random.one(&XATTRS).expect("some");
    let value = if *name == XATTRS[2] {
        // struct vfs_ns_cap_data, version 2, with one capability or another.
        let mut value = vec![0, 0, 0, 2];
        value.extend([1 << random.below(2), 0, 0, 0].repeat(4));
        value
    } else {
        let length = random.below(300);
        random.bytes(length)
    };
    Ok(lsetxattr(path, *name, &value, XattrFlags::empty())?)
}

fn remove_xattr(path: &Path, random: &mut Random) -> io::Result<()> {
    Ok(lremovexattr(path, *random.one(&XATTRS).expect("some"))?)
}

fn exchange(one: &Path, two: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE)?)
}

fn remove(path: &Path, listing: &Listing) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    // rmdir removes an empty subvolume; one in a read-only state there is none.
    match fs::symlink_metadata(path)?.is_dir() {
        true => {
            for inside in listing.subvolumes.iter().rev().filter(|inside| inside.starts_with(path)) {
                let parent = BtrfsFd::open(inside.parent().expect("it is in something"))?;
                subvol::snap_destroy(&parent, inside.file_name().expect("it has a name"))?;
            }
            if path.exists() { fs::remove_dir_all(path) } else { Ok(()) }
        }
        false => fs::remove_file(path),
    }
}

fn make(path: &Path, random: &mut Random) -> io::Result<()> {
    let node = |kind, device| Ok(mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), device)?);
    let device = rustix::fs::makedev(1, 3 + random.below(2) as u32 * 2);
    match random.below(8) {
        0 => fs::create_dir(path),
        1 => symlink(["/etc", "a", "../b"][random.below(3) as usize], path),
        2 => node(FileType::Fifo, 0),
        3 => node(FileType::CharacterDevice, device),
        4 => node(FileType::BlockDevice, device),
        5 => node(FileType::Socket, 0),
        6 => {
            let file = File::create_new(path)?;
            // More than 1 GiB of holes, more than a ustar header's size, or neither.
            file.set_len(if random.below(8) == 0 { 9 << 30 } else { random.below(8 << 20) })?;
            file.write_all_at(&random.bytes(10), random.below(4 << 20))
        }
        _ => {
            let length = random.below(9_000);
            // A FIFO that has the name already must not be waited for.
            let flags = libc::O_NONBLOCK;
            let file = OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags).open(path);
            file?.write_all(&random.bytes(length))
        }
    }
}

/// Another inode with everything of the old one.
fn make_as_it_was(path: &Path) -> io::Result<()> {
    let facts = fs::symlink_metadata(path)?;
    let content = fs::read(path)?;
    fs::remove_file(path)?;
    fs::write(path, content)?;
    chownat(CWD, path, Some(Uid::from_raw(facts.uid())), Some(Gid::from_raw(facts.gid())), AtFlags::empty())?;
    chmodat(CWD, path, Mode::from_raw_mode(facts.mode()), AtFlags::empty())?;
    put_back(path, &facts)
}

fn make_tree(path: &Path, random: &mut Random) -> io::Result<()> {
    let mut directory = path.to_path_buf();
    for _ in 0..1 + random.below(4) {
        fs::create_dir(&directory)?;
        make(&directory.join(new_name(random)), random)?;
        directory.push(new_name(random));
    }
    Ok(())
}

fn retarget(path: &Path, random: &mut Random) -> io::Result<()> {
    fs::read_link(path)?;
    let facts = fs::symlink_metadata(path)?;
    fs::remove_file(path)?;
    symlink(["/etc", "x", "/usr"][random.below(3) as usize], path)?;
    put_back(path, &facts)
}

fn utimes(path: &Path, random: &mut Random) -> io::Result<()> {
    let seconds = [-2_000_000_000, -1, 0, 1, 9 << 30][random.below(5) as usize];
    let time = Timespec { tv_sec: seconds, tv_nsec: [0, 1, 999_999_999][random.below(3) as usize] };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn punch(path: &Path, random: &mut Random) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(open(path)?, flags, random.below(50_000), 1 + random.below(50_000))?)
}

fn subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path);
    subvol::subvol_create(&BtrfsFd::open(parent)?, name, &Create::default())?;
    fs::write(path.join("inside"), "inside")
}

/// Of the whole tree, or of a subvolume in it: what they hold inside becomes empty directories.
fn snapshot(root: &Path, listing: &Listing, path: &Path, random: &mut Random) -> io::Result<()> {
    let source = random.one(&listing.subvolumes).map_or(root, PathBuf::as_path);
    if listing.subvolumes.len() > 4 {
        return Ok(());
    }
    let (parent, name) = split(path);
    Ok(subvol::snap_create(&BtrfsFd::open(source)?, &BtrfsFd::open(parent)?, name, &Create::default())?)
}

fn reflink(from: &Path, to: &Path) -> io::Result<()> {
    let to = OpenOptions::new().create(true).truncate(false).write(true).custom_flags_nofollow().open(to)?;
    Ok(rustix::fs::ioctl_ficlone(to, File::open(from)?)?)
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().expect("it is in something"), path.file_name().expect("it has a name"))
}

/// Symlinks of these tests lead out of the tree.
trait NoFollow {
    fn custom_flags_nofollow(&mut self) -> &mut Self;
}

impl NoFollow for OpenOptions {
    fn custom_flags_nofollow(&mut self) -> &mut Self {
        use std::os::unix::fs::OpenOptionsExt;
        self.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
    }
}
