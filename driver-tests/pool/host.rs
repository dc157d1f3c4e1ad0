//! The filesystem below a pool: its room, and what happens without.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::engine::pool::{Creation, PoolFs};

use crate::fixture::{Fixture, Promises as _, names};
use crate::support::{GIB, LoopFs, MIB, QuotaSetup, arg, fill, random_bytes, run, unmount};

pub(crate) fn the_guard_counts_the_hosts_room(kind: PoolFs) {
    let host = LoopFs::ext4(512 * MIB);
    let fixture = Fixture::within(kind, host.path());
    fixture.pool.guard(100 * MIB).expect("there is room");
    assert_eq!(fixture.pool.create(kind, 4 * GIB).expect("a sparse file"), Creation::Created);
    fixture.pool.attach().expect("attach");
    let before = fixture.pool.host_space().expect("its account");
    assert_eq!(before.length, 4 * GIB);
    assert!(before.total <= 512 * MIB && before.free < before.total);
    assert!(before.occupied < kind.occupied_at_most(), "{before:?}");

    fs::write(fixture.root().join("data"), random_bytes(100 * MIB)).expect("write");
    run("sync", &["--file-system", arg(fixture.root())]);
    let after = fixture.pool.host_space().expect("its account");
    // Some blocks of the file were written when it was made, and are used now.
    assert!((99 * MIB..120 * MIB).contains(&(after.occupied - before.occupied)), "{before:?} {after:?}");
    assert!((99 * MIB..120 * MIB).contains(&(before.free - after.free)), "{before:?} {after:?}");

    fixture.pool.guard(after.free).expect("exactly enough");
    let refused = fixture.pool.guard(after.free + 1).expect_err("one byte less");
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert!(refused.hint().is_some());
    assert!(refused.to_string().contains(arg(fixture.pool.file())), "{refused}");
}

/// A pool with 10 MiB in it that are synced, and no room left below it.
struct FullHost {
    // The pool is unmounted before its host.
    fixture: Fixture,
    host: LoopFs,
    synced: Vec<u8>,
}

impl FullHost {
    fn with(kind: PoolFs) -> Self {
        let host = LoopFs::ext4(512 * MIB);
        let fixture = Fixture::within(kind, host.path()).made(2 * GIB);
        let synced = random_bytes(10 * MIB);
        fs::write(fixture.root().join("synced"), &synced).expect("write");
        run("sync", &["--file-system", arg(fixture.root())]);
        assert!(!fixture.pool.is_read_only().expect("ask"));
        fill(&host.path().join("ballast"), GIB);
        assert_eq!(fixture.pool.guard(MIB).expect_err("no room").kind(), Kind::NoSpace);
        Self { fixture, host, synced }
    }

    fn make_room(&self) {
        fs::remove_file(self.host.path().join("ballast")).expect("make room");
    }

    /// All that was synced is there, and there can be more.
    fn has_survived(&self) {
        let Self { fixture, synced, .. } = self;
        assert!(!fixture.pool.is_read_only().expect("ask"));
        assert!(&fs::read(fixture.root().join("synced")).expect("read") == synced);
        fs::write(fixture.root().join("new"), synced).expect("writable again");
        fixture.pool.detach().expect("detach");
        fixture.check();
    }
}

/// Write and sync; whether both succeeded.
fn write_synced(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    File::open(path)?.sync_all()
}

#[test]
fn on_a_full_host_btrfs_turns_read_only_and_survives() {
    let full = FullHost::with(PoolFs::Btrfs);
    let pool = &full.fixture.pool;
    // The writes go into the pool's page cache; that the host refuses them shows later.
    let _ = fs::write(pool.root().join("lost"), random_bytes(40 * MIB));
    let end = Instant::now() + Duration::from_secs(120);
    while !pool.is_read_only().expect("ask") {
        assert!(Instant::now() < end, "the pool never turned read-only");
        let touched = fs::write(pool.root().join(format!("lost-{:?}", Instant::now())), "x");
        let _ = touched.and_then(|()| File::open(pool.root())?.sync_all());
        let _ = Command::new("sync").arg("--file-system").arg(pool.root()).output();
    }
    full.make_room();
    pool.detach().expect("detach a broken pool");
    pool.attach().expect("attach");
    full.has_survived();
}

#[test]
fn on_a_full_host_xfs_goes_on_as_soon_as_there_is_room() {
    let full = FullHost::with(PoolFs::Xfs);
    let root = full.fixture.root();
    let refused = write_synced(&root.join("lost"), &random_bytes(40 * MIB)).expect_err("no room below");
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    fs::create_dir(root.join("kept")).expect("metadata goes into the log, which has its room");
    File::open(root).and_then(|root| root.sync_all()).expect("and is durable there");
    assert!(!full.fixture.pool.is_read_only().expect("ask"));
    full.make_room();
    write_synced(&root.join("lost"), &random_bytes(40 * MIB)).expect("there is room");
    assert!(root.join("kept").is_dir());
    full.has_survived();
}

#[test]
fn an_xfs_detached_on_a_full_host_is_attached_when_there_is_room() {
    const DIRECTORIES: usize = 5000;
    let full = FullHost::with(PoolFs::Xfs);
    let pool = &full.fixture.pool;
    for n in 0..DIRECTORIES {
        fs::create_dir(pool.root().join(n.to_string())).expect("into the log");
    }
    File::open(pool.root()).and_then(|root| root.sync_all()).expect("durable in the log");
    // XFS shuts down rather than wait for room: what is in the log has to wait there.
    pool.detach().expect("detach");
    let refused = pool.attach().expect_err("no room to replay the log");
    assert_eq!(refused.kind(), Kind::NoSpace, "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("make room")), "{refused}");
    full.fixture.wait_for_no_device();
    full.make_room();
    pool.attach().expect("attach");
    // And the file.
    assert_eq!(names(pool.root()).len(), DIRECTORIES + 1);
    full.has_survived();
}

#[test]
fn an_xfs_that_shut_down_is_recognised_and_survives() {
    let fixture = Fixture::attached(PoolFs::Xfs, PoolFs::Xfs.smallest());
    let (pool, root) = (&fixture.pool, fixture.root());
    write_synced(&root.join("synced"), b"kept").expect("write");
    let open = File::open(root.join("synced")).expect("hold a file open");
    run("xfs_io", &["-x", "-c", "shutdown", arg(root)]);
    assert!(pool.is_attached().expect("ask"));
    assert!(pool.is_read_only().expect("ask"));
    for refusal in [pool.attach(), pool.grow(GIB)] {
        let refused = refusal.expect_err("it answers nothing");
        assert!(refused.to_string().contains("has shut down"), "{refused}");
        assert!(refused.hint().is_some_and(|hint| hint.contains(&format!("umount {}", arg(root)))), "{refused}");
    }
    let refused = pool.detach().expect_err("in use");
    assert!(refused.to_string().contains(&format!("process {} (", std::process::id())), "{refused}");
    drop(open);

    // As the hint says.
    unmount(root);
    pool.attach().expect("attach");
    assert_eq!(fs::read(root.join("synced")).expect("read"), b"kept");
    run("xfs_io", &["-x", "-c", "shutdown", arg(root)]);
    pool.destroy().expect("destroy");
    assert!(names(fixture.directory()).is_empty());
}

pub(crate) fn a_host_that_copies_on_write_is_told_not_to(kind: PoolFs) {
    let host = LoopFs::btrfs(2 * GIB, QuotaSetup::None);
    let fixture = Fixture::within(kind, host.path());
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect("create"), Creation::Created);
    let file = File::open(fixture.pool.file()).expect("open");
    let flags = rustix::fs::ioctl_getflags(&file).expect("flags");
    assert!(flags.contains(rustix::fs::IFlags::NOCOW));
    drop(file);
    fixture.pool.attach().expect("attach");
    fs::write(fixture.root().join("data"), random_bytes(20 * MIB)).expect("write");
    fixture.pool.detach().expect("detach");
    fixture.check();
}
