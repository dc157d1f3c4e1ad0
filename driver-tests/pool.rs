//! The embedded pool on real loop devices: that a pool is one filesystem whoever attaches it, that it outlives
//! what happens to it, and that nothing of it stays. Needs root, loop devices, btrfs-progs and e2fsprogs.

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::btrfs::format;
use reflinkd::engine::pool::{Creation, Pool, SMALLEST};
use reflinkd::sys::loopdev;
use support::{GIB, LoopFs, MIB, Process, QuotaSetup, Scratch, arg, require_root, run, scratch};

/// A private mount namespace has a copy of every mount, and keeps other tests' pools from going away. So a test that
/// makes one runs alone.
static TURN: RwLock<()> = RwLock::new(());

/// Only held.
enum Turn {
    Shared {
        _guard: RwLockReadGuard<'static, ()>,
    },
    Alone {
        _guard: RwLockWriteGuard<'static, ()>,
    },
    /// Another fixture of the same test holds it.
    Another,
}

impl Turn {
    fn shared() -> Self {
        Self::Shared { _guard: TURN.read().unwrap_or_else(PoisonError::into_inner) }
    }

    fn alone() -> Self {
        Self::Alone { _guard: TURN.write().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// A pool of a test's own; unmounted, detached and deleted when dropped.
struct Fixture {
    pool: Pool,
    // Dropped after the mounts, and with it the files.
    scratch: Option<Scratch>,
    _turn: Turn,
}

impl Fixture {
    /// Nothing is made yet.
    fn new() -> Self {
        Self::with(Turn::shared())
    }

    /// In a test that makes a mount namespace.
    fn alone() -> Self {
        Self::with(Turn::alone())
    }

    /// One more in the same test.
    fn another(&self) -> Self {
        Self::with(Turn::Another)
    }

    fn with(turn: Turn) -> Self {
        require_root();
        let scratch = scratch("pool");
        Self { pool: Pool::at(&scratch.path().join("root")), scratch: Some(scratch), _turn: turn }
    }

    /// In a directory that somebody else cleans up.
    fn within(directory: &Path) -> Self {
        require_root();
        Self { pool: Pool::at(&directory.join("root")), scratch: None, _turn: Turn::shared() }
    }

    fn attached(size: u64) -> Self {
        Self::new().made(size)
    }

    /// Created and attached.
    fn made(self, size: u64) -> Self {
        assert_eq!(self.pool.create(size).expect("create"), Creation::Created);
        self.pool.attach().expect("attach");
        self
    }

    fn directory(&self) -> &Path {
        self.scratch.as_ref().expect("a scratch directory of its own").path()
    }

    fn root(&self) -> &Path {
        self.pool.root()
    }

    fn draft(&self) -> PathBuf {
        self.root().with_extension("pool.new")
    }

    /// Loop devices that have the pool file.
    fn devices(&self) -> Vec<String> {
        let file = File::open(self.pool.file()).expect("open the pool file");
        loopdev::of_file(&file)
            .expect("look for loop devices")
            .iter()
            .map(|device| device.path().display().to_string())
            .collect()
    }

    /// `btrfs check` of the detached pool finds nothing.
    fn check(&self) {
        assert_eq!(self.devices(), [""; 0], "detached before it is checked");
        let report = run("btrfs", &["check", "--check-data-csum", arg(self.pool.file())]);
        assert!(report.contains("no error found"), "{report}");
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        while Command::new("umount").arg("--lazy").arg(self.root()).output().is_ok_and(|o| o.status.success()) {}
        let mut list = Command::new("losetup");
        list.args(["--noheadings", "--output", "NAME", "--associated"]).arg(self.pool.file());
        if let Ok(output) = list.output() {
            for device in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                let _ = Command::new("losetup").args(["--detach", device]).status();
            }
        }
    }
}

fn total_bytes(directory: &Path) -> u64 {
    let space = rustix::fs::statvfs(directory).expect("statvfs");
    space.f_blocks * space.f_frsize
}

#[test]
fn data_outlives_detach_and_attach() {
    let fixture = Fixture::attached(GIB);
    let file = fs::metadata(fixture.pool.file()).expect("the pool file");
    assert_eq!(file.len(), GIB);
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    assert!(file.blocks() * 512 < 2 * MIB, "a new pool occupies {} bytes", file.blocks() * 512);
    assert_eq!(total_bytes(fixture.root()), GIB, "the filesystem has its whole size from the first mount");
    assert_eq!(fixture.devices().len(), 1);

    let data = support::random_bytes(20 * MIB);
    fs::write(fixture.root().join("data"), &data).expect("write");
    fixture.pool.detach().expect("detach");
    assert!(!fixture.pool.is_attached().expect("ask"));
    assert_eq!(fs::read_dir(fixture.root()).expect("list").count(), 0, "only the mount point is left");
    fixture.check();
    fixture.pool.detach().expect("detach again: nothing to do");

    fixture.pool.attach().expect("attach again");
    assert!(fs::read(fixture.root().join("data")).expect("read") == data);
    assert_eq!(fixture.pool.create(2 * GIB).expect("create again"), Creation::Unchanged);
    assert_eq!(fs::metadata(fixture.pool.file()).expect("the pool file").len(), GIB);
}

#[test]
fn a_new_pool_is_a_clean_btrfs_of_any_size() {
    for size in [SMALLEST, 3 * GIB + 12345, 300 * GIB] {
        let fixture = Fixture::new();
        assert_eq!(fixture.pool.create(size).expect("create"), Creation::Created);
        fixture.check();
        fixture.pool.attach().expect("attach");
        assert_eq!(total_bytes(fixture.root()), size - size % 4096);
        fs::write(fixture.root().join("data"), support::random_bytes(MIB)).expect("write");
        fixture.pool.detach().expect("detach");
        fixture.check();
    }
}

#[test]
fn two_pools_are_mounted_at_the_same_time() {
    let one = Fixture::attached(SMALLEST);
    let two = one.another().made(SMALLEST);
    fs::write(one.root().join("name"), "one").expect("write");
    fs::write(two.root().join("name"), "two").expect("write");
    assert_eq!(fs::read(one.root().join("name")).expect("read"), b"one");
    let ids: Vec<String> = [&one, &two]
        .iter()
        .map(|fixture| run("findmnt", &["-n", "-o", "UUID", "--mountpoint", arg(fixture.root())]))
        .collect();
    assert_ne!(ids[0], ids[1]);
}

/// Where the race's children find the pool.
const RACE_ROOT: &str = "REFLINKD_TEST_RACE_ROOT";
const RACE_ROUND: &str = "REFLINKD_TEST_RACE_ROUND";
const RACERS: usize = 8;

/// One of eight processes, which the test below starts by itself. It attaches when `go` is there, leaves its mark in ROOT, and
/// succeeds when it sees there the marks of all: they could be on different filesystems only if the file had
/// several loop devices.
fn race(root: &Path) {
    let round = std::env::var(RACE_ROUND).expect("started by the race");
    let end = Instant::now() + Duration::from_secs(60);
    fs::write(root.with_extension(format!("ready-{}", std::process::id())), "").expect("say that it is ready");
    while !root.with_extension("go").exists() {
        assert!(Instant::now() < end, "nobody said go");
        std::hint::spin_loop();
    }
    Pool::at(root).attach().expect("attach");
    let marks = root.join(round);
    fs::create_dir_all(&marks).expect("the directory of marks");
    fs::write(marks.join(std::process::id().to_string()), "").expect("leave a mark");
    while fs::read_dir(&marks).expect("list the marks").count() < RACERS {
        assert!(Instant::now() < end, "the others are on another filesystem");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn eight_processes_get_one_loop_device() {
    if let Some(root) = std::env::var_os(RACE_ROOT) {
        return race(Path::new(&root));
    }
    let fixture = Fixture::alone();
    assert_eq!(fixture.pool.create(GIB).expect("create"), Creation::Created);
    let me = std::env::current_exe().expect("this program");
    for round in 0..5 {
        let mut racers: Vec<Process> = (0..RACERS)
            .map(|racer| {
                // The first one mounts where nobody else sees it.
                let mut command = if racer == 0 {
                    let mut unshare = Command::new("unshare");
                    unshare.args(["--mount", "--propagation", "private"]).arg(&me);
                    unshare
                } else {
                    Command::new(&me)
                };
                command.args(["--exact", "eight_processes_get_one_loop_device", "--quiet"]);
                command.env(RACE_ROOT, fixture.root()).env(RACE_ROUND, format!("round-{round}"));
                command.stdout(std::process::Stdio::null());
                Process::spawn(&mut command)
            })
            .collect();
        wait_until("all racers are ready", || {
            let ready = |name: &str| name.starts_with("root.ready-");
            names(fixture.directory()).iter().filter(|name| ready(name)).count() == RACERS
        });
        fs::write(fixture.root().with_extension("go"), "").expect("go");
        for racer in &mut racers {
            assert!(racer.child().wait().expect("wait").success(), "a racer failed in round {round}");
        }
        assert_eq!(fixture.devices().len(), 1);
        assert_eq!(names(&fixture.root().join(format!("round-{round}"))).len(), RACERS);
        fixture.pool.detach().expect("detach");
        fixture.check();
        for name in names(fixture.directory()) {
            if name.starts_with("root.ready-") || name == "root.go" {
                fs::remove_file(fixture.directory().join(name)).expect("tidy");
            }
        }
    }
}

#[test]
fn attached_already_takes_no_lock() {
    let fixture = Fixture::attached(SMALLEST);
    let lock = File::open(fixture.root().with_extension("lock")).expect("the lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    let (done, attached) = mpsc::channel();
    let pool = fixture.pool.clone();
    let attaching = std::thread::spawn(move || done.send(pool.attach()));
    attached.recv_timeout(Duration::from_secs(20)).expect("attach doesn't wait for the lock").expect("attach");
    drop(lock);
    attaching.join().expect("it ended").expect("it answered");
}

#[test]
fn a_lost_lock_file_changes_nothing() {
    let fixture = Fixture::attached(SMALLEST);
    fs::remove_file(fixture.root().with_extension("lock")).expect("remove the lock");
    fixture.pool.attach().expect("attach");
    assert!(fixture.pool.is_attached().expect("ask"));
    assert_eq!(fixture.devices().len(), 1);
    let mounts = run("findmnt", &["-n", "-o", "TARGET", "--mountpoint", arg(fixture.root())]);
    assert_eq!(mounts.lines().count(), 1, "mounted once");
}

#[test]
fn grows_while_in_use() {
    let fixture = Fixture::attached(SMALLEST);
    let mut open = File::create(fixture.root().join("open")).expect("create");
    open.write_all(b"before").expect("write");
    fixture.pool.grow(2 * GIB).expect("grow");
    assert_eq!(total_bytes(fixture.root()), 2 * GIB);
    open.write_all(b" and after").expect("write");
    open.sync_all().expect("fsync");
    // More than the pool could hold before.
    fs::write(fixture.root().join("large"), support::random_bytes(300 * MIB)).expect("write");
    let refused = fixture.pool.grow(GIB).expect_err("it can't shrink");
    assert_eq!(refused.kind(), Kind::Invalid);
    assert_eq!(fs::metadata(fixture.pool.file()).expect("the pool file").len(), 2 * GIB);

    // What a crash after the first step of growing leaves: a longer file.
    File::options().write(true).open(fixture.pool.file()).expect("open").set_len(3 * GIB).expect("longer");
    fixture.pool.grow(3 * GIB).expect("grow to the length it has");
    assert_eq!(total_bytes(fixture.root()), 3 * GIB);
    drop(open);
    fixture.pool.detach().expect("detach");
    fixture.check();
}

#[test]
fn a_half_made_pool_is_made_again() {
    let fixture = Fixture::new();
    let draft = File::create(fixture.draft()).expect("what a crash left");
    draft.set_len(4 * GIB).expect("its length");
    draft.write_all_at(b"half a superblock", 65536).expect("its content");
    assert!(!fixture.pool.exists());
    assert_eq!(fixture.pool.attach().expect_err("no pool yet").kind(), Kind::NotFound);
    assert_eq!(fixture.pool.create(SMALLEST).expect("create"), Creation::Created);
    assert!(!fixture.draft().exists());
    fixture.check();
    fixture.pool.attach().expect("attach");
}

#[test]
fn unrelated_files_are_refused_and_left_alone() {
    let fixture = Fixture::new();
    let content = b"somebody's only copy";
    fs::write(fixture.pool.file(), content).expect("an unrelated file");
    let refusals = [
        fixture.pool.create(SMALLEST).map(drop),
        fixture.pool.attach(),
        fixture.pool.grow(GIB),
        fixture.pool.destroy(),
    ];
    for refusal in refusals {
        let error = refusal.expect_err("it is no pool");
        assert_eq!(error.kind(), Kind::Exists, "{error}");
        assert!(error.to_string().contains(arg(fixture.pool.file())), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
    fixture.pool.detach().expect("nothing is attached");
    assert_eq!(fs::read(fixture.pool.file()).expect("still there"), content);

    fs::remove_file(fixture.pool.file()).expect("tidy");
    fs::create_dir(fixture.pool.file()).expect("a directory in its place");
    assert_eq!(fixture.pool.create(SMALLEST).expect_err("a directory").kind(), Kind::Exists);
    fs::remove_dir(fixture.pool.file()).expect("still an empty directory");
}

#[test]
fn a_root_with_something_in_it_is_refused() {
    let fixture = Fixture::new();
    fs::create_dir(fixture.root()).expect("ROOT");
    fs::write(fixture.root().join("precious"), "").expect("something in it");
    assert_eq!(fixture.pool.create(SMALLEST).expect_err("not empty").kind(), Kind::Exists);
    assert!(!fixture.pool.exists());

    fs::remove_file(fixture.root().join("precious")).expect("empty it");
    assert_eq!(fixture.pool.create(SMALLEST).expect("create"), Creation::Created);
    run("mount", &["-t", "tmpfs", "none", arg(fixture.root())]);
    let error = fixture.pool.attach().expect_err("something else is mounted there");
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.to_string().contains("another filesystem mounted"), "{error}");
    assert_eq!(fixture.devices(), [""; 0]);
    fixture.pool.detach().expect("not ours: left alone");
    run("umount", &[arg(fixture.root())]);
}

#[test]
fn sizes_below_the_smallest_are_refused() {
    let fixture = Fixture::new();
    let error = fixture.pool.create(SMALLEST - 1).expect_err("too small");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("268.4 MB"), "{error}");
    assert!(!fixture.pool.exists());
}

#[test]
fn several_or_partial_loop_devices_are_refused() {
    let fixture = Fixture::new();
    assert_eq!(fixture.pool.create(SMALLEST).expect("create"), Creation::Created);
    let by_hand = |options: &[&str]| {
        let args = [&["--find", "--show"], options, &[arg(fixture.pool.file())]].concat();
        run("losetup", &args).trim().to_owned()
    };
    let part = by_hand(&["--offset", "1048576"]);
    assert_eq!(fixture.pool.attach().expect_err("only a part").kind(), Kind::InUse);
    run("losetup", &["--detach", &part]);
    let read_only = by_hand(&["--read-only"]);
    assert_eq!(fixture.pool.attach().expect_err("read-only").kind(), Kind::InUse);
    run("losetup", &["--detach", &read_only]);

    // One whole device that somebody set up by hand is used, and cleared with the pool.
    let one = by_hand(&[]);
    fixture.pool.attach().expect("attach");
    assert_eq!(fixture.devices(), [one.as_str()]);
    fixture.pool.detach().expect("detach");
    assert_eq!(fixture.devices(), [""; 0]);

    let (one, two) = (by_hand(&[]), by_hand(&[]));
    let error = fixture.pool.attach().expect_err("two of them");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&one) && error.to_string().contains(&two), "{error}");
    assert!(!fixture.pool.is_attached().expect("ask"));
}

#[test]
fn a_copy_of_a_mounted_pool_is_refused() {
    let fixture = Fixture::attached(SMALLEST);
    let copy = fixture.another();
    run("cp", &["--sparse=always", arg(fixture.pool.file()), arg(copy.pool.file())]);
    let error = copy.pool.attach().expect_err("its filesystem is mounted");
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("copy")), "{error}");
    assert_eq!(copy.devices(), [""; 0], "its loop device is gone again");
}

#[test]
fn what_uses_the_pool_is_named() {
    let fixture = Fixture::attached(SMALLEST);
    let file = File::create(fixture.root().join("open")).expect("hold a file open");
    let error = fixture.pool.detach().expect_err("in use");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&format!("process {} (", std::process::id())), "{error}");
    drop(file);

    let over = fixture.root().join("mnt point");
    fs::create_dir(&over).expect("a directory");
    run("mount", &["-t", "tmpfs", "none", arg(&over)]);
    let error = fixture.pool.detach().expect_err("in use");
    run("umount", &[arg(&over)]);
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&format!("the mount at {}", over.display())), "{error}");
    assert!(fixture.pool.is_attached().expect("ask"), "nothing was done by halves");

    fixture.pool.detach().expect("nothing uses it any more");
    fixture.check();
}

#[test]
fn mounted_elsewhere_is_not_destroyed() {
    let fixture = Fixture::alone().made(SMALLEST);
    fs::write(fixture.root().join("data"), "kept").expect("write");
    let ready = fixture.directory().join("ready");
    let script = format!("touch {} && exec sleep 600", ready.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let mut other = Process::spawn(&mut command);
    wait_until("the namespace is there", || ready.exists());

    let error = fixture.pool.destroy().expect_err("mounted elsewhere");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&format!("process {} (sleep)", other.id())), "{error}");
    assert!(fixture.pool.exists());
    fixture.pool.attach().expect("the same device once more");
    assert_eq!(fixture.devices().len(), 1);
    assert_eq!(fs::read(fixture.root().join("data")).expect("read"), b"kept");

    other.child().kill().expect("end it");
    other.child().wait().expect("reap it");
    fixture.pool.destroy().expect("destroy");
    assert!(!fixture.pool.exists());
}

#[test]
fn destroy_leaves_nothing() {
    let fixture = Fixture::attached(SMALLEST);
    fs::write(fixture.root().join("data"), support::random_bytes(MIB)).expect("write");
    let devices = fixture.devices();
    fs::write(fixture.draft(), "of a crash").expect("a draft");
    fixture.pool.destroy().expect("destroy");
    assert_eq!(names(fixture.directory()), [""; 0]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    assert!(!mounts.contains(arg(fixture.root())));
    let listed = run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
    assert!(!listed.contains(arg(fixture.directory())), "{devices:?} of {listed}");
    fixture.pool.destroy().expect("destroy again: nothing to do");
    assert_eq!(names(fixture.directory()), [""; 0]);

    assert_eq!(fixture.pool.create(SMALLEST).expect("create in the same place"), Creation::Created);
    fixture.pool.attach().expect("attach");
    assert_eq!(fs::read_dir(fixture.root()).expect("list").count(), 0);
}

#[test]
fn the_guard_counts_the_hosts_room() {
    let host = LoopFs::ext4(512 * MIB);
    let fixture = Fixture::within(host.path());
    fixture.pool.guard(100 * MIB).expect("there is room");
    assert_eq!(fixture.pool.create(4 * GIB).expect("a sparse file"), Creation::Created);
    fixture.pool.attach().expect("attach");
    let before = fixture.pool.host_space().expect("its account");
    assert_eq!(before.length, 4 * GIB);
    assert!(before.total <= 512 * MIB && before.free < before.total);
    assert!(before.occupied < 8 * MIB, "{before:?}");

    fs::write(fixture.root().join("data"), support::random_bytes(100 * MIB)).expect("write");
    run("sync", &["--file-system", arg(fixture.root())]);
    let after = fixture.pool.host_space().expect("its account");
    assert!((100 * MIB..120 * MIB).contains(&(after.occupied - before.occupied)), "{before:?} {after:?}");
    assert!((100 * MIB..120 * MIB).contains(&(before.free - after.free)), "{before:?} {after:?}");

    fixture.pool.guard(after.free).expect("exactly enough");
    let refused = fixture.pool.guard(after.free + 1).expect_err("one byte less");
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert!(refused.hint().is_some());
    assert!(refused.to_string().contains(arg(fixture.pool.file())), "{refused}");
}

#[test]
fn a_full_host_is_recognised_and_survived() {
    let host = LoopFs::ext4(512 * MIB);
    let fixture = Fixture::within(host.path());
    assert_eq!(fixture.pool.create(2 * GIB).expect("create"), Creation::Created);
    fixture.pool.attach().expect("attach");
    let synced = support::random_bytes(10 * MIB);
    fs::write(fixture.root().join("synced"), &synced).expect("write");
    run("sync", &["--file-system", arg(fixture.root())]);
    assert!(!fixture.pool.is_read_only().expect("ask"));

    let ballast = host.path().join("ballast");
    support::fill(&ballast, GIB);
    // The writes go into the pool's page cache; that the host refuses them shows later.
    let _ = fs::write(fixture.root().join("lost"), support::random_bytes(40 * MIB));
    let end = Instant::now() + Duration::from_secs(120);
    while !fixture.pool.is_read_only().expect("ask") {
        assert!(Instant::now() < end, "the pool never turned read-only");
        let touched = fs::write(fixture.root().join(format!("lost-{:?}", Instant::now())), "x");
        let _ = touched.and_then(|()| File::open(fixture.root())?.sync_all());
        let _ = Command::new("sync").arg("--file-system").arg(fixture.root()).output();
    }
    assert_eq!(fixture.pool.guard(MIB).expect_err("no room").kind(), Kind::NoSpace);

    fs::remove_file(&ballast).expect("make room");
    fixture.pool.detach().expect("detach a broken pool");
    fixture.pool.attach().expect("attach");
    assert!(!fixture.pool.is_read_only().expect("ask"));
    assert!(fs::read(fixture.root().join("synced")).expect("read") == synced);
    fs::write(fixture.root().join("new"), &synced).expect("writable again");
    fixture.pool.detach().expect("detach");
    fixture.check();
}

#[test]
fn no_room_for_a_pool_is_said() {
    let host = LoopFs::tmpfs(MIB);
    fs::write(host.path().join("ballast"), vec![1; 1024 * 900]).expect("nearly full");
    let fixture = Fixture::within(host.path());
    let error = fixture.pool.create(SMALLEST).expect_err("no room");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert_eq!(names(host.path()), ["ballast", "root.lock"]);
}

#[test]
fn a_host_that_copies_on_write_is_told_not_to() {
    let host = LoopFs::btrfs(2 * GIB, QuotaSetup::None);
    let fixture = Fixture::within(host.path());
    assert_eq!(fixture.pool.create(SMALLEST).expect("create"), Creation::Created);
    let file = File::open(fixture.pool.file()).expect("open");
    let flags = rustix::fs::ioctl_getflags(&file).expect("flags");
    assert!(flags.contains(rustix::fs::IFlags::NOCOW));
    drop(file);
    fixture.pool.attach().expect("attach");
    fs::write(fixture.root().join("data"), support::random_bytes(20 * MIB)).expect("write");
    fixture.pool.detach().expect("detach");
    fixture.check();
}

#[test]
fn direct_io_is_used_where_the_host_has_it() {
    let fixture = Fixture::attached(SMALLEST);
    let file = File::open(fixture.pool.file()).expect("open");
    let status = loopdev::of_file(&file).expect("look")[0].status();
    assert!(status.direct_io && status.autoclear && !status.read_only && !status.partial, "{status:?}");
    assert_eq!(format::identify(&file).expect("read").map(|fsid| fsid.to_string()), {
        let uuid = run("findmnt", &["-n", "-o", "UUID", "--mountpoint", arg(fixture.root())]);
        Some(uuid.trim().to_owned())
    });
}

/// The names in a directory, sorted.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("list")
        .map(|entry| entry.expect("list").file_name().into_string().expect("names of tests are UTF-8"))
        .collect();
    names.sort();
    names
}

fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
