//! A tar stream as a sequence of entries.
//!
//! Touches no filesystem and believes nothing: every number is checked where it is read, extension headers
//! are bounded (1 MiB each), file data passes through one fixed buffer. Where readers of tar disagree, this one
//! sides with Go's `archive/tar`, which Docker and containerd use, so that an image means the same here as
//! there: only regular files carry data, whatever another type's header claims; a GNU long name wins over a PAX
//! path; a lone zero block inside the archive is an error. It differs from Go in taking owners and times from
//! global PAX headers, as POSIX says and all other readers do.

pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod source;
mod sparse;

use std::collections::BTreeMap;
use std::io::Read;

use super::bad;
use super::name::quoted;
use super::sink::Sink;
use crate::error::{Context, Error, Result};
use header::Header;
use pax::Records;
use source::{BLOCK, Source, padded, truncated};

pub use pax::Time;
pub use sparse::Segment;

/// One entry, everything about it merged from its headers.
#[derive(Debug)]
pub struct Entry {
    /// As it stands in the archive: not empty, without NUL, otherwise unjudged.
    pub name: Vec<u8>,
    pub what: What,
    pub attributes: Attributes,
    /// How many extended attributes were left out because Linux has no place for them.
    pub foreign_attributes: u64,
}

/// What kind of thing an entry is.
#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// Length in bytes. With a map, only its parts are in the archive, one after the other; without, all is.
    File {
        size: u64,
        map: Option<Vec<Segment>>,
    },
    /// The name of the other link.
    HardLink(Vec<u8>),
    /// The target, not empty.
    Symlink(Vec<u8>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Directory,
    Fifo,
}

/// What an inode has besides its content.
#[derive(Debug, Default)]
pub struct Attributes {
    /// Permissions, set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Extended attributes by their whole names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The entries of a tar stream.
pub struct Archive<'a> {
    source: Source<'a>,
    global: Records,
    /// Data of the current entry still in the stream, and its padding.
    data: u64,
    padding: u64,
}

/// Extension headers that wait for their entry.
#[derive(Default)]
struct Pending {
    records: Option<Records>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<'a> Archive<'a> {
    /// Read at most `max_bytes` of `stream`. `cancelled` is asked at every entry and every block of data.
    ///
    /// All of these have the errors of [`unpack`](super::unpack) that come from the archive.
    pub fn new(stream: &'a mut dyn Read, max_bytes: u64, cancelled: &'a dyn Fn() -> bool) -> Self {
        Self::of(Source::new(stream, max_bytes, cancelled, None))
    }

    /// The same, all bytes of the stream being handed on to `tap` as they are taken.
    pub(crate) fn tapped(
        stream: &'a mut dyn Read,
        max_bytes: u64,
        cancelled: &'a dyn Fn() -> bool,
        tap: &'a mut dyn Sink,
    ) -> Self {
        Self::of(Source::new(stream, max_bytes, cancelled, Some(tap)))
    }

    fn of(source: Source<'a>) -> Self {
        Self { source, global: Records::default(), data: 0, padding: 0 }
    }

    /// An error if the caller wants us to stop.
    pub fn check_cancelled(&self) -> Result<()> {
        self.source.check_cancelled()
    }

    /// The next entry, or `None` at the archive's end. Data of the one before that wasn't read is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.source.skip(self.data + self.padding)?;
        (self.data, self.padding) = (0, 0);
        let mut pending = Pending::default();
        loop {
            let at = self.source.position();
            let here = || format!("tar header at byte {at}");
            self.source.check_cancelled()?;
            let Some(block) = self.source.block().context(here)? else {
                return pending.end();
            };
            if block == [0; BLOCK] {
                return match self.source.block().context(here)? {
                    None => pending.end(),
                    Some(second) if second == [0; BLOCK] => pending.end(),
                    Some(_) => Err(bad("a single zero block stands inside the archive")).context(here),
                };
            }
            let header = Header::parse(&block).context(here)?;
            match header.kind {
                b'x' | b'g' | b'L' | b'K' => self.extension(&header, &mut pending).context(here)?,
                _ => {
                    let name = pending.name(&header);
                    return self
                        .entry(&header, &block, name.clone(), pending)
                        .map(Some)
                        .context(|| format!("entry {}", quoted(&name)));
                }
            }
        }
    }

    /// Take up to `wanted` bytes of the current entry's data, not none, and lend them until the next call.
    pub fn data(&mut self, wanted: u64) -> Result<&[u8]> {
        debug_assert!(wanted > 0 && wanted <= self.data);
        self.source.check_cancelled()?;
        let lent = self.source.data(wanted)?;
        self.data -= lent.len() as u64;
        Ok(lent)
    }

    /// The same of data that becomes that of the file `path` from `offset` on.
    pub(crate) fn content(&mut self, path: &[u8], offset: u64, wanted: u64) -> Result<&[u8]> {
        debug_assert!(wanted > 0 && wanted <= self.data);
        self.source.check_cancelled()?;
        let lent = self.source.content(path, offset, wanted)?;
        self.data -= lent.len() as u64;
        Ok(lent)
    }

    /// Take what stands behind the archive's end.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.source.drain()
    }

    /// Take in a header that only speaks of the next one, or of all that follow.
    fn extension(&mut self, header: &Header, pending: &mut Pending) -> Result<()> {
        let size = u64::try_from(header.size).unwrap_or(u64::MAX);
        if size > pax::MAX_PAYLOAD {
            return Err(bad(format!("an extension header is larger than {} bytes", pax::MAX_PAYLOAD)));
        }
        let mut payload = Vec::with_capacity(size as usize);
        while (payload.len() as u64) < size {
            let lent = self.source.data(size - payload.len() as u64)?;
            payload.extend_from_slice(lent);
        }
        self.source.skip(padded(size)? - size)?;

        let twice = |what| Err(bad(format!("{what} stand before one entry")));
        match header.kind {
            b'g' => self.global.extend_global(&payload)?,
            b'x' if pending.records.is_some() => return twice("two PAX headers"),
            b'x' => pending.records.insert(self.global.clone()).extend(&payload)?,
            b'L' if pending.name.is_some() => return twice("two GNU long names"),
            b'L' => pending.name = Some(long_name(payload)?),
            _ if pending.link.is_some() => return twice("two GNU long link names"),
            _ => pending.link = Some(long_name(payload)?),
        }
        Ok(())
    }

    /// Merge a header with what was said before it.
    fn entry(&mut self, header: &Header, block: &[u8; BLOCK], name: Vec<u8>, pending: Pending) -> Result<Entry> {
        let records = pending.records.unwrap_or_else(|| self.global.clone());
        let link = pending.link.or(records.linkpath).unwrap_or_else(|| header.link.clone());
        if name.is_empty() {
            return Err(bad("it has no name"));
        }
        let linked = || if link.is_empty() { Err(bad("it links to nothing")) } else { Ok(link.clone()) };
        let what = match header.kind {
            // The old format has no type for directories.
            b'\0' if name.ends_with(b"/") => What::Directory,
            b'\0' | b'0' | b'7' | b'S' => {
                let size = records.size.unwrap_or(header.size);
                let stored = u64::try_from(size).map_err(|_| bad("its size is negative"))?;
                self.file(header, block, stored, records.sparse)?
            }
            b'1' => What::HardLink(linked()?),
            b'2' => What::Symlink(linked()?),
            b'3' | b'4' => {
                let (major, minor) = device(header.major, header.minor)?;
                match header.kind {
                    b'3' => What::CharDevice { major, minor },
                    _ => What::BlockDevice { major, minor },
                }
            }
            b'5' => What::Directory,
            b'6' => What::Fifo,
            b'V' => return Err(bad("it is a volume label: archives of several volumes are not supported")),
            b'M' => return Err(bad("it continues on from another volume: that is not supported")),
            other => return Err(bad(format!("its type '{}' is unknown", other.escape_ascii()))),
        };
        let attributes = Attributes {
            mode: header.mode,
            uid: id("uid", records.uid.unwrap_or(header.uid))?,
            gid: id("gid", records.gid.unwrap_or(header.gid))?,
            mtime: records.mtime.unwrap_or(Time { seconds: header.mtime, nanoseconds: 0 }),
            xattrs: records.xattrs,
        };
        Ok(Entry { name, what, attributes, foreign_attributes: records.foreign })
    }

    /// A regular file with `stored` bytes in the archive: find its length and its map.
    fn file(&mut self, header: &Header, block: &[u8; BLOCK], stored: u64, sparse: pax::PaxSparse) -> Result<What> {
        let total = padded(stored)?;
        self.source.check_room(total)?;
        self.padding = total - stored;
        let map = match header.kind {
            b'S' => {
                let (map, size) = sparse::old_gnu(block, &mut self.source)?;
                Some((map, size, 0))
            }
            _ => sparse.map(stored, &mut self.source)?,
        };
        let Some((map, size, taken)) = map else {
            self.data = stored;
            return Ok(What::File { size: stored, map: None });
        };
        let size = u64::try_from(size).map_err(|_| bad("its size is negative"))?;
        self.data = stored - taken;
        sparse::check(&map, size, self.data)?;
        self.source.charge(sparse::overhead(&map))?;
        Ok(What::File { size, map: Some(map) })
    }
}

impl std::fmt::Debug for Archive<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").field("position", &self.source.position()).finish_non_exhaustive()
    }
}

impl Pending {
    /// The archive ends here.
    fn end(self) -> Result<Option<Entry>> {
        if self.records.is_some() || self.name.is_some() || self.link.is_some() { Err(truncated()) } else { Ok(None) }
    }

    fn name(&mut self, header: &Header) -> Vec<u8> {
        let records = self.records.as_mut();
        let pax = records.and_then(|records| records.sparse.take_name().or_else(|| records.path.take()));
        self.name.take().or(pax).unwrap_or_else(|| header.name.clone())
    }
}

/// The payload of a GNU `L` or `K` header: a name with a NUL at its end.
fn long_name(mut payload: Vec<u8>) -> Result<Vec<u8>> {
    while payload.last() == Some(&0) {
        payload.pop();
    }
    if payload.is_empty() || payload.contains(&0) {
        return Err(bad("a GNU long name is empty or holds a NUL"));
    }
    Ok(payload)
}

/// A user or group. The last 32-bit number means "leave as it is" to the kernel and is nobody's.
fn id(what: &str, value: i64) -> Result<u32> {
    u32::try_from(value)
        .ok()
        .filter(|&id| id != u32::MAX)
        .ok_or_else(|| bad(format!("its {what} {value} is not valid")))
}

/// Device numbers as far as the kernel has them: 12 and 20 bits (`MINORBITS` in linux/kdev_t.h).
fn device(major: i64, minor: i64) -> Result<(u32, u32)> {
    let bounded = |value: i64, most| u32::try_from(value).ok().filter(|&v| v <= most);
    bounded(major, 0xfff)
        .zip(bounded(minor, 0xf_ffff))
        .ok_or_else(|| -> Error { bad(format!("its device numbers {major}, {minor} are not valid")) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
