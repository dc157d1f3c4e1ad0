//! The content of all regular files of a tree as hashes of 4 KiB blocks, and what two such surveys differ in.
//!
//! A file is known by its inode, not by its path: a renamed file is the same file, and one with several
//! names is counted once, as on a filesystem that shares extents.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use sha2::{Digest, Sha256};

use crate::backend::copy::{data_ranges, open_dir, shown};
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
}

/// Survey the directory tree at `root`.
pub(super) fn survey(root: &Path) -> Result<Survey> {
    let directory = open_dir(CWD, root).context(|| format!("open {}", root.display()))?;
    let mut survey = Survey::default();
    visit(&mut survey, &directory, Path::new(""))?;
    Ok(survey)
}

fn visit(survey: &mut Survey, directory: &OwnedFd, path: &Path) -> Result<()> {
    let entries = Dir::read_from(directory).context(|| format!("read {}", shown(path)))?;
    for entry in entries {
        let entry = entry.context(|| format!("read {}", shown(path)))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let path = path.join(OsStr::from_bytes(name.to_bytes()));
        let why = |call: &str| format!("{call} {}", shown(&path));
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let facts = statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, wanted).context(|| why("stat"))?;
        match FileType::from_raw_mode(facts.stx_mode.into()) {
            FileType::Directory => visit(survey, &open_dir(directory, name).context(|| why("open"))?, &path)?,
            FileType::RegularFile => {
                let key = format!("{}-{}.{:09}", facts.stx_ino, facts.stx_btime.tv_sec, facts.stx_btime.tv_nsec);
                if let Entry::Vacant(unseen) = survey.files.entry(key) {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NOATIME | OFlags::CLOEXEC;
                    let file = openat(directory, name, flags, Mode::empty()).context(|| why("open"))?;
                    let blocks = blocks(&File::from(file)).context(|| why("read"))?;
                    unseen.insert(blocks);
                }
            }
            _ => {}
        }
    }
    Ok(())
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
