//! The content store of a containerd, which has the blobs of layers: asked for a client of it, in the client's name.

use std::path::Path;

use jiff::SignedDuration;
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::Streaming;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::api::services::content::v1::content_client::ContentClient;
use super::api::services::content::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, ReadContentResponse, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use super::api::services::leases::v1::CreateRequest;
use super::api::services::leases::v1::leases_client::LeasesClient;
use crate::oci::Digest;
use crate::{Error, Kind, Result};

/// What of a request goes on to containerd: the namespace that it is in, and the lease that keeps what it makes from being
/// collected.
const FORWARDED: [&str; 2] = [NAMESPACE, LEASE];
const NAMESPACE: &str = "containerd-namespace";
const LEASE: &str = "containerd-lease";
/// On a lease, when it ends by itself.
const EXPIRES: &str = "containerd.io/gc.expire";

/// On a blob, the digest of the plain tar.
pub(super) const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How long what was made stays when nobody refers to it: its client is about to.
const KEPT: SignedDuration = SignedDuration::from_mins(10);

/// How much may be on its way: as much as a message of a peer who sends large ones.
const WINDOW: u32 = 1 << 20;

/// In whose name.
#[derive(Debug, Clone)]
pub(super) struct Caller(Vec<(&'static str, MetadataValue<Ascii>)>);

impl Caller {
    pub(super) fn of(metadata: &MetadataMap) -> Self {
        let forwarded = FORWARDED.into_iter().filter_map(|name| Some((name, metadata.get(name)?.clone())));
        Self(forwarded.collect())
    }

    /// Whoever asks for something of this snapshot. containerd 1.7, and 2.0 and 2.1 to begin with, say nothing of the namespace
    /// to a differ (containerd/containerd#12328); but a key of theirs begins with it: `NAMESPACE/NUMBER/NAME`
    /// (`createKey` in their metadata/snapshot.go).
    pub(super) fn of_snapshot(mut self, key: &str) -> Self {
        let said = self.0.iter().any(|(name, _)| *name == NAMESPACE);
        if let (false, Some((namespace, _))) = (said, key.split_once('/'))
            && let Ok(namespace) = namespace.parse()
        {
            self.0.push((NAMESPACE, namespace));
        }
        self
    }

    fn asks<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (name, value) in &self.0 {
            request.metadata_mut().insert(*name, value.clone());
        }
        request
    }
}

/// A connection of its own for each call of a client: of several streams on one the slowest would hold up the others.
#[derive(Debug, Clone)]
pub(super) struct Content {
    client: ContentClient<Channel>,
    leases: LeasesClient<Channel>,
    caller: Caller,
}

impl Content {
    pub(super) async fn connect(address: &Path, caller: Caller) -> Result<Self> {
        let connected = async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", address.display()))?;
            endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW).connect().await
        };
        match connected.await {
            Ok(channel) => {
                let (client, leases) = (ContentClient::new(channel.clone()), LeasesClient::new(channel));
                Ok(Self { client, leases, caller })
            }
            Err(e) => {
                let why = format!("cannot connect to containerd at {}: {}", address.display(), root_cause(&e));
                let hint =
                    "name its own socket as address of [containerd.default], or its table, in the configuration";
                Err(Error::new(Kind::System, why).with_hint(hint))
            }
        }
    }

    /// Have what is made from now on kept for a while. containerd tells its differs of no lease that its client has, and its
    /// collector takes what has none, if it comes before the client could refer to it.
    pub(super) async fn keep(&mut self) -> Result<()> {
        if self.caller.0.iter().any(|(name, _)| *name == LEASE) {
            return Ok(());
        }
        let until = (jiff::Timestamp::now() + KEPT).to_string();
        let request = CreateRequest { id: String::new(), labels: [(EXPIRES.to_string(), until)].into() };
        let created = self.leases.create(self.caller.asks(request)).await;
        let lease = created.map_err(|status| theirs(&status).context("make a lease"))?.into_inner().lease;
        let id = lease.and_then(|lease| lease.id.parse().ok());
        let id = id.ok_or_else(|| Error::new(Kind::System, "containerd made a lease and doesn't say which"))?;
        self.caller.0.push((LEASE, id));
        Ok(())
    }

    pub(super) async fn read(&mut self, digest: Digest) -> Result<Streaming<ReadContentResponse>> {
        let request = ReadContentRequest { digest: digest.to_string(), offset: 0, size: 0 };
        let stream = self.client.read(self.caller.asks(request)).await;
        stream
            .map(tonic::Response::into_inner)
            .map_err(|status| theirs(&status).context(format!("read blob {digest}")))
    }

    /// Begin to write what is called `reference` until it has a digest, from its beginning.
    pub(super) async fn writer(&mut self, reference: &str) -> Result<Writer> {
        let (requests, sent) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            r#ref: reference.to_string(),
            ..WriteContentRequest::default()
        };
        // There is room for it, and containerd answers nothing before it.
        let _ = requests.try_send(first);
        let request = self.caller.asks(ReceiverStream::new(sent));
        let answered = self.client.write(request).await.map_err(|status| theirs(&status));
        let mut writer = Writer { requests, answers: answered?.into_inner(), offset: 0 };
        writer.answer().await?;
        Ok(writer)
    }

    pub(super) async fn info(&mut self, digest: Digest) -> Result<Info> {
        let request = self.caller.asks(InfoRequest { digest: digest.to_string() });
        let info = self.client.info(request).await.map_err(|status| theirs(&status))?.into_inner().info;
        info.ok_or_else(|| Error::new(Kind::System, format!("containerd says nothing of blob {digest}")))
    }

    /// Note on a blob what its plain tar's digest is.
    pub(super) async fn set_uncompressed(&mut self, digest: Digest, plain: Digest) -> Result<()> {
        let labels = [(UNCOMPRESSED.to_string(), plain.to_string())].into();
        let request = UpdateRequest {
            info: Some(Info { digest: digest.to_string(), labels, ..Info::default() }),
            update_mask: Some(FieldMask { paths: vec![format!("labels.{UNCOMPRESSED}")] }),
        };
        self.client.update(self.caller.asks(request)).await.map(drop).map_err(|status| theirs(&status))
    }

    /// Have what was written under a name forgotten.
    pub(super) async fn abort(&mut self, reference: &str) -> Result<()> {
        let request = self.caller.asks(AbortRequest { r#ref: reference.to_string() });
        self.client.abort(request).await.map(drop).map_err(|status| theirs(&status))
    }
}

/// A blob that is being written. Each message is answered before the next one, as containerd's own client does it.
#[derive(Debug)]
pub(super) struct Writer {
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    offset: i64,
}

impl Writer {
    /// The first of it replaces what was there.
    pub(super) async fn write(&mut self, data: axum::body::Bytes) -> Result<()> {
        let end = self.offset + data.len() as i64;
        let request = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset: self.offset,
            data,
            ..WriteContentRequest::default()
        };
        let answer = self.ask(request).await?;
        if answer.offset != end {
            let why = format!("containerd has written up to byte {} in place of {end}", answer.offset);
            return Err(Error::new(Kind::System, why));
        }
        self.offset = end;
        Ok(())
    }

    /// Make it a blob. `Exists` if it is one already, which then has no new labels.
    pub(super) async fn commit(mut self, digest: Digest, labels: Vec<(String, String)>) -> Result<()> {
        // Not saying which digest it is to have: whom it is said finds the blob that exists before the lease could get it.
        let request = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset: self.offset,
            total: self.offset,
            labels: labels.into_iter().collect(),
            ..WriteContentRequest::default()
        };
        let answer = self.ask(request).await?;
        if answer.digest != digest.to_string() {
            let why = format!("containerd says that what was written as {digest} is {:?}", answer.digest);
            return Err(Error::new(Kind::System, why));
        }
        Ok(())
    }

    async fn ask(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse> {
        // Closed, the reason is in the answer.
        let _ = self.requests.send(request).await;
        self.answer().await
    }

    async fn answer(&mut self) -> Result<WriteContentResponse> {
        let answer = self.answers.message().await.map_err(|status| theirs(&status))?;
        answer.ok_or_else(|| Error::new(Kind::System, "containerd ended before all was written"))
    }
}

/// What containerd answers, as an error of ours.
pub(super) fn theirs(status: &Status) -> Error {
    let kind = match status.code() {
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::Exists,
        Code::InvalidArgument | Code::OutOfRange => Kind::Invalid,
        Code::FailedPrecondition => Kind::InUse,
        Code::ResourceExhausted => Kind::NoSpace,
        Code::PermissionDenied => Kind::Denied,
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Aborted => Kind::Interrupted,
        Code::DataLoss => Kind::Damaged,
        _ => Kind::System,
    };
    Error::new(kind, format!("containerd says {:?}: {}", status.code(), status.message()))
}

/// The reason at the bottom, as what stands above it says nothing.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
