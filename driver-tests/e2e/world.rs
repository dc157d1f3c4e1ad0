//! A store on a loop filesystem, and the binary to ask it.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::image::{Packing, TestImage};
use crate::support::{Answer, LoopFs, MIB, QuotaSetup, Scratch, reflinkd, require_root, scratch};

/// A filesystem with a store in it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) fs: LoopFs,
    pub(crate) files: Scratch,
    root: PathBuf,
}

impl World {
    /// On Btrfs with these quotas, 2 GiB.
    pub(crate) fn new(quota: QuotaSetup) -> Self {
        Self::of_size(2048 * MIB, quota)
    }

    pub(crate) fn of_size(size: u64, quota: QuotaSetup) -> Self {
        require_root();
        let fs = LoopFs::btrfs(size, quota);
        let root = fs.path().join("store");
        Self { fs, files: scratch("files"), root }
    }

    pub(crate) fn simple() -> Self {
        Self::new(QuotaSetup::Simple)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Run a command whatever it answers.
    pub(crate) fn ask(&self, args: &[&str]) -> Answer {
        reflinkd(&self.root, args)
    }

    /// Run a command that must succeed; its output without the last line end.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let answer = self.ask(args);
        assert_eq!(answer.status, Some(0), "reflinkd {args:?} failed:\n{}{}", answer.stdout, answer.stderr);
        answer.stdout.trim_end().to_string()
    }

    /// Run a command that must fail with exit code 1 and exactly one error; that error.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let answer = self.ask(args);
        assert_eq!(answer.status, Some(1), "reflinkd {args:?} should fail:\n{}{}", answer.stdout, answer.stderr);
        let errors = answer.stderr.lines().filter(|line| line.starts_with("reflinkd: ")).count();
        assert_eq!(errors, 1, "one error, not {errors}:\n{}", answer.stderr);
        answer.stderr
    }

    /// The array that a command prints as JSON.
    pub(crate) fn rows(&self, args: &[&str]) -> Vec<Value> {
        let args: Vec<_> = args.iter().copied().chain(["--format", "json"]).collect();
        let text = self.ok(&args);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} printed no JSON array: {e}\n{text}"))
    }

    /// The row with this name.
    pub(crate) fn row(&self, args: &[&str], name: &str) -> Value {
        let rows = self.rows(args);
        let row = rows.iter().find(|row| row["name"] == name || row["type"] == name);
        row.unwrap_or_else(|| panic!("no {name} in {rows:#?}")).clone()
    }

    /// The root directory of a container.
    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        PathBuf::from(self.ok(&["mount", name]))
    }

    /// Load an image from an OCI archive.
    pub(crate) fn load(&self, image: &TestImage) {
        let path = self.files.path().join("image.tar");
        image.write_archive(&path);
        self.ok(&["load", "-q", "-i", path.to_str().expect("UTF-8")]);
    }

    /// Give metadata a block group of the size that the kernel picks. mkfs with single metadata makes one of 8 MiB, of
    /// which the kernel reserves most: once data has taken all else, not even an empty filesystem can make a directory.
    pub(crate) fn with_room_for_metadata(self) -> Self {
        crate::support::run("btrfs", &["balance", "start", "-m", self.fs.path().to_str().expect("UTF-8")]);
        self
    }

    /// A small image of two layers, loaded as `base`.
    pub(crate) fn with_base(self) -> Self {
        self.load(&base_image());
        self
    }

    /// Places of trees on disk, whatever the index says.
    pub(crate) fn places(&self) -> usize {
        fs::read_dir(self.root.join("snapshots")).map_or(0, Iterator::count)
    }

    /// Those of them that have a tree.
    pub(crate) fn trees(&self) -> usize {
        let places = fs::read_dir(self.root.join("snapshots")).into_iter().flatten().flatten();
        places.filter(|place| place.path().join("fs").exists()).count()
    }

    /// Subvolumes below the store, by Btrfs's own program.
    pub(crate) fn subvolumes(&self) -> Vec<String> {
        let list = crate::support::run("btrfs", &["subvolume", "list", self.fs.path().to_str().expect("UTF-8")]);
        list.lines()
            .filter_map(|line| line.split(" path ").nth(1))
            .filter(|path| path.contains("snapshots/"))
            .map(str::to_string)
            .collect()
    }
}

/// Two layers: some files, and a change with a whiteout.
pub(crate) fn base_image() -> TestImage {
    TestImage::new("base")
        .files(
            Packing::Gzip,
            &[
                ("etc/", b""),
                ("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n"),
                ("etc/old", b"old"),
                ("bin/", b""),
                ("bin/sh", b"#!"),
            ],
        )
        .step("ENV A=1")
        .files(Packing::Zstd, &[("etc/.wh.old", b""), ("etc/new", b"new\n")])
        .step("CMD [\"/bin/sh\"]")
}

/// A JSON number as bytes.
pub(crate) fn bytes(row: &Value, field: &str) -> u64 {
    row[field].as_u64().unwrap_or_else(|| panic!("{field} is not a number of bytes in {row}"))
}

impl World {
    /// The row whose field has this value.
    pub(crate) fn row_where(&self, args: &[&str], field: &str, value: &str) -> Value {
        let rows = self.rows(args);
        let row = rows.iter().find(|row| row[field] == value);
        row.unwrap_or_else(|| panic!("no {field} {value} in {rows:#?}")).clone()
    }

    /// An image that must not be loaded, with this in the error.
    pub(crate) fn fails_loading(&self, image: &TestImage, why: &str) {
        let path = self.files.path().join("bad.tar");
        image.write_archive(&path);
        let error = self.fails(&["load", "-q", path.to_str().expect("UTF-8")]);
        assert!(error.contains(why), "{error}");
    }
}
