//! Reusing a layer of the command line, cut short at each step.

use std::fs;
use std::path::Path;

use reflinkd::Kind;
use reflinkd::backend::{Backend, GroupId, Tree};
use reflinkd::engine::Engine;
use reflinkd::engine::containerd::{Labels, Snapshots, Space};
use reflinkd::store::{Owner, Record, TreeKind};

use crate::fixture::World;
use crate::support::image::{Packing, TestImage, sha256, tar_of};

const ENTRIES: [(&str, &[u8]); 2] = [("dir/", b""), ("dir/file", b"content")];

fn chain() -> String {
    format!("sha256:{}", sha256(&tar_of(&ENTRIES)))
}

fn world() -> World {
    let world = World::new();
    world.load(&TestImage::new("base").files(Packing::Plain, &ENTRIES)).expect("load");
    world
}

fn snapshots(engine: &Engine) -> Snapshots<'_> {
    engine.snapshots_of(&Space { name: "k3s".into(), size_limit: None, remap_ids: false, reuse: vec![Owner::cli()] })
}

fn prepare(world: &World) {
    let labels = Labels::from([("containerd.io/snapshot.ref".to_string(), chain())]);
    snapshots(&world.engine()).prepare("key", None, labels).expect("prepare");
}

fn record(world: &World, kind: TreeKind, owner: &Owner, key: &str) -> Record {
    world.store().by_key(owner, kind, key).expect("look").expect("it is there").0
}

fn has_file(root: &Path) -> bool {
    fs::read(root.join("dir/file")).is_ok_and(|content| content == b"content")
}

/// Whatever was done by then, the snapshot is there with the one or the other tree, and can be applied to, committed and
/// removed; nothing else is left.
#[test]
fn what_dies_leaves_one_of_the_two_trees() {
    for (power_cut, replaced) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = world();
        prepare(&world);
        let owner = Owner::containerd("k3s");
        {
            let (key, layer) = (
                record(&world, TreeKind::Keyed, &owner, "key"),
                record(&world, TreeKind::Layer, &Owner::cli(), &chain()),
            );
            let store = world.store();
            let held = store.begin_replacement_of(store.hold(key.uuid).expect("hold")).expect("begin");
            if replaced {
                let fresh = Tree::new(held.place(), held.record().group.map(GroupId));
                let from = Tree::new(store.place(layer.uuid), layer.group.map(GroupId));
                world.memory().replace(&from, &fresh, None).expect("replace");
            }
        }
        if power_cut {
            world.lose_index();
        }
        let engine = world.engine();
        let snapshots = snapshots(&engine);
        let shown = snapshots.mounts("key").expect("mounts");
        assert_eq!(has_file(&shown.root), replaced, "{power_cut}");
        snapshots.apply("key", &mut &tar_of(&ENTRIES)[..], false).expect("apply");
        assert!(has_file(&shown.root));
        assert_eq!(snapshots.mounts("key").expect("mounts"), shown);
        snapshots.commit("name", "key", None, Labels::new()).expect("commit");
        // What is said to be reused was verified by whoever says so.
        let reused = record(&world, TreeKind::Keyed, &owner, "name").keyed().and_then(|keyed| keyed.reused.clone());
        assert_eq!(reused.is_some(), !replaced, "{power_cut}");
        snapshots.remove("name").expect("remove");
        assert_eq!(world.places(), 1, "the command line's");
    }
}

#[test]
fn its_owner_may_remove_it_meanwhile() {
    let world = world();
    prepare(&world);
    let engine = world.engine();
    // A tar during whose reading its image is removed.
    struct Reads<'a>(&'a World, &'a [u8]);
    impl std::io::Read for Reads<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let _ = self.0.engine().remove_image("base", false);
            self.1.read(into)
        }
    }
    let tar = tar_of(&ENTRIES);
    snapshots(&engine).apply("key", &mut Reads(&world, &tar), false).expect("apply");
    snapshots(&engine).commit("name", "key", None, Labels::new()).expect("commit");
    engine.collect_garbage(false).expect("gc");
    assert_eq!(world.places(), 1, "its layer went when it was read");
    let shown = snapshots(&engine).view("v", Some("name"), Labels::new()).expect("view");
    assert!(has_file(&shown.root));
}

/// The digest is of all that is sent, and what goes wrong with it leaves the tree alone.
#[test]
fn a_tar_that_fails_is_told_and_changes_nothing() {
    let world = world();
    prepare(&world);
    let engine = world.engine();
    let snapshots = snapshots(&engine);
    let before = snapshots.mounts("key").expect("mounts");
    let longer = [tar_of(&ENTRIES), vec![0; 512]].concat();
    for tar in [&longer[..], &tar_of(&ENTRIES)[..100], b""] {
        assert_eq!(snapshots.apply("key", &mut &*tar, false).expect_err("another").kind(), Kind::BadInput);
        assert!(fs::read_dir(&before.root).expect("readdir").next().is_none());
    }
    assert_eq!(world.places(), 2, "nothing was left behind");
    snapshots.apply("key", &mut &tar_of(&ENTRIES)[..], false).expect("apply");
    assert!(has_file(&before.root));
}
