//! Images made by the tests: layers from lists of files, as an OCI layout, an OCI archive or a `docker save` archive.
//!
//! Written with the `tar` crate's builder and nothing of the product, so that what is loaded was not written by what loads.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How a layer's blob is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// One layer as it is written.
#[derive(Debug, Clone)]
pub(crate) struct BuiltLayer {
    pub(crate) tar: Vec<u8>,
    pub(crate) blob: Vec<u8>,
    media_type: &'static str,
}

/// An image: layers, steps of its history, configuration.
#[derive(Debug, Clone)]
pub(crate) struct TestImage {
    pub(crate) name: String,
    pub(crate) layers: Vec<BuiltLayer>,
    history: Vec<Value>,
    config: Value,
}

/// The hexadecimal sha256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256(bytes))
}

/// A layer's tar from files with content; directories end in `/`, and `.wh.` names are whiteouts as ever.
pub(crate) fn tar_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mtime(1_700_000_000);
        header.set_uid(0);
        header.set_gid(0);
        if name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            builder.append_data(&mut header, name, &[][..]).expect("write tar");
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, name, *content).expect("write tar");
        }
    }
    builder.into_inner().expect("write tar")
}

impl TestImage {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_string(),
            layers: Vec::new(),
            history: Vec::new(),
            config: json!({ "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] }),
        }
    }

    /// Add a layer of these files.
    pub(crate) fn files(self, packing: Packing, entries: &[(&str, &[u8])]) -> Self {
        self.tar(packing, tar_of(entries))
    }

    /// Add a layer of this tar.
    pub(crate) fn tar(mut self, packing: Packing, tar: Vec<u8>) -> Self {
        let (blob, media_type) = match packing {
            Packing::Plain => (tar.clone(), "application/vnd.oci.image.layer.v1.tar"),
            Packing::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gzip.write_all(&tar).expect("gzip");
                (gzip.finish().expect("gzip"), "application/vnd.oci.image.layer.v1.tar+gzip")
            }
            Packing::Zstd => {
                (zstd::encode_all(&tar[..], 1).expect("zstd"), "application/vnd.oci.image.layer.v1.tar+zstd")
            }
        };
        self.history
            .push(json!({ "created": "2026-01-01T00:00:00Z", "created_by": format!("COPY {}", self.layers.len()) }));
        self.layers.push(BuiltLayer { tar, blob, media_type });
        self
    }

    /// Add a step that only configures.
    pub(crate) fn step(mut self, created_by: &str) -> Self {
        self.history.push(json!({ "created_by": created_by, "empty_layer": true }));
        self
    }

    /// Replace the `config` object of the configuration.
    pub(crate) fn config(mut self, config: Value) -> Self {
        self.config = config;
        self
    }

    pub(crate) fn diff_ids(&self) -> Vec<String> {
        self.layers.iter().map(|layer| digest(&layer.tar)).collect()
    }

    /// The configuration's bytes.
    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        serde_json::to_vec(&json!({
            "architecture": architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": self.diff_ids() },
            "history": self.history,
        }))
        .expect("JSON")
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config_bytes())
    }

    /// The manifest's bytes.
    pub(crate) fn manifest_bytes(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|layer| {
                json!({ "mediaType": layer.media_type, "digest": digest(&layer.blob), "size": layer.blob.len() })
            })
            .collect();
        serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config),
                "size": config.len(),
            },
            "layers": layers,
        }))
        .expect("JSON")
    }

    /// The files of an OCI layout with this image alone.
    pub(crate) fn layout(&self) -> BTreeMap<String, Vec<u8>> {
        layout(&[self])
    }

    pub(crate) fn write_layout(&self, directory: &Path) {
        for (name, bytes) in self.layout() {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("mkdir");
            fs::write(path, bytes).expect("write layout");
        }
    }

    pub(crate) fn write_archive(&self, path: &Path) {
        fs::write(path, pack(&self.layout())).expect("write archive");
    }

    /// The form that `docker save` wrote before version 25.
    pub(crate) fn docker_archive(&self) -> Vec<u8> {
        let config = self.config_bytes();
        let config_name = format!("{}.json", sha256(&config));
        let mut files = BTreeMap::from([(config_name.clone(), config)]);
        let mut layers = Vec::new();
        for layer in &self.layers {
            let name = format!("{}/layer.tar", sha256(&layer.blob));
            files.insert(name.clone(), layer.tar.clone());
            layers.push(name);
        }
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": layers }]);
        files.insert("manifest.json".into(), serde_json::to_vec(&manifest).expect("JSON"));
        pack(&files)
    }
}

/// The files of an OCI layout with several images.
pub(crate) fn layout(images: &[&TestImage]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::from([("oci-layout".to_string(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())]);
    let mut manifests = Vec::new();
    let mut blob = |bytes: Vec<u8>| {
        let hex = sha256(&bytes);
        files.insert(format!("blobs/sha256/{hex}"), bytes);
    };
    for image in images {
        let manifest = image.manifest_bytes();
        manifests.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&manifest),
            "size": manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": image.name },
        }));
        blob(manifest);
        blob(image.config_bytes());
        image.layers.iter().for_each(|layer| blob(layer.blob.clone()));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    files.insert("index.json".into(), serde_json::to_vec(&index).expect("JSON"));
    files
}

/// A plain tar of files.
pub(crate) fn pack(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let entries: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    tar_of(&entries)
}

impl TestImage {
    /// Store a layer's blob as these bytes; its tar stays.
    pub(crate) fn with_blob(mut self, layer: usize, blob: Vec<u8>) -> Self {
        self.layers[layer].blob = blob;
        self.layers[layer].media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        self
    }
}
