//! What everyday work leaves: listed, no damage, and gone after a repair as after `gc`.

use std::fs;

use reflinkd::engine::docker::Client;
use reflinkd::engine::keyed::NewKeyed;
use reflinkd::layer::IdMaps;
use rustix::fs::FlockOperation;
use serde_json::Value;

use crate::store::Store;
use crate::support::image::tar_of;
use crate::support::{MIB, arg, random_bytes, run};
use crate::world::Ground;

const LOST: &str = "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee";

/// The leftovers with this code; everything else that is found is another leftover.
fn leftovers(store: &Store, args: &[&str], code: &str) -> Vec<String> {
    let (status, report) = store.check(args);
    assert_eq!(status, 0, "{report:#}");
    let rows = report["findings"].as_array().expect("an array");
    assert!(rows.iter().all(|row| row["severity"] == "leftover"), "{report:#}");
    let found = rows.iter().filter(|row| row["code"] == code);
    found.map(|row| row["object"].as_str().expect("text").to_string()).collect()
}

/// Wait until the kernel has cleaned up after removed subvolumes.
fn cleaned(store: &Store) {
    // It wakes the cleaner, which else comes every half minute.
    run("btrfs", &["filesystem", "sync", arg(store.world.fs.path())]);
    run("btrfs", &["subvolume", "sync", arg(store.world.fs.path())]);
    store.sync();
}

#[test]
fn the_group_of_a_removed_container() {
    let store = Store::on(Ground::SIMPLE);
    store.world.ok(&["gc"]);
    store.world.ok(&["create", "--image", "base", "victim"]);
    let group = crate::catalogue::qgroup(&store, "victim");
    store.world.ok(&["rm", "victim"]);
    cleaned(&store);
    assert_eq!(leftovers(&store, &[], "group-stale").len(), 1);
    assert_eq!(leftovers(&store, &["--repair"], "group-stale").len(), 1, "what it has found, and dropped");
    assert_eq!(leftovers(&store, &[], "group-stale"), [""; 0]);
    assert!(!run("btrfs", &["qgroup", "show", arg(store.world.fs.path())]).contains(&group));
}

#[test]
fn the_charge_of_a_removed_container_for_what_another_still_holds() {
    let store = Store::on(Ground::SIMPLE);
    store.world.ok(&["create", "--image", "base", "victim"]);
    fs::write(store.world.tree("victim").join("data"), random_bytes(MIB)).expect("write");
    store.sync();
    // A clone would name the group that its data is charged to.
    store.world.ok(&["create", "--image", "base", "heir"]);
    store.world.ok(&["cp", "victim:/data", "heir:/data"]);
    store.sync();
    store.world.ok(&["rm", "victim"]);
    cleaned(&store);
    assert_eq!(leftovers(&store, &[], "charge-dead").len(), 1);
    // The heir holds it, and nothing may be forgotten before it goes.
    leftovers(&store, &["--repair"], "charge-dead");
    assert_eq!(leftovers(&store, &[], "charge-dead").len(), 1);
    assert_eq!(fs::metadata(store.world.tree("heir").join("data")).expect("stat").len(), MIB);

    store.world.ok(&["rm", "heir"]);
    cleaned(&store);
    leftovers(&store, &["--repair"], "group-stale");
    let (_, report) = store.check(&[]);
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{report:#}");
}

#[test]
fn a_removed_tree_that_is_not_taken_apart() {
    let store = Store::on(Ground::Xfs);
    let trash = store.world.root().join("trash");
    let trashed = || fs::read_dir(&trash).expect("read").count();
    store.world.ok(&["gc"]);
    store.world.ok(&["create", "--image", "base", "victim"]);
    // Else whoever tends the store takes it apart.
    let lock = fs::File::open(&trash).expect("open");
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("flock");
    store.world.ok(&["rm", "victim"]);
    assert_eq!(leftovers(&store, &[], "trash-left").len(), 1);
    assert!(trashed() > 0);
    drop(lock);
    leftovers(&store, &["--repair"], "trash-left");
    assert_eq!(trashed(), 0);
    assert_eq!(leftovers(&store, &[], "trash-left"), [""; 0]);
}

#[test]
fn a_tree_that_dockerd_lost() {
    let store = Store::on(Ground::SIMPLE);
    let data_root = store.world.fs.path().join("docker");
    fs::create_dir_all(data_root.join("image/reflinkd/layerdb")).expect("mkdir");
    let begins = || {
        let engine = store.engine();
        let client: Client =
            engine.docker_client().expect("client").next(data_root.join("reflinkd"), None, IdMaps::default());
        engine.set_docker_client(&client).expect("begin");
        client
    };
    let client = begins();
    {
        let engine = store.engine();
        let trees = engine.docker_trees(&client);
        trees.reserve(&NewKeyed { key: LOST, ..NewKeyed::default() }).expect("reserve");
        trees.apply(LOST, None, &mut &*tar_of(&[("lost", b"layer")])).expect("apply");
    }
    assert_eq!(leftovers(&store, &[], "docker-orphan"), [""; 0], "this dockerd may write it down yet");
    begins();
    // That of the store itself has no dockerd's home to be known in.
    assert!(leftovers(&store, &[], "docker-orphan").contains(&LOST.to_string()));
    leftovers(&store, &["--repair"], "docker-orphan");
    assert!(store.key_place("docker", LOST).exists(), "a repair leaves it to gc");
    store.world.ok(&["gc"]);
    assert_eq!(leftovers(&store, &[], "docker-orphan"), [""; 0]);
    let keys = store.world.rows(&["layers"]);
    assert!(keys.iter().all(|row| row["key"] != LOST), "{keys:#?}");
}
