//! A running `reflinkd serve`, containerd's calls to it, and the content store that it finds.

use std::collections::HashMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::api::services::diff::v1::diff_client::DiffClient;
use crate::api::services::diff::v1::{ApplyRequest, DiffRequest};
use crate::api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::api::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, UsageResponse,
    ViewSnapshotRequest,
};
use crate::api::types::{Descriptor, Mount};
use crate::store::Store;
use crate::support::scrape::Scrape;
use crate::support::{Process, Scratch, reflinkd_command, scratch};
use crate::world::World;

/// Longer than anything takes that is alive.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Try again until it is so. Fails only where it never would be.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `("a", "1")` and so on as labels.
pub(crate) fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_string(), (*value).to_string())).collect()
}

/// The process, killed when dropped, with a containerd's content store beside it.
#[derive(Debug)]
pub(crate) struct Serve {
    pub(crate) store: Store,
    process: Process,
    channel: Channel,
    runtime: Runtime,
    log: PathBuf,
    _logs: Scratch,
    run: tempfile::TempDir,
}

impl Serve {
    /// On the world's store, at a socket of its own.
    pub(crate) fn start(world: &World) -> Self {
        Self::start_with(world, "")
    }

    /// With this configuration.
    pub(crate) fn start_with(world: &World, config: &str) -> Self {
        // A short path for sockets, which have room for 107 bytes.
        let run = tempfile::Builder::new().prefix("rfc.").tempdir_in("/run").expect("mkdir below /run");
        fs::write(run.path().join("config.toml"), config).expect("write");
        Self::start_in(world, run)
    }

    fn start_in(world: &World, run: tempfile::TempDir) -> Self {
        let (socket, address) = (run.path().join("containerd.sock"), run.path().join("content.sock"));
        let mut command = reflinkd_command(world.root(), &["serve", "--containerd"]);
        command.arg(&socket).arg("--containerd-address").arg(&address);
        command.env("REFLINKD_CONFIG", run.path().join("config.toml"));
        command.arg("--metrics").arg(run.path().join("metrics.sock"));
        let logs = scratch("serve");
        let log = logs.path().join("log");
        command.stderr(File::create(&log).expect("create"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (store, channel) = {
            let _inside = runtime.enter();
            (Store::serve(&address), connect(&socket))
        };
        let process = Process::spawn(&mut command);
        let mut serve = Self { store, process, channel, runtime, log, _logs: logs, run };
        serve.wait_until_it_listens(&socket);
        serve
    }

    /// Killed, and another one started in its place.
    pub(crate) fn killed_and_started(mut self, world: &World) -> Self {
        self.process.child().kill().expect("kill");
        self.process.child().wait().expect("wait");
        let old = std::mem::replace(&mut self.run, tempfile::tempdir().expect("mkdir"));
        drop(self);
        fs::remove_file(old.path().join("content.sock")).expect("unlink");
        Self::start_in(world, old)
    }

    fn wait_until_it_listens(&mut self, socket: &Path) {
        let start = Instant::now();
        while UnixStream::connect(socket).is_err() {
            if let Some(status) = self.process.child().try_wait().expect("wait") {
                panic!("serve ended: {status}\n{}", self.log());
            }
            assert!(start.elapsed() < DEADLINE, "serve doesn't listen\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run.path().join("containerd.sock")
    }

    /// What Prometheus reads.
    pub(crate) fn scrape(&self) -> Scrape {
        let mut door = UnixStream::connect(self.run.path().join("metrics.sock")).expect("connect");
        door.set_read_timeout(Some(DEADLINE)).expect("set a timeout");
        door.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("write");
        let mut answer = String::new();
        door.read_to_string(&mut answer).expect("read");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("\r\ncontent-length: "), "{head}");
        Scrape::parse(body)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// Wait for its end; the exit code.
    pub(crate) fn ends(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.child().try_wait().expect("wait") {
                return status.code();
            }
            assert!(start.elapsed() < DEADLINE, "serve doesn't end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Bytes that the process has in memory at the most so far.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).expect("KiB") << 10
    }

    /// Wait for an answer, but not for ever.
    pub(crate) fn wait<T>(&self, answer: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(DEADLINE, answer).await }).expect("an answer")
    }

    /// Have it asked while others go on.
    pub(crate) fn begin<T: Send + 'static>(
        &self,
        answer: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(answer)
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Another connection, which is a client's that goes.
    pub(crate) fn another_channel(&self) -> Channel {
        let _inside = self.runtime.enter();
        connect(&self.socket())
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel())
    }

    pub(crate) fn diffs(&self) -> DiffClient<Channel> {
        DiffClient::new(self.channel())
    }
}

/// A connection that is made when it is needed.
pub(crate) fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address").connect_lazy()
}

/// containerd's calls.
impl Serve {
    pub(crate) fn prepare(&self, key: &str, parent: &str) -> Result<Mount, Status> {
        self.prepare_with(key, parent, &[])
    }

    pub(crate) fn prepare_with(&self, key: &str, parent: &str, given: &[(&str, &str)]) -> Result<Mount, Status> {
        let (key, parent, labels) = (key.to_string(), parent.to_string(), labels(given));
        let request = PrepareSnapshotRequest { snapshotter: String::new(), key, parent, labels };
        self.wait(async { self.snapshots().prepare(request).await }).map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) fn view(&self, key: &str, parent: &str) -> Result<Mount, Status> {
        let (key, parent, labels) = (key.to_string(), parent.to_string(), HashMap::new());
        let request = ViewSnapshotRequest { snapshotter: String::new(), key, parent, labels };
        self.wait(async { self.snapshots().view(request).await }).map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) fn mounts(&self, key: &str) -> Result<Mount, Status> {
        let request = MountsRequest { snapshotter: String::new(), key: key.to_string() };
        self.wait(async { self.snapshots().mounts(request).await }).map(|answer| only(answer.into_inner().mounts))
    }

    pub(crate) fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, &[])
    }

    pub(crate) fn commit_with(&self, name: &str, key: &str, given: &[(&str, &str)]) -> Result<(), Status> {
        let (name, key, labels) = (name.to_string(), key.to_string(), labels(given));
        let request = CommitSnapshotRequest { snapshotter: String::new(), name, key, labels, parent: String::new() };
        self.wait(async { self.snapshots().commit(request).await }).map(drop)
    }

    pub(crate) fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: String::new(), key: key.to_string() };
        self.wait(async { self.snapshots().remove(request).await }).map(drop)
    }

    pub(crate) fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { snapshotter: String::new(), key: key.to_string() };
        let answer = self.wait(async { self.snapshots().stat(request).await })?;
        Ok(answer.into_inner().info.expect("a snapshot"))
    }

    pub(crate) fn update(&self, name: &str, given: &[(&str, &str)], mask: &[&str]) -> Result<Info, Status> {
        let info = Info { name: name.to_string(), labels: labels(given), ..Info::default() };
        let update_mask = prost_types::FieldMask { paths: mask.iter().map(ToString::to_string).collect() };
        let request =
            UpdateSnapshotRequest { snapshotter: String::new(), info: Some(info), update_mask: Some(update_mask) };
        let answer = self.wait(async { self.snapshots().update(request).await })?;
        Ok(answer.into_inner().info.expect("a snapshot"))
    }

    /// The messages of List.
    pub(crate) fn list(&self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let filters = filters.iter().map(ToString::to_string).collect();
        let request = ListSnapshotsRequest { snapshotter: String::new(), filters };
        self.wait(async {
            let mut stream = self.snapshots().list(request).await?.into_inner();
            let mut messages = Vec::new();
            while let Some(message) = stream.message().await? {
                messages.push(message.info);
            }
            Ok(messages)
        })
    }

    /// The names that List gives, in order.
    pub(crate) fn names(&self, filters: &[&str]) -> Vec<String> {
        let listed = self.list(filters).unwrap_or_else(|e| panic!("{filters:?}: {e}"));
        let mut names: Vec<String> = listed.into_iter().flatten().map(|info| info.name).collect();
        names.sort();
        names
    }

    pub(crate) fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = UsageRequest { snapshotter: String::new(), key: key.to_string() };
        Ok(self.wait(async { self.snapshots().usage(request).await })?.into_inner())
    }

    pub(crate) fn cleanup(&self) -> Result<(), Status> {
        let request = CleanupRequest { snapshotter: String::new() };
        self.wait(async { self.snapshots().cleanup(request).await }).map(drop)
    }

    /// Apply a layer that the content store has.
    pub(crate) fn apply(&self, layer: &Descriptor, mount: &Mount) -> Result<Descriptor, Status> {
        let answer = self.wait(async { self.diffs().apply(in_namespace(apply_request(layer, mount))).await })?;
        Ok(answer.into_inner().applied.expect("a layer"))
    }

    pub(crate) fn diff(&self, request: DiffRequest) -> Result<Descriptor, Status> {
        let answer = self.wait(async { self.diffs().diff(in_namespace(request)).await })?;
        Ok(answer.into_inner().diff.expect("a layer"))
    }

    /// A committed snapshot of one layer.
    pub(crate) fn layer(&self, name: &str, parent: &str, tar: &[u8]) {
        let mount = self.prepare("layer being made", parent).expect("prepare");
        let layer = self.store.add(TAR, tar);
        self.apply(&layer, &mount).expect("apply");
        self.commit(name, "layer being made").expect("commit");
    }

    pub(crate) fn kind(&self, key: &str) -> Kind {
        self.stat(key).unwrap_or_else(|e| panic!("{key}: {e}")).kind()
    }
}

pub(crate) fn apply_request(layer: &Descriptor, mount: &Mount) -> ApplyRequest {
    let payloads = HashMap::new();
    ApplyRequest { diff: Some(layer.clone()), mounts: vec![mount.clone()], payloads, sync_fs: false }
}

/// With what a client of containerd's says of itself.
pub(crate) fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "tests".parse().expect("ASCII"));
    request.metadata_mut().insert("containerd-lease", "a-lease".parse().expect("ASCII"));
    request
}

fn only(mounts: Vec<Mount>) -> Mount {
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    let mount = mounts.into_iter().next().expect("one");
    assert_eq!((mount.r#type.as_str(), mount.target.as_str(), mount.options[0].as_str()), ("bind", "", "rbind"));
    mount
}

/// The code of an error, and what it says.
pub(crate) fn fails<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.expect_err("it can't be done");
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(!status.message().is_empty());
    status.message().to_string()
}

/// A command that serves, run to its end.
pub(crate) fn refused(mut command: Command) -> String {
    let output = command.output().expect("run reflinkd");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).expect("UTF-8")
}
