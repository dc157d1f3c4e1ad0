//! Front doors: sockets on which clients are answered until a signal says to stop. Wire formats only; what is asked is the
//! engine's to do.
//!
//! ```text
//! docker      Docker's graph-driver protocol, JSON and tars over HTTP
//! containerd  containerd's snapshots and diffs, gRPC; a door for each containerd
//! metrics     what happens and what there is, for Prometheus
//! ```
//!
//! Each request is worked on by a thread that may block, as all of the engine does; a stream has a thread of its own, so
//! that however many wait for each other none waits for a thread. One more thread tends the store ([`tender`]).

use std::fmt;
use std::future::IntoFuture;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine::Engine;
use crate::engine::containerd::Space;
use crate::sys::memory;
use crate::{Context, Error, Kind, Result};
use flight::Flights;
use socket::Socket;
use tender::Tender;

mod blocks;
mod containerd;
mod docker;
mod flight;
mod metrics;
mod notify;
mod probe;
mod socket;
mod tender;
mod told;

pub use probe::probe;

/// How long requests in flight may take after a signal to stop; then they are broken off.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a thread waits for another request before it ends.
const IDLE: Duration = Duration::from_secs(2);

/// Where Docker looks for plugins.
pub const DOCKER_SOCKET: &str = "/run/docker/plugins/reflinkd.sock";
pub const METRICS_SOCKET: &str = "/run/reflinkd/metrics.sock";

pub const CONTAINERD_SOCKET: &str = "/run/reflinkd/containerd.sock";

/// The containerd that is there without being named.
pub const CONTAINERD_NAME: &str = "default";
/// Where containerd answers itself.
pub const CONTAINERD_ADDRESS: &str = "/run/containerd/containerd.sock";

/// Where to listen; closed doors are `None`.
#[derive(Debug, Clone, Default)]
pub struct Doors {
    pub docker: Option<PathBuf>,
    pub metrics: Option<PathBuf>,
    pub containerds: Vec<Containerd>,
}

/// A containerd, and the door for it.
#[derive(Debug, Clone)]
pub struct Containerd {
    pub socket: Option<PathBuf>,
    /// What it calls its own, and which snapshots are its.
    pub address: PathBuf,
    pub space: Space,
}

/// A door, and what it opens to.
#[derive(Debug, Clone, Copy)]
enum Door<'a> {
    Docker,
    Metrics,
    Containerd(&'a Containerd),
}

impl Doors {
    /// All of them, with where to listen.
    fn all(&self) -> impl Iterator<Item = (Door<'_>, Option<&Path>)> {
        let fixed = [(Door::Docker, self.docker.as_deref()), (Door::Metrics, self.metrics.as_deref())];
        let containerds = self.containerds.iter().map(|one| (Door::Containerd(one), one.socket.as_deref()));
        fixed.into_iter().chain(containerds)
    }
}

/// What doors are called.
impl fmt::Display for Door<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("docker"),
            Self::Metrics => f.write_str("metrics"),
            Self::Containerd(one) if one.space.name == CONTAINERD_NAME => f.write_str("containerd"),
            Self::Containerd(one) => write!(f, "containerd-{}", one.space.name),
        }
    }
}

/// Answer at the doors until SIGTERM or SIGINT; then finish what was begun. Sockets that a service manager gives take the
/// place of those of their doors.
///
/// # Errors
/// `Interrupted` if something wasn't finished: within [`PATIENCE`], or because a second signal came.
pub fn serve(engine: Engine, doors: &Doors) -> Result<()> {
    // Root of a container with mapped ids has to reach its tree through the directories around it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
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
    let flights = Flights::default();
    let tender = Tender::start(Arc::clone(&engine), flights.clone())?;
    let sockets = open(doors)?;
    let (stop, stopped) = watch::channel(false);
    let (mut listening, mut files) = (JoinSet::new(), Vec::new());
    let mut status = Vec::new();
    for (door, socket) in sockets {
        let (engine, flights, tender) = (Arc::clone(&engine), flights.clone(), tender.clone());
        let router = match door {
            Door::Docker => docker::router(engine, flights, tender)?,
            Door::Metrics => metrics::router(engine, &flights.metrics),
            Door::Containerd(one) => {
                containerd::router(engine, (one.space.clone(), one.address.clone()), flights, tender)
            }
        };
        status.push(format!("{door} at {socket}"));
        files.push(listen(&mut listening, socket, router, stopped.clone()));
    }
    let status = format!("answering {}", status.join(", "));
    tracing::info!("{status}");
    notify::ready(&status);
    tokio::spawn(notify::watchdog(Arc::clone(&engine)));
    tokio::spawn(give_back_memory(flights.clone()));
    signals.next().await;
    tracing::info!("stopping");
    notify::stopping("finishing what was begun");
    stop.send_replace(true);
    finish(listening, &flights, &engine, &mut signals).await
}

/// The doors' sockets.
fn open(doors: &Doors) -> Result<Vec<(Door<'_>, Socket)>> {
    let names: Vec<String> = doors.all().map(|(door, _)| door.to_string()).collect();
    let mut given = notify::sockets(&names)?;
    let mut sockets = Vec::new();
    for (door, path) in doors.all() {
        let of_door = given.iter().position(|(name, _)| *name == door.to_string());
        match (of_door.map(|at| given.swap_remove(at).1), path) {
            (Some(listener), _) => sockets.push((door, Socket::given(listener)?)),
            (None, Some(path)) => sockets.push((door, Socket::listen(path)?)),
            (None, None) => {}
        }
    }
    if let Some((door, _)) = given.first() {
        return Err(Error::new(Kind::Invalid, format!("the service manager gives two sockets for {door}"))
            .with_hint("give each its own FileDescriptorName= in its unit"));
    }
    if sockets.is_empty() {
        return Err(closed());
    }
    Ok(sockets)
}

/// The error for doors that are all closed.
fn closed() -> Error {
    Error::new(Kind::Invalid, "nobody could ask for anything: there is no socket to listen at")
        .with_hint("name one by --docker or --containerd, or in the configuration")
}

/// Answer at a socket until it is time to stop. The file to be removed then.
fn listen(
    listening: &mut JoinSet<std::io::Result<()>>,
    socket: Socket,
    router: Router,
    stopped: watch::Receiver<bool>,
) -> Option<socket::SocketFile> {
    let (listener, file) = socket.into_parts();
    listening.spawn(axum::serve(listener, router).with_graceful_shutdown(socket::until(stopped)).into_future());
    file
}

/// Wait for what is in flight.
async fn finish(
    mut listening: JoinSet<std::io::Result<()>>,
    flights: &Flights,
    engine: &Engine,
    signals: &mut Signals,
) -> Result<()> {
    let ended = async {
        tokio::select! {
            () = async { while listening.join_next().await.is_some() {} } => flights.landed().await,
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
        () = signals.next() => return left("by a second signal, after long waiting"),
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
