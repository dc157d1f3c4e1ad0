//! A layer's plain tar, checked while it flows.
//!
//! Three steps overlap: one thread reads the blob and digests it, one decompresses and digests the
//! plain bytes, and the caller unpacks what [`LayerStream`] hands out. Unpacking creates files and is
//! the slowest of the three, so both digests are kept off the caller's thread. Between them travel a
//! fixed number of buffers, 6 MiB in all (and a zstd window, up to 128 MiB).
//!
//! What stands behind the last gzip member or zstd frame is ignored, as gzip(1) and Docker do, if the diff ID says
//! that the tar was whole before it; otherwise it could be a damaged member, and is an error.
//!
//! Nothing read is to be believed before [`LayerStream::finish`] has returned: it compares the blob's
//! size and digest and the diff ID. Where unpacking fails first, [`LayerStream::explain`] tells
//! whether the stream was the cause: a flipped bit shows up as a broken tar header here and as a digest
//! mismatch there, and only the second is worth reporting.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use self::pipe::{Chunk, ChunkReader, Pool};
use super::decompress::{Compression, MAGIC_LEN};
use super::digest::{DiffId, Digest, Hasher};
use super::source::SourceLayer;
use crate::{Context, Error, Kind, Result};

mod pipe;

/// Buffers on the way to the decompressor: how many, of how many bytes.
const RAW: (usize, usize) = (8, 128 << 10);
/// Buffers on the way to the caller: enough to work through while the filesystem commits.
const PLAIN: (usize, usize) = (16, 256 << 10);

/// What a layer has to turn out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Digest and length in bytes of the blob as it is stored.
    pub blob: Option<(Digest, u64)>,
    /// Digest of the plain tar.
    pub diff_id: Option<DiffId>,
    /// Most bytes of plain tar.
    pub max_bytes: u64,
}

impl Expected {
    /// What an image's config and manifest say of one of its layers.
    #[must_use]
    pub fn of(layer: &SourceLayer, max_bytes: u64) -> Self {
        let blob = layer.blob.as_ref().map(|blob| (blob.digest, blob.size));
        Self { blob, diff_id: Some(layer.diff_id), max_bytes }
    }

    /// Whether the diff ID vouches that what was seen, and `last`, is all of the plain tar.
    fn is_whole(&self, seen: &Hasher, last: &[u8]) -> bool {
        self.diff_id.is_some_and(|expected| {
            let mut hasher = seen.clone();
            hasher.update(last);
            hasher.finish() == expected.0
        })
    }
}

/// What a layer turned out to be, all of it as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Digest of the blob as it is stored.
    pub blob: Digest,
    /// Its length in bytes.
    pub blob_size: u64,
    /// Digest of the plain tar.
    pub diff_id: DiffId,
    /// The plain tar's length in bytes.
    pub plain_size: u64,
}

/// The plain tar of a layer, to be read and then [finished](Self::finish).
///
/// Dropping it ends its threads. A reader that is stuck in a read (a pipe that nobody writes to) is
/// waited for no longer than a second; its thread then ends when the read returns.
#[must_use = "nothing is verified before finish()"]
#[derive(Debug)]
pub struct LayerStream {
    expected: Expected,
    plain: ChunkReader,
    stop: Arc<AtomicBool>,
    digesting: Option<JoinHandle<Result<Sum>>>,
    decoding: Option<JoinHandle<Result<Decoded>>>,
}

/// The length and digest of bytes that went by.
#[derive(Clone, Copy, Debug)]
struct Sum {
    digest: Digest,
    bytes: u64,
}

/// The plain side. Bytes that were never compressed aren't digested twice.
#[derive(Clone, Copy, Debug)]
enum Decoded {
    AsStored,
    Unpacked(Sum),
}

impl LayerStream {
    /// Begin to read `raw`, the blob's bytes as they are stored; `progress` counts them as they go by.
    ///
    /// # Errors
    /// If a thread can't be started.
    pub fn start(raw: Box<dyn Read + Send>, expected: Expected, progress: Arc<AtomicU64>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (raw_pool, raw_out, raw_in) = pipe::channel(RAW, &stop);
        let (plain_pool, plain_out, plain) = pipe::channel(PLAIN, &stop);
        let blob = expected.blob;
        let reader = Reading { raw, blob, progress, stop: Arc::clone(&stop) };
        let mut stream = Self { expected, plain, stop: Arc::clone(&stop), digesting: None, decoding: None };
        stream.digesting = Some(spawn("layer-read", move || reader.run(raw_pool, &raw_out))?);
        stream.decoding = Some(spawn("layer-decode", move || {
            let result = decode(raw_in, &expected, plain_pool, &plain_out, &stop);
            // Reading on after a fault is worth it only where the blob's digest may turn out to be the cause.
            if result.as_ref().is_err_and(|e| blob.is_none() || e.kind() != Kind::BadInput) {
                stop.store(true, Ordering::Relaxed);
            }
            // Errors reach the reader too, so that it doesn't take the break for the end.
            if let Err(error) = &result {
                let _ = plain_out.send(Err(io::Error::other(error.to_string())));
            }
            result
        })?);
        Ok(stream)
    }

    /// Read to the end, then compare sizes and digests.
    ///
    /// # Errors
    /// [`Kind::BadInput`] for what is damaged or isn't what was expected, with both values; what the
    /// stored bytes say of themselves goes before what came of decompressing them.
    pub fn finish(mut self) -> Result<Verified> {
        // What is left is padding behind the tar's end, or all of it after a caller's failure.
        while let Ok(buffer) = self.plain.fill_buf() {
            match buffer.len() {
                0 => break,
                n => self.plain.consume(n),
            }
        }
        let blob = join(self.digesting.take());
        let decoded = join(self.decoding.take());
        // A reader that was stopped has nothing to say; who stopped it has.
        let (blob, plain) = match (blob, decoded) {
            (Err(e), Err(cause)) if e.kind() == Kind::Interrupted => return Err(cause),
            (blob, decoded) => {
                let blob = blob?;
                match decoded? {
                    Decoded::AsStored => (blob, blob),
                    Decoded::Unpacked(plain) => (blob, plain),
                }
            }
        };
        if let Some(expected) = self.expected.diff_id
            && expected.0 != plain.digest
        {
            let why = format!("its plain tar has the digest {}, the image's config says {expected}", plain.digest);
            return Err(Error::new(Kind::BadInput, why));
        }
        Ok(Verified {
            blob: blob.digest,
            blob_size: blob.bytes,
            diff_id: DiffId(plain.digest),
            plain_size: plain.bytes,
        })
    }

    /// The better reason after the caller failed with `error`: the stream's own fault, if it has one.
    ///
    /// Where `error` can't come from the stream (no space, a signal, ...) it is returned at once.
    pub fn explain(self, error: Error) -> Error {
        match error.kind() {
            Kind::BadInput | Kind::System => self.finish().err().unwrap_or(error),
            _ => error,
        }
    }
}

impl Read for LayerStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.plain.read(into)
    }
}

/// For callers that write file data straight from the stream's buffers.
impl BufRead for LayerStream {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.plain.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.plain.consume(n);
    }
}

impl Drop for LayerStream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.plain.close();
        let _ = self.decoding.take().map(JoinHandle::join);
        if let Some(reader) = self.digesting.take() {
            // Files have to be closed by now: the caller may be about to unmount what they are on.
            let deadline = Instant::now() + Duration::from_secs(1);
            while !reader.is_finished() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
            }
            if reader.is_finished() {
                let _ = reader.join();
            }
        }
    }
}

fn spawn<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.into()).spawn(run).context(|| format!("start thread {name}"))
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<T> {
    match thread.map(JoinHandle::join) {
        Some(Ok(result)) => result,
        // A decoder that panics on some input must not take the process with it.
        Some(Err(_)) | None => Err(Error::new(Kind::System, "a thread of the layer stream died")),
    }
}

/// The first thread's work: read, count, digest, pass on.
struct Reading {
    raw: Box<dyn Read + Send>,
    blob: Option<(Digest, u64)>,
    progress: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Reading {
    fn run(mut self, mut pool: Pool, out: &SyncSender<io::Result<Chunk>>) -> Result<Sum> {
        let mut hasher = Hasher::new();
        // After the decoder has failed, the rest is still digested: was the blob itself damaged?
        let mut wanted = true;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Interrupted, "stopped"));
            }
            let mut chunk = pool.take();
            let n = chunk.fill(&mut self.raw).context(|| "read the layer's blob")?;
            if n == 0 {
                break;
            }
            hasher.update(chunk.bytes());
            self.progress.fetch_add(n as u64, Ordering::Relaxed);
            if let Some((_, size)) = self.blob
                && hasher.bytes() > size
            {
                let why = format!("its blob has at least {} bytes, its descriptor says {size}", hasher.bytes());
                return Err(Error::new(Kind::BadInput, why));
            }
            if wanted {
                wanted = out.send(Ok(chunk)).is_ok();
            } else {
                pool.keep(chunk);
            }
        }
        let sum = Sum { bytes: hasher.bytes(), digest: hasher.finish() };
        if let Some((digest, size)) = self.blob {
            if sum.bytes != size {
                let why = format!("its blob has {} bytes, its descriptor says {size}", sum.bytes);
                return Err(Error::new(Kind::BadInput, why));
            }
            if sum.digest != digest {
                let why = format!("its blob has the digest {}, its descriptor says {digest}", sum.digest);
                return Err(Error::new(Kind::BadInput, why));
            }
        }
        // Only a blob that is right gets an end; otherwise the decoder meets a break.
        let _ = out.send(Ok(Chunk::end()));
        Ok(sum)
    }
}

/// The second thread's work: decompress, digest, bound, pass on.
fn decode(
    mut raw: ChunkReader,
    expected: &Expected,
    mut pool: Pool,
    out: &SyncSender<io::Result<Chunk>>,
    stop: &AtomicBool,
) -> Result<Decoded> {
    // The reader fills its buffers, so the first one is short only if the blob is.
    let head = raw.fill_buf().map_err(|e| broken(&e))?;
    let form = Compression::detect(&head[..head.len().min(MAGIC_LEN)])?;
    let mut plain = form.decoder(raw)?;
    let mut hasher = Hasher::new();
    let mut bytes = 0_u64;
    loop {
        let mut chunk = pool.take();
        let n = match chunk.fill(&mut plain) {
            Ok(n) => n as u64,
            Err(e) if pipe::is_break(&e) => return Err(broken(&e)),
            Err(e) if form.is_trailing(&e) && expected.is_whole(&hasher, chunk.bytes()) => {
                tracing::debug!("ignored what stands behind a layer's compressed data");
                chunk.bytes().len() as u64
            }
            Err(e) => return Err(form.explain(&e)),
        };
        bytes += n;
        if bytes > expected.max_bytes {
            let max_bytes = expected.max_bytes;
            stop.store(true, Ordering::Relaxed);
            let why = format!("it is larger than the limit of {max_bytes} bytes when decompressed");
            return Err(Error::new(Kind::BadInput, why)
                .with_hint("if you trust the image, raise the limit with --max-layer-size"));
        }
        if form != Compression::Plain {
            hasher.update(chunk.bytes());
        }
        let end = n == 0;
        // An empty chunk is the end's mark.
        out.send(Ok(chunk)).map_err(|_| Error::new(Kind::Interrupted, "stopped"))?;
        if end {
            return Ok(match form {
                Compression::Plain => Decoded::AsStored,
                _ => Decoded::Unpacked(Sum { bytes, digest: hasher.finish() }),
            });
        }
    }
}

fn broken(error: &io::Error) -> Error {
    Error::new(Kind::System, error.to_string())
}

#[cfg(test)]
mod tests;
