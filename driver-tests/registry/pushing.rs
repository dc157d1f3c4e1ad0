//! What a push sends, and what the registry has afterwards.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::ground::{Ground, good, image};
use crate::server::{Content, INDEX, MANIFEST, Server};
use crate::support::image::{Packing, TestImage, sha256};
use crate::taking::Taking;

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

fn labels(image: &TestImage) -> Vec<String> {
    image.diff_ids().iter().map(|diff_id| diff_id[7..19].to_string()).collect()
}

/// Whether that was said of each layer.
#[track_caller]
fn assert_said(stderr: &str, image: &TestImage, what: &str) {
    for label in labels(image) {
        let line = format!("{label}: {what}");
        assert!(stderr.lines().any(|said| said == line), "no {line:?} in {stderr}");
    }
}

/// A container of an image with a file of its own, made an image of that name.
fn commit(ground: &Ground, image: &str, name: &str) {
    ground.ok(&["create", "--image", image, "changed"]);
    let tree = PathBuf::from(ground.ok(&["mount", "changed"]));
    fs::write(tree.join("etc/mine"), "mine").expect("write");
    ground.ok(&["commit", "changed", name]);
    ground.ok(&["rm", "changed"]);
}

#[test]
fn a_pulled_image_leaves_with_its_digests() {
    let ground = Ground::new();
    let image = image("one");
    let from = good(&image);
    let taking = Taking::default();
    let to = taking.start();
    let name = format!("{}/team/app:v1", from.address());
    let copy = format!("{}/other/copy:v2", to.address());
    ground.ok(&["pull", "-q", &name]);
    let pushed = ground.ask(&["push", &name, &copy]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    let manifest = image.manifest_bytes();
    assert_eq!(pushed.stdout, format!("v2: digest: {} size: {}\n", digest(&manifest), manifest.len()));
    let first = format!("The push refers to repository [{}/other/copy]", to.address());
    assert_eq!(pushed.stderr.lines().next(), Some(&*first));
    assert_said(&pushed.stderr, &image, "Preparing");
    assert_said(&pushed.stderr, &image, "Pushed");
    assert_eq!(taking.get("other/copy/manifests/v2").as_ref(), Some(&manifest), "byte for byte");
    assert_eq!(taking.media_type("other/copy/manifests/v2").as_deref(), Some(MANIFEST));
    for layer in &image.layers {
        assert_eq!(taking.get(&format!("other/copy/blobs/{}", digest(&layer.blob))).as_ref(), Some(&layer.blob));
    }
    assert_eq!(taking.uploads(), 0);
    assert_eq!(to.count_of("PUT", "/blobs/"), 4, "the configuration and three layers, each once");
    assert_eq!(from.count_of("GET", "/blobs/"), 7, "each fetched by the pull, and each layer once more");

    // Again: nothing is sent but the manifest.
    let again = ground.ask(&["push", &name, &copy]);
    assert_said(&again.stderr, &image, "Layer already exists");
    assert_eq!(again.stdout, pushed.stdout);
    assert_eq!((to.count_of("POST", "/blobs/"), to.count_of("PUT", "/blobs/")), (4, 4));
    // By its ID, and told of its name alone.
    assert_eq!(ground.ok(&["push", "-q", &image.id(), &format!("{}/other/copy", to.address())]), {
        format!("{}/other/copy:latest", to.address())
    });
    assert_eq!(taking.get("other/copy/manifests/latest"), Some(manifest));
    // The manifest and all its blobs, by who knows nothing of this.
    let elsewhere = Ground::new();
    elsewhere.ok(&["pull", "-q", &copy]);
    assert_eq!(elsewhere.world.rows(&["images"])[0]["id"], image.id());
    assert_eq!(elsewhere.file(&copy, "etc/top"), "one");
    elsewhere.assert_empty_again();
    ground.assert_empty_again();
}

#[test]
fn layers_are_mounted_from_other_repositories() {
    let ground = Ground::new();
    let image = image("one");
    let taking = Taking::with(Content::default().image("team/app", "v1", &image));
    let server = taking.start();
    let (name, other) = (format!("{}/team/app:v1", server.address()), format!("{}/team/other:v1", server.address()));
    ground.ok(&["pull", "-q", &name]);
    let fetched = server.count_of("GET", "/blobs/");
    let pushed = ground.ask(&["push", &name, &other]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert_said(&pushed.stderr, &image, "Mounted from team/app");
    assert_eq!(taking.get("team/other/manifests/v1"), Some(image.manifest_bytes()));
    assert_eq!(server.count_of("PUT", "/blobs/"), 1, "the configuration");
    assert_eq!(server.count_of("GET", "/blobs/"), fetched);

    // What was pushed is known, too: of an image that came from no registry.
    let own = TestImage::new("own").files(Packing::Gzip, &[("etc/", b""), ("etc/own", b"own")]);
    ground.world.load(&own);
    let names = ["a", "b"].map(|repository| format!("{}/own/{repository}:v1", server.address()));
    let first = ground.ok(&["push", &own.id(), &names[0]]);
    let pushed = ground.ask(&["push", &own.id(), &names[1]]);
    assert_said(&pushed.stderr, &own, "Mounted from own/a");
    assert_eq!(pushed.stdout.trim_end(), first, "the same manifest");
    ground.assert_empty_again();
}

/// What a commit is based on leaves as it came, and what it added is packed.
#[test]
fn a_committed_image_keeps_its_bases_blobs() {
    let ground = Ground::new();
    let image = image("one");
    let taking = Taking::with(Content::default().image("team/app", "v1", &image));
    let server = taking.start();
    let (name, own) = (format!("{}/team/app:v1", server.address()), format!("{}/team/own:v1", server.address()));
    ground.ok(&["pull", "-q", &name]);
    commit(&ground, &name, &own);
    // Nor is the base's image needed for that.
    ground.ok(&["rmi", &name]);
    let pushed = ground.ask(&["push", &own]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert_said(&pushed.stderr, &image, "Mounted from team/app");
    let manifest = taking.manifest("team/own/manifests/v1");
    let layers = manifest["layers"].as_array().expect("layers");
    let digests: Vec<_> = layers.iter().map(|layer| layer["digest"].as_str().expect("text")).collect();
    let base: Vec<_> = image.layers.iter().map(|layer| digest(&layer.blob)).collect();
    assert_eq!((&digests[..3], digests.len()), (&base.iter().map(String::as_str).collect::<Vec<_>>()[..], 4));
    assert_eq!(layers[3]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert_eq!(manifest["mediaType"], MANIFEST);
    let before = ground.world.rows(&["images"]);
    assert_eq!(before[0]["digest"], digest(&taking.get("team/own/manifests/v1").expect("it is there")));
    ground.assert_empty_again();
    ground.ok(&["pull", "-q", &own]);
    assert_eq!(ground.world.rows(&["images"])[0]["id"], before[0]["id"]);
    assert_eq!(ground.file(&own, "etc/mine"), "mine");
    ground.assert_empty_again();
}

#[test]
fn what_is_packed_is_the_same_each_time() {
    let image = image("one");
    let mut pushed = Vec::new();
    for _ in 0..2 {
        let ground = Ground::new();
        ground.world.load(&image);
        let taking = Taking::default();
        let server = taking.start();
        let name = format!("{}/team/app:v1", server.address());
        pushed.push(ground.ok(&["push", &image.id(), &name]));
        let manifest = taking.manifest("team/app/manifests/v1");
        assert_eq!(manifest["config"]["digest"], image.id(), "the image keeps its ID");
        for (layer, built) in manifest["layers"].as_array().expect("layers").iter().zip(&image.layers) {
            let blob = taking.get(&format!("team/app/blobs/{}", layer["digest"].as_str().expect("text")));
            let mut tar = Vec::new();
            let blob = blob.expect("it is there");
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&blob[..]), &mut tar).expect("gzip");
            assert!(tar == built.tar, "its tar is what it was");
        }
        ground.assert_empty_again();
    }
    assert_eq!(pushed[0], pushed[1]);
}

#[test]
fn zstd_is_had_where_it_is_asked_for() {
    let ground = Ground::new();
    let image = image("one");
    let from = good(&image);
    let taking = Taking::default();
    let to = taking.start();
    let name = format!("{}/team/app:v1", from.address());
    ground.ok(&["pull", "-q", &name]);
    ground.ok(&["push", "--compress", "zstd", &name, &format!("{}/team/app:v1", to.address())]);
    let manifest = taking.manifest("team/app/manifests/v1");
    let layers = manifest["layers"].as_array().expect("layers");
    for (layer, built) in layers.iter().zip(&image.layers) {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+zstd");
        let blob = taking.get(&format!("team/app/blobs/{}", layer["digest"].as_str().expect("text")));
        assert!(zstd::decode_all(&blob.expect("it is there")[..]).expect("zstd") == built.tar);
    }
    assert_eq!(layers[1]["digest"], digest(&image.layers[1].blob), "that one came as zstd");
    // It keeps being known as it came.
    ground.ok(&["push", &name, &format!("{}/team/app:v2", to.address())]);
    assert_eq!(taking.get("team/app/manifests/v2"), Some(image.manifest_bytes()));
    ground.assert_empty_again();
}

#[test]
fn what_nobody_gives_any_more_is_packed() {
    let ground = Ground::new();
    let image = image("one");
    let source = Taking::with(Content::default().image("team/app", "v1", &image));
    let from = source.start();
    let name = format!("{}/team/app:v1", from.address());
    ground.ok(&["pull", "-q", &name]);
    source.forget(&digest(&image.layers[0].blob));
    let taking = Taking::default();
    let to = taking.start();
    let pushed = ground.ask(&["push", &name, &format!("{}/team/app:v1", to.address())]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    let warned = format!("doesn't give layer {} any more", labels(&image)[0]);
    assert!(pushed.stderr.contains("WARN") && pushed.stderr.contains(&warned), "{}", pushed.stderr);
    let manifest = taking.manifest("team/app/manifests/v1");
    let layers = manifest["layers"].as_array().expect("layers");
    assert_ne!(layers[0]["digest"], digest(&image.layers[0].blob));
    for at in [1, 2] {
        assert_eq!(layers[at]["digest"], digest(&image.layers[at].blob));
    }
    let fetched = Ground::new();
    fetched.ok(&["pull", "-q", &format!("{}/team/app:v1", to.address())]);
    assert_eq!(fetched.world.rows(&["images"])[0]["id"], image.id());
    fetched.assert_empty_again();
    ground.assert_empty_again();
}

/// A source that gives other bytes is one that doesn't give it, and they don't arrive.
#[test]
fn what_is_copied_is_verified() {
    let ground = Ground::new();
    let image = image("one");
    let source = Taking::with(Content::default().image("team/app", "v1", &image));
    let from = source.start();
    let name = format!("{}/team/app:v1", from.address());
    ground.ok(&["pull", "-q", &name]);
    drop(from);
    let lied = image.layers[1].blob.len();
    let path = format!("/v2/team/app/blobs/{}", digest(&image.layers[1].blob));
    let inside = source.clone();
    let from = Server::start(move |asked| match asked.path == path {
        true => crate::server::Reply::new(200, "application/octet-stream", vec![7; lied]),
        false => inside.answer(asked),
    });
    // The liar has the old one's name in a store that knows of it by its mirror.
    let registry = name.split('/').next().expect("a part");
    let config = format!("[registry.\"{registry}\"]\nmirrors = [\"{}\"]\n", from.url());
    let config = ground.config("mirrors.toml", &config);
    let taking = Taking::default();
    let to = taking.start();
    let to_name = format!("{}/team/app:v1", to.address());
    let pushed = ground.ask(&["--config", config.to_str().expect("UTF-8"), "push", &name, &to_name]);
    assert_eq!(pushed.status, Some(0), "{}", pushed.stderr);
    assert!(pushed.stderr.contains("has the digest sha256:"), "{}", pushed.stderr);
    let manifest = taking.manifest("team/app/manifests/v1");
    assert_ne!(manifest["layers"][1]["digest"], digest(&image.layers[1].blob));
    assert_eq!(manifest["layers"][0]["digest"], digest(&image.layers[0].blob));
    assert_eq!(taking.uploads(), 0, "what was begun is cancelled");
    ground.assert_empty_again();
}

/// An index of this machine's image, one for another, an index within, and what BuildKit adds.
fn index(image: &TestImage) -> (Content, Vec<u8>) {
    let mut content = Content::default().image("team/app", "this", image);
    let mut entries = Vec::new();
    let mut add = |bytes: &[u8], media_type: &str, os: &str, architecture: &str| {
        entries.push(json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len(),
            "platform": { "os": os, "architecture": architecture } }));
        bytes.to_vec()
    };
    let config: Value = serde_json::from_slice(&image.config_bytes()).expect("JSON");
    let manifest = image.manifest_bytes();
    add(&manifest, MANIFEST, "linux", config["architecture"].as_str().expect("text"));
    let described = |blob: &[u8], media_type: &str| json!({ "mediaType": media_type, "digest": digest(blob), "size": blob.len() });
    let mut other = |what: &str, os: &str, architecture: &str, layer_type: &str| {
        let (config, layer) =
            (format!("{{\"of\":\"{what}\"}}").into_bytes(), format!("layer of {what}").into_bytes());
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
            "config": described(&config, "application/vnd.oci.image.config.v1+json"), "layers": [described(&layer, layer_type)] });
        let manifest = add(&serde_json::to_vec(&manifest).expect("JSON"), MANIFEST, os, architecture);
        content = std::mem::take(&mut content).blob("team/app", config).blob("team/app", layer);
        content = std::mem::take(&mut content).document("team/app", what, MANIFEST, manifest.clone());
        manifest
    };
    other("s390x", "linux", "s390x", "application/vnd.oci.image.layer.v1.tar+gzip");
    other("attestation", "unknown", "unknown", "application/vnd.in-toto+json");
    let within = other("within", "windows", "arm", "application/vnd.oci.image.layer.v1.tar+gzip");
    let within = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [described(&within, MANIFEST)] });
    let within = serde_json::to_vec(&within).expect("JSON");
    let last = entries.len() - 1;
    entries[last] = described(&within, INDEX);
    content = content.document("team/app", "nested", INDEX, within);
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let index = serde_json::to_vec(&index).expect("JSON");
    (content.document("team/app", "multi", INDEX, index.clone()), index)
}

#[test]
fn an_index_is_kept_and_pushed() {
    let ground = Ground::new();
    let image = image("one");
    let (content, index) = index(&image);
    let documents: Vec<_> = content.0.keys().filter(|path| path.contains("sha256:")).cloned().collect();
    let source = Taking::with(content);
    let from = source.start();
    let name = format!("{}/team/app:multi", from.address());
    ground.ok(&["pull", "-q", &name]);
    ground.ok(&["gc"]);
    ground.ok(&["check"]);
    // Its bytes can be lost, and had again.
    let kept = ground.world.root().join("blobs/sha256").join(sha256(&index));
    fs::write(&kept, "{}").expect("write");
    let found = ground.ask(&["check"]);
    assert!(found.status == Some(3) && found.stdout.contains("manifest-unreadable"), "{}", found.stdout);
    let refused = ground.ask(&["push", "--all-platforms", &name, &format!("{}/team/no:v1", from.address())]);
    assert!(refused.status == Some(1) && refused.stderr.contains("it is not what it was"), "{}", refused.stderr);
    let mended = ground.ask(&["check", "--repair", "--from", &format!("docker://{name}")]);
    assert_eq!(mended.status, Some(0), "{}{}", mended.stdout, mended.stderr);
    assert_eq!(fs::read(&kept).expect("read"), index);
    let taking = Taking::default();
    let to = taking.start();
    let said = ground.ok(&["push", "--all-platforms", &name, &format!("{}/team/app:all", to.address())]);
    assert_eq!(said, format!("all: digest: {} size: {}", digest(&index), index.len()));
    assert_eq!(taking.get("team/app/manifests/all"), Some(index.clone()), "byte for byte");
    for path in &documents {
        let what = path.trim_start_matches("/v2/");
        assert_eq!(taking.get(what), source.get(what), "{what}");
    }
    // Alone, this machine's image goes.
    let said = ground.ok(&["push", &name, &format!("{}/team/app:one", to.address())]);
    assert!(said.contains(&digest(&image.manifest_bytes())), "{said}");
    // In the registry that it is from, nothing is sent but documents.
    let sent = from.count_of("PUT", "/blobs/");
    ground.ok(&["push", "--all-platforms", &name, &format!("{}/team/other:all", from.address())]);
    assert_eq!((source.get("team/other/manifests/all"), from.count_of("PUT", "/blobs/")), (Some(index), sent));
    assert_eq!(from.count_of("POST", "mount="), 10);

    // One that another registry has lost.
    let lost = "layer of s390x";
    source.forget(&digest(lost.as_bytes()));
    let empty = Taking::default();
    let third = empty.start();
    let pushed = ground.ask(&["push", "--all-platforms", &name, &format!("{}/a:all", third.address())]);
    assert_eq!((pushed.status, empty.tags()), (Some(1), vec![]), "{}", pushed.stderr);
    assert!(pushed.stderr.contains("gives it any more"), "{}", pushed.stderr);

    let single = format!("{}/team/app:this", from.address());
    let own = TestImage::new("own").files(Packing::Plain, &[("a", b"a")]);
    ground.world.load(&own);
    let refused = ground.ask(&["push", "--all-platforms", &own.id(), &single]);
    assert!(refused.stderr.contains("there is no index of several platforms"), "{}", refused.stderr);
    ground.assert_empty_again();
}

#[test]
fn all_tags_go_and_what_cant_be_meant_is_refused() {
    let ground = Ground::new();
    let taking = Taking::default();
    let server = taking.start();
    let own = TestImage::new("own").files(Packing::Plain, &[("a", b"a")]);
    ground.world.load(&own);
    let repository = format!("{}/team/app", server.address());
    for tag in ["v1", "v2", "latest"] {
        ground.ok(&["tag", &own.id(), &format!("{repository}:{tag}")]);
    }
    ground.ok(&["tag", &own.id(), &format!("{}/team/application:v1", server.address())]);
    let said = ground.ok(&["push", "-a", "-q", &repository]);
    let all: Vec<_> = ["latest", "v1", "v2"].iter().map(|tag| format!("{repository}:{tag}")).collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), all);
    assert_eq!(taking.tags().len(), 3);
    let asked = server.asked().len();
    let zeros = format!("sha256:{}", "0".repeat(64));
    for (args, why) in [
        (vec!["push", &own.id()[7..]], "an ID says nothing of where to"),
        (vec!["push", &own.id()[7..], &format!("{repository}@{zeros}")], "a digest isn't pushed to"),
        (vec!["push", "no/such"], "cannot push no/such: there is no image no/such:latest"),
        (vec!["push", "-a", &format!("{repository}:v1")], "a repository is named, without a tag"),
        (vec!["push", "-a", "no/such"], "no image here has a tag in that repository"),
    ] {
        let answer = ground.ask(&args);
        assert_eq!(answer.status, Some(1), "{args:?}");
        assert!(answer.stderr.contains(why), "{args:?}: {}", answer.stderr);
    }
    assert_eq!(server.asked().len(), asked, "nobody was asked for it");
    ground.assert_empty_again();
}
