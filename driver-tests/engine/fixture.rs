//! A store on tmpfs with the in-memory double, its engine, and another process's view of its records.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reflinkd::backend::memory::Memory;
use reflinkd::backend::{Backend, Tree};
use reflinkd::engine::container::CreateContainer;
use reflinkd::engine::load::Silent;
use reflinkd::engine::{Engine, Settings};
use reflinkd::oci::{Input, Source, SourceLimits};
use reflinkd::store::{Draft, Identity, Image, Record, Store};
use reflinkd::sys::{bind, mount};
use reflinkd::{Kind, Result};

use crate::double::{Controls, Double};
use crate::support::image::{Packing, TestImage};

pub(crate) struct World {
    directory: tempfile::TempDir,
    controls: Arc<Controls>,
    pub(crate) spares: usize,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::on(Path::new("/dev/shm"))
    }

    /// Below a directory on tmpfs.
    pub(crate) fn on(parent: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root: records are trusted attributes");
        let directory = tempfile::tempdir_in(parent).expect("a directory on tmpfs");
        fs::create_dir(directory.path().join("store")).expect("mkdir");
        Self { directory, controls: Arc::default(), spares: 1 }
    }

    /// With the image `base` of two layers.
    pub(crate) fn with_base() -> Self {
        let world = Self::new();
        world.load(&base()).expect("load");
        world
    }

    /// With so many spares wanted of each image.
    pub(crate) fn keeping(mut self, spares: usize) -> Self {
        self.spares = spares;
        self
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory::new(&self.root()).expect("a directory")
    }

    fn settings(&self) -> Settings {
        Settings { root: self.root(), spares: self.spares, ..Settings::default() }
    }

    pub(crate) fn try_open(&self) -> Result<Engine> {
        Engine::on_backend(self.settings(), Box::new(self.memory()))
    }

    /// What the engines of [`World::double`] do.
    pub(crate) fn controls(&self) -> &Controls {
        &self.controls
    }

    /// The engine of another process, on a filesystem that counts, limits and runs full as the test says.
    pub(crate) fn double(&self) -> Engine {
        let double = Double::new(self.memory(), self.root(), Arc::clone(&self.controls));
        Engine::on_backend(self.settings(), Box::new(double)).expect("open")
    }

    /// The engine of another process.
    pub(crate) fn engine(&self) -> Engine {
        self.try_open().expect("open")
    }

    /// The records, to leave half-made things behind.
    pub(crate) fn store(&self) -> Store {
        let identity = Identity::read(&self.root()).expect("read").expect("is there");
        let instance = self.memory().instance().expect("instance");
        Store::open(&self.root(), identity, &instance, &|| Ok(None)).expect("open")
    }

    pub(crate) fn load(&self, image: &TestImage) -> Result<Vec<Image>> {
        let path = self.directory.path().join("image.tar");
        image.write_archive(&path);
        load_file(&self.engine(), &path)
    }

    pub(crate) fn create(&self, name: &str) -> Record {
        self.engine().create_container(wanted(name)).expect("create").record
    }

    /// Forget the index, as a power cut does.
    pub(crate) fn lose_index(&self) {
        fs::remove_file(self.root().join("index.db")).expect("unlink");
    }

    pub(crate) fn places(&self) -> usize {
        fs::read_dir(self.root().join("snapshots")).expect("read").count()
    }

    /// What the recipes of all layers take on disk, in bytes.
    pub(crate) fn recipes(&self) -> u64 {
        let places = fs::read_dir(self.root().join("snapshots")).expect("read");
        let recipes = places.filter_map(|place| place.expect("read").path().join("recipe").metadata().ok());
        recipes.map(|recipe| recipe.blocks() * 512).sum()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let records = self.engine().containers().expect("list");
        records.iter().filter_map(|record| record.name().map(str::to_string)).collect()
    }

    pub(crate) fn blobs(&self) -> usize {
        fs::read_dir(self.root().join("blobs/sha256")).expect("read").count()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for entry in mount::table("self").unwrap_or_default() {
            if entry.target.starts_with(self.directory.path()) {
                let _ = bind::detach(&entry.target);
            }
        }
    }
}

pub(crate) fn load_file(engine: &Engine, path: &Path) -> Result<Vec<Image>> {
    let source = Source::open(Input::Path(path.to_path_buf()), &engine.spool_directory(), &SourceLimits::default())?;
    engine.load(&source, &Silent)
}

pub(crate) fn wanted(name: &str) -> CreateContainer {
    CreateContainer { name: Some(name.into()), image: "base".into(), ..CreateContainer::default() }
}

pub(crate) fn base() -> TestImage {
    TestImage::new("base")
        .files(Packing::Gzip, &[("etc/", b""), ("etc/passwd", b"root\n"), ("etc/old", b"old")])
        .files(Packing::Plain, &[("etc/.wh.old", b""), ("etc/new", b"new\n")])
}

/// The tree that a draft is to have.
pub(crate) fn tree_of(draft: &Draft) -> Tree {
    Tree::new(draft.place(), None)
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("should fail").kind()
}
