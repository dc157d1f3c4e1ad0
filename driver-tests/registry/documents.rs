//! Manifests, indexes and configs that no registry should give out: each is refused with one error, and nothing of it is fetched
//! that needn't be.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::ground::{Ground, image};
use crate::refused::{Case, layer, manifest, refuse};
use crate::server::{Asked, Content, INDEX, MANIFEST, Reply};
use crate::support::image::{Packing, TestImage, sha256};

fn bytes(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}

fn digest(of: &[u8]) -> String {
    format!("sha256:{}", sha256(of))
}

/// The manifest of `image(name)`, changed.
fn changed(name: &str, change: impl Fn(&mut Value)) -> Reply {
    let mut document: Value = serde_json::from_slice(&image(name).manifest_bytes()).expect("JSON");
    change(&mut document);
    Reply::new(200, MANIFEST, bytes(&document))
}

/// An image whose config is another; a good registry has it.
fn with_config(config: Vec<u8>) -> impl Fn(&Asked, Reply) -> Reply {
    let image = image("config");
    let mut document: Value = serde_json::from_slice(&image.manifest_bytes()).expect("JSON");
    document["config"]["digest"] = json!(digest(&config));
    document["config"]["size"] = json!(config.len());
    let content = Content::default().image("team/app", "good", &image).blob("team/app", config);
    let content = content.document("team/app", "v1", MANIFEST, bytes(&document));
    move |asked, _| content.answer(asked)
}

/// An index whose one entry is an index, and so on; at the end is what isn't there.
fn nested(depth: usize) -> impl Fn(&Asked, Reply) -> Reply {
    let mut content = Content::default();
    let (mut digest_below, mut size) = (format!("sha256:{}", "0".repeat(64)), 2);
    for _ in 0..depth {
        let entry = json!({ "mediaType": INDEX, "digest": digest_below, "size": size });
        let index = bytes(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }));
        (digest_below, size) = (digest(&index), index.len());
        content = content.document("team/app", "v1", INDEX, index);
    }
    move |asked, _| content.answer(asked)
}

fn cases() -> Vec<Case> {
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let old = json!({ "schemaVersion": 1, "name": "team/app", "tag": "v1", "fsLayers": [], "history": [] });
    let with_layer = |name: &'static str, change: fn(&mut Value)| {
        manifest(changed(name, move |document| change(&mut document["layers"][1])))
    };
    let (many, mut members) =
        (json!({ "schemaVersion": 2, "manifests": vec![json!(0); 200_000] }), String::from("{"));
    for n in 0..200_000 {
        write!(members, "\"{n}\":0,").expect("write");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let image = image("config");
    let mut config: Value = serde_json::from_slice(&image.config_bytes()).expect("JSON");
    config["rootfs"]["diff_ids"] = json!(["sha256:".to_string() + &"0".repeat(63)]);
    let short = bytes(&config);
    config["rootfs"]["diff_ids"] = json!(image.diff_ids()[..2]);
    let fewer = bytes(&config);
    config["rootfs"]["diff_ids"] = json!([image.diff_ids()[1], image.diff_ids()[0], image.diff_ids()[2]]);
    let swapped = bytes(&config);
    vec![
        Case::new("signed", &["its manifest is a Docker schema 1"], manifest(Reply::new(200, signed, bytes(&old)))),
        Case::new(
            "schema 1 by its shape",
            &["its manifest is a Docker schema 1"],
            manifest(Reply::new(200, "application/json", bytes(&old))),
        ),
        Case::new(
            "schema 1 by its number",
            &["its schemaVersion isn't 2"],
            manifest(changed("schema 1 by its number", |document| document["schemaVersion"] = json!(1))),
        ),
        Case::new(
            "a type of its own",
            &["it calls itself \"application/vnd.oci.image.index.v1+json\""],
            manifest(changed("a type of its own", |document| document["mediaType"] = json!(INDEX))),
        ),
        Case::new(
            "served as an index",
            &["it calls itself"],
            manifest(match changed("served as an index", |_| ()) {
                Reply::Full { body, .. } => Reply::new(200, INDEX, body),
                other => other,
            }),
        ),
        Case::new(
            "an index and a manifest",
            &["it has both manifests and layers"],
            manifest(changed("an index and a manifest", |document| document["manifests"] = json!([]))),
        ),
        Case::new(
            "no config",
            &["it has no config"],
            manifest(changed("no config", |document| {
                drop(document.as_object_mut().expect("an object").remove("config"));
            })),
        ),
        Case::new(
            "an artifact",
            &["application/vnd.cncf.helm.config.v1+json"],
            manifest(changed("an artifact", |document| {
                document["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
            })),
        )
        .asking("/blobs/", 0),
        Case::new("nothing", &["it isn't a JSON object"], manifest(Reply::new(200, MANIFEST, ""))),
        Case::new("no content", &["204"], manifest(Reply::new(204, MANIFEST, ""))),
        Case::new("an empty index", &["no image"], manifest(Reply::new(200, INDEX, "{\"schemaVersion\":2}"))),
        Case::new("four indexes deep", &["more than the limit of 3 deep", "max_index_depth"], nested(4)),
        Case::new("an index of what isn't there", &["404 Not Found"], nested(2)),
        Case::new("many values", &["100000", "max_json_values"], manifest(Reply::new(200, INDEX, bytes(&many)))),
        Case::new(
            "many members",
            &["100000", "max_json_values"],
            manifest(Reply::new(200, MANIFEST, members.trim_end_matches(',').to_string() + "}")),
        ),
        Case::new("deep", &["max_json_depth"], manifest(Reply::new(200, MANIFEST, format!("{{\"a\":{deep}}}")))),
        Case::new(
            "fewer layers than the config",
            &["its manifest has 2 layers, its config 3 diff IDs"],
            manifest(changed("fewer layers than the config", |document| {
                document["layers"].as_array_mut().expect("a list").truncate(2);
            })),
        ),
        Case::new(
            "more layers than the config",
            &["its manifest has 3 layers, its config 2 diff IDs"],
            with_config(fewer),
        ),
        Case::new("no diff ID", &["config sha256:", "hex digits"], with_config(short)),
        Case::new(
            "swapped diff IDs",
            &["its plain tar has the digest", "the image's config says"],
            with_config(swapped),
        ),
        Case::new("a list as config", &["it isn't a JSON object"], with_config(b"[]".to_vec())),
        Case::new(
            "too large a config",
            &["it has 8388609 bytes, more than the limit of 8388608", "max_config_size"],
            with_config(vec![b' '; (8 << 20) + 1]),
        )
        .asking("/blobs/", 0),
        Case::new("a negative size", &["-1"], with_layer("a negative size", |layer| layer["size"] = json!(-1)))
            .asking("/blobs/", 0),
        Case::new(
            "a size beyond all",
            &["1e+30"],
            with_layer("a size beyond all", |layer| layer["size"] = json!(1e30)),
        )
        .asking("/blobs/", 0),
        Case::new(
            "sha512",
            &["only sha256 is supported"],
            with_layer("sha512", |layer| layer["digest"] = json!(format!("sha512:{}", "0".repeat(128)))),
        )
        .asking("/blobs/", 0),
        Case::new(
            "a path as digest",
            &["hex digits"],
            with_layer("a path as digest", |layer| layer["digest"] = json!("sha256:../../../../etc/passwd")),
        )
        .asking("/blobs/", 0),
        Case::new(
            "no layer",
            &["which isn't a filesystem layer's"],
            with_layer("no layer", |layer| layer["mediaType"] = json!("application/vnd.in-toto+json")),
        ),
        Case::new(
            "encrypted",
            &["which isn't a filesystem layer's"],
            with_layer("encrypted", |layer| {
                layer["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
            }),
        ),
        Case::new(
            "bzip2",
            &["bzip2"],
            manifest_and_blob(
                "bzip2",
                b"BZh91AY&SY\x4e\xec\xe8\x36\x00\x00\x02\x51\x80\x00\x10\x40\x00\x06".to_vec(),
            ),
        ),
        Case::new(
            "a page as layer",
            &["broke off 5 times, last after 35 of"],
            layer("a page as layer", |_| {
                Reply::new(200, "text/html", "<html><title>Sign in</title></html>").chunked()
            }),
        ),
        Case::new(
            "a flood of headers",
            &["header"],
            manifest(Reply::new(200, MANIFEST, "{}").with("X-Flood", &"x".repeat(200_000))),
        ),
        Case::new(
            "an eternal wait",
            &["429 Too Many Requests: \"slow down\""],
            manifest(Reply::error(429, "TOOMANYREQUESTS", "slow down").with("Retry-After", &u64::MAX.to_string())),
        )
        .asking("/manifests/v1", 1),
        Case::new(
            "to another host, and back, and on",
            &["it redirects more than 10 times"],
            |asked, good| match asked.is_manifest() {
                true => Reply::redirect(&format!("http://localhost:{}/x/manifests/y", port(asked))),
                false => good,
            },
        ),
        Case::new("to a port that is none", &["it redirects nowhere"], manifest(Reply::redirect("http://a:99999/"))),
        Case::new("to nothing", &["it redirects nowhere"], manifest(Reply::redirect("http://"))),
    ]
}

fn port(asked: &Asked) -> &str {
    asked.header("host").rsplit(':').next().expect("a part")
}

/// An image whose middle layer is this blob, of which nothing but its descriptor is right.
fn manifest_and_blob(name: &'static str, blob: Vec<u8>) -> impl Fn(&Asked, Reply) -> Reply {
    let image = image(name).with_blob(1, blob);
    let content = Content::default().image("team/app", "v1", &image);
    move |asked, _| content.answer(asked)
}

#[test]
fn each_is_refused() {
    refuse(&cases(), &Ground::new());
}

/// A few kilobytes that are gigabytes, unpacked.
#[test]
fn bombs_are_broken_off() {
    let ground = Ground::new();
    let config = ground.config("small.toml", "max_layer_size = \"64MiB\"");
    let zeros = vec![0; 256 << 20];
    for (name, packing) in [("gzip", Packing::Gzip), ("zstd", Packing::Zstd)] {
        let bomb = TestImage::new(name).files(packing, &[("zeros", &zeros)]);
        assert!(bomb.layers[0].blob.len() < 4 << 20);
        let content = Content::default().image("team/app", "v1", &bomb);
        let server = crate::server::Server::start(move |asked| content.answer(asked));
        let pulled = ground.ask(&[
            "--config",
            config.to_str().expect("UTF-8"),
            "pull",
            "-q",
            &format!("{}/team/app:v1", server.address()),
        ]);
        assert_eq!(pulled.status, Some(1), "{name}: {}", pulled.stderr);
        for part in ["larger than the limit of 67108864 bytes", "--max-layer-size"] {
            assert!(pulled.stderr.contains(part), "{name}: {part}: {}", pulled.stderr);
        }
        ground.assert_untouched(name);
    }
}
