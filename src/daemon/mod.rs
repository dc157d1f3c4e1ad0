//! Front doors: sockets on which clients are answered until a signal says to stop. Wire formats only; what is asked is the
//! engine's to do.
//!
//! ```text
//! docker    Docker's graph-driver protocol, JSON and tars over HTTP
//! ```
//!
//! Each request is worked on by a thread that may block, as all of the engine does; a stream has a thread of its own, so
//! that however many wait for each other none waits for a thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::engine::Engine;
use crate::{Context, Result};

mod docker;
mod socket;
mod tending;

/// How long requests in flight may take after a signal to stop; then they are broken off.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where Docker looks for plugins.
pub const DOCKER_SOCKET: &str = "/run/docker/plugins/reflinkd.sock";

/// Where to listen; closed doors are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doors {
    pub docker: Option<PathBuf>,
}

/// Answer at the doors until SIGTERM or SIGINT; then finish what was begun.
pub fn serve(engine: Engine, doors: &Doors) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context(|| "start the runtime")?;
    let cancelled = engine.cancellation();
    let engine = Arc::new(engine);
    let wake = tending::start(Arc::clone(&engine));
    let served = runtime.block_on(async {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let mut open = tokio::task::JoinSet::new();
        if let Some(path) = &doors.docker {
            let listener = socket::listen(path)?;
            let router = docker::router(Arc::clone(&engine), wake.clone())?;
            let stopped = stopped.clone();
            open.spawn(
                async move { axum::serve(listener, router).with_graceful_shutdown(socket::until(stopped)).await },
            );
            tracing::info!("answering Docker at {}", path.display());
        }
        let mut terminate = signal(SignalKind::terminate()).context(|| "install a signal handler")?;
        let mut interrupt = signal(SignalKind::interrupt()).context(|| "install a signal handler")?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        stop.send_replace(true);
        let finished = tokio::time::timeout(PATIENCE, async { while open.join_next().await.is_some() {} }).await;
        if finished.is_err() {
            cancelled.store(true, Ordering::Relaxed);
            let _ = tokio::time::timeout(PATIENCE, async { while open.join_next().await.is_some() {} }).await;
        }
        Ok(())
    });
    if let Some(path) = &doors.docker {
        let _ = std::fs::remove_file(path);
    }
    served
}
