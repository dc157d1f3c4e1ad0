//! What the process needs, however much goes through it.

use serde_json::json;

use crate::serve::Serve;
use crate::support::image::tar_of;
use crate::support::{GIB, MIB};
use crate::tars::{Endless, SameAs};
use crate::world::{Ground, World};

/// KiB.
const MOST_FOR_STREAMS: u64 = 40_000;
const MOST_FOR_CONTAINERS: u64 = 20_000;
const MOST_OF_ITS_OWN: u64 = 8_000;

#[test]
fn layers_of_any_size_go_through() {
    let world = World::of_size(4 * GIB, Ground::SIMPLE);
    let serve = Serve::start(&world);
    let (files, size, noise) = (4, 512 * MIB, Endless::noise());
    serve.create("large", "");
    let answer = serve.apply_answer("large", "", &mut Endless::new(&noise, files, size));
    assert_eq!(answer.json()["Size"], files * size, "{}", answer.text());
    let diff = |id: &str, parent: &str, same: &mut dyn std::io::Write| {
        let mut connection = serve.connect();
        connection.post("/GraphDriver.Diff", json!({ "ID": id, "Parent": parent }).to_string().as_bytes());
        assert_eq!(connection.answer_into(same).expect("a whole answer").0, 200);
    };
    let mut same = SameAs::new(Endless::new(&noise, files, size));
    diff("large", "", &mut same);
    assert_eq!(same.end(), files * (size + 512) + 1024);
    // The same of a tree that has no recipe.
    serve.create_rw("rw", "");
    serve.layer("none", "", &tar_of(&[("f", b"")]));
    let mut sink = std::io::sink();
    diff("large", "none", &mut sink);
    let most = serve.proc_status("VmHWM");
    assert!(most < MOST_FOR_STREAMS, "{most} KiB");
}

#[test]
fn containers_cost_no_memory() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.layer("layer", "", &tar_of(&[("f", b"x")]));
    let first = serve.proc_status("RssAnon");
    for n in 0..1000 {
        serve.create_rw(&format!("{n}-init"), "layer");
        serve.create_rw(&format!("{n}"), &format!("{n}-init"));
    }
    serve.ok("GraphDriver.Status", &json!({}));
    // Its code is in memory too, as far as the kernel likes: up to 20 MB of a debug build, less of others.
    let (rss, anonymous) = (serve.proc_status("VmRSS"), serve.proc_status("RssAnon"));
    assert!(anonymous < MOST_OF_ITS_OWN, "{first} KiB of its own at first, then {anonymous} KiB");
    let most = if cfg!(debug_assertions) { MOST_FOR_CONTAINERS * 3 / 2 } else { MOST_FOR_CONTAINERS };
    assert!(rss < most, "{rss} KiB");
}
