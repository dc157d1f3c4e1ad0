//! Buffers of fixed size that go round between two threads.
//!
//! A [`channel`] has a [`Pool`] on the sending side that hands out empty buffers and a [`ChunkReader`]
//! on the receiving side that reads them and sends them back. There are never more of them than the
//! channel is deep, and two. An empty chunk marks the end; a sender that goes away without one is
//! a break, which the reader reports as an error and never takes for the end.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

/// How long until a wait notices that all is to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// Some bytes on their way.
#[derive(Debug)]
pub(super) struct Chunk {
    buffer: Box<[u8]>,
    len: usize,
}

impl Chunk {
    /// The mark of the end.
    pub(super) fn end() -> Self {
        Self { buffer: Box::default(), len: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.len]
    }

    /// Fill from `source` as far as it goes; 0 is its end.
    pub(super) fn fill(&mut self, source: &mut (impl Read + ?Sized)) -> io::Result<usize> {
        self.len = 0;
        while self.len < self.buffer.len() {
            match source.read(&mut self.buffer[self.len..]) {
                Ok(0) => break,
                Ok(n) => self.len += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(self.len)
    }
}

/// The sending side's empty buffers.
#[derive(Debug)]
pub(super) struct Pool {
    returned: Receiver<Chunk>,
    kept: Option<Chunk>,
    size: usize,
}

impl Pool {
    /// An empty buffer: one that came back, or a new one while the channel isn't full yet.
    pub(super) fn take(&mut self) -> Chunk {
        let used = self.kept.take().or_else(|| self.returned.try_recv().ok());
        used.unwrap_or_else(|| Chunk { buffer: vec![0; self.size].into(), len: 0 })
    }

    /// Take back a buffer that wasn't sent.
    pub(super) fn keep(&mut self, chunk: Chunk) {
        self.kept = Some(chunk);
    }
}

/// The receiving side: the bytes in order.
#[derive(Debug)]
pub(super) struct ChunkReader {
    incoming: Option<Receiver<io::Result<Chunk>>>,
    returns: SyncSender<Chunk>,
    current: Chunk,
    at: usize,
    stop: Arc<AtomicBool>,
    end: bool,
}

/// `count` buffers of `size` bytes between two threads, until `stop`.
pub(super) fn channel(
    (count, size): (usize, usize),
    stop: &Arc<AtomicBool>,
) -> (Pool, SyncSender<io::Result<Chunk>>, ChunkReader) {
    let (sender, incoming) = mpsc::sync_channel(count);
    let (returns, returned) = mpsc::sync_channel(count + 2);
    let reader = ChunkReader {
        incoming: Some(incoming),
        returns,
        current: Chunk::end(),
        at: 0,
        stop: Arc::clone(stop),
        end: false,
    };
    (Pool { returned, kept: None, size }, sender, reader)
}

/// What a [`ChunkReader`] says when its sender went away before the end.
#[derive(Debug)]
struct Break;

impl std::fmt::Display for Break {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the layer's blob can't be read to its end")
    }
}

impl std::error::Error for Break {}

/// Whether an error is a sender that went away, and so somebody else's to explain.
pub(super) fn is_break(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(inner) if inner.is::<Break>())
}

impl ChunkReader {
    /// The next message; nothing if the sender went away, or if all is to stop while it is waited for.
    fn receive(&self) -> Option<io::Result<Chunk>> {
        let incoming = self.incoming.as_ref()?;
        loop {
            match incoming.recv_timeout(PATIENCE) {
                Ok(message) => return Some(message),
                Err(RecvTimeoutError::Timeout) if !self.stop.load(Ordering::Relaxed) => {}
                Err(_) => return None,
            }
        }
    }

    /// Receive no more; whoever sends notices.
    pub(super) fn close(&mut self) {
        self.incoming = None;
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.current.len && !self.end {
            let next = self.receive();
            if self.stop.load(Ordering::Relaxed) && !matches!(next, Some(Err(_))) {
                self.close();
                return Err(io::Error::other(Break));
            }
            match next {
                Some(Ok(chunk)) => {
                    let used = std::mem::replace(&mut self.current, chunk);
                    // Marks of the end have no buffer, and would look like one to whoever fills them.
                    if !used.buffer.is_empty() {
                        let _ = self.returns.try_send(used);
                    }
                    self.at = 0;
                    self.end = self.current.len == 0;
                }
                Some(Err(error)) => {
                    self.close();
                    return Err(error);
                }
                None => return Err(io::Error::other(Break)),
            }
        }
        Ok(&self.current.bytes()[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at = (self.at + n).min(self.current.len);
    }
}

impl Read for ChunkReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let buffer = self.fill_buf()?;
        let n = buffer.len().min(into.len());
        into[..n].copy_from_slice(&buffer[..n]);
        self.consume(n);
        Ok(n)
    }
}
