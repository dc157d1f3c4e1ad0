//! Ending: what was begun is finished, and nobody is waited for who asks for nothing.

use rustix::process::Signal;

use crate::http::Connection;
use crate::serve::{RunDir, Serve, eventually};
use crate::support::image::tar_of;
use crate::support::{MIB, random_bytes};
use crate::world::World;

/// Whether it has begun to stop: nobody new is let in.
fn lets_nobody_in(serve: &Serve) {
    eventually("it lets nobody in any more", || Connection::try_open(&serve.socket).is_err());
}

#[test]
fn requests_in_flight_are_finished() {
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let content = random_bytes(4 * MIB);
    let tar = tar_of(&[("f", &content)]);
    for (id, signal) in [("first", Signal::TERM), ("second", Signal::INT)] {
        let mut serve = Serve::start_at(&world, &socket);
        serve.create(id, "");
        serve.layer(&format!("{id}-done"), "", &tar);
        let mut apply = serve.connect();
        apply.begin_chunked(&format!("/GraphDriver.ApplyDiff?id={id}&parent="));
        apply.chunk(&tar[..1 << 20]);
        let mut diff = serve.connect();
        diff.post("/GraphDriver.Diff", format!(r#"{{"ID":"{id}-done"}}"#).as_bytes());
        assert_eq!(diff.head().expect("a head").0, 200);
        eventually("it has begun", || world.trees().is_multiple_of(2));
        serve.signal(signal);
        lets_nobody_in(&serve);
        apply.chunk(&tar[1 << 20..]);
        apply.end_chunks();
        assert_eq!(apply.answer().json()["Size"], content.len());
        drop(diff.read_some(MIB as usize));
        drop(diff);
        assert_eq!(serve.wait(), Some(0), "{}", serve.log());
        assert!(!socket.exists(), "the socket's file is gone");
        let serve = Serve::start_at(&world, &socket);
        assert_eq!(serve.diff(id, ""), tar);
    }
}

#[test]
fn idle_connections_keep_nothing_from_ending() {
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let mut serve = Serve::start_at(&world, &socket);
    let mut kept = serve.connect();
    kept.post("/GraphDriver.Exists", b"{}");
    assert_eq!(kept.answer().status, 200);
    let silent = serve.connect();
    let mut half = serve.connect();
    half.send(b"POST /GraphDriver.Exi");
    // The exit code would tell that it had given up waiting for them.
    serve.stop();
    assert!(!socket.exists());
    assert!(kept.try_answer().is_err() && half.try_answer().is_err());
    drop(silent);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let world = World::simple();
    let run = RunDir::new();
    let socket = run.path().join("docker.sock");
    let mut serve = Serve::start_at(&world, &socket);
    let tar = tar_of(&[("f", &vec![7; 2 << 20])]);
    serve.create("layer", "");
    let mut apply = serve.connect();
    apply.begin_chunked("/GraphDriver.ApplyDiff?id=layer&parent=");
    apply.chunk(&tar[..1 << 20]);
    eventually("it has begun", || world.trees() > 0);
    serve.signal(Signal::TERM);
    lets_nobody_in(&serve);
    serve.signal(Signal::TERM);
    assert_eq!(serve.wait(), Some(130));
    assert!(serve.log().contains("stopped by a second signal, with 1 requests unfinished"), "{}", serve.log());
    assert!(!socket.exists());
    let serve = Serve::start_at(&world, &socket);
    serve.remove("layer");
    serve.create("layer", "");
    assert_eq!(serve.apply("layer", "", &tar), 2 << 20);
}
