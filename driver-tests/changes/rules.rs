//! One case for each rule, on a filesystem that names changes and on one that is walked.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use reflinkd::backend::Access;
use reflinkd::backend::changes::EntryKind::{self, CharacterDevice, Directory, Fifo, Symlink};
use reflinkd::backend::changes::What::{self, Added, Deleted, Linked, Modified, Replaced, Touched};
use reflinkd::backend::changes::{EntryKind as Kind, FeedMethod};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, Mode, RenameFlags, Timespec, Timestamps, XattrFlags, fallocate,
    lsetxattr, mknodat, renameat_with, utimensat,
};

use crate::fixture::Fixture;
use crate::model::{Line, assert_same_lines};
use crate::support::{GIB, MIB, QuotaSetup};

const FILE: EntryKind = Kind::File;

/// A name, what is done to a clone of [`base`], and what that changes.
struct Case(&'static str, fn(&Path), &'static [(&'static str, What, EntryKind)]);

/// What every case begins with; all times are one.
fn base(root: &Path) {
    let path = |name: &str| root.join(name);
    for directory in ["a/b/c", "d/sub", "e", "empty"] {
        fs::create_dir_all(path(directory)).expect("mkdir");
    }
    for file in ["a/f", "a/g", "a/b/c/deep", "d/x", "d/y", "d/sub/z", "e/x", "e/w", "h1", "twin", "twin2"] {
        fs::write(path(file), format!("content of {}", file.trim_end_matches('2'))).expect("write");
    }
    fs::hard_link(path("h1"), path("d/h2")).expect("link");
    fs::hard_link(path("h1"), path("h3")).expect("link");
    let sparse = File::create(path("sparse")).expect("create");
    sparse.set_len(8 * MIB).expect("lengthen");
    sparse.write_all_at(&[7; 100], 4 * MIB).expect("write");
    symlink("a/f", path("l")).expect("symlink");
    symlink("a", path("to-a")).expect("symlink");
    mknodat(CWD, path("dev"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 3)).expect("mknod");
    mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
    set_times(root);
}

/// Set the times of a whole tree to one.
fn set_times(path: &Path) {
    if path.symlink_metadata().expect("stat").is_dir() {
        for entry in fs::read_dir(path).expect("read") {
            set_times(&entry.expect("read").path());
        }
    }
    set_time(path, 1_000_000_000);
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
}

/// Do something to a file that ends with its time being what it was.
fn timeless(path: &Path, edit: impl FnOnce(&File)) {
    edit(&OpenOptions::new().read(true).write(true).open(path).expect("open"));
    set_time(path, 1_000_000_000);
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("chmod");
}

fn exchange(root: &Path, one: &str, two: &str) {
    renameat_with(CWD, root.join(one), CWD, root.join(two), RenameFlags::EXCHANGE).expect("exchange");
}

/// Give all of a tree a label.
fn relabel(root: &Path, label: &str) {
    let labelled = reflinkd::layer::relabel(root, label, &|| false).expect("relabel");
    assert!(labelled > 20, "{labelled}");
}

const CASES: &[Case] = &[
    Case("a label on everything", |root| relabel(root, "system_u:object_r:container_file_t:s0:c1,c2"), &[]),
    Case(
        "a label on everything, and more",
        |root| {
            relabel(root, "system_u:object_r:container_file_t:s0:c1,c2");
            mode(&root.join("h1"), 0o600);
            fs::write(root.join("d/new"), "").expect("write");
            set_time(&root.join("l"), 5);
            relabel(root, "system_u:object_r:container_file_t:s0:c3,c4");
        },
        &[
            ("d", Touched, Directory),
            ("d/h2", Modified, FILE),
            ("d/new", Added, FILE),
            ("h1", Modified, FILE),
            ("h3", Modified, FILE),
            ("l", Modified, Symlink),
        ],
    ),
    Case(
        "append",
        |root| timeless(&root.join("a/f"), |f| f.write_all_at(b"!", 100).expect("write")),
        &[("a/f", Modified, FILE)],
    ),
    Case(
        "the same size, and the time put back",
        |root| timeless(&root.join("a/f"), |f| f.write_all_at(b"C", 0).expect("write")),
        &[("a/f", Modified, FILE)],
    ),
    Case(
        "the same bytes, and the time put back",
        |root| timeless(&root.join("a/f"), |f| f.write_all_at(b"c", 0).expect("write")),
        &[],
    ),
    Case("the time alone", |root| set_time(&root.join("a/f"), 5), &[("a/f", Modified, FILE)]),
    Case("the time of a directory alone", |root| set_time(&root.join("a"), 5), &[("a", Touched, Directory)]),
    Case(
        "truncate",
        |root| timeless(&root.join("a/f"), |f| f.set_len(3).expect("truncate")),
        &[("a/f", Modified, FILE)],
    ),
    Case("chmod", |root| mode(&root.join("a/f"), 0o4711), &[("a/f", Modified, FILE)]),
    Case("chmod of a directory", |root| mode(&root.join("a/b"), 0o700), &[("a/b", Modified, Directory)]),
    Case("chmod of the root", |root| mode(root, 0o700), &[("", Modified, Directory)]),
    Case(
        "chmod and back",
        |root| {
            let was = fs::metadata(root.join("a/f")).expect("stat").mode();
            mode(&root.join("a/f"), 0o600);
            mode(&root.join("a/f"), was);
        },
        &[],
    ),
    Case("chown", |root| chown(root.join("a/f"), Some(7), None).expect("chown"), &[("a/f", Modified, FILE)]),
    Case(
        "chown of a symlink",
        |root| lchown(root.join("l"), None, Some(7)).expect("chown"),
        &[("l", Modified, Symlink)],
    ),
    Case(
        "an xattr alone",
        |root| {
            lsetxattr(root.join("a/f"), "trusted.x", b"1", XattrFlags::CREATE).expect("setxattr");
        },
        &[("a/f", Modified, FILE)],
    ),
    Case(
        "an xattr of a directory",
        |root| {
            lsetxattr(root.join("a"), "user.x", b"", XattrFlags::CREATE).expect("setxattr");
        },
        &[("a", Modified, Directory)],
    ),
    Case(
        "an xattr of a symlink",
        |root| {
            lsetxattr(root.join("l"), "trusted.x", &[0; 2000], XattrFlags::CREATE).expect("setxattr");
        },
        &[("l", Modified, Symlink)],
    ),
    Case(
        "reading",
        |root| {
            for file in ["a/f", "h1", "sparse"] {
                fs::read(root.join(file)).expect("read");
            }
            fs::read_dir(root.join("a/b")).expect("read").for_each(drop);
            fs::read_link(root.join("l")).expect("read");
        },
        &[],
    ),
    Case(
        "a new file",
        |root| fs::write(root.join("a/new"), "x").expect("write"),
        &[("a", Touched, Directory), ("a/new", Added, FILE)],
    ),
    Case(
        "a new tree",
        |root| {
            fs::create_dir_all(root.join("n/e/w")).expect("mkdir");
            fs::write(root.join("n/e/w/file"), "").expect("write");
        },
        &[
            ("", Touched, Directory),
            ("n", Added, Directory),
            ("n/e", Added, Directory),
            ("n/e/w", Added, Directory),
            ("n/e/w/file", Added, FILE),
        ],
    ),
    Case(
        "unlink",
        |root| fs::remove_file(root.join("a/f")).expect("unlink"),
        &[("a", Touched, Directory), ("a/f", Deleted, FILE)],
    ),
    Case(
        "a file that came and went",
        |root| {
            fs::write(root.join("a/new"), "x").expect("write");
            fs::remove_file(root.join("a/new")).expect("unlink");
            set_time(&root.join("a"), 1_000_000_000);
        },
        &[],
    ),
    Case(
        "remove a tree",
        |root| fs::remove_dir_all(root.join("a")).expect("rm"),
        &[("", Touched, Directory), ("a", Deleted, Directory)],
    ),
    Case(
        "rename a file",
        |root| fs::rename(root.join("a/f"), root.join("d/f")).expect("rename"),
        &[("a", Touched, Directory), ("a/f", Deleted, FILE), ("d", Touched, Directory), ("d/f", Added, FILE)],
    ),
    Case(
        "rename a file over another",
        |root| fs::rename(root.join("twin2"), root.join("a/f")).expect("rename"),
        &[("", Touched, Directory), ("a", Touched, Directory), ("a/f", Modified, FILE), ("twin2", Deleted, FILE)],
    ),
    Case(
        "rename a file over one that is the same",
        |root| fs::rename(root.join("twin2"), root.join("twin")).expect("rename"),
        &[("", Touched, Directory), ("twin2", Deleted, FILE)],
    ),
    Case(
        "rename a directory",
        |root| {
            fs::rename(root.join("a"), root.join("d/moved")).expect("rename");
            fs::write(root.join("d/moved/f"), "new").expect("write");
            fs::remove_file(root.join("d/moved/b/c/deep")).expect("unlink");
        },
        &[
            ("", Touched, Directory),
            ("a", Deleted, Directory),
            ("d", Touched, Directory),
            ("d/moved", Added, Directory),
            ("d/moved/b", Added, Directory),
            ("d/moved/b/c", Added, Directory),
            ("d/moved/f", Added, FILE),
            ("d/moved/g", Added, FILE),
        ],
    ),
    Case(
        "rename a directory over an empty one",
        |root| fs::rename(root.join("d"), root.join("empty")).expect("rename"),
        &[
            ("", Touched, Directory),
            ("d", Deleted, Directory),
            ("empty/h2", Added, FILE),
            ("empty/sub", Added, Directory),
            ("empty/sub/z", Added, FILE),
            ("empty/x", Added, FILE),
            ("empty/y", Added, FILE),
            ("h1", Linked, FILE),
            ("h3", Linked, FILE),
        ],
    ),
    Case(
        "exchange two directories",
        |root| exchange(root, "d", "e"),
        &[
            ("", Touched, Directory),
            ("d/h2", Deleted, FILE),
            ("d/sub", Deleted, Directory),
            ("d/w", Added, FILE),
            ("d/x", Modified, FILE),
            ("d/y", Deleted, FILE),
            ("e/h2", Added, FILE),
            ("e/sub", Added, Directory),
            ("e/sub/z", Added, FILE),
            ("e/w", Deleted, FILE),
            ("e/x", Modified, FILE),
            ("e/y", Added, FILE),
            ("h1", Linked, FILE),
            ("h3", Linked, FILE),
        ],
    ),
    Case(
        "exchange a directory with what is in it",
        |root| {
            fs::rename(root.join("a/b"), root.join("aside")).expect("rename");
            fs::rename(root.join("a"), root.join("aside/a")).expect("rename");
            fs::rename(root.join("aside"), root.join("a")).expect("rename");
        },
        &[
            ("", Touched, Directory),
            ("a", Touched, Directory),
            ("a/a", Added, Directory),
            ("a/a/f", Added, FILE),
            ("a/a/g", Added, FILE),
            ("a/b", Deleted, Directory),
            ("a/c", Added, Directory),
            ("a/c/deep", Added, FILE),
            ("a/f", Deleted, FILE),
            ("a/g", Deleted, FILE),
        ],
    ),
    Case(
        "there and back",
        |root| {
            fs::rename(root.join("a"), root.join("aside")).expect("rename");
            fs::rename(root.join("aside"), root.join("a")).expect("rename");
            set_time(root, 1_000_000_000);
        },
        &[],
    ),
    Case(
        "a file in a directory's place",
        |root| {
            fs::remove_dir_all(root.join("a")).expect("rm");
            fs::write(root.join("a"), "now a file").expect("write");
        },
        &[("", Touched, Directory), ("a", Replaced { was: Directory }, FILE)],
    ),
    Case(
        "a directory in a file's place",
        |root| {
            fs::remove_file(root.join("twin")).expect("rm");
            fs::create_dir_all(root.join("twin/in")).expect("mkdir");
        },
        &[("", Touched, Directory), ("twin", Replaced { was: FILE }, Directory), ("twin/in", Added, Directory)],
    ),
    Case(
        "a directory in a symlink's place",
        |root| {
            fs::remove_file(root.join("to-a")).expect("rm");
            fs::create_dir(root.join("to-a")).expect("mkdir");
            fs::write(root.join("to-a/f"), "not the other").expect("write");
        },
        &[("", Touched, Directory), ("to-a", Replaced { was: Symlink }, Directory), ("to-a/f", Added, FILE)],
    ),
    Case(
        "a symlink in a directory's place",
        |root| {
            fs::rename(root.join("d"), root.join("d2")).expect("rename");
            symlink("d2", root.join("d")).expect("symlink");
        },
        &[
            ("", Touched, Directory),
            ("d", Replaced { was: Directory }, Symlink),
            ("d2", Added, Directory),
            ("d2/h2", Added, FILE),
            ("d2/sub", Added, Directory),
            ("d2/sub/z", Added, FILE),
            ("d2/x", Added, FILE),
            ("d2/y", Added, FILE),
            ("h1", Linked, FILE),
            ("h3", Linked, FILE),
        ],
    ),
    Case(
        "one node for another",
        |root| {
            fs::remove_file(root.join("fifo")).expect("rm");
            mknodat(CWD, root.join("fifo"), FileType::CharacterDevice, Mode::RUSR, 0).expect("mknod");
            set_time(root, 1_000_000_000);
        },
        &[("fifo", Replaced { was: Fifo }, CharacterDevice)],
    ),
    Case(
        "another device number",
        |root| {
            fs::remove_file(root.join("dev")).expect("rm");
            mknodat(CWD, root.join("dev"), FileType::CharacterDevice, Mode::RUSR, rustix::fs::makedev(1, 5))
                .expect("mknod");
            set_time(&root.join("dev"), 1_000_000_000);
            set_time(root, 1_000_000_000);
        },
        &[("dev", Modified, CharacterDevice)],
    ),
    Case(
        "made anew as it was",
        |root| {
            let content = fs::read(root.join("a/f")).expect("read");
            fs::remove_file(root.join("a/f")).expect("rm");
            fs::write(root.join("a/f"), content).expect("write");
            set_time(&root.join("a/f"), 1_000_000_000);
            set_time(&root.join("a"), 1_000_000_000);
        },
        &[],
    ),
    Case(
        "made anew with other bytes",
        |root| {
            fs::remove_file(root.join("a/f")).expect("rm");
            fs::write(root.join("a/f"), "Content of a/f").expect("write");
            set_time(&root.join("a/f"), 1_000_000_000);
            set_time(&root.join("a"), 1_000_000_000);
        },
        &[("a/f", Modified, FILE)],
    ),
    Case(
        "a directory made anew",
        |root| {
            fs::remove_dir_all(root.join("d")).expect("rm");
            fs::create_dir(root.join("d")).expect("mkdir");
            fs::write(root.join("d/x"), "content of d/x").expect("write");
            fs::write(root.join("d/new"), "").expect("write");
            set_time(&root.join("d/x"), 1_000_000_000);
        },
        &[
            ("", Touched, Directory),
            ("d", Touched, Directory),
            ("d/h2", Deleted, FILE),
            ("d/new", Added, FILE),
            ("d/sub", Deleted, Directory),
            ("d/y", Deleted, FILE),
        ],
    ),
    Case(
        "retarget a symlink",
        |root| {
            fs::remove_file(root.join("l")).expect("rm");
            symlink("a/g", root.join("l")).expect("symlink");
            set_time(&root.join("l"), 1_000_000_000);
        },
        &[("", Touched, Directory), ("l", Modified, Symlink)],
    ),
    Case(
        "a further name",
        |root| fs::hard_link(root.join("h1"), root.join("a/h4")).expect("link"),
        &[
            ("a", Touched, Directory),
            ("a/h4", Added, FILE),
            ("d/h2", Linked, FILE),
            ("h1", Linked, FILE),
            ("h3", Linked, FILE),
        ],
    ),
    Case(
        "a further name, and chmod",
        |root| {
            fs::hard_link(root.join("h1"), root.join("a/h4")).expect("link");
            mode(&root.join("a/h4"), 0o600);
        },
        &[
            ("a", Touched, Directory),
            ("a/h4", Added, FILE),
            ("d/h2", Modified, FILE),
            ("h1", Modified, FILE),
            ("h3", Modified, FILE),
        ],
    ),
    Case(
        "one name less",
        |root| fs::remove_file(root.join("h1")).expect("rm"),
        &[("", Touched, Directory), ("h1", Deleted, FILE)],
    ),
    Case(
        "writing by one of several names",
        |root| timeless(&root.join("d/h2"), |f| f.write_all_at(b"C", 0).expect("write")),
        &[("d/h2", Modified, FILE), ("h1", Modified, FILE), ("h3", Modified, FILE)],
    ),
    Case(
        "writing by a new name, the old times put back",
        |root| {
            fs::hard_link(root.join("h1"), root.join("a/h4")).expect("link");
            timeless(&root.join("a/h4"), |f| f.write_all_at(b"C", 0).expect("write"));
        },
        &[
            ("a", Touched, Directory),
            ("a/h4", Added, FILE),
            ("d/h2", Modified, FILE),
            ("h1", Modified, FILE),
            ("h3", Modified, FILE),
        ],
    ),
    Case(
        "two files become one",
        |root| {
            fs::remove_file(root.join("twin2")).expect("rm");
            fs::hard_link(root.join("twin"), root.join("twin2")).expect("link");
            set_time(root, 1_000_000_000);
        },
        &[("twin", Linked, FILE), ("twin2", Modified, FILE)],
    ),
    Case(
        "one file becomes two",
        |root| {
            fs::remove_file(root.join("h3")).expect("rm");
            fs::copy(root.join("h1"), root.join("h3")).expect("copy");
            set_time(&root.join("h3"), 1_000_000_000);
            set_time(root, 1_000_000_000);
        },
        &[("h3", Modified, FILE)],
    ),
    Case(
        "zeros for a hole",
        |root| timeless(&root.join("sparse"), |f| f.write_all_at(&[0; 8192], 0).expect("write")),
        &[],
    ),
    Case(
        "a hole for data",
        |root| {
            timeless(&root.join("sparse"), |f| {
                fallocate(f, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4 * MIB, 4096).expect("punch");
            });
        },
        &[("sparse", Modified, FILE)],
    ),
    Case(
        "data for a hole",
        |root| timeless(&root.join("sparse"), |f| f.write_all_at(b"x", 7 * MIB).expect("write")),
        &[("sparse", Modified, FILE)],
    ),
    Case(
        "shorter, and as long as before",
        |root| {
            timeless(&root.join("sparse"), |f| {
                f.set_len(MIB).and_then(|()| f.set_len(8 * MIB)).expect("truncate");
            });
        },
        &[("sparse", Modified, FILE)],
    ),
    Case(
        "names that are no text",
        |root| {
            fs::write(root.join(OsStr::from_bytes(b"a/\xff\n")), "").expect("write");
            fs::create_dir(root.join(OsStr::from_bytes(b"\xc3("))).expect("mkdir");
            fs::write(root.join("o257-6-0"), "a temporary name of SEND").expect("write");
        },
        &[
            ("", Touched, Directory),
            ("a", Touched, Directory),
            (r"a/\xff\n", Added, FILE),
            ("o257-6-0", Added, FILE),
            (r"\xc3(", Added, Directory),
        ],
    ),
];

fn run(fixture: &Fixture, method: FeedMethod) {
    let (layer, first) = fixture.pair(base);
    fixture.backend.destroy(&first).expect("destroy");
    for Case(name, edit, expected) in CASES {
        let container = fixture.container(&layer);
        edit(&container.root());
        let (found, found_by) = fixture.agreed(name, &layer, &container);
        let expected: Vec<Line> =
            expected.iter().map(|(path, what, kind)| ((*path).to_string(), *what, *kind)).collect();
        assert_same_lines(name, &found, &expected);
        assert_eq!(found_by, method, "{name}: how it was found");
        let fork = fixture.forked(&container, Access::Writable);
        let (of_fork, _) = fixture.agreed(name, &layer, &fork);
        assert_same_lines(&format!("{name}, of a fork"), &of_fork, &expected);
        fixture.backend.destroy(&fork).expect("destroy");
        fixture.backend.destroy(&container).expect("destroy");
    }
}

#[test]
fn each_rule_by_send() {
    run(&Fixture::btrfs(QuotaSetup::None), FeedMethod::Send);
}

#[test]
fn each_rule_by_manifest() {
    run(&Fixture::xfs(), FeedMethod::Manifest);
    run(&Fixture::reflink_on_btrfs(), FeedMethod::Manifest);
}

#[test]
fn each_rule_by_walking() {
    run(&Fixture::memory(), FeedMethod::Walk);
}

#[test]
fn a_huge_file_is_compared_where_it_has_data() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(|root| {
        let file = File::create(root.join("huge")).expect("create");
        file.set_len(5 * GIB).expect("lengthen");
        file.write_all_at(&[1; 4096], 3 * GIB).expect("write");
        set_times(root);
    });
    timeless(&container.root().join("huge"), |file| file.write_all_at(&[2], 5 * GIB - 1).expect("write"));
    let changes = fixture.feed(Some(&layer), &container, true);
    assert_eq!(changes.list.len(), 1, "{changes:?}");
    assert_eq!((changes.list[0].what, changes.list[0].size), (Modified, Some(4096)));
}
