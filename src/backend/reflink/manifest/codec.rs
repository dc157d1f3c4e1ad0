//! Bytes of a manifest; the format is in the module above.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use uuid::Uuid;

use super::{Base, Head, Name};
use crate::backend::GroupId;
use crate::backend::clone::Entry;
use crate::{Error, Kind};

const MAGIC: &[u8; 8] = b"reflinkt";
const FORMAT: u32 = 1;
/// Magic, format, length.
const PREFIX: usize = 16;
/// The fields without the base's place.
const FIELDS: usize = 16 + 4 + 4 + 8 + 8 + 8 + 16;
/// linux/limits.h: PATH_MAX.
const LONGEST_PLACE: usize = 4096;

const READ_ONLY: u32 = 1;
const HAS_GROUP: u32 = 2;
const HAS_BASE: u32 = 4;
const BASE_READ_ONLY: u32 = 8;
const FORK: u32 = 16;

/// zstd's fastest but the negative ones.
const LEVEL: i32 = 1;

/// Why a manifest can't be read.
#[derive(Debug)]
pub(super) enum Fault {
    System(io::Error),
    /// It isn't what was written, and this is how that shows.
    Broken(String),
}

impl Fault {
    pub(super) fn at(self, path: &Path) -> Error {
        match self {
            Self::System(error) => Error::system(format!("read {}", path.display()), &error),
            Self::Broken(how) => Error::new(Kind::Damaged, format!("{} is damaged: {how}", path.display())),
        }
    }
}

impl From<io::Error> for Fault {
    /// What the system didn't say is what zstd says of its input, or an early end.
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(_) => Self::System(error),
            None => Self::Broken(error.to_string()),
        }
    }
}

fn broken<T>(how: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Broken(how.into()))
}

/// The head with its checksum.
pub(super) fn head(head: &Head) -> Vec<u8> {
    let base = head.base.as_ref();
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    let flags = flag(head.read_only, READ_ONLY)
        | flag(head.group.is_some(), HAS_GROUP)
        | flag(base.is_some(), HAS_BASE)
        | flag(base.is_some_and(|base| base.read_only), BASE_READ_ONLY)
        | flag(head.fork, FORK);
    let place = base.map_or(&b""[..], |base| base.place.as_os_str().as_bytes());
    let length = (FIELDS + place.len()) as u32;
    let mut bytes = Vec::with_capacity(PREFIX + FIELDS + place.len() + 4);
    bytes.extend(MAGIC);
    bytes.extend(FORMAT.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(head.id.as_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes.extend(head.group.map_or(0, |group| group.0).to_le_bytes());
    bytes.extend(head.entries.to_le_bytes());
    bytes.extend(head.metadata.to_le_bytes());
    bytes.extend(head.blocks.to_le_bytes());
    bytes.extend(base.map_or(Uuid::nil(), |base| base.id).as_bytes());
    bytes.extend(place);
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

pub(super) fn read_head(file: &mut impl Read) -> Result<Head, Fault> {
    let mut bytes = vec![0; PREFIX];
    file.read_exact(&mut bytes)?;
    let mut prefix = Cursor(&bytes);
    if prefix.take(MAGIC.len())? != MAGIC {
        return broken("it isn't a manifest");
    }
    let format = prefix.u32()?;
    if format != FORMAT {
        return broken(format!("it has format {format}, this reflinkd knows format {FORMAT}"));
    }
    let length = prefix.u32()? as usize;
    if !(FIELDS..=FIELDS + LONGEST_PLACE).contains(&length) {
        return broken("its head has an impossible length");
    }
    bytes.resize(PREFIX + length + 4, 0);
    file.read_exact(&mut bytes[PREFIX..])?;
    let (covered, sum) = bytes.split_at(PREFIX + length);
    if Cursor(sum).u32()? != crc32c::crc32c(covered) {
        return broken("the checksum of its head is wrong");
    }
    let mut fields = Cursor(&covered[PREFIX..]);
    let id = fields.uuid()?;
    let flags = fields.u32()?;
    let group = fields.u32()?;
    let (entries, metadata, blocks) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let base_id = fields.uuid()?;
    let base = (flags & HAS_BASE != 0).then(|| Base {
        place: PathBuf::from(OsStr::from_bytes(fields.0)),
        id: base_id,
        read_only: flags & BASE_READ_ONLY != 0,
    });
    let group = (flags & HAS_GROUP != 0).then_some(GroupId(group));
    let fork = flags & FORK != 0;
    Ok(Head { id, group, read_only: flags & READ_ONLY != 0, base, fork, entries, metadata, blocks })
}

/// The lists of all directories; those of a directory that isn't listed itself are left out.
pub(super) fn body(entries: &[Entry]) -> Vec<u8> {
    let directories = entries.iter().map(|entry| entry.directory as usize + 1).max().unwrap_or(1);
    let mut lists: Vec<Vec<&Entry>> = vec![Vec::new(); directories];
    for entry in entries {
        lists[entry.directory as usize].push(entry);
    }
    let mut body = Vec::with_capacity(entries.len() * 32);
    let mut turns = VecDeque::from([0]);
    while let Some(number) = turns.pop_front() {
        let list = lists.get(number).map_or(&[][..], Vec::as_slice);
        turns.extend(list.iter().filter_map(|entry| entry.child).map(|child| child as usize));
        let ctime = |entry: &Entry| nanoseconds(entry.ctime);
        put_list(&mut body, list.iter().map(|entry| (entry.kind, entry.inode, ctime(entry), &*entry.name)));
    }
    body
}

/// The same of names that are in the order of a body, in so many directories.
pub(super) fn body_of(names: &[Name], directories: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(names.len() * 32);
    let mut rest = names;
    for directory in 0..directories {
        let (list, others) = rest.split_at(rest.partition_point(|name| name.directory == directory));
        put_list(&mut body, list.iter().map(|name| (name.kind, name.inode, name.ctime, &*name.name)));
        rest = others;
    }
    body
}

/// Type, inode, change time, and name.
type Listed<'a> = (FileType, u64, i64, &'a [u8]);

fn put_list<'a>(body: &mut Vec<u8>, list: impl ExactSizeIterator<Item = Listed<'a>>) {
    body.extend((list.len() as u32).to_le_bytes());
    let (mut last_inode, mut last_ctime) = (0_u64, 0_i64);
    for (kind, inode, ctime, name) in list {
        body.push((kind.as_raw_mode() >> 12) as u8);
        // A name has at most 255 bytes.
        body.push(name.len() as u8);
        body.extend(inode.wrapping_sub(last_inode).to_le_bytes());
        body.extend(ctime.wrapping_sub(last_ctime).to_le_bytes());
        body.extend(name);
        (last_inode, last_ctime) = (inode, ctime);
    }
}

/// The names of a body that has `count` of them.
pub(super) fn names(body: &[u8], count: u64) -> Result<Vec<Name>, Fault> {
    let mut rest = Cursor(body);
    let (mut names, mut directories) = (Vec::new(), 1);
    let mut directory = 0;
    while directory < directories {
        let (mut inode, mut ctime) = (0_u64, 0_i64);
        for _ in 0..rest.u32()? {
            let kind = match FileType::from_raw_mode(u32::from(rest.u8()?) << 12) {
                FileType::Unknown => return broken("a name has no type"),
                kind => kind,
            };
            let length = rest.u8()?;
            inode = inode.wrapping_add(rest.u64()?);
            ctime = ctime.wrapping_add(rest.u64()?.cast_signed());
            let name = rest.take(length.into())?.into();
            directories += usize::from(kind == FileType::Directory);
            names.push(Name { directory, name, inode, ctime, kind });
        }
        directory += 1;
    }
    if names.len() as u64 != count || !rest.0.is_empty() {
        return broken("it doesn't have as many names as its head says");
    }
    Ok(names)
}

/// ns since 1970; wraps around in 2262.
pub fn nanoseconds((seconds, nanoseconds): (i64, u32)) -> i64 {
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds.into())
}

pub(super) fn compress(body: &[u8], file: impl Write) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(file, LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.write_all(body)?;
    encoder.finish()?;
    Ok(())
}

pub(super) fn decompress(file: impl io::BufRead) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    zstd::Decoder::with_buffer(file)?.read_to_end(&mut body)?;
    Ok(body)
}

/// Bytes that are still to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else { return broken("it ends too early") };
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, Fault> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn uuid(&mut self) -> Result<Uuid, Fault> {
        Ok(Uuid::from_bytes(self.array()?))
    }
}
