//! The ten calls of `snapshots.v1`, and the codes by which containerd tells what failed.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tonic::Code;

use crate::api::services::snapshots::v1::{CommitSnapshotRequest, Kind, UpdateSnapshotRequest};
use crate::api::types::Mount;
use crate::serve::{Serve, fails, labels};
use crate::support::image::tar_of;
use crate::support::{MIB, QuotaSetup, random_bytes};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    a_snapshots_life
    usage_is_a_snapshots_own
    snapshots_outlive_the_process
}

pub(crate) fn at(mount: &Mount, name: &str) -> std::path::PathBuf {
    Path::new(&mount.source).join(name)
}

fn a_snapshots_life(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    // Keys as containerd makes them.
    let (key, name) = ("k8s.io/12/extract-987-aB_c sha256:00ff", "k8s.io/13/sha256:00ff");
    let mount = serve.prepare_with(key, "", &[("containerd.io/snapshot.ref", "x")]).expect("prepare");
    assert_eq!(mount.options, ["rbind", "rw"]);
    assert_eq!(fs::metadata(&mount.source).expect("it is there").permissions().mode() & 0o7777, 0o755);
    fs::write(at(&mount, "file"), "one").expect("write");
    assert_eq!(serve.mounts(key).expect("mounts"), mount);
    let info = serve.stat(key).expect("stat");
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), (key, "", Kind::Active));
    assert_eq!(info.labels, labels(&[("containerd.io/snapshot.ref", "x")]));

    // Labels are replaced, and it is made anew then, to the nanosecond.
    serve.commit_with(name, key, &[("a", "1")]).expect("commit");
    let committed = serve.stat(name).expect("stat");
    assert_eq!((committed.kind(), committed.labels), (Kind::Committed, labels(&[("a", "1")])));
    assert_eq!(committed.created_at, committed.updated_at);
    let time = |info: Option<prost_types::Timestamp>| info.map(|time| (time.seconds, time.nanos)).expect("a time");
    assert!(time(committed.created_at) > time(info.created_at));
    fails(serve.stat(key), Code::NotFound);

    // The key is free again.
    let mount = serve.prepare(key, name).expect("prepare");
    assert_eq!(fs::read_to_string(at(&mount, "file")).expect("read"), "one");
    fs::write(at(&mount, "file"), "two").expect("write");
    let view = serve.view("a view", name).expect("view");
    assert_eq!(view.options, ["rbind", "ro"]);
    assert_eq!(fs::read_to_string(at(&view, "file")).expect("read"), "one");
    assert_eq!(serve.kind("a view"), Kind::View);
    assert_eq!(serve.stat(key).expect("stat").parent, name);

    serve.remove(key).expect("remove");
    assert!(!Path::new(&mount.source).exists());
    serve.remove("a view").expect("remove");
    serve.remove(name).expect("remove");
    assert!(serve.names(&[]).is_empty());
    serve.cleanup().expect("cleanup");
    assert_eq!(world.places(), 0);
}

fn usage_is_a_snapshots_own(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let mount = serve.prepare("base", "").expect("prepare");
    fs::write(at(&mount, "large"), vec![7; 1 << 20]).expect("write");
    serve.commit("base committed", "base").expect("commit");
    let base = serve.usage("base committed").expect("usage");
    assert!((1 << 20..2 << 20).contains(&base.size) && base.inodes >= 1, "{base:?}");
    let mount = serve.prepare("child", "base committed").expect("prepare");
    let empty = serve.usage("child").expect("usage");
    assert!(empty.size < 1 << 18, "{empty:?}");
    fs::write(at(&mount, "small"), vec![7; 1 << 18]).expect("write");
    let child = serve.usage("child").expect("usage");
    assert!((1 << 18..1 << 20).contains(&child.size) && child.inodes > empty.inodes, "{child:?}");
}

fn snapshots_outlive_the_process(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let mount = serve.prepare_with("active", "", &[("a", "1")]).expect("prepare");
    fs::write(at(&mount, "file"), "one").expect("write");
    serve.layer("layer", "", &tar_of(&[("f", b"f")]));
    let info = serve.stat("active").expect("stat");
    let serve = serve.killed_and_started(&world);
    assert_eq!(serve.stat("active").expect("stat"), info);
    assert_eq!(serve.mounts("active").expect("mounts"), mount);
    assert_eq!(fs::read_to_string(at(&mount, "file")).expect("read"), "one");
    assert_eq!(serve.names(&[]), ["active", "layer"]);
}

#[test]
fn each_failure_has_its_code() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.prepare("base being made", "").expect("prepare");
    serve.commit("base", "base being made").expect("commit");
    serve.prepare("active", "base").expect("prepare");
    serve.view("view", "base").expect("view");
    let before = serve.names(&[]);
    // One keyspace for all.
    for taken in ["base", "active", "view"] {
        fails(serve.prepare(taken, ""), Code::AlreadyExists);
        fails(serve.view(taken, "base"), Code::AlreadyExists);
        fails(serve.commit(taken, "active"), Code::AlreadyExists);
    }
    fails(serve.prepare("new", "gone"), Code::NotFound);
    fails(serve.view("new", "gone"), Code::NotFound);
    fails(serve.commit("new", "gone"), Code::NotFound);
    fails(serve.mounts("gone"), Code::NotFound);
    fails(serve.remove("gone"), Code::NotFound);
    fails(serve.stat("gone"), Code::NotFound);
    fails(serve.update("gone", &[], &[]), Code::NotFound);
    fails(serve.usage("gone"), Code::NotFound);
    for parent in ["active", "view"] {
        fails(serve.prepare("new", parent), Code::InvalidArgument);
        fails(serve.view("new", parent), Code::InvalidArgument);
    }
    for key in ["base", "view"] {
        fails(serve.commit("new", key), Code::FailedPrecondition);
    }
    fails(serve.mounts("base"), Code::FailedPrecondition);
    fails(serve.remove("base"), Code::FailedPrecondition);
    for field in ["name", "parent", "kind", "created_at", "updated_at", "nonsense"] {
        fails(serve.update("active", &[], &[field]), Code::InvalidArgument);
    }
    // Nothing of it left anything.
    assert_eq!(serve.names(&[]), before);
    for key in before.iter().rev() {
        if key != "base" {
            serve.remove(key).expect("remove");
        }
    }
    serve.remove("base").expect("remove");
}

#[test]
fn a_mask_says_what_is_updated() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.prepare_with("s", "", &[("a", "1"), ("b", "2"), ("empty", "")]).expect("prepare");
    let first = serve.stat("s").expect("stat");
    assert_eq!(first.labels, labels(&[("a", "1"), ("b", "2")]));
    let info = serve.update("s", &[("a", "3"), ("c", "4")], &["labels.a", "labels.b"]).expect("update");
    assert_eq!(info.labels, labels(&[("a", "3")]), "c isn't named, b has no value");
    assert_eq!(serve.stat("s").expect("stat"), info);
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(|time| (time.seconds, time.nanos));
    assert!(info.created_at == first.created_at && time(&info.updated_at) > time(&first.updated_at));
    let info = serve.update("s", &[("containerd.io/gc.root", "x y"), ("d", "")], &["labels"]).expect("update");
    assert_eq!(info.labels, labels(&[("containerd.io/gc.root", "x y")]));
    let info = serve.update("s", &[("e", "5")], &["labels.containerd.io/gc.root", "labels.e"]).expect("update");
    assert_eq!(info.labels, labels(&[("e", "5")]));
    let info = serve.update("s", &[("f", "6")], &[]).expect("update");
    assert_eq!(info.labels, labels(&[("f", "6")]));
    // One that can't be is none at all.
    fails(serve.update("s", &[("f", "7")], &["labels.f", "parent"]), Code::InvalidArgument);
    assert_eq!(serve.stat("s").expect("stat").labels, labels(&[("f", "6")]));
    let request = UpdateSnapshotRequest { snapshotter: String::new(), info: None, update_mask: None };
    let answer = serve.wait(async { serve.snapshots().update(request).await });
    fails(answer, Code::InvalidArgument);
}

#[test]
fn filters_choose() {
    let world = World::simple();
    let serve = Serve::start(&world);
    serve.prepare("base being made", "").expect("prepare");
    serve.commit_with("ns/1/base", "base being made", &[("layer", "first"), ("a.b/c", "x")]).expect("commit");
    serve.prepare_with("ns/2/active", "ns/1/base", &[("a.b/c", "y, \"z\"")]).expect("prepare");
    serve.view("ns/3/view", "ns/1/base").expect("view");
    let all = ["ns/1/base", "ns/2/active", "ns/3/view"];
    for (filters, expected) in [
        (&[][..], &all[..]),
        (&[""], &all),
        (&["kind==committed"], &all[..1]),
        (&["kind==active", "kind==view"], &all[1..]),
        (&["parent==ns/1/base"], &all[1..]),
        (&["parent==\"\""], &all[..1]),
        (&["name~=\"^ns/[12]/\""], &all[..2]),
        (&["name~=/view$/"], &all[2..]),
        (&["labels.\"a.b/c\""], &all[..2]),
        (&["labels.\"a.b/c\"==\"y, \\\"z\\\"\""], &all[1..2]),
        (&["labels.layer!=first"], &all[1..]),
        (&["parent!=\"\",kind!=view"], &all[1..2]),
        (&["name==gone"], &[]),
        (&["name==gone", "labels.layer"], &all[..1]),
    ] {
        assert_eq!(serve.names(filters), expected, "{filters:?}");
    }
    for filter in ["name=", "name==", "name==\"x", "name~=/(/", "kind==active,"] {
        let said = fails(serve.list(&["name", filter]), Code::InvalidArgument);
        assert!(said.contains("at byte"), "{said}");
    }
}

#[test]
fn long_lists_come_in_parts() {
    let world = World::simple();
    let serve = Serve::start(&world);
    assert!(serve.list(&[]).expect("none").is_empty());
    for number in 0..205 {
        serve.prepare(&format!("s{number:03}"), "").expect("prepare");
    }
    let messages = serve.list(&[]).expect("list");
    assert_eq!(messages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 5]);
    assert_eq!(serve.names(&[]).len(), 205);
}

#[test]
fn what_nobody_should_ask_is_refused() {
    let world = World::simple();
    let serve = Serve::start(&world);
    fails(serve.prepare("", ""), Code::InvalidArgument);
    fails(serve.view("", ""), Code::InvalidArgument);
    fails(serve.stat(""), Code::InvalidArgument);
    fails(serve.mounts(""), Code::InvalidArgument);
    fails(serve.remove(""), Code::InvalidArgument);
    fails(serve.usage(""), Code::InvalidArgument);
    fails(serve.update("", &[], &[]), Code::InvalidArgument);
    serve.prepare("s", "").expect("prepare");
    fails(serve.commit("", "s"), Code::InvalidArgument);
    fails(serve.commit("c", ""), Code::InvalidArgument);
    // Labels, one byte too long and absurd.
    let (most, absurd) = ("v".repeat(4095), "v".repeat(1 << 20));
    serve.update("s", &[("k", &most)], &[]).expect("just so");
    for long in [format!("{most}v"), absurd.clone()] {
        fails(serve.prepare_with("t", "", &[("k", &long)]), Code::InvalidArgument);
        fails(serve.commit_with("t", "s", &[("k", &long)]), Code::InvalidArgument);
        fails(serve.update("s", &[("k", &long)], &["labels"]), Code::InvalidArgument);
    }
    // Many, of which each is short enough: as many as fit, and one more.
    let many = |count: usize| -> Vec<(String, String)> {
        (0..count).map(|number| (format!("{number:04}"), "v".repeat(4092))).collect()
    };
    for (count, code) in [(64, None), (65, Some(Code::InvalidArgument))] {
        let many = many(count);
        let pairs: Vec<_> = many.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let done = serve.prepare_with("many", "", &pairs).and_then(|_| serve.remove("many"));
        assert_eq!(done.err().map(|status| status.code()), code, "{count} labels");
    }
    // Names of any kind are names; absurd ones are answered, too.
    for key in ["../../etc", "/", ".", "a\0b", "ü\u{1b}[2J", "a/../b", "fs"] {
        fails(serve.stat(key), Code::NotFound);
    }
    for key in ["../../etc/passwd", "ns/1/../../x", "with\nnewline"] {
        match serve.prepare(key, "") {
            Ok(mount) => {
                assert!(Path::new(&mount.source).starts_with(world.root()), "{mount:?}");
                assert!(!mount.source.contains(".."), "{mount:?}");
                serve.remove(key).expect("remove");
            }
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "{key:?}: {status}"),
        }
    }
    let said = serve.stat(&absurd).expect_err("there is none");
    assert!(said.message().len() < 10_000, "{}", said.message().len());
    // More than a request may have.
    let label = "v".repeat(4000);
    let many: HashMap<String, String> = (0..2000).map(|number| (number.to_string(), label.clone())).collect();
    let request = CommitSnapshotRequest { name: "c".into(), key: "s".into(), labels: many, ..Default::default() };
    assert!(serve.wait(async { serve.snapshots().commit(request).await }).is_err());
    assert_eq!(serve.names(&[]), ["s"]);
}

/// What is made to look at a snapshot holds on to what is deleted from it, and shares what it has: that counts for nothing.
fn a_look_changes_no_size(ground: Ground) {
    let world = World::on(ground);
    let serve = Serve::start(&world);
    let root = serve.prepare("active", "").expect("prepare").source;
    let size = |key: &str| serve.usage(key).expect("usage").size / (1 << 20);
    for (name, mib, all) in [("first", 8, 8), ("second", 4, 12)] {
        fs::write(Path::new(&root).join(name), random_bytes(mib * MIB)).expect("write");
        assert_eq!(size("active"), all, "{name}");
    }
    fs::remove_file(Path::new(&root).join("first")).expect("unlink");
    assert_eq!(size("active"), 4, "at once");
    serve.commit("committed", "active").expect("commit");
    assert_eq!(size("committed"), 4, "also of what is kept right after a look");
}

#[test]
fn a_look_changes_no_size_with_simple_quotas() {
    a_look_changes_no_size(Ground::SIMPLE);
}

#[test]
fn a_look_changes_no_size_with_full_quotas() {
    a_look_changes_no_size(Ground::Btrfs(QuotaSetup::Full));
}
