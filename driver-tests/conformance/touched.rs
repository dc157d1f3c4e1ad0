//! What users do to files that makes them hard to count: charges are right all the same.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::charges::{BLOCK, assert_charged};
use crate::fixture::Fixture;
use crate::support::{MIB, arg, random_bytes, run, write_random};

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).expect("open")
}

pub(crate) fn a_copy_inside_counts_once(f: &Fixture) {
    let image = f.image("image", |root| {
        write_random(&root.join("data"), 5 * MIB);
        write_random(&root.join("more"), 3 * MIB);
    });
    let web = f.container(&image, "web");
    let copy = |from: &str, to: &str| {
        run("cp", &["--reflink=auto", arg(&web.root().join(from)), arg(&web.root().join(to))]);
    };
    write_random(&web.root().join("own"), 2 * MIB);
    copy("own", "own-too");
    copy("own-too", "own-three");
    copy("data", "of-the-image");
    // Where files can't share, a copy is as good as new.
    let (own, image_too) = if f.setup.shares_blocks() { (1, 0) } else { (3, 1) };
    let size = f.sizes(&[&web])[0];
    assert_charged(f, size.charged, own * 2 * MIB + image_too * 5 * MIB);
    assert_eq!(size.apparent, Some(3 * 2 * MIB + 5 * MIB));
    // The first of those that share goes, what they share stays; and half of another copy is written over.
    fs::remove_file(web.root().join("own")).expect("remove");
    open(&web.root().join("of-the-image")).write_all_at(&random_bytes(MIB), 2 * MIB).expect("write");
    let own = if f.setup.shares_blocks() { 2 * MIB } else { 4 * MIB };
    assert_charged(f, f.charged(&web), own + MIB + image_too * 4 * MIB);
}

pub(crate) fn a_rename_charges_nothing(f: &Fixture) {
    let image = f.image("image", |root| {
        fs::create_dir(root.join("dir")).expect("mkdir");
        ["one", "dir/two", "dir/three"].iter().for_each(|name| write_random(&root.join(name), 2 * MIB));
    });
    let web = f.container(&image, "web");
    let path = |name: &str| web.root().join(name);
    open(&path("one")).write_all_at(&random_bytes(BLOCK), MIB).expect("write");
    write_random(&path("own"), MIB);
    let touched = f.charged(&web);
    assert_charged(f, touched, f.setup.charge(MIB, BLOCK, 0));
    fs::rename(path("one"), path("dir/one")).expect("rename a touched file");
    fs::rename(path("own"), path("dir/three")).expect("rename over an untouched file");
    fs::rename(path("dir/two"), path("two")).expect("rename an untouched file");
    fs::rename(path("dir"), path("renamed")).expect("rename a directory");
    assert_charged(f, f.charged(&web), f.setup.charge(MIB, BLOCK, 2 * MIB));
}

pub(crate) fn a_change_with_its_times_put_back_is_seen(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 5 * MIB));
    let web = f.container(&image, "web");
    let file = open(&web.root().join("data"));
    let before = file.metadata().expect("stat");
    file.write_all_at(&random_bytes(3 * BLOCK), MIB).expect("write");
    let times = FileTimes::new().set_modified(before.modified().expect("its time"));
    file.set_times(times.set_accessed(before.accessed().expect("its time"))).expect("put the times back");
    let now = file.metadata().expect("stat");
    assert_eq!((now.len(), now.mtime_nsec()), (before.len(), before.mtime_nsec()));
    let size = f.sizes(&[&web])[0];
    assert_charged(f, size.charged, f.setup.charge(0, 3 * BLOCK, 0));
    assert_eq!(size.apparent, Some(5 * MIB));
}

/// Files are made, and changed, within one tick of the clock that gives them their times.
pub(crate) fn a_change_right_after_the_clone_is_seen(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), 2 * BLOCK));
    for turn in 0..40 {
        let web = f.container(&image, &format!("web-{turn}"));
        open(&web.root().join("data")).write_all_at(&random_bytes(2 * BLOCK), 0).expect("write");
        let size = f.sizes(&[&web])[0];
        assert!(size.charged >= f.setup.charge(0, 2 * BLOCK, 0), "turn {turn}: {size:?}");
        assert_eq!(size.apparent, Some(2 * BLOCK), "turn {turn}");
    }
}

pub(crate) fn preallocated_room_counts(f: &Fixture) {
    let image = f.image("image", |root| write_random(&root.join("data"), MIB));
    let web = f.container(&image, "web");
    let file = File::create(web.root().join("room")).expect("create");
    fallocate(&file, FallocateFlags::empty(), 0, 3 * MIB).expect("fallocate");
    file.write_all_at(&random_bytes(MIB), MIB).expect("write");
    let size = f.sizes(&[&web])[0];
    assert_charged(f, size.charged, if f.setup.counts_room() { 3 * MIB } else { MIB });
    assert_eq!(size.apparent, Some(3 * MIB));
}

pub(crate) fn a_hard_linked_file_counts_once(f: &Fixture) {
    let image = f.image("image", |root| {
        fs::create_dir(root.join("dir")).expect("mkdir");
        write_random(&root.join("data"), 2 * MIB);
        fs::hard_link(root.join("data"), root.join("dir/data-too")).expect("link");
    });
    let web = f.container(&image, "web");
    let path = |name: &str| web.root().join(name);
    open(&path("dir/data-too")).write_all_at(&random_bytes(BLOCK), MIB).expect("write");
    fs::hard_link(path("data"), path("data-three")).expect("link");
    let size = f.sizes(&[&web])[0];
    assert_charged(f, size.charged, f.setup.charge(0, BLOCK, 0));
    assert_eq!(size.apparent, Some(2 * MIB));
}

/// Filesystems give inode numbers away again.
pub(crate) fn a_file_in_the_inode_of_a_removed_one_counts(f: &Fixture) {
    let image = f.image("image", |root| {
        (0..64).for_each(|number| write_random(&root.join(format!("file-{number}")), 2 * BLOCK));
    });
    let web = f.container(&image, "web");
    let path = |number: u32| web.root().join(format!("file-{number}"));
    for number in 0..64 {
        fs::remove_file(path(number)).expect("remove");
    }
    for number in 0..64 {
        write_random(&path(number), 2 * BLOCK);
    }
    let size = f.sizes(&[&web])[0];
    let least = f.setup.charge(64 * 2 * BLOCK, 0, 64 * 2 * BLOCK);
    let most = least + 4 * f.setup.overhead();
    assert!((least..=most).contains(&size.charged), "charged {}, not {least}..={most}", size.charged);
    assert_eq!(size.apparent, Some(64 * 2 * BLOCK));
}
