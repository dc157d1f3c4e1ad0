//! What outlives the process: what dockerd said once, and the socket file.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::process::Signal;
use serde_json::json;

use crate::fields::{id_maps, kept};
use crate::http::Connection;
use crate::serve::{RunDir, Serve};
use crate::support::MIB;
use crate::support::image::tar_of;
use crate::tars::{Entry, owned_tar};
use crate::world::World;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).permissions().mode() & 0o7777
}

/// dockerd says neither Activate nor Init again.
#[test]
fn a_killed_serve_goes_on_as_before() {
    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let mut serve = Serve::start_at(&world, &socket);
    let mut init = id_maps();
    init["Opts"] = json!(["size=3M"]);
    serve.ok("GraphDriver.Init", &init);
    serve.create("layer", "");
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "labelled", "MountLabel": LABEL }));
    let said = kept(&world);
    for round in 0..3 {
        serve.signal(Signal::KILL);
        assert_eq!(serve.wait(), None);
        assert!(socket.exists(), "a dead process's socket is replaced");
        serve = Serve::start_at(&world, &socket);
        assert_eq!(kept(&world), said);
        let id = format!("rw{round}");
        serve.create_rw(&id, "");
        assert_eq!(serve.metadata(&id)["SizeLimit"], (3 * MIB).to_string());
        serve.fails("GraphDriver.Get", &json!({ "ID": "labelled", "MountLabel": "a:b:c:d" }));
        serve.ok("GraphDriver.Get", &json!({ "ID": "labelled", "MountLabel": LABEL }));
    }
    // A key that a dead process made takes no tar.
    serve.remove("layer");
    serve.create("layer", "");
    let tar = owned_tar(&[Entry { name: "f", owner: (3, 4), content: b"" }]);
    serve.apply("layer", "", &tar);
    let there = fs::symlink_metadata(serve.get("layer").join("f")).expect("stat");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((there.uid(), there.gid()), (100_003, 200_004));
    assert_eq!(serve.diff("layer", ""), tar);
}

/// In the middle of what changes the store.
#[test]
fn a_serve_killed_in_the_middle_leaves_what_was_there() {
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let mut serve = Serve::start_at(&world, &socket);
    let tar = tar_of(&[("f", &vec![7; 2 << 20]), ("g", b"x")]);
    serve.create("layer", "");
    let places = world.places();
    let mut connection = serve.connect();
    connection.begin_chunked("/GraphDriver.ApplyDiff?id=layer&parent=");
    connection.chunk(&tar[..1 << 20]);
    crate::serve::eventually("it has begun", || world.trees() > 0);
    serve.signal(Signal::KILL);
    serve.wait();
    assert!(connection.try_answer().is_err());
    let serve = Serve::start_at(&world, &socket);
    assert!(serve.exists("layer"));
    assert_ne!(serve.apply_answer("layer", "", &mut &tar[1 << 20..]).status, 200);
    serve.remove("layer");
    serve.create("layer", "");
    assert_eq!(serve.apply("layer", "", &tar), (2 << 20) + 1);
    assert_eq!(world.places(), places, "what the dead one left is gone");
}

/// dockerd sends the rest to our successor, which may be a whole tar by its looks, or nothing.
#[test]
fn what_was_sent_to_a_serve_that_never_read_it_is_missed() {
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let mut serve = Serve::start_at(&world, &socket);
    let tar = tar_of(&[("f", b"first"), ("g", b"second")]);
    for sent in [1024, tar.len()] {
        serve.create("layer", "");
        serve.signal(Signal::STOP);
        let mut connection = serve.connect();
        connection.begin_chunked("/GraphDriver.ApplyDiff?id=layer&parent=");
        connection.chunk(&tar[..sent]);
        serve.signal(Signal::KILL);
        serve.wait();
        serve = Serve::start_at(&world, &socket);
        for _ in 0..2 {
            let answer = serve.apply_answer("layer", "", &mut &tar[sent..]);
            assert_eq!(answer.status, 500, "{}", answer.text());
            assert!(answer.err().contains("an earlier stream into it broke off"), "{}", answer.err());
        }
        assert!(serve.exists("layer"));
        serve.remove("layer");
    }
    serve.create("layer", "");
    serve.apply("layer", "", &tar);
    assert_eq!(serve.diff("layer", ""), tar);
    serve.remove("layer");
    assert_eq!(world.places(), 0);
}

#[test]
fn what_is_kept_is_roots_alone() {
    let world = World::simple();
    let run = RunDir::new();
    // Directories that are missing are made.
    let socket = run.path().join("docker/plugins/reflinkd.sock");
    let serve = Serve::start_at(&world, &socket);
    world.check_root();
    serve.ok("GraphDriver.Init", &json!({ "Home": "/x" }));
    let doors = world.root().join("doors");
    assert_eq!((mode(&doors), mode(&doors.join("docker.json")), mode(&socket)), (0o700, 0o600, 0o600));
}

#[test]
fn only_a_dead_socket_is_replaced() {
    let world = World::simple();
    let run = RunDir::new();
    let refused = |socket: &Path, why: &str| {
        let mut second = Serve::launch(Serve::command(&world, socket), socket);
        assert_eq!(second.wait(), Some(1));
        assert!(
            second.log().contains(why) && second.log().contains(socket.to_str().expect("UTF-8")),
            "{}",
            second.log()
        );
    };
    // A live one of another program.
    let socket = run.path().join("live.sock");
    let listener = UnixListener::bind(&socket).expect("bind");
    refused(&socket, "another process answers there");
    assert!(Connection::try_open(&socket).is_ok(), "it is as it was");
    // A dead one.
    drop(listener);
    let mut serve = Serve::start_at(&world, &socket);
    assert_eq!(mode(&socket), 0o600);
    // Our own.
    refused(&socket, "hint: stop that one");
    assert!(!serve.exists("x"), "it still answers");
    // One that has taken the place of ours is not ours to remove.
    fs::remove_file(&socket).expect("unlink");
    let _other = UnixListener::bind(&socket).expect("bind");
    serve.stop();
    assert!(fs::symlink_metadata(&socket).expect("it is there").file_type().is_socket());
    // Something else.
    let file = run.path().join("file");
    fs::write(&file, "precious").expect("write");
    refused(&file, "something else than a socket");
    assert_eq!(fs::read_to_string(&file).expect("read"), "precious");
    let link = run.path().join("link");
    std::os::unix::fs::symlink(&file, &link).expect("symlink");
    refused(&link, "something else than a socket");
    assert_eq!(fs::read_to_string(&link).expect("read"), "precious");
}
