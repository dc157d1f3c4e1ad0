//! Fetching from a registry that is none: who opens what how often, and what is in files.

use std::sync::mpsc;

use serde_json::{Value, json};

use super::*;
use crate::engine::load::Silent;
use crate::oci::{Descriptor, Digest, Remote, SourceLimits};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image whose layers' blobs are any bytes.
#[derive(Debug)]
struct Blobs {
    manifest: Vec<u8>,
    blobs: Vec<Vec<u8>>,
    /// Those that were asked for, in order.
    opened: Mutex<Vec<usize>>,
    /// The blobs that end before their end, the first time.
    broken: Mutex<Vec<usize>>,
}

impl Blobs {
    fn new(layers: usize) -> Self {
        Self::of_size(layers, 1_000_000)
    }

    fn of_size(layers: usize, size: usize) -> Self {
        let layers = (0..layers).map(|n| (0..size + n).map(|at| (at % 251 + n) as u8).collect());
        let mut blobs: Vec<Vec<u8>> = layers.collect();
        let described = |media_type: &str, blob: &[u8]| -> Value {
            json!({ "mediaType": media_type, "digest": Digest::of(blob), "size": blob.len() })
        };
        let digests: Vec<_> = blobs.iter().map(|blob| Digest::of(blob)).collect();
        let platform = crate::oci::Platform::host();
        let config = json!({ "os": platform.os, "architecture": platform.architecture,
                             "rootfs": { "type": "layers", "diff_ids": digests } });
        let config = serde_json::to_vec(&config).expect("JSON");
        let layers: Vec<_> = blobs.iter().map(|blob| described(LAYER, blob)).collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": described(CONFIG, &config),
                               "layers": layers });
        blobs.push(config);
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        Self { manifest, blobs, opened: Mutex::default(), broken: Mutex::default() }
    }

    /// How often each layer was asked for.
    fn opened(&self, layer: usize) -> usize {
        self.opened.lock().expect("a lock").iter().filter(|opened| **opened == layer).count()
    }
}

impl Remote for Blobs {
    fn named(&self, _: u64) -> Result<(String, Vec<u8>)> {
        Ok((MANIFEST.into(), self.manifest.clone()))
    }

    fn manifest(&self, _: &Descriptor) -> Result<Vec<u8>> {
        Ok(self.manifest.clone())
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Box<dyn Read + Send>> {
        let at = self.blobs.iter().position(|blob| Digest::of(blob) == descriptor.digest).expect("a blob");
        self.opened.lock().expect("a lock").push(at);
        let bytes = io::Cursor::new(self.blobs[at].clone());
        let mut broken = self.broken.lock().expect("a lock");
        match broken.iter().position(|broken| *broken == at) {
            Some(found) => {
                broken.remove(found);
                Ok(Box::new(bytes.take(300_000).chain(Broken)))
            }
            None => Ok(Box::new(bytes)),
        }
    }

    fn stop(&self) {}
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(Error::new(Kind::System, "it broke off")))
    }
}

/// Tells which layers have been fetched.
struct Told(Mutex<mpsc::Sender<String>>);

impl Progress for Told {
    fn fetched(&self, layer: &str) {
        let _ = self.0.lock().expect("a lock").send(layer.to_string());
    }
    fn started(&self, _: &str, _: Option<u64>, _: &Arc<AtomicU64>) {}
    fn exists(&self, _: &str) {}
    fn finished(&self, _: &str) {}
}

/// Fetch an image of `layers` layers, as `work` reads them.
fn with_fetch(blobs: &Arc<Blobs>, progress: &dyn Progress, work: impl FnOnce(&Fetch<'_>, &OpenLayer<'_>)) {
    let name = "localhost:5000/team/app:v1".parse().expect("a name");
    let source =
        Source::remote(Arc::clone(blobs) as Arc<dyn Remote>, &name, &SourceLimits::default()).expect("an image");
    let image = &source.images()[0];
    let wanted: Vec<_> = (0..image.layers.len()).collect();
    let room = || Ok(());
    let directory = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
    let spools = directory.path().to_path_buf();
    let fetch = Fetch::new(&source, image, &wanted, spools, progress, &room, Arc::default());
    fetch.during(|open| work(&fetch, open));
}

fn whole(mut reader: Box<dyn Read + Send>) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("read");
    bytes
}

#[test]
fn each_layer_is_asked_for_once_and_comes_whole() {
    let blobs = Arc::new(Blobs::new(5));
    let (sender, told) = mpsc::channel();
    with_fetch(&blobs, &Told(Mutex::new(sender)), |_, open| {
        for layer in 0..5 {
            assert!(whole(open(layer).expect("a reader")) == blobs.blobs[layer], "layer {layer}");
            assert_eq!(blobs.opened(layer), 1, "layer {layer}");
        }
    });
    let mut labels: Vec<_> = told.iter().collect();
    labels.sort();
    let mut expected: Vec<_> = blobs.blobs[..5].iter().map(|blob| Digest::of(blob).short()).collect();
    expected.sort();
    assert_eq!(labels, expected);
}

#[test]
fn what_is_unpacked_is_in_no_file_and_what_is_ahead_is() {
    let blobs = Arc::new(Blobs::new(3));
    let (sender, told) = mpsc::channel();
    with_fetch(&blobs, &Told(Mutex::new(sender)), |fetch, open| {
        let mut first = open(0).expect("a reader");
        first.read_exact(&mut [0; 10]).expect("read");
        let ahead = [told.recv().expect("told"), told.recv().expect("told")];
        assert!(!ahead.contains(&Digest::of(&blobs.blobs[0]).short()), "{ahead:?}");
        let sizes: Vec<_> = fetch.queue().spools.values().map(|spool| spool.state().file.clone()).collect();
        let sizes: Vec<_> =
            sizes.iter().map(|file| file.as_ref().map(|file| file.metadata().expect("stat").len())).collect();
        assert_eq!(sizes, [None, Some(1_000_001), Some(1_000_002)]);
        drop(whole(first));
        // In files, they are read as often as it takes.
        for _ in 0..2 {
            assert!(whole(open(1).expect("a reader")) == blobs.blobs[1]);
        }
        assert_eq!(blobs.opened(1), 1);
    });
}

#[test]
fn what_was_not_kept_is_fetched_again() {
    let blobs = Arc::new(Blobs::new(2));
    with_fetch(&blobs, &Silent, |_, open| {
        open(0).expect("a reader").read_exact(&mut [0; 500_000]).expect("read");
        assert!(whole(open(0).expect("a reader")) == blobs.blobs[0]);
        assert_eq!(blobs.opened(0), 2);
    });
}

#[test]
fn what_breaks_is_told_and_can_be_had_again() {
    let blobs = Arc::new(Blobs::new(2));
    blobs.broken.lock().expect("a lock").extend([0, 1]);
    with_fetch(&blobs, &Silent, |fetch, open| {
        let error = open(0).expect("a reader").read_to_end(&mut Vec::new()).expect_err("broken");
        assert_eq!(error.to_string(), "it broke off");
        // What broke ahead of its reader never was the reader's.
        while fetch.queue().spools.get(&1).is_none_or(|spool| spool.state().end.is_none()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for layer in 0..2 {
            assert!(whole(open(layer).expect("a reader")) == blobs.blobs[layer], "layer {layer}");
            assert_eq!(blobs.opened(layer), 2, "layer {layer}");
        }
    });
}

/// Others may have made the layers meanwhile, or the unpacking fails.
#[test]
fn what_nobody_reads_is_waited_for_by_nobody() {
    let blobs = Arc::new(Blobs::new(4));
    with_fetch(&blobs, &Silent, |_, _| {});
    with_fetch(&blobs, &Silent, |_, open| {
        let mut given_up = open(0).expect("a reader");
        given_up.read_exact(&mut [0; 10]).expect("read");
        assert!(whole(open(3).expect("a reader")) == blobs.blobs[3]);
        drop(given_up);
    });
}

/// A reader may come at any moment of a fetch, also as that is just looking for one.
#[test]
fn a_reader_may_come_just_then() {
    let blobs = Arc::new(Blobs::of_size(3, 10));
    for _ in 0..500 {
        with_fetch(&blobs, &Silent, |_, open| {
            for layer in 0..3 {
                assert!(whole(open(layer).expect("a reader")) == blobs.blobs[layer]);
            }
        });
    }
}
