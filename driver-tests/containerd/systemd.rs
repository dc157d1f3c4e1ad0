//! Sockets at which a service manager listens for containerd's doors, by sockets made here in its place.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::api::services::snapshots::v1::{PrepareSnapshotRequest, StatSnapshotRequest};
use crate::serve::{DEADLINE, connect, eventually, refused};
use crate::support::{Process, activated};
use crate::world::World;

/// Two containerds, at whose sockets serve doesn't listen by itself.
const CLOSED: &str = "docker_socket = \"\"\nmetrics_socket = \"\"\n\
                      [containerd.default]\nsocket = \"\"\n[containerd.k3s]\nsocket = \"\"\n";

/// What the unit says that its socket is called.
fn name_in_unit() -> &'static str {
    let unit = include_str!("../../packaging/systemd/reflinkd-containerd.socket");
    unit.lines().find_map(|line| line.strip_prefix("FileDescriptorName=")).expect("a name")
}

fn command(world: &World, names: &str, sockets: &[&UnixListener]) -> Command {
    let sockets = sockets.iter().map(|socket| OwnedFd::from(socket.try_clone().expect("dup"))).collect();
    activated::serve(world.root(), &world.files.path().join("config.toml"), CLOSED, (names, sockets))
}

/// Ask on a connection of its own, whether anybody answers yet or not.
fn prepare(runtime: &Runtime, socket: &Path, key: &str) -> JoinHandle<Result<(), Status>> {
    let request = PrepareSnapshotRequest { key: key.to_string(), ..Default::default() };
    let _inside = runtime.enter();
    let mut client = SnapshotsClient::new(connect(socket));
    runtime.spawn(async move { client.prepare(request).await.map(drop) })
}

fn there(runtime: &Runtime, socket: &Path, key: &str) -> bool {
    let request = StatSnapshotRequest { key: key.to_string(), ..Default::default() };
    let _inside = runtime.enter();
    let mut client = SnapshotsClient::new(connect(socket));
    let answer = async { tokio::time::timeout(DEADLINE, client.stat(request)).await };
    runtime.block_on(answer).expect("an answer").is_ok()
}

/// Whether somebody has connected whom nobody has let in yet: beside the one that listens, the kernel has a socket of that path.
fn somebody_waits(socket: &Path) -> bool {
    let all = std::fs::read_to_string("/proc/net/unix").expect("read /proc/net/unix");
    let path = socket.to_str().expect("UTF-8");
    all.lines().filter(|line| line.ends_with(&format!(" {path}"))).count() > 1
}

#[test]
fn what_is_asked_before_it_runs_is_answered() {
    let world = World::simple();
    let run = tempfile::Builder::new().prefix("rfc.").tempdir_in("/run").expect("mkdir below /run");
    let [first, second] = ["first.sock", "second.sock"].map(|name| run.path().join(name));
    let [listener, of_k3s] = [&first, &second].map(|path| UnixListener::bind(path).expect("bind"));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let names = format!("containerd-k3s:{}", name_in_unit());
    // Started, stopped and started again: the sockets are another's, and stay.
    for round in ["one", "two"] {
        let early = [&first, &second].map(|socket| prepare(&runtime, socket, round));
        eventually("both wait", || somebody_waits(&first) && somebody_waits(&second));
        assert!(!early.iter().any(JoinHandle::is_finished));
        let mut serve = Process::spawn(&mut command(&world, &names, &[&of_k3s, &listener]));
        for asked in early {
            let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, asked).await }).expect("an answer");
            answer.expect("no panic").expect("prepare");
        }
        // Each by its own name, whatever their order.
        prepare(&runtime, &first, &format!("{round}, of the first"));
        eventually("the first has it", || there(&runtime, &first, &format!("{round}, of the first")));
        assert!(!there(&runtime, &second, &format!("{round}, of the first")));
        assert!(there(&runtime, &first, "one") && there(&runtime, &second, "one"));
        let pid = i32::try_from(serve.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("kill");
        let mut status = None;
        eventually("it ends", || {
            status = serve.child().try_wait().expect("wait");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(0));
        assert!(first.exists() && second.exists());
    }
}

#[test]
fn a_socket_of_no_containerd_is_refused() {
    let world = World::simple();
    let run = tempfile::Builder::new().prefix("rfc.").tempdir_in("/run").expect("mkdir below /run");
    let listener = UnixListener::bind(run.path().join("s")).expect("bind");
    for (names, sockets, why) in [
        ("containerd-k8s", vec![&listener], "no door has this name"),
        // The table's name alone.
        ("k3s", vec![&listener], "no door has this name"),
        ("containerd:containerd", vec![&listener, &listener], "two sockets for containerd"),
    ] {
        let said = refused(command(&world, names, &sockets));
        assert!(said.contains(why) && said.contains("hint: "), "{names}: {said}");
    }
}

/// What a kubelet runs as a probe.
#[test]
fn a_probe_tells_who_answers() {
    let world = World::simple();
    let run = tempfile::Builder::new().prefix("rfc.").tempdir_in("/run").expect("mkdir below /run");
    let [containerd, metrics] = ["containerd.sock", "metrics.sock"].map(|name| run.path().join(name));
    let probe = || {
        let mut probe = crate::support::reflinkd_command(world.root(), &["serve", "--probe", "--containerd"]);
        probe.arg(&containerd).arg("--metrics").arg(&metrics);
        probe
    };
    assert!(refused(probe()).contains("nobody answers"));
    assert!(!world.root().exists(), "it opens no store");
    let mut serve = crate::support::reflinkd_command(world.root(), &["serve", "--containerd"]);
    let mut serve = Process::spawn(serve.arg(&containerd).arg("--metrics").arg(&metrics));
    eventually("it is ready", || probe().output().expect("run reflinkd").status.success());
    // One of them is enough.
    std::fs::remove_file(&metrics).expect("unlink");
    assert!(refused(probe()).contains(&format!("metrics at {}", metrics.display())));
    serve.child().kill().expect("kill");
    serve.child().wait().expect("wait");
    // Connected, but never answered.
    std::fs::remove_file(&containerd).expect("unlink");
    let hung = UnixListener::bind(&containerd).expect("bind");
    assert!(refused(probe()).contains("nobody answers"));
    drop(hung);
}
