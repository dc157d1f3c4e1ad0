//! What the service manager is told, and gives: `sd_notify(3)`, `sd_listen_fds(3)`, `sd_watchdog_enabled(3)`. Without one
//! nothing of it is done.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use sd_notify::NotifyState;

use crate::engine::Engine;
use crate::sys::process;
use crate::{Context, Error, Kind, Result};

/// All sockets listen.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::warn!("cannot tell the service manager: {e}");
    }
}

/// Be heard of twice in the time after which the service manager takes us for dead; but only while the index answers.
pub(super) async fn watchdog(engine: Arc<Engine>) {
    let period = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let Some(period) = period.filter(|period| !period.is_zero()) else { return };
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let probed = Arc::clone(&engine);
        match tokio::task::spawn_blocking(move || probed.probe()).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(e)) => tracing::warn!("the store doesn't answer: {e}"),
            Err(e) => tracing::warn!("the store doesn't answer: {e}"),
        }
    }
}

/// Sockets that the service manager listens at for us, by the names of their doors.
///
/// # Errors
/// `Invalid` for one that is no door's, or no socket that listens.
pub(super) fn sockets(doors: &[String]) -> Result<Vec<(String, UnixListener)>> {
    let given = sd_notify::listen_fds_with_names().context(|| "take over sockets (LISTEN_FDS, LISTEN_FDNAMES)")?;
    given
        .map(|(number, name)| {
            let invalid = |why: &str| {
                Error::new(Kind::Invalid, format!("socket {number} ({name:?}) of the service manager: {why}"))
                    .with_hint(format!("name it by FileDescriptorName= in its unit: {}", doors.join(", ")))
            };
            if !doors.contains(&name) {
                return Err(invalid("no door has this name"));
            }
            let descriptor = process::take_inherited(number)?;
            if !rustix::net::sockopt::socket_acceptconn(&descriptor).unwrap_or(false) {
                return Err(invalid("nobody can connect to it"));
            }
            let listener = UnixListener::from(descriptor);
            listener.local_addr().map_err(|_| invalid("it is no unix socket"))?;
            Ok((name, listener))
        })
        .collect()
}
