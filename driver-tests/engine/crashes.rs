//! What a process leaves that dies between two steps: named by the next reader, removed or finished by the next writer.

use std::fs;

use reflinkd::Kind;
use reflinkd::backend::{Access, Backend, Tree};
use reflinkd::store::{Content, Layer, New, NewGroup, Owner, Record};

use crate::fixture::{World, base, kind, tree_of, wanted};
use crate::support::image::{Packing, TestImage};

/// A crash that the rest of this boot sees, or a power cut, after which the index is made anew.
const ENDS: [bool; 2] = [false, true];

fn container(world: &World, name: &str) -> New {
    let parent = world.engine().find_image("base").expect("find").top;
    let Content::Container(mut container) = world.create("model").content else { panic!("a container") };
    world.engine().remove_container("model", false).expect("rm");
    container.name = name.into();
    New { owner: Owner::cli(), parent, group: NewGroup::Fresh, content: Content::Container(container) }
}

/// All reads there are; none of them may change anything on disk.
fn read_everything(world: &World) -> usize {
    let before = world.places();
    let engine = world.engine();
    engine.images().expect("images");
    engine.layers().expect("layers");
    engine.usage(true).expect("usage");
    engine.info().expect("info");
    let named = engine.collect_garbage(true).expect("gc --dry-run").garbage.len();
    assert_eq!(world.places(), before, "a reader removed something");
    named
}

fn collect(world: &World) -> Vec<&'static str> {
    world.engine().collect_garbage(false).expect("gc").garbage.iter().map(|garbage| garbage.kind).collect()
}

#[test]
fn a_create_that_dies_before_its_tree_never_was() {
    for power_cut in ENDS {
        let world = World::with_base();
        let new = container(&world, "c");
        drop(world.store().begin(new).expect("begin"));
        if power_cut {
            world.lose_index();
        }
        assert!(world.names().is_empty());
        assert_eq!((read_everything(&world), world.places()), (1, 3));
        // The next one who writes takes it away, and the name is free.
        world.create("c");
        assert_eq!((world.places(), world.names()), (3, vec!["c".to_string()]));
    }
}

#[test]
fn a_create_that_dies_after_its_tree_is_whole_or_was_never() {
    for power_cut in ENDS {
        let world = World::with_base();
        let new = container(&world, "c");
        let parent = Tree::new(world.store().place(new.parent.expect("a parent")), None);
        let draft = world.store().begin(new).expect("begin");
        world.memory().clone_tree(&parent, &tree_of(&draft), Access::Writable, None).expect("clone");
        drop(draft);
        if power_cut {
            // Durable with its record, so it is as good as any.
            world.lose_index();
            assert_eq!((world.names(), read_everything(&world)), (vec!["c".to_string()], 0));
            world.engine().remove_container("c", false).expect("rm");
        } else {
            assert_eq!((world.names().len(), read_everything(&world)), (0, 1));
            assert_eq!(collect(&world), ["tree"]);
        }
        assert_eq!(world.places(), 2);
    }
}

#[test]
fn a_place_without_a_record_is_named_and_removed_unless_it_has_a_tree() {
    let world = World::with_base();
    let place = world.root().join("snapshots/00000000-0000-4000-8000-000000000000");
    fs::create_dir(&place).expect("mkdir");
    assert_eq!(read_everything(&world), 1);
    assert_eq!(collect(&world), ["place"]);
    assert_eq!((world.places(), read_everything(&world)), (2, 0));

    // A record is there before its tree: that it is lost is damage.
    fs::create_dir(&place).expect("mkdir");
    world.memory().create(&Tree::new(&place, None), None).expect("a tree");
    let collected = world.engine().collect_garbage(false).expect("gc");
    assert_eq!((collected.garbage, collected.unknown.len(), world.places()), (vec![], 1, 3));
}

#[test]
fn a_removal_that_dies_is_finished_or_was_never() {
    for (power_cut, destroyed) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = World::with_base();
        let record = world.create("c");
        let store = world.store();
        let held = store.begin_removal(record.uuid).expect("hold");
        if destroyed {
            world.memory().destroy(&Tree::new(held.place(), None)).expect("destroy");
        }
        drop(held);
        drop(store);
        if power_cut {
            world.lose_index();
        }
        // Not acknowledged: after a power cut it may be there, whole, or half removed and finished by the next.
        let back = power_cut && !destroyed;
        assert_eq!((world.names().len(), read_everything(&world)), (usize::from(back), usize::from(!back)));
        if back {
            world.engine().remove_container("c", false).expect("rm");
        } else {
            assert_eq!(collect(&world), ["tree"]);
        }
        assert_eq!(world.places(), 2);
    }
}

#[test]
fn a_reset_that_dies_leaves_one_of_the_two_trees() {
    for (power_cut, replaced) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = World::with_base();
        let record = world.create("c");
        let root = world.engine().container_root("c").expect("root");
        fs::write(root.join("mine"), "x").expect("write");
        let store = world.store();
        let held = store.begin_replacement(record.uuid).expect("hold");
        assert!(held.record().group > record.group, "a number of its own");
        let parent = Tree::new(store.place(record.parent.expect("a parent")), None);
        if replaced {
            world.memory().replace(&parent, &Tree::new(held.place(), None), None).expect("replace");
        } else {
            // Half-way: the new tree beside the old one.
            fs::create_dir(root.with_file_name("fs.new")).expect("mkdir");
        }
        drop((held, store));
        if power_cut {
            world.lose_index();
        }
        // There all the time, by name and by ID, and nothing else is to be done with it until it is settled.
        let id = record.container().expect("a container").id.clone();
        assert_eq!(world.engine().container_root(&id[..12]).expect("by ID"), root);
        assert_eq!((world.names(), read_everything(&world)), (vec!["c".to_string()], 1));
        let renamed = world.engine().rename_container("c", "d").expect("rename settles it");
        // The filesystem is asked which group it is charged to; this one has none.
        assert_eq!((renamed.group, renamed.replacing), (None, false));
        assert_eq!(root.join("mine").exists(), !replaced);
        assert!(!root.with_file_name("fs.new").exists());
        assert_eq!(read_everything(&world), 0);
    }
}

#[test]
fn a_container_whose_reset_died_can_be_removed() {
    for power_cut in ENDS {
        let world = World::with_base();
        let record = world.create("c");
        let store = world.store();
        let held = store.begin_replacement(record.uuid).expect("hold");
        fs::create_dir(held.place().join("fs.new")).expect("mkdir");
        drop((held, store));
        if power_cut {
            world.lose_index();
        }
        world.engine().remove_container("c", false).expect("rm");
        assert_eq!((world.places(), read_everything(&world)), (2, 0));
    }
}

fn layer(tag: &str, parent: Option<&Record>) -> New {
    let digest = format!("sha256:{}", crate::support::image::sha256(tag.as_bytes()));
    New {
        owner: Owner::cli(),
        parent: parent.map(|parent| parent.uuid),
        group: NewGroup::Fresh,
        content: Content::Layer(Layer {
            diff_id: digest.clone(),
            chain_id: digest,
            size: 0,
            size_method: "blocks".into(),
            apparent_size: 0,
        }),
    }
}

#[test]
fn the_layers_of_a_killed_load_wait_for_its_next_attempt_and_go_with_it() {
    for power_cut in ENDS {
        let world = World::with_base();
        let store = world.store();
        // One whole layer that no image has yet, one half made on it, and the work tree of that.
        let draft = store.begin(layer("one", None)).expect("begin");
        world.memory().create(&tree_of(&draft), None).expect("a tree");
        let whole = store.publish(draft).expect("publish");
        let draft = store.begin(layer("two", Some(&whole))).expect("begin");
        let work = store.begin(New { content: Content::Work, ..layer("two", Some(&whole)) }).expect("begin");
        world.memory().create(&tree_of(&work), None).expect("a tree");
        drop((draft, work, store));
        if power_cut {
            world.lose_index();
        }
        assert_eq!((read_everything(&world), world.places()), (3, 5));
        world.load(&TestImage::new("next").files(Packing::Plain, &[("x", b"x")])).expect("load");
        assert_eq!((world.places(), read_everything(&world)), (3, 0));
    }
}

#[test]
fn a_half_made_layer_that_cant_be_cleared_is_an_error_and_no_endless_wait() {
    let world = World::new();
    world.engine();
    let wanted = base();
    let first = wanted.diff_ids()[0].clone();
    let mut half = layer("x", None);
    if let Content::Layer(layer) = &mut half.content {
        (layer.diff_id, layer.chain_id) = (first.clone(), first);
    }
    let draft = world.store().begin(half).expect("begin");
    fs::write(draft.place().join("foreign"), "not ours").expect("write");
    let foreign = draft.place().join("foreign");
    drop(draft);
    let error = world.load(&wanted).expect_err("blocked");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains("can't be cleared up") && error.hint().is_some(), "{error}");
    fs::remove_file(foreign).expect("unlink");
    world.load(&wanted).expect("load");
}

#[test]
fn containers_survive_reopening_and_any_loss_of_the_index() {
    let world = World::with_base();
    let records = ["a", "b", "c"].map(|name| world.create(name));
    let root = world.engine().container_root("b").expect("root");
    fs::write(root.join("mine"), "x").expect("write");
    let losses: [&dyn Fn(); 4] = [
        &|| {},
        &|| world.lose_index(),
        &|| fs::write(world.root().join("index.db"), [0xee; 5000]).expect("write"),
        &|| fs::remove_file(world.root().join("index.current")).expect("unlink"),
    ];
    for lose in losses {
        lose();
        assert_eq!(world.engine().containers().expect("list"), records);
        assert_eq!(world.engine().container_root("b").expect("root"), root);
        assert_eq!(read_everything(&world), 0);
        assert_eq!(kind(world.engine().create_container(wanted("a"))), Kind::Exists);
    }
    assert_eq!(fs::read_to_string(root.join("mine")).expect("read"), "x");
}

#[test]
fn damage_to_one_record_costs_nobody_data() {
    let world = World::with_base();
    let (kept, broken) = (world.create("kept"), world.create("broken"));
    let store = world.store();
    let tree = store.place(broken.uuid).join("fs");
    rustix::fs::setxattr(store.place(broken.uuid), "trusted.reflinkd", b"{", rustix::fs::XattrFlags::empty())
        .expect("setxattr");
    drop(store);
    world.lose_index();
    assert_eq!(world.engine().containers().expect("list"), [kept]);
    assert_eq!(read_everything(&world), 0);
    assert!(collect(&world).is_empty());
    assert!(tree.join("etc/passwd").exists(), "left for somebody to look at");
}
