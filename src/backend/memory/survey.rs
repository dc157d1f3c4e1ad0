//! The content of all regular files of a tree as hashes of 4 KiB blocks, and what two such surveys differ in.
//!
//! A file is known by its inode, not by its path: a renamed file is the same file, and one with several
//! names is counted once, as on a filesystem that shares extents.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx};
use sha2::{Digest, Sha256};

use crate::backend::clone::Cloned;
use crate::copy::content::data_ranges;
use crate::sys::rooted;
use crate::{Context, Result};

const BLOCK: u64 = 4096;

/// The regular files of a tree by inode number and birth time (inode numbers are used again).
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Survey {
    files: BTreeMap<String, Blocks>,
}

/// One file: its length in bytes, and the first half of the SHA-256 of each block that is not a hole.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Blocks {
    length: u64,
    hashes: BTreeMap<u64, u128>,
}

/// What a tree holds that its origin did not, in bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Whole blocks.
    pub(super) blocks: u64,
    /// Lengths of the files that are new or differ.
    pub(super) lengths: u64,
}

impl Survey {
    pub(super) fn changes_since(&self, origin: &Self) -> Changes {
        let mut changes = Changes::default();
        for (key, now) in &self.files {
            let before = origin.files.get(key);
            if before == Some(now) {
                continue;
            }
            let same = |(block, hash): &(&u64, &u128)| before.is_some_and(|b| b.hashes.get(block) == Some(hash));
            changes.blocks += BLOCK * now.hashes.iter().filter(|entry| !same(entry)).count() as u64;
            changes.lengths += now.length;
        }
        changes
    }

    /// What is in no file of another tree.
    pub(super) fn beyond(&self, other: &Self) -> Changes {
        let known: BTreeSet<u128> = other.files.values().flat_map(|file| file.hashes.values().copied()).collect();
        let mut changes = Changes::default();
        for file in self.files.values().filter(|file| !other.files.values().any(|before| before == *file)) {
            changes.blocks += BLOCK * file.hashes.values().filter(|hash| !known.contains(hash)).count() as u64;
            changes.lengths += file.length;
        }
        changes
    }

    /// What this says of a tree, said of a clone of it: of the inodes that the tree still has, as `now` knows them, with
    /// the names that they have in the clone's survey.
    pub(super) fn carried_over(self, now: &Self, cloned: &Cloned, clone: &Self) -> Self {
        let key = |survey: &Self, inode: u64| {
            let prefix = format!("{inode}-");
            survey
                .files
                .range(prefix.clone()..)
                .next()
                .map(|(key, _)| key.clone())
                .filter(|key| key.starts_with(&prefix))
        };
        let became: BTreeMap<String, String> = cloned
            .entries
            .iter()
            .filter_map(|entry| Some((key(now, entry.origin?.inode)?, key(clone, entry.inode)?)))
            .collect();
        let files = self.files.into_iter().filter_map(|(key, blocks)| Some((became.get(&key)?.clone(), blocks)));
        Self { files: files.collect() }
    }
}

/// What tells a tree from another: the inode of its root.
pub(super) fn identity(root: &Path) -> Result<String> {
    statx(CWD, root, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
        .map(|facts| key(&facts))
        .context(|| format!("stat {}", root.display()))
}

/// What tells an inode from one that gets its number later.
fn key(facts: &Statx) -> String {
    format!("{}-{}.{:09}", facts.stx_ino, facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec)
}

/// Survey the directory tree at `root`.
pub(super) fn survey(root: &Path) -> Result<Survey> {
    let why = |path: &[u8], call: &str| format!("{call} {}/{}", root.display(), path.escape_ascii());
    let open = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
    let base = openat(CWD, root, open | OFlags::DIRECTORY, Mode::empty()).context(|| why(b"", "open"))?;
    let mut survey = Survey::default();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let directory = rooted::beneath(&base, &path, open).context(|| why(&path, "open"))?;
        for entry in Dir::read_from(&directory).context(|| why(&path, "read"))? {
            let entry = entry.context(|| why(&path, "read"))?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let path = if path.is_empty() { name.to_bytes().to_vec() } else { [&path, name.to_bytes()].join(&b'/') };
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            let facts = statx(&directory, name, AtFlags::SYMLINK_NOFOLLOW, wanted).context(|| why(&path, "stat"))?;
            match FileType::from_raw_mode(facts.stx_mode.into()) {
                FileType::Directory => waiting.push(path),
                FileType::RegularFile => {
                    if let Entry::Vacant(unseen) = survey.files.entry(key(&facts)) {
                        let file = openat(&directory, name, open, Mode::empty()).context(|| why(&path, "open"))?;
                        unseen.insert(blocks(&File::from(file)).context(|| why(&path, "read"))?);
                    }
                }
                _ => {}
            }
        }
    }
    Ok(survey)
}

fn blocks(file: &File) -> std::io::Result<Blocks> {
    let length = file.metadata()?.len();
    let mut hashes = BTreeMap::new();
    let mut buffer = [0; BLOCK as usize];
    for range in data_ranges(file, length)? {
        for block in range.start / BLOCK..range.end.div_ceil(BLOCK) {
            let mut filled = 0;
            while filled < buffer.len() {
                match file.read_at(&mut buffer[filled..], block * BLOCK + filled as u64)? {
                    0 => break,
                    got => filled += got,
                }
            }
            let digest = Sha256::digest(&buffer[..filled]);
            hashes.insert(block, digest.iter().take(16).fold(0, |hash, &byte| hash << 8 | u128::from(byte)));
        }
    }
    Ok(Blocks { length, hashes })
}
