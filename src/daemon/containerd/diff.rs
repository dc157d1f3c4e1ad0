//! `diff.v1`: layers from containerd's content store into snapshots, and back.
//!
//! A request names mounts, not keys: those whose source is a snapshot of ours are meant. What isn't ours to do is
//! UNIMPLEMENTED, and containerd has the next differ do it; never once something is unpacked.

use std::collections::HashMap;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tonic::{Code, Request, Response, Status};

use super::api::services::diff::v1::diff_server::Diff;
use super::api::services::diff::v1::{ApplyRequest, ApplyResponse, DiffRequest, DiffResponse};
use super::api::types::{Descriptor, Mount};
use super::content::{Caller, Content, UNCOMPRESSED, theirs};
use super::{Door, code, status_of};
use crate::daemon::blocks::{self, DEPTH, Incoming, Outgoing};
use crate::daemon::flight::Flight;
use crate::engine::containerd::Snapshots;
use crate::oci::{Compression, Compressor, Digest, Digesting, Expected, LayerStream, Verified};
use crate::{Context, Error, Kind, Result};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const TAR_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const TAR_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Layers that can be taken: what they are compressed by is seen, whatever the type says.
const TYPES: [&str; 11] = [
    TAR,
    TAR_GZIP,
    TAR_ZSTD,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// Bytes of a message that containerd is sent.
const BLOCK: usize = 256 << 10;
/// How long containerd may take to forget what was written in vain.
const ABORT: Duration = Duration::from_secs(10);

#[tonic::async_trait]
impl Diff for Door {
    async fn apply(&self, request: Request<ApplyRequest>) -> Result<Response<ApplyResponse>, Status> {
        let flight = self.flights.begin("containerd", "Apply");
        let caller = Caller::of(request.metadata());
        let applied = self.unpack(request.into_inner(), caller, &flight).await;
        flight.ends(&applied);
        self.tender.wake();
        match applied {
            Ok(layer) => Ok(Response::new(ApplyResponse {
                applied: Some(Descriptor {
                    media_type: TAR.to_string(),
                    digest: layer.diff_id.to_string(),
                    size: layer.plain_size as i64,
                    annotations: HashMap::new(),
                }),
            })),
            Err(e) => Err(status("Apply", &e)),
        }
    }

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<DiffResponse>, Status> {
        let flight = self.flights.begin("containerd", "Diff");
        let caller = Caller::of(request.metadata());
        let packed = self.pack(request.into_inner(), caller, &flight).await;
        flight.ends(&packed);
        match packed {
            Ok(diff) => Ok(Response::new(DiffResponse { diff: Some(diff) })),
            Err(e) => Err(status("Diff", &e)),
        }
    }
}

/// Who can't do it lets the next one try.
fn status(call: &str, error: &Error) -> Status {
    let code = if error.kind() == Kind::Unsupported { Code::Unimplemented } else { code(error.kind()) };
    status_of(code, call, error)
}

fn declined(why: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, why)
}

impl Door {
    async fn unpack(&self, request: ApplyRequest, caller: Caller, flight: &Arc<Flight>) -> Result<Verified> {
        if !request.payloads.is_empty() {
            return Err(declined("layers with payloads for stream processors aren't taken"));
        }
        let (blob, size) = blob(&request.diff.unwrap_or_default())?;
        let mounted = Mounted::of(&request.mounts)?;
        let key = self.key_at(&mounted).await?;
        if mounted.read_only {
            return Err(Error::new(Kind::Denied, format!("{key} is to be mounted read-only")));
        }
        let mut content = Content::connect(&self.address, caller.of_snapshot(&key)).await?;
        let stream = content.read(blob).await?.map(|read| read.map(|read| read.data).map_err(|e| theirs(&e)));
        let (blocks, incoming) = Incoming::new(Arc::clone(flight));
        let expected = Expected { blob: Some((blob, size)), diff_id: None, max_bytes: u64::MAX };
        let sync = request.sync_fs;
        let unpacked = self.on_a_thread("apply", flight, move |snapshots| {
            let mut tar = LayerStream::start(Box::new(incoming), expected, Arc::new(AtomicU64::new(0)))?;
            match snapshots.apply(&key, &mut tar, sync) {
                Ok(()) => tar.finish(),
                Err(e) => Err(tar.explain(e)),
            }
        })?;
        // Together: if the client goes, the stream breaks off.
        tokio::select! {
            unpacked = unpacked => unpacked.unwrap_or_else(|_| Err(panicked())).map_err(begun),
            () = async { blocks::feed(stream, blocks).await; std::future::pending().await } => Err(panicked()),
        }
    }

    async fn pack(&self, request: DiffRequest, caller: Caller, flight: &Arc<Flight>) -> Result<Descriptor> {
        let (compression, media_type) = match request.media_type.as_str() {
            "" | TAR_GZIP => (Compression::Gzip, TAR_GZIP),
            TAR => (Compression::Plain, TAR),
            TAR_ZSTD => (Compression::Zstd, TAR_ZSTD),
            other => return Err(declined(format!("layers of type {other:?} aren't made"))),
        };
        if request.source_date_epoch.is_some() {
            return Err(declined("times are left as they are"));
        }
        let left = match request.left.is_empty() {
            true => None,
            false => Some(self.key_at(&Mounted::of(&request.left)?).await?),
        };
        let right = self.key_at(&Mounted::of(&request.right)?).await?;
        let mut content = Content::connect(&self.address, caller.of_snapshot(&right)).await?;
        content.keep().await?;
        let own = request.r#ref.is_empty();
        let reference = if own { format!("reflinkd-diff-{}", uuid::Uuid::new_v4()) } else { request.r#ref };
        let mut upload = Upload { content, reference, labels: request.labels, flight: Arc::clone(flight) };
        let (door, (mut answer, answered)) = (self.clone(), oneshot::channel());
        // By itself, as it has to be undone when the client goes.
        tokio::spawn(async move {
            let written = tokio::select! {
                written = upload.write(&door, compression, left, right) => written,
                () = answer.closed() => Err(Error::new(Kind::Interrupted, "nobody waits for it any more")),
            };
            if written.is_err() && own {
                upload.abort().await;
            }
            drop(upload);
            let _ = answer.send(written);
        });
        let Packed { blob, size, .. } = answered.await.unwrap_or_else(|_| Err(panicked()))?;
        Ok(Descriptor {
            media_type: media_type.to_string(),
            digest: blob.to_string(),
            size: size as i64,
            annotations: HashMap::new(),
        })
    }

    /// The key of what is mounted.
    async fn key_at(&self, mounted: &Mounted) -> Result<String> {
        let (engine, space, source) = (Arc::clone(&self.engine), self.space.clone(), mounted.source.clone());
        let found = tokio::task::spawn_blocking(move || engine.snapshots_of(&space).key_at(&source));
        let key = found.await.unwrap_or_else(|_| Err(panicked()))?;
        key.ok_or_else(|| declined(format!("{} is no snapshot of this store", mounted.source.display())))
    }

    /// Have a thread of its own do it, as what it does waits for others: if all threads did, none would be left for them.
    fn on_a_thread<T: Send + 'static>(
        &self,
        name: &str,
        flight: &Arc<Flight>,
        work: impl FnOnce(&Snapshots<'_>) -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (engine, space, flight) = (Arc::clone(&self.engine), self.space.clone(), Arc::clone(flight));
        let (answer, answered) = oneshot::channel();
        let spawned = std::thread::Builder::new().name(name.to_string()).spawn(move || {
            let _ = answer.send(work(&engine.snapshots_of(&space)));
            drop(flight);
        });
        spawned.map(|_| answered).context(|| "start a thread")
    }
}

/// An error after which nobody else may try: some of the layer may be there.
fn begun(error: Error) -> Error {
    if error.kind() != Kind::Unsupported {
        return error;
    }
    let begun = Error::new(Kind::BadInput, error.to_string());
    match error.hint() {
        Some(hint) => begun.with_hint(hint),
        None => begun,
    }
}

fn panicked() -> Error {
    Error::new(Kind::System, "the request ended in a panic")
}

/// Digest and size of a layer.
fn blob(layer: &Descriptor) -> Result<(Digest, u64)> {
    if !TYPES.contains(&layer.media_type.as_str()) {
        return Err(declined(format!("layers of type {:?} aren't taken", layer.media_type)));
    }
    let size = u64::try_from(layer.size);
    let size = size.map_err(|_| Error::new(Kind::Invalid, format!("a layer of {} bytes", layer.size)))?;
    Ok((layer.digest.parse()?, size))
}

/// What one bind mount would show.
#[derive(Debug)]
struct Mounted {
    source: PathBuf,
    read_only: bool,
}

impl Mounted {
    /// # Errors
    /// `Unsupported` for what no snapshot of ours is mounted by.
    fn of(mounts: &[Mount]) -> Result<Self> {
        match mounts {
            [Mount { r#type, source, target, options }] if r#type == "bind" && target.is_empty() => {
                // On disk are the image's ids, whichever a mount shows.
                let maps = |option: &String| option.starts_with("uidmap=") || option.starts_with("gidmap=");
                let known =
                    |option: &String| matches!(option.as_str(), "bind" | "rbind" | "rw" | "ro") || maps(option);
                if let Some(other) = options.iter().find(|option| !known(option)) {
                    return Err(declined(format!("a mount with {other:?}")));
                }
                Ok(Self { source: source.into(), read_only: options.iter().any(|option| option == "ro") })
            }
            _ => Err(declined("what is mounted isn't a single directory")),
        }
    }
}

/// A blob that is being made.
struct Upload {
    content: Content,
    /// How it is called until it has a digest.
    reference: String,
    labels: HashMap<String, String>,
    flight: Arc<Flight>,
}

/// A layer as it was written.
#[derive(Debug, Clone, Copy)]
struct Packed {
    blob: Digest,
    size: u64,
    plain: Digest,
}

impl Upload {
    async fn write(
        &mut self,
        door: &Door,
        compression: Compression,
        left: Option<String>,
        right: String,
    ) -> Result<Packed> {
        let what = format!("cannot write a layer of {right}");
        let mut writer = self.content.writer(&self.reference).await.context(|| &what)?;
        let (sender, mut blocks) = mpsc::channel(DEPTH);
        let packed = door.on_a_thread("diff", &self.flight, move |snapshots| {
            pack(compression, Outgoing(sender), &mut |out| snapshots.diff(left.as_deref(), &right, out))
        })?;
        while let Some(Ok(Some(block))) = blocks.recv().await {
            self.flight.sent(block.len());
            writer.write(block).await.context(|| &what)?;
        }
        // What went wrong, if it isn't whole.
        let packed = packed.await.unwrap_or_else(|_| Err(panicked()))?;
        let mut labels: Vec<(String, String)> = self.labels.drain().collect();
        labels.push((UNCOMPRESSED.to_string(), packed.plain.to_string()));
        match writer.commit(packed.blob, labels).await {
            Ok(()) => {}
            // The same layer, from another snapshot or an earlier time.
            Err(e) if e.kind() == Kind::Exists => {
                if !self.content.info(packed.blob).await?.labels.contains_key(UNCOMPRESSED) {
                    self.content.set_uncompressed(packed.blob, packed.plain).await?;
                }
            }
            Err(e) => return Err(e.context(what)),
        }
        Ok(packed)
    }

    async fn abort(&mut self) {
        match tokio::time::timeout(ABORT, self.content.abort(&self.reference)).await {
            Ok(Ok(())) => {}
            // Not begun, or gone already.
            Ok(Err(e)) if e.kind() == Kind::NotFound => {}
            Ok(Err(e)) => tracing::warn!("cannot abort {}: {e}", self.reference),
            Err(_) => tracing::warn!("cannot abort {}: containerd doesn't answer", self.reference),
        }
    }
}

/// Compress what `fill` writes, and digest it on both sides.
fn pack(
    compression: Compression,
    out: Outgoing,
    fill: &mut dyn FnMut(&mut dyn Write) -> Result<()>,
) -> Result<Packed> {
    let what = || "compress a layer";
    let blob = Digesting::new(BufWriter::with_capacity(BLOCK, out));
    let mut plain = Digesting::new(Compressor::new(compression, blob).context(what)?);
    fill(&mut plain)?;
    let (compressor, plain) = plain.into_inner();
    let (mut out, blob) = compressor.finish().context(what)?.into_inner();
    out.flush().context(what)?;
    Ok(Packed { size: blob.bytes(), blob: blob.finish(), plain: plain.finish() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, options: &[&str]) -> Mount {
        let options = options.iter().map(ToString::to_string).collect();
        Mount { r#type: kind.to_string(), source: "/s".to_string(), target: String::new(), options }
    }

    #[test]
    fn only_what_is_mounted_as_snapshots_are_is_looked_up() {
        let read_only = |options: &[&str]| Mounted::of(&[mount("bind", options)]).expect("one of ours").read_only;
        assert_eq!([read_only(&["rbind", "rw"]), read_only(&["rbind", "ro"]), read_only(&[])], [false, true, false]);
        assert!(!read_only(&["rbind", "rw", "uidmap=0:1000:1,1:5:1", "gidmap=0:1:1"]));
        for mounts in [
            vec![],
            vec![mount("overlay", &["lowerdir=/a"])],
            vec![mount("bind", &["rbind", "rw"]), mount("bind", &["rbind", "rw"])],
            vec![mount("bind", &["rbind", "rw", "nosuid"])],
            vec![Mount { target: "/below".to_string(), ..mount("bind", &[]) }],
        ] {
            assert_eq!(Mounted::of(&mounts).expect_err("another's").kind(), Kind::Unsupported, "{mounts:?}");
        }
    }

    #[test]
    fn only_layers_are_taken() {
        let layer = |media_type: &str, digest: &str, size| {
            let (media_type, digest) = (media_type.to_string(), digest.to_string());
            blob(&Descriptor { media_type, digest, size, annotations: HashMap::new() }).map_err(|e| e.kind())
        };
        let digest = Digest::of(b"");
        let text = digest.to_string();
        for known in TYPES {
            assert_eq!(layer(known, &text, 7), Ok((digest, 7)), "{known}");
        }
        for other in ["", "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "application/vnd.erofs.layer.v1"] {
            assert_eq!(layer(other, &text, 7), Err(Kind::Unsupported), "{other}");
        }
        let long = format!("sha512:{}", "0".repeat(128));
        assert_eq!(layer(TAR, &long, 7), Err(Kind::Unsupported));
        for (digest, size) in [("", 7), ("sha256:12", 7), ("../x", 7)] {
            assert_eq!(layer(TAR, digest, size), Err(Kind::BadInput));
        }
        assert_eq!(layer(TAR, &text, -1), Err(Kind::Invalid));
    }
}
