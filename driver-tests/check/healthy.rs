//! Stores in which nothing is wrong.

use std::collections::BTreeSet;

use crate::hands;
use crate::picture;
use crate::store::{DOCKERS, Store};
use crate::support::{MIB, Process, arg};
use crate::world::{Ground, World};
use reflinkd::engine::check::Code;
use reflinkd::engine::keyed::NewKeyed;
use reflinkd::store::Owner;

fn a_healthy_store_is_never_touched(ground: Ground) {
    let store = Store::on(ground);
    // One that runs, and what was removed and isn't cleaned up yet.
    let root = store.world.tree("web");
    let _running = Process::spawn(std::process::Command::new("sleep").arg("3600").current_dir(&root));
    store.world.ok(&["create", "--image", "base", "short"]);
    store.world.ok(&["gc"]);
    store.world.ok(&["rollback", "--force", "web", "then"]);
    store.sync();
    let before = picture::of_all(&store);
    for args in [&[][..], &["--deep"], &["--repair"], &["--deep", "--repair", "--from", arg(&store.archive)]] {
        let (status, report) = store.check(args);
        assert_eq!((status, crate::store::found(&report)), (0, vec![]), "{args:?}: {report:#}");
        let owners = report["owners"].as_array().expect("an array");
        let names: BTreeSet<_> = owners.iter().filter_map(|owner| owner["owner"].as_str()).collect();
        assert_eq!(names, BTreeSet::from(["cli", "containerd", "docker"]));
        let cli = owners.iter().find(|owner| owner["owner"] == "cli").expect("the command line's");
        assert_eq!(cli["images"], 2);
        assert_eq!(cli["verified"], if args.contains(&"--deep") { 3 } else { 0 }, "{report:#}");
    }
    assert_eq!(picture::of_all(&store), before);
    // Removed, and left to gc: listed, and no damage.
    store.world.ok(&["rm", "--force", "short"]);
    let (status, report) = store.check(&[]);
    assert_eq!(status, 0, "{report:#}");
    assert!(report["findings"].as_array().expect("an array").iter().all(|row| row["severity"] == "leftover"));
}

#[test]
fn a_healthy_store_is_never_touched_btrfs() {
    a_healthy_store_is_never_touched(Ground::SIMPLE);
}

#[test]
fn a_healthy_store_is_never_touched_xfs() {
    a_healthy_store_is_never_touched(Ground::Xfs);
}

#[test]
fn a_store_is_checked_on_a_read_only_filesystem() {
    let store = Store::on(Ground::SIMPLE);
    let (diff_id, place) = store.layer(0);
    std::fs::remove_file(place.join("recipe")).expect("unlink");
    store.remount("ro");
    assert_eq!(store.found(&["--deep"]), [("recipe-missing".to_string(), diff_id)]);
}

/// dockerd says what a container may write when it makes its init layer, whose limit is only the container's.
#[test]
fn an_init_layer_lacks_no_limit() {
    let store = Store::on(Ground::SIMPLE);
    let engine = store.engine();
    let docker = engine.keyspace(Owner::docker(), 1, Default::default());
    for (key, parent) in [("web-init", DOCKERS), ("web", "web-init")] {
        let limited = NewKeyed { key, parent: Some(parent), size_limit: Some(50 * MIB), ..NewKeyed::default() };
        docker.prepare(&limited).expect("prepare");
        assert_eq!(store.found(&[]), [], "{key}");
    }
}

#[test]
fn after_a_remount_the_index_is_no_finding() {
    let store = Store::on(Ground::SIMPLE);
    store.remount("rw");
    std::fs::write(store.world.root().join("index.db"), "torn by the power cut").expect("write");
    assert_eq!(store.found(&["--deep"]), []);
    // But what somebody was making is named before the next command clears it.
    let stray = store.world.root().join("snapshots/55555555-5555-4555-8555-555555555555");
    std::fs::create_dir(&stray).expect("mkdir");
    let expected = ("place-half-made".to_string(), hands::uuid(&stray));
    assert_eq!(store.found(&[]), [expected]);
}

#[test]
fn without_a_store_nothing_is_made() {
    let world = World::on(Ground::SIMPLE);
    assert!(world.fails(&["check"]).contains("there is no store"));
    assert!(!world.root().exists());
}

#[test]
fn every_code_is_told_of() {
    let told = include_str!("../../docs/json.md");
    let missing: Vec<_> =
        Code::ALL.iter().map(|code| code.as_str()).filter(|code| !told.contains(&format!("`{code}`"))).collect();
    assert_eq!(missing, [] as [&str; 0]);
}
