//! Requests in flight: how many there are, so that none is cut short by stopping, and what became of each.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::metrics::{self, Metrics};
use crate::Result;

/// How long it has to be quiet before nothing is taken to be under way: what was answered last is still to be sent, and what
/// a client has begun to send is no request yet.
const SETTLE: Duration = Duration::from_millis(300);

/// All requests of all doors.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights {
    count: Arc<watch::Sender<usize>>,
    pub(super) metrics: Metrics,
}

/// One request, held by whoever works on it, or has yet to send what it is answered.
#[derive(Debug)]
pub(super) struct Flight {
    all: Flights,
    door: &'static str,
    operation: &'static str,
    begun: Instant,
    outcome: OnceLock<&'static str>,
}

impl Flights {
    pub(super) fn begin(&self, door: &'static str, operation: &'static str) -> Arc<Flight> {
        self.count.send_modify(|count| *count += 1);
        self.metrics.in_flight.inc();
        Arc::new(Flight { all: self.clone(), door, operation, begun: Instant::now(), outcome: OnceLock::new() })
    }

    pub(super) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Until there is one.
    pub(super) async fn busy(&self) {
        // We hold the sender.
        let _ = self.count.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Until there are none.
    pub(super) async fn landed(&self) {
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Until there are none, and none begins for a moment.
    pub(super) async fn quiet(&self) {
        loop {
            self.landed().await;
            if tokio::time::timeout(SETTLE, self.busy()).await.is_err() {
                return;
            }
        }
    }
}

impl Flight {
    /// Note what became of it.
    pub(super) fn ends<T>(&self, result: &Result<T>) {
        let outcome = result.as_ref().map_or_else(|e| metrics::outcome(e.kind()), |_| "ok");
        let _ = self.outcome.set(outcome);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.all.metrics.received.inc_by(bytes as u64);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.all.metrics.sent.inc_by(bytes as u64);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Its client has gone, or whoever worked on it panicked.
        let outcome = self.outcome.get().copied().unwrap_or("abandoned");
        self.all.metrics.observe(self.door, self.operation, outcome, self.begun.elapsed());
        self.all.metrics.in_flight.dec();
        self.all.count.send_modify(|count| *count -= 1);
    }
}
