//! A store on a loop filesystem, and the binary to ask it.

// Each test binary that includes this uses another part of it.
#![allow(dead_code)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::support::image::{Packing, TestImage};
use crate::support::{Answer, LoopFs, MIB, QuotaSetup, Scratch, arg, reflinkd, require_root, run, scratch};

/// What a store lies on. All that differs for a user is said here: tests ask, and never look at the filesystem.
// Each of the two test binaries stands on some of them.
#[allow(dead_code)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ground {
    Btrfs(QuotaSetup),
    /// Btrfs that compresses what is written, without quotas.
    Zstd,
    /// Without project quotas.
    Xfs,
    /// With them, which only few machines' kernels have: see e2e_vm.rs.
    XfsPrjquota,
}

impl Ground {
    pub(crate) const SIMPLE: Self = Self::Btrfs(QuotaSetup::Simple);

    pub(crate) fn filesystem(self) -> &'static str {
        match self {
            Self::Btrfs(_) | Self::Zstd => "btrfs",
            Self::Xfs | Self::XfsPrjquota => "xfs",
        }
    }

    pub(crate) fn backend(self) -> &'static str {
        match self {
            Self::Btrfs(_) | Self::Zstd => "btrfs",
            Self::Xfs | Self::XfsPrjquota => "reflink",
        }
    }

    /// How SIZE is counted.
    pub(crate) fn size_method(self) -> &'static str {
        match self {
            Self::Btrfs(QuotaSetup::Simple) => "simple-quota",
            Self::Btrfs(QuotaSetup::Full) => "qgroup",
            Self::Btrfs(QuotaSetup::None | QuotaSetup::Inconsistent) | Self::Zstd | Self::Xfs => "extents",
            Self::XfsPrjquota => "project-quota",
        }
    }

    /// What `quota status` shows.
    pub(crate) fn quota_mode(self) -> &'static str {
        match self {
            Self::Btrfs(QuotaSetup::Simple) => "simple",
            Self::Btrfs(QuotaSetup::Full) => "full",
            Self::Btrfs(QuotaSetup::Inconsistent) => "inconsistent",
            Self::Btrfs(QuotaSetup::None) | Self::Zstd | Self::Xfs => "none",
            Self::XfsPrjquota => "project",
        }
    }

    /// Whether limits are held.
    pub(crate) fn holds_limits(self) -> bool {
        matches!(self, Self::Btrfs(QuotaSetup::Simple | QuotaSetup::Full) | Self::XfsPrjquota)
    }

    /// Whether overwriting what is the image's is charged.
    pub(crate) fn charges_overwriting(self) -> bool {
        self != Self::XfsPrjquota
    }

    /// A number of files or containers that takes its time on each, but not longer: a tree of XFS is cloned file by file.
    pub(crate) fn many(self, count: usize) -> usize {
        match self {
            Self::Btrfs(_) | Self::Zstd => count,
            Self::Xfs | Self::XfsPrjquota => count / 2,
        }
    }

    /// These arguments where limits are held, none elsewhere.
    pub(crate) fn limit<'a>(self, args: &'a [&'a str]) -> &'a [&'a str] {
        if self.holds_limits() { args } else { &[] }
    }
}

/// A filesystem with a store in it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) fs: LoopFs,
    pub(crate) files: Scratch,
    pub(crate) ground: Ground,
    root: PathBuf,
}

impl World {
    /// 2 GiB of it.
    pub(crate) fn on(ground: Ground) -> Self {
        Self::of_size(2048 * MIB, ground)
    }

    pub(crate) fn of_size(size: u64, ground: Ground) -> Self {
        require_root();
        let fs = match ground {
            Ground::Btrfs(quota) => LoopFs::btrfs(size, quota),
            Ground::Zstd => LoopFs::btrfs_zstd(size, QuotaSetup::None),
            Ground::Xfs => LoopFs::xfs(size),
            Ground::XfsPrjquota => LoopFs::xfs_mounted(size, "prjquota"),
        };
        let root = fs.path().join("store");
        Self { fs, files: scratch("files"), ground, root }
    }

    pub(crate) fn simple() -> Self {
        Self::on(Ground::SIMPLE)
    }

    pub(crate) fn xfs() -> Self {
        Self::on(Ground::Xfs)
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

    /// Give metadata a block group of the size that the kernel picks. mkfs.btrfs with single metadata makes one of 8 MiB,
    /// of which the kernel reserves most: once data has taken all else, not even an empty filesystem can make a directory.
    pub(crate) fn with_room_for_metadata(self) -> Self {
        if self.ground.filesystem() == "btrfs" {
            run("btrfs", &["balance", "start", "-m", arg(self.fs.path())]);
        }
        self
    }

    /// A small image of two layers, loaded as `base`.
    pub(crate) fn with_base(self) -> Self {
        self.load(&base_image());
        self
    }

    /// Places of trees on disk, whatever the index says.
    pub(crate) fn places(&self) -> usize {
        entries(&self.root.join("snapshots")).len()
    }

    /// Those of them that have a tree.
    pub(crate) fn trees(&self) -> usize {
        let places = entries(&self.root.join("snapshots"));
        places.iter().filter(|place| place.join("fs").exists()).count()
    }

    /// All trees below the store: subvolumes by Btrfs's own program, or directories in places.
    pub(crate) fn all_trees(&self) -> Vec<String> {
        match self.ground {
            Ground::Btrfs(_) | Ground::Zstd => {
                let list = run("btrfs", &["subvolume", "list", arg(self.fs.path())]);
                let paths = list.lines().filter_map(|line| line.split(" path ").nth(1));
                paths.filter(|path| path.contains("snapshots/")).map(str::to_string).collect()
            }
            Ground::Xfs | Ground::XfsPrjquota => {
                let inside = entries(&self.root.join("snapshots")).into_iter().flat_map(|place| entries(&place));
                inside.filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect()
            }
        }
    }

    /// What removed trees still have: quota groups, or directories in the trash.
    pub(crate) fn remains(&self) -> Vec<String> {
        match self.ground {
            // With full qgroups a tree has no group but its subvolume's own, which goes with it.
            Ground::Btrfs(QuotaSetup::None | QuotaSetup::Full | QuotaSetup::Inconsistent) | Ground::Zstd => {
                Vec::new()
            }
            Ground::Btrfs(QuotaSetup::Simple) => {
                let list = run("btrfs", &["qgroup", "show", arg(self.fs.path())]);
                list.lines().filter(|line| line.starts_with("1/")).map(str::to_string).collect()
            }
            Ground::Xfs | Ground::XfsPrjquota => {
                entries(&self.root.join("trash")).iter().map(|path| path.display().to_string()).collect()
            }
        }
    }

    /// Make an empty tree where nobody expects one.
    pub(crate) fn make_tree(&self, path: &Path) {
        match self.ground {
            Ground::Btrfs(_) | Ground::Zstd => drop(run("btrfs", &["subvolume", "create", arg(path)])),
            Ground::Xfs | Ground::XfsPrjquota => fs::create_dir(path).expect("mkdir"),
        }
    }

    /// Clone a tree by the filesystem's own means.
    pub(crate) fn clone_tree(&self, from: &Path, to: &Path) {
        match self.ground {
            Ground::Btrfs(_) | Ground::Zstd => run("btrfs", &["subvolume", "snapshot", arg(from), arg(to)]),
            Ground::Xfs | Ground::XfsPrjquota => run("cp", &["-a", "--reflink=always", arg(from), arg(to)]),
        };
    }

    /// ROOT is what it should be there: on Btrfs a subvolume of its own.
    pub(crate) fn check_root(&self) {
        let mode = fs::metadata(self.root()).expect("ROOT").permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        if self.ground.filesystem() == "btrfs" {
            assert!(run("btrfs", &["subvolume", "show", arg(self.root())]).contains("store"));
        }
    }
}

impl World {
    /// Everything that the store has but its index and lock files (which are made when they are first needed), and the
    /// filesystem's subvolumes.
    pub(crate) fn stored(&self) -> Vec<String> {
        let mut found = self.all_trees();
        let mut below = vec![self.root.clone()];
        while let Some(directory) = below.pop() {
            for path in entries(&directory) {
                let name = path.strip_prefix(&self.root).expect("below").display().to_string();
                if name.starts_with("index.db") || name.ends_with("lock") {
                    continue;
                }
                if path.is_dir() {
                    below.push(path);
                }
                found.push(name);
            }
        }
        found.sort();
        found
    }
}

/// What is in a directory; nothing if there is none.
fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// Two layers: some files, and a change with a whiteout.
pub(crate) fn base_image() -> TestImage {
    small_image("base")
}

/// The same by another name.
pub(crate) fn small_image(name: &str) -> TestImage {
    TestImage::new(name)
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

    /// Bytes that the filesystem uses, by its own account.
    pub(crate) fn used(&self) -> u64 {
        run("sync", &["-f", arg(self.fs.path())]);
        let stat = rustix::fs::statvfs(self.fs.path()).expect("statvfs");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }

    /// An image that must not be loaded, with this in the error.
    pub(crate) fn fails_loading(&self, image: &TestImage, why: &str) {
        let path = self.files.path().join("bad.tar");
        image.write_archive(&path);
        let error = self.fails(&["load", "-q", path.to_str().expect("UTF-8")]);
        assert!(error.contains(why), "{error}");
    }
}

/// A thread that appends numbered lines to a file until it is dropped.
#[derive(Debug)]
pub(crate) struct Appender {
    lines: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Appender {
    pub(crate) fn start(path: &Path) -> Self {
        let mut file = OpenOptions::new().append(true).create(true).open(path).expect("open");
        let (lines, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&lines), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                file.write_all(format!("{n:08}\n").as_bytes()).expect("write");
                count.store(n + 1, Ordering::Release);
            }
        });
        Self { lines, stop, thread: Some(thread) }
    }

    /// Bytes that are written.
    pub(crate) fn written(&self) -> u64 {
        self.lines.load(Ordering::Acquire) * 9
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the writer failed");
        }
    }
}

/// What an [`Appender`] has written by some moment is in the file: at least `before` bytes of it, but for the last pages,
/// which a snapshot passes over if they are written again while they are on their way to disk. There are zeros then, as
/// Btrfs counts what is being written into the length before it is there.
pub(crate) fn assert_begins_as_written(text: &[u8], before: u64, what: &str) {
    let zeros = text.iter().rev().take_while(|byte| **byte == 0).count();
    let written = &text[..text.len() - zeros];
    let lines: String = (0..=written.len() / 9).map(|n| format!("{n:08}\n")).collect();
    assert!(lines.as_bytes().starts_with(written), "{what}: a gap or a mix");
    let missing = before.saturating_sub(written.len() as u64);
    assert!(missing < 16 << 10, "{what}: {missing} of {before} bytes that were written before are missing");
}
