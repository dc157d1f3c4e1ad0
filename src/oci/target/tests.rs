use std::cell::Cell;
use std::fs;

use super::*;
use crate::oci::testing::{layer_tar, scratch};
use crate::oci::{Input, Platform, Source, SourceLimits};

const EVERY: [(Format, Compression); 7] = [
    (Format::DockerArchive, Compression::Plain),
    (Format::OciArchive, Compression::Plain),
    (Format::OciArchive, Compression::Gzip),
    (Format::OciArchive, Compression::Zstd),
    (Format::OciLayout, Compression::Plain),
    (Format::OciLayout, Compression::Gzip),
    (Format::OciLayout, Compression::Zstd),
];

/// Plain tars by their digest, which say how often each was written.
#[derive(Default)]
struct Tars(BTreeMap<DiffId, (Vec<u8>, Cell<u32>)>);

impl Tars {
    fn add(&mut self, tar: Vec<u8>) -> DiffId {
        let diff_id = DiffId(Digest::of(&tar));
        self.0.insert(diff_id, (tar, Cell::new(0)));
        diff_id
    }
}

impl Layers for Tars {
    fn size(&self, layer: DiffId) -> Result<u64> {
        Ok(self.0[&layer].0.len() as u64)
    }

    fn write(&self, layer: DiffId, out: &mut dyn Write) -> Result<()> {
        let (tar, written) = &self.0[&layer];
        written.set(written.get() + 1);
        tar.chunks(700).try_for_each(|part| out.write_all(part)).map_err(|e| Error::system("write", &e))
    }
}

/// Lies about a length, or fails in the middle.
struct Broken<'a>(&'a Tars, i64);

impl Layers for Broken<'_> {
    fn size(&self, layer: DiffId) -> Result<u64> {
        self.0.size(layer).map(|size| size.checked_add_signed(self.1).unwrap())
    }

    fn write(&self, layer: DiffId, out: &mut dyn Write) -> Result<()> {
        self.0.write(layer, out)?;
        if self.1 == 0 { Err(Error::new(Kind::Damaged, "broken")) } else { Ok(()) }
    }
}

fn image(diff_ids: &[DiffId], names: &[&str]) -> TargetImage {
    let config = serde_json::json!({
        "os": "linux", "architecture": Platform::host().architecture,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "comment": "as it came",
    });
    TargetImage {
        // Not as we would write it.
        config: format!("{config:#}").into_bytes(),
        diff_ids: diff_ids.to_vec(),
        names: names.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

fn images(tars: &mut Tars) -> Vec<TargetImage> {
    let (base, one, two) = (
        tars.add(layer_tar("base", b"base")),
        tars.add(layer_tar("one", &[1; 100_000])),
        tars.add(layer_tar("two", b"2")),
    );
    vec![
        image(&[base, one], &["nginx", "ghcr.io/o/r:v1"]),
        image(&[base, two, base], &["localhost:5000/two:1"]),
        image(&[base], &[]),
        image(&[], &["empty"]),
    ]
}

#[test]
fn every_form_is_read_again_as_it_was() {
    let mut tars = Tars::default();
    let images = images(&mut tars);
    for (format, compression) in EVERY {
        let dir = scratch();
        let what = format!("{format:?} {compression:?}");
        let target = Target { format, compression, spool: dir.path().into() };
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        target.write(&images, &tars, Output::Path(&first)).unwrap();
        for (_, written) in tars.0.values() {
            assert_eq!(written.replace(0), 1, "{what}: each layer once");
        }
        target.write(&images, &tars, Output::Path(&second)).unwrap();
        tars.0.values().for_each(|(_, written)| written.set(0));
        assert_eq!(read(&first), read(&second), "{what}: twice the same");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{what}: and nothing else");
        if format != Format::OciLayout {
            let mut streamed = Vec::new();
            target.write(&images, &tars, Output::Stream(&mut streamed)).unwrap();
            tars.0.values().for_each(|(_, written)| written.set(0));
            assert_eq!(streamed, fs::read(&first).unwrap(), "{what}");
        }
        let source = Source::open(Input::Path(first), dir.path(), &SourceLimits::default()).unwrap();
        assert_eq!(source.images().len(), images.len(), "{what}");
        for (read, written) in source.images().iter().zip(&images) {
            assert_eq!(read.config_bytes, written.config, "{what}");
            assert_eq!(read.names, written.names, "{what}");
            assert_eq!(read.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>(), written.diff_ids, "{what}");
            assert!(read.manifest.is_some() || format == Format::DockerArchive, "{what}");
            for layer in &read.layers {
                let expected = crate::oci::Expected::of(layer, 1 << 30);
                let raw = source.layer_reader(layer).unwrap();
                let stream = crate::oci::LayerStream::start(raw, expected, std::sync::Arc::default()).unwrap();
                assert_eq!(stream.finish().unwrap().diff_id, layer.diff_id, "{what}");
            }
        }
    }
}

/// The bytes of a file, or of all files of a directory by name.
fn read(path: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    if path.is_file() {
        return BTreeMap::from([(PathBuf::new(), fs::read(path).unwrap())]);
    }
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(path).unwrap() {
        let name = PathBuf::from(entry.unwrap().file_name());
        files.extend(read(&path.join(&name)).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
    }
    files
}

#[test]
fn docker_finds_what_it_looks_for() {
    let mut tars = Tars::default();
    let images = images(&mut tars);
    let target = Target { format: Format::DockerArchive, compression: Compression::Plain, spool: "/nowhere".into() };
    let mut archive = Vec::new();
    target.write(&images, &tars, Output::Stream(&mut archive)).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_string();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        files.insert(name, bytes);
    }
    let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&files[name]).unwrap();
    let manifest = json("manifest.json");
    assert_eq!(manifest[0]["RepoTags"], serde_json::json!(["docker.io/library/nginx:latest", "ghcr.io/o/r:v1"]));
    assert_eq!(manifest[2]["RepoTags"], serde_json::Value::Null);
    let layer = |diff_id: DiffId| format!("blobs/sha256/{}", diff_id.0.hex());
    assert_eq!(manifest[0]["Layers"][1], layer(images[0].diff_ids[1]));
    assert_eq!(manifest[0]["LayerSources"][images[0].diff_ids[0].to_string()]["size"], 2048);
    assert_eq!(files[manifest[0]["Config"].as_str().unwrap()], images[0].config);
    let repositories = json("repositories");
    assert_eq!(repositories["nginx"]["latest"], images[0].diff_ids[1].0.hex());
    assert_eq!(repositories["localhost:5000/two"]["1"], images[1].diff_ids[2].0.hex());
    let listed = &json("index.json")["manifests"];
    assert_eq!(listed.as_array().unwrap().len(), 5);
    assert_eq!(listed[0]["annotations"]["io.containerd.image.name"], "docker.io/library/nginx:latest");
    assert_eq!(listed[1]["annotations"]["org.opencontainers.image.ref.name"], "ghcr.io/o/r:v1");
    assert_eq!(listed[0]["digest"], listed[1]["digest"]);
    assert!(listed[3]["annotations"].is_null());
    assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
}

#[test]
fn what_fails_leaves_nothing() {
    let mut tars = Tars::default();
    let images = images(&mut tars);
    for (format, compression) in EVERY {
        for (fault, words) in [(1, "1 bytes shorter"), (-1, "longer than it was to be"), (0, "broken")] {
            // What is compressed has no length before it is there.
            if fault != 0 && compression != Compression::Plain {
                continue;
            }
            let dir = scratch();
            let target = Target { format, compression, spool: dir.path().into() };
            let out = dir.path().join("out");
            let write = || target.write(&images, &Broken(&tars, fault), Output::Path(&out)).unwrap_err().to_string();
            let error = write();
            assert!(error.contains(words), "{format:?}: {error}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{format:?} {fault}");
            // What was there before is there still.
            match format {
                Format::OciLayout => fs::create_dir(&out).unwrap(),
                _ => fs::write(&out, "old").unwrap(),
            }
            let before = read(&out);
            write();
            assert_eq!(read(&out), before, "{format:?} {fault}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{format:?} {fault}");
        }
    }
}

#[test]
fn places_that_are_none() {
    let tars = Tars::default();
    let dir = scratch();
    let target = |format| Target { format, compression: Compression::Plain, spool: dir.path().into() };
    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("file"), "").unwrap();
    let fails = |format, path: &Path| target(format).write(&[], &tars, Output::Path(path)).unwrap_err();
    assert_eq!(fails(Format::OciLayout, &full).kind(), Kind::Exists);
    assert_eq!(fails(Format::DockerArchive, &full).kind(), Kind::Invalid);
    assert_eq!(fails(Format::OciArchive, &dir.path().join("none/x")).kind(), Kind::NotFound);
    assert_eq!(fails(Format::OciLayout, &dir.path().join("none/x")).kind(), Kind::NotFound);
    assert!(fails(Format::OciLayout, &full.join("file")).to_string().contains("Not a directory"));
    let streamed = target(Format::OciLayout).write(&[], &tars, Output::Stream(&mut Vec::new()));
    assert_eq!(streamed.unwrap_err().kind(), Kind::Invalid);
    let compressed = Target { compression: Compression::Gzip, ..target(Format::DockerArchive) };
    assert_eq!(compressed.write(&[], &tars, Output::Path(&full)).unwrap_err().kind(), Kind::Invalid);
    // Neither a device nor a symlink is replaced.
    let (null, none_left) = (dir.path().join("null"), dir.path().join("none left"));
    for (path, minor) in [(&null, 3), (&none_left, 7)] {
        use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from_raw_mode(0o600), makedev(1, minor)).unwrap();
    }
    target(Format::DockerArchive).write(&[], &tars, Output::Path(&null)).unwrap();
    assert!(!fs::metadata(&null).unwrap().is_file());
    assert_eq!(fails(Format::DockerArchive, &none_left).kind(), Kind::NoSpace);
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("full/file", &link).unwrap();
    target(Format::DockerArchive).write(&[], &tars, Output::Path(&link)).unwrap();
    assert!(link.is_symlink() && full.join("file").metadata().unwrap().len() > 0);
}

#[test]
fn dockers_layers_have_a_type_in_an_oci_manifest() {
    let oci = "application/vnd.oci.image.layer";
    for (docker, expected) in [
        ("application/vnd.docker.image.rootfs.diff.tar", format!("{oci}.v1.tar")),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", format!("{oci}.v1.tar+gzip")),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", format!("{oci}.v1.tar+zstd")),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", format!("{oci}.nondistributable.v1.tar+gzip")),
        ("application/vnd.oci.image.layer.v1.tar+zstd", format!("{oci}.v1.tar+zstd")),
    ] {
        assert_eq!(super::oci_layer_type(docker), expected);
    }
}
