//! Input that lies, is absurd, or is damaged.

use super::*;

#[test]
fn documents_that_lie_are_refused() {
    let image = Image::new(&["base", "top"]);
    let manifest = image.manifest();
    let layout = image.layout(&named("a:1"));
    let (config, document) = (image.config_bytes(), serde_json::to_vec(&manifest).unwrap());
    let flip = |bytes: &mut Vec<u8>| bytes[5] ^= 1;
    refused(open(&layout.clone().edit(&blob_name(&config), flip)), "config sha256:");
    refused(open(&layout.clone().edit(&blob_name(&config), |b| b.push(b' '))), "its descriptor says");
    refused(open(&layout.clone().edit(&blob_name(&document), flip)), "its bytes have the digest");
    refused(open(&layout.clone().edit(&blob_name(&document), Vec::clear)), "it has 0 bytes");
    refused(open(&layout.clone().without(&blob_name(&document))), "missing from the archive");
    refused(open(&layout.clone().without(&blob_name(&config))), "missing from the archive");
    let top = blob_name(&gzip(&image.layers[1]));
    refused(open(&layout.clone().without(&top)), "image a:1: manifest sha256:");
    refused(open(&layout.clone().without(&top)), "layer 2 of 2");
    refused(open_dir(&layout.clone().without(&top)), "missing from the directory");
    refused(open(&layout.clone().edit(&top, |b| b.push(0))), "its descriptor says");
    let change = |change: &dyn Fn(&mut Value)| {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        open(&image.layout_with(&manifest, &json!({})))
    };
    refused(change(&|m| m["config"]["size"] = 1.into()), "its descriptor says 1");
    refused(change(&|m| m["layers"][0]["size"] = 1.into()), "its descriptor says 1");
    refused(change(&|m| m["layers"][0]["digest"] = "sha256:../../../../etc/passwd".into()), "64 lower-case hex");
    refused(change(&|m| _ = m["layers"].as_array_mut().unwrap().pop()), "1 layers, its config 2 diff IDs");
    refused(change(&|m| m["manifests"] = json!([])), "neither an index nor a manifest");
    refused(change(&|m| m["mediaType"] = OCI_INDEX.into()), "calls itself");
    refused(change(&|m| m["layers"] = "none".into()), "JSON");
    let mut fewer = image.clone();
    fewer.config["rootfs"]["diff_ids"] = Value::Null;
    refused(open(&fewer.layout(&json!({}))), "2 layers, its config 0 diff IDs");
}

#[test]
fn docker_archives_that_lie_are_refused() {
    let image = Image::new(&["base", "top"]);
    let docker = image.docker(&["a:1"]);
    let config = format!("{}.json", Digest::of(&image.config_bytes()).hex());
    let layer = format!("{:064}/layer.tar", 1);
    refused(open(&docker.clone().edit(&config, |b| b.push(b' '))), "its bytes have the digest");
    refused(open(&docker.clone().without(&config)), "missing from the archive");
    refused(open(&docker.clone().without(&layer)), "layer 2 of 2");
    let described =
        |entry: Value| open(&docker.clone().without("manifest.json").with("manifest.json", entry.to_string()));
    refused(described(json!([])), "manifest.json is empty");
    refused(described(json!([{}])), "isn't a file's name");
    refused(described(json!({})), "manifest.json");
    refused(described(json!([{ "Config": "../../etc/passwd", "Layers": [] }])), "leads out");
    refused(described(json!([{ "Config": "/etc/passwd", "Layers": [] }])), "absolute");
    refused(described(json!([{ "Config": config, "Layers": [layer] }])), "1 layers, its config 2 diff IDs");
    refused(described(json!([{ "Config": config, "Layers": ["../../etc/passwd", layer] }])), "leads out");
    let mut wrong = image.clone();
    wrong.config["rootfs"]["diff_ids"][0] = json!("sha256:x");
    refused(open(&wrong.docker(&["a"])), "64 lower-case hex");
}

#[test]
fn a_wrong_diff_id_is_found_when_the_layer_is_read() {
    let mut image = Image::new(&["base"]);
    image.config["rootfs"]["diff_ids"][0] = json!(Digest::of(b"other"));
    for files in [image.layout(&json!({})), image.docker(&["a"])] {
        let source = open(&files).unwrap();
        let layer = &source.images()[0].layers[0];
        let raw = source.layer_reader(layer).unwrap();
        let stream = LayerStream::start(raw, Expected::of(layer, 1 << 20), Default::default()).unwrap();
        let error = stream.finish().unwrap_err();
        assert!(error.to_string().contains(&Digest::of(b"other").to_string()), "{error}");
    }
}

#[test]
fn absurd_documents_are_refused_before_they_are_read() {
    let image = Image::new(&["x"]);
    let small =
        SourceLimits { manifest_bytes: 5_000, config_bytes: 5_000, layers: 3, images: 3, ..Default::default() };
    let open = |files: &TestFiles| open_bytes(files.tar(), &small);
    assert!(open(&image.layout(&json!({}))).is_ok());
    let mut padded = image.manifest();
    padded["annotations"] = json!({ "x": "x".repeat(5_000) });
    refused(open(&image.layout_with(&padded, &json!({}))), "more than the limit of 5000");
    let mut padded = image.clone();
    padded.config["x"] = "x".repeat(5_000).into();
    refused(open(&padded.layout(&json!({}))), "more than the limit of 5000");
    refused(open(&padded.docker(&["a"])), "more than the limit of 5000");
    let index = json!({ "manifests": [], "x": "x".repeat(5_000) }).to_string();
    refused(open(&TestFiles::new().with("index.json", index)), "more than the limit of 5000");
    let many = Image::new(&["a", "b", "c", "d"]);
    refused(open(&many.layout(&json!({}))), "4 layers, more than the limit of 3");
    refused(open(&many.docker(&["a"])), "4 layers, more than the limit of 3");
    let (files, entry) = image.blobs(TestFiles::new(), &image.manifest());
    refused(open(&with_index(files, &vec![entry; 4])), "more images, manifests and indexes than the limit of 3");
    let deep = format!("{{\"manifests\":[],\"x\":{}{}}}", "[".repeat(1000), "]".repeat(1000));
    refused(open(&TestFiles::new().with("index.json", deep)), "nested more than the limit of 64 deep");
    let tight = SourceLimits { metadata_bytes: 500, ..SourceLimits::default() };
    refused(open_bytes(image.layout(&json!({})).tar(), &tight), "manifests and configs take more");
    let few = SourceLimits { entries: 3, ..SourceLimits::default() };
    refused(open_bytes(image.layout(&json!({})).tar(), &few), "more entries than the limit of 3");
}

#[test]
fn a_list_of_one_config_a_thousand_times_stays_within_the_sum() {
    let mut image = Image::new(&[]);
    image.config["x"] = "x".repeat(1 << 20).into();
    let id = Digest::of(&image.config_bytes()).hex();
    let entry = json!({ "Config": format!("{id}.json"), "Layers": [] });
    let files = TestFiles::new()
        .with(&format!("{id}.json"), image.config_bytes())
        .with("manifest.json", Value::from(vec![entry; 900]).to_string());
    refused(open(&files), "manifests and configs take more");
}

#[test]
fn archives_that_are_none_are_told_apart() {
    let limits = SourceLimits::default();
    refused(open_bytes(Vec::new(), &limits), "it is empty");
    refused(open_bytes(b"hello".to_vec(), &limits), "too short");
    refused(open_bytes(vec![b'x'; 2000], &limits), "isn't a tar archive");
    refused(open_bytes(gzip(b""), &limits), "too short");
    refused(open_bytes(gzip(&vec![1; 2000]), &limits), "isn't a tar archive");
    let rootfs = open(&TestFiles::new().with("etc/passwd", "root")).unwrap_err();
    assert!(rootfs.to_string().contains("holds no image"), "{rootfs}");
    assert!(rootfs.hint().unwrap().contains("import"));
    let old = open(&TestFiles::new().with("repositories", "{}")).unwrap_err();
    assert_eq!(old.kind(), Kind::Unsupported);
    let version =
        Image::new(&["x"]).layout(&json!({})).edit("oci-layout", |b| *b = br#"{"imageLayoutVersion":"2"}"#.to_vec());
    assert_eq!(open(&version).unwrap_err().kind(), Kind::Unsupported);
    let xz = open_bytes(b"\xfd7zXZ\0\0\x04......".to_vec(), &limits).unwrap_err();
    assert!(xz.to_string().contains("xz"), "{xz}");
    let dir = scratch();
    let error = Source::open(Input::Path(dir.path().join("none")), dir.path(), &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn truncated_and_damaged_archives_are_refused_wherever_they_are_cut() {
    let tar = Image::new(&["base", "top"]).layout(&json!({})).tar();
    let limits = SourceLimits::default();
    // The index is the last file; what follows it is padding and the end's mark.
    let end = tar.iter().rposition(|byte| *byte == b'}').unwrap() + 1;
    for len in (100..end).step_by(100) {
        let error = open_bytes(tar[..len].to_vec(), &limits).map(|s| s.images.len()).expect_err(&len.to_string());
        assert_eq!(error.kind(), Kind::BadInput, "{len}: {error}");
    }
    assert!(open_bytes(tar[..end].to_vec(), &limits).is_ok(), "only padding is missing");
    for (name, packed) in [("gzip", gzip(&tar)), ("zstd", zstd(&tar))] {
        refused(open_bytes(packed[..packed.len() - 3].to_vec(), &limits), &format!("{name} data is truncated"));
        let mut damaged = packed.clone();
        damaged[packed.len() / 2] ^= 0x55;
        let error = open_bytes(damaged, &limits).map(|s| s.images.len()).expect_err(name);
        assert_eq!(error.kind(), Kind::BadInput, "{error}");
    }
    let mut damaged = tar.clone();
    let second = 512 + 512 * (Image::new(&["base", "top"]).layers.first().map_or(0, |l| gzip(l).len().div_ceil(512)));
    damaged[second] ^= 1;
    refused(open_bytes(damaged, &limits), &format!("no tar header at byte {second}"));
}

#[test]
fn an_archive_larger_than_its_limit_is_not_spooled_to_the_end() {
    let limits = SourceLimits { spool_bytes: 1 << 20, ..SourceLimits::default() };
    refused(open_bytes(gzip(&vec![0; 50 << 20]), &limits), "larger than the limit of 1048576 bytes");
    refused(open_bytes(vec![0; 2 << 20], &limits), "larger than the limit of 1048576 bytes");
}
