//! The store alone, on plain directories on tmpfs: a tree is a directory `fs` that the test makes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

const INSTANCE: &str = "this boot";

struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let world = Self(tempfile::tempdir_in("/dev/shm").expect("tmpfs"));
        Identity::create(world.root(), "memory").expect("create");
        world
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn store(&self) -> Store {
        self.store_of(INSTANCE, None)
    }

    fn store_of(&self, instance: &str, highest_group: Option<u32>) -> Store {
        let identity = Identity::read(self.root()).expect("read").expect("is there");
        Store::open(self.root(), identity, instance, &|| Ok(highest_group)).expect("open")
    }

    fn places(&self) -> usize {
        fs::read_dir(self.root().join("snapshots")).expect("read").count()
    }
}

fn container(name: &str, id: &str) -> New {
    New {
        owner: Owner::cli(),
        parent: None,
        group: NewGroup::Fresh,
        content: Content::Container(Container {
            id: id.to_string(),
            name: name.to_string(),
            image_id: "sha256:0".into(),
            image: "docker.io/library/x:latest".into(),
            size_limit: None,
            labels: Default::default(),
            read_only: false,
            inherited: 0,
        }),
    }
}

fn layer(chain_id: &str, parent: Option<Uuid>) -> New {
    New {
        owner: Owner::cli(),
        parent,
        group: NewGroup::Fresh,
        content: Content::Layer(Layer {
            diff_id: chain_id.to_string(),
            chain_id: chain_id.to_string(),
            size: 1,
            size_method: "blocks".into(),
            apparent_size: 1,
        }),
    }
}

fn made(store: &Store, new: New) -> Record {
    let draft = store.begin(new).expect("begin");
    fs::create_dir(draft.place().join("fs")).expect("mkdir");
    store.publish(draft).expect("publish")
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("should fail").kind()
}

fn names(store: &Store) -> Vec<String> {
    let records = store.list(TreeKind::Container).expect("list");
    records.iter().filter_map(|record| record.name().map(str::to_string)).collect()
}

/// Write the record of `to` as if it were `record` of another tree.
fn overwrite(store: &Store, to: Uuid, record: &Record) {
    let place = store.place(to);
    record.write(&File::open(&place).expect("open"), &place).expect("write");
}

#[test]
fn a_layers_recipe_goes_with_its_place() {
    let world = World::new();
    let store = world.store();
    let with_recipe = |chain_id: &str| {
        let draft = store.begin(layer(chain_id, None)).expect("begin");
        // As of one that dies while its paths are being corrected.
        let recipe = recipe(draft.place());
        fs::write(&recipe, "recipe").expect("write");
        fs::write(recipe.with_extension("new"), "half").expect("write");
        draft
    };
    store.abandon(with_recipe("one")).expect("abandon");
    assert_eq!(world.places(), 0);
    let draft = with_recipe("two");
    fs::create_dir(draft.place().join("fs")).expect("a tree");
    let record = store.publish(draft).expect("publish");
    let held = store.begin_removal(record.uuid).expect("begin");
    fs::remove_dir(held.place().join("fs")).expect("destroy");
    store.finish_removal(held).expect("finish");
    assert_eq!(world.places(), 0);
}

#[test]
fn names_and_keys_are_unique_among_those_being_made_too() {
    let world = World::new();
    let (store, other) = (world.store(), world.store());
    let draft = store.begin(container("a", "01")).expect("begin");
    assert_eq!(kind(other.begin(container("a", "02"))), Kind::Exists);
    assert_eq!(kind(other.begin(container("b", "01"))), Kind::Exists);
    assert_eq!(world.places(), 1, "what failed left nothing");
    assert!(names(&other).is_empty(), "not shown before it is whole");
    store.abandon(draft).expect("abandon");
    made(&other, container("a", "02"));
    let base = made(&store, layer("c1", None));
    assert_eq!(kind(store.begin(layer("c1", None))), Kind::Exists);
    let held = store.begin_removal(base.uuid).expect("hold");
    assert_eq!(kind(other.begin(layer("c2", Some(base.uuid)))), Kind::NotFound, "nothing is based on what is going");
    store.keep(held).expect("keep");
    assert!(other.begin(layer("c2", Some(base.uuid))).is_ok());
}

#[test]
fn a_tree_that_others_are_based_on_stays() {
    let world = World::new();
    let store = world.store();
    let base = made(&store, layer("c1", None));
    let draft = store.begin(New { parent: Some(base.uuid), ..container("a", "01") }).expect("begin");
    assert_eq!(kind(store.begin_removal(base.uuid)), Kind::InUse);
    store.abandon(draft).expect("abandon");
    assert!(store.begin_removal(base.uuid).is_ok());
}

#[test]
fn the_index_is_made_anew_when_it_is_lost_damaged_given_up_or_of_another_boot() {
    let world = World::new();
    let store = world.store();
    let kept = made(&store, container("kept", "01"));
    drop(store.begin(container("unborn", "02")).expect("begin"));
    drop(store);
    let db = world.root().join("index.db");
    let losses: [(&str, &dyn Fn()); 5] = [
        ("lost", &|| fs::remove_file(&db).expect("unlink")),
        ("garbage", &|| fs::write(&db, [7; 9000]).expect("write")),
        ("empty", &|| fs::write(&db, []).expect("write")),
        ("given up", &|| fs::remove_file(world.root().join("index.current")).expect("unlink")),
        ("nothing", &|| {}),
    ];
    for (what, lose) in losses {
        lose();
        let store = world.store();
        assert_eq!(store.by_name(&Owner::cli(), "kept").expect("ask"), Some(kept.clone()), "{what}");
        assert_eq!(names(&store), ["kept"], "{what}");
        assert_eq!(store.debris().expect("debris").len(), 1, "{what}");
    }
    let store = world.store_of("another boot", None);
    assert_eq!((names(&store), store.debris().expect("debris").len()), (vec!["kept".to_string()], 1));
}

#[test]
fn an_index_damaged_inside_is_made_anew_once_it_is_distrusted() {
    let world = World::new();
    let store = world.store();
    for n in 0..50 {
        made(&store, container(&format!("c{n}"), &format!("{n:02}")));
    }
    drop(store);
    let db = world.root().join("index.db");
    let mut bytes = fs::read(&db).expect("read");
    // The first page tells version and tables; the rows behind it are torn.
    bytes[4096..].fill(0xee);
    fs::write(&db, bytes).expect("write");
    fs::remove_file(world.root().join("index.current")).expect("unlink");
    assert_eq!(names(&world.store()).len(), 50);
}

#[test]
fn who_has_an_index_open_that_was_made_anew_is_told_and_gives_no_names() {
    let world = World::new();
    let old = world.store();
    made(&old, container("a", "01"));
    fs::remove_file(world.root().join("index.db")).expect("unlink");
    made(&world.store(), container("b", "02"));
    let error = old.begin(container("b", "03")).expect_err("it can't see that b is taken");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.hint().is_some(), "{error}");
    assert_eq!((names(&world.store()), world.places()), (vec!["a".to_string(), "b".to_string()], 2));
}

#[test]
fn group_numbers_never_go_back() {
    let world = World::new();
    let store = world.store();
    let first = made(&store, container("a", "01")).group.expect("a group");
    let second = made(&store, container("b", "02"));
    let held = store.begin_removal(second.uuid).expect("hold");
    fs::remove_dir(held.place().join("fs")).expect("rmdir");
    store.finish_removal(held).expect("finish");
    let third = made(&store, container("c", "03")).group.expect("a group");
    assert!(first < second.group.expect("a group") && second.group.expect("a group") < third);
    // With the index lost, the records and the filesystem know where it goes on.
    drop(store);
    fs::remove_file(world.root().join("index.db")).expect("unlink");
    let fourth = made(&world.store(), container("d", "04")).group.expect("a group");
    assert!(fourth > third);
    let fifth = made(&world.store_of("another boot", Some(100)), container("e", "05")).group;
    assert_eq!(fifth, Some(101));
    // A failed change takes no number back either.
    let store = world.store_of("another boot", None);
    assert_eq!(kind(store.begin(container("e", "06"))), Kind::Exists);
    assert!(made(&store, container("f", "06")).group > fifth);
}

#[test]
fn a_long_record_spills_and_comes_back() {
    let world = World::new();
    let store = world.store();
    let record = made(&store, container("a", "01"));
    let spill = store.place(record.uuid).join("record.json");
    assert!(!spill.exists());
    let labels: std::collections::BTreeMap<_, _> = (0..200).map(|n| (format!("k{n}"), "v".repeat(100))).collect();
    let label = |store: &Store, labels: std::collections::BTreeMap<String, String>| {
        store
            .update(record.uuid, |record| {
                if let Content::Container(container) = &mut record.content {
                    container.labels = labels;
                }
                Ok(())
            })
            .expect("update")
    };
    let long = label(&store, labels);
    assert!(spill.exists());
    let store = world.store_of("another boot", None);
    assert_eq!(store.get(record.uuid).expect("get"), Some(long));
    let short = label(&store, Default::default());
    let store = world.store_of("a third boot", None);
    assert_eq!(store.get(record.uuid).expect("get"), Some(short));
    // A crash while it was written leaves another file, which doesn't keep the place from being removed.
    fs::write(spill.with_extension("new"), "{").expect("write");
    let held = store.begin_removal(record.uuid).expect("hold");
    fs::remove_dir(held.place().join("fs")).expect("rmdir");
    store.finish_removal(held).expect("finish");
    assert_eq!(world.places(), 0);
}

#[test]
fn damage_makes_no_tree_unreachable_and_none_debris() {
    let world = World::new();
    let store = world.store();
    let (a, b) = (made(&store, container("a", "01")), made(&store, container("b", "02")));
    let (c1, c2) = (made(&store, layer("c1", None)), made(&store, layer("c2", None)));
    let child = made(&store, New { parent: Some(c2.uuid), ..container("child", "03") });
    let broken = made(&store, container("broken", "04"));
    let foreign = made(&store, container("foreign", "05"));
    overwrite(&store, b.uuid, &Record { uuid: b.uuid, content: a.content.clone(), ..b.clone() });
    overwrite(&store, c2.uuid, &Record { uuid: c2.uuid, content: c1.content.clone(), ..c2.clone() });
    overwrite(&store, foreign.uuid, &a);
    rustix::fs::setxattr(store.place(broken.uuid), "trusted.reflinkd", b"{", rustix::fs::XattrFlags::empty())
        .expect("setxattr");
    drop(store);

    let store = world.store_of("another boot", None);
    let found = names(&store);
    assert_eq!((found.len(), found[0].as_str(), found[2].as_str()), (3, "a", "child"), "{found:?}");
    assert!(found[1].starts_with("a-"), "{found:?}");
    assert_eq!(store.list(TreeKind::Layer).expect("list").len(), 2);
    assert_eq!(store.get(c2.uuid).expect("get").map(|record| record.uuid), child.parent);
    assert!(store.debris().expect("debris").is_empty() && store.strays().expect("strays").0.is_empty());
    // The one that came later can be removed and renamed like any other.
    store.keep(store.begin_removal(b.uuid).expect("hold")).expect("keep");
    assert_eq!(kind(store.begin_removal(c2.uuid)), Kind::InUse);
    store
        .update(b.uuid, |record| {
            if let Content::Container(container) = &mut record.content {
                (container.name, container.id) = ("b".into(), "02".into());
            }
            Ok(())
        })
        .expect("rename");
    assert_eq!(names(&world.store_of("a third boot", None)), ["a", "b", "child"]);
}

/// As after a power cut that brings back the place of what was removed, when its name was given to another tree.
#[test]
fn a_name_is_kept_by_what_has_a_tree() {
    let world = World::new();
    let store = world.store();
    let removed = made(&store, container("web1", "1"));
    let mut successor = made(&store, container("web2", "2"));
    fs::remove_dir(store.place(removed.uuid).join("fs")).expect("rmdir");
    if let Content::Container(container) = &mut successor.content {
        container.name = "web1".into();
    }
    overwrite(&store, successor.uuid, &successor);
    drop(store);
    let store = world.store_of("another boot", None);
    assert_eq!(names(&store), ["web1"]);
    assert_eq!(store.by_name(&Owner::cli(), "web1").expect("by name").map(|found| found.uuid), Some(successor.uuid));
    let debris = store.debris().expect("debris");
    assert_eq!(debris.iter().map(|held| held.record().uuid).collect::<Vec<_>>(), [removed.uuid]);
}

#[test]
fn only_places_without_record_or_tree_are_strays() {
    let world = World::new();
    let store = world.store();
    let whole = made(&store, container("a", "01"));
    let draft = store.begin(container("b", "02")).expect("begin");
    fs::create_dir(store.place(Uuid::new_v4())).expect("mkdir");
    store.index().change(|change| change.delete(whole.uuid)).expect("delete");
    let lost = store.place(Uuid::new_v4());
    fs::create_dir_all(lost.join("fs")).expect("mkdir");
    let (strays, damaged) = store.strays().expect("strays");
    assert_eq!(strays.len(), 1, "neither the whole one without a row, nor the one being made, nor the tree");
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(damaged[0].to_string().contains(lost.to_str().expect("UTF-8")), "{damaged:?}");
    for stray in strays {
        store.remove_stray(stray).expect("remove");
    }
    assert_eq!(world.places(), 3);
    store.abandon(draft).expect("abandon");
}

#[test]
fn a_lock_on_a_removed_directory_is_no_lock() {
    let world = World::new();
    let path = world.root().join("snapshots/x");
    fs::create_dir(&path).expect("mkdir");
    let held = files::lock_directory(&path, Lock::Exclusive).expect("lock");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| kind(files::lock_directory(&path, Lock::Exclusive)));
        let another = scope.spawn(|| kind(files::lock_directory(&path, Lock::Shared)));
        std::thread::sleep(Duration::from_millis(100));
        fs::remove_dir(&path).expect("rmdir");
        fs::create_dir(&path).expect("mkdir");
        drop(held);
        assert_eq!(waiter.join().expect("join"), Kind::NotFound);
        assert_eq!(another.join().expect("join"), Kind::NotFound);
    });
}

#[test]
fn who_only_looks_doesnt_keep_others_from_a_tree() {
    let world = World::new();
    let store = world.store();
    let record = made(&store, container("a", "01"));
    let looked = places::lock(world.root(), record.uuid, Lock::TryExclusive).expect("lock");
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| store.begin_removal(record.uuid).map(|held| held.record().uuid));
        std::thread::sleep(Duration::from_millis(100));
        drop(looked);
        assert_eq!(removal.join().expect("join").expect("held"), record.uuid);
    });
}

#[test]
fn an_index_that_nobody_else_sees_gives_no_names() {
    let world = World::new();
    let store = world.store();
    let record = made(&store, container("a", "01"));
    drop(store);
    // Nothing can be written there, as on a full disk.
    fs::remove_file(world.root().join("index.db")).expect("unlink");
    fs::create_dir(world.root().join("index.db")).expect("mkdir");
    let store = world.store();
    assert_eq!(names(&store), ["a"]);
    assert_eq!(kind(store.begin(container("b", "02"))), Kind::NoSpace);
    assert_eq!(kind(store.update(record.uuid, |_| Ok(()))), Kind::NoSpace);
    assert_eq!(kind(store.begin_replacement(record.uuid)), Kind::NoSpace);
    assert_eq!(world.places(), 1);
    let held = store.begin_removal(record.uuid).expect("hold");
    fs::remove_dir(held.place().join("fs")).expect("rmdir");
    store.finish_removal(held).expect("finish");
    assert!(names(&store).is_empty());
    assert!(!world.root().join("index.current").exists(), "the next one makes the index anew");
}

#[test]
fn who_had_to_do_without_the_index_uses_it_again() {
    let world = World::new();
    drop(made(&world.store(), container("a", "01")));
    let index = world.root().join("index.db");
    fs::remove_file(&index).expect("unlink");
    fs::create_dir(&index).expect("mkdir");
    let store = world.store();
    store.rejoin(&|| Ok(INSTANCE.into()), &|| Ok(None)).expect("look");
    assert_eq!(kind(store.begin(container("b", "02"))), Kind::NoSpace);
    fs::remove_dir(&index).expect("rmdir");
    store.rejoin(&|| Ok(INSTANCE.into()), &|| Ok(Some(7))).expect("look");
    let group = made(&store, container("b", "02")).group;
    assert_eq!((names(&store), names(&world.store()), group), (vec!["a".into(), "b".into()], names(&store), Some(8)));
}

#[test]
fn what_others_could_not_write_into_the_index_is_found_in_the_records() {
    let world = World::new();
    let (store, other) = (world.store(), world.store());
    let draft = other.begin(container("a", "01")).expect("begin");
    fs::create_dir(draft.place().join("fs")).expect("mkdir");
    // It is whole, there is no room in the index to say so, and its maker goes.
    scan::distrust_index(world.root()).expect("unlink");
    drop(draft);
    assert!(store.debris().expect("look").is_empty(), "by its row it was never finished");
    store.rejoin(&|| Ok(INSTANCE.into()), &|| Ok(None)).expect("look");
    assert!(store.debris().expect("look").is_empty());
    assert_eq!(names(&store), ["a"]);
}

fn image(id: &str, names: &[(&str, &str)]) -> Image {
    Image {
        uuid: Uuid::new_v4(),
        id: format!("sha256:{id}"),
        manifest: None,
        top: None,
        index: None,
        blobs: Vec::new(),
        loaded: "2026-01-01T00:00:00Z".parse().expect("time"),
        names: names.iter().map(|(name, time)| ((*name).to_string(), time.parse().expect("time"))).collect(),
    }
}

fn named(guard: &ImagesGuard<'_>, name: &str) -> Vec<String> {
    let images = guard.list().expect("images");
    images.iter().filter(|image| image.names.contains_key(name)).map(|image| image.id.clone()).collect()
}

#[test]
fn a_name_moves_to_the_image_that_got_it_last_whatever_the_clock_does() {
    let world = World::new();
    let store = world.store();
    let guard = store.lock_images().expect("lock");
    let old = image("01", &[("n", "2026-01-01T00:00:00Z"), ("m", "2026-01-01T00:00:00Z")]);
    guard.put(&old).expect("put");
    let new = image("02", &[("n", "2026-01-02T00:00:00Z")]);
    guard.put(&new).expect("put");
    assert_eq!((named(&guard, "n"), named(&guard, "m")), (vec![new.id.clone()], vec![old.id.clone()]));
    // A power cut between the two files leaves the name in both.
    guard.write(&old).expect("write");
    assert_eq!(named(&guard, "n"), [new.id.as_str()]);
    // A name given while the clock is behind is newer all the same.
    guard.put(&image("03", &[("far", "2100-01-01T00:00:00Z")])).expect("put");
    let time = guard.time().expect("time");
    assert!(time > "2100-01-01T00:00:00Z".parse().expect("time"));
    guard.delete(&new).expect("delete");
    guard.delete(&new).expect("again");
    assert_eq!(named(&guard, "n"), [old.id.as_str()]);
}

#[test]
fn images_are_listed_when_nobody_changes_them() {
    let world = World::new();
    let store = world.store();
    let guard = store.lock_images().expect("lock");
    guard.put(&image("01", &[])).expect("put");
    std::thread::scope(|scope| {
        let (said, listed) = std::sync::mpsc::channel();
        let store = &store;
        scope.spawn(move || said.send(store.images().expect("images").len()).expect("say it"));
        let early = listed.recv_timeout(std::time::Duration::from_millis(200));
        assert!(early.is_err(), "a file that is replaced now may not be seen");
        guard.put(&image("02", &[])).expect("put");
        drop(guard);
        assert_eq!(listed.recv().expect("a number"), 2);
    });
}

#[test]
fn what_was_being_written_for_an_image_is_collected() {
    let world = World::new();
    let store = world.store();
    let guard = store.lock_images().expect("lock");
    let kept = image("01", &[]);
    guard.put(&kept).expect("put");
    let draft = world.root().join("images").join(format!("{}.new", Uuid::new_v4()));
    fs::write(&draft, "half").expect("write");
    let name = draft.file_name().expect("a name").to_str().expect("text");
    assert_eq!(store.collect_drafts(&guard, true).expect("look"), [name]);
    assert!(draft.exists());
    assert_eq!(store.collect_drafts(&guard, false).expect("collect"), [name]);
    assert!(!draft.exists());
    assert_eq!(guard.list().expect("list"), [kept]);
}

#[test]
fn blobs_stay_while_an_image_names_them() {
    let world = World::new();
    let store = world.store();
    let guard = store.lock_images().expect("lock");
    let (used, unused) = ("a".repeat(64), "b".repeat(64));
    guard.put_blob(&used, b"used").expect("put");
    guard.put_blob(&unused, b"unused").expect("put");
    guard.put(&image(&used, &[])).expect("put");
    assert_eq!(store.collect_blobs(&guard, true).expect("look"), [unused.as_str()]);
    assert_eq!(store.blob(&unused).expect("read"), b"unused");
    assert_eq!(store.collect_blobs(&guard, false).expect("collect"), [unused.as_str()]);
    assert_eq!((store.blob(&used).expect("read"), kind(store.blob(&unused))), (b"used".to_vec(), Kind::NotFound));
    for bad in ["", "../../etc/passwd", &"A/".repeat(32)] {
        assert_eq!(kind(store.blob(bad)), Kind::Invalid);
    }
}

#[test]
fn what_is_left_of_a_making_cut_short_is_told_from_somebodys_files() {
    let parent = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let root = parent.path();
    assert!(Identity::is_unfinished(root).expect("look"), "empty");
    Identity::create(root, "memory").expect("create");
    fs::remove_file(root.join("store.json")).expect("unlink");
    assert!(Identity::is_unfinished(root).expect("look"));
    fs::create_dir(root.join("snapshots/x")).expect("mkdir");
    assert!(!Identity::is_unfinished(root).expect("look"), "trees in it");
    fs::remove_dir(root.join("snapshots/x")).expect("rmdir");
    fs::write(root.join("images/x.json"), "{}").expect("write");
    assert!(!Identity::is_unfinished(root).expect("look"), "images in it");
    fs::remove_file(root.join("images/x.json")).expect("unlink");
    fs::write(root.join("precious"), "x").expect("write");
    assert!(!Identity::is_unfinished(root).expect("look"));
}

#[test]
fn a_group_that_is_let_through_lists_nothing() {
    let world = World::new();
    let store = world.store();
    let snapshots = world.root().join("snapshots");
    let modes = || {
        [world.root(), snapshots.as_path()].map(|directory| {
            let metadata = fs::metadata(directory).expect("stat");
            (metadata.mode() & 0o7777, metadata.gid())
        })
    };
    for directory in [world.root(), snapshots.as_path()] {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).expect("chmod");
    }
    for group in [231_000, 7] {
        store.let_through(group).expect("let through");
        assert_eq!(modes(), [(0o710, group); 2]);
    }
    // Where its administrator lets everybody through already, nothing is changed.
    fs::set_permissions(world.root(), fs::Permissions::from_mode(0o755)).expect("chmod");
    store.let_through(8).expect("let through");
    assert_eq!(modes(), [(0o755, 7), (0o710, 8)]);
}
