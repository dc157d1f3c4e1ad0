//! Trees with keys of a client's own, and streams into them that end before their end.

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
    trees(engine).apply(KEY, &mut tar)
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
