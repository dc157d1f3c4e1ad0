//! Snapshots, rollbacks, clones and commits that die between two steps: the next process finds what was acknowledged,
//! and of the rest nothing, or something whole that has a name.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use reflinkd::backend::{Access, Backend};
use reflinkd::engine::Engine;
use reflinkd::engine::commit::CommitContainer;
use reflinkd::engine::container::CreateContainer;
use reflinkd::store::{Content, Layer, NewFork, Owner, Snapshot, SnapshotOrigin};
use reflinkd::{Kind, Result};

use crate::double::Step;
use crate::fixture::{World, tree_of, wanted};

/// A crash that the rest of this boot sees, or a power cut, after which the index is made anew.
const ENDS: [bool; 2] = [false, true];

/// The container `c` with a snapshot `c@s`, in which the file `mine` says something else than in it.
fn world() -> World {
    let world = World::with_base();
    world.create("c");
    write(&world, "then");
    world.engine().snapshot("c", Some("s")).expect("snapshot");
    write(&world, "now");
    world
}

fn write(world: &World, text: &str) {
    fs::write(world.engine().container_root("c").expect("root").join("mine"), text).expect("write");
}

fn mine(world: &World, name: &str) -> String {
    fs::read_to_string(world.engine().container_root(name).expect("root").join("mine")).expect("read")
}

/// A verb of a process that dies at `step`.
fn die<T>(world: &World, step: Step, power_cut: bool, verb: impl FnOnce(&Engine) -> Result<T>) {
    let engine = world.double();
    *world.controls().dies_at.lock().expect("lock") = Some(step);
    let died = catch_unwind(AssertUnwindSafe(|| drop(verb(&engine))));
    drop(engine);
    died.expect_err("it dies");
    if power_cut {
        world.lose_index();
    }
}

/// All that can be asked works and changes nothing on disk; the names of the snapshots.
fn snapshots(world: &World) -> Vec<String> {
    let before = world.places();
    let engine = world.engine();
    let snapshots = engine.snapshots(None).expect("snapshots");
    engine.snapshot_sizes(snapshots.iter().map(|s| s.record.clone()).collect()).expect("snapshots -s");
    engine.usage(true).expect("df");
    engine.images().expect("images");
    engine.layers().expect("layers");
    engine.collect_garbage(true).expect("gc --dry-run");
    assert_eq!(world.places(), before, "a reader removed something");
    snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

/// Everything can be removed, and then there is nothing but the image.
fn remove_all(world: &World) {
    let engine = world.engine();
    for name in world.names() {
        engine.remove_container(&name, false).expect("rm");
    }
    engine.collect_garbage(false).expect("gc");
    assert_eq!((snapshots(world), world.places()), (vec![], 2));
    let left = engine.collect_garbage(true).expect("gc --dry-run").garbage;
    assert_eq!(left, []);
}

fn commit(name: &str) -> CommitContainer {
    CommitContainer {
        container: name.into(),
        image: Some("img".parse().expect("a name")),
        message: String::new(),
        author: String::new(),
        changes: Vec::new(),
    }
}

#[test]
fn a_snapshot_that_dies_is_whole_or_was_never() {
    for (step, power_cut) in [Step::Fork, Step::Forked].into_iter().flat_map(|step| ENDS.map(|end| (step, end))) {
        let world = world();
        die(&world, step, power_cut, |engine| engine.snapshot("c", Some("new")));
        let found = snapshots(&world);
        let whole = found.contains(&"c@new".into());
        assert_eq!(whole, step == Step::Forked && power_cut, "{step:?}, {power_cut}: {found:?}");
        if whole {
            assert_eq!(mine(&world, "c@new"), "now");
            world.engine().remove_container("c@new", false).expect("rm");
        }
        world.engine().snapshot("c", Some("new")).expect("the label is free");
        assert_eq!(
            (mine(&world, "c@new"), mine(&world, "c@s"), mine(&world, "c")),
            ("now".into(), "then".into(), "now".into())
        );
        assert_eq!((snapshots(&world).len(), world.places()), (2, 5));
        remove_all(&world);
    }
}

#[test]
fn a_rollback_that_dies_loses_nothing_of_either_tree() {
    for step in [Step::Fork, Step::Announce, Step::Exchange, Step::Exchanged] {
        for power_cut in ENDS {
            let world = world();
            die(&world, step, power_cut, |engine| engine.roll_back("c", "s", false, false));
            let found = snapshots(&world);
            let done = step == Step::Exchanged;
            assert_eq!(
                (mine(&world, "c"), mine(&world, "c@s")),
                (if done { "then" } else { "now" }.into(), "then".into())
            );
            // From the moment that it is announced; earlier only if the power cut came after the fork.
            let kept = match step {
                Step::Exchange | Step::Exchanged => true,
                Step::Announce => power_cut,
                _ => false,
            };
            assert_eq!(found.contains(&"c@replaced-1".into()), kept, "{step:?}, {power_cut}: {found:?}");
            if kept {
                assert_eq!(mine(&world, "c@replaced-1"), if done { "now" } else { "then" });
            }
            // And it can be done again, or undone.
            let again = world.engine().roll_back("c", "s", false, false).expect("roll back").kept.expect("kept");
            assert_eq!(again, if kept { "c@replaced-2" } else { "c@replaced-1" });
            assert_eq!(mine(&world, "c"), "then");
            if done {
                world.engine().roll_back("c", "replaced-1", false, true).expect("undo");
                assert_eq!(mine(&world, "c"), "now");
            }
            snapshots(&world);
            remove_all(&world);
        }
    }
}

/// Half of what a rollback leaves is in the container's own place.
#[test]
fn a_container_whose_rollback_died_is_measured_reset_and_cloned_as_any() {
    for step in [Step::Announce, Step::Exchange, Step::Exchanged] {
        for power_cut in ENDS {
            let world = world();
            die(&world, step, power_cut, |engine| engine.roll_back("c", "s", false, false));
            let engine = world.engine();
            engine.clone_container("c", Some("d")).expect("clone");
            assert_eq!(mine(&world, "d"), mine(&world, "c"));
            engine.reset_container("c", false).expect("reset");
            assert!(!engine.container_root("c").expect("root").join("mine").exists());
            snapshots(&world);
            remove_all(&world);
        }
    }
}

#[test]
fn a_clone_that_dies_is_whole_or_was_never() {
    for (step, power_cut) in [Step::Fork, Step::Forked].into_iter().flat_map(|step| ENDS.map(|end| (step, end))) {
        let world = world();
        die(&world, step, power_cut, |engine| engine.clone_container("c@s", Some("d")));
        snapshots(&world);
        let whole = world.names().contains(&"d".into());
        assert_eq!(whole, step == Step::Forked && power_cut);
        if whole {
            assert_eq!(mine(&world, "d"), "then");
            world.engine().remove_container("d", false).expect("rm");
        }
        world.engine().clone_container("c", Some("d")).expect("the name is free");
        assert_eq!(mine(&world, "d"), "now");
        remove_all(&world);
    }
}

#[test]
fn a_commit_that_dies_leaves_nothing_that_the_next_verb_doesnt_clear() {
    for step in [Step::Fork, Step::Forked, Step::Changes, Step::Own] {
        for power_cut in ENDS {
            let world = world();
            die(&world, step, power_cut, |engine| engine.commit(&commit("c")));
            snapshots(&world);
            assert_eq!(world.engine().images().expect("images").len(), 1);
            // c and c@s, the image's two layers, and what the next one who writes takes away.
            assert_eq!(world.places(), 5, "{step:?}, {power_cut}");
            world.engine().rename_container("c", "d").expect("rename");
            assert_eq!(world.places(), 4, "{step:?}, {power_cut}");
            world.engine().commit(&commit("d")).expect("commit");
            assert_eq!(world.places(), 5);
            world.engine().remove_image("img", false).expect("rmi");
            remove_all(&world);
        }
    }
}

/// The record says already that it is a layer, or everyone knows it, and there is no image.
#[test]
fn the_layer_of_a_commit_that_died_goes_as_after_a_load() {
    for (shown, power_cut) in [(false, false), (false, true), (true, false), (true, true)] {
        let world = world();
        let store = world.store();
        let container = world.engine().find_container("c").expect("find");
        let mut held = store.hold(container.uuid).expect("hold");
        let new = NewFork { owner: Owner::cli(), own_group: false, content: Content::Work };
        let mut draft = store.begin_fork(&mut held, new).expect("begin");
        let source = reflinkd::backend::Tree::new(held.place(), None);
        world.memory().fork(&source, &tree_of(&draft), Access::ReadOnly, None).expect("fork");
        let digest = format!("sha256:{}", crate::support::image::sha256(b"one"));
        draft.set_content(Content::Layer(Layer {
            diff_id: digest.clone(),
            chain_id: digest,
            size: 3,
            size_method: "blocks".into(),
            apparent_size: 3,
        }));
        fs::write(draft.place().join("recipe"), "a recipe").expect("write");
        store.confirm(&draft).expect("confirm");
        if shown {
            store.publish(draft).expect("publish");
        } else {
            drop(draft);
        }
        drop((held, store));
        if power_cut {
            world.lose_index();
        }
        snapshots(&world);
        world.engine().collect_garbage(false).expect("gc");
        assert_eq!(world.places(), 4, "{shown}, {power_cut}");
        world.engine().commit(&commit("c")).expect("commit");
        world.engine().remove_image("img", false).expect("rmi");
        remove_all(&world);
    }
}

#[test]
fn a_removal_that_dies_between_snapshots_and_container_is_finished_or_done_again() {
    for power_cut in ENDS {
        let world = world();
        die(&world, Step::Destroy, power_cut, |engine| engine.remove_container("c", false));
        assert_eq!((mine(&world, "c"), snapshots(&world).len()), ("now".into(), usize::from(power_cut)));
        world.engine().remove_container("c", false).expect("rm");
        assert_eq!(world.places(), 2);
        remove_all(&world);
    }
}

/// Somebody keeps a container while another one removes it.
#[test]
fn no_snapshot_outlives_its_container() {
    for _ in 0..30 {
        let world = World::with_base();
        world.create("c");
        let (one, other) = (world.engine(), world.engine());
        std::thread::scope(|scope| {
            let taking = scope.spawn(move || one.snapshot("c", Some("s")));
            other.remove_container("c", false).expect("rm");
            if let Err(error) = taking.join().expect("no panic") {
                assert!(matches!(error.kind(), Kind::NotFound | Kind::InUse), "{error}");
            }
        });
        assert_eq!((snapshots(&world), world.places()), (vec![], 2));
    }
}

/// One whose container is gone all the same (by hand, or by a version that let that happen) can be seen, and removed.
#[test]
fn a_snapshot_without_its_container_can_be_removed_by_the_name_it_is_listed_with() {
    let world = world();
    let container = world.engine().find_container("c").expect("find");
    let store = world.store();
    let held = store.begin_removal(container.uuid).expect("hold");
    world.memory().destroy(&reflinkd::backend::Tree::new(held.place(), None)).expect("destroy");
    store.finish_removal(held).expect("forget");
    drop(store);
    let names = snapshots(&world);
    assert_eq!(names, [format!("{}@s", container.uuid)]);
    assert_eq!(mine(&world, &names[0]), "then");
    world.engine().remove_container(&names[0], false).expect("rm");
    assert_eq!((snapshots(&world), world.places()), (vec![], 2));
}

/// Labels that nobody chose are found under the container's lock: no two take the same.
#[test]
fn rollbacks_and_snapshots_at_once_find_labels_of_their_own() {
    let world = world();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let engine = world.engine();
            scope.spawn(move || engine.roll_back("c", "s", true, false).expect("roll back"));
            let engine = world.engine();
            scope.spawn(move || engine.snapshot("c", None).expect("snapshot"));
        }
    });
    assert_eq!(snapshots(&world).len(), 7);
    remove_all(&world);
}

/// What a dead process holds a label with that can't be cleared isn't in the way of labels that nobody chose.
#[test]
fn a_label_that_cant_be_cleared_is_passed_over() {
    let world = world();
    let container = world.engine().find_container("c").expect("find");
    let store = world.store();
    let mut held = store.hold(container.uuid).expect("hold");
    let snapshot =
        Snapshot { container: container.uuid, label: "replaced-1".into(), origin: SnapshotOrigin::Replaced };
    let new = NewFork { owner: Owner::cli(), own_group: false, content: Content::Snapshot(snapshot) };
    let draft = store.begin_fork(&mut held, new).expect("begin");
    fs::write(draft.place().join("foreign"), "not ours").expect("write");
    let foreign = draft.place().join("foreign");
    drop((draft, held, store));
    let done = world.engine().roll_back("c", "s", false, false).expect("roll back");
    assert_eq!(done.kept.as_deref(), Some("c@replaced-2"));
    fs::remove_file(foreign).expect("unlink");
    remove_all(&world);
}

/// The rule removes what others remove at the same time.
#[test]
fn rules_at_once_agree() {
    let world = world();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let engine = world.engine();
            scope.spawn(move || {
                for _ in 0..5 {
                    engine.snapshot_and_keep("c", &"last=1".parse().expect("a rule")).expect("keep");
                }
            });
        }
    });
    let found = snapshots(&world);
    assert!(found.contains(&"c@s".into()) && found.len() <= 5, "{found:?}");
    world.engine().snapshot_and_keep("c", &"last=1".parse().expect("a rule")).expect("keep");
    assert_eq!(snapshots(&world).len(), 2);
    remove_all(&world);
}

/// What is removed while it is measured is left out, with the image that it was made of.
#[test]
fn sizes_can_be_asked_for_while_everything_goes() {
    let world = world();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let engine = world.engine();
            let mut asked = 0;
            while !stop.load(Ordering::Relaxed) || asked < 5 {
                engine.usage(false).expect("df");
                let all = engine.snapshots(None).expect("snapshots").into_iter().map(|s| s.record).collect();
                engine.snapshot_sizes(all).expect("snapshots -s");
                asked += 1;
            }
        });
        let engine = world.engine();
        let busy = catch_unwind(AssertUnwindSafe(|| {
            for n in 0..40 {
                engine.clone_container("c", Some("d")).expect("clone");
                fs::write(engine.container_root("d").expect("root").join("n"), n.to_string()).expect("write");
                engine.commit(&commit("d")).expect("commit");
                engine.snapshot("d", None).expect("snapshot");
                engine.remove_container("d", false).expect("rm");
                engine.remove_image("img", false).expect("rmi");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        asking.join().expect("what is asked is answered");
        busy.expect("the others");
    });
    remove_all(&world);
}

/// What a clone has from its origin is charged there. It counts against the limit until a reset throws it away.
#[test]
fn what_a_clone_inherited_counts_until_it_is_reset() {
    const LIMIT: u64 = 1 << 20;
    let world = World::with_base();
    world.controls().charges_origin.store(true, Ordering::SeqCst);
    let engine = world.double();
    engine.create_container(CreateContainer { size_limit: Some(LIMIT), ..wanted("c") }).expect("create");
    write(&world, &"x".repeat(8192));
    let record = engine.clone_container("c", Some("d")).expect("clone").record;
    let place = world.root().join("snapshots").join(record.uuid.to_string());
    let limit = || world.controls().limits.lock().expect("lock").get(&place).copied().flatten();
    assert_eq!(limit(), Some(LIMIT - 8192));
    engine.limit_container("d", Some(2 * LIMIT)).expect("update");
    assert_eq!(limit(), Some(2 * LIMIT - 8192));
    engine.snapshot("d", Some("s")).expect("snapshot");
    engine.roll_back("d", "s", false, true).expect("roll back");
    assert_eq!(limit(), Some(2 * LIMIT - 8192), "a rollback hands out no room");
    let twin = engine.clone_container("d@s", Some("twin")).expect("clone").record;
    assert_eq!(twin.inherits.len(), 2, "both that wrote what it has: {twin:?}");
    engine.remove_container("c", false).expect("rm");
    assert_eq!(limit(), Some(2 * LIMIT - 8192));
    engine.reset_container("d", false).expect("reset");
    assert_eq!(limit(), Some(2 * LIMIT));
    let reset = engine.find_container("d").expect("find");
    assert_eq!((reset.container().map(|c| c.inherited), reset.inherits.len()), (Some(0), 0));
    engine.limit_container("d", Some(LIMIT)).expect("update");
    assert_eq!(limit(), Some(LIMIT));
}

/// What is announced is seen, and whoever removes it waits until it is what its name says.
#[test]
fn what_is_announced_is_nobody_elses_before_the_exchange() {
    let world = world();
    let controls = world.controls();
    controls.paused.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let engine = world.double();
        let rolling = scope.spawn(move || engine.roll_back("c", "s", false, false));
        while controls.waiting.load(Ordering::SeqCst) == 0 && !rolling.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let seen = catch_unwind(AssertUnwindSafe(|| snapshots(&world)));
        let removed = world.engine().remove_container("c@replaced-1", true);
        controls.paused.store(false, Ordering::SeqCst);
        assert_eq!(seen.expect("all can be asked"), ["c@s", "c@replaced-1"]);
        assert_eq!(removed.expect_err("it is worked on").kind(), Kind::InUse);
        rolling.join().expect("no panic").expect("roll back");
    });
    assert_eq!((mine(&world, "c"), mine(&world, "c@replaced-1")), ("then".into(), "now".into()));
    remove_all(&world);
}
