//! Doors of several containerds, what is no call, and ending.

use std::fs;

use tonic::Code;

use crate::api::services::snapshots::v1::snapshots_client::SnapshotsClient;
use crate::api::services::snapshots::v1::{ListSnapshotsRequest, PrepareSnapshotRequest};
use crate::serve::{Serve, TAR, apply_request, connect, eventually, in_namespace, refused};
use crate::support::image::tar_of;
use crate::support::{MIB, Process, random_bytes, reflinkd_command};
use crate::world::World;

#[test]
fn what_is_no_call_is_unimplemented() {
    let world = World::simple();
    let serve = Serve::start(&world);
    for path in [
        "/containerd.services.snapshots.v1.Snapshots/Nonsense",
        "/containerd.services.content.v1.Content/Info",
        "/nonsense",
        "/",
    ] {
        let mut client = tonic::client::Grpc::new(serve.channel());
        let answer = serve.wait(async {
            client.ready().await.expect("ready");
            let codec = tonic_prost::ProstCodec::<ListSnapshotsRequest, ListSnapshotsRequest>::default();
            client
                .unary(tonic::Request::new(ListSnapshotsRequest::default()), path.parse().expect("a path"), codec)
                .await
        });
        assert_eq!(answer.expect_err(path).code(), Code::Unimplemented, "{path}");
    }
    serve.prepare("s", "").expect("it still answers");
}

/// What is sent by another than containerd ends its connection, at the most.
#[test]
fn garbage_is_survived() {
    use std::io::{Read, Write};
    let world = World::simple();
    let serve = Serve::start(&world);
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x00\x00\x00",
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(serve.socket()).expect("connect");
        stream.write_all(garbage).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
    }
    // Another message than that of the call.
    let mut client = tonic::client::Grpc::new(serve.channel());
    let answer = serve.wait(async {
        client.ready().await.expect("ready");
        let path = "/containerd.services.snapshots.v1.Snapshots/Prepare".parse().expect("a path");
        // Fields 1 and 2 are strings there.
        let codec = tonic_prost::ProstCodec::<prost_types::Duration, prost_types::Duration>::default();
        client.unary(tonic::Request::new(prost_types::Duration { seconds: 7, nanos: 7 }), path, codec).await
    });
    assert!(answer.is_err());
    serve.prepare("s", "").expect("it still answers");
    assert_eq!(serve.names(&[]), ["s"]);
}

#[test]
fn each_containerd_has_snapshots_of_its_own() {
    let world = World::simple();
    let run = tempfile::Builder::new().prefix("rfc.").tempdir_in("/run").expect("mkdir below /run");
    let [first, second] = ["first.sock", "second.sock"].map(|name| run.path().join(name));
    let config = world.files.path().join("config.toml");
    let text = format!(
        "docker_socket = \"\"\nmetrics_socket = \"\"\n[containerd.default]\nsocket = {first:?}\n[containerd.k3s]\nsocket = {second:?}\n"
    );
    fs::write(&config, text).expect("write");
    let mut command = reflinkd_command(world.root(), &["serve"]);
    command.env("REFLINKD_CONFIG", &config);
    let _process = Process::spawn(&mut command);
    eventually("both listen", || {
        [&first, &second].iter().all(|socket| std::os::unix::net::UnixStream::connect(socket).is_ok())
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let [mut first, mut second] = [&first, &second].map(|socket| SnapshotsClient::new(connect(socket)));
        let prepare = |key: &str| PrepareSnapshotRequest { key: key.to_string(), ..Default::default() };
        let names = async |client: &mut SnapshotsClient<tonic::transport::Channel>| {
            let mut stream = client.list(ListSnapshotsRequest::default()).await.expect("list").into_inner();
            let mut names = Vec::new();
            while let Some(message) = stream.message().await.expect("a message") {
                names.extend(message.info.into_iter().map(|info| info.name));
            }
            names
        };
        first.prepare(prepare("same")).await.expect("prepare");
        assert!(names(&mut second).await.is_empty());
        second.prepare(prepare("same")).await.expect("another's is in nobody's way");
        second.prepare(prepare("other")).await.expect("prepare");
        assert_eq!(names(&mut first).await, ["same"]);
        let remove = |key: &str| crate::api::services::snapshots::v1::RemoveSnapshotRequest {
            snapshotter: String::new(),
            key: key.to_string(),
        };
        assert_eq!(first.remove(remove("other")).await.expect_err("not its").code(), Code::NotFound);
        first.remove(remove("same")).await.expect("remove");
        assert_eq!(names(&mut second).await.len(), 2);
    });
}

#[test]
fn containerds_that_would_share_are_refused() {
    let world = World::simple();
    world.ok(&["info"]);
    let config = world.files.path().join("config.toml");
    for (text, why) in [
        ("[containerd.a]\nsocket = \"/run/x\"\n[containerd.b]\nsocket = \"/run/x\"\n", "have the same socket"),
        ("[containerd.\"a/b\"]\n", "its name may have"),
    ] {
        fs::write(&config, text).expect("write");
        let mut command = reflinkd_command(world.root(), &["serve"]);
        command.env("REFLINKD_CONFIG", &config);
        let said = refused(command);
        assert!(said.contains(why), "{said}");
    }
}

/// A containerd keeps its connection open; and what it has begun is finished.
#[test]
fn ending_finishes_what_was_begun() {
    let world = World::simple();
    let mut serve = Serve::start(&world);
    let layer = serve.store.add(TAR, &tar_of(&[("file", &random_bytes(4 * MIB))]));
    let mount = serve.prepare("s", "").expect("prepare");
    serve.store.state().stall_reads_after = Some(1 << 20);
    // Idle, and in the middle of a layer that never comes.
    let (channel, request) = (serve.another_channel(), apply_request(&layer, &mount));
    let begun = serve.begin(async move {
        let mut client = crate::api::services::diff::v1::diff_client::DiffClient::new(channel);
        client.apply(in_namespace(request)).await.map(drop)
    });
    eventually("it reads", || serve.store.state().reading == 1);
    serve.signal(rustix::process::Signal::TERM);
    eventually("it lets nobody in any more", || std::os::unix::net::UnixStream::connect(serve.socket()).is_err());
    assert!(!begun.is_finished(), "it is still waited for");
    begun.abort();
    assert_eq!(serve.ends(), Some(0), "{}", serve.log());
    assert!(!serve.socket().exists());
}

/// What an image says of owners and modes holds within the store; nobody else gets so far.
#[test]
fn others_than_root_reach_neither_doors_nor_trees() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.layer("layer", "", &tar_of(&[("readable", b"by all")]));
    let mount = serve.prepare("s", "layer").expect("prepare");
    world.check_root();
    let file = std::path::Path::new(&mount.source).join("readable");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("stat").permissions().mode() & 0o7777;
    assert_eq!(mode(&file) & 0o004, 0o004, "its own mode would let everybody");
    let metrics = serve.socket().with_file_name("metrics.sock");
    for socket in [serve.socket(), metrics] {
        assert_eq!(mode(&socket), 0o600, "{}", socket.display());
        // Its directory keeps nobody out.
        fs::set_permissions(socket.parent().expect("it has one"), PermissionsExt::from_mode(0o755)).expect("chmod");
        let connect = "import socket, sys\n\
                       try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])\n\
                       except PermissionError: sys.exit(42)";
        let mut other = std::process::Command::new("/usr/bin/python3");
        let status = other.args(["-c", connect]).arg(&socket).uid(65534).gid(65534).status().expect("run python3");
        assert_eq!(status.code(), Some(42), "{}", socket.display());
    }
    // Neither through the store, nor anything in it.
    let mut other = std::process::Command::new("/bin/cat");
    let output = other.arg(&file).uid(65534).gid(65534).output().expect("run cat");
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}
