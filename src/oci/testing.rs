//! Writers of images with chosen faults, for tests.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::digest::Digest;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).unwrap()
}

/// A tar with one file.
pub(crate) fn layer_tar(name: &str, data: &[u8]) -> Vec<u8> {
    Files::new().with(name, data).tar()
}

/// A directory below the target directory that goes with its holder.
pub(crate) fn scratch() -> tempfile::TempDir {
    let parent = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tmp");
    let parent = std::env::var_os("CARGO_TARGET_DIR").map_or(parent, |dir| PathBuf::from(dir).join("tmp"));
    std::fs::create_dir_all(&parent).unwrap();
    tempfile::tempdir_in(parent).unwrap()
}

/// Files by name, in order, to be written as a tar or a directory.
#[derive(Clone, Default)]
pub(crate) struct Files(Vec<(String, Content)>);

#[derive(Clone)]
enum Content {
    File(Vec<u8>),
    Symlink(String),
    Hardlink(String),
}

impl Files {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn with(mut self, name: &str, data: impl Into<Vec<u8>>) -> Self {
        self.0.push((name.into(), Content::File(data.into())));
        self
    }

    pub(crate) fn symlink(mut self, name: &str, target: &str) -> Self {
        self.0.push((name.into(), Content::Symlink(target.into())));
        self
    }

    pub(crate) fn hardlink(mut self, name: &str, target: &str) -> Self {
        self.0.push((name.into(), Content::Hardlink(target.into())));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        let before = self.0.len();
        self.0.retain(|(known, _)| known != name);
        assert_ne!(before, self.0.len(), "{name} isn't there to be taken away");
        self
    }

    /// Change a file's bytes.
    pub(crate) fn edit(mut self, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Self {
        let (_, content) = self.0.iter_mut().find(|(known, _)| known == name).expect("the file to change");
        let Content::File(data) = content else { panic!("{name} isn't a file") };
        change(data);
        self
    }

    /// Rename every file.
    pub(crate) fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        for (name, _) in &mut self.0 {
            *name = rename(name);
        }
        self
    }

    pub(crate) fn blob(self, data: &[u8]) -> Self {
        self.with(&blob_name(data), data)
    }

    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            // Straight into the field, since the crate refuses the names that tests need.
            assert!(name.len() < 100);
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            let data: &[u8] = match content {
                Content::File(data) => data,
                Content::Symlink(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_link_name_literal(target).unwrap();
                    &[]
                }
                Content::Hardlink(target) => {
                    header.set_entry_type(tar::EntryType::Link);
                    header.set_link_name_literal(target).unwrap();
                    &[]
                }
            };
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    pub(crate) fn write_to(&self, dir: &Path) {
        for (name, content) in &self.0 {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content {
                Content::File(data) => std::fs::write(path, data).unwrap(),
                Content::Symlink(target) => std::os::unix::fs::symlink(target, path).unwrap(),
                Content::Hardlink(target) => std::fs::hard_link(dir.join(target), path).unwrap(),
            }
        }
    }
}

pub(crate) fn blob_name(data: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(data).hex())
}

pub(crate) fn descriptor(media_type: &str, data: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(data), "size": data.len() })
}

pub(crate) fn go_arch() -> String {
    super::Platform::host().architecture
}

/// A small image: its layers' plain tars, and the documents made of them.
#[derive(Clone)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) config: Value,
}

impl Image {
    /// An image for this machine with a layer for each text.
    pub(crate) fn new(texts: &[&str]) -> Self {
        let layers: Vec<Vec<u8>> = texts.iter().map(|text| layer_tar("file", text.as_bytes())).collect();
        let diff_ids: Vec<Digest> = layers.iter().map(|tar| Digest::of(tar)).collect();
        let config = json!({
            "os": "linux", "architecture": go_arch(), "config": { "Env": ["A=b"], "Cmd": null },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        Self { layers, config }
    }

    pub(crate) fn for_arch(mut self, architecture: &str) -> Self {
        self.config["architecture"] = architecture.into();
        self
    }

    pub(crate) fn config_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap()
    }

    pub(crate) fn manifest(&self) -> Value {
        let layers: Vec<Value> = self.layers.iter().map(|tar| descriptor(OCI_LAYER, &gzip(tar))).collect();
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &self.config_bytes()), "layers": layers,
        })
    }

    /// Its blobs, with this in place of its own manifest.
    pub(crate) fn blobs(&self, files: Files, manifest: &Value) -> (Files, Value) {
        let manifest = serde_json::to_vec(manifest).unwrap();
        let files = self.layers.iter().fold(files, |files, tar| files.blob(&gzip(tar)));
        (files.blob(&self.config_bytes()).blob(&manifest), descriptor(OCI_MANIFEST, &manifest))
    }

    /// A layout with just this image, its entry annotated so.
    pub(crate) fn layout(&self, annotations: &Value) -> Files {
        self.layout_with(&self.manifest(), annotations)
    }

    pub(crate) fn layout_with(&self, manifest: &Value, annotations: &Value) -> Files {
        let (files, mut entry) = self.blobs(Files::new(), manifest);
        entry["annotations"] = annotations.clone();
        with_index(files, &[entry])
    }

    /// The old `docker save` of this image alone.
    pub(crate) fn docker(&self, tags: &[&str]) -> Files {
        let config = self.config_bytes();
        let id = Digest::of(&config).hex();
        let mut files = Files::new().with(&format!("{id}.json"), config);
        let mut names = Vec::new();
        for (i, tar) in self.layers.iter().enumerate() {
            let name = format!("{i:064}/layer.tar");
            files = files.with(&name, &tar[..]);
            names.push(name);
        }
        let entry = json!([{ "Config": format!("{id}.json"), "RepoTags": tags, "Layers": names }]);
        files.with("manifest.json", entry.to_string())
    }
}

/// Make a layout of blobs by adding its two files.
pub(crate) fn with_index(files: Files, entries: &[Value]) -> Files {
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries });
    files.with("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#).with("index.json", index.to_string())
}
