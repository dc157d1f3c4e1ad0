//! Trees with keys of a client's own, and streams into them that end before their end.

use std::fs;
use std::io::{self, Cursor, Read};

use reflinkd::engine::Engine;
use reflinkd::engine::keyed::{Keyspace, NewKeyed};
use reflinkd::store::Owner;
use reflinkd::{Kind, Result};

use crate::fixture::World;
use crate::support::image::tar_of;

const KEY: &str = "layer";

/// A stream that breaks off.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

fn trees(engine: &Engine) -> Keyspace<'_> {
    engine.keyspace(Owner::docker(), 1, Default::default())
}

fn reserve(engine: &Engine) {
    trees(engine).reserve(&NewKeyed { key: KEY, ..NewKeyed::default() }).expect("reserve");
}

fn apply(engine: &Engine, tar: impl Read) -> Result<u64> {
    let mut tar = tar;
    trees(engine).apply(KEY, None, &mut tar)
}

#[test]
fn what_comes_after_a_stream_that_broke_off_is_no_layer() {
    let world = World::new();
    let whole = tar_of(&[("first", &[1; 2000]), ("second", &[2; 3000])]);
    // Between two files, before the end, and after it: each rest would be a layer by itself.
    for cut in [512 + 2048, whole.len() - 1024, whole.len()] {
        let engine = world.engine();
        reserve(&engine);
        let (sent, rest) = whole.split_at(cut);
        apply(&engine, Cursor::new(sent).chain(Broken)).expect_err("it broke off");
        for engine in [engine, world.engine()] {
            let error = apply(&engine, rest).expect_err("only the rest of it");
            assert_eq!(error.kind(), Kind::BadInput, "{error}");
            assert!(error.to_string().contains(KEY), "{error}");
        }
        let engine = world.engine();
        trees(&engine).remove(KEY).expect("remove");
        reserve(&engine);
        assert_eq!(apply(&engine, &*whole).expect("all of it"), 5000);
        trees(&engine).remove(KEY).expect("remove");
        let left = std::fs::read_dir(world.root().join("snapshots")).expect("read the places").count();
        assert_eq!(left, 0, "places that are left");
    }
}

#[test]
fn all_of_a_layer_may_come_after_a_tar_that_was_too_short() {
    let world = World::new();
    let engine = world.engine();
    let whole = tar_of(&[("first", &[1; 2000])]);
    reserve(&engine);
    for end in [100, 1000] {
        apply(&engine, &whole[..end]).expect_err("too short");
    }
    assert_eq!(apply(&engine, &*whole).expect("all of it"), 2000);
    assert_eq!(apply(&engine, &*whole).expect_err("once is enough").kind(), Kind::Exists);
}

#[test]
fn a_key_that_is_taken_is_refused_with_both_its_parents() {
    let world = World::new();
    let engine = world.engine();
    let trees = trees(&engine);
    let on = |key, parent| NewKeyed { key, parent, ..NewKeyed::default() };
    for key in ["one", "two"] {
        trees.reserve(&on(key, None)).expect("reserve");
    }
    trees.reserve(&on(KEY, Some("one"))).expect("reserve");
    trees.reserve(&on(KEY, Some("one"))).expect("once more");
    let error = trees.reserve(&on(KEY, Some("two"))).expect_err("on another");
    assert_eq!(error.to_string(), "cannot make layer: it is there already, based on one and not on two");
    let error = trees.reserve(&on(KEY, None)).expect_err("on none");
    assert_eq!(error.to_string(), "cannot make layer: it is there already, based on one and not on nothing");
}

/// A layer, and a container on it as Docker makes one.
fn container(engine: &Engine) -> (Keyspace<'_>, std::path::PathBuf) {
    let keys = trees(engine);
    keys.reserve(&NewKeyed { key: KEY, ..NewKeyed::default() }).expect("reserve");
    let tar = tar_of(&[("etc/passwd", b"root"), ("etc/gone", b"x"), ("usr/tool", b"tool")]);
    keys.apply(KEY, None, &mut tar.as_slice()).expect("apply");
    keys.prepare(&NewKeyed { key: "c-init", parent: Some(KEY), ..NewKeyed::default() }).expect("prepare");
    let root = keys.root("c-init", None).expect("root");
    fs::create_dir(root.join("dev")).expect("mkdir");
    fs::write(root.join("dev/console"), "").expect("write");
    fs::write(root.join("etc/hosts"), "").expect("write");
    fs::write(root.join("etc/passwd"), "root and others").expect("write");
    fs::remove_file(root.join("etc/gone")).expect("remove");
    keys.prepare(&NewKeyed { key: "c", parent: Some("c-init"), ..NewKeyed::default() }).expect("prepare");
    let root = keys.root("c", None).expect("root");
    (keys, root)
}

fn told(keys: &Keyspace<'_>, key: &str, parent: &str) -> Vec<String> {
    let lines = keys.changes(key, Some(parent)).expect("changes");
    lines.iter().map(|line| format!("{:?} {}", line.change, line.path.display())).collect()
}

#[test]
fn what_was_done_before_a_tree_became_the_containers_is_not_told() {
    let world = World::new();
    let engine = world.engine();
    let (keys, root) = container(&engine);
    assert_eq!(told(&keys, "c", "c-init"), Vec::<String>::new());
    assert_eq!(keys.diff_size("c", Some("c-init")).expect("size"), 0);
    assert_eq!(world.places(), 2, "the layer and the container");
    fs::write(root.join("etc/hosts"), "127.0.0.1").expect("write");
    fs::remove_file(root.join("dev/console")).expect("remove");
    fs::write(root.join("usr/new"), "new").expect("write");
    fs::write(root.join("etc/passwd"), "root again").expect("write");
    let expected = ["Changed dev", "Deleted dev/console", "Changed etc", "Changed etc/hosts", "Changed etc/passwd"];
    let expected = [&expected[..], &["Changed usr", "Added usr/new"]].concat();
    assert_eq!(told(&keys, "c", "c-init"), expected);
    assert_eq!(keys.diff_size("c", Some("c-init")).expect("size"), 9 + 3 + 10);
    // Of the layer it has all of it.
    assert!(told(&keys, "c", KEY).contains(&"Added dev".to_string()));
}

#[test]
fn the_init_layer_is_made_again_for_who_asks() {
    let world = World::new();
    let engine = world.engine();
    let (keys, root) = container(&engine);
    fs::write(root.join("etc/hosts"), "127.0.0.1").expect("write");
    fs::write(root.join("later"), "").expect("write");
    let init = keys.root("c-init", None).expect("its own tree");
    assert_ne!(init, root);
    let read = |path: &str| fs::read_to_string(init.join(path)).expect("read");
    assert_eq!([read("dev/console"), read("etc/hosts"), read("etc/passwd")], ["", "", "root and others"]);
    assert!(!init.join("etc/gone").exists() && !init.join("later").exists());
    assert_eq!(told(&keys, "c", "c-init"), ["Changed etc", "Changed etc/hosts", "Added later"]);
    assert_eq!(keys.diff_size("c-init", Some(KEY)).expect("size"), "root and others".len() as u64);
    keys.remove("c").expect("remove");
    assert!(keys.exists("c-init").expect("exists"));
    keys.remove("c-init").expect("remove");
    keys.remove(KEY).expect("remove");
    assert_eq!(world.places(), 0);
}

#[test]
fn a_container_whose_record_a_power_cut_took_back_is_there() {
    let world = World::new();
    let engine = world.engine();
    let keys = trees(&engine);
    keys.prepare(&NewKeyed { key: "c-init", ..NewKeyed::default() }).expect("prepare");
    let root = keys.root("c-init", None).expect("root");
    fs::write(root.join("kept"), "data").expect("write");
    // In the same run of its client it is still to come.
    assert!(!keys.exists("c").expect("exists"));
    assert_eq!(keys.root("c", None).expect_err("there is none").kind(), Kind::NotFound);
    let next = engine.keyspace(Owner::docker(), 2, Default::default());
    assert!(next.exists("c").expect("exists"));
    assert_eq!(next.root("c", None).expect("root"), root);
    assert_eq!(told(&next, "c", "c-init"), ["Added kept"]);
    next.remove("c").expect("remove");
    next.remove("c-init").expect("nothing is left of it");
    assert_eq!(world.places(), 0);
}

#[test]
fn what_no_layer_can_hold_keeps_nothing_from_becoming_a_container() {
    let world = World::new();
    let engine = world.engine();
    let keys = trees(&engine);
    keys.prepare(&NewKeyed { key: "c-init", ..NewKeyed::default() }).expect("prepare");
    fs::write(keys.root("c-init", None).expect("root").join(".wh.odd"), "").expect("write");
    keys.prepare(&NewKeyed { key: "c", parent: Some("c-init"), ..NewKeyed::default() }).expect("prepare");
    assert_ne!(keys.root("c", None).expect("root"), keys.root("c-init", None).expect("root"), "it was cloned");
    assert_eq!(told(&keys, "c", "c-init"), Vec::<String>::new());
    // It has a size, but is no layer.
    fs::write(keys.root("c", None).expect("root").join(".wh.more"), "12345").expect("write");
    assert_eq!(keys.diff_size("c", Some("c-init")).expect("size"), 5);
    let error = keys.diff("c", Some("c-init"), &mut io::sink()).expect_err("no layer can hold it");
    assert!(error.to_string().contains(".wh.more"), "{error}");
}
