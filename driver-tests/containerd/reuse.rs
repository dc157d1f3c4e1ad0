//! Layers of the command line in place of ones that would have to be unpacked again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::Code;

use crate::api::services::diff::v1::diff_client::DiffClient;
use crate::api::types::{Descriptor, Mount};
use crate::diffs::{diff_of, files};
use crate::serve::{Serve, TAR, apply_request, fails, in_namespace};
use crate::snapshots::at;
use crate::support::image::{Packing, TestImage, sha256, tar_of};
use crate::support::{MIB, QuotaSetup, random_bytes};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    a_layer_that_is_there_is_shared
    what_isnt_that_layer_is_never_taken_for_it
    what_is_no_clone_of_its_parent_is_unpacked
    what_was_written_over_it_is_kept
    a_server_that_is_killed_leaves_one_of_the_two_trees
}

const REUSE: &str = "[containerd.default]\nreuse = [\"cli\"]\n";
const REF: &str = "containerd.io/snapshot.ref";
/// So much is written if a layer is unpacked; sharing it takes metadata alone.
const LAYER: u64 = 16 * MIB;

/// Two layers, in the store and in the content store.
struct Image {
    layers: Vec<Layer>,
}

struct Layer {
    tar: Vec<u8>,
    chain: String,
    /// The digest of its large file.
    content: String,
}

fn loaded(world: &World) -> Image {
    let [first, second] = [random_bytes(LAYER), random_bytes(LAYER)];
    let image = TestImage::new("base")
        .files(Packing::Gzip, &[("etc/", b""), ("etc/old", b"old"), ("etc/kept", b"kept"), ("first", &first)])
        .files(Packing::Gzip, &[("etc/", b""), ("etc/.wh.old", b""), ("etc/kept", b"new"), ("second", &second)]);
    world.load(&image);
    let mut chain: Option<String> = None;
    let layers = image.layers.into_iter().zip([first, second]).map(|(layer, large)| {
        let diff_id = format!("sha256:{}", sha256(&layer.tar));
        let next = match &chain {
            Some(parent) => format!("sha256:{}", sha256(format!("{parent} {diff_id}").as_bytes())),
            None => diff_id,
        };
        chain = Some(next.clone());
        Layer { tar: layer.tar, chain: next, content: sha256(&large) }
    });
    Image { layers: layers.collect() }
}

/// Prepare as containerd's unpacker does.
fn prepare(serve: &Serve, layer: &Layer, parent: &str) -> Mount {
    serve.prepare_with("extract", parent, &[(REF, &layer.chain)]).expect("prepare")
}

fn unpack(serve: &Serve, layer: &Layer, parent: &str) -> Descriptor {
    let mount = prepare(serve, layer, parent);
    let applied = serve.apply(&serve.store.add(TAR, &layer.tar), &mount).expect("apply");
    assert_eq!(serve.mounts("extract").expect("mounts"), mount, "it stays where it is");
    serve.commit(&layer.chain, "extract").expect("commit");
    applied
}

/// Bytes that the filesystem has more afterwards.
fn grown(world: &World, work: impl FnOnce()) -> u64 {
    let before = world.used();
    work();
    world.used().saturating_sub(before)
}

/// What a tree has by path, without its root's own facts.
fn facts(root: &Path) -> BTreeMap<PathBuf, (u32, (i64, i64), u64, String)> {
    let (mut found, mut directories) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("readdir") {
            let path = entry.expect("readdir").path();
            let facts = fs::symlink_metadata(&path).expect("stat");
            let content = if facts.is_dir() { String::new() } else { sha256(&fs::read(&path).expect("read")) };
            let length = if facts.is_dir() { 0 } else { facts.len() };
            let below = path.strip_prefix(root).expect("below").to_path_buf();
            found.insert(below, (facts.mode(), (facts.mtime(), facts.mtime_nsec()), length, content));
            if facts.is_dir() {
                directories.push(path);
            }
        }
    }
    found
}

fn names_in(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("a tar").map(|entry| entry.expect("an entry"));
    let mut names: Vec<String> =
        entries.map(|entry| entry.path().expect("a path").to_string_lossy().trim_matches('/').to_string()).collect();
    names.retain(|name| !name.trim_matches('.').is_empty());
    names.sort();
    names
}

fn a_layer_that_is_there_is_shared(ground: Ground) {
    let world = World::on(ground);
    let image = loaded(&world);
    let serve = Serve::start_with(&world, REUSE);
    let [first, second] = &image.layers[..] else { panic!("two layers") };
    let new = grown(&world, || {
        for (layer, parent) in [(first, ""), (second, first.chain.as_str())] {
            let applied = unpack(&serve, layer, parent);
            assert_eq!(applied.digest, format!("sha256:{}", sha256(&layer.tar)));
            assert_eq!(applied.size, i64::try_from(layer.tar.len()).expect("small"));
        }
    });
    assert!(new < LAYER / 2, "{new} bytes more");
    let info = serve.stat(&second.chain).expect("stat");
    assert_eq!((info.parent.as_str(), info.labels.len()), (first.chain.as_str(), 0));

    // What is in it.
    world.ok(&["create", "--image", "base", "same"]);
    let container = serve.prepare("container", &second.chain).expect("prepare");
    assert_eq!(facts(container.source.as_ref()), facts(&world.tree("same")));
    world.ok(&["rm", "same"]);

    // What it has beyond its parent, as a layer that was unpacked: bytes, inodes, and the changes themselves.
    let sizes = [first, second].map(|layer| serve.usage(&layer.chain).expect("usage"));
    assert!(sizes.iter().all(|usage| (LAYER as i64..2 * LAYER as i64).contains(&usage.size)), "{sizes:?}");
    assert_eq!(sizes.map(|usage| usage.inodes), [4, 3], "what their tars have");
    let view = |name: &str, of: &str| serve.view(name, of).expect("view");
    let (one, two) = (view("one", &first.chain), view("two", &second.chain));
    let layer = serve.diff(diff_of(&[&one], &two, TAR)).expect("diff");
    assert_eq!(names_in(&serve.store.blob(&layer.digest).0), ["etc", "etc/.wh.old", "etc/kept", "second"]);
    if ground.filesystem() == "btrfs" {
        let born = |mount: &Mount| fs::metadata(&mount.source).and_then(|facts| facts.created()).expect("statx");
        assert_eq!(born(&one), born(&two), "from one tree, so SEND tells them apart");
    }
    fs::write(at(&container, "etc/mine"), "mine").expect("write");
    let layer = serve.diff(diff_of(&[&two], &container, TAR)).expect("diff");
    assert_eq!(names_in(&serve.store.blob(&layer.digest).0), ["etc", "etc/mine"]);
    assert!(serve.usage("container").expect("usage").size < 1 << 20);

    // What both have counts once.
    let df = |field: &str| bytes(&world.row(&["df"], "total"), field);
    let shared = bytes(&world.row(&["df"], "shared"), "size");
    assert!(shared >= 2 * LAYER, "{shared}");
    let together = df("size");
    assert!((2 * LAYER..3 * LAYER).contains(&together), "{together}");

    // The other owner removes it.
    world.ok(&["rmi", "base"]);
    world.ok(&["gc"]);
    serve.cleanup().expect("cleanup");
    assert!(world.rows(&["layers"]).iter().all(|row| row["owner"] != "cli"), "{:?}", world.rows(&["layers"]));
    assert!(facts(container.source.as_ref())[Path::new("second")].2 == LAYER, "its clones have it still");
    assert_eq!(sizes[1], serve.usage(&second.chain).expect("usage"));
    assert_eq!(bytes(&world.row(&["df"], "shared"), "size"), 0);
    let alone = df("size");
    assert!((2 * LAYER..3 * LAYER).contains(&alone), "{alone}");
    assert_eq!(world.rows(&["gc", "--dry-run"]).len(), 0, "nothing of it is a leftover");

    // And so do we.
    for key in ["container", "one", "two", &second.chain, &first.chain] {
        serve.remove(key).expect("remove");
    }
    serve.cleanup().expect("cleanup");
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.remains().len()), (0, 0), "{:?}", world.remains());
}

fn what_isnt_that_layer_is_never_taken_for_it(ground: Ground) {
    let world = World::on(ground);
    let image = loaded(&world);
    let [first, second] = &image.layers[..] else { panic!("two layers") };
    let serve = Serve::start_with(&world, REUSE);
    // Another tar than the label promises.
    let mount = prepare(&serve, first, "");
    let other = serve.store.add(TAR, &second.tar);
    let said = fails(serve.apply(&other, &mount), Code::InvalidArgument);
    assert!(said.contains(&other.digest) && said.contains(&first.chain) && said.contains("hint: "), "{said}");
    assert!(files(&mount).is_empty(), "nothing was unpacked");
    // One that breaks off.
    let right = serve.store.add(TAR, &first.tar);
    serve.store.state().break_reads_after = Some(1 << 20);
    let said = serve.apply(&right, &mount).expect_err("it breaks off");
    assert!(said.message().contains("input/output error"), "{said}");
    assert!(files(&mount).is_empty(), "nothing was unpacked");
    serve.store.state().break_reads_after = None;
    // Another can be applied all the same.
    let new = grown(&world, || {
        serve.apply(&right, &mount).expect("apply");
        serve.commit(&first.chain, "extract").expect("commit");
    });
    assert!(new < LAYER / 2, "{new} bytes more");
    assert_eq!(files(&serve.view("v", &first.chain).expect("view")), ["etc", "first"]);

    // Who says of a snapshot of his own that it is that layer.
    let chain = second.chain.as_str();
    let evil = serve.prepare_with("evil", &first.chain, &[(REF, chain)]).expect("prepare");
    fs::write(at(&evil, "evil"), "evil").expect("write");
    serve.commit_with(chain, "evil", &[(REF, chain)]).expect("commit");
    let good = serve.prepare_with("good", &first.chain, &[(REF, chain)]).expect("prepare");
    serve.apply(&other, &good).expect("apply");
    assert_eq!(files(&good), ["etc", "first", "second"]);
    // Who names what nobody has.
    let none = serve.prepare_with("none", "", &[(REF, "sha256:00")]).expect("prepare");
    serve.apply(&right, &none).expect("apply");
    assert_eq!(files(&none), ["etc", "first"]);
}

fn what_is_no_clone_of_its_parent_is_unpacked(ground: Ground) {
    let world = World::on(ground);
    let image = loaded(&world);
    let [first, second] = &image.layers[..] else { panic!("two layers") };
    // Where it isn't asked for.
    let serve = Serve::start(&world);
    assert!(grown(&world, || drop(unpack(&serve, first, ""))) >= LAYER);
    drop(serve);
    let serve = Serve::start_with(&world, REUSE);
    // On a parent of our own.
    assert!(grown(&world, || drop(unpack(&serve, second, &first.chain))) >= LAYER);
    // Written to before: by a mount that has nothing to do with us.
    let written: fn(&Mount) = |mount| fs::write(at(mount, "mine"), "mine").expect("write");
    let given_away: fn(&Mount) = |mount| std::os::unix::fs::chown(&mount.source, Some(7), None).expect("chown");
    for (what, touch) in [("a file", written), ("its root", given_away)] {
        let mount = serve.prepare_with("touched", "", &[(REF, &first.chain)]).expect("prepare");
        touch(&mount);
        let layer = serve.store.add(TAR, &first.tar);
        let new = grown(&world, || {
            serve.apply(&layer, &mount).expect("apply");
            serve.commit("touched, committed", "touched").expect("commit");
        });
        assert!(new >= LAYER, "{what}: {new}");
        let view = serve.view("v", "touched, committed").expect("view");
        assert_eq!(files(&view).contains(&"mine".to_string()), what == "a file");
        assert_eq!(fs::metadata(&view.source).expect("stat").uid(), if what == "its root" { 7 } else { 0 });
        for key in ["v", "touched, committed"] {
            serve.remove(key).expect("remove");
        }
        world.ok(&["gc"]);
    }
    // By another differ, into its mounts.
    let mount = prepare(&serve, first, "");
    tar::Archive::new(&first.tar[..]).unpack(&mount.source).expect("unpack");
    serve.commit("by another", "extract").expect("commit");
    assert_eq!(files(&serve.view("v", "by another").expect("view")), ["etc", "first"]);
    // And nothing is reused on that.
    serve.remove(&second.chain).expect("remove");
    assert!(grown(&world, || drop(unpack(&serve, second, "by another"))) >= LAYER);
}

fn what_was_written_over_it_is_kept(ground: Ground) {
    let world = World::on(ground);
    let image = loaded(&world);
    let [first, second] = &image.layers[..] else { panic!("two layers") };
    let serve = Serve::start_with(&world, REUSE);
    let mount = prepare(&serve, first, "");
    serve.apply(&serve.store.add(TAR, &first.tar), &mount).expect("apply");
    let before = serve.usage("extract").expect("usage");
    assert!((LAYER as i64..2 * LAYER as i64).contains(&before.size), "{before:?}");
    // A further layer into the same snapshot is unpacked, whatever its label says.
    let more = random_bytes(8 * MIB);
    serve.apply(&serve.store.add(TAR, &tar_of(&[("more", &more)])), &mount).expect("apply");
    let after = serve.usage("extract").expect("usage");
    assert!(after.size >= before.size + 8 * MIB as i64 && after.inodes > before.inodes, "{after:?}");
    serve.commit(&first.chain, "extract").expect("commit");
    assert!(serve.usage(&first.chain).expect("usage").size >= (LAYER + 8 * MIB) as i64);
    assert!(fs::read(at(&serve.view("v", &first.chain).expect("view"), "more")).expect("read") == more);
    // It is that layer no more, and nothing is reused on it.
    assert!(grown(&world, || drop(unpack(&serve, second, &first.chain))) >= LAYER);
    let both = serve.view("both", &second.chain).expect("view");
    assert_eq!(files(&both), ["etc", "first", "more", "second"]);
}

/// Whenever that is: the snapshot is there, is nothing or all of the layer, and goes on from there.
fn a_server_that_is_killed_leaves_one_of_the_two_trees(ground: Ground) {
    const KILLS: u64 = 12;
    let world = World::on(ground);
    let image = loaded(&world);
    let first = &image.layers[0];
    let mut serve = Serve::start_with(&world, REUSE);
    for kill in 0..KILLS {
        let mount = prepare(&serve, first, "");
        let layer = serve.store.add(TAR, &first.tar);
        let (channel, request) = (serve.another_channel(), apply_request(&layer, &mount));
        let begun = serve.begin(async move { DiffClient::new(channel).apply(in_namespace(request)).await.map(drop) });
        // Spread over what it does; each moment is as good as another.
        std::thread::sleep(Duration::from_millis(kill * 20));
        let done = begun.is_finished();
        serve = serve.killed_and_started(&world);
        assert_eq!(serve.mounts("extract").expect("mounts"), mount);
        let whole = files(&mount) == ["etc", "first"];
        assert!(whole || files(&mount).is_empty() && !done, "{:?}", files(&mount));
        assert!(!whole || sha256(&fs::read(at(&mount, "first")).expect("read")) == first.content);
        let layer = serve.store.add(TAR, &first.tar);
        serve.apply(&layer, &mount).expect("apply again");
        serve.commit(&first.chain, "extract").expect("commit");
        assert_eq!(files(&serve.view("v", &first.chain).expect("view")), ["etc", "first"]);
        for key in ["v", &first.chain] {
            serve.remove(key).expect("remove");
        }
    }
    serve.cleanup().expect("cleanup");
    world.ok(&["gc"]);
    world.ok(&["rmi", "base"]);
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.remains().len()), (0, 0), "{:?}", world.remains());
}

#[test]
fn a_layer_that_is_there_is_shared_with_full_quotas() {
    a_layer_that_is_there_is_shared(Ground::Btrfs(QuotaSetup::Full));
}

#[test]
fn a_layer_that_is_there_is_shared_without_quotas() {
    a_layer_that_is_there_is_shared(Ground::Btrfs(QuotaSetup::None));
}

/// A limit is on what a snapshot takes, whoever has it, too.
#[test]
fn what_has_a_limit_is_unpacked() {
    let world = World::simple();
    let image = loaded(&world);
    let serve = Serve::start_with(&world, REUSE);
    let given = [(REF, image.layers[0].chain.as_str()), ("containerd.io/snapshot/max-size", "1000000")];
    let mount = serve.prepare_with("limited", "", &given).expect("prepare");
    fails(serve.apply(&serve.store.add(TAR, &image.layers[0].tar), &mount), Code::ResourceExhausted);
}
