//! A clone is what its source is, and shares its blocks.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::Path;

use reflinkd::backend::clone::{Content, Counts, Source, clone_tree};
use reflinkd::backend::remove::remove_tree;
use reflinkd::sys::fiemap::{self, Place};
use reflinkd::sys::reflink;
use rustix::fs::{IFlags, XattrFlags, lsetxattr};

use crate::fixture::{ACL, Setup, assert_listed, clone, data_map, everything, holey, set_flags};
use crate::support::digest::{assert_same, full};
use crate::support::{MIB, random_bytes, tree_digest, write_random};

fn everything_is_kept(setup: Setup) {
    let fs = setup.make();
    let from = fs.path().join("from");
    let expected = everything(setup, &from);
    for state in [Source::Still, Source::Live] {
        let to = from.with_file_name(format!("{state:?}"));
        let before = access_times(&from);
        let cloned = clone_tree(&from, &to, state, setup.content(), None).expect("clone a tree");
        assert_eq!(cloned.counts, expected);
        assert_eq!(access_times(&to), before);
        // Nothing reads a symlink without moving its access time.
        let but_symlinks = |times: &AccessTimes| {
            let mut times = times.clone();
            times.retain(|name, _| !name.as_bytes().starts_with(b"symlink"));
            times
        };
        assert_eq!(but_symlinks(&access_times(&from)), but_symlinks(&before));
        assert_listed(&cloned, &to);
        assert_same("a clone", &tree_digest(&from), &tree_digest(&to));
        assert_eq!(remove_tree(&to).expect("remove a clone"), cloned.entries.len() as u64 + 1);
        assert!(!to.exists());
    }
    remove_tree(&from).expect("remove the source");
}

type AccessTimes = BTreeMap<OsString, (i64, i64)>;

fn access_times(root: &Path) -> AccessTimes {
    let entries = fs::read_dir(root.join("times")).unwrap().map(Result::unwrap);
    let times = |path: &Path| path.symlink_metadata().map(|meta| (meta.atime(), meta.atime_nsec())).unwrap();
    entries.map(|entry| (entry.file_name(), times(&entry.path()))).collect()
}

#[test]
fn everything_is_kept_on_xfs() {
    everything_is_kept(Setup::Xfs);
}

#[test]
fn everything_is_kept_on_btrfs() {
    everything_is_kept(Setup::Btrfs);
}

#[test]
fn everything_is_kept_by_copies_on_ext4() {
    everything_is_kept(Setup::Ext4);
}

#[test]
fn everything_is_kept_by_copies_on_tmpfs() {
    everything_is_kept(Setup::Tmpfs);
}

/// Addresses of a file's extents, all of which must be shared.
fn shared_places(path: &Path) -> Vec<Place> {
    let extents = fiemap::extents(&File::open(path).unwrap(), true).unwrap();
    assert!(extents.iter().all(|extent| extent.shared), "{}: {extents:?}", path.display());
    extents.into_iter().map(|extent| extent.place).collect()
}

fn blocks_are_shared(setup: Setup) {
    let fs = setup.make();
    let from = fs.path().join("from");
    fs::create_dir_all(from.join("below")).unwrap();
    let files = ["one", "two", "below/three"];
    for name in files {
        write_random(&from.join(name), 32 * MIB);
    }
    rustix::fs::syncfs(File::open(fs.path()).unwrap()).unwrap();
    let used = || {
        let stat = rustix::fs::statvfs(fs.path()).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    };
    let before = used();
    let (to, cloned) = clone(setup, &from);
    assert_eq!(cloned.counts, Counts { directories: 2, cloned: 3, ..Counts::default() });
    for name in files {
        let places = shared_places(&to.join(name));
        assert!(!places.is_empty());
        assert_eq!(places, shared_places(&from.join(name)));
    }
    rustix::fs::syncfs(File::open(fs.path()).unwrap()).unwrap();
    let grown = used().saturating_sub(before);
    assert!(grown < 2 * MIB, "a clone of 96 MiB takes {grown} bytes");
    // What is written into one is not in the other.
    let original = fs::read(from.join("one")).unwrap();
    fs::write(to.join("one"), "other").unwrap();
    assert_eq!(fs::read(from.join("one")).unwrap(), original);
}

#[test]
fn blocks_are_shared_on_xfs() {
    blocks_are_shared(Setup::Xfs);
}

#[test]
fn blocks_are_shared_on_btrfs() {
    blocks_are_shared(Setup::Btrfs);
}

fn holes_stay(setup: Setup) {
    const TERABYTE: u64 = 1 << 40;
    let fs = setup.make();
    let from = fs.path().join("from");
    fs::create_dir(&from).unwrap();
    for (name, length) in [("some", MIB), ("most", TERABYTE)] {
        holey(&from.join(name), length);
    }
    File::create(from.join("all")).and_then(|file| file.set_len(TERABYTE)).unwrap();
    let (to, cloned) = clone(setup, &from);
    let expected = match setup.content() {
        Content::Reflink => Counts { directories: 1, cloned: 3, ..Counts::default() },
        Content::Copy => Counts { directories: 1, copied: 3, ..Counts::default() },
    };
    assert_eq!(cloned.counts, expected);
    for (name, ranges) in [("some", 2), ("most", 2), ("all", 0)] {
        let map = data_map(&to.join(name));
        assert_eq!(map, data_map(&from.join(name)), "{name}");
        assert_eq!(map.len(), ranges, "{name}");
        for (start, end) in map {
            let read = |root: &Path| {
                let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
                File::open(root.join(name)).unwrap().read_exact_at(&mut bytes, start).unwrap();
                bytes
            };
            assert!(read(&from) == read(&to), "{name} differs from {start} to {end}");
        }
        assert_eq!(to.join(name).metadata().unwrap().len(), from.join(name).metadata().unwrap().len());
    }
}

#[test]
fn holes_stay_on_xfs() {
    holes_stay(Setup::Xfs);
}

#[test]
fn holes_stay_on_btrfs() {
    holes_stay(Setup::Btrfs);
}

#[test]
fn holes_stay_in_copies() {
    holes_stay(Setup::Ext4);
    holes_stay(Setup::Tmpfs);
}

/// On Btrfs a file shares blocks only with one that is like it in being overwritten in place.
#[test]
fn files_without_copy_on_write_are_cloned() {
    let fs = Setup::Btrfs.make();
    let from = fs.path().join("from");
    fs::create_dir(&from).unwrap();
    let file = from.join("database");
    File::create(&file).unwrap();
    set_flags(&file, IFlags::NOCOW);
    fs::write(&file, random_bytes(MIB)).unwrap();
    fs::write(from.join("other"), random_bytes(MIB)).unwrap();
    let (to, cloned) = clone(Setup::Btrfs, &from);
    assert_eq!(cloned.counts.cloned, 2);
    let no_cow = |name: &str| reflink::flags(File::open(to.join(name)).unwrap()).unwrap().contains(IFlags::NOCOW);
    assert!(no_cow("database") && !no_cow("other"));
    assert_eq!(shared_places(&to.join("database")), shared_places(&file));
}

#[test]
fn nothing_is_inherited_from_around() {
    for setup in [Setup::Xfs, Setup::Btrfs, Setup::Tmpfs] {
        let fs = setup.make();
        let from = fs.path().join("from");
        fs::create_dir_all(from.join("below")).unwrap();
        fs::write(from.join("below/file"), "text").unwrap();
        let place = fs.path().join("place");
        fs::create_dir(&place).unwrap();
        chown(&place, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o2770)).unwrap();
        lsetxattr(&place, "system.posix_acl_default", ACL, XattrFlags::empty()).unwrap();
        let to = place.join("to");
        clone_tree(&from, &to, Source::Still, setup.content(), None).expect("clone a tree");
        assert_same("a clone", &tree_digest(&from), &tree_digest(&to));
    }
}

/// The root's own +i would keep the clone from being moved into its place.
#[test]
fn a_clone_can_be_moved() {
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    fs::create_dir_all(from.join("below")).unwrap();
    set_flags(&from.join("below"), IFlags::IMMUTABLE);
    set_flags(&from, IFlags::IMMUTABLE | IFlags::NODUMP);
    let (to, _) = clone(Setup::Xfs, &from);
    let flags = |path: &Path| reflink::flags(File::open(path).unwrap()).unwrap();
    assert_eq!((flags(&to), flags(&to.join("below"))), (IFlags::NODUMP, IFlags::IMMUTABLE));
    fs::rename(&to, fs.path().join("moved")).expect("move the clone");
}

#[test]
fn a_clone_belongs_to_its_project() {
    let fs = Setup::Xfs.make();
    let from = fs.path().join("from");
    everything(Setup::Xfs, &from);
    let to = fs.path().join("to");
    clone_tree(&from, &to, Source::Still, Content::Reflink, Some(4242)).expect("clone a tree");
    assert_same("a clone", &tree_digest(&from), &tree_digest(&to));
    let mut seen = 0;
    for (path, facts) in tree_digest(&to) {
        if matches!(facts.kind, "file" | "dir") {
            let project = reflink::project(File::open(full(&to, &path)).unwrap()).unwrap();
            assert_eq!(
                project,
                reflink::Project { id: 4242, inherited: facts.kind == "dir" },
                "{}",
                path.escape_ascii()
            );
            seen += 1;
        }
    }
    assert!(seen > 100);
}

/// Threads of the clone have an umask of their own, so that modes are right at once.
#[test]
fn the_umask_of_the_process_stays() {
    let umask = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        status.lines().find(|line| line.starts_with("Umask:")).unwrap().to_string()
    };
    let before = umask();
    assert_ne!(before, "Umask:\t0000", "this test needs an umask");
    let fs = Setup::Tmpfs.make();
    let from = fs.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "text").unwrap();
    fs::set_permissions(from.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    let (to, _) = clone(Setup::Tmpfs, &from);
    assert_eq!(to.join("file").metadata().unwrap().mode() & 0o7777, 0o666);
    assert_eq!(umask(), before);
}
