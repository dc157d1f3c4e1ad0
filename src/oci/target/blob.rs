//! Compressed layers, whose length and digest are known only at their end: written to a file without a name first.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use crate::oci::compress::Compressor;
use crate::oci::decompress::Compression;
use crate::oci::digest::{Digest, Digesting};
use crate::{Context, Result};

/// Where a blob is in a layout.
pub(super) fn name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A blob in a file without a name.
pub(super) struct Spooled {
    file: File,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Spooled {
    pub(super) fn copy(&mut self, out: &mut dyn Write) -> Result<()> {
        self.file.rewind().and_then(|()| io::copy(&mut self.file, out)).map(drop).context(|| "write a layer")
    }
}

/// Compress what `fill` writes.
pub(super) fn compress(
    compression: Compression,
    spool: &Path,
    fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<Spooled> {
    let what = || format!("write a compressed layer below {}", spool.display());
    let file = tempfile::tempfile_in(spool).context(what)?;
    let out = Digesting::new(BufWriter::new(file));
    let mut compressor = Compressor::new(compression, out).context(what)?;
    fill(&mut compressor)?;
    let digesting = compressor.finish().context(what)?;
    let (out, hasher) = digesting.into_inner();
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).context(what)?;
    Ok(Spooled { file, size: hasher.bytes(), digest: hasher.finish() })
}
