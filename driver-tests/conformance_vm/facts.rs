//! What the kernel does with project quotas, by its system calls alone: `docs/kernel.md` rests on these.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use reflinkd::sys::reflink::{Project, ficlone, project, set_project};
use reflinkd::sys::xfs::XfsFd;
use reflinkd::sys::xfs::quota::{Dquot, ProjectQuotas, State};
use reflinkd::sys::xfs::space::free_preallocated;

use crate::support::{GIB, LoopFs, MB, MIB, fill, random_bytes, write_random};

const PROJECT: u32 = 0x7e57_0001;
const OTHER: u32 = 0x7e57_0003;

fn filesystem(options: &str) -> LoopFs {
    LoopFs::xfs_mounted(GIB, options)
}

fn open(path: &Path) -> XfsFd {
    XfsFd::open(path).expect("open a directory on XFS")
}

fn quotas(fs: &LoopFs) -> ProjectQuotas {
    ProjectQuotas::open(open(fs.path())).expect("open the quotas")
}

/// A directory whose files are of a project.
fn directory_of(fs: &LoopFs, name: &str, id: u32) -> std::path::PathBuf {
    let path = fs.path().join(name);
    fs::create_dir(&path).expect("mkdir");
    set_project(open(&path), id).expect("set the project");
    path
}

fn held(quotas: &ProjectQuotas, id: u32) -> u64 {
    quotas.get(id).expect("what the project holds").bytes
}

fn clone(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).expect("open"), File::create_new(to).expect("create"));
    ficlone(&to, &from).expect("FICLONE");
}

fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<i32> {
    result.expect_err("this must fail").raw_os_error()
}

#[test]
fn the_mount_option_says_what_is_on() {
    let on = State { accounted: true, enforced: true };
    for (options, state, refusal) in [
        ("prjquota", on, None),
        ("pqnoenforce", State { accounted: true, enforced: false }, None),
        ("noquota", State::default(), Some(Errno::ENOSYS)),
        ("usrquota", State::default(), Some(Errno::ESRCH)),
    ] {
        let fs = filesystem(options);
        let by_device = ProjectQuotas::by_device(open(fs.path())).expect("the device of the mount");
        for quotas in [quotas(&fs), by_device] {
            assert_eq!(quotas.state(), Ok(state), "mounted with {options}");
            assert_eq!(quotas.get(PROJECT), refusal.map_or(Ok(Dquot::default()), Err), "{options}");
            assert_eq!(quotas.set_limit(PROJECT, Some(MIB)), refusal.map_or(Ok(()), Err), "{options}");
            if state.accounted {
                assert_eq!(quotas.get(PROJECT).expect("get").limit, Some(MIB));
                quotas.set_limit(PROJECT, None).expect("lift");
            }
        }
    }
}

#[test]
fn both_calls_say_the_same() {
    let fs = filesystem("prjquota");
    let directory = directory_of(&fs, "tree", PROJECT);
    write_random(&directory.join("data"), 3 * MB);
    let by_device = ProjectQuotas::by_device(open(fs.path())).expect("the device of the mount");
    let by_descriptor = quotas(&fs);
    by_device.set_limit(PROJECT, Some(10 * MIB)).expect("limit by the device");
    let seen = by_descriptor.get(PROJECT).expect("get");
    assert_eq!((seen.inodes, seen.limit), (2, Some(10 * MIB)));
    assert!((3 * MB..4 * MB).contains(&seen.bytes), "{seen:?}");
    assert_eq!(by_device.get(PROJECT), Ok(seen));
    assert_eq!(by_device.next(1), Ok(Some((PROJECT, seen))));
}

#[test]
fn a_limit_answers_enospc_and_lets_unlink_work() {
    let fs = filesystem("prjquota");
    let (directory, quotas) = (directory_of(&fs, "tree", PROJECT), quotas(&fs));
    quotas.set_limit(PROJECT, Some(10 * MIB)).expect("limit");
    let log = directory.join("log");
    let written = fill(&log, GIB);
    assert!((9 * MIB..=10 * MIB).contains(&written), "stopped at {written}");
    let more = OpenOptions::new().append(true).open(&log).and_then(|mut file| file.write_all(&random_bytes(MIB)));
    assert_eq!(errno(more), Some(libc::ENOSPC));
    assert_eq!(
        rustix::fs::statvfs(&directory).map(|fs| fs.f_blocks * fs.f_frsize),
        Ok(10 * MIB),
        "statfs has the limit"
    );
    fs::remove_file(&log).expect("unlink at the limit");
    free_preallocated(&open(fs.path())).expect("wait for what is unlinked");
    assert_eq!(held(&quotas, PROJECT), 0);
    write_random(&log, 8 * MIB);
}

#[test]
fn a_clone_is_charged_in_full_and_overwriting_it_costs_nothing() {
    let fs = filesystem("prjquota");
    let (image, tree, quotas) = (directory_of(&fs, "image", OTHER), directory_of(&fs, "tree", PROJECT), quotas(&fs));
    write_random(&image.join("data"), 20 * MIB);
    File::open(image.join("data")).and_then(|file| file.sync_all()).expect("fsync");
    clone(&image.join("data"), &tree.join("data"));
    assert_eq!(held(&quotas, PROJECT), 20 * MIB, "as soon as it is cloned");
    quotas.set_limit(PROJECT, Some(21 * MIB)).expect("limit");

    // What is overwritten needs room until it is written back, and then the project holds what it held.
    let file = OpenOptions::new().write(true).open(tree.join("data")).expect("open");
    let too_much = file.write_all_at(&random_bytes(4 * MIB), 0);
    assert_eq!(errno(too_much), Some(libc::ENOSPC), "the limit has 1 MiB left");
    for step in 0..16 {
        file.write_all_at(&random_bytes(MIB / 2), (4 + step) * MIB).expect("overwrite what the limit has left");
        file.sync_all().expect("fsync");
    }
    drop(file);
    free_preallocated(&open(fs.path())).expect("free what is preallocated");
    let after = held(&quotas, PROJECT);
    assert!((20 * MIB..=20 * MIB + 64 * 1024).contains(&after), "8 MiB overwritten, {after} held");

    // Removing what was cloned makes room for as much.
    fs::remove_file(tree.join("data")).expect("unlink");
    // Since 5.14 another thread does the work.
    free_preallocated(&open(fs.path())).expect("wait for what is unlinked");
    assert_eq!(held(&quotas, PROJECT), 0);
    let written = fill(&tree.join("log"), GIB);
    assert!((20 * MIB..=21 * MIB).contains(&written), "stopped at {written}");
}

#[test]
fn what_is_preallocated_counts_until_it_is_freed() {
    let fs = filesystem("prjquota");
    let (directory, quotas) = (directory_of(&fs, "tree", PROJECT), quotas(&fs));
    let path = directory.join("log");
    let mut file = File::create(&path).expect("create");
    for _ in 0..20 {
        file.write_all(&random_bytes(MIB)).expect("append");
    }
    let open_still = held(&quotas, PROJECT);
    rustix::fs::syncfs(&file).expect("syncfs");
    let synced = held(&quotas, PROJECT);
    free_preallocated(&open(fs.path())).expect("free what is preallocated");
    let freed = held(&quotas, PROJECT);
    assert!(open_still > 20 * MIB, "{open_still}: counted before it is written back");
    assert!(synced > 20 * MIB, "{synced}: this kernel preallocates nothing");
    assert!((20 * MIB..=20 * MIB + 64 * 1024).contains(&freed), "{freed}");
}

#[test]
fn nothing_is_moved_into_a_project_from_outside() {
    let fs = filesystem("prjquota");
    let tree = directory_of(&fs, "tree", PROJECT);
    let file = fs.path().join("file");
    fs::write(&file, "x").expect("write");
    assert_eq!(errno(fs::rename(&file, tree.join("file"))), Some(libc::EXDEV));
    assert_eq!(errno(fs::hard_link(&file, tree.join("file"))), Some(libc::EXDEV));
    fs::copy(&file, tree.join("copy")).expect("copying works");
    // The way out, and a move of the whole tree within a directory that hands down nothing, are free.
    fs::rename(tree.join("copy"), fs.path().join("out")).expect("out of the project");
    fs::rename(&tree, fs.path().join("moved")).expect("the tree itself");
    assert_eq!(project(open(&fs.path().join("moved"))), Ok(Project { id: PROJECT, inherited: true }));
}

#[test]
fn an_exchange_below_an_inheriting_directory_fails() {
    let fs = filesystem("prjquota");
    let place = directory_of(&fs, "place", OTHER);
    let tree = place.join("fs.new");
    fs::create_dir(&tree).expect("mkdir");
    assert_eq!(project(open(&tree)), Ok(Project { id: OTHER, inherited: true }), "handed down");
    set_project(open(&tree), PROJECT).expect("set the project");
    assert_eq!(errno(fs::rename(&tree, place.join("fs"))), Some(libc::EXDEV));
}

#[test]
fn root_can_take_a_file_out_of_its_project() {
    let fs = filesystem("prjquota");
    let (tree, quotas) = (directory_of(&fs, "tree", PROJECT), quotas(&fs));
    let inside = tree.join("directory");
    fs::create_dir(&inside).expect("mkdir");
    quotas.set_limit(PROJECT, Some(MIB)).expect("limit");
    set_project(open(&inside), OTHER).expect("relabel");
    write_random(&inside.join("escaped"), 10 * MIB);
    assert!(held(&quotas, PROJECT) < MIB);
    assert!(held(&quotas, OTHER) >= 10 * MIB);
}

#[test]
fn a_project_of_nothing_and_without_limit_is_not_listed() {
    let fs = filesystem("prjquota");
    let (tree, quotas) = (directory_of(&fs, "tree", PROJECT), quotas(&fs));
    quotas.set_limit(OTHER, Some(MIB)).expect("limit a project without files");
    let (first, dquot) = quotas.next(1).expect("next").expect("a project");
    assert_eq!((first, dquot.inodes), (PROJECT, 1));
    assert_eq!(quotas.next(PROJECT + 1), Ok(Some((OTHER, Dquot { bytes: 0, inodes: 0, limit: Some(MIB) }))));
    assert_eq!(quotas.next(OTHER + 1), Ok(None));
    quotas.set_limit(OTHER, None).expect("lift");
    assert_eq!(quotas.next(PROJECT + 1), Ok(None));
    fs::remove_dir(&tree).expect("rmdir");
    free_preallocated(&open(fs.path())).expect("wait for what is unlinked");
    assert_eq!(quotas.next(1), Ok(None));
}
