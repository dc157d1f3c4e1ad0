//! A content store as containerd has it, in memory, with the faults that a test wants.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::routing::any_service;
use reflinkd::oci::Digest;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

use crate::api::services::content::v1::content_server::{Content, ContentServer};
use crate::api::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest,
    StatusResponse, UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};
use crate::api::services::leases::v1::leases_server::{Leases, LeasesServer};
use crate::api::services::leases::v1::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest, Lease, ListRequest,
    ListResourcesRequest, ListResourcesResponse, ListResponse,
};
use crate::api::types::Descriptor;

/// As containerd sends them.
const BLOCK: usize = 32 << 10;

#[derive(Debug, Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(crate) struct State {
    /// Content and labels by digest.
    pub(crate) blobs: BTreeMap<String, (Bytes, HashMap<String, String>)>,
    /// What is being written, by reference.
    pub(crate) ingests: BTreeMap<String, Vec<u8>>,
    /// Reads break off after so many bytes.
    pub(crate) break_reads_after: Option<usize>,
    /// Reads stop there, and never go on.
    pub(crate) stall_reads_after: Option<usize>,
    /// Writes fail from there on.
    pub(crate) fail_writes_after: Option<usize>,
    /// Writes aren't answered from there on.
    pub(crate) stall_writes_after: Option<usize>,
    /// How many reads are under way.
    pub(crate) reading: usize,
    /// Calls with another namespace or lease than the client's.
    pub(crate) strangers: usize,
    /// The labels of each lease that was made.
    pub(crate) leases: Vec<HashMap<String, String>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Store {
    /// Answer at a socket, as long as the runtime lives.
    pub(crate) fn serve(address: &Path) -> Self {
        let store = Self::default();
        let listener = UnixListener::bind(address).expect("bind");
        let service = any_service(ContentServer::new(store.clone()));
        let leases = any_service(LeasesServer::new(store.clone()));
        let router = Router::new()
            .route("/containerd.services.content.v1.Content/{call}", service)
            .route("/containerd.services.leases.v1.Leases/{call}", leases);
        tokio::spawn(async move { axum::serve(listener, router).await });
        store
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Have a blob.
    pub(crate) fn add(&self, media_type: &str, blob: &[u8]) -> Descriptor {
        let digest = Digest::of(blob).to_string();
        self.state().blobs.insert(digest.clone(), (Bytes::copy_from_slice(blob), HashMap::new()));
        let (media_type, size) = (media_type.to_string(), i64::try_from(blob.len()).expect("small"));
        Descriptor { media_type, digest, size, annotations: HashMap::new() }
    }

    pub(crate) fn blob(&self, digest: &str) -> (Bytes, HashMap<String, String>) {
        self.state().blobs.get(digest).unwrap_or_else(|| panic!("no blob {digest}")).clone()
    }

    fn greet(&self, metadata: &MetadataMap) {
        let said = ["containerd-namespace", "containerd-lease"]
            .map(|name| metadata.get(name).and_then(|value| value.to_str().ok()));
        if said != [Some("tests"), Some("a-lease")] {
            self.state().strangers += 1;
        }
    }

    fn step(&self, reference: &str, request: &WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let mut state = self.state();
        let (fail_after, action) = (state.fail_writes_after, request.action());
        let ingest = state.ingests.entry(reference.to_string()).or_default();
        if action != WriteAction::Stat {
            let offset = usize::try_from(request.offset).expect("an offset");
            if offset == 0 {
                ingest.clear();
            }
            if offset != ingest.len() {
                return Err(Status::out_of_range(format!("write at {offset} of {}", ingest.len())));
            }
            ingest.extend_from_slice(&request.data);
        }
        if fail_after.is_some_and(|after| ingest.len() > after) {
            return Err(Status::resource_exhausted("no space left on device"));
        }
        let offset = i64::try_from(ingest.len()).expect("small");
        let mut digest = String::new();
        if action == WriteAction::Commit {
            digest = Digest::of(ingest).to_string();
            assert!(request.total == 0 || request.total == offset, "{} of {offset}", request.total);
            let content = Bytes::from(state.ingests.remove(reference).expect("it is there"));
            if state.blobs.contains_key(&digest) {
                return Err(Status::already_exists(digest));
            }
            state.blobs.insert(digest.clone(), (content, request.labels.clone()));
        }
        Ok(WriteContentResponse { action: request.action, offset, digest, ..WriteContentResponse::default() })
    }
}

#[tonic::async_trait]
impl Leases for Store {
    /// All have one name, which is what content is asked for with.
    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateResponse>, Status> {
        let CreateRequest { id, labels } = request.into_inner();
        assert!(id.is_empty(), "no name of its own: {id}");
        self.state().leases.push(labels);
        let lease = Lease { id: "a-lease".into(), ..Lease::default() };
        Ok(Response::new(CreateResponse { lease: Some(lease) }))
    }

    async fn delete(&self, _: Request<DeleteRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        Err(Status::unimplemented("list"))
    }

    async fn add_resource(&self, _: Request<AddResourceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("add"))
    }

    async fn delete_resource(&self, _: Request<DeleteResourceRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("delete"))
    }

    async fn list_resources(
        &self,
        _: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        Err(Status::unimplemented("list"))
    }
}

#[tonic::async_trait]
impl Content for Store {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        self.greet(request.metadata());
        let digest = request.into_inner().digest;
        let state = self.state();
        let (content, labels) = state.blobs.get(&digest).ok_or_else(|| Status::not_found("no blob"))?;
        let (size, labels) = (i64::try_from(content.len()).expect("small"), labels.clone());
        Ok(Response::new(InfoResponse { info: Some(Info { digest, size, labels, ..Info::default() }) }))
    }

    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        self.greet(request.metadata());
        let UpdateRequest { info, update_mask } = request.into_inner();
        let info = info.unwrap_or_default();
        let mut state = self.state();
        let (_, labels) = state.blobs.get_mut(&info.digest).ok_or_else(|| Status::not_found("no blob"))?;
        for path in update_mask.unwrap_or_default().paths {
            let key = path.strip_prefix("labels.").ok_or_else(|| Status::invalid_argument("not a label"))?;
            labels.insert(key.to_string(), info.labels[key].clone());
        }
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    type ReadStream = Answers<ReadContentResponse>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        self.greet(request.metadata());
        let digest = request.into_inner().digest;
        let (content, break_after, stall_after) = {
            let mut state = self.state();
            let content = state.blobs.get(&digest).ok_or_else(|| Status::not_found("no blob"))?.0.clone();
            state.reading += 1;
            (content, state.break_reads_after, state.stall_reads_after)
        };
        let (sender, answers) = mpsc::channel(1);
        let store = self.clone();
        tokio::spawn(async move {
            let mut offset = 0;
            for block in content.chunks(BLOCK) {
                if break_after.is_some_and(|after| offset >= after) {
                    let _ = sender.send(Err(Status::data_loss("input/output error"))).await;
                    break;
                }
                if stall_after.is_some_and(|after| offset >= after) {
                    sender.closed().await;
                    break;
                }
                let data = content.slice_ref(block);
                let answer = ReadContentResponse { offset: i64::try_from(offset).expect("small"), data };
                offset += block.len();
                if sender.send(Ok(answer)).await.is_err() {
                    break;
                }
            }
            store.state().reading -= 1;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type WriteStream = Answers<WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        self.greet(request.metadata());
        let (sender, answers) = mpsc::channel(1);
        let (store, mut requests) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            let mut reference = String::new();
            while let Some(Ok(request)) = requests.next().await {
                if reference.is_empty() {
                    reference.clone_from(&request.r#ref);
                }
                let stall_after = store.state().stall_writes_after;
                let answer = store.step(&reference, &request);
                let last = answer.is_err() || request.action() == WriteAction::Commit;
                if stall_after.is_some_and(|after| answer.as_ref().is_ok_and(|a| a.offset > after as i64)) {
                    sender.closed().await;
                    break;
                }
                if sender.send(answer).await.is_err() || last {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.greet(request.metadata());
        match self.state().ingests.remove(&request.into_inner().r#ref) {
            Some(_) => Ok(Response::new(())),
            None => Err(Status::not_found("no such reference")),
        }
    }

    type ListStream = Answers<ListContentResponse>;

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(never())
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        Err(never())
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Err(never())
    }

    async fn list_statuses(&self, _: Request<ListStatusesRequest>) -> Result<Response<ListStatusesResponse>, Status> {
        Err(never())
    }
}

fn never() -> Status {
    Status::new(Code::Unimplemented, "a differ doesn't ask for it")
}
