//! Tars between sockets and threads that block, a few blocks at a time.

use std::io::{self, Read, Write};
use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};

use super::flight::Flight;

/// Blocks in flight.
pub(super) const DEPTH: usize = 4;

/// Where blocks go. `None` is the end: without it whoever sends them died in the middle.
pub(super) type Blocks = mpsc::Sender<io::Result<Option<Bytes>>>;

/// A stream, to be read by a thread that blocks. One that broke off is an error, never an end.
pub(super) struct Incoming {
    blocks: mpsc::Receiver<io::Result<Option<Bytes>>>,
    block: Bytes,
    ended: bool,
    flight: Arc<Flight>,
}

impl Incoming {
    /// What is [fed](feed) to the sender.
    pub(super) fn new(flight: Arc<Flight>) -> (Blocks, Self) {
        let (sender, blocks) = mpsc::channel(DEPTH);
        (sender, Self { blocks, block: Bytes::new(), ended: false, flight })
    }

    /// Read what is left. Who is answered before he has sent all may take that for a broken connection, and try again with
    /// what he hasn't sent yet. Whether it came to its end.
    pub(super) fn drain(&mut self) -> bool {
        io::copy(self, &mut io::sink()).is_ok()
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() && !self.ended {
            match self.blocks.blocking_recv() {
                Some(Ok(Some(block))) => {
                    self.flight.received(block.len());
                    self.block = block;
                }
                Some(Ok(None)) => self.ended = true,
                Some(Err(e)) => return Err(e),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let length = buffer.len().min(self.block.len());
        buffer[..length].copy_from_slice(&self.block.split_to(length));
        Ok(length)
    }
}

/// Send all of a stream, until it ends or nobody takes it. Given up in the middle, it has broken off.
pub(super) async fn feed<E>(mut stream: impl Stream<Item = Result<Bytes, E>> + Unpin, blocks: Blocks)
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    loop {
        let block = stream.next().await.transpose().map_err(io::Error::other);
        let last = !matches!(block, Ok(Some(_)));
        if blocks.send(block).await.is_err() || last {
            break;
        }
    }
}

/// Where a thread that blocks writes a stream.
pub(super) struct Outgoing(pub(super) Blocks);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more");
        self.0.blocking_send(Ok(Some(Bytes::copy_from_slice(bytes)))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
