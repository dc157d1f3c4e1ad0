//! What a pool refuses: other people's files and directories, sizes that can't be, copies.

use std::fs;

use reflinkd::Kind;
use reflinkd::engine::pool::{Creation, PoolFs};

use crate::fixture::{Fixture, names};
use crate::support::{GIB, LoopFs, MIB, arg, run, unmount};

pub(crate) fn unrelated_files_are_refused_and_left_alone(kind: PoolFs) {
    let fixture = Fixture::new(kind);
    let content = b"somebody's only copy";
    fs::write(fixture.pool.file(), content).expect("an unrelated file");
    let refusals = [
        fixture.pool.create(kind, kind.smallest()).map(drop),
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
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect_err("a directory").kind(), Kind::Exists);
    fs::remove_dir(fixture.pool.file()).expect("still an empty directory");
}

pub(crate) fn a_root_with_something_in_it_is_refused(kind: PoolFs) {
    let fixture = Fixture::new(kind);
    fs::create_dir(fixture.root()).expect("ROOT");
    fs::write(fixture.root().join("precious"), "").expect("something in it");
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect_err("not empty").kind(), Kind::Exists);
    assert!(!fixture.pool.exists());

    fs::remove_file(fixture.root().join("precious")).expect("empty it");
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect("create"), Creation::Created);
    run("mount", &["-t", "tmpfs", "none", arg(fixture.root())]);
    let error = fixture.pool.attach().expect_err("something else is mounted there");
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.to_string().contains("another filesystem mounted"), "{error}");
    fixture.wait_for_no_device();
    fixture.pool.detach().expect("not ours: left alone");
    unmount(fixture.root());
}

pub(crate) fn sizes_below_the_smallest_are_refused(kind: PoolFs) {
    let fixture = Fixture::new(kind);
    let error = fixture.pool.create(kind, kind.smallest() - 1).expect_err("too small");
    assert_eq!(error.kind(), Kind::Invalid);
    let smallest = format!("{:.1} MB", kind.smallest() as f64 / 1e6);
    assert!(error.to_string().contains(&smallest), "{error}");
    assert!(!fixture.pool.exists());
}

pub(crate) fn several_or_partial_loop_devices_are_refused(kind: PoolFs) {
    let fixture = Fixture::new(kind);
    assert_eq!(fixture.pool.create(kind, kind.smallest()).expect("create"), Creation::Created);
    let by_hand = |options: &[&str]| {
        let args = [&["--find", "--show"], options, &[arg(fixture.pool.file())]].concat();
        run("losetup", &args).trim().to_owned()
    };
    let part = by_hand(&["--offset", "1048576"]);
    assert_eq!(fixture.pool.attach().expect_err("only a part").kind(), Kind::InUse);
    run("losetup", &["--detach", &part]);
    fixture.wait_for_no_device();
    let read_only = by_hand(&["--read-only"]);
    assert_eq!(fixture.pool.attach().expect_err("read-only").kind(), Kind::InUse);
    run("losetup", &["--detach", &read_only]);
    fixture.wait_for_no_device();

    // One whole device that somebody set up by hand is used, and cleared with the pool.
    let one = by_hand(&[]);
    fixture.pool.attach().expect("attach");
    assert_eq!(fixture.devices(), [one.as_str()]);
    fixture.pool.detach().expect("detach");
    fixture.wait_for_no_device();

    let (one, two) = (by_hand(&[]), by_hand(&[]));
    let error = fixture.pool.attach().expect_err("two of them");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&one) && error.to_string().contains(&two), "{error}");
    assert!(!fixture.pool.is_attached().expect("ask"));
}

pub(crate) fn a_copy_of_a_mounted_pool_is_refused(kind: PoolFs) {
    let fixture = Fixture::attached(kind, kind.smallest());
    let copy = fixture.another();
    run("cp", &["--sparse=always", arg(fixture.pool.file()), arg(copy.pool.file())]);
    let error = copy.pool.attach().expect_err("its filesystem is mounted");
    assert_eq!(error.kind(), Kind::Exists, "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("copy")), "{error}");
    copy.wait_for_no_device();
}

pub(crate) fn no_room_for_a_pool_is_said(kind: PoolFs) {
    let host = LoopFs::tmpfs(MIB);
    fs::write(host.path().join("ballast"), vec![1; 1024 * 900]).expect("nearly full");
    let fixture = Fixture::within(kind, host.path());
    let error = fixture.pool.create(kind, kind.smallest()).expect_err("no room");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert_eq!(names(host.path()), ["ballast", "root.lock"]);
}
