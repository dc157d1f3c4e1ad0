//! What Prometheus reads of containerd's door.

use std::fs;
use std::path::Path;

use crate::diffs::diff_of;
use crate::serve::{Serve, TAR};
use crate::support::image::tar_of;
use crate::support::scrape::Scrape;
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    values_move_as_things_happen
}

/// Trees of containerd's by stage.
fn trees(scrape: &Scrape) -> [f64; 3] {
    let count = |stage| scrape.sum("reflinkd_trees", &[("owner", "containerd"), ("stage", stage)]);
    ["active", "view", "committed"].map(count)
}

fn values_move_as_things_happen(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let first = serve.scrape();
    assert_eq!(first.sum("reflinkd_requests_total", &[]), 0.0);
    assert_eq!((trees(&first), first.sum("reflinkd_trees", &[])), ([0.0; 3], 0.0));

    let tar = tar_of(&[("f", &vec![b'x'; 1 << 20])]);
    serve.layer("base", "", &tar);
    let active = serve.prepare("active", "base").expect("prepare");
    let view = serve.view("view", "base").expect("view");
    fs::write(Path::new(&active.source).join("new"), "x").expect("write");
    serve.usage("active").expect("usage");
    let diff = serve.diff(diff_of(&[&view], &active, TAR)).expect("diff");
    serve.prepare("active", "base").expect_err("it is there");
    serve.remove("base").expect_err("others are made of it");
    serve.remove("gone").expect_err("it isn't there");
    serve.stat("gone").expect_err("it isn't there");
    serve.prepare("", "base").expect_err("it has no name");
    let mut other = serve.store.add(TAR, &tar);
    other.digest = format!("sha256:{:064}", 0);
    serve.apply(&other, &active).expect_err("the store has no such blob");

    let scrape = serve.scrape();
    for (operation, outcome, count) in [
        ("Prepare", "ok", 2.0),
        ("Prepare", "exists", 1.0),
        ("Prepare", "invalid", 1.0),
        ("Apply", "ok", 1.0),
        ("Apply", "not_found", 1.0),
        ("Commit", "ok", 1.0),
        ("View", "ok", 1.0),
        ("Usage", "ok", 1.0),
        ("Diff", "ok", 1.0),
        ("Remove", "in_use", 1.0),
        ("Remove", "not_found", 1.0),
        ("Stat", "not_found", 1.0),
    ] {
        let labels = [("door", "containerd"), ("operation", operation), ("outcome", outcome)];
        assert_eq!(scrape.sum("reflinkd_requests_total", &labels), count, "{operation} {outcome}");
        assert_eq!(scrape.sum("reflinkd_request_duration_seconds_count", &labels), count, "{operation} {outcome}");
        assert!(scrape.sum("reflinkd_request_duration_seconds_sum", &labels) > 0.0, "{operation} {outcome}");
    }
    assert_eq!(scrape.sum("reflinkd_requests_total", &[]), 13.0);
    assert_eq!(scrape.value("reflinkd_requests_in_flight"), 0.0);
    assert_eq!(scrape.value("reflinkd_tar_received_bytes_total"), tar.len() as f64);
    assert_eq!(scrape.value("reflinkd_tar_sent_bytes_total"), diff.size as f64);
    assert_eq!((trees(&scrape), scrape.sum("reflinkd_trees", &[])), ([1.0, 1.0, 1.0], 3.0));
    // They are neither images nor containers of the command line.
    for gauge in ["images", "layers", "containers", "snapshots"] {
        assert_eq!(scrape.value(&format!("reflinkd_{gauge}")), 0.0, "{gauge}");
    }

    for key in ["view", "active", "base"] {
        serve.remove(key).expect("remove");
    }
    assert_eq!(trees(&serve.scrape()), [0.0; 3]);
}
