//! Stores of other schemas.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use reflinkd::Kind;
use reflinkd::engine::container::CreateContainer;
use reflinkd::store::{Identity, SCHEMA};
use serde_json::Value;

use crate::fixture::{World, kind, wanted};

const ATTRIBUTE: &str = "trusted.reflinkd";

fn identity(world: &World) -> Value {
    serde_json::from_slice(&fs::read(world.root().join("store.json")).expect("read")).expect("JSON")
}

fn set_schema(world: &World, schema: u32) {
    let mut identity = identity(world);
    identity["schema"] = schema.into();
    fs::write(world.root().join("store.json"), identity.to_string()).expect("write");
}

fn record(place: &Path) -> Value {
    let mut bytes = vec![0; 8192];
    let length = rustix::fs::getxattr(place, ATTRIBUTE, &mut bytes[..]).expect("getxattr");
    match &bytes[..length] {
        b"record.json" => serde_json::from_slice(&fs::read(place.join("record.json")).expect("read")).expect("JSON"),
        bytes => serde_json::from_slice(bytes).expect("JSON"),
    }
}

fn places(world: &World) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.root().join("snapshots")).expect("read");
    entries.map(|entry| entry.expect("entry").path()).collect()
}

fn records(world: &World) -> BTreeMap<PathBuf, Value> {
    places(world).into_iter().map(|place| (place.clone(), record(&place))).collect()
}

fn images(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("read").map(|entry| entry.expect("entry").path());
    let files = entries.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files
        .map(|path| (path.file_name().expect("name").to_string_lossy().into_owned(), fs::read(&path).expect("read")))
        .collect()
}

/// A store as schema 1 had it: containers with labels and limits, few and many; one whose reset was cut short.
fn schema_1() -> World {
    let world = World::with_base();
    let engine = world.engine();
    engine.tag("base", "other:v1").expect("tag");
    let many: BTreeMap<_, _> = (0..200).map(|n| (format!("k{n}"), "v".repeat(100))).collect();
    engine.create_container(wanted("plain")).expect("create");
    engine.create_container(CreateContainer { labels: many, ..wanted("many") }).expect("create");
    let limited = engine.create_container(wanted("limited")).expect("create").record;
    let reset = engine.create_container(wanted("reset")).expect("create").record;
    drop(engine);
    let place = |uuid: uuid::Uuid| world.root().join("snapshots").join(uuid.to_string());
    // Nothing here holds limits; the record of one that had one is what matters.
    let mut json = record(&place(limited.uuid));
    json["content"]["container"]["size_limit"] = 10_000_000.into();
    rustix::fs::setxattr(
        place(limited.uuid),
        ATTRIBUTE,
        json.to_string().as_bytes(),
        rustix::fs::XattrFlags::REPLACE,
    )
    .expect("setxattr");
    fs::write(place(reset.uuid).join("fs/mine"), "x").expect("write");
    fs::create_dir(place(reset.uuid).join("fs.new")).expect("mkdir");
    fs::remove_file(world.root().join("index.lock")).expect("unlink");
    fs::remove_file(world.root().join("index.current")).expect("unlink");
    world.lose_index();
    set_schema(&world, 1);
    assert!(records(&world).values().all(|record| record.get("replacing").is_none()), "schema 1 didn't know it");
    world
}

/// What has to be there after any upgrade, however often it was cut short.
fn check(world: &World, before: &BTreeMap<PathBuf, Value>, image_files: &BTreeMap<String, Vec<u8>>) {
    let engine = world.engine();
    assert_eq!(identity(world)["schema"], SCHEMA);
    let mut names: Vec<_> = engine.containers().expect("list");
    names.sort_by_key(|record| record.name().map(str::to_string));
    let limits: Vec<_> = names
        .iter()
        .filter_map(|record| record.container())
        .map(|container| (container.name.as_str(), container.labels.len(), container.size_limit))
        .collect();
    assert_eq!(
        limits,
        [("limited", 0, Some(10_000_000)), ("many", 200, None), ("plain", 0, None), ("reset", 0, None)]
    );
    assert_eq!(&images(&world.root().join("images")), image_files);
    assert_eq!(engine.find_image("other:v1").expect("find").names.len(), 2);
    for (place, mut after) in records(world) {
        let replacing = after.as_object_mut().expect("an object").remove("replacing").is_some();
        assert_eq!((replacing, &after), (place.join("fs.new").exists(), &before[&place]));
    }
    // The copy is of what was there before.
    let backup = world.root().join("backup-schema-1");
    let copied: Value = serde_json::from_slice(&fs::read(backup.join("store.json")).expect("read")).expect("JSON");
    assert_eq!(copied["schema"], 1);
    assert_eq!(&images(&backup.join("images")), image_files);
    let copied: BTreeMap<String, String> =
        serde_json::from_slice(&fs::read(backup.join("records.json")).expect("read")).expect("JSON");
    assert_eq!(copied.len(), before.len());
    for (place, record) in before {
        let uuid = place.file_name().expect("name").to_string_lossy().into_owned();
        assert_eq!(&serde_json::from_str::<Value>(&copied[&uuid]).expect("JSON"), record);
    }
    // And it works: the reset that was cut short is settled by the next that writes.
    engine.rename_container("reset", "settled").expect("rename");
    let root = engine.container_root("settled").expect("root");
    assert!(root.join("mine").exists() && !root.with_file_name("fs.new").exists());
}

#[test]
fn an_older_store_is_upgraded_in_place_and_copied_first() {
    let world = schema_1();
    let (before, image_files) = (records(&world), images(&world.root().join("images")));
    check(&world, &before, &image_files);
    drop(world.engine());
    world.engine().destroy(false).expect("destroy");
    assert!(!world.root().exists(), "with the copy");
}

type Cut<'a> = &'a dyn Fn(&World);

#[test]
fn an_upgrade_cut_short_anywhere_is_begun_anew() {
    let cuts: [(&str, Cut); 4] = [
        ("in the copy", &|world| {
            let aside = world.root().join("backup-schema-1.new");
            fs::create_dir_all(aside.join("images")).expect("mkdir");
            fs::write(aside.join("store.json"), "{").expect("write");
        }),
        ("after the copy", &|world| {
            drop(world.engine());
            for place in places(world) {
                let mut json = record(&place);
                if json.as_object_mut().expect("an object").remove("replacing").is_some() {
                    let text = json.to_string();
                    let flags = rustix::fs::XattrFlags::REPLACE;
                    rustix::fs::setxattr(&place, ATTRIBUTE, text.as_bytes(), flags).expect("setxattr");
                }
            }
            set_schema(world, 1);
        }),
        ("before store.json", &|world| {
            drop(world.engine());
            set_schema(world, 1);
        }),
        ("twice", &|world| {
            for _ in 0..2 {
                drop(world.engine());
                set_schema(world, 1);
            }
        }),
    ];
    for (what, cut) in cuts {
        let world = schema_1();
        let (before, image_files) = (records(&world), images(&world.root().join("images")));
        cut(&world);
        let checked = std::panic::catch_unwind(|| check(&world, &before, &image_files));
        assert!(checked.is_ok(), "cut short {what}");
    }
}

#[test]
fn a_store_of_schema_2_is_taken_over_as_it_is() {
    let world = schema_1();
    drop(world.engine());
    set_schema(&world, 2);
    let before = records(&world);
    assert!(before.values().any(|record| record["replacing"] == true), "what schema 2 brought is in use");
    let engine = world.engine();
    assert_eq!((&identity(&world)["schema"], &records(&world)), (&SCHEMA.into(), &before));
    let copied = fs::read(world.root().join("backup-schema-2/records.json")).expect("read");
    assert_eq!(serde_json::from_slice::<BTreeMap<String, String>>(&copied).expect("JSON").len(), before.len());
    // And what schema 3 brought works in it.
    assert_eq!(engine.tend().expect("tend").made, 1);
    engine.create_container(CreateContainer { read_only: true, ..wanted("view") }).expect("create");
    let kinds: Vec<_> = records(&world).into_values().map(|record| record["content"].clone()).collect();
    assert!(kinds.iter().any(|content| content == "spare"));
    assert!(kinds.iter().any(|content| content["container"]["read_only"] == true));
    engine.remove_container("view", false).expect("rm");
}

#[test]
fn a_store_of_schema_3_is_taken_over_as_it_is() {
    let world = schema_1();
    let engine = world.engine();
    engine.tend().expect("tend");
    engine.create_container(CreateContainer { read_only: true, ..wanted("view") }).expect("create");
    drop(engine);
    set_schema(&world, 3);
    let before = records(&world);
    assert!(before.values().any(|record| record["content"] == "spare"), "what schema 3 brought is in use");
    let engine = world.engine();
    assert_eq!((&identity(&world)["schema"], &records(&world)), (&SCHEMA.into(), &before));
    assert!(world.root().join("backup-schema-3/records.json").exists());
    // And what schema 4 brought works in it, with containers that were made before.
    assert_eq!(engine.snapshot("plain", Some("s")).expect("snapshot"), "plain@s");
    engine.clone_container("plain@s", Some("twin")).expect("clone");
    let related: Vec<_> = records(&world).into_values().filter(|record| record["related"] == true).collect();
    assert_eq!(related.len(), 3, "the container, its snapshot and the clone of that");
    engine.roll_back("plain", "s", false, true).expect("rollback");
    engine.remove_container("plain", false).expect("rm");
    engine.remove_container("view", false).expect("rm");
}

#[test]
fn nobody_works_in_a_store_that_is_being_upgraded() {
    let world = World::with_base();
    let working = world.engine();
    set_schema(&world, 1);
    std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| world.try_open().map(|_| ()));
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(identity(&world)["schema"], 1, "it waits for the others");
        drop(working);
        upgrade.join().expect("join").expect("open");
    });
    assert_eq!(identity(&world)["schema"], SCHEMA);
    // Of several that find an older one, one upgrades it.
    set_schema(&world, 1);
    std::thread::scope(|scope| {
        let opens: Vec<_> = (0..8).map(|_| scope.spawn(|| world.try_open().map(|_| ()))).collect();
        opens.into_iter().for_each(|open| open.join().expect("join").expect("open"));
    });
}

#[test]
fn what_is_newer_or_older_than_all_we_know_is_refused_untouched() {
    for (schema, why) in [(SCHEMA + 1, "has schema"), (0, "older than all")] {
        let world = World::with_base();
        set_schema(&world, schema);
        let before = records(&world);
        let error = world.try_open().map(|_| ()).expect_err("refused");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(why) && error.hint().is_some(), "{error}");
        assert_eq!((identity(&world)["schema"].as_u64(), records(&world)), (Some(schema.into()), before));
        assert!(!world.root().join(format!("backup-schema-{schema}")).exists());
    }
    let world = World::with_base();
    fs::write(world.root().join("store.json"), "{").expect("write");
    assert_eq!(kind(world.try_open().map(|_| ())), Kind::Damaged);
    assert_eq!(kind(Identity::read(&world.root())), Kind::Damaged);
}
