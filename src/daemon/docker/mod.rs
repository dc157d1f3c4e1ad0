//! Docker's graph-driver protocol, up to Docker 27: a plugin on a socket below `/run/docker/plugins`.
//!
//! ```text
//! POST /GraphDriver.Create {"ID": "l2", "Parent": "l1"}        {}
//! POST /GraphDriver.ApplyDiff?id=l2&parent=l1   <tar>          {"Size": 1234}
//! POST /GraphDriver.Get {"ID": "c1-init"}                      {"Dir": "/var/lib/reflinkd/snapshots/.../fs"}
//! POST /GraphDriver.Get {"ID": "gone"}                         500 {"Err": "cannot show gone: there is no gone"}
//! ```
//!
//! Requests have no Content-Type, and their Host is empty or made up. A 200 to Diff is read as a tar, so that an error has
//! to be another status; for the rest either will do, and the same is used. dockerd tries again what a broken connection
//! lost, Create too; and after our restart it goes on without saying again what it said in the beginning ([`Client`]).

use std::io::Read;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::daemon::blocks::{self, Incoming};
use crate::daemon::flight::{Flight, Flights};
use crate::daemon::tender::Tender;
use crate::daemon::told::{short, told};
use crate::engine::Engine;
use crate::engine::diff::DiffChange;
use crate::engine::docker::Client;
use crate::engine::keyed::{Keyspace, NewKeyed};
use crate::layer::IdMaps;
use crate::{Context, Error, Kind, Result};
use awaited::{Awaited, Rest};

mod awaited;
mod facts;
mod options;
mod stream;
mod wire;

const CONTENT_TYPE: &str = "application/vnd.docker.plugins.v1.1+json";

/// Bytes of a path at most (PATH_MAX, linux/limits.h). All homes that there have been are kept.
const LONGEST_HOME: usize = 4095;

/// What all requests share.
#[derive(Debug)]
struct Docker {
    engine: Arc<Engine>,
    client: RwLock<Client>,
    awaited: Awaited,
    flights: Flights,
    tender: Tender,
}

/// All calls, as they are called in metrics.
const CALLS: [&str; 16] = [
    "Activate",
    "Init",
    "Capabilities",
    "Create",
    "CreateReadWrite",
    "Get",
    "Put",
    "Remove",
    "Exists",
    "Status",
    "GetMetadata",
    "Cleanup",
    "Changes",
    "DiffSize",
    "Diff",
    "ApplyDiff",
];

/// The answers to all calls.
pub(super) fn router(engine: Arc<Engine>, flights: Flights, tender: Tender) -> Result<Router> {
    let client = RwLock::new(engine.docker_client()?);
    let awaited = Awaited::default();
    Ok(Router::new().fallback(answer).with_state(Arc::new(Docker { engine, client, awaited, flights, tender })))
}

async fn answer(State(docker): State<Arc<Docker>>, request: Request) -> Response {
    let path = request.uri().path().to_string();
    let call = path.strip_prefix("/GraphDriver.").or_else(|| path.strip_prefix("/Plugin."));
    let call = call.filter(|_| request.method() == Method::POST);
    let Some(call) = call.and_then(|call| CALLS.into_iter().find(|known| *known == call)) else {
        // Only when it has been sent: until then an answer may be taken for a broken connection.
        let _ = read(request).await;
        return unknown(&path);
    };
    let flight = docker.flights.begin("docker", call);
    match call {
        "Diff" => docker.diff(request, flight).await,
        "ApplyDiff" => docker.apply_diff(request, flight).await,
        call => docker.simple(call, request, flight).await,
    }
}

/// Where a layer goes.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Applied {
    id: String,
    parent: String,
}

impl Docker {
    /// A call whose request and answer are JSON.
    async fn simple(self: Arc<Self>, call: &'static str, request: Request, flight: Arc<Flight>) -> Response {
        let body = read(request).await;
        let answered = tokio::task::spawn_blocking(move || {
            let answered = body.and_then(|body| self.call(call, &body));
            flight.ends(&answered);
            if matches!(call, "Remove" | "Create" | "CreateReadWrite") {
                self.tender.wake();
            }
            answered
        });
        match answered.await {
            Ok(Ok(response)) => json(StatusCode::OK, &response),
            Ok(Err(e)) => failure(&e),
            Err(e) => failure(&Error::new(Kind::System, format!("the request ended in a panic: {e}"))),
        }
    }

    fn call(&self, call: &str, body: &[u8]) -> Result<wire::Response> {
        let nothing = wire::Response::default();
        if !matches!(call, "Activate" | "Capabilities" | "Put" | "Cleanup" | "Status") {
            check_says_something(body)?;
        }
        if call == "Init" {
            return self.init(parsed(body)?).map(|()| nothing);
        }
        let request: wire::Request = parsed(body)?;
        let (client, key) = (self.client(), request.id.as_str());
        let trees = self.engine.docker_trees(&client);
        let parent = Some(request.parent.as_str()).filter(|parent| !parent.is_empty());
        Ok(match call {
            "Activate" => wire::Response { implements: Some(vec!["GraphDriver"]), ..nothing },
            "Capabilities" => {
                let capabilities = wire::Capabilities { reproduces_exact_diffs: true };
                wire::Response { capabilities: Some(capabilities), ..nothing }
            }
            "Create" => {
                let size_limit = options::of_container(request.storage_opt.as_ref())?;
                trees.reserve(&new(&request, parent, size_limit))?;
                self.awaited.add(key);
                nothing
            }
            "CreateReadWrite" => {
                let size_limit = options::of_container(request.storage_opt.as_ref())?.or(client.size_limit);
                trees.prepare(&new(&request, parent, size_limit))?;
                self.awaited.add(key);
                nothing
            }
            "Get" => {
                let label = Some(request.mount_label.as_str()).filter(|label| !label.is_empty());
                let root = trees.root(key, label)?;
                wire::Response { dir: Some(root.to_string_lossy().into_owned()), ..nothing }
            }
            "Remove" => {
                trees.remove(key)?;
                self.awaited.take(key);
                nothing
            }
            "Exists" => wire::Response { exists: Some(trees.exists(key)?), ..nothing },
            "Changes" => wire::Response { changes: Some(changes(&trees, key, parent)?), ..nothing },
            "DiffSize" => wire::Response { size: Some(trees.diff_size(key, parent)?), ..nothing },
            "GetMetadata" => wire::Response { metadata: Some(facts::of_tree(&trees, key)?), ..nothing },
            "Status" => wire::Response { status: Some(facts::of_store(&self.engine)?), ..nothing },
            // Put and Cleanup: nothing is mounted, so that there is nothing to undo.
            _ => nothing,
        })
    }

    fn client(&self) -> Client {
        self.client.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// dockerd begins.
    fn init(&self, init: wire::Init) -> Result<()> {
        if init.home.len() > LONGEST_HOME {
            return Err(Error::new(Kind::Invalid, format!("a home of {} bytes is no path", init.home.len())));
        }
        let home = init.home.into();
        let size_limit = options::of_daemon(init.opts.as_deref().unwrap_or_default())?;
        let ids = IdMaps::new(init.uid_maps.unwrap_or_default(), init.gid_maps.unwrap_or_default())?;
        let mut client = self.client.write().unwrap_or_else(PoisonError::into_inner);
        let new = client.next(home, size_limit, ids);
        self.engine.set_docker_client(&new)?;
        *client = new;
        Ok(())
    }

    async fn diff(self: Arc<Self>, request: Request, flight: Arc<Flight>) -> Response {
        let request: Result<wire::Request> =
            read(request).await.and_then(|body| check_says_something(&body).and_then(|()| parsed(&body)));
        let body = stream::outgoing(flight, move |out| {
            let (request, client) = (request?, self.client());
            let parent = Some(request.parent.as_str()).filter(|parent| !parent.is_empty());
            self.engine.docker_trees(&client).diff(&request.id, parent, out)
        });
        match body.await {
            Ok(body) => ([(header::CONTENT_TYPE, "application/x-tar")], body).into_response(),
            Err(e) => failure(&e),
        }
    }

    async fn apply_diff(self: Arc<Self>, request: Request, flight: Arc<Flight>) -> Response {
        let applied = match Query::<Applied>::try_from_uri(request.uri()) {
            Ok(Query(applied)) => Ok(applied),
            Err(e) => Err(Error::new(Kind::Invalid, format!("ApplyDiff wants id and parent in its query: {e}"))),
        };
        // Before any of it is read.
        let awaited = applied.as_ref().is_ok_and(|applied| self.awaited.take(&applied.id));
        let (blocks, mut tar) = Incoming::new(Arc::clone(&flight));
        tokio::spawn(blocks::feed(request.into_body().into_data_stream(), blocks));
        let (answer, answered) = tokio::sync::oneshot::channel();
        // Not one of the threads for requests: as many as there are may wait for a Diff each, whose reader needs another.
        let worker = std::thread::Builder::new().name("apply".into());
        let spawned = worker.spawn(move || {
            let size = match &applied {
                Ok(Applied { id, parent }) if awaited => self.apply(id, parent, &mut tar),
                Ok(Applied { id, parent }) => self.apply(id, parent, &mut Rest),
                Err(_) => Ok(0),
            };
            if tar.drain()
                && size.is_err()
                && awaited
                && let Ok(Applied { id, .. }) = &applied
            {
                self.awaited.add(id);
            }
            let applied = applied.and(size);
            flight.ends(&applied);
            let _ = answer.send(applied);
            drop(flight);
        });
        if let Err(e) = spawned.context(|| "start a thread") {
            return failure(&e);
        }
        match answered.await {
            Ok(Ok(size)) => json(StatusCode::OK, &wire::Response { size: Some(size), ..Default::default() }),
            Ok(Err(e)) => failure(&e),
            Err(_) => failure(&Error::new(Kind::System, "the request ended in a panic")),
        }
    }

    fn apply(&self, key: &str, parent: &str, tar: &mut dyn Read) -> Result<u64> {
        let client = self.client();
        let trees = self.engine.docker_trees(&client);
        trees.apply(key, Some(parent).filter(|parent| !parent.is_empty()), tar)
    }
}

fn new<'a>(request: &'a wire::Request, parent: Option<&'a str>, size_limit: Option<u64>) -> NewKeyed<'a> {
    let label = Some(request.mount_label.as_str()).filter(|label| !label.is_empty());
    NewKeyed { key: &request.id, parent, size_limit, label }
}

fn changes(trees: &Keyspace<'_>, key: &str, parent: Option<&str>) -> Result<Vec<wire::Change>> {
    let lines = trees.changes(key, parent)?;
    let kind = |change| match change {
        DiffChange::Changed => 0,
        DiffChange::Added => 1,
        DiffChange::Deleted => 2,
    };
    Ok(lines
        .into_iter()
        .map(|line| wire::Change { path: format!("/{}", line.path.display()), kind: kind(line.change) })
        .collect())
}

async fn read(request: Request) -> Result<Bytes> {
    let body = Bytes::from_request(request, &()).await;
    body.map_err(|e| Error::new(Kind::BadInput, format!("cannot read the request: {e}")))
}

/// dockerd tries again after a broken connection, and its code then sends nothing of what it has sent before: to take that for
/// a request would be to say that something is removed which is still there.
fn check_says_something(body: &[u8]) -> Result<()> {
    if !body.trim_ascii().is_empty() {
        return Ok(());
    }
    Err(Error::new(Kind::BadInput, "the request doesn't say what it is about")
        .with_hint("Docker sends such a one after a broken connection: try again"))
}

/// A body, which may be missing.
fn parsed<'a, T: Default + Deserialize<'a>>(body: &'a [u8]) -> Result<T> {
    let bad = |why: String| Error::new(Kind::BadInput, format!("the request is no JSON of Docker's: {why}"));
    match body.trim_ascii().first() {
        None => Ok(T::default()),
        Some(b'{') => serde_json::from_slice(body).map_err(|e| bad(e.to_string())),
        // Of a list, serde would take the fields in the order in which they are written down here.
        Some(_) => Err(bad("it is no object".to_string())),
    }
}

fn unknown(path: &str) -> Response {
    let err = short(&format!("there is no call {path}"));
    json(StatusCode::NOT_FOUND, &wire::Response { err, ..Default::default() })
}

/// An error as dockerd shows it to its user.
fn failure(error: &Error) -> Response {
    let err = told(error);
    tracing::warn!("{err}");
    json(StatusCode::INTERNAL_SERVER_ERROR, &wire::Response { err, ..Default::default() })
}

fn json(status: StatusCode, response: &wire::Response) -> Response {
    match serde_json::to_vec(response) {
        Ok(body) => (status, [(header::CONTENT_TYPE, CONTENT_TYPE)], Body::from(body)).into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()).into_response(),
    }
}
