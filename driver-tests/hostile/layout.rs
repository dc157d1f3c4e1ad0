//! OCI layouts in which one document lies, and all that names it tells the truth about it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::image::{Packing, TestImage, sha256};

/// Which document a change is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Document {
    Config,
    Manifest,
    Index,
}

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Where a blob with these bytes is.
pub(crate) fn blob(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", sha256(bytes))
}

/// The image that all of them are made from.
pub(crate) fn image() -> TestImage {
    TestImage::new("evil").files(Packing::Gzip, &[("file", b"one")]).files(Packing::Gzip, &[("second", b"two")])
}

/// The layout of `image`, each document's bytes changed by `change` before its digest is taken.
pub(crate) fn layout_of(image: &TestImage, change: &dyn Fn(Document, &mut Vec<u8>)) -> Files {
    let mut files = Files::from([("oci-layout".to_string(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())]);
    for layer in &image.layers {
        files.insert(blob(&layer.blob), layer.blob.clone());
    }
    let mut config = image.config_bytes();
    change(Document::Config, &mut config);
    let mut manifest = parsed(&image.manifest_bytes());
    describe(&mut manifest["config"], &config);
    let mut manifest = manifest.to_string().into_bytes();
    change(Document::Manifest, &mut manifest);
    let mut index = parsed(&image.layout()["index.json"]);
    describe(&mut index["manifests"][0], &manifest);
    let mut index = index.to_string().into_bytes();
    change(Document::Index, &mut index);
    files.insert(blob(&config), config);
    files.insert(blob(&manifest), manifest);
    files.insert("index.json".to_string(), index);
    files
}

/// The layout of [`image`] with one document replaced.
pub(crate) fn replaced(document: Document, bytes: &[u8]) -> Files {
    layout_of(&image(), &|which, to| {
        if which == document {
            *to = bytes.to_vec();
        }
    })
}

/// The layout of [`image`] with one document changed as JSON.
pub(crate) fn changed(document: Document, change: impl Fn(&mut Value)) -> Files {
    layout_of(&image(), &|which, bytes| {
        if which == document {
            let mut value = parsed(bytes);
            change(&mut value);
            *bytes = value.to_string().into_bytes();
        }
    })
}

fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON of our own")
}

fn describe(descriptor: &mut Value, bytes: &[u8]) {
    descriptor["digest"] = format!("sha256:{}", sha256(bytes)).into();
    descriptor["size"] = bytes.len().into();
}

/// Write files below a new directory.
pub(crate) fn write(files: &Files, dir: &Path) {
    let _ = fs::remove_dir_all(dir);
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
        fs::write(path, bytes).expect("write");
    }
}
