//! Front doors: sockets on which clients are answered until a signal says to stop. Wire formats only; what is asked is the
//! engine's to do.
//!
//! ```text
//! docker    Docker's graph-driver protocol, JSON and tars over HTTP
//! ```
//!
//! Each request is worked on by a thread that may block, as all of the engine does; a stream has a thread of its own, so
//! that however many wait for each other none waits for a thread.

use std::future::IntoFuture;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::sys::memory;
use crate::{Context, Error, Kind, Result};
use flight::Flights;

mod docker;
mod flight;
mod socket;
mod tending;

/// How long requests in flight may take after a signal to stop; then they are broken off.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a thread waits for another request before it ends.
const IDLE: Duration = Duration::from_secs(2);

/// Where Docker looks for plugins.
pub const DOCKER_SOCKET: &str = "/run/docker/plugins/reflinkd.sock";

/// Where to listen; closed doors are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Doors {
    pub docker: Option<PathBuf>,
}

/// Answer at the doors until SIGTERM or SIGINT; then finish what was begun.
///
/// # Errors
/// `Interrupted` if something wasn't finished: within [`PATIENCE`], or because a second signal came.
pub fn serve(engine: Engine, doors: &Doors) -> Result<()> {
    memory::few_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        // Sooner than by default, as each has memory of its own.
        .thread_keep_alive(IDLE)
        .enable_all()
        .build()
        .context(|| "start the runtime")?;
    let served = runtime.block_on(answer(Arc::new(engine), doors));
    // Not waiting for threads that a second signal left at work.
    runtime.shutdown_background();
    served
}

async fn answer(engine: Arc<Engine>, doors: &Doors) -> Result<()> {
    // Before anybody can have seen a socket.
    let mut signals = Signals::install()?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let flights = Flights::default();
    let mut open = JoinSet::new();
    let mut files = Vec::new();
    if let Some(path) = &doors.docker {
        let router = docker::router(Arc::clone(&engine), flights.clone(), tending::start(Arc::clone(&engine)))?;
        let (listener, file) = socket::listen(path)?;
        files.push(file);
        open.spawn(axum::serve(listener, router).with_graceful_shutdown(socket::until(stopped)).into_future());
        tracing::info!("answering Docker at {}", path.display());
    }
    tokio::spawn(give_back_memory(flights.clone()));
    signals.next().await;
    tracing::info!("stopping");
    stop.send_replace(true);
    let ended = async {
        tokio::select! {
            () = async { while open.join_next().await.is_some() {} } => flights.landed().await,
            // A connection on which nothing is asked never ends by itself, and needn't be waited for.
            () = flights.quiet() => {}
        }
    };
    let left = |why: &str| {
        let count = flights.count();
        Err(Error::new(Kind::Interrupted, format!("stopped {why}, with {count} requests unfinished")))
    };
    tokio::select! {
        () = ended => return Ok(()),
        () = tokio::time::sleep(PATIENCE) => engine.cancellation().store(true, Ordering::Relaxed),
        () = signals.next() => return left("by a second signal"),
    }
    // What is cancelled undoes itself.
    tokio::select! {
        () = flights.landed() => {}
        () = tokio::time::sleep(PATIENCE) => {}
        () = signals.next() => return left("by a second signal"),
    }
    left("after long waiting")
}

/// Whenever it has become quiet: many threads at once leave much behind that each of them had.
async fn give_back_memory(flights: Flights) {
    loop {
        flights.busy().await;
        flights.quiet().await;
        let _ = tokio::task::spawn_blocking(memory::give_back).await;
    }
}

/// Those that say to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        let install = |kind| signal(kind).context(|| "install a signal handler");
        Ok(Self { terminate: install(SignalKind::terminate())?, interrupt: install(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
