//! Spare clones: made in the background, taken over by creates, gone when anything else needs their place.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::{Access, Backend, Tree};
use reflinkd::engine::container::CreateContainer;
use reflinkd::engine::tend::Tended;
use reflinkd::store::{Container, Content, New, NewGroup, Owner, Record, TreeKind, ask_to_stop};
use uuid::Uuid;

use crate::double::OVERHEAD;
use crate::fixture::{World, base, kind, tree_of, wanted};
use crate::support::image::{Packing, TestImage};
use crate::support::{LoopFs, MIB};

/// The image `base`, a container `first` of it, and as many spares as the settings say.
fn with_spares(count: usize) -> World {
    let world = World::with_base().keeping(count);
    world.create("first");
    assert_eq!(world.double().tend().expect("tend").made, count);
    world
}

fn spares(world: &World) -> Vec<Record> {
    world.store().list(TreeKind::Spare).expect("list")
}

fn uuids<'a>(records: impl IntoIterator<Item = &'a Record>) -> BTreeSet<Uuid> {
    records.into_iter().map(|record| record.uuid).collect()
}

fn other() -> TestImage {
    TestImage::new("other").files(Packing::Plain, &[("x", b"x")])
}

#[test]
fn a_create_takes_a_spare_over_where_it_lies() {
    let world = with_spares(1);
    let spare = spares(&world).remove(0);
    let (engine, clones) = (world.double(), world.controls().clones.load(Ordering::SeqCst));
    let inode = fs::metadata(world.root().join(format!("snapshots/{}/fs", spare.uuid))).expect("stat");
    let before = jiff::Timestamp::now();
    let created = engine.create_container(wanted("c")).expect("create").record;
    assert_eq!(world.controls().clones.load(Ordering::SeqCst), clones, "nothing was cloned");
    assert_eq!((created.uuid, created.group, created.parent), (spare.uuid, spare.group, spare.parent));
    assert!(created.created >= before && created.container().is_some_and(|c| c.name == "c" && !c.read_only));
    let root = engine.container_root("c").expect("root");
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(&root).expect("stat")),
        std::os::unix::fs::MetadataExt::ino(&inode)
    );
    assert_eq!(fs::read(root.join("etc/new")).expect("read"), b"new\n");
    // What it is now is as durable as any container.
    drop(engine);
    world.lose_index();
    assert_eq!((world.names(), spares(&world).len()), (vec!["first".to_string(), "c".to_string()], 0));
    // Without a spare, as ever.
    world.double().create_container(wanted("d")).expect("create");
    assert_eq!(world.controls().clones.load(Ordering::SeqCst), clones + 1);
}

#[test]
fn a_spare_is_no_container_to_anybody() {
    let world = with_spares(2);
    let engine = world.double();
    assert_eq!(world.names(), ["first"]);
    assert_eq!(engine.info().expect("info").containers, 1);
    assert!(engine.layers().expect("layers").iter().all(|layer| layer.containers.len() < 2));
    let usage = engine.usage(true).expect("usage");
    assert_eq!((usage.containers.len(), usage.spares, usage.spares_size), (1, 2, 2 * OVERHEAD));
    // Two layers and a container.
    assert_eq!(usage.metadata, 3 * OVERHEAD + world.recipes());
    assert_eq!(usage.total, usage.layers_size + usage.containers_size + 5 * OVERHEAD + world.recipes());
    assert_eq!(kind(engine.find_container(&spares(&world)[0].uuid.simple().to_string())), Kind::NotFound);
}

#[test]
fn spares_are_kept_of_images_with_writable_containers_as_many_as_wanted() {
    let mut world = World::with_base().keeping(2);
    world.load(&other()).expect("load");
    assert_eq!(world.double().tend().expect("tend").made, 0, "no container yet");
    let viewer = CreateContainer { image: "other".into(), read_only: true, ..wanted("viewer") };
    world.double().create_container(viewer).expect("create");
    assert!(!world.double().needs_tending().expect("ask"));
    world.create("first");
    assert!(world.double().needs_tending().expect("ask"));
    let tended = world.double().tend().expect("tend");
    assert_eq!((tended.made, tended.dropped), (2, 0));
    let top = world.engine().find_image("base").expect("find").top;
    assert!(spares(&world).iter().all(|spare| spare.parent == top));
    assert!(!world.double().needs_tending().expect("ask"));
    world.double().create_container(wanted("second")).expect("create");
    assert!(world.double().needs_tending().expect("ask"));
    assert_eq!(world.double().tend().expect("tend").made, 1);
    // They outlive the container they were made for, until somebody needs their place.
    world.engine().remove_container("first", false).expect("rm");
    world.engine().remove_container("second", false).expect("rm");
    assert_eq!(world.double().tend().expect("tend").dropped, 0);
    world.spares = 1;
    assert_eq!(world.double().tend().expect("tend").dropped, 1);
    world.spares = 0;
    assert_eq!(world.double().tend().expect("tend").dropped, 1);
    world.create("third");
    let engine = world.double();
    assert_eq!((engine.needs_tending().expect("ask"), engine.tend().expect("tend").made), (false, 0));
    engine.remove_container("viewer", false).expect("rm");
}

#[test]
fn of_many_creates_at_once_each_gets_a_tree_of_its_own() {
    let world = with_spares(3);
    let before = uuids(&spares(&world));
    let made: Vec<Record> = std::thread::scope(|scope| {
        let creates: Vec<_> = (0..16)
            .map(|n| {
                let world = &world;
                scope.spawn(move || world.double().create_container(wanted(&format!("c{n}"))).expect("create").record)
            })
            .collect();
        creates.into_iter().map(|create| create.join().expect("join")).collect()
    });
    let made = uuids(&made);
    assert_eq!(made.len(), 16);
    assert!(before.is_subset(&made), "each spare was of use");
    assert_eq!((world.names().len(), spares(&world).len(), world.places()), (17, 0, 19));
    for name in world.names() {
        let root = world.engine().container_root(&name).expect("root");
        assert_eq!(fs::read(root.join("etc/new")).expect("read"), b"new\n");
        fs::write(root.join("mine"), &name).expect("write");
    }
    for name in world.names() {
        let root = world.engine().container_root(&name).expect("root");
        assert_eq!(fs::read_to_string(root.join("mine")).expect("read"), name);
    }
}

#[test]
fn one_spare_is_given_once_and_never_lost_whoever_races_for_it() {
    let world = with_spares(1);
    for round in 0..20 {
        let names = [format!("a{round}"), format!("b{round}")];
        std::thread::scope(|scope| {
            for name in &names {
                let world = &world;
                scope.spawn(move || world.double().create_container(wanted(name)).expect("create"));
            }
            scope.spawn(|| world.double().collect_garbage(false).expect("gc"));
            scope.spawn(|| world.double().tend().expect("tend"));
        });
        for name in &names {
            let root = world.engine().container_root(name).expect("root");
            assert!(root.join("etc/new").exists(), "{name} is whole");
            world.engine().remove_container(name, false).expect("rm");
        }
        world.double().tend().expect("tend");
        assert_eq!((world.names().len(), spares(&world).len(), world.places()), (1, 1, 4), "round {round}");
    }
}

#[test]
fn a_taken_name_leaves_the_spare_one() {
    let world = with_spares(1);
    let before = spares(&world);
    assert_eq!(kind(world.double().create_container(wanted("first"))), Kind::Exists);
    assert_eq!(spares(&world), before);
    let made_up = CreateContainer { name: None, ..wanted("") };
    let created = world.double().create_container(made_up).expect("create").record;
    assert_eq!(created.uuid, before[0].uuid);
}

#[test]
fn a_limit_is_on_the_tree_before_anybody_sees_the_container() {
    let world = with_spares(2);
    let limited = |name: &str, limit| CreateContainer { size_limit: limit, ..wanted(name) };
    let limit_of = |record: &Record| {
        let place = world.root().join(format!("snapshots/{}", record.uuid));
        world.controls().limits.lock().expect("lock").get(&place).copied()
    };
    let created = world.double().create_container(limited("c", Some(5_000_000))).expect("create").record;
    assert_eq!(limit_of(&created), Some(Some(5_000_000)));
    assert_eq!(created.container().and_then(|c| c.size_limit), Some(5_000_000));
    // One without has none, whatever a claim that died before had set.
    let created = world.double().create_container(limited("d", None)).expect("create").record;
    assert_eq!(limit_of(&created), Some(None));

    world.double().tend().expect("tend");
    let before = world.places();
    world.controls().refuses_limits.store(true, Ordering::SeqCst);
    assert_eq!(kind(world.double().create_container(limited("e", Some(1_000_000)))), Kind::System);
    world.controls().refuses_limits.store(false, Ordering::SeqCst);
    assert_eq!(
        (world.places(), spares(&world).len()),
        (before - 1, 1),
        "the tree is dropped, and the rest as it was"
    );
    world.double().create_container(limited("e", Some(1_000_000))).expect("the name is free");
}

#[test]
fn spares_go_with_their_layer() {
    type Go<'a> = &'a dyn Fn(&World);
    let go: [(&str, Go); 3] = [
        ("rmi", &|world| drop(world.engine().remove_image("base", false).expect("rmi"))),
        ("gc", &|world| {
            // An image forgotten, and its layers not collected.
            let loading = world.store().lock_loads(reflinkd::store::Lock::Shared).expect("lock");
            world.engine().remove_image("base", false).expect("rmi");
            assert_eq!(spares(world).len(), 1);
            drop(loading);
            let named = |dry_run| {
                let garbage = world.double().collect_garbage(dry_run).expect("gc").garbage;
                garbage.into_iter().map(|garbage| garbage.kind).collect::<Vec<_>>()
            };
            assert_eq!(named(true), ["spare", "layer", "layer"]);
            assert_eq!(named(false), ["spare", "layer", "layer"]);
        }),
        ("the end of a load", &|world| {
            let loading = world.store().lock_loads(reflinkd::store::Lock::Shared).expect("lock");
            world.engine().remove_image("base", false).expect("rmi");
            drop(loading);
            world.load(&other()).expect("load");
            world.engine().remove_image("other", false).expect("rmi");
        }),
    ];
    for (how, go) in go {
        let world = with_spares(1);
        world.engine().remove_container("first", false).expect("rm");
        go(&world);
        assert_eq!((world.places(), spares(&world).len()), (0, 0), "{how}");
    }
}

#[test]
fn gc_removes_all_spares_and_says_what_they_took() {
    let world = with_spares(2);
    for dry_run in [true, false] {
        let collected = world.double().collect_garbage(dry_run).expect("gc").garbage;
        assert_eq!(collected.len(), 2);
        assert!(collected.iter().all(|garbage| garbage.kind == "spare" && garbage.size == Some(OVERHEAD)));
    }
    assert_eq!((world.places(), spares(&world).len()), (3, 0));
    assert!(world.double().collect_garbage(false).expect("gc").garbage.is_empty());
    // Somebody turns it into a container right now: it stays.
    world.double().tend().expect("tend");
    let store = world.store();
    let claimed = claim(&world, &store, "c").expect("a spare");
    assert_eq!(world.double().collect_garbage(false).expect("gc").garbage.len(), 1, "the other one");
    store.confirm(&claimed).expect("confirm");
    store.publish(claimed).expect("publish");
    assert!(world.engine().container_root("c").expect("root").join("etc/new").exists());
}

#[test]
fn a_layer_whose_spare_is_being_made_goes_with_the_next_tender() {
    let world = with_spares(0);
    let top = world.engine().find_image("base").expect("find").top;
    let new = New { owner: Owner::cli(), parent: top, group: NewGroup::Fresh, content: Content::Spare };
    let store = world.store();
    let making = store.begin(new).expect("begin");
    world.engine().remove_container("first", false).expect("rm");
    world.engine().remove_image("base", false).expect("rmi");
    assert_eq!(world.places(), 3, "the base layer goes only with what is above it");
    let parent = Tree::new(store.place(top.expect("a layer")), None);
    world.memory().clone_tree(&parent, &tree_of(&making), Access::Writable, None).expect("clone");
    store.publish(making).expect("publish");
    world.double().tend().expect("tend");
    assert_eq!((world.places(), spares(&world).len()), (0, 0));
}

/// A store with spares of two images on a filesystem of 64 MiB that is nearly full.
fn short_of_space() -> (World, LoopFs) {
    let fs = LoopFs::tmpfs(64 * MIB);
    let world = World::on(fs.path()).keeping(1);
    for image in [base(), other()] {
        world.load(&image).expect("load");
    }
    for (image, name) in [("base", "b"), ("other", "o")] {
        world.double().create_container(CreateContainer { image: image.into(), ..wanted(name) }).expect("create");
    }
    assert_eq!(world.double().tend().expect("tend").made, 2);
    fs::write(fs.path().join("ballast"), vec![1; 61 << 20]).expect("write");
    (world, fs)
}

#[test]
fn where_space_is_short_spares_go_first_and_none_are_made() {
    let (world, fs) = short_of_space();
    let top = world.engine().find_image("base").expect("find").top;
    let (of_base, of_other): (Vec<_>, Vec<_>) = spares(&world).into_iter().partition(|spare| spare.parent == top);
    // Taking one over needs no room, so its own stays until then.
    let created = world.double().create_container(wanted("c")).expect("create").record;
    assert_eq!((created.uuid, spares(&world).len()), (of_base[0].uuid, 0));
    assert!(!world.root().join(format!("snapshots/{}", of_other[0].uuid)).exists());
    assert!(world.controls().reclaimed.load(Ordering::SeqCst) > 0, "and their space is there when it begins");
    assert!(!world.double().needs_tending().expect("ask"));
    assert_eq!(world.double().tend().expect("tend").made, 0);
    fs::remove_file(fs.path().join("ballast")).expect("unlink");
    assert_eq!(world.double().tend().expect("tend").made, 2);
    fs::write(fs.path().join("ballast"), vec![1; 61 << 20]).expect("write");
    world.load(&TestImage::new("third").files(Packing::Plain, &[("x", b"third")])).expect("load");
    assert_eq!(spares(&world).len(), 0, "a load needs all the room there is");
}

#[test]
fn a_step_that_finds_no_room_is_tried_again_without_spares() {
    let world = with_spares(1);
    world.load(&other()).expect("load");
    // Three layers, a container, a spare, and one more.
    *world.controls().room.lock().expect("lock") = Some(5);
    let of_other = CreateContainer { image: "other".into(), ..wanted("o") };
    world.double().create_container(of_other.clone()).expect("in the place of the spare");
    assert_eq!((spares(&world).len(), world.places()), (0, 5));
    // With no spare left it is an error, and nothing is left behind.
    let again = CreateContainer { name: Some("p".into()), ..of_other };
    assert_eq!(kind(world.double().create_container(again)), Kind::NoSpace);
    assert_eq!(world.places(), 5);
    // The same for a layer: its draft, its work tree, and the layer.
    *world.controls().room.lock().expect("lock") = None;
    assert_eq!(world.double().tend().expect("tend").made, 2);
    *world.controls().room.lock().expect("lock") = Some(7);
    let archive = world.root().with_file_name("image.tar");
    base().files(Packing::Plain, &[("more", b"more")]).write_archive(&archive);
    crate::fixture::load_file(&world.double(), &archive).expect("load");
    assert_eq!((spares(&world).len(), world.places()), (0, 6));
}

#[test]
fn what_cant_be_cloned_keeps_nobody_else_waiting() {
    let world = World::with_base().keeping(1);
    world.load(&other()).expect("load");
    world.create("first");
    world.double().create_container(CreateContainer { image: "other".into(), ..wanted("o") }).expect("create");
    let top = world.engine().find_image("base").expect("find").top.expect("a layer");
    fs::rename(world.root().join(format!("snapshots/{top}/fs")), world.root().join("aside")).expect("rename");
    let tended = world.double().tend().expect("tend");
    assert_eq!((tended.made, spares(&world).len()), (1, 1));
    assert_ne!(spares(&world)[0].parent, Some(top));
    assert_eq!(world.places(), 6, "nothing is left of the attempt");
}

/// Wait until a condition holds.
fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(120), "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn one_tends_one_waits_and_no_wake_up_is_lost() {
    let world = World::with_base().keeping(1);
    world.load(&other()).expect("load");
    world.create("first");
    let controls = world.controls();
    controls.paused.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let works = scope.spawn(|| world.double().tend().expect("tend"));
        until("the first one is at a clone", || controls.waiting.load(Ordering::SeqCst) == 1);
        // Whoever asks whether one waits has its lock for a moment, in which another goes at once: then it comes again.
        let waits = scope.spawn(|| {
            loop {
                let tended = world.double().tend().expect("tend");
                if !controls.paused.load(Ordering::SeqCst) {
                    return tended;
                }
            }
        });
        until("the second one waits", || world.store().is_tender_waiting().expect("ask"));
        assert_eq!(world.double().tend().expect("tend"), Tended::default(), "the third one goes at once");
        // Who leaves work now needs nobody else to see it.
        let of_other = CreateContainer { image: "other".into(), read_only: true, ..wanted("view") };
        world.double().create_container(of_other).expect("create");
        assert!(!world.double().needs_tending().expect("ask"));
        controls.paused.store(false, Ordering::SeqCst);
        let (first, second) = (works.join().expect("join"), waits.join().expect("join"));
        assert_eq!(first.made + second.made, 1);
    });
    assert_eq!(spares(&world).len(), 1);
    world.double().remove_container("view", false).expect("rm");
}

#[test]
fn who_tends_stops_when_somebody_wants_the_store_for_himself() {
    let world = World::with_base().keeping(5);
    world.create("first");
    let controls = world.controls();
    controls.paused.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let tender = scope.spawn(|| world.double().tend().expect("tend"));
        until("it is at a clone", || controls.waiting.load(Ordering::SeqCst) == 1);
        assert!(!world.double().stop_requests().is_made());
        let asked = ask_to_stop(&world.root()).expect("ask");
        assert!(world.double().stop_requests().is_made());
        controls.paused.store(false, Ordering::SeqCst);
        assert_eq!(tender.join().expect("join").made, 1, "after the step it is at");
        assert_eq!(world.double().tend().expect("tend").made, 0, "and nobody else begins");
        drop(asked);
    });
    // The same for a signal.
    let engine = world.double();
    engine.cancellation().store(true, Ordering::SeqCst);
    assert_eq!(engine.tend().expect("tend").made, 0);
    assert_eq!(world.double().tend().expect("tend").made, 4);
}

/// Begin to make a container of the spare, as create does.
fn claim(world: &World, store: &reflinkd::store::Store, name: &str) -> Option<reflinkd::store::Draft> {
    let image = world.engine().find_image("base").expect("find");
    let content = Content::Container(Container {
        id: format!("{:064x}", name.len()),
        name: name.into(),
        image_id: image.id,
        image: "docker.io/library/base:latest".into(),
        size_limit: None,
        labels: Default::default(),
        read_only: false,
        inherited: 0,
    });
    store.claim_spare(image.top.expect("a layer"), &Owner::cli(), &content).expect("claim")
}

#[test]
fn a_claim_that_dies_leaves_a_spare_or_a_whole_container() {
    for (power_cut, confirmed) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = with_spares(1);
        let store = world.store();
        let draft = claim(&world, &store, "c").expect("a spare");
        assert!(draft.is_claimed() && !world.names().contains(&"c".to_string()));
        if confirmed {
            store.confirm(&draft).expect("confirm");
        }
        drop((draft, store));
        if power_cut {
            world.lose_index();
            let names = world.names();
            assert_eq!((names.len(), spares(&world).len()), if confirmed { (2, 0) } else { (1, 1) });
            assert!(world.double().collect_garbage(true).expect("gc").garbage.iter().all(|g| g.kind == "spare"));
            if confirmed {
                assert!(world.engine().container_root("c").expect("root").join("etc/new").exists());
            }
        } else {
            // Never acknowledged: named, and cleared by the next one who writes, with its name.
            let named = world.double().collect_garbage(true).expect("gc").garbage;
            assert_eq!(named.iter().map(|g| g.kind).collect::<Vec<_>>(), ["tree"]);
            world.double().create_container(wanted("c")).expect("the name is free");
            assert_eq!((world.places(), spares(&world).len()), (4, 0));
        }
        // In no case are there two of one name, now or after the index is made anew.
        world.lose_index();
        assert!(world.names().iter().all(|name| name == "first" || name == "c"), "{:?}", world.names());
    }
}

#[test]
fn an_index_made_anew_in_the_middle_of_a_claim_gives_no_name_twice() {
    let world = with_spares(1);
    let store = world.store();
    let draft = claim(&world, &store, "c").expect("a spare");
    // Somebody finds the index distrusted, and the record still says spare.
    fs::remove_file(world.root().join("index.current")).expect("unlink");
    world.create("c");
    store.confirm(&draft).expect("confirm");
    let draft = store.publish_or_yield(draft).expect("publish").expect_err("the name is another's");
    world.memory().destroy(&tree_of(&draft)).expect("destroy");
    store.abandon(draft).expect("abandon");
    world.lose_index();
    assert_eq!(world.names(), ["first", "c"]);
}

#[test]
fn a_spare_that_was_half_made_is_named_and_cleared() {
    for (power_cut, cloned) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = with_spares(0);
        let top = world.engine().find_image("base").expect("find").top;
        let new = New { owner: Owner::cli(), parent: top, group: NewGroup::Fresh, content: Content::Spare };
        let store = world.store();
        let draft = store.begin(new).expect("begin");
        if cloned {
            let parent = Tree::new(store.place(top.expect("a layer")), None);
            world.memory().clone_tree(&parent, &tree_of(&draft), Access::Writable, None).expect("clone");
        }
        drop((draft, store));
        if power_cut {
            world.lose_index();
        }
        let garbage = world.double().collect_garbage(false).expect("gc").garbage;
        let expected = if power_cut && cloned { "spare" } else { "tree" };
        assert_eq!(garbage.iter().map(|g| g.kind).collect::<Vec<_>>(), [expected]);
        assert_eq!(world.places(), 3);
    }
}

#[test]
fn a_spare_whose_tree_somebody_deleted_is_not_given_out() {
    let world = with_spares(1);
    let spare = world.root().join(format!("snapshots/{}", spares(&world)[0].uuid));
    world.memory().destroy(&Tree::new(&spare, None)).expect("destroy");
    let created = world.double().create_container(wanted("c")).expect("create").record;
    assert!(world.root().join(format!("snapshots/{}/fs/etc/new", created.uuid)).exists());
    assert_eq!((spares(&world).len(), spare.exists()), (0, false));
    world.double().tend().expect("tend");
    let spare: PathBuf = world.root().join(format!("snapshots/{}", spares(&world)[0].uuid));
    fs::remove_dir_all(&spare).expect("remove");
    world.double().create_container(wanted("d")).expect("create");
    assert_eq!(world.names().len(), 3);
}
