//! What is done with any bytes at all, and what must hold whatever they are.
//!
//! The same functions run under libFuzzer and, over the corpus, as a stable test. A target panics where something
//! doesn't hold. Besides what each says: no panic, errors that are the input's fault and say so in short plain
//! words, and memory and time in proportion to the small limits that are set here.

use std::io::{Cursor, Read};
use std::sync::Arc;

use reflinkd::layer::reader::{Archive, Entry, What};
use reflinkd::layer::{Limits, recipe};
use reflinkd::oci::{
    DiffId, Digest, Expected, ImageConfig, Input, LayerStream, Reference, Source, SourceLimits, Verified,
};
use reflinkd::{Error, Kind, Result};
use serde_json::json;

use super::bodies;
use super::restored::unpack;
use super::tree::{Tree, read};
use super::writer::{Raw, Style, Tar};

type Target = fn(&[u8]);

/// All of them, by the name of their part of the corpus.
pub(crate) const TARGETS: &[(&str, Target)] = &[
    ("tar", tar),
    ("unpack", unpacked),
    ("recipe", restored),
    ("pax", pax),
    ("decompress", decompress),
    ("archive", archive),
    ("docker", docker),
    ("index", index),
    ("manifest", manifest),
    ("config", config),
    ("reference", reference),
    ("http", bodies::http),
    ("plugin", bodies::plugin),
    ("http2", bodies::http2),
    ("snapshotter", bodies::snapshotter),
];

/// Run one of them.
pub(crate) fn run(target: &str, data: &[u8]) {
    let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).expect("a target's name");
    run(data);
}

/// Bytes of plain tar that a layer may have here.
const MOST_BYTES: u64 = 1 << 20;

/// The first byte chooses: odd, the headers' checksums are made right before anything is read. Without that no
/// change of a header would ever be looked at.
fn with_checksums(data: &[u8]) -> Vec<u8> {
    let Some((&choice, tar)) = data.split_first() else { return Vec::new() };
    let mut tar = tar.to_vec();
    let mut at = 0;
    while choice & 1 == 1 && at + 512 <= tar.len() {
        let header = &mut tar[at..at + 512];
        at += 512;
        if header.iter().all(|&byte| byte == 0) {
            continue;
        }
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let digits = header[124..135].iter().map_while(|byte| char::from(*byte).to_digit(8));
        let size = digits.fold(0, |size, digit| size * 8 + u64::from(digit));
        if !matches!(header[156], b'1'..=b'6') {
            at = at.saturating_add(usize::try_from(size.next_multiple_of(512)).unwrap_or(usize::MAX));
        }
    }
    tar
}

/// The fault is the input's, and its description fits a terminal.
fn assert_refusal(error: &Error, kinds: &[Kind]) {
    let text = error.to_string();
    assert!(kinds.contains(&error.kind()), "{:?}: {text}", error.kind());
    assert!(text.len() < 4000 && !text.contains(char::is_control), "{text:?}");
}

/// Hands out few bytes at a time.
struct Dribble<'a>(&'a [u8], usize);

impl Read for Dribble<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 * 7 % 1009 + 1;
        let count = self.1.min(into.len());
        self.0.read(&mut into[..count])
    }
}

/// All entries and their data in words, and how the archive ends.
fn told(stream: &mut dyn Read) -> (Vec<String>, Result<()>) {
    let mut archive = Archive::new(stream, MOST_BYTES, &|| false);
    let mut entries = Vec::new();
    let result = loop {
        let entry = match archive.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        match data_of(&mut archive, &entry) {
            Ok(digest) => entries.push(format!("{entry:?} {digest:?}")),
            Err(error) => break Err(error),
        }
    };
    (entries, result)
}

/// The digest of what the archive holds of a file.
fn data_of(archive: &mut Archive<'_>, entry: &Entry) -> Result<Option<Digest>> {
    assert!(!entry.name.is_empty() && !entry.name.contains(&0));
    let What::File { size, map } = &entry.what else { return Ok(None) };
    let stored = map.as_ref().map_or(*size, |map| map.iter().map(|part| part.length).sum());
    assert!(stored <= MOST_BYTES);
    for (part, next) in map.iter().flatten().zip(map.iter().flatten().skip(1)) {
        assert!(part.offset + part.length <= next.offset);
    }
    let mut hasher = reflinkd::oci::Hasher::new();
    while hasher.bytes() < stored {
        let lent = archive.data(stored - hasher.bytes())?;
        assert!(!lent.is_empty());
        hasher.update(lent);
    }
    Ok(Some(hasher.finish()))
}

/// A tar reads the same however it arrives.
fn tar(data: &[u8]) {
    let tar = with_checksums(data);
    let (entries, result) = told(&mut &tar[..]);
    let (again, result_again) = told(&mut Dribble(&tar, 1));
    assert_eq!(entries, again);
    let words = |result: &Result<()>| result.as_ref().err().map(ToString::to_string);
    assert_eq!(words(&result), words(&result_again));
    if let Err(error) = result {
        assert_refusal(&error, &[Kind::BadInput]);
    }
}

/// The records of one header, for one entry and for all.
fn pax(data: &[u8]) {
    for kind in [b'x', b'g'] {
        let mut archive = Tar::default();
        archive.block(kind, b"records", data);
        archive.entry(&Raw::new(b'0', "file").data("hello"), Style::Pax);
        tar(&[&[0], &archive.end()[..]].concat());
    }
}

/// A directory in memory, and in it a canary that nothing may touch.
struct Cage {
    dir: tempfile::TempDir,
    canary: Tree,
    lower: Vec<u8>,
}

impl Cage {
    fn new() -> Self {
        let dir = memory();
        let canary = dir.path().join("canary");
        std::fs::create_dir_all(canary.join("sub")).expect("mkdir");
        std::fs::write(canary.join("file"), "untouched").expect("write");
        let outside = canary.to_str().expect("UTF-8").to_string();
        let lower = [("abs", outside.as_str()), ("climb", "../canary"), ("slash", "/"), ("d/up", "../../canary")];
        let mut entries = vec![Raw::new(b'5', "d"), Raw::new(b'0', "d/file").data("lower"), Raw::new(b'0', "file")];
        entries.extend(lower.map(|(name, target)| Raw::new(b'2', name).link(target)));
        let canary = read(&canary);
        Self { dir, canary, lower: Tar::of(&entries) }
    }
}

/// A directory of this process's own in memory.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").expect("a directory in memory")
}

/// A layer onto a tree whose symlinks lead out: the canary beside it stays as it was.
fn unpacked(data: &[u8]) {
    thread_local!(static CAGE: Cage = Cage::new());
    let tar = with_checksums(data);
    CAGE.with(|cage| {
        let root = cage.dir.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        let limits = Limits { max_bytes: MOST_BYTES, max_entries: 1000, max_depth: 64 };
        unpack(&mut &cage.lower[..], &root, &limits, &|| false).expect("the lower layer");
        let result = unpack(&mut &tar[..], &root, &limits, &|| false);
        assert_eq!(read(&cage.dir.path().join("canary")), cage.canary);
        assert_eq!(std::fs::read_dir(cage.dir.path()).expect("list").count(), 2);
        match result {
            Ok(summary) => assert!(summary.entries <= limits.max_entries),
            // What this filesystem can't hold is refused in the system's words.
            Err(error) => assert_refusal(&error, &[Kind::BadInput, Kind::Unsupported, Kind::NoSpace]),
        }
        std::fs::remove_dir_all(&root).expect("clean up");
    });
}

/// A recipe of a tree that has something of everything. The first byte chooses: odd, what follows is its pieces, else
/// the whole file.
fn restored(data: &[u8]) {
    const PLAIN: u64 = 64 << 10;
    thread_local!(static PLACE: tempfile::TempDir = {
        let place = memory();
        let root = place.path().join("fs");
        std::fs::create_dir_all(root.join("a/d")).expect("mkdir");
        std::fs::write(root.join("a/b"), "hello").expect("write");
        std::fs::write(root.join("long"), vec![b'x'; 40_000]).expect("write");
        std::os::unix::fs::symlink("/etc", root.join("etc")).expect("symlink");
        place
    });
    let Some((&choice, rest)) = data.split_first() else { return };
    let file = match choice & 1 {
        1 => framed(if choice & 2 == 2 { PLAIN } else { (choice >> 2).into() }, rest),
        _ => rest.to_vec(),
    };
    PLACE.with(|place| {
        let (path, root) = (place.path().join("recipe"), place.path().join("fs"));
        std::fs::write(&path, file).expect("write");
        let mut tar = Vec::new();
        let plain = recipe::plain_size(&path);
        match recipe::restore(&path, &root, &mut tar, &|| false) {
            Ok(()) => assert_eq!(plain.expect("a head"), tar.len() as u64),
            Err(error) => assert_refusal(&error, &[Kind::Damaged]),
        }
        assert!(tar.len() as u64 <= MOST_BYTES, "no more than is claimed");
    });
}

/// A recipe file of a tar of so many bytes, with these pieces.
fn framed(plain: u64, pieces: &[u8]) -> Vec<u8> {
    let mut file = [&b"RFLKRCP\x01"[..], &plain.to_le_bytes()].concat();
    file.extend(crc32c::crc32c(&file).to_le_bytes());
    file.extend(zstd::encode_all(pieces, 1).expect("in memory"));
    file
}

/// The plain bytes of a blob, and what became of it.
fn plain(blob: Box<dyn Read + Send>, expected: Expected) -> (Vec<u8>, Result<Verified>) {
    let mut stream = LayerStream::start(blob, expected, Arc::default()).expect("threads");
    let mut plain = Vec::new();
    let read = stream.read_to_end(&mut plain);
    let finished = stream.finish();
    assert!(read.is_ok() || finished.is_err());
    (plain, finished)
}

/// A blob, whatever it is compressed with: what comes out is what the digests say, however it arrives.
fn decompress(data: &[u8]) {
    let expected = Expected { blob: None, diff_id: None, max_bytes: MOST_BYTES };
    let (out, result) = plain(Box::new(Cursor::new(data.to_vec())), expected);
    assert!(out.len() as u64 <= MOST_BYTES);
    match result {
        Ok(verified) => {
            assert_eq!((verified.blob, verified.blob_size), (Digest::of(data), data.len() as u64));
            assert_eq!((verified.diff_id.0, verified.plain_size), (Digest::of(&out), out.len() as u64));
            // Something behind it changes nothing where the diff ID is known.
            let longer = [data, b"notes"].concat();
            let vouched = Expected { diff_id: Some(verified.diff_id), ..expected };
            if out != data {
                let (again, result) = plain(Box::new(Cursor::new(longer)), vouched);
                assert!(result.is_err() || again == out);
            }
        }
        Err(error) => assert_refusal(&error, &[Kind::BadInput, Kind::Unsupported]),
    }
}

/// Open an input and look at all that it says.
fn open(archive: Vec<u8>) {
    thread_local!(static SPOOL: tempfile::TempDir = memory());
    let limits = SourceLimits {
        metadata_bytes: 1 << 20,
        layers: 20,
        images: 20,
        entries: 100,
        spool_bytes: MOST_BYTES,
        ..SourceLimits::default()
    };
    let opened = SPOOL.with(|spool| {
        let opened = Source::open(Input::Stdin(Box::new(Cursor::new(archive))), spool.path(), &limits);
        assert_eq!(std::fs::read_dir(spool.path()).expect("list").count(), 0);
        opened
    });
    let source = match opened {
        Ok(source) => source,
        Err(error) => return assert_refusal(&error, &[Kind::BadInput, Kind::Unsupported]),
    };
    assert!(!source.images().is_empty());
    for image in source.images() {
        assert_eq!(image.id.0, Digest::of(&image.config_bytes));
        assert_eq!(image.layers.len(), image.config.diff_ids.len());
        assert!(image.manifest.as_ref().is_none_or(|(digest, bytes)| *digest == Digest::of(bytes)));
        image.names.iter().for_each(assert_name);
        for layer in &image.layers {
            let mut bytes = Vec::new();
            source.layer_reader(layer).expect("it was there").read_to_end(&mut bytes).expect("in memory");
            assert_eq!(bytes.len() as u64, layer.size());
        }
    }
}

/// A whole archive.
fn archive(data: &[u8]) {
    open(with_checksums(data));
}

/// A good image of one layer, as the files of a layout.
struct Good {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

/// What manifests and indexes call their parts.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Good {
    fn new() -> Self {
        let layer = Tar::of(&[Raw::new(b'0', "file").data("one")]);
        let architecture = reflinkd::oci::Platform::host().architecture;
        let config = json!({
            "os": "linux", "architecture": architecture,
            "rootfs": { "type": "layers", "diff_ids": [DiffId(Digest::of(&layer))] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": [described("application/vnd.oci.image.layer.v1.tar", &layer)],
        });
        Self { layer, config, manifest: manifest.to_string().into_bytes() }
    }

    /// An archive of these blobs and files.
    fn archive(&self, files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Tar::default();
        for blob in [&self.layer, &self.config, &self.manifest] {
            tar.entry(&Raw::new(b'0', blob_name(blob)).data(blob), Style::Gnu);
        }
        for (name, bytes) in files {
            tar.entry(&Raw::new(b'0', name).data(bytes), Style::Gnu);
        }
        tar.end()
    }
}

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn described(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

/// The `manifest.json` of a docker archive, whose config and layer are blobs.
fn docker(data: &[u8]) {
    open(Good::new().archive(&[("manifest.json", data)]));
}

/// The `index.json` of a layout.
fn index(data: &[u8]) {
    open(Good::new().archive(&[("index.json", data)]));
}

/// A manifest that its index describes as it is.
fn manifest(data: &[u8]) {
    let index = json!({ "manifests": [described(MANIFEST, data)] }).to_string();
    open(Good::new().archive(&[(&blob_name(data), data), ("index.json", index.as_bytes())]));
}

/// A config: what is read from it can be told step by step.
fn config(data: &[u8]) {
    match ImageConfig::parse(data) {
        Ok(config) => {
            if let Ok(steps) = config.history_layers() {
                assert_eq!(steps.iter().filter(|step| step.diff_id.is_some()).count(), config.diff_ids.len());
            }
        }
        Err(error) => assert_refusal(&error, &[Kind::BadInput]),
    }
}

/// A name: whatever is accepted has one full form, which means the same.
fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse() {
        Ok(name) => assert_name(&name),
        Err(error) => assert_refusal(&error, &[Kind::Invalid]),
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
}

fn assert_name(name: &Reference) {
    for form in [name.canonical(), name.to_string()] {
        assert_eq!(form.parse::<Reference>().as_ref().ok(), Some(name), "{form}");
        assert!(form.bytes().all(|byte| byte.is_ascii_graphic()), "{form:?}");
    }
}

/// Something to begin with, for each target.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let good = Good::new();
    let names = [
        "nginx",
        "localhost:5000/a/b:v1",
        "ghcr.io/o/r@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "[::1]:5000/x",
        "index.docker.io/library/y",
        "a__b/c-d.e:T_1",
    ];
    let mut seeds: Vec<_> = names.iter().map(|name| ("reference", name.as_bytes().to_vec())).collect();
    let layers = [blob_name(&good.layer)];
    let archived = json!([{ "Config": blob_name(&good.config), "RepoTags": ["a:1", "b"], "Layers": layers }]);
    let mut entry = described(MANIFEST, &good.manifest);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "a:1" });
    entry["platform"] = json!({ "os": "linux", "architecture": "amd64", "variant": "v1" });
    let listed = json!({ "schemaVersion": 2, "manifests": [entry] }).to_string().into_bytes();
    seeds.push(("docker", archived.to_string().into_bytes()));
    seeds.push(("index", listed.clone()));
    seeds.push(("manifest", good.manifest.clone()));
    seeds.push(("config", good.config.clone()));
    seeds.push(("archive", [&[1], &good.archive(&[("index.json", &listed)])[..]].concat()));
    let records = "9 path=a\n11 uid=1000\n14 mtime=1.25\n26 SCHILY.xattr.user.a=b\n22 GNU.sparse.major=1\n";
    seeds.push(("pax", records.as_bytes().to_vec()));
    seeds.push((
        "pax",
        b"22 GNU.sparse.size=99\n28 GNU.sparse.numblocks=1\n24 GNU.sparse.map=0,5\n12 size=5\n".to_vec(),
    ));
    for (plain, pieces) in [
        (18_u8, &b"\x14he..l\x15\x00\x03a/b\x00\x0e\x02\x15\x00\x04long\x07\x4b"[..]),
        (5, b"\x15\x00\x03a/b\x00\x17"),
        (1, b"\x05\x00\x05etc/x\x00\x07"),
        (2, b"\x05\x00\x03a/b\x00\x05\x02\x01c\x00\x0b"),
        (0, b"\x03"),
    ] {
        seeds.extend([("recipe", [&[3], pieces].concat()), ("recipe", [&[plain << 2 | 1], pieces].concat())]);
        seeds.push(("recipe", [&[0], &framed(plain.into(), pieces)[..]].concat()));
    }
    seeds.extend(bodies::seeds());
    seeds
}
