//! The Btrfs backend on real filesystems: loop devices on sparse files, in each quota mode.
//!
//! Needs root, loop devices and mkfs.btrfs, and fails without them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]
#![allow(clippy::print_stderr, reason = "measured times, shown with --nocapture")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::btrfs::Btrfs;
use reflinkd::backend::{Access, Backend, GroupId, Guarantee, QuotaMode, SizeMethod, Tree, Want};
use reflinkd::sys::btrfs::{BtrfsFd, Create, Inherit, qgroup, search, space, subvol};
use rustix::fs::IFlags;

const MIB: u64 = 1 << 20;
const KIB: u64 = 1 << 10;
/// Metadata that may come on top of data.
const SLACK: u64 = 128 * KIB;
const PATIENCE: Duration = Duration::from_secs(60);
const PREFIX: u16 = 0xbeef;
const SYNCED: Want = Want { sync: true, apparent: true };
const MODES: [QuotaMode; 4] = [QuotaMode::None, QuotaMode::Simple, QuotaMode::Full, QuotaMode::Inconsistent];

/// A fresh filesystem, unmounted and removed on drop.
struct Pool {
    file: PathBuf,
    root: PathBuf,
    mode: QuotaMode,
}

impl Pool {
    fn new(name: &str, mode: QuotaMode) -> Self {
        Self::sized(name, mode, 4096 * MIB)
    }

    fn sized(name: &str, mode: QuotaMode, bytes: u64) -> Self {
        let base =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("btrfs-{name}-{mode:?}-{}", std::process::id()));
        let pool = Self { file: base.with_extension("img"), root: base, mode };
        fs::create_dir_all(&pool.root).unwrap();
        File::create(&pool.file).unwrap().set_len(bytes).unwrap();
        run(Command::new("mkfs.btrfs").args(["-q", "-f"]).arg(&pool.file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&pool.file).arg(&pool.root));
        let fd = BtrfsFd::open(&pool.root).unwrap();
        match mode {
            QuotaMode::None => {}
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
        let inherit = Some(Inherit { group: Some(group), max_exclusive: None });
        let source = BtrfsFd::open(&self.root.join("a")).unwrap();
        subvol::snap_create(&source, fd, "b".as_ref(), &Create { read_only: false, inherit }).unwrap();
    }

    fn open(&self) -> Btrfs {
        Btrfs::open(&self.root, PREFIX).unwrap()
    }

    /// A tree in a fresh place, charged to `group`.
    fn tree(&self, name: &str, group: u32) -> Tree {
        let place = self.root.join(name);
        fs::create_dir_all(&place).unwrap();
        Tree::new(place, Some(GroupId(group)))
    }

    /// A read-only layer in group 1 with `/big` of `size` random bytes and `/etc/passwd`.
    fn layer(&self, btrfs: &Btrfs, size: u64) -> Tree {
        let (work, base) = (self.tree("work", 1), self.tree("base", 1));
        btrfs.create(&work, None).unwrap();
        fs::write(work.root().join("big"), random(size)).unwrap();
        fs::create_dir(work.root().join("etc")).unwrap();
        fs::write(work.root().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
        btrfs.clone_tree(&work, &base, Access::ReadOnly, None).unwrap();
        btrfs.destroy(&work).unwrap();
        base
    }

    fn clone(&self, btrfs: &Btrfs, from: &Tree, name: &str, group: u32) -> Tree {
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

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn random(bytes: u64) -> Vec<u8> {
    let mut data = Vec::new();
    File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut data).unwrap();
    data
}

fn charged(btrfs: &Btrfs, tree: &Tree) -> u64 {
    btrfs.measure(&[tree], SYNCED).unwrap().sizes[0].charged
}

fn apparent(btrfs: &Btrfs, tree: &Tree) -> u64 {
    btrfs.measure(&[tree], SYNCED).unwrap().sizes[0].apparent.unwrap()
}

#[track_caller]
fn assert_about(charged: u64, written: u64) {
    assert!((written..=written + SLACK).contains(&charged), "{charged} charged for {written} written");
}

/// Write until EDQUOT; how many bytes got in.
fn fill(path: &Path) -> u64 {
    let mut file = File::create(path).unwrap();
    let block = random(MIB);
    for written in 0..256 {
        if let Err(error) = file.write_all(&block).and_then(|()| file.sync_data()) {
            assert_eq!(error.raw_os_error(), Some(libc::EDQUOT), "{error}");
            return written * MIB;
        }
    }
    256 * MIB
}

fn lock(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let old = rustix::fs::ioctl_getflags(&file).unwrap();
    rustix::fs::ioctl_setflags(&file, old | flags).unwrap();
}

fn make_subvolume(directory: &Path, name: &str) -> PathBuf {
    subvol::subvol_create(&BtrfsFd::open(directory).unwrap(), name.as_ref(), &Create::default()).unwrap();
    directory.join(name)
}

#[test]
fn what_is_not_on_btrfs_is_refused() {
    let error = Btrfs::open(Path::new("/proc"), PREFIX).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), "/proc is not on Btrfs");
}

#[test]
fn the_four_operations_in_each_quota_mode() {
    for mode in MODES {
        let pool = Pool::new("four", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, 64 * MIB);
        let (web1, web2) = (pool.clone(&btrfs, &base, "web1", 2), pool.clone(&btrfs, &base, "web2", 3));
        let method = match mode {
            QuotaMode::Simple => SizeMethod::SimpleQuota,
            QuotaMode::Full => SizeMethod::Qgroup,
            QuotaMode::None | QuotaMode::Inconsistent => SizeMethod::Extents,
        };
        let measured = btrfs.measure(&[&web1, &web2], SYNCED).unwrap();
        assert_eq!(measured.method, method);
        for size in measured.sizes {
            assert_eq!((size.charged, size.apparent), (0, Some(0)), "{mode:?}: untouched");
        }

        // Add.
        fs::write(web1.root().join("new"), random(10_000_000)).unwrap();
        assert_about(charged(&btrfs, &web1), 10_000_000);
        assert_eq!(apparent(&btrfs, &web1), 10_000_000);
        assert_eq!(charged(&btrfs, &web2), 0);
        assert!(!web2.root().join("new").exists());

        // Read.
        let image = fs::read(web2.root().join("big")).unwrap();
        let after_read = btrfs.measure(&[&web2], SYNCED).unwrap().sizes[0];
        assert!(after_read.charged <= SLACK, "{mode:?}: reading charged {}", after_read.charged);
        assert_eq!(after_read.apparent, Some(0));

        // Modify one block.
        let before = charged(&btrfs, &web1);
        let file = fs::OpenOptions::new().write(true).open(web1.root().join("big")).unwrap();
        file.write_all_at(&random(4096), 32 * MIB).unwrap();
        drop(file);
        let change = charged(&btrfs, &web1) - before;
        assert!((4096..=4096 + SLACK).contains(&change), "{mode:?}: one block charged {change}");
        assert_eq!(apparent(&btrfs, &web1), 10_000_000 + 64 * MIB);
        assert_eq!(fs::read(base.root().join("big")).unwrap(), image);
        assert_eq!(fs::read(web2.root().join("big")).unwrap(), image);
        assert_ne!(fs::read(web1.root().join("big")).unwrap(), image);

        // Delete.
        fs::remove_file(web1.root().join("etc/passwd")).unwrap();
        assert!(!web1.root().join("etc/passwd").exists());
        assert!(base.root().join("etc/passwd").exists() && web2.root().join("etc/passwd").exists());

        // Refuses writes below.
        assert!(btrfs.is_read_only(&base).unwrap() && !btrfs.is_read_only(&web1).unwrap());
        let error = fs::write(base.root().join("x"), "x").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
        assert_eq!(btrfs.quota_mode().unwrap(), mode, "unchanged by all that");
    }
}

#[test]
fn a_created_tree_counts_all_that_is_in_it() {
    for mode in MODES {
        let pool = Pool::new("created", mode);
        let btrfs = pool.open();
        let tree = pool.tree("a", 1);
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        btrfs.create(&tree, None).unwrap();
        rustix::process::umask(umask);
        let root = fs::metadata(tree.root()).unwrap();
        assert_eq!((root.permissions().mode() & 0o7777, root.uid(), root.gid()), (0o755, 0, 0));
        assert_eq!(charged(&btrfs, &tree), 0);
        fs::write(tree.root().join("a"), random(5 * MIB)).unwrap();
        fs::hard_link(tree.root().join("a"), tree.root().join("b")).unwrap();
        assert_about(charged(&btrfs, &tree), 5 * MIB);
        assert_eq!(apparent(&btrfs, &tree), 5 * MIB);

        assert_eq!(btrfs.create(&tree, None).unwrap_err().kind(), Kind::Exists);
        assert_about(charged(&btrfs, &tree), 5 * MIB);
    }
}

#[test]
fn limits_count_writes_and_never_the_image() {
    for (mode, guarantee) in
        [(QuotaMode::Simple, Guarantee::Holds), (QuotaMode::Full, Guarantee::EscapedByNestedSubvolumes)]
    {
        let pool = Pool::new("limits", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, 64 * MIB);
        let web = pool.tree("web", 2);
        btrfs.clone_tree(&base, &web, Access::Writable, Some(20 * MIB)).unwrap();
        assert_eq!(btrfs.quotas().unwrap().guarantee(), guarantee);
        let written = fill(&web.root().join("log"));
        assert!((18 * MIB..20 * MIB).contains(&written), "{mode:?}: {written}");
        assert_eq!(btrfs.quota_mode().unwrap(), mode, "a limit at birth leaves the quotas consistent");

        let quotas = btrfs.quotas().unwrap();
        quotas.set_limit(&web, Some(40 * MIB)).unwrap();
        let written = fill(&web.root().join("log2"));
        assert!((18 * MIB..21 * MIB).contains(&written), "{mode:?}: raised: {written}");
        quotas.set_limit(&web, None).unwrap();
        fs::write(web.root().join("log3"), random(50 * MIB)).unwrap();
        btrfs.sync().unwrap();
        assert!(charged(&btrfs, &web) > 80 * MIB);

        // A sibling without a limit has none.
        let free = pool.clone(&btrfs, &base, "free", 3);
        fs::write(free.root().join("log"), random(30 * MIB)).unwrap();
        btrfs.sync().unwrap();
        // Removal works at the limit.
        quotas.set_limit(&web, Some(MIB)).unwrap();
        btrfs.destroy(&web).unwrap();
        assert!(!btrfs.exists(&web).unwrap());
    }
}

#[test]
fn with_simple_quotas_a_nested_subvolume_does_not_escape() {
    let pool = Pool::new("escape", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.tree("web", 2);
    btrfs.clone_tree(&base, &web, Access::Writable, Some(20 * MIB)).unwrap();
    let nested = make_subvolume(&web.root(), "nested");
    let written = fill(&nested.join("log"));
    assert!((18 * MIB..20 * MIB).contains(&written), "{written}");
    assert_about(charged(&btrfs, &web), written);
}

#[test]
fn nested_subvolumes_are_counted_named_and_removed() {
    for mode in MODES {
        let pool = Pool::new("nested", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, MIB);
        let web = pool.clone(&btrfs, &base, "web", 2);
        fs::create_dir_all(web.root().join("var/lib")).unwrap();
        let outer = make_subvolume(&web.root().join("var/lib"), "outer");
        fs::create_dir(outer.join("dir")).unwrap();
        let inner = make_subvolume(&outer.join("dir"), "inner");
        fs::write(inner.join("data"), random(3 * MIB)).unwrap();
        assert_about(charged(&btrfs, &web), 3 * MIB);
        assert_eq!(apparent(&btrfs, &web), 3 * MIB);
        let paths: Vec<_> = btrfs.nested(&web).unwrap().into_iter().map(|n| n.path).collect();
        assert_eq!(paths, [Path::new("var/lib/outer"), Path::new("var/lib/outer/dir/inner")]);

        let copy = pool.tree("copy", 3);
        let error = btrfs.clone_tree(&web, &copy, Access::Writable, None).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("var/lib/outer, var/lib/outer/dir/inner"), "{error}");
        assert!(!btrfs.exists(&copy).unwrap());

        // What a container can do to keep its subvolumes: flags on roots and around them, read-only parents.
        lock(&inner, IFlags::IMMUTABLE);
        lock(&outer.join("dir"), IFlags::APPEND);
        for path in [&inner, &outer] {
            subvol::set_read_only(&BtrfsFd::open(path).unwrap(), true).unwrap();
        }
        lock(&web.root().join("var/lib"), IFlags::IMMUTABLE);
        lock(&web.root(), IFlags::IMMUTABLE);
        subvol::set_read_only(&BtrfsFd::open(&web.root()).unwrap(), true).unwrap();
        btrfs.destroy(&web).unwrap();
        assert!(!btrfs.exists(&web).unwrap());
        btrfs.destroy(&web).unwrap();
        btrfs.destroy(&base).unwrap();
        btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
        assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), []);
        let fd = BtrfsFd::open(&pool.root).unwrap();
        assert!(search::orphans(&fd).unwrap().is_empty());
        assert!(search::children(&fd, 5).unwrap().iter().all(|c| pool.mode == QuotaMode::Inconsistent || c.id == 0));
    }
}

#[test]
fn a_nested_snapshot_of_the_tree_shares_with_it() {
    let pool = Pool::new("selfsnap", QuotaMode::None);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, 8 * MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    fs::write(web.root().join("own"), random(2 * MIB)).unwrap();
    let root = BtrfsFd::open(&web.root()).unwrap();
    subvol::snap_create(&root, &root, "snap".as_ref(), &Create::default()).unwrap();
    assert_about(charged(&btrfs, &web), 2 * MIB);
    fs::remove_file(web.root().join("own")).unwrap();
    assert_about(charged(&btrfs, &web), 2 * MIB);
}

#[test]
fn nested_subvolumes_deeper_than_path_max_are_removed() {
    let pool = Pool::new("deep", QuotaMode::None);
    let btrfs = pool.open();
    let web = pool.tree("web", 2);
    btrfs.create(&web, None).unwrap();
    let name = "d".repeat(250);
    let mut directory = BtrfsFd::open(&web.root()).unwrap();
    for _ in 0..20 {
        rustix::fs::mkdirat(directory.as_fd(), &name, rustix::fs::Mode::RWXU).unwrap();
        directory = directory.open_at(name.as_ref()).unwrap();
    }
    subvol::subvol_create(&directory, "deep".as_ref(), &Create::default()).unwrap();
    drop(directory);
    let nested = btrfs.nested(&web).unwrap();
    assert_eq!(nested.len(), 1);
    assert_eq!(nested[0].path.as_os_str().as_bytes().len(), 20 * 251 + 4);
    btrfs.destroy(&web).unwrap();
    assert!(!btrfs.exists(&web).unwrap());
}

#[test]
fn an_active_swapfile_is_named() {
    let pool = Pool::new("swap", QuotaMode::None);
    let btrfs = pool.open();
    let web = pool.tree("web", 2);
    btrfs.create(&web, None).unwrap();
    let swap = web.root().join("swap file");
    File::create(&swap).unwrap();
    lock(&swap, IFlags::NOCOW);
    let file = fs::OpenOptions::new().write(true).open(&swap).unwrap();
    file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    (&file).write_all(&vec![0; 4 << 20]).unwrap();
    file.sync_all().unwrap();
    run(Command::new("mkswap").arg(&swap));
    run(Command::new("swapon").arg(&swap));
    let swapoff = Swapoff(swap.clone());
    let copied = btrfs.clone_tree(&web, &pool.tree("copy", 3), Access::Writable, None).unwrap_err();
    let destroyed = btrfs.destroy(&web).unwrap_err();
    drop(swapoff);
    assert_eq!((copied.kind(), destroyed.kind()), (Kind::Unsupported, Kind::InUse));
    for error in [copied, destroyed] {
        assert!(error.to_string().contains(&format!("{} is an active swapfile", swap.display())), "{error}");
    }
    btrfs.destroy(&web).unwrap();
}

struct Swapoff(PathBuf);

impl Drop for Swapoff {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).status();
    }
}

#[test]
fn what_is_no_subvolume_is_left_alone() {
    let pool = Pool::new("foreign", QuotaMode::Simple);
    let btrfs = pool.open();
    for (name, make) in [
        ("directory", (|path| fs::create_dir(path).unwrap()) as fn(&Path)),
        ("file", |path| fs::write(path, "x").unwrap()),
        ("link", |path| std::os::unix::fs::symlink("/", path).unwrap()),
    ] {
        let tree = pool.tree(name, 9);
        make(&tree.root());
        for result in [btrfs.destroy(&tree), btrfs.exists(&tree).map(|_| ()), btrfs.settle(tree.place()).map(|_| ())]
        {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), Kind::Damaged, "{name}: {error}");
        }
        assert!(btrfs.create(&tree, None).is_err());
        assert!(tree.root().symlink_metadata().is_ok(), "{name}");
    }
    assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), [], "the groups of what failed are gone");
    // A mount on top hides the tree.
    let tree = pool.tree("mounted", 10);
    btrfs.create(&tree, None).unwrap();
    let other = make_subvolume(&pool.root, "other");
    make_subvolume(&other, "precious");
    run(Command::new("mount").arg("--bind").arg(&other).arg(tree.root()));
    let error = btrfs.destroy(&tree).unwrap_err();
    run(Command::new("umount").arg(tree.root()));
    assert_eq!(error.kind(), Kind::InUse, "{error}");
    assert!(other.join("precious").exists());
}

#[test]
fn failures_leave_nothing() {
    for mode in MODES {
        let pool = Pool::new("failures", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, MIB);
        let live = BTreeSet::from([GroupId(1)]);
        let (gone, to) = (pool.tree("gone", 5), pool.tree("to", 6));
        assert_eq!(btrfs.clone_tree(&gone, &to, Access::Writable, None).unwrap_err().kind(), Kind::NotFound);
        let nowhere = Tree::new(pool.root.join("nowhere"), Some(GroupId(7)));
        let error = btrfs.clone_tree(&base, &nowhere, Access::Writable, None).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        btrfs.destroy(&nowhere).unwrap();
        assert!(!btrfs.exists(&nowhere).unwrap());
        let taken = pool.clone(&btrfs, &base, "taken", 8);
        let again = Tree::new(taken.place(), Some(GroupId(9)));
        let error = btrfs.clone_tree(&base, &again, Access::Writable, None).unwrap_err();
        assert_eq!(error.kind(), Kind::Exists, "{error}");
        btrfs.destroy(&taken).unwrap();
        if mode == QuotaMode::Simple {
            assert_eq!(btrfs.leftovers(&live).unwrap().iter().map(|l| l.group).collect::<Vec<_>>(), [GroupId(8)]);
        }
        if matches!(mode, QuotaMode::None | QuotaMode::Inconsistent) {
            assert!(btrfs.quotas().is_none());
            let error = btrfs.clone_tree(&base, &to, Access::Writable, Some(MIB)).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.hint().is_some());
            assert!(!btrfs.exists(&to).unwrap());
        }
    }
}

#[test]
fn replace_exchanges_and_settle_finishes() {
    for mode in MODES {
        let pool = Pool::new("replace", mode);
        let btrfs = pool.open();
        let base = pool.layer(&btrfs, MIB);
        let web = pool.clone(&btrfs, &base, "web", 2);
        fs::write(web.root().join("own"), random(MIB)).unwrap();
        let fresh = Tree::new(web.place(), Some(GroupId(3)));
        btrfs.replace(&base, &fresh, None).unwrap();
        assert!(!fresh.root().join("own").exists() && fresh.root().join("big").exists());
        assert!(!fresh.spare().exists());
        assert_eq!(charged(&btrfs, &fresh), 0);
        let grouped = (mode == QuotaMode::Simple).then_some(GroupId(3));
        assert_eq!(btrfs.settle(web.place()).unwrap(), grouped);

        // A crash before the exchange: the new tree waits at the side.
        let place = BtrfsFd::open(web.place()).unwrap();
        let source = BtrfsFd::open(&base.root()).unwrap();
        subvol::snap_create(&source, &place, "fs.new".as_ref(), &Create::default()).unwrap();
        assert_eq!(btrfs.settle(web.place()).unwrap(), grouped);
        assert!(!fresh.spare().exists() && fresh.root().exists());
        subvol::snap_create(&source, &place, "fs.new".as_ref(), &Create::default()).unwrap();
        btrfs.replace(&base, &Tree::new(web.place(), Some(GroupId(4))), None).unwrap();
        assert!(!fresh.spare().exists() && fresh.root().exists());

        let missing = pool.tree("missing", 5);
        assert_eq!(btrfs.replace(&base, &missing, None).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(btrfs.settle(missing.place()).unwrap(), None);
    }
}

#[test]
fn reclaim_drops_what_nothing_is_charged_to() {
    let pool = Pool::new("reclaim", QuotaMode::Simple);
    let btrfs = pool.open();
    let fd = BtrfsFd::open(&pool.root).unwrap();
    let foreign = [1 << 48 | 5, 1 << 48 | u64::from(PREFIX - 1) << 32 | 1, 2 << 48 | u64::from(PREFIX) << 32 | 1];
    foreign.iter().for_each(|id| qgroup::create(&fd, *id).unwrap());
    assert_eq!(btrfs.highest_group().unwrap(), None);
    let before = btrfs.space().unwrap();

    let base = pool.layer(&btrfs, 16 * MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    fs::write(web.root().join("own"), random(8 * MIB)).unwrap();
    let commit = pool.tree("commit", 3);
    btrfs.clone_tree(&web, &commit, Access::ReadOnly, None).unwrap();
    btrfs.destroy(&web).unwrap();
    assert_eq!(btrfs.highest_group().unwrap(), Some(GroupId(3)));

    // The layer's unpacked tree is gone, its charge isn't; the commit keeps the container's data alive.
    let live = BTreeSet::from([GroupId(1), GroupId(3)]);
    btrfs.reclaim(&live, PATIENCE).unwrap();
    assert_about(charged(&btrfs, &base), 16 * MIB);
    let leftovers = btrfs.leftovers(&live).unwrap();
    assert_eq!(leftovers.iter().map(|l| l.group).collect::<Vec<_>>(), [GroupId(2)]);
    assert_about(leftovers[0].charged, 8 * MIB);

    for tree in [&commit, &base] {
        btrfs.destroy(tree).unwrap();
    }
    let reclaimed = btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
    assert_eq!(reclaimed.groups, 3);
    assert!(reclaimed.trimmed > 0);
    assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), []);
    let groups = search::qgroups(&fd, 0..=u64::MAX).unwrap();
    let ids: Vec<_> = groups.iter().map(|g| g.id).collect();
    assert_eq!(ids, [&[5], &foreign[..]].concat(), "only what was there before");
    let after = btrfs.space().unwrap();
    assert!(after.used <= before.used + MIB, "{before:?} {after:?}");
    assert_eq!(after.total, 4096 * MIB);
}

#[test]
fn reclaim_leaves_what_a_process_holds_open() {
    let pool = Pool::new("held", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    let mut file = File::create_new(web.root().join("own")).unwrap();
    file.write_all(&random(4 * MIB)).unwrap();
    btrfs.destroy(&web).unwrap();
    let live = BTreeSet::from([GroupId(1)]);
    let start = Instant::now();
    assert_eq!(btrfs.reclaim(&live, Duration::from_millis(300)).unwrap().groups, 0);
    assert!(start.elapsed() < Duration::from_secs(20));
    file.seek(SeekFrom::Start(0)).unwrap();
    assert_about(btrfs.leftovers(&live).unwrap()[0].charged, 4 * MIB);
    drop(file);
    assert_eq!(btrfs.reclaim(&live, PATIENCE).unwrap().groups, 1);
    assert_eq!(btrfs.leftovers(&live).unwrap(), []);
}

#[test]
fn full_quotas_keep_no_groups_of_destroyed_trees() {
    let pool = Pool::new("stale", QuotaMode::Full);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let web = pool.tree("web", 2);
    btrfs.clone_tree(&base, &web, Access::Writable, Some(10 * MIB)).unwrap();
    make_subvolume(&web.root(), "nested");
    btrfs.destroy(&web).unwrap();
    btrfs.destroy(&base).unwrap();
    btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
    let groups = search::qgroups(&BtrfsFd::open(&pool.root).unwrap(), 0..=u64::MAX).unwrap();
    assert_eq!(groups.iter().map(|g| g.id).collect::<Vec<_>>(), [5]);
    assert_eq!(btrfs.quota_mode().unwrap(), QuotaMode::Full);
}

#[test]
fn quota_modes_are_switched() {
    let pool = Pool::new("switch", QuotaMode::None);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, 4 * MIB);
    let web = pool.clone(&btrfs, &base, "web", 2);
    fs::write(web.root().join("own"), random(2 * MIB)).unwrap();
    for mode in [QuotaMode::Simple, QuotaMode::Full, QuotaMode::Simple, QuotaMode::None, QuotaMode::Full] {
        btrfs.set_quota_mode(mode).unwrap();
        btrfs.set_quota_mode(mode).unwrap();
        assert_eq!(btrfs.quota_mode().unwrap(), mode);
        // The tree is older than the quotas: with simple ones nobody is charged for it, so it is counted.
        assert_about(charged(&btrfs, &web), 2 * MIB);
    }
    assert_eq!(btrfs.set_quota_mode(QuotaMode::Inconsistent).unwrap_err().kind(), Kind::Invalid);
    btrfs.set_quota_mode(QuotaMode::Simple).unwrap();
    let error = btrfs.quotas().unwrap().set_limit(&web, Some(MIB)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");

    let broken = Pool::new("mend", QuotaMode::Inconsistent);
    broken.open().set_quota_mode(QuotaMode::Full).unwrap();
    assert_eq!(broken.open().quota_mode().unwrap(), QuotaMode::Full);
}

#[test]
fn clones_are_made_from_many_threads() {
    let pool = Pool::new("threads", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    std::thread::scope(|scope| {
        for thread in 0..16_u32 {
            let (pool, btrfs, base) = (&pool, &btrfs, &base);
            scope.spawn(move || {
                for n in 0..4 {
                    let group = 10 + thread * 4 + n;
                    let tree = pool.tree(&format!("c{group}"), group);
                    btrfs.clone_tree(base, &tree, Access::Writable, Some(10 * MIB)).unwrap();
                }
            });
        }
        // A clean-up that knows none of them must not cost any its group.
        let btrfs = &btrfs;
        scope.spawn(move || {
            for _ in 0..10 {
                btrfs.reclaim(&BTreeSet::from([GroupId(1)]), Duration::ZERO).unwrap();
            }
        });
    });
    for group in 10..74 {
        let tree = pool.tree(&format!("c{group}"), group);
        assert_eq!(btrfs.settle(tree.place()).unwrap(), Some(GroupId(group)));
    }
}

#[test]
fn a_thousand_clones_are_measured_in_one_go() {
    let pool = Pool::new("thousand", QuotaMode::Simple);
    let btrfs = pool.open();
    let base = pool.layer(&btrfs, MIB);
    let trees: Vec<Tree> = (0..1000).map(|n| pool.tree(&format!("c{n}"), 10 + n)).collect();
    std::thread::scope(|scope| {
        for part in trees.chunks(125) {
            let (btrfs, base) = (&btrfs, &base);
            scope.spawn(move || {
                part.iter().for_each(|tree| btrfs.clone_tree(base, tree, Access::Writable, None).unwrap());
            });
        }
    });
    fs::write(trees[7].root().join("own"), random(MIB)).unwrap();
    btrfs.sync().unwrap();
    let all: Vec<&Tree> = trees.iter().collect();
    let start = Instant::now();
    let measured = btrfs.measure(&all, Want { sync: true, apparent: false }).unwrap();
    eprintln!("1,000 clones measured in {:?}", start.elapsed());
    assert_eq!(measured.method, SizeMethod::SimpleQuota);
    for (n, size) in measured.sizes.iter().enumerate() {
        assert_eq!(size.apparent, None);
        if n == 7 {
            assert_about(size.charged, MIB);
        } else {
            assert_eq!(size.charged, 0, "clone {n}");
        }
    }
    let start = Instant::now();
    trees.iter().for_each(|tree| btrfs.destroy(tree).unwrap());
    eprintln!("and removed in {:?}", start.elapsed());
    btrfs.destroy(&base).unwrap();
    btrfs.reclaim(&BTreeSet::new(), PATIENCE).unwrap();
    assert_eq!(btrfs.leftovers(&BTreeSet::new()).unwrap(), []);
}

#[test]
fn an_instance_is_one_mount() {
    let pool = Pool::new("instance", QuotaMode::None);
    let first = pool.open().instance().unwrap();
    assert_eq!(pool.open().instance().unwrap(), first);
    run(Command::new("umount").arg(&pool.root));
    run(Command::new("mount").args(["-o", "loop"]).arg(&pool.file).arg(&pool.root));
    assert_ne!(pool.open().instance().unwrap(), first);
}

#[test]
fn a_filesystem_grows_and_syncs() {
    let pool = Pool::sized("grow", QuotaMode::None, 512 * MIB);
    let fd = BtrfsFd::open(&pool.root).unwrap();
    assert_eq!(pool.open().space().unwrap().total, 512 * MIB);
    fs::write(pool.root.join("x"), "x").unwrap();
    let transid = space::start_sync(&fd).unwrap();
    space::wait_sync(&fd, transid).unwrap();
    space::resize_max(&fd).unwrap();
    assert_eq!(pool.open().space().unwrap().total, 512 * MIB, "the device is no larger");
}
