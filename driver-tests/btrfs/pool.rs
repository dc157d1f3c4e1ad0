//! A Btrfs filesystem of its own for each test, and what the tests say about it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reflinkd::backend::btrfs::Btrfs;
use reflinkd::backend::{Access, Backend, GroupId, QuotaMode, Tree, Want};
use reflinkd::sys::btrfs::{BtrfsFd, Create, qgroup, subvol};
use rustix::fs::IFlags;

pub(super) const MIB: u64 = 1 << 20;
pub(super) const KIB: u64 = 1 << 10;
/// Metadata that may come on top of data.
pub(super) const SLACK: u64 = 128 * KIB;
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const PREFIX: u16 = 0xbeef;
pub(super) const SYNCED: Want = Want { sync: true, apparent: true };
pub(super) const MODES: [QuotaMode; 4] =
    [QuotaMode::None, QuotaMode::Simple, QuotaMode::Full, QuotaMode::Inconsistent];

/// A fresh filesystem, unmounted and removed on drop.
pub(super) struct Pool {
    pub(super) file: PathBuf,
    pub(super) root: PathBuf,
}

impl Pool {
    pub(super) fn new(name: &str, mode: QuotaMode) -> Self {
        Self::sized(name, mode, 4096 * MIB)
    }

    pub(super) fn sized(name: &str, mode: QuotaMode, bytes: u64) -> Self {
        let base =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("btrfs-{name}-{mode:?}-{}", std::process::id()));
        let pool = Self { file: base.with_extension("img"), root: base };
        fs::create_dir_all(&pool.root).unwrap();
        File::create(&pool.file).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.btrfs").args(["-q", "-f"]).arg(&pool.file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&pool.file).arg(&pool.root));
        let fd = BtrfsFd::open(&pool.root).unwrap();
        match mode {
            QuotaMode::None | QuotaMode::Project => {}
            QuotaMode::Simple => qgroup::quota_ctl(&fd, qgroup::QuotaCtl::EnableSimple).unwrap(),
            QuotaMode::Full | QuotaMode::Inconsistent => {
                qgroup::quota_ctl(&fd, qgroup::QuotaCtl::Enable).unwrap();
                qgroup::quota_rescan_wait(&fd).unwrap();
            }
        }
        if mode == QuotaMode::Inconsistent {
            pool.make_inconsistent(&fd);
        }
        assert_eq!(pool.open().quota_mode().unwrap(), mode);
        pool
    }

    /// A snapshot born into a level-1 group.
    fn make_inconsistent(&self, fd: &BtrfsFd) {
        let group = 1 << 48 | 7;
        qgroup::create(fd, group).unwrap();
        subvol::subvol_create(fd, "a".as_ref(), &Create::default()).unwrap();
        fs::write(self.root.join("a/data"), random(MIB)).unwrap();
        let source = BtrfsFd::open(&self.root.join("a")).unwrap();
        subvol::snap_create(&source, fd, "b".as_ref(), &Create { read_only: false, group: Some(group) }).unwrap();
    }

    pub(super) fn open(&self) -> Btrfs {
        Btrfs::open(&self.root, PREFIX).unwrap()
    }

    /// A tree in a fresh place, charged to `group`.
    pub(super) fn tree(&self, name: &str, group: u32) -> Tree {
        let place = self.root.join(name);
        fs::create_dir_all(&place).unwrap();
        Tree::new(place, Some(GroupId(group)))
    }

    /// A read-only layer in group 1 with `/big` of `size` random bytes and `/etc/passwd`.
    pub(super) fn layer(&self, btrfs: &Btrfs, size: u64) -> Tree {
        let (work, base) = (self.tree("work", 1), self.tree("base", 1));
        btrfs.create(&work, None).unwrap();
        fs::write(work.root().join("big"), random(size)).unwrap();
        fs::create_dir(work.root().join("etc")).unwrap();
        fs::write(work.root().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        btrfs.clone_tree(&work, &base, Access::ReadOnly, None).unwrap();
        btrfs.destroy(&work).unwrap();
        base
    }

    pub(super) fn clone(&self, btrfs: &Btrfs, from: &Tree, name: &str, group: u32) -> Tree {
        let tree = self.tree(name, group);
        btrfs.clone_tree(from, &tree, Access::Writable, None).unwrap();
        tree
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let umount = |how: &[&str]| {
            Command::new("umount").args(how).arg(&self.root).status().is_ok_and(|status| status.success())
        };
        let unmounted = umount(&[]) || umount(&["--recursive", "--lazy"]);
        let _ = fs::remove_file(&self.file);
        let _ = fs::remove_dir(&self.root);
        if !std::thread::panicking() {
            assert!(unmounted, "cannot unmount {}", self.root.display());
        }
    }
}

pub(super) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(super) fn random(bytes: u64) -> Vec<u8> {
    let mut data = Vec::new();
    File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut data).unwrap();
    data
}

pub(super) fn charged(btrfs: &Btrfs, tree: &Tree) -> u64 {
    btrfs.measure(&[tree], SYNCED).unwrap().sizes[0].charged
}

pub(super) fn apparent(btrfs: &Btrfs, tree: &Tree) -> u64 {
    btrfs.measure(&[tree], SYNCED).unwrap().sizes[0].apparent.unwrap()
}

#[track_caller]
pub(super) fn assert_about(charged: u64, written: u64) {
    assert!((written..=written + SLACK).contains(&charged), "{charged} charged for {written} written");
}

/// Write until EDQUOT; how many bytes got in.
pub(super) fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let block = random(64 * KIB);
    for _ in 0..4096 {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
            break;
        }
    }
    file.metadata().unwrap().len()
}

pub(super) fn lock(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let old = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, old | flags).unwrap();
}

pub(super) fn make_subvolume(directory: &Path, name: &str) -> PathBuf {
    subvol::subvol_create(&BtrfsFd::open(directory).unwrap(), name.as_ref(), &Create::default()).unwrap();
    directory.join(name)
}
