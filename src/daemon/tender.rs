//! The thread that tends the store while the daemon runs: what commands leave to `reflinkd tend`, and the quota groups of
//! removed trees, which commands leave to `gc`.
//!
//! One at a time tends a store, whoever it is (`store::tending`). Stopping doesn't wait for it: what it leaves in the middle
//! is what any verb leaves that dies.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::flight::Flights;
use crate::engine::Engine;
use crate::{Context, Result};

/// To be woken once for all that is done in one go.
const GATHER: Duration = Duration::from_secs(2);
/// When to look again after what the filesystem hadn't cleaned up in time.
const REVISIT: Duration = Duration::from_secs(600);
/// As `reflinkd tend` has it.
const NICE: i32 = 10;

/// To be woken after whatever may leave work. Does nothing where the configuration says so.
#[derive(Debug, Clone)]
pub(super) struct Tender(SyncSender<()>);

impl Tender {
    pub(super) fn start(engine: Arc<Engine>, flights: Flights) -> Result<Self> {
        let (wake, woken) = sync_channel(1);
        std::thread::Builder::new()
            .name("tend".into())
            .spawn(move || run(&engine, &flights, &woken))
            .context(|| "start a thread")?;
        let tender = Self(wake);
        // For what was left before.
        tender.wake();
        Ok(tender)
    }

    pub(super) fn wake(&self) {
        // Full is woken already, and closed is over.
        let _ = self.0.try_send(());
    }
}

fn run(engine: &Engine, flights: &Flights, woken: &Receiver<()>) {
    // Of this thread alone, on Linux.
    if let Err(e) = rustix::process::nice(NICE) {
        tracing::warn!("cannot tend at a low priority: {e}");
    }
    loop {
        let woken = match woken.recv_timeout(REVISIT) {
            Ok(()) => {
                std::thread::sleep(GATHER);
                // What came meanwhile is seen, too; what comes from now on wakes us again.
                let _ = woken.try_recv();
                true
            }
            Err(RecvTimeoutError::Timeout) => false,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        match tend(engine, woken) {
            Ok(false) => {}
            Ok(true) => flights.metrics.tended("ok"),
            Err(e) => {
                tracing::warn!("cannot tend the store: {e}");
                flights.metrics.tended(super::metrics::outcome(e.kind()));
            }
        }
    }
}

/// Whether there was something to do.
fn tend(engine: &Engine, woken: bool) -> Result<bool> {
    let has_work = if woken { engine.has_work()? } else { engine.tends() && engine.census()?.pending.0 > 0 };
    if has_work {
        let tended = engine.tend()?;
        tracing::debug!(?tended, "tended the store");
    }
    Ok(has_work)
}
