//! A server in this process, on a store in memory: its doors are asked as anybody would ask them, and afterwards the store
//! is looked at as by another process.

use std::cell::OnceCell;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use reflinkd::backend::memory::Memory;
use reflinkd::daemon::{Containerd, Doors, serve};
use reflinkd::engine::check::Check;
use reflinkd::engine::containerd::Space;
use reflinkd::engine::{Engine, Settings};
use reflinkd::layer::Limits;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::store::Store;
use super::tree::{Tree, read};

/// Longer than anything takes that is alive.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long a door may think about whether it answers, before it is told that nothing more comes.
const PAUSE: Duration = Duration::from_millis(5);

/// Threads of any kind that have panicked.
static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Where one may knock.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Door {
    Docker,
    Containerd,
    Metrics,
}

impl Door {
    fn socket(self, dir: &Path) -> PathBuf {
        dir.join("run").join(match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Metrics => "metrics",
        })
    }
}

/// The server, its store, and who stands for containerd.
pub(crate) struct Hall {
    dir: tempfile::TempDir,
    canary: Tree,
    settings: Settings,
    space: Space,
    /// As another process has it open.
    engine: Engine,
    /// What containerd has.
    pub(crate) content: Store,
    pub(crate) channel: Channel,
    pub(crate) runtime: Runtime,
}

/// Do something in the one there is, which goes with the last thread that did. One at a time does.
pub(crate) fn with(work: impl FnOnce(&Hall)) {
    static HALL: Mutex<Weak<Mutex<Hall>>> = Mutex::new(Weak::new());
    thread_local!(static KEPT: OnceCell<Arc<Mutex<Hall>>> = const { OnceCell::new() });
    let open = || {
        let mut known = HALL.lock().expect("it couldn't be opened before");
        known.upgrade().unwrap_or_else(|| {
            let hall = Arc::new(Mutex::new(Hall::open()));
            *known = Arc::downgrade(&hall);
            hall
        })
    };
    // After a failure nothing is as it was.
    KEPT.with(|kept| work(&kept.get_or_init(open).lock().expect("an earlier input fails")));
}

impl Hall {
    fn open() -> Self {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
        // A short path for sockets, which have room for 107 bytes.
        let dir = tempfile::Builder::new().prefix("rff.").tempdir_in("/dev/shm").expect("a directory in memory");
        for name in ["store", "run", "canary"] {
            fs::DirBuilder::new().mode(0o700).create(dir.path().join(name)).expect("mkdir");
        }
        fs::write(dir.path().join("canary/file"), "untouched").expect("write");
        let settings = Settings {
            root: dir.path().join("store"),
            spares: 0,
            tend: false,
            layer_limits: Limits { max_bytes: 1 << 20, max_entries: 1000, max_depth: 64 },
            ..Settings::default()
        };
        let space = Space { name: "default".into(), size_limit: None, remap_ids: true, reuse: Vec::new() };
        let address = dir.path().join("run/content");
        let socket = |door: Door| Some(door.socket(dir.path()));
        let doors = Doors {
            docker: socket(Door::Docker),
            metrics: socket(Door::Metrics),
            containerds: vec![Containerd {
                socket: socket(Door::Containerd),
                address: address.clone(),
                space: space.clone(),
            }],
        };
        let (served, engine) = (on_memory(&settings), on_memory(&settings));
        std::thread::spawn(move || {
            serve(served, &doors).expect("serve");
            // Somebody has interrupted it, and means all of this process: no input of a target has failed.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        });
        for door in [Door::Docker, Door::Containerd, Door::Metrics] {
            eventually("a socket", || UnixStream::connect(door.socket(dir.path())).is_ok());
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (content, channel) = {
            let _inside = runtime.enter();
            let door = format!("unix://{}", Door::Containerd.socket(dir.path()).display());
            (Store::serve(&address), Endpoint::from_shared(door).expect("an address").connect_lazy())
        };
        let canary = read(&dir.path().join("canary"));
        Self { dir, canary, settings, space, engine, content, channel, runtime }
    }

    /// The directory of the store.
    pub(crate) fn root(&self) -> &Path {
        &self.settings.root
    }

    /// Say anything at a door, then that this was all, and hear what it answers until it closes.
    pub(crate) fn say(&self, door: Door, words: &[u8]) -> Vec<u8> {
        let mut stream = self.knock(door, words);
        stream.set_read_timeout(Some(PAUSE)).expect("set a timeout");
        let mut answer = vec![0; 4096];
        let begun = stream.read(&mut answer).unwrap_or(0);
        answer.truncate(begun);
        let _ = stream.shutdown(Shutdown::Write);
        hear(stream, &mut answer);
        answer
    }

    /// The answer to a request after which the server is to close.
    pub(crate) fn ask(&self, door: Door, request: &[u8]) -> Vec<u8> {
        let mut answer = Vec::new();
        hear(self.knock(door, request), &mut answer);
        answer
    }

    fn knock(&self, door: Door, words: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(door.socket(self.dir.path())).expect("connect");
        stream.set_write_timeout(Some(DEADLINE)).expect("set a timeout");
        // It may have heard enough.
        let said = stream.write_all(words).err().map(|e| e.kind());
        assert!(!matches!(said, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "it doesn't listen");
        stream
    }

    /// What must hold after whatever was asked: nothing is under way for ever, the store is whole, all in it can be removed,
    /// and nothing happened anywhere else.
    pub(crate) fn settle(&self) {
        eventually("it comes to rest", || self.in_flight() == 0);
        self.check();
        self.clear();
        self.check();
        for directory in ["snapshots", "trash"] {
            let left = fs::read_dir(self.root().join(directory)).map_or(0, Iterator::count);
            assert_eq!(left, 0, "left in {directory}");
        }
        assert_eq!(read(&self.dir.path().join("canary")), self.canary);
        let mut names: Vec<_> =
            fs::read_dir(self.dir.path()).expect("list").map(|entry| entry.expect("list").file_name()).collect();
        names.sort();
        assert_eq!(names, ["canary", "run", "store"]);
        assert_eq!(fs::read_dir(self.dir.path().join("run")).expect("list").count(), 4);
        assert_eq!(PANICS.load(Ordering::Relaxed), 0, "something has panicked");
    }

    fn in_flight(&self) -> u64 {
        let answer = self.ask(Door::Metrics, b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let text = String::from_utf8(answer).expect("UTF-8");
        let line = text.lines().find_map(|line| line.strip_prefix("reflinkd_requests_in_flight "));
        line.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number in flight: {text}"))
    }

    fn check(&self) {
        let memory = Memory::new(self.root()).expect("a directory");
        let checked = Check::on_backend(self.settings.clone(), Box::new(memory)).expect("open").run(None);
        let checked = checked.expect("check");
        assert!(checked.is_healthy(), "{:#?}", checked.findings);
    }

    /// Remove everything, last things first: others may be based on the rest.
    fn clear(&self) {
        let client = self.engine.docker_client().expect("a client");
        let (trees, snapshots) = (self.engine.docker_trees(&client), self.engine.snapshots_of(&self.space));
        let start = Instant::now();
        loop {
            let (keys, infos) = (trees.list().expect("list"), snapshots.list().expect("list"));
            if keys.is_empty() && infos.is_empty() {
                break;
            }
            let mut refused: Vec<_> = keys.iter().rev().filter_map(|tree| trees.remove(&tree.key()?).err()).collect();
            refused.extend(infos.iter().rev().filter_map(|info| snapshots.remove(&info.name).err()));
            assert!(start.elapsed() < DEADLINE, "it can't be removed: {refused:?}");
        }
        let garbage = self.engine.collect_garbage(true).expect("look for garbage");
        assert!(garbage.garbage.is_empty() && garbage.unknown.is_empty(), "{garbage:?}");
        if client.session > 0 {
            self.forget_client();
        }
    }

    /// A dockerd with other ids opens the store to their group.
    fn forget_client(&self) {
        for directory in [self.root().to_path_buf(), self.root().join("snapshots")] {
            let mode = fs::metadata(&directory).expect("stat").permissions().mode() & 0o7777;
            assert!(mode == 0o700 || mode == 0o710, "{}: {mode:o}", directory.display());
            std::os::unix::fs::chown(&directory, None, Some(0)).expect("chgrp");
            fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).expect("chmod");
        }
    }
}

/// All that is answered until the other side closes.
fn hear(mut stream: UnixStream, answer: &mut Vec<u8>) {
    stream.set_read_timeout(Some(DEADLINE)).expect("set a timeout");
    // Closed before it has read all is closed.
    let ended = stream.read_to_end(answer).err().map(|e| e.kind());
    assert!(!matches!(ended, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "it neither answers nor closes");
}

fn on_memory(settings: &Settings) -> Engine {
    let memory = Memory::new(&settings.root).expect("a directory");
    Engine::on_backend(settings.clone(), Box::new(memory)).expect("open")
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
