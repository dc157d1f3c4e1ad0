//! What nobody waits for: where removals and clones take time, a thread empties what was removed and makes spares.
//!
//! Commands leave that to a process of its own (`reflinkd tend`), which is one of those that this thread gives way to or
//! keeps out. Ended in the middle, it leaves what any verb leaves that dies.

use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use crate::Result;
use crate::engine::Engine;

/// Removals come in groups; what they leave is looked at once.
const LULL: Duration = Duration::from_millis(200);
/// As `reflinkd tend` has it.
const NICE: i32 = 10;

/// Wakes the thread; it ends with the last of these.
#[derive(Debug, Clone)]
pub(super) struct Wake(SyncSender<()>);

impl Wake {
    /// There may be something to do. Returns at once; calls that come before it begins are one.
    pub(super) fn call(&self) {
        let _ = self.0.try_send(());
    }
}

/// Start the thread.
pub(super) fn start(engine: Arc<Engine>) -> Wake {
    let (wake, woken) = sync_channel(1);
    std::thread::spawn(move || {
        // On Linux, this is of the thread alone.
        if let Err(e) = rustix::process::nice(NICE) {
            tracing::warn!("cannot tend the store with low priority: {e}");
        }
        while woken.recv().is_ok() {
            std::thread::sleep(LULL);
            if let Err(e) = tend(&engine) {
                tracing::warn!("cannot tend the store: {e}");
            }
        }
    });
    Wake(wake)
}

fn tend(engine: &Engine) -> Result<()> {
    if engine.needs_tending()? {
        let tended = engine.tend()?;
        tracing::debug!("made {} spares, emptied {} removed trees", tended.made, tended.emptied);
    }
    Ok(())
}
