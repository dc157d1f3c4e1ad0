//! What a clone holds: all of it, of one moment, for ever.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use reflinkd::backend::Access;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat};

use crate::fixture::Fixture;
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{GIB, random_bytes, write_random};

/// `VFS_CAP_REVISION_2` with CAP_NET_BIND_SERVICE permitted and effective (linux/capability.h).
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// u::rw-, user 12345: r--, g::r--, mask r--, o::--- (linux/posix_acl_xattr.h).
const ACL: &[u8] = &[
    2, 0, 0, 0, //
    0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
    0x02, 0, 4, 0, 0x39, 0x30, 0, 0, //
    0x04, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    0x10, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
];

/// One entry of every kind, with everything an entry can have.
fn everything(root: &Path) {
    let path = |name: &str| root.join(name);
    let node = |name: &str, kind, mode, device| {
        mknodat(CWD, path(name), kind, Mode::from_raw_mode(mode), device).expect("make a node");
    };
    fs::create_dir_all(path("dir/deep/er")).expect("mkdir");
    fs::create_dir(path("empty")).expect("mkdir");
    fs::write(path("dir/zero"), "").expect("write");
    write_random(&path("dir/file"), 123_457);
    fs::hard_link(path("dir/file"), path("second-name")).expect("link");
    fs::hard_link(path("dir/file"), path("dir/deep/third-name")).expect("link");
    symlink("../nowhere/at/all", path("dir/dangling")).expect("symlink");
    symlink("/etc/passwd", path("absolute")).expect("symlink");
    fs::hard_link(path("absolute"), path("absolute-too")).expect("link a symlink");
    node("fifo", FileType::Fifo, 0o640, 0);
    node("null", FileType::CharacterDevice, 0o666, rustix::fs::makedev(1, 3));
    node("disk", FileType::BlockDevice, 0o660, rustix::fs::makedev(259, 70_000));
    node("socket", FileType::Socket, 0o755, 0);
    // 1 GiB and a bit, with data in the middle and at the end.
    let sparse = File::create(path("sparse")).expect("create");
    sparse.set_len(GIB + 5).expect("truncate");
    sparse.write_all_at(&random_bytes(8192), GIB / 2).expect("write");
    sparse.write_all_at(b"end", GIB + 2).expect("write");

    std::os::unix::fs::lchown(path("absolute"), Some(4_000_000_000), Some(3_999_999_999)).expect("chown");
    std::os::unix::fs::chown(path("dir/zero"), Some(1000), Some(1001)).expect("chown");
    fs::set_permissions(path("dir/zero"), Permissions::from_mode(0o6751)).expect("chmod");
    fs::set_permissions(path("empty"), Permissions::from_mode(0o1777)).expect("chmod");
    fs::set_permissions(path("dir/deep"), Permissions::from_mode(0o2700)).expect("chmod");
    let xattr = |name: &str, key: &str, value: &[u8]| {
        lsetxattr(path(name), key, value, XattrFlags::empty()).unwrap_or_else(|e| panic!("set {key} of {name}: {e}"));
    };
    xattr("dir/file", "security.capability", CAPABILITY);
    xattr("dir/file", "user.empty", b"");
    xattr("dir/file", "user.binary", &[0, 1, 255, 0]);
    xattr("dir/file", "user.long", &vec![b'x'; 3000]);
    xattr("sparse", "system.posix_acl_access", ACL);
    xattr("dir/deep", "system.posix_acl_default", ACL);
    xattr("empty", "trusted.overlay.opaque", b"y");
    xattr("absolute", "trusted.of-a-symlink", b"yes");
    xattr("null", "trusted.of-a-device", b"yes");

    let before_1970 = Timespec { tv_sec: -1, tv_nsec: 999_999_999 };
    let times = Timestamps { last_access: before_1970, last_modification: before_1970 };
    utimensat(CWD, path("absolute"), &times, AtFlags::SYMLINK_NOFOLLOW).expect("set times");
    let exact = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    for name in ["dir/file", "dir/deep", "dir"] {
        let file = File::open(path(name)).expect("open");
        file.set_times(FileTimes::new().set_modified(exact).set_accessed(exact)).expect("set times");
    }
    fs::set_permissions(root, Permissions::from_mode(0o711)).expect("chmod the root");
    lsetxattr(root, "user.root", b"root", XattrFlags::empty()).expect("set an xattr of the root");
    let root = File::open(root).expect("open the root");
    root.set_times(FileTimes::new().set_modified(exact)).expect("set times");
}

pub(crate) fn a_clone_keeps_everything(f: &Fixture) {
    let work = f.created("work");
    everything(&work.root());
    let before = tree_digest(&work.root());
    assert_eq!(before[&b"second-name"[..]].first_name, b"dir/deep/third-name", "the picture sees hard links");
    let (layer, web) = (f.tree("layer"), f.tree("web"));
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("clone");
    f.backend.clone_tree(&layer, &web, Access::Writable, None).expect("clone");
    assert_same("the read-only clone", &before, &tree_digest(&layer.root()));
    assert_same("the clone of the clone", &before, &tree_digest(&web.root()));
    assert_same("the origin", &before, &tree_digest(&work.root()));
    let sparse = fs::metadata(web.root().join("sparse")).expect("stat");
    assert!(sparse.blocks() * 512 <= 64 << 10, "holes stay holes: {} blocks of 512", sparse.blocks());
    let (mine, theirs) = (web.root().join("null"), work.root().join("null"));
    let device = |path| fs::symlink_metadata(path).expect("stat").rdev();
    assert_eq!(device(mine), device(theirs));
}

pub(crate) fn clones_are_independent(f: &Fixture) {
    let work = f.created("work");
    everything(&work.root());
    let before = tree_digest(&work.root());
    let (one, two) = (f.tree("one"), f.tree("two"));
    f.backend.clone_tree(&work, &one, Access::Writable, None).expect("clone");
    f.backend.clone_tree(&work, &two, Access::Writable, None).expect("clone");
    fs::remove_dir_all(one.root().join("dir")).expect("remove");
    fs::write(one.root().join("second-name"), "changed").expect("write");
    fs::write(one.root().join("new"), "new").expect("write");
    assert_same("the origin of a changed clone", &before, &tree_digest(&work.root()));
    assert_same("the sibling of a changed clone", &before, &tree_digest(&two.root()));
    fs::write(work.root().join("second-name"), "changed at the origin").expect("write");
    f.backend.destroy(&work).expect("destroy the origin");
    f.backend.destroy(&one).expect("destroy the sibling");
    assert_same("the clone whose origin is gone", &before, &tree_digest(&two.root()));
}

pub(crate) fn a_clone_has_what_was_not_written_back(f: &Fixture) {
    let work = f.created("work");
    let data = random_bytes(20_000_000);
    let mut file = File::create(work.root().join("file")).expect("create");
    std::io::Write::write_all(&mut file, &data).expect("write");
    let layer = f.tree("layer");
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("clone");
    assert!(fs::read(layer.root().join("file")).expect("read") == data, "the clone has every dirty page");
}

pub(crate) fn an_old_descriptor_never_changes_a_clone(f: &Fixture) {
    let work = f.created("work");
    let path = work.root().join("file");
    write_random(&path, 100_000);
    let before = fs::read(&path).expect("read");
    let old = OpenOptions::new().write(true).open(&path).expect("open");
    let layer = f.tree("layer");
    f.backend.clone_tree(&work, &layer, Access::ReadOnly, None).expect("clone");
    old.write_all_at(b"late", 50_000).expect("write through the old descriptor");
    old.set_len(60_000).expect("truncate through the old descriptor");
    old.sync_all().expect("fsync");
    f.backend.destroy(&work).expect("destroy");
    old.write_all_at(b"later", 10_000).expect("write into a destroyed tree");
    f.backend.sync().expect("sync");
    assert!(fs::read(layer.root().join("file")).expect("read") == before, "the clone is of its moment");
}
