//! Compressed layers, whose length and digest are known only at their end: written to a file without a name first.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use crate::oci::decompress::Compression;
use crate::oci::digest::{Digest, Digesting};
use crate::{Context, Error, Kind, Result};

const ZSTD_LEVEL: i32 = 3;

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

type Compressed = Digesting<BufWriter<File>>;

enum Compressor {
    Gzip(flate2::write::GzEncoder<Compressed>),
    Zstd(zstd::stream::write::Encoder<'static, Compressed>),
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
    let mut compressor = match compression {
        // Neither a name nor a time: the same layer is the same blob.
        Compression::Gzip => Compressor::Gzip(flate2::write::GzEncoder::new(out, flate2::Compression::default())),
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL).context(what)?;
            encoder.include_checksum(true).context(what)?;
            Compressor::Zstd(encoder)
        }
        Compression::Plain => return Err(Error::new(Kind::System, "a plain layer needs no spool")),
    };
    match &mut compressor {
        Compressor::Gzip(encoder) => fill(encoder)?,
        Compressor::Zstd(encoder) => fill(encoder)?,
    }
    let digesting = match compressor {
        Compressor::Gzip(encoder) => encoder.finish(),
        Compressor::Zstd(encoder) => encoder.finish(),
    }
    .context(what)?;
    let (out, hasher) = digesting.into_inner();
    let file = out.into_inner().map_err(io::IntoInnerError::into_error).context(what)?;
    Ok(Spooled { file, size: hasher.bytes(), digest: hasher.finish() })
}
