//! What is said to a service manager, and what it gives: by sockets made here in its place.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Command;
use std::time::Duration;

use crate::http::Connection;
use crate::serve::{RunDir, Serve, eventually};
use crate::support::scratch;
use crate::world::World;

/// Where a service manager listens.
struct Manager {
    socket: UnixDatagram,
    run: RunDir,
}

impl Manager {
    fn new() -> Self {
        let run = RunDir::new();
        let socket = UnixDatagram::bind(run.path().join("notify")).expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        Self { socket, run }
    }

    fn command(&self, world: &World) -> (Command, std::path::PathBuf) {
        let docker = self.run.path().join("docker.sock");
        let mut command = Serve::command(world, &docker);
        command.arg("--metrics").arg(self.run.path().join("metrics.sock"));
        command.env("NOTIFY_SOCKET", self.run.path().join("notify"));
        (command, docker)
    }

    /// What has come by now, or comes soon.
    fn next(&self) -> Option<String> {
        let mut message = [0; 4096];
        match self.socket.recv(&mut message) {
            Ok(length) => Some(String::from_utf8_lossy(&message[..length]).into_owned()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            Err(e) => panic!("receive: {e}"),
        }
    }

    fn hears(&self, line: &str) -> String {
        let mut heard = None;
        eventually(line, || {
            heard = self.next().filter(|message| message.lines().any(|said| said == line));
            heard.is_some()
        });
        heard.unwrap_or_default()
    }
}

#[test]
fn it_says_when_it_is_ready_and_when_it_stops() {
    let world = World::simple();
    let manager = Manager::new();
    let (command, docker) = manager.command(&world);
    let mut serve = Serve::launch(command, &docker);
    let ready = manager.hears("READY=1");
    assert!(ready.contains("STATUS=answering docker at ") && ready.contains("metrics at "), "{ready}");
    // Then, and not some time later.
    for socket in ["docker.sock", "metrics.sock"] {
        drop(Connection::open(&manager.run.path().join(socket)));
    }
    assert_eq!(manager.next(), None, "no watchdog was asked for");
    serve.signal(rustix::process::Signal::TERM);
    manager.hears("STOPPING=1");
    assert_eq!(serve.wait(), Some(0));
}

/// A live process whose store doesn't answer isn't taken for a good one.
#[test]
fn it_is_heard_of_while_its_index_answers() {
    let world = World::simple();
    let manager = Manager::new();
    let (mut command, docker) = manager.command(&world);
    command.env("WATCHDOG_USEC", "200000");
    let serve = Serve::launch(command, &docker);
    manager.hears("READY=1");
    for _ in 0..3 {
        manager.hears("WATCHDOG=1");
    }
    let index = rusqlite::Connection::open(world.root().join("index.db")).expect("open the index");
    index.busy_timeout(Duration::from_secs(60)).expect("set a timeout");
    index.execute_batch("BEGIN EXCLUSIVE").expect("lock the index");
    while manager.next().is_some() {}
    // Many times the interval; one may be on its way.
    let heard = (0..40).filter_map(|_| manager.next()).filter(|said| said.contains("WATCHDOG=1")).count();
    assert!(heard <= 1, "heard {heard} times, with the index locked");
    index.execute_batch("ROLLBACK").expect("unlock the index");
    manager.hears("WATCHDOG=1");
    assert!(!serve.exists("x"));
}

/// With all doors closed but those whose sockets are given.
fn activated(world: &World, names: &str, sockets: Vec<OwnedFd>) -> Command {
    let closed = "docker_socket = \"\"\nmetrics_socket = \"\"\n[containerd.default]\nsocket = \"\"\n";
    crate::support::activated::serve(world.root(), &world.files.path().join("config.toml"), closed, (names, sockets))
}

#[test]
fn sockets_that_are_given_are_used_and_left() {
    let world = World::simple();
    let run = RunDir::new();
    let [docker, metrics] = ["docker.sock", "metrics.sock"].map(|name| run.path().join(name));
    let listen = |path| UnixListener::bind(path).expect("bind");
    let (first, second) = (listen(&metrics), listen(&docker));
    // Who asks before it runs waits.
    let mut early = Connection::open(&docker);
    early.post("/GraphDriver.Exists", b"{}");
    let sockets = || vec![first.try_clone().expect("dup").into(), second.try_clone().expect("dup").into()];
    for _ in 0..2 {
        let mut serve = Serve::launch(activated(&world, "metrics:docker", sockets()), &docker);
        assert_eq!(early.answer().status, 200);
        assert!(!serve.exists("x"));
        let mut scrape = Connection::open(&metrics);
        scrape.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(scrape.answer().text().contains("reflinkd_build_info"));
        serve.stop();
        assert!(docker.exists() && metrics.exists(), "they are another's");
        early = Connection::open(&docker);
        early.post("/GraphDriver.Exists", b"{}");
    }
}

#[test]
fn what_is_no_doors_socket_is_refused() {
    let world = World::simple();
    let run = RunDir::new();
    let listener = UnixListener::bind(run.path().join("s")).expect("bind");
    let other = || -> OwnedFd { listener.try_clone().expect("dup").into() };
    let datagram = || -> OwnedFd { UnixDatagram::bind(run.path().join("d")).expect("bind").into() };
    let tcp = || -> OwnedFd { std::net::TcpListener::bind("127.0.0.1:0").expect("bind").into() };
    let files = scratch("file");
    let file = || -> OwnedFd { fs::File::create(files.path().join("f")).expect("create").into() };
    for (names, sockets, why) in [
        ("reflinkd.socket", vec![other()], "no door has this name"),
        ("docker:docker", vec![other(), other()], "two sockets for docker"),
        ("docker", vec![datagram()], "nobody can connect to it"),
        ("docker", vec![file()], "nobody can connect to it"),
        ("metrics", vec![tcp()], "it is no unix socket"),
        ("", Vec::new(), "there is no socket to listen at"),
    ] {
        let mut serve = Serve::launch(activated(&world, names, sockets), run.path());
        assert_eq!(serve.wait(), Some(1), "{names}: {}", serve.log());
        assert!(serve.log().contains(why) && serve.log().contains("hint: "), "{names}: {}", serve.log());
    }
}
