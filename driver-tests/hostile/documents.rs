//! Manifests, indexes and configs that lie, contradict themselves, or are far too much.

use std::fs;

use serde_json::{Value, json};

use crate::guard::{Guard, MEMORY};
use crate::layout::{Document, Files, blob, changed, image, layout_of, replaced};
use crate::support::image::{Packing, TestImage, layout, pack, sha256};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn load(guard: &Guard, what: &str, files: &Files, why: &str) -> String {
    let path = guard.input("archive.tar");
    fs::write(&path, pack(files)).expect("write");
    guard.refuses(what, &path, &[], why, MEMORY)
}

/// A descriptor of these bytes.
fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": format!("sha256:{}", sha256(bytes)), "size": bytes.len() })
}

#[test]
fn documents_that_lie() {
    let guard = Guard::new();
    let manifest = |pointer: &'static str, value: Value| {
        changed(Document::Manifest, move |manifest| *manifest.pointer_mut(pointer).expect("a field") = value.clone())
    };
    let index = |change: &'static dyn Fn(&mut Value)| changed(Document::Index, change);
    let config = |pointer: &'static str, value: Value| {
        changed(Document::Config, move |config| *config.pointer_mut(pointer).expect("a field") = value.clone())
    };
    let text = |document, text: &str| replaced(document, text.as_bytes());
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    for (what, files, why) in [
        ("layer smaller than it is", manifest("/layers/0/size", 1.into()), "its descriptor says 1"),
        (
            "layer larger than it is",
            manifest("/layers/0/size", (1_u64 << 40).into()),
            "its descriptor says 1099511627776",
        ),
        ("layer of a negative size", manifest("/layers/0/size", (-1).into()), "JSON"),
        ("layer of 2^64 bytes", manifest("/layers/0/size", json!(18_446_744_073_709_551_616.0)), "JSON"),
        ("layer of half a byte", manifest("/layers/0/size", json!(0.5)), "JSON"),
        ("layer of a size in words", manifest("/layers/0/size", "many".into()), "JSON"),
        ("config smaller than it is", manifest("/config/size", 1.into()), "its descriptor says 1"),
        (
            "manifest larger than it is",
            index(&|i| i["manifests"][0]["size"] = 9_999.into()),
            "its descriptor says 9999",
        ),
        ("layer that isn't there", manifest("/layers/1/digest", format!("sha256:{:064}", 0).into()), "missing from"),
        ("foreign layer", foreign_layer(foreign), "missing from the archive"),
        (
            "layer that is no filesystem",
            manifest("/layers/0/mediaType", "text/html".into()),
            "isn't a filesystem layer's",
        ),
        (
            "encrypted layer",
            manifest("/layers/0/mediaType", format!("{LAYER}+gzip+encrypted").into()),
            "isn't a filesystem",
        ),
        ("no layers", manifest("/layers", json!([])), "0 layers, its config 2 diff IDs"),
        ("layers of null", manifest("/layers", json!([null, null])), "JSON"),
        (
            "manifest and index in one",
            manifest("/schemaVersion", json!(2)).edited(),
            "neither an index nor a manifest",
        ),
        ("manifest of schema 1", index(&|i| i["manifests"][0]["mediaType"] = SCHEMA_1.into()), "schema 1"),
        ("manifest that calls itself an index", manifest("/mediaType", INDEX.into()), "it calls itself"),
        ("layers twice", twice(), "duplicate field"),
        ("only an artifact", manifest("/config/mediaType", "application/x-wasm".into()), "only other artifacts"),
        (
            "diff ID of another layer",
            config("/rootfs/diff_ids/0", format!("sha256:{:064}", 0).into()),
            "the image's config says",
        ),
        ("fewer diff IDs", config("/rootfs/diff_ids", json!([])), "its config 0 diff IDs"),
        ("diff IDs that are none", config("/rootfs/diff_ids", json!([1, 2])), "JSON"),
        (
            "another machine's",
            index(&|i| i["manifests"][0]["platform"] = json!({ "os": "plan9", "architecture": "mips" })),
            "it has plan9/mips",
        ),
        (
            "a machine of a megabyte",
            index(&|i| i["manifests"][0]["platform"] = json!({ "os": "o".repeat(1 << 20) })),
            "it has no image for",
        ),
        (
            "a machine of control characters",
            index(&|i| i["manifests"][0]["platform"] = json!({ "os": "\u{1b}[2J" })),
            "it has no image for",
        ),
        (
            "a name of control characters",
            index(&|i| i["manifests"][0]["annotations"]["io.containerd.image.name"] = "\u{1b}[2J".into()),
            "image name",
        ),
        ("empty config", text(Document::Config, ""), "it isn't a JSON object"),
        ("config of null", text(Document::Config, "null"), "it isn't a JSON object"),
        ("config that is a list", text(Document::Config, "[{}]"), "it isn't a JSON object"),
        ("config of bytes", replaced(Document::Config, b"{\"os\":\"\xff\xfe\"}"), "JSON"),
        ("config in UTF-16", replaced(Document::Config, b"\xff\xfe{\0}\0"), "it isn't a JSON object"),
        ("config with a tail", text(Document::Config, "{} {}"), "trailing characters"),
        ("config of a huge number", text(Document::Config, "{\"created\":1e999}"), "JSON"),
        (
            "config that says a megabyte",
            text(Document::Config, &json!({ "history": "h".repeat(1 << 20) }).to_string()),
            "JSON",
        ),
        ("manifest cut short", text(Document::Manifest, "{\"layers\":["), "JSON"),
        ("index of another version", index(&|i| i["schemaVersion"] = 3.into()), "schemaVersion isn't 2"),
        ("empty index", index(&|i| i["manifests"] = json!([])), "its index is empty"),
        (
            "layout of another version",
            image().layout().with("oci-layout", br#"{"imageLayoutVersion":"9"}"#),
            "version \"9\"",
        ),
        (
            "version of a megabyte",
            image()
                .layout()
                .with("oci-layout", json!({ "imageLayoutVersion": "9".repeat(1 << 20) }).to_string().as_bytes()),
            "not 1.x",
        ),
    ] {
        load(&guard, what, &files, why);
    }
}

const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+json";

/// Small changes that need more than one field.
trait Edit {
    fn edited(self) -> Self;
    fn with(self, name: &str, bytes: &[u8]) -> Self;
}

impl Edit for Files {
    /// Its manifest has a list of manifests, too.
    fn edited(self) -> Self {
        changed(Document::Manifest, |manifest| manifest["manifests"] = json!([]))
    }

    fn with(mut self, name: &str, bytes: &[u8]) -> Self {
        self.insert(name.to_string(), bytes.to_vec());
        self
    }
}

/// A layer to be fetched from elsewhere.
fn foreign_layer(media_type: &str) -> Files {
    let mut files = changed(Document::Manifest, |manifest| {
        manifest["layers"][0]["mediaType"] = media_type.into();
        manifest["layers"][0]["urls"] = json!(["file:///etc/passwd", "http://127.0.0.1:1/layer"]);
    });
    files.remove(&blob(&image().layers[0].blob)).expect("it was there");
    files
}

/// A manifest that readers disagree about: some take the first list, others the last.
fn twice() -> Files {
    layout_of(&image(), &|document, bytes| {
        if document == Document::Manifest {
            let text = String::from_utf8(bytes.clone()).expect("UTF-8");
            *bytes = text.replacen('{', "{\"layers\":[],", 1).into_bytes();
        }
    })
}

#[test]
fn documents_that_are_far_too_much() {
    let guard = Guard::new();
    let nested = |deep: usize| format!("{{\"x\":{}{}}}", "[".repeat(deep), "]".repeat(deep));
    let padded = |document, bytes: usize| {
        layout_of(&image(), &move |which, text| {
            if which == document {
                text.resize(bytes, b' ');
            }
        })
    };
    let values = |document, member: &str, count: usize| {
        let member = member.to_string();
        layout_of(&image(), &move |which, text| {
            if which == document {
                let list = vec![member.as_str(); count].join(",");
                *text = format!("{{\"x\":[{list}]}}").into_bytes();
            }
        })
    };
    let keys: String = (0..200_000).map(|n| format!("\"{n}\":\"\",")).collect();
    let annotations = |key: &str| format!("{{\"manifests\":[],\"{key}\":{{{keys}\"\":\"\"}}}}");
    let tags: Vec<_> = (0..1001).map(|n| format!("evil:{n}")).collect();
    for (what, files, why, key) in [
        (
            "index of 100 MB",
            padded(Document::Index, 100_000_000),
            "more than the limit of 4194304",
            "max_manifest_size",
        ),
        (
            "manifest of 100 MB",
            padded(Document::Manifest, 100_000_000),
            "more than the limit of 4194304",
            "max_manifest_size",
        ),
        (
            "config of 100 MB",
            padded(Document::Config, 100_000_000),
            "more than the limit of 8388608",
            "max_config_size",
        ),
        ("deep index", replaced(Document::Index, nested(1_000_000).as_bytes()), "limit of 64 deep", "max_json_depth"),
        (
            "deep manifest",
            replaced(Document::Manifest, nested(1_000_000).as_bytes()),
            "limit of 64 deep",
            "max_json_depth",
        ),
        (
            "deep config",
            replaced(Document::Config, nested(1_000_000).as_bytes()),
            "limit of 64 deep",
            "max_json_depth",
        ),
        ("a million layers", values(Document::Manifest, "{}", 1_000_000), "limit of 100000", "max_json_values"),
        ("a million diff IDs", values(Document::Config, "\"\"", 1_000_000), "limit of 100000", "max_json_values"),
        (
            "200,000 annotations",
            replaced(Document::Index, annotations("annotations").as_bytes()),
            "limit of 100000",
            "max_json_values",
        ),
        (
            "200,000 labels",
            replaced(Document::Config, annotations("Labels").as_bytes()),
            "limit of 100000",
            "max_json_values",
        ),
        ("1,001 layers", repeated(1001), "1001 layers, more than the limit of 1000", "max_layers"),
        ("1,001 images", listed(1001), "than the limit of 1000", "max_images"),
        ("1,001 names", docker(&tags), "more names than the limit of 1000", "max_images"),
        ("indexes within indexes", nest(10), "limit of 3 deep", "max_index_depth"),
        ("a wide index at every depth", wide(), "than the limit of 1000", "max_images"),
    ] {
        let error = load(&guard, what, &files, why);
        let hint = format!("hint: if you trust the image, raise {key} in /etc/reflinkd/config.toml");
        assert!(error.lines().any(|line| line == hint), "{what}: {error}");
    }
}

/// An image of the same layer over and over.
fn repeated(count: usize) -> Files {
    let mut image = TestImage::new("evil");
    for _ in 0..count {
        image = image.files(Packing::Plain, &[("file", b"one")]);
    }
    image.layout()
}

/// An index that lists one manifest over and over.
fn listed(count: usize) -> Files {
    changed(Document::Index, move |index| {
        let entry = index["manifests"][0].clone();
        index["manifests"] = vec![entry; count].into();
    })
}

/// What Docker 25 writes: a layout, and a `manifest.json` with more names for its images.
fn docker(tags: &[String]) -> Files {
    let image = image();
    let config = blob(&image.config_bytes());
    let layers: Vec<_> = image.layers.iter().map(|layer| blob(&layer.blob)).collect();
    // In entries of ten, as a list of its own is bounded.
    let entries: Vec<_> =
        tags.chunks(10).map(|tags| json!({ "Config": config, "RepoTags": tags, "Layers": layers })).collect();
    image.layout().with("manifest.json", Value::from(entries).to_string().as_bytes())
}

/// An index in an index, and so on.
fn nest(deep: usize) -> Files {
    let mut files = image().layout();
    for _ in 0..deep {
        let inner = files.remove("index.json").expect("an index");
        let outer = json!({ "schemaVersion": 2, "manifests": [descriptor(INDEX, &inner)] });
        files.insert(blob(&inner), inner);
        files.insert("index.json".into(), outer.to_string().into_bytes());
    }
    files
}

/// Indexes of 500 times the same index, three deep, and no image at the bottom: 125 million to look at.
fn wide() -> Files {
    let mut files = image().layout();
    let mut inner = json!({ "schemaVersion": 2, "manifests": [] }).to_string().into_bytes();
    for _ in 0..3 {
        let entries = vec![descriptor(INDEX, &inner); 500];
        files.insert(blob(&inner), inner);
        inner = json!({ "schemaVersion": 2, "manifests": entries }).to_string().into_bytes();
    }
    files.insert("index.json".into(), inner);
    files
}

#[test]
fn an_index_cannot_list_itself() {
    // Its digest would have to be in itself; whoever doesn't check it goes round in circles.
    let guard = Guard::new();
    let zeros = format!("sha256:{:064}", 0);
    let index = json!({ "schemaVersion": 2, "manifests": [{ "mediaType": INDEX, "digest": zeros, "size": 0 }] });
    let text = index.to_string();
    let files = image().layout().with("index.json", text.as_bytes()).with(&format!("blobs/sha256/{:064}", 0), b"");
    load(&guard, "a cycle by a wrong size", &files, "digest");
    let text = text.replace("\"size\":0", &format!("\"size\":{}", text.len() + 2));
    let files = image().layout().with("index.json", text.as_bytes());
    load(&guard, "a cycle", &files.with(&format!("blobs/sha256/{:064}", 0), text.as_bytes()), "digest");
}

#[test]
fn of_two_files_with_one_name_none_passes_for_the_other() {
    let guard = Guard::new();
    let image = image();
    let good = pack(&image.layout());
    let name = blob(&image.layers[0].blob);
    // A second entry under the blob's name, of another content, before and behind the right one.
    let other = pack(&Files::from([(name, image.layers[1].blob.clone())]));
    let other = &other[..other.len() - 1024];
    let path = guard.input("archive.tar");
    fs::write(&path, [&good[..good.len() - 1024], other, &[0; 1024]].concat()).expect("write");
    guard.refuses("the wrong one last", &path, &[], "its blob has", MEMORY);
    fs::write(&path, [other, &good].concat()).expect("write");
    guard.accepts("the right one last", &path, &[], MEMORY, |_| {});
}

#[test]
fn names_fight_for_nothing() {
    // Two images of one name: both are there, and the name is the last one's.
    let guard = Guard::new();
    let (first, second) = (image(), image().step("LABEL second"));
    let path = guard.input("archive.tar");
    fs::write(&path, pack(&layout(&[&first, &second]))).expect("write");
    guard.accepts("one name twice", &path, &[], MEMORY, |guard| {
        let images = guard.world.rows(&["images"]);
        let named: Vec<_> = images.iter().filter(|row| row["repository"] == "evil").collect();
        assert_eq!(named.len(), 1, "{images:#?}");
        assert_eq!(named[0]["id"], second.id());
    });
}

#[test]
fn what_a_config_says_reaches_no_terminal_unescaped() {
    let guard = Guard::new();
    let escape = "\u{1b}]0;owned\u{7}\u{9b}31m\u{202e}";
    let files = changed(Document::Config, |config| {
        config["author"] = escape.into();
        config["created"] = escape.into();
        config["config"]["Labels"] = json!({ escape: escape });
        config["config"]["Cmd"] = json!([escape]);
        config["history"] = json!([
            { "created_by": escape, "comment": escape, "author": escape, "created": escape },
            { "created_by": "x", "created": "2026-01-01T00:00:00Z" },
        ]);
    });
    let path = guard.input("archive.tar");
    fs::write(&path, pack(&files)).expect("write");
    guard.accepts("control characters", &path, &[], MEMORY, |guard| {
        guard.world.ok(&["create", "--image", "evil", "c"]);
        for args in [
            &["images"][..],
            &["history", "evil"],
            &["history", "--no-trunc", "evil"],
            &["history", "--format", "json", "evil"],
            &["inspect", "evil"],
            &["inspect", "c"],
            &["layers"],
            &["df", "-v"],
            &["ps", "-s"],
        ] {
            let said = guard.world.ok(args);
            // JSON is for programs, and escapes no more than JSON has to.
            let json = said.starts_with(['[', '{']);
            let bad =
                |c: char| (c.is_control() && c != '\n' && !(json && c > '\u{7f}')) || (c == '\u{202e}' && !json);
            assert!(!said.contains(bad), "{args:?}: {said:?}");
        }
        guard.world.ok(&["rm", "c"]);
    });
}
