//! What looks odd, is allowed, and has to be taken.

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::ground::{Ground, answer, image};
use crate::server::{Content, INDEX, MANIFEST, Server};
use crate::support::image::{Packing, TestImage, sha256, tar_of};

fn start(content: Content) -> (Server, String) {
    let server = Server::start(move |asked| content.answer(asked));
    let name = format!("{}/team/app:v1", server.address());
    (server, name)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).expect("gzip");
    gzip.finish().expect("gzip")
}

/// The image's manifest, changed, as `v1`.
fn with_manifest(image: &TestImage, change: impl Fn(&mut Value)) -> Content {
    let mut document: Value = serde_json::from_slice(&image.manifest_bytes()).expect("JSON");
    change(&mut document);
    let bytes = serde_json::to_vec(&document).expect("JSON");
    Content::default().image("team/app", "good", image).document("team/app", "v1", MANIFEST, bytes)
}

/// It is pulled, has this ID, and `etc/top` says what it is called.
#[track_caller]
fn taken(what: &str, image: &TestImage, content: Content) {
    let ground = Ground::new();
    let (_server, name) = start(content);
    let pulled = ground.ask(&["pull", "-q", &name]);
    assert_eq!(pulled.status, Some(0), "{what}: {}", pulled.stderr);
    assert_eq!(ground.world.rows(&["images"])[0]["id"], image.id(), "{what}");
    assert_eq!(ground.file(&name, "etc/top"), image.name, "{what}");
    ground.assert_empty_again();
}

#[test]
fn a_manifest_may_say_more() {
    let image = image("one");
    // What is inline is a copy at best: the blob is asked for.
    taken("inline data", &image, with_manifest(&image, |document| document["layers"][1]["data"] = json!("eA==")));
    let elsewhere = |layer: &mut Value| {
        layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        layer["urls"] = json!(["http://192.0.2.1/layer", "file:///etc/passwd"]);
    };
    taken("a foreign layer that is here", &image, with_manifest(&image, |d| elsewhere(&mut d["layers"][0])));
    taken(
        "positions of podman's chunks, and of eStargz's table",
        &image,
        with_manifest(&image, |document| {
            document["layers"][1]["annotations"] = json!({
                "io.github.containers.zstd-chunked.manifest-position": "18446744073709551615:1:2:1",
                "io.github.containers.zstd-chunked.manifest-checksum": "sha256:0",
                "containerd.io/snapshot/stargz/toc.digest": "sha256:../..",
            });
        }),
    );
    // The bytes say how they are packed.
    taken(
        "wrong compressions",
        &image,
        with_manifest(&image, |document| {
            for (layer, packing) in [(0, ""), (1, "+gzip"), (2, "+zstd")] {
                document["layers"][layer]["mediaType"] =
                    json!(format!("application/vnd.oci.image.layer.v1.tar{packing}"));
            }
        }),
    );
    taken(
        "Docker's types",
        &image,
        with_manifest(&image, |document| {
            document["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json");
            document["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
            document["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
            document["subject"] = json!({ "mediaType": "x", "digest": "y", "size": "z" });
            document["artifactType"] = json!(7);
        }),
    );
}

#[test]
fn an_index_may_lead_to_indexes() {
    let image = image("one");
    let mut content = Content::default().image("team/app", "good", &image);
    let (mut kind, mut below) = (MANIFEST, image.manifest_bytes());
    for _ in 0..3 {
        let artifact = json!({ "mediaType": "application/vnd.example+json", "size": 2,
            "digest": format!("sha256:{}", "0".repeat(64)) });
        let entry = json!({ "mediaType": kind, "digest": format!("sha256:{}", sha256(&below)), "size": below.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [artifact, entry] });
        (kind, below) = (INDEX, serde_json::to_vec(&index).expect("JSON"));
        content = content.document("team/app", "v1", INDEX, below.clone());
    }
    taken("three indexes deep", &image, content);
}

#[test]
fn layers_may_come_in_pieces_and_twice() {
    let tar = tar_of(&[("etc/", b""), ("etc/top", b"pieces"), ("etc/more", &[7; 100_000])]);
    // As eStargz is written: a member for each piece, an empty one at the end.
    let pieces = tar.chunks(4096).flat_map(gzip).chain(gzip(b"")).collect::<Vec<_>>();
    let image = TestImage::new("pieces").tar(Packing::Gzip, tar.clone()).with_blob(0, pieces);
    taken("gzip in members", &image, Content::default().image("team/app", "v1", &image));
    // As zstd:chunked is: frames, and its own table in one that is skipped.
    let mut frames: Vec<u8> = tar.chunks(4096).flat_map(|part| zstd::encode_all(part, 1).expect("zstd")).collect();
    frames.extend([0x50, 0x2a, 0x4d, 0x18, 64, 0, 0, 0]);
    frames.extend([0xee; 64]);
    let image = TestImage::new("pieces").tar(Packing::Zstd, tar.clone()).with_blob(0, frames);
    taken("zstd in frames", &image, Content::default().image("team/app", "v1", &image));
    let empty = tar_of(&[]);
    let twice = TestImage::new("pieces")
        .tar(Packing::Gzip, empty.clone())
        .tar(Packing::Gzip, tar.clone())
        .tar(Packing::Gzip, empty.clone())
        .tar(Packing::Zstd, tar.clone())
        .tar(Packing::Gzip, tar)
        .tar(Packing::Gzip, empty);
    taken(
        "the same layers again and again, and empty ones",
        &twice,
        Content::default().image("team/app", "v1", &twice),
    );
}

/// More than the 127 that Docker's overlay2 can take.
#[test]
fn two_hundred_layers_are_taken() {
    let mut image = TestImage::new("199");
    for n in 0..200 {
        let (text, own) = (n.to_string(), format!("etc/{n}"));
        image = image.files(Packing::Gzip, &[("etc/", b""), ("etc/top", text.as_bytes()), (&own, text.as_bytes())]);
    }
    taken("200 layers", &image, Content::default().image("team/app", "v1", &image));
}

/// As slow as may be: every byte is in time.
#[test]
fn what_trickles_is_waited_for() {
    let ground = Ground::new();
    let config = ground.config("fast.toml", "registry_timeout = 1");
    let image = image("one");
    let content = Content::default().image("team/app", "v1", &image);
    let slow = format!("/v2/team/app/blobs/sha256:{}", sha256(&image.layers[1].blob));
    let server = Server::start(move |asked| {
        let reply = content.answer(asked);
        // Longer than the limit all together, for the some 150 bytes that it has.
        if asked.path == slow { reply.trickle(Duration::from_millis(20)) } else { reply }
    });
    let name = format!("{}/team/app:v1", server.address());
    let mut pull = ground.command(&["--config", config.to_str().expect("UTF-8"), "pull", "-q", &name]);
    let pulled = answer(&mut pull);
    assert_eq!(pulled.status, Some(0), "{}", pulled.stderr);
    assert_eq!(ground.file(&name, "etc/middle"), "middle of one");
    ground.assert_empty_again();
}
