//! The Btrfs backend on real filesystems: loop devices on sparse files, in each quota mode.
//!
//! Needs root, loop devices and mkfs.btrfs, and fails without them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on has failed")]
#![allow(clippy::print_stderr, reason = "measured times, shown with --nocapture")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use reflinkd::Kind;
use reflinkd::backend::btrfs::Btrfs;
use reflinkd::backend::{Access, Backend, GroupId, QuotaMode, SizeMethod, Tree};
use reflinkd::sys::btrfs::{BtrfsFd, Create, search, space, subvol};
use rustix::fs::IFlags;

#[path = "btrfs/pool.rs"]
mod pool;
#[path = "btrfs/quotas.rs"]
mod quotas;

use pool::*;

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
            QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project => SizeMethod::Extents,
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
        assert!(search::orphans(&fd, None).unwrap().is_empty());
        let left = search::children(&fd, 5).unwrap();
        assert!(left.iter().all(|child| child.name == "a" || child.name == "b"), "{left:?}");
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
            let left = btrfs.leftovers(&live).unwrap();
            assert_eq!(left.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["8"]);
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
