use std::fs;

use super::*;
use crate::Kind;
use crate::backend::clone::{Counts, Origin};

/// `etc/` with `passwd` and an empty directory, `bin/` with two names of one file, and a device.
fn entries() -> Vec<Entry> {
    let entry = |directory, name: &[u8], inode, kind, child| Entry {
        directory,
        name: name.into(),
        inode,
        ctime: (1_700_000_000 + i64::from(directory), (inode % 100) as u32),
        kind,
        child,
        blocks: 0,
        origin: None,
    };
    // As walkers list them: in no order, numbers left out.
    vec![
        entry(7, b"passwd", 30, FileType::RegularFile, None),
        entry(0, b"bin", 3, FileType::Directory, Some(2)),
        entry(2, b"two", 20, FileType::RegularFile, None),
        entry(7, b"empty", 31, FileType::Directory, Some(9)),
        entry(0, b"null", u64::MAX, FileType::CharacterDevice, None),
        entry(0, b"etc", 4, FileType::Directory, Some(7)),
        entry(2, b"not\nUTF-8 \xff", 20, FileType::RegularFile, None),
    ]
}

fn head() -> Head {
    let base = Base { place: "snapshots/x".into(), id: Uuid::from_u128(7), read_only: true };
    let group = Some(GroupId(42));
    let id = Uuid::from_u128(1 << 100);
    Head { id, group, read_only: true, base: Some(base), fork: false, entries: 7, metadata: 123_456, blocks: 1 << 40 }
}

fn written(directory: &Path, head: &Head, entries: &[Entry]) -> PathBuf {
    let path = directory.join("manifest.1");
    Manifest::write(&path, head, entries).expect("write");
    path
}

#[test]
fn what_was_written_is_read() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = written(directory.path(), &head(), &entries());
    let manifest = Manifest::read(&path).expect("read");
    assert_eq!(manifest.head, head());
    assert_eq!(Head::read(&path).expect("read the head"), head());
    let path_of = |inode| manifest.find(inode).map(|name| manifest.path(name));
    assert_eq!(path_of(30).as_deref(), Some(&b"etc/passwd"[..]));
    assert_eq!(path_of(31).as_deref(), Some(&b"etc/empty"[..]));
    assert_eq!(path_of(4).as_deref(), Some(&b"etc"[..]));
    assert!([&b"bin/two"[..], b"bin/not\nUTF-8 \xff"].contains(&&*path_of(20).expect("either name")));
    assert_eq!(path_of(5), None);
    let device = manifest.find(u64::MAX).expect("the device");
    assert_eq!((device.kind, device.ctime), (FileType::CharacterDevice, 1_700_000_000_000_000_015));
    let file = manifest.find(30).expect("the file");
    assert_eq!((file.kind, file.ctime), (FileType::RegularFile, 1_700_000_007_000_000_030));
}

#[test]
fn every_head_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let no_base = Head { base: None, ..head() };
    let writable = Base { read_only: false, place: "/elsewhere".into(), ..head().base.expect("it has one") };
    for head in [
        Head { group: None, read_only: false, ..no_base.clone() },
        Head { base: Some(writable), read_only: false, ..head() },
        Head { fork: true, ..head() },
        Head { group: Some(GroupId(0)), ..no_base },
    ] {
        let path = written(directory.path(), &head, &entries());
        assert_eq!(Manifest::read(&path).expect("read").head, head);
    }
    let empty = Head { entries: 0, ..head() };
    let path = written(directory.path(), &empty, &[]);
    assert_eq!(Manifest::read(&path).expect("read").head, empty);
}

#[test]
fn a_fork_is_told_by_what_its_source_is_told_by() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let source = Manifest::read(&written(directory.path(), &head(), &entries())).expect("read");
    let made = |directory, name: &[u8], inode, kind, child, origin| Entry {
        directory,
        name: name.into(),
        inode,
        ctime: (1_800_000_000, 5),
        kind,
        child,
        blocks: 0,
        origin,
    };
    let as_it_was = |inode, directory| {
        Some(Origin { inode, ctime: (1_700_000_000 + i64::from(directory), (inode % 100) as u32) })
    };
    let changed = |inode| Some(Origin { inode, ctime: (1_700_000_500, 0) });
    // `bin` was renamed, a name of the file in it changed, `etc/passwd` is as it was elsewhere, `null` and `etc/empty` are
    // gone, and something is new.
    let cloned = Cloned {
        counts: Counts::default(),
        root: made(0, b"", 100, FileType::Directory, Some(0), as_it_was(2, 0)),
        entries: vec![
            made(0, b"sbin", 101, FileType::Directory, Some(1), changed(3)),
            made(1, b"two", 102, FileType::RegularFile, None, changed(20)),
            made(0, b"etc", 103, FileType::Directory, Some(2), as_it_was(4, 0)),
            made(1, b"passwd", 104, FileType::RegularFile, None, as_it_was(30, 7)),
            made(1, b"new", 105, FileType::RegularFile, None, changed(40)),
            made(1, b"from elsewhere", 106, FileType::RegularFile, None, None),
        ],
    };
    let path = directory.path().join("manifest.2");
    let its = Head { group: Some(GroupId(9)), entries: 0, ..head() };
    source.forked(its.clone(), &cloned).save(&path).expect("write");
    let fork = Manifest::read(&path).expect("read");
    assert_eq!(fork.head, Head { entries: head().entries, ..its });
    let paths = |manifest: &Manifest| manifest.names.iter().map(|name| manifest.path(name)).collect::<Vec<_>>();
    assert_eq!(paths(&fork), paths(&source), "the names are the base's");
    let then = (1_800_000_000, 5);
    let found = |inode| fork.find(inode).map(|name| (fork.path(name), name.is_untouched(nanoseconds(then))));
    assert_eq!(found(101), Some((b"bin".to_vec(), false)));
    assert!(found(102).is_some_and(|(path, untouched)| path.starts_with(b"bin/") && !untouched));
    assert_eq!(found(103), Some((b"etc".to_vec(), true)));
    assert_eq!(found(104), Some((b"etc/passwd".to_vec(), true)));
    for inode in [0, 20, 30, 31, 40, 105, 106, u64::MAX] {
        assert_eq!(found(inode), None, "{inode}");
    }
    // The same rule once more, for a fork of the fork that nothing has happened to.
    let again = Cloned {
        entries: vec![
            made(0, b"etc", 203, FileType::Directory, Some(1), Some(Origin { inode: 103, ctime: then })),
            made(0, b"sbin", 201, FileType::Directory, Some(2), Some(Origin { inode: 101, ctime: then })),
        ],
        ..cloned
    };
    let again = fork.forked(fork.head.clone(), &again);
    let untouched = |inode| again.find(inode).map(|name| name.is_untouched(nanoseconds(then)));
    assert_eq!((untouched(203), untouched(201), untouched(104)), (Some(true), Some(false), None));
}

#[test]
fn a_copy_is_of_another_group() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = written(directory.path(), &head(), &entries());
    let copy = directory.path().join("manifest.2");
    for group in [None, Some(GroupId(3))] {
        Manifest::copy(&path, &copy, group).expect("copy");
        let (one, other) = (Manifest::read(&path).expect("read"), Manifest::read(&copy).expect("read"));
        assert_eq!((other.head, other.names), (Head { group, ..one.head }, one.names));
    }
}

/// Whatever happens to the file: it is found, or nothing has changed.
#[test]
fn damage_is_found() {
    let whole = [codec::head(&head()), compressed(&entries())].concat();
    let names = Manifest::parse(&*whole).expect("whole").names;
    let assert_found = |bytes: &[u8], how: &str| match Manifest::parse(bytes) {
        Ok(manifest) => assert!(manifest.head == head() && manifest.names == names, "{how}"),
        Err(fault) => assert_eq!(fault.at(Path::new("manifest.1")).kind(), Kind::Damaged, "{how}"),
    };
    for length in 0..whole.len() {
        Manifest::parse(&whole[..length]).map(drop).expect_err("it is shorter");
        assert_found(&whole[..length], &format!("cut to {length}"));
    }
    for at in 0..whole.len() {
        for flipped in (0..8).map(|bit| 1 << bit).chain([0xff]) {
            let mut bytes = whole.clone();
            bytes[at] ^= flipped;
            assert_found(&bytes, &format!("byte {at} xor {flipped:#x}"));
        }
    }
    assert_found(&[&whole[..], b"more"].concat(), "something behind it");
    let others = codec::head(&Head { entries: 6, ..head() });
    Manifest::parse(&*[others, compressed(&entries())].concat()).map(drop).expect_err("the head of another");
}

fn compressed(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    codec::compress(&codec::body(entries), &mut bytes).expect("compress");
    bytes
}

#[test]
fn another_format_is_named() {
    let directory = tempfile::tempdir().expect("a scratch directory");
    let path = written(directory.path(), &head(), &entries());
    let mut bytes = fs::read(&path).expect("read");
    bytes[8] = 2;
    fs::write(&path, bytes).expect("write");
    let error = Head::read(&path).expect_err("nobody knows format 2");
    assert_eq!(error.kind(), Kind::Damaged);
    assert!(error.to_string().contains("manifest.1") && error.to_string().contains("format 2"), "{error}");
}
