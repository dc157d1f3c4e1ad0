//! Trees of Docker's that no layer database names, told from those that one does.

use std::fs;
use std::path::{Path, PathBuf};

use reflinkd::engine::Engine;
use reflinkd::engine::docker::Client;
use reflinkd::engine::gc::Collected;
use reflinkd::engine::keyed::NewKeyed;
use reflinkd::layer::IdMaps;
use reflinkd::store::Stage;

use crate::fixture::World;
use crate::support::image::tar_of;

const L1: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const L2: &str = "2222222222222222222222222222222222222222222222222222222222222222";
const L3: &str = "3333333333333333333333333333333333333333333333333333333333333333";
const C: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";
const C_INIT: &str = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc-init";

/// A data root with an empty layer database, as dockerd makes it when it begins.
struct DataRoot(PathBuf);

impl DataRoot {
    fn new(world: &World, name: &str) -> Self {
        let root = Self(world.root().with_file_name(name));
        fs::create_dir_all(root.database()).expect("mkdir");
        root
    }

    fn home(&self) -> PathBuf {
        self.0.join("reflinkd")
    }

    fn database(&self) -> PathBuf {
        self.0.join("image/reflinkd/layerdb")
    }

    fn write(&self, path: &str, key: &str) {
        let path = self.database().join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        fs::write(path, key).expect("write");
    }

    fn knows_layer(&self, key: &str) {
        self.write(&format!("sha256/{}/cache-id", key.chars().rev().collect::<String>()), key);
    }

    /// dockerd begins with it.
    fn begins(&self, world: &World) {
        begins(world, &self.home());
    }
}

fn begins(world: &World, home: &Path) {
    let engine = world.engine();
    let client = engine.docker_client().expect("client").next(home.to_path_buf(), None, IdMaps::default());
    engine.set_docker_client(&client).expect("begin");
}

fn client(engine: &Engine) -> Client {
    engine.docker_client().expect("client")
}

/// Load a layer, as the dockerd that began last.
fn load(world: &World, key: &str, parent: Option<&str>) {
    let engine = world.engine();
    let client = client(&engine);
    let trees = engine.docker_trees(&client);
    trees.reserve(&NewKeyed { key, parent, ..NewKeyed::default() }).expect("create");
    trees.apply(key, parent, &mut &tar_of(&[("file", b"content")])[..]).expect("apply");
}

fn prepare(world: &World, key: &str, parent: Option<&str>) {
    let engine = world.engine();
    let client = client(&engine);
    engine.docker_trees(&client).prepare(&NewKeyed { key, parent, ..NewKeyed::default() }).expect("create");
}

fn keys(world: &World) -> Vec<String> {
    let engine = world.engine();
    let client = client(&engine);
    let trees = engine.docker_trees(&client).list().expect("list");
    let mut keys: Vec<_> = trees.iter().map(|record| record.key().expect("a key").into_owned()).collect();
    keys.sort();
    keys
}

/// What `gc` names, having said the same before with `--dry-run`.
fn collect(world: &World) -> Collected {
    let before = keys(world);
    let named = world.engine().collect_garbage(true).expect("gc --dry-run").garbage;
    assert_eq!(keys(world), before, "a dry run removes nothing");
    let collected = world.engine().collect_garbage(false).expect("gc");
    assert_eq!(collected.garbage, named);
    assert!(named.iter().all(|garbage| garbage.kind == "docker-layer"), "{named:?}");
    collected
}

/// The keys that `gc` names, in this order. It can tell of all.
fn collected(world: &World) -> Vec<String> {
    let collected = collect(world);
    assert!(collected.unknown.is_empty(), "{:?}", collected.unknown);
    collected.garbage.into_iter().map(|garbage| garbage.id).collect()
}

#[test]
fn what_an_earlier_dockerd_did_not_write_down_is_cleared_children_first() {
    let (world, none) = (World::new(), Vec::<String>::new());
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    data.knows_layer(L1);
    load(&world, L2, Some(L1));
    load(&world, L3, Some(L2));
    assert_eq!(collected(&world), none, "the present one may be about to write it down");
    data.begins(&world);
    assert_eq!(collected(&world), [L3, L2]);
    assert_eq!((keys(&world), world.places()), (vec![L1.to_string()], 1));
    assert_eq!(collected(&world), none);
}

#[test]
fn what_others_are_based_on_stays() {
    let world = World::new();
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    load(&world, L2, Some(L1));
    load(&world, L3, None);
    data.knows_layer(L2);
    data.begins(&world);
    // Made since.
    prepare(&world, C, Some(L3));
    assert_eq!(collected(&world), Vec::<String>::new());
    data.begins(&world);
    assert_eq!(collected(&world), [C, L3]);
    assert_eq!(keys(&world), [L1, L2]);
}

#[test]
fn a_container_is_known_by_its_own_key_or_by_its_init_layers() {
    for file in ["mount-id", "init-id"] {
        let world = World::new();
        let data = DataRoot::new(&world, "docker");
        data.begins(&world);
        load(&world, L1, None);
        data.knows_layer(L1);
        prepare(&world, C_INIT, Some(L1));
        prepare(&world, C, Some(C_INIT));
        assert_eq!(keys(&world), [L1, C], "one tree for both");
        let key = if file == "mount-id" { C } else { C_INIT };
        data.write(&format!("mounts/web/{file}"), &format!("{key}\n"));
        data.begins(&world);
        assert_eq!(collected(&world), Vec::<String>::new(), "{file}");
        fs::remove_dir_all(data.database().join("mounts")).expect("docker rm");
        assert_eq!(collected(&world), [C]);
        assert_eq!(keys(&world), [L1]);
    }
}

#[test]
fn trees_of_every_stage_are_cleared_with_what_they_take() {
    let world = World::new();
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    prepare(&world, C, None);
    let engine = world.engine();
    let client = client(&engine);
    let reserved = NewKeyed { key: L2, ..NewKeyed::default() };
    engine.docker_trees(&client).reserve(&reserved).expect("create");
    let stages = engine.docker_trees(&client).list().expect("list");
    let stages = stages.iter().map(|record| record.keyed().expect("keyed").stage.clone());
    assert_eq!(stages.filter(|stage| matches!(stage, Stage::Committed { .. })).count(), 1);
    data.begins(&world);
    let garbage = collect(&world).garbage;
    assert_eq!(garbage.len(), 3);
    assert!(
        garbage.iter().all(|garbage| garbage.size.is_some() && garbage.reason.contains("dockerd")),
        "{garbage:?}"
    );
    assert_eq!(world.places(), 0);
}

#[test]
fn transactions_that_were_never_committed_or_are_being_undone_know_nothing() {
    let world = World::new();
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    load(&world, L2, None);
    data.write("tmp/write-set-123/cache-id", L1);
    data.write("sha256/00ff-aabb-removing/cache-id", L2);
    // What a crash left half made.
    data.write("mounts/web/parent", "sha256:00ff");
    data.write("mounts/db/mount-id", "");
    data.begins(&world);
    let mut cleared = collected(&world);
    cleared.sort();
    assert_eq!(cleared, [L1, L2]);
}

#[test]
fn build_kits_layers_are_known_to_its_own_database() {
    let world = World::new();
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, "abcdefghijklmnopqrstuvwxy", None);
    load(&world, "bcdefghijklmnopqrstuvwxyz", None);
    fs::create_dir(data.0.join("buildkit")).expect("mkdir");
    fs::write(data.0.join("buildkit/snapshots.db"), b"\0\xffabcdefghijklmnopqrstuvwxy\0committed").expect("write");
    data.begins(&world);
    assert_eq!(collected(&world), ["bcdefghijklmnopqrstuvwxyz"]);
}

#[test]
fn where_nothing_can_be_told_nothing_is_removed() {
    let world = World::new();
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    data.begins(&world);
    fs::rename(&data.0, data.0.with_file_name("aside")).expect("rename");
    let told = collect(&world);
    assert!(told.garbage.is_empty(), "{told:?}");
    let [unknown] = &told.unknown[..] else { panic!("{told:?}") };
    let database = data.database().display().to_string();
    assert!(unknown.to_string().contains(&database) && !unknown.to_string().contains('\n'), "{unknown}");
    assert!(unknown.hint().is_some_and(|hint| hint.contains(&database)), "{unknown:?}");
    // A file where a directory should be.
    fs::create_dir_all(data.database().parent().expect("a directory")).expect("mkdir");
    fs::write(data.database(), "").expect("write");
    assert_eq!(collect(&world).unknown.len(), 1);
    // As the hint says.
    fs::remove_file(data.database()).expect("unlink");
    fs::create_dir(data.database()).expect("mkdir");
    assert_eq!(collected(&world), [L1]);
}

#[test]
fn a_home_of_another_shape_tells_nothing() {
    for home in ["/", "", "reflinkd", "relative/reflinkd"] {
        let world = World::new();
        begins(&world, Path::new(home));
        load(&world, L1, None);
        begins(&world, Path::new(home));
        let told = collect(&world);
        assert_eq!((told.garbage.len(), told.unknown.len()), (0, 1), "{home}");
        assert_eq!(keys(&world), [L1]);
    }
}

#[test]
fn trees_are_judged_by_the_layer_database_of_their_own_home() {
    let world = World::new();
    let (plain, mapped) = (DataRoot::new(&world, "docker"), DataRoot::new(&world, "docker/100000.100000"));
    plain.begins(&world);
    load(&world, L1, None);
    plain.knows_layer(L1);
    load(&world, L2, None);
    mapped.begins(&world);
    load(&world, L3, None);
    mapped.knows_layer(L3);
    prepare(&world, C, Some(L3));
    // Only where it doesn't belong.
    mapped.knows_layer(L2);
    plain.knows_layer(C);
    plain.begins(&world);
    let homes = client(&world.engine()).homes.into_iter().map(|home| home.path).collect::<Vec<_>>();
    assert_eq!(homes, [plain.home(), mapped.home()]);
    let mut cleared = collected(&world);
    cleared.sort();
    assert_eq!(cleared, [L2, C]);
    assert_eq!(keys(&world), [L1, L3]);
    // One that isn't there keeps its own trees, and no others.
    load(&world, L2, None);
    mapped.begins(&world);
    fs::remove_dir_all(&mapped.0).expect("remove");
    let told = collect(&world);
    assert_eq!((told.garbage.len(), told.unknown.len()), (1, 1), "{told:?}");
    assert_eq!(keys(&world), [L1, L3]);
}

#[test]
fn spares_that_are_made_meanwhile_go_with_their_layer() {
    let world = World::new().keeping(1);
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    load(&world, L1, None);
    prepare(&world, C, Some(L1));
    assert_eq!(world.double().tend().expect("tend").made, 1);
    data.begins(&world);
    let engine = world.double();
    let orphans = engine.docker_orphans().expect("orphans").trees;
    assert_eq!(engine.remove_orphans(orphans).expect("remove").len(), 2);
    assert_eq!(world.places(), 0);
}

#[test]
fn what_the_command_line_made_is_nobody_elses() {
    let world = World::with_base();
    world.create("web1");
    let data = DataRoot::new(&world, "docker");
    data.begins(&world);
    data.begins(&world);
    assert!(collected(&world).is_empty());
    assert_eq!(world.names(), ["web1"]);
}

#[test]
fn a_data_root_that_is_not_mounted_makes_orphans_of_none() {
    let world = World::new();
    let root = DataRoot::new(&world, "docker");
    root.begins(&world);
    load(&world, L1, None);
    root.begins(&world);
    assert_eq!(world.engine().docker_orphans().expect("look").trees.len(), 1, "no dockerd knows it");
    // What is at the path now is empty, too, but isn't what was there.
    let engine = world.engine();
    let mut moved = engine.docker_client().expect("client");
    moved.homes[0].filesystem ^= 1;
    engine.set_docker_client(&moved).expect("set");
    let orphans = engine.docker_orphans().expect("look");
    assert!(orphans.trees.is_empty());
    assert!(orphans.unknown[0].to_string().contains("another filesystem"), "{}", orphans.unknown[0]);
}
