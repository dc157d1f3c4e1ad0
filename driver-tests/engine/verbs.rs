//! Every verb: what it does, and what it leaves when it is refused.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use reflinkd::Kind;
use reflinkd::engine::container::CreateContainer;
use reflinkd::engine::image::Removed;
use reflinkd::engine::load::Silent;
use reflinkd::oci::{DiffId, ImageConfig};
use reflinkd::store::{Content, Lock, New, NewGroup, Owner};

use crate::fixture::{World, base, kind, wanted};
use crate::support::Process;
use crate::support::image::{Packing, TestImage, tar_of};

#[test]
fn create_clones_the_image_and_is_found_by_name_and_id() {
    let world = World::with_base();
    let labels = BTreeMap::from([("tier".to_string(), "web".to_string())]);
    let engine = world.engine();
    let created =
        engine.create_container(CreateContainer { labels: labels.clone(), ..wanted("web1") }).expect("create").record;
    let container = created.container().expect("a container");
    assert_eq!((container.labels.clone(), container.image.as_str()), (labels, "docker.io/library/base:latest"));
    let root = engine.container_root("web1").expect("root");
    assert_eq!(fs::read_to_string(root.join("etc/new")).expect("read"), "new\n");
    assert!(!root.join("etc/old").exists());
    for name in [&container.id[..], &container.id[..12], "web1"] {
        assert_eq!(world.engine().find_container(name).expect("find"), created);
    }
    for name in ["", "zz", "nothing", &"f".repeat(65)] {
        assert_eq!(kind(engine.find_container(name)), Kind::NotFound, "{name}");
    }
    let made_up = engine.create_container(CreateContainer { name: None, ..wanted("") }).expect("create").record;
    assert!(made_up.name().is_some_and(|name| !name.is_empty()));
}

#[test]
fn a_create_that_is_refused_leaves_nothing() {
    let world = World::with_base();
    world.create("web1");
    let engine = world.engine();
    let before = world.places();
    let taken = engine.create_container(wanted("web1")).expect_err("taken");
    assert_eq!(taken.kind(), Kind::Exists);
    assert!(taken.to_string().contains("the name web1 is taken by container"), "{taken}");
    let refused = [
        (wanted("a/b"), Kind::Invalid),
        (CreateContainer { image: "nothing".into(), ..wanted("b") }, Kind::NotFound),
        (CreateContainer { size_limit: Some(1000), ..wanted("b") }, Kind::Unsupported),
        (CreateContainer { size_limit: Some(0), ..wanted("b") }, Kind::Invalid),
    ];
    for (wanted, expected) in refused {
        assert_eq!(kind(engine.create_container(wanted.clone())), expected, "{wanted:?}");
    }
    // The clone itself fails: its image's tree is gone.
    let parent = engine.find_container("web1").expect("find").parent.expect("a parent");
    fs::rename(world.root().join(format!("snapshots/{parent}/fs")), world.root().join("aside")).expect("rename");
    assert_eq!(kind(engine.create_container(wanted("b"))), Kind::NotFound);
    assert_eq!((world.places(), world.names()), (before, vec!["web1".to_string()]));
}

#[test]
fn renaming_keeps_everything_else() {
    let world = World::with_base();
    let before = world.create("a");
    world.create("b");
    let engine = world.engine();
    assert_eq!(kind(engine.rename_container("a", "b")), Kind::Exists);
    assert_eq!(kind(engine.rename_container("a", "-")), Kind::Invalid);
    assert_eq!(kind(engine.rename_container("nothing", "c")), Kind::NotFound);
    engine.rename_container("a", "a").expect("to the name it has");
    engine.rename_container("a", "c").expect("rename");
    drop(engine);
    world.lose_index();
    assert_eq!(world.names(), ["c", "b"]);
    let after = world.engine().find_container("c").expect("find");
    assert_eq!((after.uuid, after.created, after.parent), (before.uuid, before.created, before.parent));
    world.create("a");
}

#[test]
fn many_labels_survive_renaming_and_the_loss_of_the_index() {
    let world = World::with_base();
    let labels: BTreeMap<_, _> = (0..200).map(|n| (format!("k{n}"), "v".repeat(100))).collect();
    let engine = world.engine();
    engine.create_container(CreateContainer { labels: labels.clone(), ..wanted("a") }).expect("create");
    engine.rename_container("a", "b").expect("rename");
    drop(engine);
    world.lose_index();
    let found = world.engine().find_container("b").expect("find");
    assert_eq!(found.container().expect("a container").labels, labels);
    world.engine().remove_container("b", false).expect("rm");
    assert_eq!(world.places(), 2, "the layers");
}

#[test]
fn reset_gives_the_image_back_at_the_same_path() {
    let world = World::with_base();
    let before = world.create("c");
    let engine = world.engine();
    let root = engine.container_root("c").expect("root");
    fs::write(root.join("mine"), "x").expect("write");
    fs::remove_file(root.join("etc/passwd")).expect("unlink");
    engine.reset_container("c", false).expect("reset");
    assert_eq!(engine.container_root("c").expect("root"), root);
    assert!(!root.join("mine").exists() && root.join("etc/passwd").exists());
    let after = engine.find_container("c").expect("find");
    assert_eq!((after.content.clone(), after.created), (before.content, before.created));
    // One that fails leaves the container as it was, and says why.
    fs::write(root.join("mine"), "x").expect("write");
    let parent = after.parent.expect("a parent");
    fs::rename(world.root().join(format!("snapshots/{parent}/fs")), world.root().join("aside")).expect("rename");
    let error = engine.reset_container("c", false).expect_err("no image");
    assert!(error.to_string().contains("there is no tree"), "{error}");
    assert_eq!(fs::read_to_string(root.join("mine")).expect("read"), "x");
    world.lose_index();
    assert_eq!(world.names(), ["c"]);
}

#[test]
fn rm_is_refused_while_a_process_is_in_it_and_loses_everything() {
    let world = World::with_base();
    world.create("c");
    let engine = world.engine();
    {
        let root = engine.container_root("c").expect("root");
        let _sleeper = Process::spawn(Command::new("sleep").arg("300").current_dir(root.join("etc")));
        let error = engine.remove_container("c", false).expect_err("in use");
        assert_eq!(error.kind(), Kind::InUse);
        assert!(error.to_string().contains("cannot remove container c: process"), "{error}");
        assert_eq!(kind(engine.reset_container("c", false)), Kind::InUse);
    }
    engine.remove_container("c", false).expect("rm");
    assert_eq!(kind(engine.remove_container("c", false)), Kind::NotFound);
    assert_eq!((world.places(), world.names().len()), (2, 0));
}

#[test]
fn a_load_that_fails_in_its_second_layer_collects_the_first() {
    let world = World::with_base();
    let (places, blobs) = (world.places(), world.blobs());
    let bad = TestImage::new("bad")
        .files(Packing::Gzip, &[("fine", b"fine")])
        .files(Packing::Gzip, &[("broken", b"broken")])
        .with_blob(1, b"this is no gzip".to_vec());
    let error = world.load(&bad).expect_err("broken");
    assert!(error.to_string().starts_with("cannot load image bad:latest: layer "), "{error}");
    assert_eq!((world.places(), world.blobs()), (places, blobs));
    assert_eq!(world.engine().images().expect("images").len(), 1);
    // With a good first layer that another image has, only what is new goes.
    let sharing = base().files(Packing::Gzip, &[("x", b"x")]).with_blob(2, b"nor this".to_vec());
    assert!(world.load(&sharing).is_err());
    assert_eq!(world.places(), places);
}

#[test]
fn a_layer_is_unpacked_once_whoever_brings_it() {
    let world = World::with_base();
    let mut more = base().files(Packing::Zstd, &[("more", b"more")]);
    more.name = "more".into();
    world.load(&more).expect("load");
    world.load(&more).expect("again");
    assert_eq!(world.places(), 3);
    let engine = world.engine();
    let (images, layers) = (engine.images().expect("images"), engine.layers().expect("layers"));
    assert_eq!(images.iter().map(|image| image.layers.len()).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(layers.iter().map(|layer| layer.images.len()).collect::<Vec<_>>(), [2, 2, 1]);
    // Imported twice, and the same as a loaded base layer: one tree.
    let tar = tar_of(&[("etc/", b""), ("etc/passwd", b"root\n"), ("etc/old", b"old")]);
    let import = |name: &str| {
        let config = |diff_id: &DiffId| ImageConfig::for_root_filesystem(*diff_id, "", &[]);
        let name = name.parse().expect("a name");
        let raw = Box::new(std::io::Cursor::new(tar.clone()));
        world.engine().import(raw, None, Some(&name), &config, &Silent).expect("import")
    };
    let (first, second) = (import("one"), import("two"));
    assert_eq!((first.top, world.places()), (second.top, 3));
    assert_eq!(first.top, Some(layers[0].record.uuid));
    world.lose_index();
    assert_eq!(world.engine().layers().expect("layers").len(), 3);
}

#[test]
fn tags_move_and_the_last_one_takes_the_image_along() {
    let world = World::with_base();
    let engine = world.engine();
    engine.tag("base", "other:v1").expect("tag");
    engine.tag("other:v1", "third").expect("tag");
    assert_eq!(kind(engine.tag("nothing", "x")), Kind::NotFound);
    assert_eq!(kind(engine.tag("base", "UPPER")), Kind::Invalid);
    let id = engine.find_image("base").expect("find").id;
    assert_eq!(kind(engine.remove_image(&id, false)), Kind::InUse, "it has several names");
    let untagged = |name: &str| Removed::Untagged(format!("docker.io/library/{name}"));
    assert_eq!(engine.remove_image("third", false).expect("rmi"), [untagged("third:latest")]);
    // The name goes to another image, and this one keeps the rest.
    world.load(&TestImage::new("other:v1").files(Packing::Plain, &[("x", b"x")])).expect("load");
    assert_ne!(engine.find_image("other:v1").expect("find").id, id);
    world.create("c");
    let error = engine.remove_image("base", false).expect_err("used");
    assert!(error.to_string().ends_with("containers are based on it: c"), "{error}");
    assert_eq!(engine.remove_image("base", true).expect("forced"), [untagged("base:latest")]);
    assert_eq!(engine.find_image(&id).expect("by its ID").names.len(), 0);
    engine.reset_container("c", false).expect("it still has its image");
    engine.remove_container("c", false).expect("rm");
    assert_eq!(engine.remove_image(&id[..20], false).expect("rmi"), [Removed::Deleted(id)]);
    assert_eq!((world.places(), world.blobs()), (1, 2), "the other image's");
}

#[test]
fn an_image_whose_container_is_being_made_stays() {
    let world = World::with_base();
    let image = world.engine().find_image("base").expect("find");
    let mut content = world.create("c").content;
    world.engine().remove_container("c", false).expect("rm");
    if let Content::Container(container) = &mut content {
        container.name = "coming".into();
    }
    let store = world.store();
    let draft =
        store.begin(New { owner: Owner::cli(), parent: image.top, group: NewGroup::Fresh, content }).expect("begin");
    let error = world.engine().remove_image("base", false).expect_err("used");
    assert!(error.to_string().ends_with("containers are based on it: coming"), "{error}");
    store.abandon(draft).expect("abandon");
    world.engine().remove_image("base", false).expect("rmi");
    assert_eq!(world.places(), 0);
}

#[test]
fn nothing_is_collected_while_somebody_loads() {
    let world = World::with_base();
    let store = world.store();
    let loading = store.lock_loads(Lock::Shared).expect("lock");
    world.engine().remove_image("base", false).expect("rmi");
    assert_eq!(world.places(), 2, "the load may count on its layers");
    drop(loading);
    let collected = world.engine().collect_garbage(false).expect("gc");
    assert_eq!(collected.garbage.iter().filter(|garbage| garbage.kind == "layer").count(), 2);
    assert_eq!(world.places(), 0);
}

#[test]
fn sizes_are_of_those_that_are_there() {
    let world = World::with_base();
    let (a, b) = (world.create("a"), world.create("b"));
    let engine = world.engine();
    fs::write(engine.container_root("a").expect("root").join("x"), vec![1; 8192]).expect("write");
    world.engine().remove_container("b", false).expect("rm");
    let want = reflinkd::backend::Want { sync: true, apparent: true };
    let sized = engine.sizes(vec![a.clone(), b], want).expect("sizes");
    assert_eq!(sized.len(), 1, "the other one was removed since it was listed");
    let image = engine.images().expect("images")[0].size;
    assert_eq!((sized[0].0.uuid, sized[0].1.size, sized[0].1.virtual_size), (a.uuid, 8192, image + 8192));
    let usage = engine.usage(true).expect("usage");
    assert_eq!((usage.total, usage.containers.len()), (image + 8192 + world.recipes(), 1));
}

#[test]
fn a_store_in_use_is_not_destroyed_and_one_half_destroyed_can_be() {
    let world = World::with_base();
    world.create("c");
    let other = world.engine();
    assert_eq!(kind(world.engine().destroy(false)), Kind::InUse);
    assert_eq!(world.names(), ["c"]);
    drop(other);
    // Cut short before its last step.
    for directory in ["images", "blobs", "snapshots"] {
        fs::remove_dir_all(world.root().join(directory)).expect("remove");
    }
    world.lose_index();
    assert!(world.names().is_empty());
    world.engine().destroy(false).expect("destroy");
    assert!(!world.root().exists());
}
