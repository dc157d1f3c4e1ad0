//! Each field that dockerd may send: what is seen of it elsewhere, and what is refused.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use serde_json::{Value, json};

use crate::serve::Serve;
use crate::support::MIB;
use crate::support::image::tar_of;
use crate::support::random_bytes;
use crate::tars::{Entry, owned_tar, owners};
use crate::world::{Ground, World};

/// What was kept of Init.
pub(crate) fn kept(world: &World) -> Value {
    let text = fs::read(world.root().join("doors/docker.json")).expect("it is kept");
    serde_json::from_slice(&text).expect("JSON")
}

fn label(path: &Path) -> String {
    let mut value = [0; 256];
    let length = rustix::fs::lgetxattr(path, "security.selinux", &mut value[..]).unwrap_or(0);
    String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_string()
}

/// The size limit of a tree, as GetMetadata shows it.
fn limit(serve: &Serve, id: &str) -> Option<u64> {
    serve.metadata(id)["SizeLimit"].as_str().map(|text| text.parse().expect("a number"))
}

on_btrfs_and_xfs! {
    ids_and_parents_lead_to_their_trees
    changes_are_those_against_the_parent_named
    mount_labels_are_on_every_file
    owners_are_mapped_both_ways
    apply_diff_goes_where_its_query_says
}

fn ids_and_parents_lead_to_their_trees(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.layer("one", "", &tar_of(&[("from-one", b"1")]));
    serve.layer("two", "", &tar_of(&[("from-two", b"2")]));
    serve.layer("upper", "two", &tar_of(&[("from-upper", b"3")]));
    serve.create_rw("rw", "upper");
    serve.create_rw("empty", "");
    assert!(serve.get("rw").join("from-two").exists() && serve.get("rw").join("from-upper").exists());
    assert!(!serve.get("rw").join("from-one").exists());
    assert_eq!(fs::read_dir(serve.get("empty")).expect("a directory").count(), 0);
    assert_ne!(serve.get("one"), serve.get("two"));

    for call in ["Create", "CreateReadWrite"] {
        let call = format!("GraphDriver.{call}");
        let error = serve.fails(&call, &json!({ "ID": "orphan", "Parent": "nobody" }));
        assert!(error.contains("nobody"), "{error}");
        let error = serve.fails(&call, &json!({ "Parent": "one" }));
        assert!(error.contains("no key"), "{error}");
        // Again, as after an answer that was lost; but not on another parent.
        let error = serve.fails(&call, &json!({ "ID": "rw", "Parent": "one" }));
        assert!(error.contains("based on upper and not on one"), "{error}");
    }
    serve.create_rw("rw", "upper");
    assert!(!serve.exists("orphan") && !serve.exists("") && serve.exists("rw"));
    for call in ["Get", "Diff", "DiffSize", "Changes", "GetMetadata"] {
        let error = serve.fails(&format!("GraphDriver.{call}"), &json!({ "ID": "orphan" }));
        assert!(error.contains("orphan"), "{call}: {error}");
    }
    let error = serve.fails("GraphDriver.Remove", &json!({ "ID": "two" }));
    assert!(error.contains("two"), "{error}");
    for id in ["rw", "upper", "two", "two"] {
        serve.remove(id);
        assert!(!serve.exists(id), "{id}");
    }
    assert!(serve.exists("one") && serve.exists("empty"));
    serve.ok("GraphDriver.Put", &json!({ "ID": "never-got" }));
}

fn changes_are_those_against_the_parent_named(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let (below, above) = (tar_of(&[("a", b"12345")]), tar_of(&[("b", b"123"), (".wh.a", b"")]));
    assert_eq!(serve.layer("below", "", &below), 5);
    assert_eq!(serve.layer("above", "below", &above), 3);
    serve.create_rw("rw", "above");
    fs::write(serve.get("rw").join("c"), b"7 bytes").expect("write");
    let pair = |path: &str, kind| (path.to_string(), kind);
    assert_eq!(serve.changes("rw", "above"), [pair("/c", 1)]);
    assert_eq!(serve.changes("rw", "below"), [pair("/a", 2), pair("/b", 1), pair("/c", 1)]);
    assert_eq!(serve.changes("rw", ""), [pair("/b", 1), pair("/c", 1)]);
    assert_eq!(serve.changes("above", "below"), [pair("/a", 2), pair("/b", 1)]);
    let sizes = ["above", "below", ""].map(|parent| serve.diff_size("rw", parent));
    assert_eq!(sizes, [7, 10, 10]);
    assert_eq!(serve.diff("above", "below"), above, "the tar that was applied, byte for byte");
    let names =
        |parent: &str| owners(&serve.diff("rw", parent)).into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
    assert!(!names("above").contains(&"b".to_string()));
    assert!(names("").contains(&"b".to_string()));
}

fn mount_labels_are_on_every_file(ground: Ground) {
    const FIRST: &str = "system_u:object_r:container_file_t:s0:c1,c2";
    const SECOND: &str = "system_u:object_r:container_file_t:s0:c3,c4";
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.layer("layer", "", &tar_of(&[("dir/", b""), ("dir/file", b"x")]));
    for (id, label) in [("first", FIRST), ("second", SECOND)] {
        let request = json!({ "ID": id, "Parent": "layer", "MountLabel": label });
        serve.ok("GraphDriver.CreateReadWrite", &request);
    }
    serve.create_rw("none", "layer");
    for (id, expected) in [("first", FIRST), ("second", SECOND), ("none", ""), ("layer", "")] {
        let root = serve.get(id);
        for path in [root.clone(), root.join("dir"), root.join("dir/file")] {
            assert_eq!(label(&path), expected, "{id}: {}", path.display());
        }
    }
    let get = |id: &str, label: &str| json!({ "ID": id, "MountLabel": label });
    serve.ok("GraphDriver.Get", &get("first", FIRST));
    for (id, other) in [("first", SECOND), ("none", FIRST)] {
        let error = serve.fails("GraphDriver.Get", &get(id, other));
        assert!(error.contains(other) && error.contains("(hint: "), "{error}");
    }
    let error = serve.fails("GraphDriver.CreateReadWrite", &json!({ "ID": "odd", "MountLabel": "no label" }));
    assert!(error.contains("no label") && !serve.exists("odd"), "{error}");
    assert_eq!(serve.changes("first", "layer"), [], "a label is no change");
}

/// Other numbers for groups than for users, so that neither can be taken for the other.
pub(crate) fn id_maps() -> Value {
    json!({
        "Home": "/home",
        "UIDMaps": [{ "container_id": 0, "host_id": 100_000, "size": 1000 }],
        "GIDMaps": [{ "container_id": 0, "host_id": 200_000, "size": 500 }],
    })
}

fn owner(path: &Path) -> (u32, u32) {
    let there = fs::symlink_metadata(path).expect("stat");
    (there.uid(), there.gid())
}

fn owners_are_mapped_both_ways(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    serve.ok("GraphDriver.Init", &id_maps());
    let tar = owned_tar(&[
        Entry { name: "dir/", owner: (0, 0), content: b"" },
        Entry { name: "dir/file", owner: (7, 5), content: b"x" },
    ]);
    serve.layer("layer", "", &tar);
    serve.create_rw("rw", "layer");
    serve.create_rw("scratch", "");
    let root = serve.get("rw");
    assert_eq!(owner(&root.join("dir")), (100_000, 200_000));
    assert_eq!(owner(&root.join("dir/file")), (100_007, 200_005));
    assert_eq!(owner(&serve.get("scratch")), (100_000, 200_000));
    assert_eq!(serve.diff("layer", ""), tar, "with the ids of its own");
    fs::write(root.join("new"), b"").expect("write");
    chown(root.join("new"), Some(100_999), Some(200_499)).expect("chown");
    let packed = owners(&serve.diff("rw", "layer"));
    assert!(packed.contains(&("new".to_string(), 999, 499)), "{packed:?}");
    // Past the maps, on either side.
    serve.create("bad", "layer");
    let past = owned_tar(&[Entry { name: "f", owner: (0, 500), content: b"" }]);
    let answer = serve.apply_answer("bad", "layer", &mut &past[..]);
    assert!(answer.status == 500 && answer.err().contains("500"), "{}", answer.text());
    fs::write(root.join("foreign"), b"").expect("write");
    serve.fails("GraphDriver.Diff", &json!({ "ID": "rw", "Parent": "layer" }));

    let before = kept(&world);
    let overlapping = json!([
        { "container_id": 0, "host_id": 100_000, "size": 10 },
        { "container_id": 5, "host_id": 300_000, "size": 10 },
    ]);
    for field in ["UIDMaps", "GIDMaps"] {
        serve.fails("GraphDriver.Init", &json!({ field: overlapping }));
        assert_eq!(kept(&world), before, "{field} was refused");
    }
    serve.ok("GraphDriver.Init", &json!({ "UIDMaps": null, "GIDMaps": null }));
    serve.layer("plain", "", &tar);
    assert_eq!(owner(&serve.get("plain").join("dir/file")), (7, 5));
}

fn apply_diff_goes_where_its_query_says(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let tar = tar_of(&[("file", b"four")]);
    serve.layer("base", "", &tar_of(&[("base", b"")]));
    serve.create("layer", "base");
    for (id, parent, why) in [
        ("layer", "", "based on base"),
        ("layer", "other", "based on base"),
        ("unknown", "base", "no unknown"),
        ("", "base", "there is no"),
    ] {
        let answer = serve.apply_answer(id, parent, &mut &tar[..]);
        assert!(answer.status == 500 && answer.err().contains(why), "{id} on {parent}: {}", answer.text());
    }
    assert_eq!(serve.apply("layer", "base", &tar), 4);
    assert!(serve.get("layer").join("file").exists() && serve.get("layer").join("base").exists());
    let answer = serve.apply_answer("layer", "base", &mut &tar[..]);
    assert!(answer.err().contains("committed"), "{}", answer.text());
    // Escaped, as a query may be.
    serve.create("a b/c", "");
    assert_eq!(serve.apply("a%20b%2Fc", "", &tar), 4);
    assert!(serve.get("a b/c").join("file").exists());
}

#[test]
fn sizes_limit_what_a_container_adds() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let large = random_bytes(4 * MIB);
    serve.layer("layer", "", &tar_of(&[("large", &large)]));
    let options = json!({ "size": "2M" });
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "c-init", "Parent": "layer", "StorageOpt": options }));
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "c", "Parent": "c-init", "StorageOpt": options }));
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "free", "Parent": "layer", "StorageOpt": {} }));
    serve.ok("GraphDriver.Create", &json!({ "ID": "reserved", "Parent": "layer", "StorageOpt": { "SIZE": "3m" } }));
    let limits = ["c", "free", "reserved"].map(|id| limit(&serve, id));
    assert_eq!(limits, [Some(2 * MIB), None, Some(3 * MIB)]);
    let write = |id: &str| {
        let mut file = File::create(serve.get(id).join("new")).expect("create");
        file.write_all(&large).and_then(|()| file.sync_all())
    };
    write("free").expect("no limit");
    for id in ["c", "reserved"] {
        let error = write(id).expect_err("a limit");
        assert!([Some(libc::EDQUOT), Some(libc::ENOSPC)].contains(&error.raw_os_error()), "{id}: {error}");
    }
    for call in ["GraphDriver.Create", "GraphDriver.CreateReadWrite"] {
        for (name, value) in [("inodes", "7"), ("size", "large")] {
            let request = json!({ "ID": "odd", "Parent": "layer", "StorageOpt": { name: value } });
            let error = serve.fails(call, &request);
            assert!(error.contains(&format!("{name}={value}")) && error.contains("(hint: "), "{error}");
        }
    }
    assert!(!serve.exists("odd"));
}

/// Without quotas no limit can be held, and none is pretended.
#[test]
fn sizes_are_refused_where_nothing_holds_them() {
    let world = World::xfs();
    let serve = Serve::start(&world);
    let error = serve.fails("GraphDriver.CreateReadWrite", &json!({ "ID": "c", "StorageOpt": { "size": "2M" } }));
    assert!(error.contains("limit") && !serve.exists("c"), "{error}");
}

#[test]
fn options_of_init_hold_for_containers_without_their_own() {
    let world = World::simple();
    let serve = Serve::start(&world);
    let made = |id: &str, options: Value| {
        serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": id, "StorageOpt": options }));
        limit(&serve, id)
    };
    assert_eq!(made("before", json!({})), None);
    serve.ok("GraphDriver.Init", &json!({ "Home": "/d/reflinkd", "Opts": ["size=3M"] }));
    assert_eq!(made("default", json!({})), Some(3 * MIB));
    assert_eq!(made("own", json!({ "size": "5M" })), Some(5 * MIB));
    serve.create("layer", "");
    serve.apply("layer", "", &tar_of(&[("f", b"")]));
    assert_eq!(limit(&serve, "layer"), None, "layers have no limit");

    let before = kept(&world);
    assert_eq!(before["home"], "/d/reflinkd");
    for bad in ["quota", "size=huge", "btrfs.min_space=1G"] {
        let error = serve.fails("GraphDriver.Init", &json!({ "Home": "/e", "Opts": ["size=9M", bad] }));
        assert!(error.contains("storage option"), "{error}");
        assert_eq!(kept(&world), before, "{bad} was refused");
    }
    assert_eq!(made("still", json!({})), Some(3 * MIB));
    serve.ok("GraphDriver.Init", &json!({ "Home": "/f", "Opts": null }));
    assert_eq!(kept(&world)["home"], "/f");
    assert_eq!(made("after", json!({})), None);
}

#[test]
fn a_limit_without_room_is_the_containers_and_not_the_init_layers() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.layer("layer", "", &tar_of(&[("etc/passwd", b"root")]));
    let options = json!({ "size": "1k" });
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "c-init", "Parent": "layer", "StorageOpt": options }));
    let root = serve.get("c-init");
    fs::create_dir(root.join("dev")).expect("what dockerd makes has room");
    fs::write(root.join("etc/hosts"), "").expect("what dockerd makes has room");
    serve.ok("GraphDriver.CreateReadWrite", &json!({ "ID": "c", "Parent": "c-init", "StorageOpt": options }));
    let refused = fs::write(serve.get("c").join("etc/new"), "x").expect_err("it is limited");
    assert_eq!(refused.raw_os_error(), Some(libc::EDQUOT));
    for id in ["c", "c-init", "layer"] {
        serve.remove(id);
    }
    assert_eq!(world.places(), 0);
}

#[test]
fn a_label_that_is_none_is_refused_at_once() {
    let world = World::simple();
    let serve = Serve::start(&world);
    for call in ["Create", "CreateReadWrite"] {
        let request = json!({ "ID": "odd", "MountLabel": "x" });
        let error = serve.fails(&format!("GraphDriver.{call}"), &request);
        assert!(error.contains("is no label"), "{error}");
        assert!(!serve.exists("odd"));
    }
    assert_eq!(world.places(), 0);
}
