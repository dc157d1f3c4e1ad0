//! One clear error, exit code 1, nothing outside touched, nothing left behind.

use std::collections::BTreeMap;
use std::fs;

use crate::support::image::{Packing, TestImage, pack, sha256, tar_of};
use crate::support::{MB, random_bytes};
use crate::world::{World, base_image};

/// Change the files of a good layout.
type Spoil = fn(&TestImage, &mut BTreeMap<String, Vec<u8>>);

fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(bytes))
}

/// Replace a blob and everything that names it, so that only what is meant is wrong.
fn replace_manifest(
    files: &mut BTreeMap<String, Vec<u8>>,
    image: &TestImage,
    change: impl Fn(&mut serde_json::Value),
) {
    let old = image.manifest_bytes();
    let mut manifest: serde_json::Value = serde_json::from_slice(&old).expect("JSON");
    change(&mut manifest);
    let new = serde_json::to_vec(&manifest).expect("JSON");
    files.remove(&blob(&old));
    let mut index: serde_json::Value = serde_json::from_slice(&files["index.json"]).expect("JSON");
    index["manifests"][0]["digest"] = format!("sha256:{}", sha256(&new)).into();
    index["manifests"][0]["size"] = new.len().into();
    files.insert(blob(&new), new);
    files.insert("index.json".into(), serde_json::to_vec(&index).expect("JSON"));
}

fn replace_layer(files: &mut BTreeMap<String, Vec<u8>>, image: &TestImage, new: &[u8]) {
    files.remove(&blob(&image.layers[0].blob));
    files.insert(blob(new), new.to_vec());
    replace_manifest(files, image, |manifest| {
        manifest["layers"][0]["digest"] = format!("sha256:{}", sha256(new)).into();
        manifest["layers"][0]["size"] = new.len().into();
    });
}

#[test]
fn damaged_images_are_refused_and_leave_nothing() {
    let spoils: &[(&str, Spoil)] = &[
        ("layer blob damaged", |image, files| {
            let layer = files.get_mut(&blob(&image.layers[0].blob)).expect("layer");
            let middle = layer.len() / 2;
            layer[middle] ^= 0xff;
        }),
        ("layer blob truncated", |image, files| {
            let layer = files.get_mut(&blob(&image.layers[0].blob)).expect("layer");
            layer.truncate(layer.len() / 2);
        }),
        ("layer blob missing", |image, files| {
            files.remove(&blob(&image.layers[0].blob));
        }),
        ("size of a layer", |image, files| {
            replace_manifest(files, image, |manifest| manifest["layers"][0]["size"] = 7.into());
        }),
        ("gzip truncated, digest right", |image, files| {
            let half = image.layers[0].blob[..image.layers[0].blob.len() / 2].to_vec();
            replace_layer(files, image, &half);
        }),
        ("another layer than the config says", |image, files| {
            replace_layer(files, image, &tar_of(&[("other", b"other")]));
        }),
        ("tar truncated", |image, files| {
            let tar = tar_of(&[("file", &[7; 5000])]);
            replace_layer(files, image, &tar[..3000]);
        }),
        ("fewer layers than diff IDs", |image, files| {
            replace_manifest(files, image, |manifest| {
                manifest["layers"].as_array_mut().expect("layers").pop();
            });
        }),
        ("config damaged", |image, files| {
            files.insert(blob(&image.config_bytes()), b"{}".to_vec());
        }),
        ("config missing", |image, files| {
            files.remove(&blob(&image.config_bytes()));
        }),
        ("digest with slashes", |image, files| {
            replace_manifest(files, image, |manifest| {
                manifest["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into();
            });
        }),
        ("index that is no JSON", |_, files| {
            files.insert("index.json".into(), b"{\"manifests\": [".to_vec());
        }),
        ("manifest nested too deeply", |_, files| {
            let deep = format!("{{\"manifests\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
            files.insert("index.json".into(), deep.into_bytes());
        }),
        ("manifest of 100 MB", |_, files| {
            let mut index = br#"{"schemaVersion":2,"manifests":[],"x":""#.to_vec();
            index.resize(100_000_000, b'x');
            index.extend(b"\"}");
            files.insert("index.json".into(), index);
        }),
        ("nothing in it", |_, files| {
            files.insert("index.json".into(), br#"{"schemaVersion":2,"manifests":[]}"#.to_vec());
        }),
        ("another platform", |image, files| {
            let mut index: serde_json::Value = serde_json::from_slice(&files["index.json"]).expect("JSON");
            index["manifests"][0]["platform"] = serde_json::json!({ "os": "plan9", "architecture": "mips" });
            files.insert("index.json".into(), serde_json::to_vec(&index).expect("JSON"));
            let _ = image;
        }),
    ];
    let world = World::simple().with_base();
    let (places, trees) = (world.places(), world.all_trees());
    let image = TestImage::new("bad")
        .files(Packing::Gzip, &[("file", &random_bytes(100_000))])
        .files(Packing::Gzip, &[("second", b"2")]);
    let path = world.files.path().join("bad.tar");
    for (what, spoil) in spoils {
        let mut files = image.layout();
        spoil(&image, &mut files);
        fs::write(&path, pack(&files)).expect("write");
        let error = world.fails(&["load", "-q", path.to_str().expect("UTF-8")]);
        assert!(error.starts_with("reflinkd: cannot load "), "{what}: {error}");
        assert_eq!((world.places(), world.all_trees()), (places, trees.clone()), "{what} left something");
        assert_eq!(world.rows(&["images"]).len(), 1, "{what}");
        assert!(
            world.rows(&["gc", "--dry-run"]).iter().all(|row| row["type"] == "group"),
            "{what}: {}",
            world.ok(&["gc", "-n"])
        );
    }
    // The untouched image is good.
    image.write_archive(&path);
    world.ok(&["load", "-q", path.to_str().expect("UTF-8")]);
}

#[test]
fn archives_that_are_none_are_refused() {
    let world = World::simple();
    world.ok(&["images"]);
    let path = world.files.path().join("x");
    let good = pack(&base_image().layout());
    let cases: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("text", b"this is no archive\n".repeat(100)),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("a tar of something else", tar_of(&[("hello", b"world")])),
        ("gzip of nothing", b"\x1f\x8b\x08\0\0\0\0\0\0\x03".to_vec()),
    ];
    for (what, bytes) in cases {
        fs::write(&path, bytes).expect("write");
        let error = world.fails(&["load", "-q", path.to_str().expect("UTF-8")]);
        assert!(error.contains("cannot load"), "{what}: {error}");
        assert_eq!(world.places(), 0, "{what}");
    }
    assert!(world.fails(&["load", "-i", "/nowhere/at/all"]).contains("/nowhere/at/all"));
}

#[test]
fn entries_that_leave_the_root_are_refused() {
    let world = World::simple();
    world.ok(&["images"]);
    let canary = world.files.path().join("canary");
    fs::write(&canary, "untouched").expect("write");
    let raw = |name: &str, kind: tar::EntryType, link: &str| {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.resize(tar.len() + 1024, 0);
        tar
    };
    let up = format!("{}{}", "../".repeat(20), &canary.to_str().expect("UTF-8")[1..]);
    for tar in [
        raw(&up[..up.len().min(99)], tar::EntryType::Regular, ""),
        raw("x/../../y", tar::EntryType::Regular, ""),
        raw("hard", tar::EntryType::Link, "../../../etc/passwd"),
    ] {
        world.fails_loading(&TestImage::new("evil").tar(Packing::Gzip, tar), "entry \"");
        assert_eq!(world.places(), 0);
    }
    assert_eq!(fs::read_to_string(&canary).expect("read"), "untouched");
}

#[test]
fn a_bomb_is_stopped_at_the_limit() {
    let world = World::simple();
    world.ok(&["images"]);
    let zeroes = vec![0; 60_000_000];
    for packing in [Packing::Gzip, Packing::Zstd] {
        let image = TestImage::new("bomb").files(packing, &[("zeroes", &zeroes)]);
        let path = world.files.path().join("bomb.tar");
        image.write_archive(&path);
        let error = world.fails(&["load", "-q", "--max-layer-size", "50MB", path.to_str().expect("UTF-8")]);
        assert!(error.contains("--max-layer-size"), "{error}");
        assert_eq!(world.places(), 0);
        world.ok(&["load", "-q", "--max-layer-size", "70MB", path.to_str().expect("UTF-8")]);
        world.ok(&["rmi", "bomb"]);
    }
}

#[test]
fn names_are_checked_and_usage_is_two() {
    let world = World::simple().with_base();
    world.ok(&["create", "--image", "base", "taken"]);
    let places = world.places();
    for (args, why) in [
        (
            &["create", "--image", "base", "taken"][..],
            "cannot create container taken: the name taken is taken by container",
        ),
        (&["create", "--image", "base", "../x"], "invalid container name"),
        (&["create", "--image", "base", "-l", "=v", "x"], "has no key"),
        (&["create", "--image", "nothing", "x"], "there is no image nothing"),
        (&["create", "--image", "BAD NAME", "x"], "BAD NAME"),
        (&["mount", "nothing"], "there is no container nothing"),
        (&["history", "nothing"], "there is no image nothing"),
        (&["inspect", "nothing"], "there is no container or image nothing"),
        (&["rename", "nothing", "x"], "there is no container nothing"),
        (&["reset", "nothing"], "there is no container nothing"),
        (&["update", "--size-limit", "lots", "taken"], "is not a size"),
        (&["rmi", "nothing"], "there is no image nothing"),
    ] {
        let error = world.fails(args);
        assert!(error.contains(why), "{args:?}: {error}");
        assert_eq!(world.places(), places, "{args:?}");
    }
    for args in
        [&["create", "x"][..], &["frobnicate"], &["create", "--image", "base", "--size-limit", "ten", "x"], &["rm"]]
    {
        assert_eq!(world.ask(args).status, Some(2), "{args:?}");
    }
}

#[test]
fn ambiguous_ids_are_refused() {
    let world = World::simple().with_base();
    let ids: Vec<_> = (0..17).map(|n| world.ok(&["create", "--image", "base", &format!("c{n}")])).collect();
    // Of 17 IDs two begin with the same digit.
    let twice =
        ids.iter().find(|id| ids.iter().filter(|other| other[..1] == id[..1]).count() > 1).expect("pigeonhole");
    let error = world.fails(&["mount", &twice[..1]]);
    assert!(error.contains("is the beginning of several container IDs"), "{error}");
}

#[test]
fn large_files_in_many_members_are_loaded() {
    // The counterpart: what looks odd but is right is accepted.
    let world = World::simple();
    let tar = tar_of(&[("data", &random_bytes(3 * MB))]);
    let (first, second) = tar.split_at(tar.len() / 3);
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, bytes).expect("gzip");
        gzip.finish().expect("gzip")
    };
    let mut members = gzip(first);
    members.extend(gzip(second));
    let image = TestImage::new("members").tar(Packing::Plain, tar).with_blob(0, members);
    world.load(&image);
    assert_eq!(world.rows(&["layers"]).len(), 1);
}
