//! Every form of input, and every fault that it can have before a layer is read.

mod refused;

use std::io::Cursor;

use serde_json::{Value, json};

use super::*;
use crate::oci::testing::{
    Files as TestFiles, Image, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, blob_name, descriptor, go_arch, gzip,
    layer_tar, scratch, with_index, zstd,
};
use crate::oci::{Expected, LayerStream};

fn open_bytes(bytes: Vec<u8>, limits: &SourceLimits) -> Result<Source> {
    Source::open(Input::Stdin(Box::new(Cursor::new(bytes))), scratch().path(), limits)
}

fn open(files: &TestFiles) -> Result<Source> {
    open_bytes(files.tar(), &SourceLimits::default())
}

fn open_dir(files: &TestFiles) -> Result<Source> {
    let dir = scratch();
    files.write_to(dir.path());
    Source::open(Input::Path(dir.path().into()), dir.path(), &SourceLimits::default())
}

#[track_caller]
fn refused(result: Result<Source>, words: &str) {
    let error = result.map(|source| source.images.len()).expect_err(words);
    assert!(matches!(error.kind(), Kind::BadInput), "{:?}: {error}", error.kind());
    assert!(error.to_string().contains(words), "{words:?} isn't in: {error}");
}

/// All layers as they come out of the verified stream.
fn tars(source: &Source, image: &SourceImage) -> Vec<Vec<u8>> {
    let read = |layer: &SourceLayer| {
        let raw = source.layer_reader(layer).unwrap();
        let mut stream = LayerStream::start(raw, Expected::of(layer, 1 << 30), Default::default()).unwrap();
        let mut tar = Vec::new();
        stream.read_to_end(&mut tar).unwrap();
        stream.finish().unwrap();
        tar
    };
    image.layers.iter().map(read).collect()
}

fn names(image: &SourceImage) -> Vec<String> {
    image.names.iter().map(Reference::canonical).collect()
}

fn named(name: &str) -> Value {
    json!({ "io.containerd.image.name": name })
}

#[test]
fn one_image_reads_the_same_from_every_form() {
    let image = Image::new(&["base", "top"]);
    let layout = image.layout(&named("docker.io/library/nginx:1"));
    let docker = image.docker(&["nginx:1"]);
    // Docker 25: both in one, and the manifest.json names the layout's blobs.
    let both = layout.clone().with(
        "manifest.json",
        json!([{
            "Config": blob_name(&image.config_bytes()), "RepoTags": ["nginx:1", "nginx:extra"],
            "Layers": image.layers.iter().map(|tar| blob_name(&gzip(tar))).collect::<Vec<_>>(),
        }])
        .to_string(),
    );
    let (dir, layout_dir) = (scratch(), scratch());
    layout.write_to(layout_dir.path());
    let from_dir = Input::Path(layout_dir.path().into());
    let mut sources = vec![("directory", Source::open(from_dir, dir.path(), &SourceLimits::default()).unwrap())];
    for (name, files) in [("layout", &layout), ("docker", &docker), ("both", &both)] {
        let tar = files.tar();
        let dotted = files.clone().renamed(|name| format!("./{name}")).tar();
        for (form, bytes) in [("plain", tar.clone()), ("gzip", gzip(&tar)), ("zstd", zstd(&tar)), ("dotted", dotted)]
        {
            let path = dir.path().join(format!("{name}-{form}"));
            std::fs::write(&path, &bytes).unwrap();
            let limits = SourceLimits::default();
            sources.push((name, Source::open(Input::Path(path), dir.path(), &limits).unwrap()));
            sources.push((name, open_bytes(bytes, &limits).unwrap()));
        }
    }
    assert_eq!(sources.len(), 25);
    for (form, source) in &sources {
        let [only] = source.images() else { panic!("{form}") };
        assert_eq!(only.id.0, Digest::of(&image.config_bytes()), "{form}");
        assert_eq!(only.config_bytes, image.config_bytes(), "{form}");
        assert_eq!(only.config.env, ["A=b"], "{form}");
        assert_eq!(tars(source, only), image.layers, "{form}");
        let extra = if *form == "both" { &["docker.io/library/nginx:extra"][..] } else { &[] };
        assert_eq!(names(only), [&["docker.io/library/nginx:1"], extra].concat(), "{form}");
        let manifest = serde_json::to_vec(&image.manifest()).unwrap();
        let has_manifest = *form != "docker";
        assert_eq!(only.manifest, has_manifest.then(|| (Digest::of(&manifest), manifest)), "{form}");
        assert_eq!(only.layers[0].blob.is_some(), has_manifest, "{form}");
    }
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 12, "the spooled copies have no names: {left:?}");
}

#[test]
fn annotations_name_images_as_each_tool_means_them() {
    for (annotations, expected) in [
        (json!({}), &[][..]),
        (named("docker.io/library/a:1"), &["docker.io/library/a:1"]),
        (json!({ "org.opencontainers.image.ref.name": "latest" }), &[]),
        (json!({ "org.opencontainers.image.ref.name": "v1.2" }), &[]),
        (json!({ "org.opencontainers.image.ref.name": "3.19-alpine" }), &[]),
        (json!({ "org.opencontainers.image.ref.name": "nginx" }), &["docker.io/library/nginx:latest"]),
        (json!({ "org.opencontainers.image.ref.name": "a:1" }), &["docker.io/library/a:1"]),
        (json!({ "org.opencontainers.image.ref.name": "quay.io/b/a" }), &["quay.io/b/a:latest"]),
        (json!({ "org.opencontainers.image.ref.name": "no/Name" }), &[]),
        (
            json!({ "io.containerd.image.name": "docker.io/x/a:2", "org.opencontainers.image.ref.name": "2" }),
            &["docker.io/x/a:2"],
        ),
    ] {
        let source = open(&Image::new(&["x"]).layout(&annotations)).unwrap();
        assert_eq!(names(&source.images()[0]), expected, "{annotations}");
    }
    refused(open(&Image::new(&["x"]).layout(&named("no/Name"))), "lower case");
    refused(open(&Image::new(&["x"]).docker(&["no/Name"])), "lower case");
}

#[test]
fn one_image_under_two_names_is_one_image() {
    let image = Image::new(&["x"]);
    let (files, entry) = image.blobs(TestFiles::new(), &image.manifest());
    let entries: Vec<Value> = ["a:1", "a:2"]
        .iter()
        .map(|name| {
            let mut entry = entry.clone();
            entry["annotations"] = named(name);
            entry
        })
        .collect();
    let source = open(&with_index(files, &entries)).unwrap();
    assert_eq!(source.images().len(), 1);
    assert_eq!(names(&source.images()[0]), ["docker.io/library/a:1", "docker.io/library/a:2"]);
}

#[test]
fn old_docker_layers_may_be_links_to_each_other() {
    let image = Image::new(&["same", "same"]);
    let [first, second] = [0, 1].map(|i| format!("{i:064}/layer.tar"));
    let docker = image.docker(&["a"]);
    for files in [
        docker.clone().without(&second).symlink(&second, &format!("../{first}")),
        docker.clone().without(&second).hardlink(&second, &first),
        // podman: the other way round, through two links.
        docker
            .clone()
            .renamed(|name| if name == first { "real.tar".into() } else { name.into() })
            .without(&second)
            .symlink(&first, "../real.tar")
            .symlink(&second, &format!("./../{first}")),
    ] {
        let source = open(&files).unwrap();
        assert_eq!(tars(&source, &source.images()[0]), image.layers);
    }
    let linked = |target: &str| docker.clone().without(&second).symlink(&second, target);
    refused(open(&linked("/etc/passwd")), "outside of the archive");
    refused(open(&linked("../../etc/passwd")), "outside of the archive");
    refused(open(&linked("../missing")), "which is missing");
    refused(open(&linked("layer.tar")), "link through more than");
    refused(open(&docker.clone().without(&second).hardlink(&second, "../x")), "links out");
}

#[test]
fn of_two_entries_with_one_name_the_last_counts() {
    let image = Image::new(&["x"]);
    let layer = format!("{:064}/layer.tar", 0);
    let files = image.docker(&["a"]).with(&layer, "an old version");
    let source = open(&files).unwrap();
    assert_eq!(source.images()[0].layers[0].size(), 14);
}

#[test]
fn go_containerregistrys_archives_have_digests_for_names_and_compressed_layers() {
    let image = Image::new(&["x"]);
    let config = image.config_bytes();
    let id = Digest::of(&config);
    let manifest = json!([{ "Config": id, "RepoTags": null, "Layers": ["l.tar.gz"] }]).to_string();
    let files = TestFiles::new()
        .with(&id.to_string(), config)
        .with("l.tar.gz", gzip(&image.layers[0]))
        .with("manifest.json", manifest);
    let source = open(&files).unwrap();
    assert_eq!(tars(&source, &source.images()[0]), image.layers);
    assert!(names(&source.images()[0]).is_empty());
}

/// An index of these images, each with a platform if one is given.
fn index_of(files: TestFiles, images: &[(&Image, Option<Value>)]) -> (TestFiles, Vec<u8>) {
    let mut entries = Vec::new();
    let mut files = files;
    for (image, platform) in images {
        let (more, mut entry) = image.blobs(files, &image.manifest());
        files = more;
        if let Some(platform) = platform {
            entry["platform"] = platform.clone();
        }
        entries.push(entry);
    }
    (files, json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string().into())
}

fn arch(architecture: &str) -> Option<Value> {
    Some(json!({ "os": "linux", "architecture": architecture }))
}

#[test]
fn an_index_gives_the_image_for_this_machine() {
    let (mine, foreign, attestation) =
        (Image::new(&["mine"]), Image::new(&["other"]).for_arch("mips"), Image::new(&[]));
    let unknown = Some(json!({ "os": "unknown", "architecture": "unknown" }));
    for images in [
        vec![(&foreign, arch("mips")), (&mine, arch(&go_arch())), (&attestation, unknown.clone())],
        vec![(&attestation, unknown.clone()), (&mine, arch(&go_arch()))],
        vec![(&foreign, None), (&mine, None)],
        vec![(&foreign, None), (&mine, arch(&go_arch()))],
        vec![(&mine, Some(json!({ "os": "", "architecture": "" }))), (&foreign, arch("mips"))],
    ] {
        let (files, index) = index_of(TestFiles::new(), &images);
        let mut entry = descriptor(OCI_INDEX, &index);
        entry["annotations"] = named("multi:1");
        let nested = open(&with_index(files.clone().blob(&index), &[entry])).unwrap();
        assert_eq!(nested.images().len(), 1);
        assert_eq!(tars(&nested, &nested.images()[0]), mine.layers);
        assert_eq!(names(&nested.images()[0]), ["docker.io/library/multi:1"]);
    }
    // Straight in the top index.
    let (files, index) = index_of(TestFiles::new(), &[(&foreign, arch("mips")), (&mine, arch(&go_arch()))]);
    let source = open(&files.with("index.json", index)).unwrap();
    assert_eq!(tars(&source, &source.images()[0]), mine.layers);
    assert_eq!(source.images().len(), 1);
}

#[test]
fn an_index_without_this_machine_says_what_it_has() {
    let (a, b) = (Image::new(&["a"]).for_arch("mips"), Image::new(&["b"]).for_arch("sparc"));
    for platforms in [[arch("mips"), arch("sparc")], [None, None]] {
        let [p, q] = platforms.clone();
        let (files, index) = index_of(TestFiles::new(), &[(&a, p), (&b, q)]);
        let error = open(&with_index(files.blob(&index), &[descriptor(OCI_INDEX, &index)])).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        let words = format!("no image for {}; it has linux/mips, linux/sparc", super::super::Platform::host());
        assert!(error.to_string().contains(&words), "{error}");
    }
    let (files, index) = index_of(TestFiles::new(), &[(&a, arch("mips"))]);
    let error = open(&files.with("index.json", index)).unwrap_err();
    assert!(error.to_string().contains("it has linux/mips"), "{error}");
}

#[test]
fn indexes_nest_three_deep_and_no_deeper() {
    let image = Image::new(&["x"]);
    let (mut files, mut entry) = image.blobs(TestFiles::new(), &image.manifest());
    for depth in 1..=4 {
        let index = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string();
        files = files.blob(index.as_bytes());
        entry = descriptor(OCI_INDEX, index.as_bytes());
        let source = open(&with_index(files.clone(), &[entry.clone()]));
        if depth <= 3 {
            assert_eq!(source.unwrap().images().len(), 1, "{depth}");
        } else {
            refused(source, "indexes within indexes");
        }
    }
}

#[test]
fn docker_media_types_mean_the_same() {
    let image = Image::new(&["x"]);
    let mut manifest = image.manifest();
    manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json".into();
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
    let (files, mut entry) = image.blobs(TestFiles::new(), &manifest);
    entry["mediaType"] = manifest["mediaType"].clone();
    entry["platform"] = arch(&go_arch()).unwrap();
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let index = json!({ "schemaVersion": 2, "mediaType": list, "manifests": [entry] }).to_string();
    let source = open(&with_index(files.blob(index.as_bytes()), &[descriptor(list, index.as_bytes())])).unwrap();
    assert_eq!(tars(&source, &source.images()[0]), image.layers);
}

#[test]
fn artifacts_are_passed_over() {
    let image = Image::new(&["x"]);
    let mut artifact = image.manifest();
    artifact["config"]["mediaType"] = "application/vnd.oci.empty.v1+json".into();
    let (files, image_entry) = image.blobs(TestFiles::new(), &image.manifest());
    let (files, artifact_entry) = image.blobs(files, &artifact);
    let strange = descriptor("application/x-strange", b"absent");
    let all = [artifact_entry.clone(), strange, image_entry];
    assert_eq!(open(&with_index(files.clone(), &all)).unwrap().images().len(), 1);
    refused(
        open(&with_index(files.clone(), &all[..2])),
        "no image, only other artifacts (\"application/vnd.oci.empty",
    );
    refused(open(&with_index(files.clone(), &[])), "index is empty");
    // The docker archive beside it is then what counts.
    let docker = image.docker(&["a:1"]);
    let files = with_index(docker.blob(&serde_json::to_vec(&artifact).unwrap()), &[artifact_entry]);
    let files = files.blob(&image.config_bytes());
    assert_eq!(names(&open(&files).unwrap().images()[0]), ["docker.io/library/a:1"]);
}

#[test]
fn foreign_layers_count_if_they_are_there() {
    let image = Image::new(&["x"]);
    let mut manifest = image.manifest();
    manifest["layers"][0]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    let files = image.layout_with(&manifest, &json!({}));
    assert_eq!(open(&files).unwrap().images().len(), 1);
    let error = open(&files.without(&blob_name(&gzip(&image.layers[0])))).unwrap_err();
    assert!(error.hint().unwrap().contains("foreign"), "{error}");
    manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
    let error = open(&image.layout_with(&manifest, &json!({}))).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("layer 1 of 1"), "{error}");
}

#[test]
fn entries_that_lead_outside_are_refused() {
    let layout = Image::new(&["x"]).layout(&json!({}));
    for name in ["../evil", "/etc/evil", "a/../../evil", "./../evil", ".."] {
        refused(open(&layout.clone().with(name, "x")), "an entry's name");
    }
}

#[test]
fn extended_headers_are_followed_and_bounded() {
    let image = Image::new(&["x"]);
    let layout = image.layout(&json!({}));
    let long = format!("{}/file", "d".repeat(300));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(3);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut pax = tar::Header::new_ustar();
    let index = format!("{} path=index.json\n", "NN path=index.json\n".len());
    pax.set_entry_type(tar::EntryType::XHeader);
    pax.set_size(index.len() as u64);
    pax.set_cksum();
    builder.append(&pax, index.as_bytes()).unwrap();
    let data = b"{\"manifests\":[]}";
    let mut header = tar::Header::new_ustar();
    header.set_path("placeholder").unwrap();
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, &data[..]).unwrap();
    let tar = [layout.tar()[..layout.tar().len() - 1024].to_vec(), builder.into_inner().unwrap()].concat();
    // The PAX path took effect: the last index.json is the empty one.
    refused(open_bytes(tar, &SourceLimits::default()), "index is empty");

    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.as_old_mut().name[0] = b'x';
    header.set_size(2 << 20);
    header.set_cksum();
    let tar = [header.as_bytes().to_vec(), vec![b'a'; 2 << 20]].concat();
    refused(open_bytes(tar, &SourceLimits::default()), "extended header of 2097152 bytes");
}

#[test]
fn a_layout_directory_is_never_left() {
    let image = Image::new(&["x"]);
    let layout = image.layout(&json!({}));
    let blob = blob_name(&gzip(&image.layers[0]));
    let limits = SourceLimits::default();
    let outside = scratch();
    let secret = outside.path().join("secret");
    std::fs::write(&secret, gzip(&image.layers[0])).unwrap();
    // Right in content and size; wrong in place.
    refused(open_dir(&layout.clone().without(&blob).symlink(&blob, secret.to_str().unwrap())), "symlink");
    let dir = scratch();
    layout.write_to(dir.path());
    std::fs::rename(dir.path().join("blobs"), outside.path().join("blobs")).unwrap();
    std::os::unix::fs::symlink(outside.path().join("blobs"), dir.path().join("blobs")).unwrap();
    refused(Source::open(Input::Path(dir.path().into()), dir.path(), &limits), "symlink");
    // The layout itself may be reached by one.
    std::fs::remove_file(dir.path().join("blobs")).unwrap();
    std::fs::rename(outside.path().join("blobs"), dir.path().join("blobs")).unwrap();
    let link = outside.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).unwrap();
    let source = Source::open(Input::Path(link), dir.path(), &limits).unwrap();
    assert_eq!(tars(&source, &source.images()[0]), image.layers);
    // A fifo or a directory in place of a blob neither hangs nor passes.
    std::fs::remove_file(dir.path().join(&blob)).unwrap();
    assert_eq!(source.layer_reader(&source.images()[0].layers[0]).err().unwrap().kind(), Kind::BadInput);
    rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(&blob), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    refused(Source::open(Input::Path(dir.path().into()), dir.path(), &limits), "isn't a regular file");
    std::fs::remove_file(dir.path().join(&blob)).unwrap();
    std::fs::create_dir(dir.path().join(&blob)).unwrap();
    refused(Source::open(Input::Path(dir.path().into()), dir.path(), &limits), "isn't a regular file");
}

#[test]
fn an_image_without_layers_is_one() {
    let source = open(&Image::new(&[]).layout(&json!({}))).unwrap();
    assert!(source.images()[0].layers.is_empty());
}

#[test]
fn the_media_types_of_the_test_writer_are_those_of_the_spec() {
    use crate::oci::manifest::Media;
    let known = [OCI_INDEX, OCI_MANIFEST, OCI_CONFIG, OCI_LAYER].map(Media::of);
    assert_eq!(known, [Media::Index, Media::Manifest, Media::Config, Media::Layer]);
    assert_eq!(layer_tar("a", b"b").len() % 512, 0);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever bytes are changed, what comes out is either refused or what the digests promise.
    #[test]
    fn damage_anywhere_is_refused_or_harmless(
        docker: bool,
        changes in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 1_u8..), 1..4),
    ) {
        let image = Image::new(&["base", "top"]);
        let mut tar = if docker { image.docker(&["a:1"]) } else { image.layout(&named("a:1")) }.tar();
        for (at, change) in changes {
            let at = at.index(tar.len());
            tar[at] ^= change;
        }
        match open_bytes(tar, &SourceLimits::default()) {
            Err(error) => {
                let kind = error.kind();
                assert!(matches!(kind, Kind::BadInput | Kind::Unsupported), "{kind:?}: {error}");
            }
            Ok(source) => {
                let [only] = source.images() else { panic!("{} images", source.images().len()) };
                for (layer, plain) in only.layers.iter().zip(&image.layers) {
                    let raw = source.layer_reader(layer).unwrap();
                    let mut stream = LayerStream::start(raw, Expected::of(layer, 1 << 30), Default::default()).unwrap();
                    let mut tar = Vec::new();
                    let read = stream.read_to_end(&mut tar);
                    match stream.finish() {
                        Ok(verified) => {
                            assert!(read.is_ok());
                            assert_eq!(verified.diff_id, layer.diff_id);
                            // A docker archive's config is vouched for by its name alone.
                            assert!(docker || tar == *plain);
                        }
                        Err(error) => assert_eq!(error.kind(), Kind::BadInput),
                    }
                }
            }
        }
    }
}
