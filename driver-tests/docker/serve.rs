//! A running `reflinkd serve`, and Docker's calls to it.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{Answer, Connection};
use crate::support::{Process, Scratch, reflinkd_command, scratch};
use crate::world::World;

/// Longer than anything takes that is alive.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
const CHUNK: usize = 60_000;

/// Try again until it is so. Fails only where it never would be.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A short path for sockets, which have room for 107 bytes.
#[derive(Debug)]
pub(crate) struct RunDir(tempfile::TempDir);

impl RunDir {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("rfd.").tempdir_in("/run").expect("mkdir below /run"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// The process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Serve {
    process: Process,
    pub(crate) socket: PathBuf,
    log: PathBuf,
    _logs: Scratch,
    _run: Option<RunDir>,
}

impl Serve {
    /// On the world's store, at a socket of its own.
    pub(crate) fn start(world: &World) -> Self {
        let run = RunDir::new();
        let socket = run.path().join("docker.sock");
        Self { _run: Some(run), ..Self::start_at(world, &socket) }
    }

    pub(crate) fn start_at(world: &World, socket: &Path) -> Self {
        let mut serve = Self::launch(Self::command(world, socket), socket);
        serve.wait_until_it_answers();
        serve
    }

    pub(crate) fn command(world: &World, socket: &Path) -> Command {
        let mut command = reflinkd_command(world.root(), &["serve", "--docker"]);
        command.arg(socket);
        command
    }

    /// Run a command that serves at a socket, some time.
    pub(crate) fn launch(mut command: Command, socket: &Path) -> Self {
        let logs = scratch("serve");
        let log = logs.path().join("log");
        command.stderr(File::create(&log).expect("create"));
        Self { process: Process::spawn(&mut command), socket: socket.to_path_buf(), log, _logs: logs, _run: None }
    }

    pub(crate) fn wait_until_it_answers(&mut self) {
        let start = Instant::now();
        while Connection::try_open(&self.socket).is_err() {
            if let Some(status) = self.process.child().try_wait().expect("wait") {
                panic!("serve ended: {status}\n{}", self.log());
            }
            assert!(start.elapsed() < DEADLINE, "serve doesn't listen\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// Wait for its end; the exit code, `None` if a signal ended it.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.child().try_wait().expect("wait") {
                return status.code();
            }
            assert!(start.elapsed() < DEADLINE, "serve doesn't end\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// SIGTERM, and a good end.
    pub(crate) fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.wait(), Some(0), "{}", self.log());
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(&self.socket)
    }

    /// One call on a connection of its own.
    pub(crate) fn call(&self, call: &str, request: &Value) -> Answer {
        let mut connection = self.connect();
        connection.post(&format!("/{call}"), request.to_string().as_bytes());
        connection.answer()
    }

    /// One that must succeed.
    pub(crate) fn ok(&self, call: &str, request: &Value) -> Value {
        let answer = self.call(call, request);
        assert_eq!(answer.status, 200, "{call} {request}: {}", answer.text());
        let json = answer.json();
        assert_eq!(json["Err"], Value::Null, "{call} {request}");
        json
    }

    /// One that must fail; why.
    pub(crate) fn fails(&self, call: &str, request: &Value) -> String {
        let answer = self.call(call, request);
        assert_ne!(answer.status, 200, "{call} {request}: {}", answer.text());
        answer.err()
    }

    pub(crate) fn create(&self, id: &str, parent: &str) {
        self.ok("GraphDriver.Create", &json!({ "ID": id, "Parent": parent }));
    }

    pub(crate) fn create_rw(&self, id: &str, parent: &str) {
        self.ok("GraphDriver.CreateReadWrite", &json!({ "ID": id, "Parent": parent }));
    }

    pub(crate) fn get(&self, id: &str) -> PathBuf {
        let answer = self.ok("GraphDriver.Get", &json!({ "ID": id }));
        PathBuf::from(answer["Dir"].as_str().expect("Dir"))
    }

    pub(crate) fn exists(&self, id: &str) -> bool {
        self.ok("GraphDriver.Exists", &json!({ "ID": id }))["Exists"].as_bool().expect("Exists")
    }

    pub(crate) fn remove(&self, id: &str) {
        self.ok("GraphDriver.Remove", &json!({ "ID": id }));
    }

    /// The rows of GetMetadata.
    pub(crate) fn metadata(&self, id: &str) -> Value {
        self.ok("GraphDriver.GetMetadata", &json!({ "ID": id }))["Metadata"].clone()
    }

    /// ApplyDiff in chunks as they come, on a connection of its own.
    pub(crate) fn apply_answer(&self, id: &str, parent: &str, tar: &mut dyn Read) -> Answer {
        let mut connection = self.connect();
        connection.begin_chunked(&format!("/GraphDriver.ApplyDiff?id={id}&parent={parent}"));
        let mut block = vec![0; CHUNK];
        loop {
            let length = tar.read(&mut block).expect("read the tar");
            if length == 0 {
                break;
            }
            connection.chunk(&block[..length]);
        }
        connection.end_chunks();
        connection.answer()
    }

    /// ApplyDiff that must succeed; its Size.
    pub(crate) fn apply(&self, id: &str, parent: &str, tar: &[u8]) -> u64 {
        let answer = self.apply_answer(id, parent, &mut &tar[..]);
        assert_eq!(answer.status, 200, "ApplyDiff {id}: {}", answer.text());
        answer.json()["Size"].as_u64().expect("Size")
    }

    /// Create and ApplyDiff.
    pub(crate) fn layer(&self, id: &str, parent: &str, tar: &[u8]) -> u64 {
        self.create(id, parent);
        self.apply(id, parent, tar)
    }

    pub(crate) fn diff(&self, id: &str, parent: &str) -> Vec<u8> {
        let answer = self.call("GraphDriver.Diff", &json!({ "ID": id, "Parent": parent }));
        assert_eq!(answer.status, 200, "Diff {id}: {}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/x-tar"));
        answer.body
    }

    pub(crate) fn diff_size(&self, id: &str, parent: &str) -> u64 {
        self.ok("GraphDriver.DiffSize", &json!({ "ID": id, "Parent": parent }))["Size"].as_u64().expect("Size")
    }

    /// `(path, kind)` of Changes.
    pub(crate) fn changes(&self, id: &str, parent: &str) -> Vec<(String, u64)> {
        let answer = self.ok("GraphDriver.Changes", &json!({ "ID": id, "Parent": parent }));
        let changes = answer["Changes"].as_array().expect("Changes");
        let pair = |change: &Value| Some((change["Path"].as_str()?.to_string(), change["Kind"].as_u64()?));
        changes.iter().map(|change| pair(change).unwrap_or_else(|| panic!("{change}"))).collect()
    }

    /// A number of `/proc/PID/status`, in KiB where it has a unit.
    pub(crate) fn proc_status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("no {field} in {status}"))
    }

    /// Open descriptors, and threads.
    pub(crate) fn held(&self) -> (usize, u64) {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count();
        (fds, self.proc_status("Threads"))
    }

    /// Descriptors and threads come back to what they were.
    pub(crate) fn settles_at(&self, before: (usize, u64)) {
        eventually("descriptors and threads are as before", || {
            let now = self.held();
            now.0 <= before.0 && now.1 <= before.1
        });
    }
}
