//! From nothing to nothing: made, attached, grown, detached, destroyed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use reflinkd::Kind;
use reflinkd::engine::pool::{Creation, PoolFs};
use reflinkd::sys::loopdev;

use crate::fixture::{Fixture, Promises as _, names};
use crate::support::{GIB, MIB, Process, arg, random_bytes, run, wait_until};

pub(crate) fn data_outlives_detach_and_attach(kind: PoolFs) {
    let fixture = Fixture::attached(kind, GIB);
    let file = fs::metadata(fixture.pool.file()).expect("the pool file");
    assert_eq!(file.len(), GIB);
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    assert!(file.blocks() * 512 < kind.occupied_at_most(), "a new pool occupies {} bytes", file.blocks() * 512);
    assert_eq!(fixture.total_bytes(), GIB, "the filesystem has its whole size from the first mount");
    assert_eq!(fixture.devices().len(), 1);

    let root_mode = || fs::metadata(fixture.root()).expect("stat ROOT").permissions().mode() & 0o7777;
    assert_eq!(root_mode(), 0o700);
    // As pools were that older versions made.
    fs::set_permissions(fixture.root(), PermissionsExt::from_mode(0o755)).expect("chmod");

    let data = random_bytes(20 * MIB);
    fs::write(fixture.root().join("data"), &data).expect("write");
    fixture.pool.detach().expect("detach");
    assert!(!fixture.pool.is_attached().expect("ask"));
    assert_eq!(fs::read_dir(fixture.root()).expect("list").count(), 0, "only the mount point is left");
    fixture.check();
    fixture.pool.detach().expect("detach again: nothing to do");

    fixture.pool.attach().expect("attach again");
    assert_eq!(root_mode(), 0o700);
    assert!(fs::read(fixture.root().join("data")).expect("read") == data);
    assert_eq!(fixture.pool.create(kind, 2 * GIB).expect("create again"), Creation::Unchanged);
    assert_eq!(fs::metadata(fixture.pool.file()).expect("the pool file").len(), GIB);
}

pub(crate) fn a_new_pool_is_clean_at_any_size(kind: PoolFs) {
    for size in [kind.smallest(), 3 * GIB + 12345, 300 * GIB] {
        let fixture = Fixture::new(kind);
        assert_eq!(fixture.pool.create(kind, size).expect("create"), Creation::Created);
        fixture.check();
        fixture.pool.attach().expect("attach");
        assert_eq!(fixture.total_bytes(), size - size % 4096);
        fs::write(fixture.root().join("data"), random_bytes(MIB)).expect("write");
        fixture.pool.detach().expect("detach");
        fixture.check();
    }
}

pub(crate) fn two_pools_are_mounted_at_the_same_time(kind: PoolFs) {
    let one = Fixture::attached(kind, kind.smallest());
    let two = one.another().made(kind.smallest());
    fs::write(one.root().join("name"), "one").expect("write");
    fs::write(two.root().join("name"), "two").expect("write");
    assert_eq!(fs::read(one.root().join("name")).expect("read"), b"one");
    let ids: Vec<String> = [&one, &two]
        .iter()
        .map(|fixture| run("findmnt", &["-n", "-o", "UUID", "--mountpoint", arg(fixture.root())]))
        .collect();
    assert_ne!(ids[0], ids[1]);
}

pub(crate) fn attached_already_takes_no_lock(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    let lock = File::open(fixture.root().with_extension("lock")).expect("the lock");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("flock");
    let (done, attached) = mpsc::channel();
    let pool = fixture.pool.clone();
    let attaching = std::thread::spawn(move || done.send(pool.attach()));
    attached.recv_timeout(Duration::from_secs(60)).expect("attach doesn't wait for the lock").expect("attach");
    drop(lock);
    attaching.join().expect("it ended").expect("it answered");
}

pub(crate) fn a_lost_lock_file_changes_nothing(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    fs::remove_file(fixture.root().with_extension("lock")).expect("remove the lock");
    fixture.pool.attach().expect("attach");
    assert!(fixture.pool.is_attached().expect("ask"));
    assert_eq!(fixture.devices().len(), 1);
    let mounts = run("findmnt", &["-n", "-o", "TARGET", "--mountpoint", arg(fixture.root())]);
    assert_eq!(mounts.lines().count(), 1, "mounted once");
}

pub(crate) fn grows_while_in_use(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    let mut open = File::create(fixture.root().join("open")).expect("create");
    open.write_all(b"before").expect("write");
    fixture.pool.grow(2 * GIB).expect("grow");
    assert_eq!(fixture.total_bytes(), 2 * GIB);
    open.write_all(b" and after").expect("write");
    open.sync_all().expect("fsync");
    // More than the pool could hold before.
    fs::write(fixture.root().join("large"), random_bytes(300 * MIB)).expect("write");
    let refused = fixture.pool.grow(GIB).expect_err("it can't shrink");
    assert_eq!(refused.kind(), Kind::Invalid);
    assert_eq!(fs::metadata(fixture.pool.file()).expect("the pool file").len(), 2 * GIB);

    // What a crash after the first step of growing leaves: a longer file.
    File::options().write(true).open(fixture.pool.file()).expect("open").set_len(3 * GIB).expect("longer");
    fixture.pool.grow(3 * GIB).expect("grow to the length it has");
    assert_eq!(fixture.total_bytes(), 3 * GIB);
    drop(open);
    fixture.pool.detach().expect("detach");
    fixture.check();
}

pub(crate) fn a_half_made_pool_is_made_again(kind: PoolFs) {
    let fixture = Fixture::new(kind);
    let draft = File::create(fixture.draft()).expect("what a crash left");
    draft.set_len(4 * GIB).expect("its length");
    draft.write_all_at(b"half a superblock", 65536).expect("its content");
    assert!(!fixture.pool.exists());
    assert_eq!(fixture.pool.attach().expect_err("no pool yet").kind(), Kind::NotFound);
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect("create"), Creation::Created);
    assert!(!fixture.draft().exists());
    fixture.check();
    fixture.pool.attach().expect("attach");
}

pub(crate) fn what_uses_the_pool_is_named(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
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

pub(crate) fn mounted_elsewhere_is_not_destroyed(kind: PoolFs) {
    let fixture = Fixture::alone(kind).made(kind.smallest());
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

pub(crate) fn destroy_leaves_nothing(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    fs::write(fixture.root().join("data"), random_bytes(MIB)).expect("write");
    fs::write(fixture.draft(), "of a crash").expect("a draft");
    fixture.pool.destroy().expect("destroy");
    assert_eq!(names(fixture.directory()), [""; 0]);
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("the mounts");
    assert!(!mounts.contains(arg(fixture.root())));
    let listed = || run("losetup", &["--list", "--noheadings", "--output", "NAME,BACK-FILE"]);
    wait_until("the pool has no loop device", || !listed().contains(arg(fixture.directory())));
    fixture.pool.destroy().expect("destroy again: nothing to do");
    assert_eq!(names(fixture.directory()), [""; 0]);

    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect("create in the same place"), Creation::Created);
    fixture.pool.attach().expect("attach");
    assert_eq!(fs::read_dir(fixture.root()).expect("list").count(), 0);
}

pub(crate) fn direct_io_is_used_where_the_host_has_it(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    let file = File::open(fixture.pool.file()).expect("open");
    let status = loopdev::of_file(&file).expect("look")[0].status();
    assert!(status.direct_io && status.autoclear && !status.read_only && !status.partial, "{status:?}");
}

pub(crate) fn it_is_the_filesystem_that_was_asked_for(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    assert_eq!(fixture.pool.filesystem().expect("ask"), kind);
    let said = |what: &str| run("findmnt", &["-n", "-o", what, "--mountpoint", arg(fixture.root())]);
    assert_eq!(said("FSTYPE").trim(), kind.name());
    assert!(said("OPTIONS").contains("noatime"), "{}", said("OPTIONS"));
    let noted = fs::read_to_string(fixture.root().with_extension("lock")).expect("the lock's content");
    assert_eq!(noted, said("UUID"));
    let other = if kind == PoolFs::Xfs { PoolFs::Btrfs } else { PoolFs::Xfs };
    assert_eq!(fixture.pool.create(other, GIB).expect("create again"), Creation::Unchanged);
    assert_eq!(fixture.pool.filesystem().expect("ask"), kind);
}
