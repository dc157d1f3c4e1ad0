//! Where the entries of a tar are, by one pass over its headers.
//!
//! For the tar *around* an image (an OCI archive, a docker archive), never for layers: of its entries
//! only name, place and link target matter, nothing is extracted. Headers are read with the `tar` crate's
//! field parsers, and one by one instead of through its iterator, because that reads long names and
//! PAX records into memory whole, however long they claim to be.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tar::{EntryType, Header, PaxExtensions};

use super::files::{Extent, normalized};
use crate::oci::digest::quoted;
use crate::oci::limits::beyond;
use crate::{Context, Error, Kind, Result};

const BLOCK: u64 = 512;
/// Longest name that is kept. Those of blobs have 77 bytes, of old layers 74.
const MAX_NAME: usize = 256;
/// Longest PAX header or GNU long name that is read.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most links from name to name. Docker writes one.
const MAX_LINKS: usize = 8;

/// The entries of a tar by name. Of several with one name, the last counts, as in extraction.
#[derive(Debug)]
pub(super) struct TarIndex {
    file: Arc<File>,
    entries: HashMap<String, Entry>,
}

#[derive(Debug)]
enum Entry {
    File {
        offset: u64,
        len: u64,
    },
    /// To another name from the top (hard link).
    Hard(String),
    /// To another name from the entry's directory (symlink).
    Symbolic(String),
    /// A directory, a device, a sparse file: nothing an image is made of.
    Other,
}

/// What extension headers say about the entry behind them.
#[derive(Default)]
struct Extensions {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(Kind::BadInput, why)
}

impl TarIndex {
    /// Scan a plain tar from its front to the end mark or the file's end.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for what isn't a tar, is cut short, has more than `max_entries` entries or
    /// names that lead outside.
    pub(super) fn scan(file: File, max_entries: usize) -> Result<Self> {
        let mut scan = Scan { len: file.metadata().context(|| "stat the archive")?.len(), file: &file, at: 0 };
        let mut entries = HashMap::new();
        let mut count = 0;
        let mut extensions = Extensions::default();
        while let Some(header) = scan.header()? {
            count += 1;
            if count > max_entries {
                let why = format!("the archive has more entries than the limit of {max_entries}");
                return Err(beyond(why, "max_archive_entries"));
            }
            match header.entry_type() {
                EntryType::GNULongName => extensions.path = Some(text(&scan.extension(&header)?)),
                EntryType::GNULongLink => extensions.link = Some(text(&scan.extension(&header)?)),
                EntryType::XHeader => extensions.pax(&scan.extension(&header)?)?,
                EntryType::XGlobalHeader => _ = scan.skip_data(&header, None)?,
                _ => {
                    let extensions = std::mem::take(&mut extensions);
                    let (name, entry) = scan.entry(&header, extensions)?;
                    if let Some(name) = name.filter(|name| name.len() <= MAX_NAME) {
                        entries.insert(name, entry);
                    }
                }
            }
        }
        Ok(Self { file: Arc::new(file), entries })
    }

    /// The file with this (normalized) name, links followed.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for links that lead outside, nowhere or in circles, and for what isn't a file.
    pub(super) fn find(&self, name: &str) -> Result<Option<Extent>> {
        let mut at = name.to_string();
        for links in 0..=MAX_LINKS {
            at = match self.entries.get(&at) {
                None if links == 0 => return Ok(None),
                None => return Err(bad(format!("{} is a link to {}, which is missing", quoted(name), quoted(&at)))),
                Some(Entry::File { offset, len }) => {
                    return Ok(Some(Extent { file: Arc::clone(&self.file), offset: *offset, len: *len }));
                }
                Some(Entry::Other) => return Err(bad(format!("{} isn't a regular file", quoted(&at)))),
                Some(Entry::Hard(target)) => normalized(target).context(|| format!("{} links out", quoted(&at)))?,
                Some(Entry::Symbolic(target)) => follow(&at, target)?,
            };
        }
        Err(bad(format!("{} is a link through more than {MAX_LINKS} others", quoted(name))))
    }
}

/// Where a symlink leads, in the archive's own terms.
fn follow(link: &str, target: &str) -> Result<String> {
    let outside = || bad(format!("{} is a symlink to {}, outside of the archive", quoted(link), quoted(target)));
    if target.starts_with('/') {
        return Err(outside());
    }
    let mut parts: Vec<&str> = link.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => _ = parts.pop().ok_or_else(outside)?,
            _ => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

struct Scan<'a> {
    file: &'a File,
    len: u64,
    at: u64,
}

impl Scan<'_> {
    /// The next header, or nothing at the end.
    fn header(&mut self) -> Result<Option<Header>> {
        let left = self.len - self.at;
        // Some writers leave out the two blocks of zeros that mark the end; tar readers don't mind.
        if left == 0 && self.at > 0 {
            return Ok(None);
        }
        if left < BLOCK {
            return Err(if self.at == 0 { bad("it is too short for an archive") } else { self.truncated() });
        }
        let mut header = Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), self.at).context(|| "read the archive")?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = header
            .as_bytes()
            .iter()
            .enumerate()
            // The checksum's own field counts as spaces.
            .map(|(i, byte)| if (148..156).contains(&i) { 32 } else { u32::from(*byte) })
            .sum();
        if header.cksum().ok() != Some(sum) {
            return Err(match self.at {
                0 => bad("it isn't a tar archive"),
                at => bad(format!("the archive is damaged: no tar header at byte {at}")),
            });
        }
        self.at += BLOCK;
        Ok(Some(header))
    }

    /// Step over an entry's data. Returns where it is.
    fn skip_data(&mut self, header: &Header, size: Option<u64>) -> Result<(u64, u64)> {
        let len = match size {
            Some(size) => size,
            None => header.entry_size().map_err(|e| damaged("a size", &e))?,
        };
        let start = self.at;
        let end = start.checked_add(len).filter(|end| *end <= self.len).ok_or_else(|| self.truncated())?;
        // The last entry's padding may be missing, like the end's mark.
        self.at = end.next_multiple_of(BLOCK).min(self.len);
        Ok((start, len))
    }

    /// The data of an extension header.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let (start, len) = self.skip_data(header, None)?;
        if len > MAX_EXTENSION {
            return Err(bad(format!("the archive has an extended header of {len} bytes")));
        }
        let mut data = vec![0; usize::try_from(len).unwrap_or_default()];
        self.file.read_exact_at(&mut data, start).context(|| "read the archive")?;
        Ok(data)
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<(Option<String>, Entry)> {
        let name = extensions.path.unwrap_or_else(|| text(&header.path_bytes()));
        let target = || {
            let link = extensions.link.unwrap_or_else(|| text(&header.link_name_bytes().unwrap_or_default()));
            if link.len() > MAX_NAME { None } else { Some(link) }
        };
        let kind = header.entry_type();
        // By POSIX these have no data, whatever their size field says.
        let bare = matches!(
            kind,
            EntryType::Directory
                | EntryType::Link
                | EntryType::Symlink
                | EntryType::Char
                | EntryType::Block
                | EntryType::Fifo
        );
        let size = if bare { Some(0) } else { extensions.size };
        let (offset, len) = self.skip_data(header, size).context(|| format!("entry {}", quoted(&name)))?;
        let entry = match kind {
            EntryType::Regular | EntryType::Continuous if !extensions.sparse => Entry::File { offset, len },
            EntryType::Link => target().map_or(Entry::Other, Entry::Hard),
            EntryType::Symlink => target().map_or(Entry::Other, Entry::Symbolic),
            EntryType::GNUSparse => {
                return Err(Error::new(Kind::Unsupported, format!("entry {} is sparse", quoted(&name)))
                    .with_hint("make the archive without --sparse"));
            }
            _ => Entry::Other,
        };
        // The archive's own directory is in it as "./".
        if kind == EntryType::Directory
            && name.split('/').all(|part| matches!(part, "" | "."))
            && !name.starts_with('/')
        {
            return Ok((None, entry));
        }
        Ok((Some(normalized(&name).context(|| "an entry's name")?), entry))
    }

    fn truncated(&self) -> Error {
        bad(format!("the archive is truncated: it ends within an entry, at {} bytes", self.len))
    }
}

impl Extensions {
    /// POSIX.1-2001 pax: `path`, `linkpath`, `size`; GNU's sparse files are marked by keys of their own.
    fn pax(&mut self, data: &[u8]) -> Result<()> {
        for record in PaxExtensions::new(data) {
            let record = record.map_err(|e| damaged("an extended header", &e))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.path = Some(text(value)),
                b"linkpath" => self.link = Some(text(value)),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                    self.size = Some(size.ok_or_else(|| bad("the archive has a damaged size"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The words of the `tar` crate, which quote names as they are.
fn damaged(what: &str, error: &std::io::Error) -> Error {
    bad(format!("the archive is damaged: {what}: {}", quoted(&error.to_string())))
}

/// A name's text up to its first NUL. What isn't UTF-8 can't be a name that we look for.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
