//! containerd's `snapshots.v1` and `diff.v1` over gRPC: what its proxy plugins `snapshot` and `diff` ask, from 1.6 on.
//!
//! ```text
//! Prepare {key: "default/7/extract-1 sha256:...", parent: "default/6/sha256:..."}
//!                                          {mounts: [{type: "bind", source: "/var/lib/reflinkd/...", options: ["rbind", "rw"]}]}
//! Apply {diff: {digest: "sha256:..."}, mounts: [...]}    {applied: {digest: the plain tar's}}
//! Mounts {key: "gone"}                                   NOT_FOUND: cannot show gone: there is no gone
//! ```
//!
//! One socket is one containerd's. It lists what there is, and removes what it doesn't know: so each has snapshots of its own,
//! in a keyspace called by the door's name, and never sees another's.
//!
//! A call whose client has gone is done to its end, unless it is Apply or Diff: those stop. What Diff wrote is forgotten; what
//! Apply unpacked is removed with its snapshot, which is good for nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::routing::any_service;
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::flight::{Flight, Flights};
use super::tender::Tender;
use super::told::told;
use crate::engine::Engine;
use crate::engine::containerd::{Shown, Snapshots, Space};
use crate::{Error, Kind, Result};
use api::services::diff::v1::diff_server::DiffServer;
use api::services::snapshots::v1::snapshots_server::SnapshotsServer;
use api::types::Mount;

mod api;
mod content;
mod diff;
mod filter;
mod snapshots;

/// One containerd's door.
#[derive(Debug, Clone)]
struct Door {
    engine: Arc<Engine>,
    space: Space,
    /// Where containerd answers.
    address: PathBuf,
    flights: Flights,
    tender: Tender,
}

/// The answers to all calls of a containerd that answers at `address` itself.
pub(super) fn router(
    engine: Arc<Engine>,
    (space, address): (Space, PathBuf),
    flights: Flights,
    tender: Tender,
) -> Router {
    let door = Arc::new(Door { engine, space, address, flights, tender });
    Router::new()
        .route(
            "/containerd.services.snapshots.v1.Snapshots/{call}",
            any_service(SnapshotsServer::from_arc(Arc::clone(&door))),
        )
        .route("/containerd.services.diff.v1.Diff/{call}", any_service(DiffServer::from_arc(door)))
        .fallback(|| async { Status::unimplemented("there is no such service").into_http::<axum::body::Body>() })
}

impl Door {
    /// Have it done by a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Snapshots<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let flight = self.flights.begin("containerd", call);
        let done = self.block_on(flight, work).await;
        if matches!(call, "Prepare" | "View" | "Commit" | "Remove" | "Cleanup") {
            self.tender.wake();
        }
        done.map_err(|e| status(call, &e))
    }

    async fn block_on<T: Send + 'static>(
        &self,
        flight: Arc<Flight>,
        work: impl FnOnce(&Snapshots<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (engine, space) = (Arc::clone(&self.engine), self.space.clone());
        let worked = tokio::task::spawn_blocking(move || {
            let done = work(&engine.snapshots_of(&space));
            flight.ends(&done);
            done
        });
        worked.await.unwrap_or_else(|e| Err(Error::new(Kind::System, format!("the request ended in a panic: {e}"))))
    }
}

/// What containerd makes of an error depends on its code alone (`errgrpc` of its errdefs).
fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid | Kind::BadInput => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Exists => Code::AlreadyExists,
        Kind::InUse | Kind::Unsupported => Code::FailedPrecondition,
        Kind::NoSpace => Code::ResourceExhausted,
        Kind::Denied => Code::PermissionDenied,
        Kind::Interrupted => Code::Unavailable,
        Kind::Damaged => Code::DataLoss,
        Kind::System => Code::Internal,
    }
}

fn status(call: &str, error: &Error) -> Status {
    status_of(code(error.kind()), call, error)
}

fn status_of(code: Code, call: &str, error: &Error) -> Status {
    let message = told(error);
    match code {
        // What is asked in the course of things.
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Unimplemented => {
            tracing::debug!("{call}: {message}");
        }
        _ => tracing::warn!("{call}: {message}"),
    }
    Status::new(code, message)
}

/// A snapshot as it is to be mounted: it is there already.
fn mounts(shown: Shown) -> Result<Vec<Mount>> {
    let Ok(source) = shown.root.into_os_string().into_string() else {
        return Err(Error::new(
            Kind::Unsupported,
            "the path of the store is no UTF-8, and containerd takes no other",
        ));
    };
    let mut options = vec!["rbind".to_string(), if shown.read_only { "ro" } else { "rw" }.to_string()];
    options.extend(shown.uid_map.map(|map| format!("uidmap={map}")));
    options.extend(shown.gid_map.map(|map| format!("gidmap={map}")));
    Ok(vec![Mount { r#type: "bind".to_string(), source, target: String::new(), options }])
}

fn timestamp(time: jiff::Timestamp) -> Timestamp {
    const SECOND: i128 = 1_000_000_000;
    let nanos = time.as_nanosecond();
    // In range, as jiff has less of it.
    Timestamp { seconds: nanos.div_euclid(SECOND) as i64, nanos: nanos.rem_euclid(SECOND) as i32 }
}
