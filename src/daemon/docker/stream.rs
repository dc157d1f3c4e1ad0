//! Tars between the socket and threads that block, a few blocks at a time.

use std::io::{self, BufWriter, Read, Write};

use axum::body::{Body, Bytes};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Blocks in flight.
const DEPTH: usize = 4;
const BLOCK: usize = 64 << 10;

/// A request's body, to be read by a thread that blocks. A body that broke off is an error, never an end.
pub(super) struct Incoming {
    /// `None` is the end.
    blocks: mpsc::Receiver<io::Result<Option<Bytes>>>,
    block: Bytes,
    ended: bool,
}

impl Incoming {
    pub(super) fn of(body: Body) -> Self {
        let (sender, blocks) = mpsc::channel(DEPTH);
        tokio::spawn(async move {
            let mut body = body.into_data_stream();
            loop {
                let block = body.next().await.transpose().map_err(io::Error::other);
                let last = !matches!(block, Ok(Some(_)));
                if sender.send(block).await.is_err() || last {
                    break;
                }
            }
        });
        Self { blocks, block: Bytes::new(), ended: false }
    }

    /// Read what is left. Who is answered before he has sent all may take that for a broken connection, and try again with
    /// what he hasn't sent yet.
    pub(super) fn drain(mut self) {
        let _ = io::copy(&mut self, &mut io::sink());
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.block.is_empty() && !self.ended {
            match self.blocks.blocking_recv() {
                Some(Ok(Some(block))) => self.block = block,
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

/// Where a thread that blocks writes a response's body.
pub(super) struct Outgoing(mpsc::Sender<io::Result<Bytes>>);

impl Write for Outgoing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads it any more");
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The body that a thread writes. What fails before the first block is its error; later, the body breaks off.
pub(super) async fn outgoing<E: Send + ToString + 'static>(
    write: impl FnOnce(&mut dyn Write) -> Result<(), E> + Send + 'static,
) -> Result<Body, E> {
    let (sender, mut blocks) = mpsc::channel(DEPTH);
    let (failed, failure) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut out = BufWriter::with_capacity(BLOCK, Outgoing(sender.clone()));
        let written = write(&mut out);
        let flushed = out.flush();
        match written {
            Ok(()) => drop(flushed),
            Err(e) => {
                let _ = sender.blocking_send(Err(io::Error::other(e.to_string())));
                let _ = failed.send(e);
            }
        }
    });
    let first = blocks.recv().await;
    if let Some(Err(_)) = &first
        && let Ok(e) = failure.await
    {
        return Err(e);
    }
    Ok(Body::from_stream(tokio_stream::iter(first).chain(ReceiverStream::new(blocks))))
}
