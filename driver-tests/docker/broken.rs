//! Streams that break off, on either side, and clients that go away.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::json;

use crate::serve::{Serve, eventually};
use crate::support::image::tar_of;
use crate::support::{MIB, random_bytes};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    an_apply_diff_cut_off_leaves_the_layer_reserved
    clients_that_go_away_leave_nothing
    a_diff_that_fails_in_the_middle_breaks_off
}

/// The place of a key's tree.
fn place(serve: &Serve, id: &str) -> PathBuf {
    serve.get(id).parent().expect("a place").to_path_buf()
}

/// A layer of 24 MiB: more than all that is under way between the two ends of a socket.
fn large_tar() -> Vec<u8> {
    let content = random_bytes(8 * MIB);
    tar_of(&[("a", &content), ("b", &content), ("c", &content)])
}

fn an_apply_diff_cut_off_leaves_the_layer_reserved(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let tar = large_tar();
    serve.create("layer", "");
    let (places, before) = (world.places(), serve.held());
    // In the first header, in a file's content, between two entries, and all but the last chunk.
    let entry = 8 * 1024 * 1024 + 512;
    for cut in [0, 100, 5 << 20, entry, tar.len()] {
        let mut connection = serve.connect();
        connection.begin_chunked("/GraphDriver.ApplyDiff?id=layer&parent=");
        tar[..cut].chunks(65_536).for_each(|chunk| connection.chunk(chunk));
        drop(connection);
        serve.settles_at(before);
        eventually("the place of the work is gone", || world.places() == places);
        assert!(serve.exists("layer"));
        // What comes after a stream that broke off may be its rest.
        let answer = serve.apply_answer("layer", "", &mut &tar[..]);
        assert_eq!(answer.status, 500, "{}", answer.text());
        serve.remove("layer");
        serve.create("layer", "");
    }
    // In the middle of a chunk; the client listens on.
    let mut connection = serve.connect();
    connection.begin_chunked("/GraphDriver.ApplyDiff?id=layer&parent=");
    connection.send(b"10000\r\n");
    connection.send(&tar[..1000]);
    connection.shut_sending();
    if let Ok(answer) = connection.try_answer() {
        assert_eq!(answer.status, 500, "{}", answer.text());
    }
    drop(connection);
    serve.settles_at(before);
    serve.remove("layer");
    serve.create("layer", "");
    // A tar that is cut off in a body that is whole.
    for cut in [700, 5 << 20] {
        let answer = serve.apply_answer("layer", "", &mut &tar[..cut]);
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert_eq!(world.places(), places);
    }
    assert_eq!(serve.apply("layer", "", &tar), 24 * MIB);
    assert!(serve.diff("layer", "") == tar, "the same tar");
}

fn clients_that_go_away_leave_nothing(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let tar = large_tar();
    serve.layer("layer", "", &tar);
    serve.create_rw("rw", "layer");
    fs::write(serve.get("rw").join("new"), random_bytes(16 * MIB)).expect("write");
    serve.settles_at((usize::MAX, 4));
    let (places, before) = (world.places(), serve.held());
    let mut silent: Vec<_> = (0..8).map(|_| serve.connect()).collect();
    for connection in &mut silent[4..] {
        connection.send(b"POST /GraphDriver.Remove HTTP/1.1\r\nHost: \r\nContent-Length: 100\r\n\r\n{\"ID\":\"rw\"");
    }
    for connection in &mut silent[..2] {
        connection.send(b"POST /GraphDr");
    }
    for request in [json!({ "ID": "layer" }), json!({ "ID": "rw", "Parent": "layer" }), json!({ "ID": "rw" })] {
        for count in [0, 1, 1 << 20] {
            let mut connection = serve.connect();
            connection.post("/GraphDriver.Diff", request.to_string().as_bytes());
            if count > 0 {
                assert_eq!(connection.head().expect("a head").0, 200);
                drop(connection.read_some(count));
            }
            drop(connection);
        }
    }
    assert!(serve.exists("rw"));
    drop(silent);
    serve.settles_at(before);
    eventually("forks of the container are gone", || world.places() == places);
    assert!(serve.exists("rw"), "half a request is none");
    assert!(serve.diff("layer", "") == tar, "the same tar");
}

fn a_diff_that_fails_in_the_middle_breaks_off(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    // What a later entry replaces is in the recipe itself.
    let content = random_bytes(8 * MIB);
    let tar = tar_of(&[("a", &content), ("b", &content), ("b", b"last")]);
    serve.layer("layer", "", &tar);
    let before = serve.held();
    let recipe = place(&serve, "layer").join("recipe");
    let whole = fs::read(&recipe).expect("a recipe");
    let write = |bytes: &[u8]| {
        // In place, as damage is.
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(&recipe).expect("open");
        file.write_all(bytes).expect("write");
    };
    // Its head is found out before anything is sent.
    let mut damaged = whole.clone();
    damaged[9] ^= 1;
    write(&damaged);
    let error = serve.fails("GraphDriver.Diff", &json!({ "ID": "layer" }));
    assert!(error.contains("layer"), "{error}");
    // Its tail is not: a part of the tar is out by then, and must not look like the whole.
    write(&whole[..whole.len() / 2]);
    let mut connection = serve.connect();
    connection.post("/GraphDriver.Diff", br#"{"ID":"layer"}"#);
    let mut sent = Vec::new();
    let broken = connection.answer_into(&mut sent);
    assert!(broken.is_err(), "{} of {} bytes taken for the whole", sent.len(), tar.len());
    assert!(tar.starts_with(&sent), "what is sent is the tar's");
    assert!(sent.len() > 1 << 20, "it broke off in the middle: {}", sent.len());
    eventually("it says so", || serve.log().contains("broke off"));
    serve.settles_at(before);
    write(&whole);
    assert!(serve.diff("layer", "") == tar, "the same tar");
    let answer = serve.call("GraphDriver.Diff", &json!({ "ID": "layer", "Parent": "gone" }));
    assert!(answer.status == 500 && answer.err().contains("gone"), "{}", answer.text());
}
