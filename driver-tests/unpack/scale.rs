//! Sizes that hurt: many layers, deep trees, many files, holes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use reflinkd::layer::Limits;

use super::fixture::{run, scratch};
use super::restored::unpack;
use super::writer::{Raw, Style, Tar};

fn apply(root: &Path, tar: &[u8]) {
    unpack(&mut &*tar, root, &Limits::default(), &|| false).expect("unpack");
}

#[test]
fn a_hundred_and_twenty_seven_layers() {
    let root = scratch();
    for layer in 0..127 {
        let mut entries = vec![Raw::new(b'0', format!("own/{layer}")).data("x")];
        entries.push(Raw::new(b'0', "shared").data(layer.to_string()));
        if layer > 0 {
            entries.push(Raw::new(b'0', format!("own/.wh.{}", layer - 1)));
        }
        apply(root.path(), &Tar::of(&entries));
    }
    assert_eq!(std::fs::read(root.path().join("shared")).expect("read"), b"126");
    let own: Vec<_> = std::fs::read_dir(root.path().join("own")).expect("list").collect();
    assert_eq!(own.len(), 1);
}

/// The inode at the end of a path that is too long for the kernel.
fn stat_deep(root: &Path, path: &[u8]) -> Option<rustix::fs::Stat> {
    use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
    let mut fd = rustix::fs::open(root, OFlags::PATH, Mode::empty()).expect("open");
    let mut parts = path.split(|&b| b == b'/').peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return statat(&fd, part, AtFlags::SYMLINK_NOFOLLOW).ok();
        }
        fd = openat(&fd, part, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).ok()?;
    }
    None
}

#[test]
fn a_thousand_nested_directories_deeper_than_path_max() {
    let root = scratch();
    let deep = vec!["directory"; 1000].join("/");
    // One by one, as a tar of such a tree has them, and then by one name whose parents are all missing.
    let mut entries: Vec<Raw> = (1..=1000)
        .map(|n| Raw { mtime: (n, 0), ..Raw::new(b'5', vec!["directory"; n as usize].join("/")) })
        .collect();
    entries.push(Raw::new(b'0', format!("{deep}/file")).data("deep"));
    entries.push(Raw::new(b'1', "link").link(format!("{deep}/file")));
    let other = deep.replace("directory", "elsewhere");
    entries.push(Raw::new(b'0', format!("{other}/file")));
    apply(root.path(), &Tar::of(&entries));
    let leaf = stat_deep(root.path(), deep.as_bytes()).expect("the last directory");
    assert_eq!((leaf.st_mtime, leaf.st_nlink), (1000, 2));
    assert_eq!(stat_deep(root.path(), format!("{deep}/file").as_bytes()).expect("the file").st_nlink, 2);
    // An upper layer reaches it from the root again, and spares what it made there.
    let mut upper = vec![Raw::new(b'0', format!("{deep}/new")), Raw::new(b'0', ".wh.directory")];
    upper.push(Raw::new(b'0', ".wh.elsewhere"));
    apply(root.path(), &Tar::of(&upper));
    assert!(stat_deep(root.path(), format!("{deep}/new").as_bytes()).is_some());
    assert!(stat_deep(root.path(), format!("{deep}/file").as_bytes()).is_none());
    assert_eq!(stat_deep(root.path(), deep.as_bytes()).expect("implied now").st_mtime, 0);
    assert!(stat_deep(root.path(), b"elsewhere").is_none());
    // A file in its place removes it all; so the scratch directory can go.
    apply(root.path(), &Tar::of(&[Raw::new(b'0', "directory")]));
    assert!(root.path().join("directory").is_file());
}

#[test]
fn twenty_thousand_files_as_tar_unpacks_them() {
    let dir = scratch();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    std::fs::create_dir(&ours).expect("mkdir");
    std::fs::create_dir(&theirs).expect("mkdir");
    let mut tar = Tar::default();
    for number in 0..20_000 {
        let name = format!("{}/{number}", number / 100);
        if number % 100 == 0 {
            tar.entry(&Raw { mtime: (77, 0), ..Raw::new(b'5', format!("{}/", number / 100)) }, Style::Pax);
        }
        tar.entry(&Raw::new(b'0', name).data(number.to_string()), Style::Pax);
    }
    let tar = tar.end();
    std::fs::write(dir.path().join("tar"), &tar).expect("write");
    apply(&ours, &tar);
    run(Command::new("tar").arg("-xpf").arg(dir.path().join("tar")).arg("-C").arg(&theirs));
    let (mut seen, expected) = (super::tree::read(&ours), super::tree::read(&theirs));
    // The archive says nothing about the root.
    seen.insert(Vec::new(), expected[&b""[..]].clone());
    super::tree::assert_same(&seen, &expected, || "20,000 files".to_string());
}

#[test]
fn a_sparse_terabyte() {
    const SIZE: u64 = 1 << 40;
    let mut tar = Tar::default();
    let map = format!("2\n0\n5\n{}\n3\n", SIZE - 3);
    tar.pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"huge"),
        ("GNU.sparse.realsize", SIZE.to_string().as_bytes()),
    ]);
    let mut data = map.into_bytes();
    data.resize(512, 0);
    data.extend(b"startend");
    tar.entry(&Raw::new(b'0', "GNUSparseFile.1/huge").data(data), Style::Pax);
    let root = scratch();
    let limits = Limits { max_bytes: 1 << 20, ..Limits::default() };
    let summary = unpack(&mut &tar.end()[..], root.path(), &limits, &|| false).expect("unpack");
    assert_eq!(summary.bytes, SIZE);
    let meta = root.path().join("huge").metadata().expect("stat");
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() < 100, "{} blocks", meta.blocks());
    let mut end = [0; 4];
    let file = std::fs::File::open(root.path().join("huge")).expect("open");
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut end, SIZE - 4).expect("read");
    assert_eq!(&end, b"\0end");
}
