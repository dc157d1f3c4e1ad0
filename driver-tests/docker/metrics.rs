//! What Prometheus reads.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use crate::http::Connection;
use crate::serve::{RunDir, Serve, eventually};
use crate::support::image::tar_of;
use crate::support::scrape::Scrape;
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    values_move_as_things_happen
}

/// Both doors open.
struct Watched {
    serve: Serve,
    metrics: PathBuf,
    _run: RunDir,
}

impl Watched {
    fn start(world: &World) -> Self {
        let run = RunDir::new();
        let (docker, metrics) = (run.path().join("docker.sock"), run.path().join("metrics.sock"));
        let mut command = Serve::command(world, &docker);
        command.arg("--metrics").arg(&metrics);
        let mut serve = Serve::launch(command, &docker);
        serve.wait_until_it_answers();
        eventually("it listens there, too", || Connection::try_open(&metrics).is_ok());
        Self { serve, metrics, _run: run }
    }

    fn scrape(&self) -> Scrape {
        let mut connection = Connection::open(&self.metrics);
        connection.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = connection.answer();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        Scrape::parse(&answer.text())
    }
}

fn values_move_as_things_happen(ground: Ground) {
    let world = World::on(ground);
    let watched = Watched::start(&world);
    let serve = &watched.serve;
    let first = watched.scrape();
    assert_eq!(first.value("reflinkd_store_error"), 0.0);
    assert_eq!(first.value(&format!("reflinkd_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1.0);
    assert_eq!(first.value(&format!("reflinkd_quota_mode{{mode=\"{}\"}}", ground.quota_mode())), 1.0);
    assert_eq!(first.sum("reflinkd_requests_total", &[]), 0.0);
    for gauge in ["images", "layers", "containers", "snapshots", "requests_in_flight", "pending_deletes", "read_only"]
    {
        assert_eq!(first.value(&format!("reflinkd_{gauge}")), 0.0, "{gauge}");
    }
    let size = first.value("reflinkd_filesystem_size_bytes");
    assert!(size > 1e9 && size >= first.value("reflinkd_filesystem_available_bytes"));
    assert!(size > first.value("reflinkd_filesystem_used_bytes"));

    let tar = tar_of(&[("f", &vec![b'x'; 3 << 20])]);
    serve.layer("layer", "", &tar);
    serve.create("reserved", "layer");
    serve.create_rw("rw", "layer");
    fs::write(serve.get("rw").join("new"), "x").expect("write");
    assert_eq!(serve.diff("layer", ""), tar);
    serve.fails("GraphDriver.Get", &json!({ "ID": "gone" }));
    serve.fails("GraphDriver.Create", &json!({ "ID": "x", "StorageOpt": { "odd": "1" } }));
    serve.fails("GraphDriver.Remove", &json!({ "ID": "layer" }));
    let cut = serve.apply_answer("reserved", "layer", &mut &tar[..1 << 20]);
    assert_eq!(cut.status, 500);
    let mut open = serve.connect();
    open.begin_chunked("/GraphDriver.ApplyDiff?id=reserved&parent=layer");
    open.chunk(&tar[..512]);
    serve.call("GraphDriver.NoSuchCall", &json!({}));
    let received = (tar.len() + (1 << 20) + 512) as f64;
    eventually("one is in flight", || {
        let scrape = watched.scrape();
        scrape.value("reflinkd_requests_in_flight") == 1.0
            && scrape.value("reflinkd_tar_received_bytes_total") == received
    });

    let scrape = watched.scrape();
    let requests = |operation: &str, outcome: &str| {
        let labels = [("door", "docker"), ("operation", operation), ("outcome", outcome)];
        let count = scrape.sum("reflinkd_requests_total", &labels);
        assert_eq!(scrape.sum("reflinkd_request_duration_seconds_count", &labels), count);
        assert_eq!(scrape.sum("reflinkd_request_duration_seconds_sum", &labels) > 0.0, count > 0.0);
        count
    };
    for (operation, outcome, count) in [
        ("Create", "ok", 2.0),
        ("Create", "invalid", 1.0),
        ("CreateReadWrite", "ok", 1.0),
        ("Get", "ok", 1.0),
        ("Get", "not_found", 1.0),
        ("Remove", "in_use", 1.0),
        ("Diff", "ok", 1.0),
        ("ApplyDiff", "ok", 1.0),
        ("ApplyDiff", "bad_input", 1.0),
        ("NoSuchCall", "ok", 0.0),
    ] {
        assert_eq!(requests(operation, outcome), count, "{operation} {outcome}");
    }
    assert_eq!(scrape.sum("reflinkd_requests_total", &[]), 10.0);
    assert_eq!(scrape.value("reflinkd_tar_sent_bytes_total"), tar.len() as f64);
    let trees = |scrape: &Scrape, stage| scrape.sum("reflinkd_trees", &[("owner", "docker"), ("stage", stage)]);
    assert_eq!(["reserved", "active", "committed"].map(|stage| trees(&scrape, stage)), [1.0, 1.0, 1.0]);
    drop(open);
    eventually("it has failed", || watched.scrape().value("reflinkd_requests_in_flight") == 0.0);
    serve.remove("rw");
    let after = watched.scrape();
    assert_eq!(trees(&after, "active"), 0.0);
    // Nobody tends here.
    eventually("it waits to be cleaned up", || {
        rustix::fs::sync();
        let scrape = watched.scrape();
        scrape.value("reflinkd_pending_deletes") > 0.0 && scrape.value("reflinkd_pending_delete_bytes") > 0.0
            || ground == Ground::SIMPLE
    });
}

#[test]
fn only_scrapes_are_answered_there() {
    let world = World::simple();
    let watched = Watched::start(&world);
    for (request, status) in [("POST /metrics", 405), ("GET /", 404), ("POST /GraphDriver.Status", 404)] {
        let mut connection = Connection::open(&watched.metrics);
        connection.send(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert_eq!(connection.answer().status, status, "{request}");
    }
    let mut connection = Connection::open(&watched.serve.socket);
    connection.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(connection.answer().status, 404, "not at Docker's door");
}
