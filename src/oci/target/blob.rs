//! Compressed layers, whose length and digest are known only at their end: written to a file without a name first.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::oci::compress::Compressor;
use crate::oci::decompress::Compression;
use crate::oci::digest::{Digest, Digesting};
use crate::oci::manifest::Descriptor;
use crate::{Context, Result};

/// Where a blob is in a layout.
pub(super) fn name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A blob in a file without a name.
#[derive(Debug)]
pub struct Spooled {
    file: Arc<File>,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

impl Spooled {
    /// Compress what `fill` writes into a file in the directory `spool`. The same bytes give the same blob.
    ///
    /// # Errors
    /// Those of `fill`, and of the file.
    pub fn compress(
        compression: Compression,
        spool: &Path,
        fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
    ) -> Result<Self> {
        let what = || format!("write a layer's blob below {}", spool.display());
        let file = tempfile::tempfile_in(spool).context(what)?;
        let out = Digesting::new(BufWriter::new(file));
        let mut compressor = Compressor::new(compression, out).context(what)?;
        fill(&mut compressor)?;
        let digesting = compressor.finish().context(what)?;
        let (out, hasher) = digesting.into_inner();
        let file = Arc::new(out.into_inner().map_err(io::IntoInnerError::into_error).context(what)?);
        Ok(Self { file, size: hasher.bytes(), digest: hasher.finish() })
    }

    /// What a manifest says of it.
    #[must_use]
    pub fn descriptor(&self, media_type: &str) -> Descriptor {
        Descriptor::new(media_type, self.digest, self.size)
    }

    /// Its bytes from the front. Any number of readers may work at once.
    #[must_use]
    pub fn reader(&self) -> Box<dyn Read + Send> {
        Box::new(SpooledReader { file: Arc::clone(&self.file), at: 0 })
    }

    pub(super) fn copy(&mut self, out: &mut dyn Write) -> Result<()> {
        let mut file = &*self.file;
        file.rewind().and_then(|()| io::copy(&mut file, out)).map(drop).context(|| "write a layer")
    }
}

struct SpooledReader {
    file: Arc<File>,
    at: u64,
}

impl Read for SpooledReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read_at(into, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
