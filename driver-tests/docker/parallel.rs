//! Many clients at once.

use std::fs;
use std::thread;

use serde_json::json;

use crate::serve::{Serve, eventually};
use crate::support::image::tar_of;
use crate::support::random_bytes;
use crate::world::{Ground, World};

const CLIENTS: usize = 32;
const ROUNDS: usize = 3;
/// KiB.
const MOST_OF_ITS_OWN: u64 = 8_000;

on_btrfs_and_xfs! {
    clients_at_once_leave_nothing
    a_container_that_was_made_stays_whoever_removes_its_init_layer
}

fn clients_at_once_leave_nothing(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.layer("base", "", &tar_of(&[("etc/", b""), ("etc/passwd", b"root")]));
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let serve = &serve;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    live(serve, &format!("{client}-{round}"));
                }
            });
        }
    });
    serve.remove("base");
    // While they are at it it may take more; and gives it back.
    let most = serve.proc_status("VmHWM");
    eventually(&format!("it gives back its memory, {most} KiB at most"), || {
        serve.proc_status("RssAnon") < MOST_OF_ITS_OWN
    });
    assert_eq!((world.places(), world.trees()), (0, 0));
    eventually("nothing is left over", || {
        world.ok(&["gc"]);
        world.remains().is_empty() && world.all_trees().is_empty()
    });
}

/// What becomes of an image, a container and its commit.
fn live(serve: &Serve, name: &str) {
    let (layer, rw, committed) = (format!("l{name}"), format!("c{name}"), format!("i{name}"));
    let init = format!("{rw}-init");
    let content = random_bytes(50_000);
    let tar = tar_of(&[("data", &content), ("etc/own", name.as_bytes())]);
    serve.layer(&layer, "base", &tar);
    assert!(serve.diff(&layer, "base") == tar, "{layer}");
    serve.create_rw(&init, &layer);
    fs::write(serve.get(&init).join(".dockerenv"), b"").expect("write");
    serve.create_rw(&rw, &init);
    let root = serve.get(&rw);
    fs::write(root.join("new"), &content).expect("write");
    fs::remove_file(root.join("data")).expect("unlink");
    let changes = serve.changes(&rw, &init);
    assert_eq!(changes, [("/data".to_string(), 2), ("/new".to_string(), 1)], "{rw}");
    assert_eq!(serve.diff_size(&rw, &init), content.len() as u64);
    let diff = serve.diff(&rw, &init);
    assert_eq!(serve.layer(&committed, &layer, &diff), content.len() as u64);
    let upper = serve.get(&committed);
    assert!(fs::read(upper.join("new")).expect("read") == content && !upper.join("data").exists());
    assert_eq!(fs::read_to_string(upper.join("etc/own")).expect("read"), name);
    for id in [&rw, &init, &committed, &layer] {
        serve.ok("GraphDriver.Put", &json!({ "ID": id }));
        serve.remove(id);
        assert!(!serve.exists(id), "{id}");
    }
}

fn a_container_that_was_made_stays_whoever_removes_its_init_layer(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.layer("base", "", &tar_of(&[("etc/passwd", b"root")]));
    for round in 0..80 {
        let (key, init) = (format!("c{round}"), format!("c{round}-init"));
        serve.create_rw(&init, "base");
        let made = thread::scope(|scope| {
            let made = scope.spawn(|| {
                let request = json!({ "ID": key, "Parent": init });
                serve.call("GraphDriver.CreateReadWrite", &request).status == 200
            });
            serve.remove(&init);
            made.join().expect("no panic")
        });
        assert_eq!(serve.exists(&key), made, "round {round}");
        serve.remove(&key);
    }
}
