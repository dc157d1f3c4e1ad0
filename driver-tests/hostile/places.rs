//! Images that name places outside of themselves: by digests, by paths, by links.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType};
use serde_json::{Value, json};

use crate::guard::{Guard, UNMEASURED};
use crate::layout::{Document, blob, changed, image, write};
use crate::support::image::{pack, sha256};
use crate::writer::{Raw, Style, Tar};

/// A `docker save` archive: `manifest.json`, the config and the layers, each under a name of its own.
struct Docker {
    config: String,
    layers: Vec<String>,
    tar: Tar,
}

impl Docker {
    fn new() -> Self {
        let image = image();
        let config = image.config_bytes();
        let mut docker =
            Self { config: format!("{}.json", sha256(&config)), layers: Vec::new(), tar: Tar::default() };
        docker.tar.entry(&Raw::new(b'0', &docker.config).data(config), Style::Gnu);
        for (number, layer) in image.layers.iter().enumerate() {
            docker.layers.push(format!("{number}/layer.tar"));
            docker.tar.entry(&Raw::new(b'0', &docker.layers[number]).data(&layer.tar), Style::Gnu);
        }
        docker
    }

    fn with(mut self, raw: &Raw) -> Self {
        self.tar.entry(raw, Style::Gnu);
        self
    }

    fn described(self, change: impl Fn(&mut Value)) -> Vec<u8> {
        let mut manifest = json!([{ "Config": self.config, "RepoTags": ["evil:1"], "Layers": self.layers }]);
        change(&mut manifest);
        self.with(&Raw::new(b'0', "manifest.json").data(manifest.to_string())).tar.end()
    }

    /// In place of the second layer, this link.
    fn second(self, kind: u8, target: &str) -> Vec<u8> {
        self.with(&Raw::new(kind, "1/layer.tar").link(target)).described(|_| {})
    }
}

fn link(kind: u8, name: &str, target: &str) -> Raw {
    Raw::new(kind, name).link(target)
}

#[test]
fn names_in_docker_archives() {
    let guard = Guard::new();
    let canary = guard.canary().display().to_string();
    // The canary's own tree holds a layer that would do: right in content, wrong in place.
    let secret = format!("{canary}/file");
    let config = |name: &str| {
        let name = name.to_string();
        Docker::new().described(move |manifest| manifest[0]["Config"] = name.clone().into())
    };
    let layer = |name: &str| {
        let name = name.to_string();
        Docker::new().described(move |manifest| manifest[0]["Layers"][1] = name.clone().into())
    };
    let tags = |tags: Value| Docker::new().described(move |manifest| manifest[0]["RepoTags"] = tags.clone());
    for (what, archive, why) in [
        ("config above", config("../canary/file"), "leads out of its directory"),
        ("config far above", config("a/../../../etc/passwd"), "leads out of its directory"),
        ("absolute config", config(&secret), "is an absolute name"),
        ("config without a name", config(""), "isn't a file's name"),
        ("config that is the archive", config("."), "isn't a file's name"),
        ("config with a NUL", config("x\0y"), "isn't a file's name"),
        ("config that isn't there", config("\u{1b}[2Jnowhere"), "it is missing from the archive"),
        ("config that is a layer", config("0/layer.tar"), "JSON"),
        ("config by a digest with a path", config("sha256:../../canary/file"), "leads out of its directory"),
        ("blob by a digest with a path", config("blobs/sha256/../../../canary/file"), "leads out of its directory"),
        ("layer above", layer("../canary/file"), "leads out of its directory"),
        ("absolute layer", layer(&secret), "is an absolute name"),
        ("layer that is a directory", layer("1"), "it is missing from the archive"),
        ("layer with a NUL", layer("1/layer.tar\0"), "isn't a file's name"),
        ("tag with a path", tags(json!(["../../canary:1"])), "isn't a registry's address"),
        ("tag with control characters", tags(json!(["evil\u{1b}[31m:1"])), "isn't a repository name"),
        ("tag of a megabyte", tags(json!(["e".repeat(1 << 20)])), "longer than 255 bytes"),
        ("symlink to the host", Docker::new().second(b'2', &secret), "outside of the archive"),
        ("symlink above", Docker::new().second(b'2', "../../canary/file"), "outside of the archive"),
        ("symlink through the host and back", Docker::new().second(b'2', "../../input/../0/layer.tar"), "outside of"),
        ("symlink to itself", Docker::new().second(b'2', "layer.tar"), "link through more than"),
        ("symlink to nothing", Docker::new().second(b'2', "../2/layer.tar"), "which is missing"),
        (
            "symlink to a directory",
            Docker::new().with(&Raw::new(b'5', "d")).second(b'2', "../d"),
            "isn't a regular file",
        ),
        ("hard link to the host", Docker::new().second(b'1', &secret), "absolute name"),
        ("hard link above", Docker::new().second(b'1', "../canary/file"), "leads out of its directory"),
        ("hard link to itself", Docker::new().second(b'1', "1/layer.tar"), "link through more than"),
        ("device in place of a layer", Docker::new().second(b'4', ""), "isn't a regular file"),
        ("FIFO in place of a layer", Docker::new().second(b'6', ""), "isn't a regular file"),
        (
            "manifest that is a symlink",
            Docker::new().with(&link(b'2', "manifest.json", &secret)).tar.end(),
            "outside of",
        ),
        (
            "entry above",
            Docker::new().with(&Raw::new(b'0', "../canary/file").data("x")).described(|_| {}),
            "leads out",
        ),
        ("absolute entry", Docker::new().with(&Raw::new(b'0', &secret).data("x")).described(|_| {}), "absolute name"),
        ("no layer for a diff ID", Docker::new().described(|m| m[0]["Layers"] = json!([])), "0 layers, its config 2"),
        (
            "the same layer for both",
            Docker::new().described(|m| m[0]["Layers"][1] = m[0]["Layers"][0].clone()),
            "digest",
        ),
        ("layers that aren't names", Docker::new().described(|m| m[0]["Layers"] = json!([{}, 1])), "JSON"),
        ("a list of nothing", Docker::new().described(|m| *m = json!([])), "it holds no image"),
        ("no list", Docker::new().described(|m| *m = json!({ "Config": "x" })), "JSON"),
    ] {
        let path = guard.input("archive.tar");
        fs::write(&path, archive).expect("write");
        guard.refuses(what, &path, &[], why, UNMEASURED);
    }
}

#[test]
fn digests_in_layouts() {
    let guard = Guard::new();
    let digest = |document, pointer: &'static str, digest: &'static str| {
        changed(document, move |value| *value.pointer_mut(pointer).expect("a digest") = digest.into())
    };
    for (what, files, why) in [
        ("index", digest(Document::Index, "/manifests/0/digest", "sha256:../../../canary/file"), "64 lower-case hex"),
        (
            "manifest's config",
            digest(Document::Manifest, "/config/digest", "sha256:/etc/passwd"),
            "64 lower-case hex",
        ),
        ("manifest's layer", digest(Document::Manifest, "/layers/1/digest", "../canary/file"), "start with sha256:"),
        ("config's diff ID", digest(Document::Config, "/rootfs/diff_ids/0", "sha256:.."), "64 lower-case hex"),
        (
            "algorithm above",
            digest(Document::Manifest, "/layers/0/digest", "../../canary:file"),
            "start with sha256:",
        ),
        (
            "upper case",
            digest(Document::Manifest, "/layers/0/digest", concat!("sha256:", "FF", "00")),
            "64 lower-case",
        ),
        (
            "control characters",
            digest(Document::Index, "/manifests/0/digest", "sha256:\u{1b}[2J"),
            "64 lower-case hex",
        ),
        ("other algorithm", digest(Document::Index, "/manifests/0/digest", "sha512:ab"), "only sha256 is supported"),
    ] {
        for archive in [true, false] {
            let path = guard.input("layout");
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(&path);
            if archive {
                fs::write(&path, pack(&files)).expect("write");
            } else {
                write(&files, &path);
            }
            guard.refuses(what, &path, &[], why, UNMEASURED);
            let _ = fs::remove_file(&path);
        }
    }
}

/// What is changed about a layout's directory. The canary is `../canary` from it.
type Tamper = fn(&Path);

/// The first layer's blob.
fn layer() -> String {
    blob(&image().layers[0].blob)
}

#[test]
fn links_and_devices_in_layout_directories() {
    let guard = Guard::new();
    let tampers: &[(&str, Tamper, &str)] = &[
        ("blobs elsewhere", |dir| moved(dir, "blobs"), "is or lies behind a symlink"),
        ("blobs/sha256 elsewhere", |dir| moved(dir, "blobs/sha256"), "is or lies behind a symlink"),
        ("a blob elsewhere", |dir| moved(dir, &layer()), "is or lies behind a symlink"),
        ("index elsewhere", |dir| moved(dir, "index.json"), "is or lies behind a symlink"),
        ("version elsewhere", |dir| moved(dir, "oci-layout"), "is or lies behind a symlink"),
        ("index through /proc", |dir| in_place(dir, "index.json", |p| symlink("/proc/self/fd/0", p)), "symlink"),
        ("index that is a FIFO", |dir| in_place(dir, "index.json", |p| node(p, FileType::Fifo)), "regular file"),
        (
            "index that is memory",
            |dir| in_place(dir, "index.json", |p| node(p, FileType::CharacterDevice)),
            "regular",
        ),
        ("index that is a directory", |dir| in_place(dir, "index.json", fs::create_dir), "isn't a regular file"),
        ("a blob that is a FIFO", |dir| in_place(dir, &layer(), |p| node(p, FileType::Fifo)), "regular file"),
        ("a blob that is a socket", |dir| in_place(dir, &layer(), |p| node(p, FileType::Socket)), "regular file"),
        ("a blob of a terabyte", |dir| grow(dir, &layer()), "its descriptor says"),
        ("an index of a terabyte", |dir| grow(dir, "index.json"), "more than the limit of 4194304"),
        (
            "nothing in it",
            |dir| fs::remove_dir_all(dir).and_then(|()| fs::create_dir(dir)).expect("empty"),
            "holds no image",
        ),
    ];
    for (what, tamper, why) in tampers {
        let dir = guard.input("layout");
        write(&image().layout(), &dir);
        tamper(&dir);
        guard.refuses(what, &dir, &[], why, UNMEASURED);
    }
}

/// Move something out of the layout, and leave a symlink to it. All that it leads to is right.
fn moved(dir: &Path, name: &str) {
    let outside = dir.with_file_name("outside");
    let _ = fs::remove_dir_all(&outside);
    let _ = fs::remove_file(&outside);
    fs::rename(dir.join(name), &outside).expect("rename");
    symlink(&outside, dir.join(name)).expect("symlink");
}

fn in_place(dir: &Path, name: &str, make: impl FnOnce(std::path::PathBuf) -> std::io::Result<()>) {
    fs::remove_file(dir.join(name)).expect("remove");
    make(dir.join(name)).expect("make");
}

fn node(path: std::path::PathBuf, kind: FileType) -> std::io::Result<()> {
    // /dev/zero, where it is a device.
    Ok(rustix::fs::mknodat(CWD, path, kind, 0o600.into(), rustix::fs::makedev(1, 5))?)
}

fn grow(dir: &Path, name: &str) {
    let file = fs::File::options().write(true).open(dir.join(name)).expect("open");
    file.set_len(1 << 40).expect("a hole");
}
