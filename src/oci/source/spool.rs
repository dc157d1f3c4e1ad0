//! A tar that can be sought, from one that can't.
//!
//! Plain files are read in place. Streams and compressed archives are copied (decompressed) first into
//! a file without a name, so that nothing is left behind however this process ends.

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::tar_index::TarIndex;
use crate::oci::decompress::{Compression, MAGIC_LEN};
use crate::oci::limits::{SourceLimits, beyond};
use crate::{Context, Error, Kind, Result};

const BUFFER: usize = 256 << 10;
/// After how many bytes to ask again whether there may be more.
const BETWEEN_CHECKS: u64 = 16 << 20;

/// Where copies are put.
pub(super) struct Spool<'a> {
    pub(super) directory: &'a Path,
    /// Asked before a copy, and as it grows.
    pub(super) check: &'a dyn Fn() -> Result<()>,
}

/// Index an archive's file, in place if it is plain.
pub(super) fn file(file: File, spool: &Spool<'_>, limits: &SourceLimits) -> Result<TarIndex> {
    let mut head = [0; MAGIC_LEN];
    let n = file.read_at(&mut head, 0).context(|| "read the archive")?;
    if n == 0 {
        return Err(empty());
    }
    match Compression::detect(&head[..n])? {
        Compression::Plain => TarIndex::scan(file, limits.entries),
        form => copy(form, file, spool, limits),
    }
}

/// Index an archive that arrives as a stream.
pub(super) fn stream(mut stream: Box<dyn Read + Send>, spool: &Spool<'_>, limits: &SourceLimits) -> Result<TarIndex> {
    let mut head = Vec::with_capacity(MAGIC_LEN);
    (&mut stream).take(MAGIC_LEN as u64).read_to_end(&mut head).context(|| "read the archive")?;
    if head.is_empty() {
        return Err(empty());
    }
    let form = Compression::detect(&head)?;
    copy(form, Cursor::new(head).chain(stream), spool, limits)
}

fn empty() -> Error {
    Error::new(Kind::BadInput, "it is empty")
}

fn copy(form: Compression, from: impl Read, spool: &Spool<'_>, limits: &SourceLimits) -> Result<TarIndex> {
    let mut plain = form.decoder(BufReader::with_capacity(BUFFER, from))?;
    let place = || format!("copy the archive into {}", spool.directory.display());
    let mut copy = tempfile::tempfile_in(spool.directory).context(place)?;
    let mut buffer = vec![0; BUFFER];
    let (mut bytes, mut next_check) = (0_u64, 0);
    loop {
        let n = match plain.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(form.explain(&e)),
        };
        if bytes >= next_check {
            (spool.check)().context(place)?;
            next_check = bytes + BETWEEN_CHECKS;
        }
        bytes += n as u64;
        if bytes > limits.spool_bytes {
            let limit = limits.spool_bytes;
            let why = format!("the archive is larger than the limit of {limit} bytes");
            return Err(beyond(why, "max_archive_size"));
        }
        copy.write_all(&buffer[..n]).context(place)?;
    }
    TarIndex::scan(copy, limits.entries)
}
