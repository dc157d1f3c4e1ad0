//! Requests in flight: how many there are, so that none is cut short by stopping, and what became of each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How long it has to be quiet before nothing is taken to be under way: what was answered last is still to be sent, and what
/// a client has begun to send is no request yet.
const SETTLE: Duration = Duration::from_millis(300);

/// All requests of all doors.
#[derive(Debug, Clone, Default)]
pub(super) struct Flights(Arc<watch::Sender<usize>>);

/// One request, held by whoever works on it, or has yet to send what it is answered.
#[derive(Debug)]
pub(super) struct Flight(Flights);

impl Flights {
    pub(super) fn begin(&self) -> Arc<Flight> {
        self.0.send_modify(|count| *count += 1);
        Arc::new(Flight(self.clone()))
    }

    pub(super) fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Until there is one.
    pub(super) async fn busy(&self) {
        // We hold the sender.
        let _ = self.0.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Until there are none.
    pub(super) async fn landed(&self) {
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
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

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}
