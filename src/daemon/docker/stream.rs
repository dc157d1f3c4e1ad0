//! Tars that are answers: what a thread writes is a body.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;

use axum::body::Body;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::daemon::blocks::{DEPTH, Outgoing};
use crate::daemon::flight::Flight;
use crate::{Context, Error, Kind, Result};

const BLOCK: usize = 64 << 10;

/// The body that a thread writes. What fails before a block is full is its error; later, the body breaks off.
pub(super) async fn outgoing(
    flight: Arc<Flight>,
    write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static,
) -> Result<Body> {
    let (sender, mut blocks) = mpsc::channel(DEPTH);
    let (failed, failure) = tokio::sync::oneshot::channel();
    let writing = Arc::clone(&flight);
    let worker = std::thread::Builder::new().name("diff".into());
    let spawned = worker.spawn(move || {
        let mut out = BufWriter::with_capacity(BLOCK, Outgoing(sender.clone()));
        let written = write(&mut out);
        // Of one whose reader has gone nothing is known.
        if !sender.is_closed() {
            writing.ends(&written);
        }
        match written {
            Ok(()) if out.flush().is_ok() => drop(sender.blocking_send(Ok(None))),
            // Nobody reads it any more.
            Ok(()) => {}
            Err(e) => {
                // What is still here stays here: if nothing is out yet, the error is all of the answer.
                drop(out.into_parts());
                let _ = sender.blocking_send(Err(io::Error::other(e.to_string())));
                let _ = failed.send(e);
            }
        }
        drop(writing);
    });
    spawned.context(|| "start a thread")?;
    let first = blocks.recv().await;
    match first {
        Some(Ok(_)) => {}
        Some(Err(_)) | None => {
            let panicked = |_| Error::new(Kind::System, "the request ended in a panic");
            return Err(failure.await.unwrap_or_else(panicked));
        }
    }
    let mut ended = false;
    let blocks = tokio_stream::iter(first).chain(ReceiverStream::new(blocks)).map(Some);
    // Who dies in the middle closes the channel, and has sent no end.
    let blocks = blocks.chain(tokio_stream::once(None)).filter_map(move |block| match block {
        Some(Ok(Some(block))) => {
            flight.sent(block.len());
            Some(Ok(block))
        }
        Some(Ok(None)) => {
            ended = true;
            None
        }
        Some(Err(e)) => {
            tracing::warn!("an answer broke off: {e}");
            ended = true;
            Some(Err(e))
        }
        None if ended => None,
        None => Some(Err(io::Error::other("who wrote it died"))),
    });
    Ok(Body::from_stream(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::flight::Flights;

    /// All that a client gets, and whether it is whole; or the error that it gets in place of it.
    fn sent(write: impl FnOnce(&mut dyn Write) -> Result<()> + Send + 'static) -> Result<(usize, bool)> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let flights = Flights::default();
            let mut blocks = outgoing(flights.begin("docker", "Diff"), write).await?.into_data_stream();
            let mut bytes = 0;
            let whole = loop {
                match blocks.next().await {
                    Some(Ok(block)) => bytes += block.len(),
                    Some(Err(_)) => break false,
                    None => break true,
                }
            };
            drop(blocks);
            flights.landed().await;
            Ok((bytes, whole))
        })
    }

    #[test]
    fn only_what_was_written_to_its_end_is_whole() {
        let failed = || Error::new(Kind::Damaged, "damaged");
        let large = vec![7; 10 * BLOCK];
        let write = large.clone();
        let whole = sent(move |out| out.write_all(&write).context(|| "write"));
        assert_eq!(whole.ok(), Some((10 * BLOCK, true)));
        assert_eq!(sent(|_| Ok(())).ok(), Some((0, true)));
        let write = large.clone();
        let broken = sent(move |out| {
            out.write_all(&write).expect("write");
            Err(failed())
        });
        assert_eq!(broken.ok(), Some((10 * BLOCK, false)));
        let broken = sent(move |out| {
            out.write_all(&large).expect("write");
            panic!("in the middle, as this test wants it");
        });
        assert_eq!(broken.map(|(_, whole)| whole).ok(), Some(false));
        let early = sent(move |out| {
            out.write_all(b"not yet a block").expect("write");
            Err(failed())
        });
        assert_eq!(early.expect_err("nothing is out").kind(), Kind::Damaged);
        let died = sent(|_| panic!("at once, as this test wants it"));
        assert!(died.is_err_and(|e| e.to_string().contains("panic")));
    }
}
