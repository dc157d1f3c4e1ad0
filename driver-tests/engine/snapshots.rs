//! A containerd's snapshots: the contract's answers, and what is left when a step fails or dies.

use std::collections::BTreeMap;
use std::fs;

use reflinkd::Kind;
use reflinkd::engine::Engine;
use reflinkd::engine::containerd::{LabelChange, Labels, SnapshotKind, Snapshots, Space, Usage};
use reflinkd::store::{Content, Keyed, New, NewGroup, Owner, Stage};

use crate::fixture::World;
use crate::support::image::tar_of;

fn space(name: &str) -> Space {
    Space { name: name.into(), size_limit: None, remap_ids: true, reuse: Vec::new() }
}

fn snapshots(engine: &Engine) -> Snapshots<'_> {
    engine.snapshots_of(&space("default"))
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn none() -> Labels {
    Labels::new()
}

/// A committed snapshot with one file.
fn base(snapshots: &Snapshots<'_>, name: &str) {
    let shown = snapshots.prepare("making", None, none()).expect("prepare");
    fs::write(shown.root.join("file"), name).expect("write");
    snapshots.commit(name, "making", None, none()).expect("commit");
}

#[test]
fn a_snapshot_goes_its_way() {
    let world = World::new();
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    let key = "k8s.io/1/extract some/layer sha256:1";
    let shown = snapshots.prepare(key, None, labels(&[("a", "1")])).expect("prepare");
    assert!(!shown.read_only);
    assert_eq!(snapshots.mounts(key).expect("mounts"), shown);
    snapshots.apply(key, &mut &tar_of(&[("f", b"text")])[..], true).expect("apply");
    let active = snapshots.stat(key).expect("stat");
    assert_eq!(
        (active.kind, active.parent.clone(), &active.labels),
        (SnapshotKind::Active, None, &labels(&[("a", "1")]))
    );
    assert_eq!(active.created, active.updated);

    snapshots.commit("base", key, None, labels(&[("b", "2")])).expect("commit");
    let committed = snapshots.stat("base").expect("stat");
    assert_eq!((committed.kind, &committed.labels), (SnapshotKind::Committed, &labels(&[("b", "2")])));
    assert!(committed.created > active.created && committed.created == committed.updated);
    assert_eq!(snapshots.stat(key).expect_err("it has another name").kind(), Kind::NotFound);
    assert_eq!(snapshots.usage("base").expect("usage").inodes, 2, "the root and a file");

    let view = snapshots.view("v", Some("base"), none()).expect("view");
    assert!(view.read_only && view.root == shown.root, "no tree of its own: {view:?}");
    assert_eq!(snapshots.key_at(&view.root).expect("key").as_deref(), Some("base"));
    assert_eq!(snapshots.usage("v").expect("usage"), Usage::default());
    let again = snapshots.prepare(key, Some("base"), none()).expect("the key is free");
    assert_eq!(fs::read(again.root.join("f")).expect("read"), b"text");
    assert_eq!(snapshots.key_at(&again.root).expect("key").as_deref(), Some(key));
    assert_eq!(snapshots.key_at("/elsewhere/fs".as_ref()).expect("key"), None);
    assert_eq!(snapshots.key_at(&again.root.join("..")).expect("key"), None);

    let kinds: Vec<_> = snapshots.list().expect("list").into_iter().map(|info| (info.name, info.parent)).collect();
    let base = Some("base".to_string());
    assert_eq!(kinds, [("base".into(), None), ("v".into(), base.clone()), (key.to_string(), base)]);
    assert_eq!(snapshots.remove("base").expect_err("others are based on it").kind(), Kind::InUse);
    for key in [key, "v", "base"] {
        snapshots.remove(key).expect("remove");
        assert_eq!(snapshots.remove(key).expect_err("it is gone").kind(), Kind::NotFound);
    }
    snapshots.clean_up().expect("clean up");
    assert_eq!(world.places(), 0);
}

#[test]
fn whatever_can_not_be_is_refused_and_changes_nothing() {
    let world = World::new();
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    base(&snapshots, "base");
    snapshots.prepare("active", Some("base"), none()).expect("prepare");
    snapshots.view("view", Some("base"), none()).expect("view");
    let before = snapshots.list().expect("list");
    let long = "x".repeat(4096);
    let cases: Vec<(&str, reflinkd::Result<()>, Kind)> = vec![
        ("a key", snapshots.prepare("active", None, none()).map(drop), Kind::Exists),
        ("a view's", snapshots.prepare("view", None, none()).map(drop), Kind::Exists),
        ("a name", snapshots.view("base", Some("base"), none()).map(drop), Kind::Exists),
        ("no parent", snapshots.prepare("n", Some("gone"), none()).map(drop), Kind::NotFound),
        ("active parent", snapshots.prepare("n", Some("active"), none()).map(drop), Kind::Invalid),
        ("view as parent", snapshots.view("n", Some("view"), none()).map(drop), Kind::Invalid),
        ("empty key", snapshots.prepare("", None, none()).map(drop), Kind::Invalid),
        ("long label", snapshots.prepare("n", None, labels(&[("l", &long)])).map(drop), Kind::Invalid),
        ("mounts of none", snapshots.mounts("gone").map(drop), Kind::NotFound),
        ("mounts of a name", snapshots.mounts("base").map(drop), Kind::InUse),
        ("commit none", snapshots.commit("n", "gone", None, none()), Kind::NotFound),
        ("commit a view", snapshots.commit("n", "view", None, none()), Kind::InUse),
        ("commit twice", snapshots.commit("n", "base", None, none()), Kind::InUse),
        ("commit as base", snapshots.commit("base", "active", None, none()), Kind::Exists),
        ("commit as itself", snapshots.commit("active", "active", None, none()), Kind::Exists),
        ("commit elsewhere", snapshots.commit("n", "active", Some("other"), none()), Kind::Unsupported),
        ("long label", snapshots.commit("n", "active", None, labels(&[("l", &long)])), Kind::Invalid),
        ("usage of none", snapshots.usage("gone").map(drop), Kind::NotFound),
        ("update none", snapshots.update("gone", LabelChange::All(none())).map(drop), Kind::NotFound),
        ("apply to a name", snapshots.apply("base", &mut &tar_of(&[])[..], false), Kind::InUse),
        (
            "no number",
            snapshots.prepare("n", None, labels(&[("containerd.io/snapshot/max-size", "1GB")])).map(drop),
            Kind::Invalid,
        ),
        (
            "half a map",
            snapshots.prepare("n", None, labels(&[("containerd.io/snapshot/uidmapping", "0:1:2")])).map(drop),
            Kind::Invalid,
        ),
        (
            "options for a map",
            snapshots
                .prepare(
                    "n",
                    None,
                    labels(&[
                        ("containerd.io/snapshot/uidmapping", "0:1:2,suid"),
                        ("containerd.io/snapshot/gidmapping", "0:1:2"),
                    ]),
                )
                .map(drop),
            Kind::Invalid,
        ),
    ];
    for (what, refused, kind) in cases {
        let error = refused.expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert_eq!(snapshots.list().expect("list"), before, "{what}");
    }
    // What was refused can go on.
    fs::write(snapshots.mounts("active").expect("mounts").root.join("more"), "x").expect("it can be written to");
    snapshots.commit("n", "active", Some("base"), none()).expect("commit on its own parent");
}

#[test]
fn labels_change_as_asked() {
    let world = World::new();
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    snapshots.prepare("k", None, labels(&[("a", "1"), ("b", "2")])).expect("prepare");
    let before = snapshots.stat("k").expect("stat");
    let some = BTreeMap::from([("a".into(), None), ("c".into(), Some("3".into())), ("gone".into(), None)]);
    let after = snapshots.update("k", LabelChange::Some(some)).expect("update");
    assert_eq!(after.labels, labels(&[("b", "2"), ("c", "3")]));
    assert!(after.updated > before.updated && after.created == before.created);
    snapshots.update("k", LabelChange::All(labels(&[("d", "4")]))).expect("update");
    // As a power cut leaves it.
    world.lose_index();
    let engine = world.engine();
    assert_eq!(self::snapshots(&engine).stat("k").expect("stat").labels, labels(&[("d", "4")]));
}

#[test]
fn maps_of_ids_come_with_the_mount() {
    let world = World::new();
    let engine = world.engine();
    let maps = labels(&[
        ("containerd.io/snapshot/uidmapping", "0:100000:1000,1000:5:1"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ]);
    let shown = snapshots(&engine).prepare("k", None, maps).expect("prepare");
    let (users, groups) = (Some("0:100000:1000,1000:5:1"), Some("0:200000:65536"));
    assert_eq!((shown.uid_map.as_deref(), shown.gid_map.as_deref()), (users, groups));
    // A client that knows nothing of id-mapped mounts has changed the owners itself.
    let space = Space { remap_ids: false, ..space("default") };
    let shown = engine.snapshots_of(&space).mounts("k").expect("mounts");
    assert_eq!((shown.uid_map, shown.gid_map), (None, None));
}

#[test]
fn a_containerd_has_what_is_its_own() {
    let world = World::new();
    let engine = world.engine();
    let (one, other) = (snapshots(&engine), engine.snapshots_of(&space("second")));
    base(&one, "base");
    assert!(other.list().expect("list").is_empty());
    assert_eq!(other.remove("base").expect_err("not its own").kind(), Kind::NotFound);
    assert_eq!(other.prepare("k", Some("base"), none()).expect_err("not its own").kind(), Kind::NotFound);
    let root = one.prepare("k", Some("base"), none()).expect("prepare").root;
    assert_eq!(other.key_at(&root).expect("key"), None);
    base(&other, "base");
    assert_eq!((one.list().expect("list").len(), other.list().expect("list").len()), (2, 1));
}

#[test]
fn what_a_power_cut_leaves_is_whole() {
    let world = World::new();
    {
        let engine = world.engine();
        let snapshots = snapshots(&engine);
        base(&snapshots, "base");
        snapshots.prepare("active", Some("base"), none()).expect("prepare");
        snapshots.view("view", Some("base"), none()).expect("view");
        snapshots.view("nothing", None, none()).expect("view");
    }
    world.lose_index();
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    assert_eq!(snapshots.list().expect("list").len(), 4);
    assert!(engine.collect_garbage(true).expect("gc").garbage.is_empty());
    for key in ["view", "nothing", "active"] {
        snapshots.mounts(key).expect("mounts");
        snapshots.remove(key).expect("remove");
    }
    snapshots.remove("base").expect("remove");
    assert_eq!(world.places(), 0);
}

#[test]
fn a_key_whose_maker_died_is_free() {
    let world = World::new();
    let content = Content::Keyed(Keyed::new("k", Stage::Active));
    let new = New { owner: Owner::containerd("default"), parent: None, group: NewGroup::Fresh, content };
    drop(world.engine());
    drop(world.store().begin(new).expect("begin"));
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    assert_eq!(snapshots.stat("k").expect_err("it never was").kind(), Kind::NotFound);
    snapshots.prepare("k", None, none()).expect("prepare");
    assert_eq!(world.places(), 1);
}

#[test]
fn one_of_many_gets_a_name() {
    let world = World::new();
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    for key in 0..8 {
        snapshots.prepare(&format!("k{key}"), None, none()).expect("prepare");
    }
    let done: Vec<_> = std::thread::scope(|scope| {
        let commits: Vec<_> = (0..8)
            .map(|key| {
                let snapshots = &snapshots;
                scope.spawn(move || snapshots.commit("name", &format!("k{key}"), None, none()))
            })
            .collect();
        commits.into_iter().map(|commit| commit.join().expect("no panic")).collect()
    });
    assert_eq!(done.iter().filter(|done| done.is_ok()).count(), 1, "{done:?}");
    assert!(done.iter().filter_map(|done| done.as_ref().err()).all(|e| e.kind() == Kind::Exists), "{done:?}");
    let left = snapshots.list().expect("list");
    assert_eq!(left.iter().filter(|info| info.kind == SnapshotKind::Active).count(), 7);
    for info in left.iter().filter(|info| info.kind == SnapshotKind::Active) {
        fs::write(snapshots.mounts(&info.name).expect("mounts").root.join("x"), "").expect("it can be written to");
    }
}
