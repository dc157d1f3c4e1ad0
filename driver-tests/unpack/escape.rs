//! Hostile archives. Each is unpacked into a tree beside a canary; whatever happens inside, nothing outside
//! may change, and what can't be meant must be refused in words that name the entry.

use std::path::Path;

use reflinkd::Kind;
use reflinkd::layer::Limits;

use super::cases::{self, Case, EVIL, Fate, file, link, sym};
use super::fixture::scratch;
use super::restored::unpack;
use super::tree::{What, read};
use super::writer::{Raw, Style, Tar};

/// Unpack into `<dir>/root`, beside `<dir>/canary`.
fn meets_its_fate(Case { what, tar, fate }: &Case) {
    let dir = scratch();
    let (root, canary) = (dir.path().join("root"), dir.path().join("canary"));
    for path in [&root, &canary, &canary.join("sub")] {
        std::fs::create_dir(path).expect("mkdir");
    }
    std::fs::write(canary.join("file"), "untouched").expect("write");
    let lower = cases::lower(canary.to_str().expect("UTF-8"));
    unpack(&mut &lower[..], &root, &Limits::default(), &|| false).expect("a lower layer");
    let before = (read(&canary), std::fs::read_dir(dir.path()).expect("list").count());
    let result = unpack(&mut &tar[..], &root, &Limits::default(), &|| false);
    let after = (read(&canary), std::fs::read_dir(dir.path()).expect("list").count());
    assert_eq!(before, after, "{what}: the canary changed");
    match (result, fate) {
        (Err(error), Fate::Refused(why)) => {
            let text = error.to_string();
            assert!(text.contains(why), "{what}: {text}");
            assert!(!text.contains(char::is_control), "{what}: {text:?}");
            assert_eq!(error.kind(), Kind::BadInput, "{what}: {text}");
        }
        (Ok(_), Fate::Contained(name)) => {
            assert!(root.join(name).symlink_metadata().is_ok(), "{what}: {name} isn't there");
        }
        (Ok(_), Fate::Written(name)) => {
            let seen = read(&root);
            let file = seen.get(name.as_bytes()).map(|seen| &seen.what);
            assert_eq!(file, Some(&What::File(EVIL.into())), "{what}: {name}");
        }
        (result, fate) => panic!("{what}: {result:?}, not {fate:?}"),
    }
}

#[test]
fn every_hostile_layer_meets_its_fate() {
    let cases = cases::all();
    assert!(cases.len() > 100, "{}", cases.len());
    cases.iter().for_each(meets_its_fate);
}

/// Every byte of a good archive, in turn, turned into something else: never a panic, never the canary.
#[test]
fn damaged_headers() {
    let mut tar = Tar::default();
    tar.entry(&Raw { mtime: (5, 5), ..file("dir/x") }, Style::Pax);
    tar.entry(&sym("s", "../canary"), Style::Gnu);
    tar.entry(&Raw::new(b'0', [b'l'; 150]), Style::Gnu);
    let good = tar.end();
    let dir = scratch();
    let canary = dir.path().join("canary");
    std::fs::create_dir(&canary).expect("mkdir");
    for at in (0..good.len()).step_by(3) {
        let mut damaged = good.clone();
        damaged[at] ^= 0x55;
        let root = dir.path().join("root");
        std::fs::create_dir(&root).expect("mkdir");
        let _ = unpack(&mut &damaged[..], &root, &Limits::default(), &|| false);
        std::fs::remove_dir_all(&root).expect("clean up");
    }
    assert_eq!(read(&canary).len(), 1);
}

#[test]
fn every_truncation_in_an_entry_is_an_error() {
    let mut tar = Tar::default();
    tar.entry(&Raw::new(b'0', "a").data([7; 700]), Style::Pax);
    let first = tar.0.len();
    tar.entry(&Raw::new(b'0', [b'l'; 150]).data("x"), Style::Gnu);
    let second = tar.0.len();
    let whole = tar.end();
    let cut = |length: usize| {
        let dir = scratch();
        unpack(&mut &whole[..length], dir.path(), &Limits::default(), &|| false)
    };
    for length in 0..=whole.len() {
        // The boundaries before a header, and after the first zero block, are ends that others accept too.
        let end = [0, first, second, second + 512, whole.len()].contains(&length);
        match cut(length) {
            Ok(_) => assert!(end, "{length} of {} bytes were accepted", whole.len()),
            Err(error) => {
                assert!(!end, "{length}: {error}");
                assert!(error.to_string().contains("truncated"), "{error}");
                assert_eq!(error.kind(), Kind::BadInput);
            }
        }
    }
}

#[test]
fn a_mount_in_the_tree_is_not_entered() {
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
    for tar in [
        Tar::of(&[file("dir/mount/x")]),
        Tar::of(&[file("dir/.wh.mount")]),
        Tar::of(&[file(".wh.dir")]),
        Tar::of(&[file("dir")]),
        Tar::of(&[file("dir/.wh..wh..opq")]),
        Tar::of(&[link("x", "dir/mount/inside")]),
    ] {
        let dir = scratch();
        let (root, other) = (dir.path().join("root"), dir.path().join("other"));
        let mount = root.join("dir/mount");
        std::fs::create_dir_all(&mount).expect("mkdir");
        std::fs::create_dir(&other).expect("mkdir");
        std::fs::write(other.join("inside"), "x").expect("write");
        rustix::mount::mount_bind(&other, &mount).expect("these tests need root");
        let guard = Unmount(&mount);
        let error = unpack(&mut &tar[..], &root, &Limits::default(), &|| false).expect_err("refused");
        assert_eq!(
            read(&other).get(&b"inside"[..]).map(|seen| &seen.what),
            Some(&What::File(b"x".to_vec())),
            "{error}"
        );
        drop(guard);
    }
}
