//! Images that look wrong and are right, and images of sizes that hurt: all of them are loaded.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::guard::{Guard, MEMORY};
use crate::support::image::{Packing, TestImage, pack, tar_of};
use crate::writer::{Raw, Style, Tar, record};

fn gzip(plain: &[u8]) -> Vec<u8> {
    TestImage::new("").tar(Packing::Gzip, plain.to_vec()).layers.remove(0).blob
}

fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 1).expect("zstd")
}

/// Load an image, and look at the root of a container of it.
fn look(guard: &Guard, what: &str, image: &TestImage, look: impl FnOnce(&std::path::Path)) {
    let path = guard.input("archive.tar");
    fs::write(&path, pack(&image.layout())).expect("write");
    guard.accepts(what, &path, &[], MEMORY, |guard| {
        guard.world.ok(&["create", "--image", &image.name, "c"]);
        look(&guard.world.tree("c"));
        guard.world.ok(&["rm", "c"]);
    });
}

#[test]
fn every_way_to_end_a_layer() {
    let guard = Guard::new();
    let tar = tar_of(&[("file", &[b'x'; 3000])]);
    let (head, tail) = tar.split_at(1000);
    let open_end = &tar[..tar.len() - 1024];
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let garbage = &b"somebody's notes\n".repeat(100)[..];
    for (what, tar, blob) in [
        ("two gzip members", &tar[..], [gzip(head), gzip(tail)].concat()),
        ("an empty member between", &tar, [gzip(head), gzip(b""), gzip(tail)].concat()),
        ("padding behind gzip", &tar, [gzip(&tar), vec![0; 5000]].concat()),
        ("garbage behind gzip", &tar, [&gzip(&tar), garbage].concat()),
        ("padding and garbage behind gzip", &tar, [&gzip(&tar), &[0; 600][..], garbage].concat()),
        ("two zstd frames", &tar, [zstd(head), zstd(tail)].concat()),
        (
            "skippable zstd frames",
            &tar,
            [&skippable, &zstd(head), &skippable, &zstd(tail), &skippable].map(|f| &f[..]).concat(),
        ),
        ("padding behind zstd", &tar, [zstd(&tar), vec![0; 5000]].concat()),
        ("garbage behind zstd", &tar, [&zstd(&tar), garbage].concat()),
        ("no end", open_end, gzip(open_end)),
        ("half an end", &tar[..tar.len() - 512], gzip(&tar[..tar.len() - 512])),
        ("twenty blocks of end", &[&tar[..], &[0; 10_240]].concat(), gzip(&[&tar[..], &[0; 10_240]].concat())),
        ("garbage behind the end", &[&tar, garbage].concat(), gzip(&[&tar, garbage].concat())),
    ] {
        let mut image = TestImage::new("odd").tar(Packing::Plain, tar.to_vec());
        if blob.starts_with(&[0x1f]) {
            image = image.with_blob(0, blob);
        } else {
            image.layers[0].blob = blob;
        }
        look(&guard, what, &image, |root| {
            assert_eq!(fs::read(root.join("file")).expect("read"), [b'x'; 3000], "{what}");
        });
    }
    for (what, tar) in [("no bytes", vec![]), ("a zero block", vec![0; 512]), ("zero blocks", vec![0; 10_240])] {
        for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
            let image = TestImage::new("empty").tar(packing, tar.clone()).files(packing, &[("file", b"x")]);
            look(&guard, what, &image, |root| assert_eq!(fs::read_dir(root).expect("list").count(), 1, "{what}"));
        }
    }
}

#[test]
fn terabytes_of_holes_stay_holes() {
    const SIZE: u64 = 1 << 40;
    let mut tar = Tar::default();
    let size = SIZE.to_string();
    let last = (SIZE - 4096).to_string();
    let data = [&[b'a'; 4096][..], &[b'z'; 4096]].concat();
    let map = format!("2\n0\n4096\n{last}\n4096\n");
    for (name, records) in [
        (
            "0.0",
            vec![
                ("GNU.sparse.size", &*size),
                ("GNU.sparse.numblocks", "2"),
                ("GNU.sparse.offset", "0"),
                ("GNU.sparse.numbytes", "4096"),
                ("GNU.sparse.offset", &last),
                ("GNU.sparse.numbytes", "4096"),
            ],
        ),
        (
            "0.1",
            vec![
                ("GNU.sparse.size", &*size),
                ("GNU.sparse.map", &*format!("0,4096,{last},4096")),
                ("GNU.sparse.name", "0.1"),
            ],
        ),
        (
            "1.0",
            vec![
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", &*size),
                ("GNU.sparse.name", "1.0"),
            ],
        ),
    ] {
        let records: Vec<_> = records.iter().map(|(key, value)| (*key, value.as_bytes())).collect();
        tar.pax(&records);
        let mut stored = if name == "1.0" { map.clone().into_bytes() } else { Vec::new() };
        stored.resize(stored.len().next_multiple_of(512), 0);
        stored.extend(&data);
        tar.entry(&Raw::new(b'0', name).data(stored), Style::Pax);
    }
    let guard = Guard::new();
    let image = TestImage::new("huge").tar(Packing::Gzip, tar.end());
    look(&guard, "a terabyte", &image, |root| {
        for name in ["0.0", "0.1", "1.0"] {
            let meta = fs::metadata(root.join(name)).expect("stat");
            assert_eq!((meta.len(), meta.blocks() * 512), (SIZE, 8192), "{name}");
            assert_eq!(crate::tree::data_map(&root.join(name)), [(0, 4096), (SIZE - 4096, SIZE)], "{name}");
        }
    });
}

#[test]
fn a_hundred_and_twenty_seven_layers() {
    let guard = Guard::new();
    let image = (0..127).fold(TestImage::new("many"), |image, layer| {
        let number = layer.to_string();
        let hidden = format!(".wh.own-{}", layer - 1);
        image.files(Packing::Gzip, &[(&format!("own-{layer}"), b"x"), (&hidden, b""), ("shared", number.as_bytes())])
    });
    look(&guard, "127 layers", &image, |root| {
        assert_eq!(fs::read_to_string(root.join("shared")).expect("read"), "126");
        assert_eq!(fs::read_dir(root).expect("list").count(), 2);
    });
}

#[test]
fn twenty_thousand_files_and_a_thousand_directories() {
    let guard = Guard::new();
    let mut tar = Tar::default();
    for number in 0..20_000 {
        tar.entry(&Raw::new(b'0', format!("{}/{number}", number / 100)).data(number.to_string()), Style::Gnu);
    }
    // Five bytes of name each: deeper than the kernel's longest path.
    tar.entry(&Raw::new(b'0', format!("{}/file", ["deep"; 1000].join("/"))).data("at the bottom"), Style::Pax);
    let image = TestImage::new("many").tar(Packing::Zstd, tar.end());
    look(&guard, "20,000 files", &image, |root| {
        assert_eq!(fs::read_dir(root).expect("list").count(), 201);
        assert_eq!(fs::read(root.join("199/19999")).expect("read"), b"19999");
        let mut at = fs::File::open(root).expect("open");
        for _ in 0..1000 {
            // Not for what other tests start meanwhile: it would use the tree.
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
            at = rustix::fs::openat(&at, "deep", flags, rustix::fs::Mode::empty()).expect("one deeper").into();
        }
        let file = rustix::fs::openat(
            &at,
            "file",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        assert_eq!(
            std::io::read_to_string(fs::File::from(file.expect("the bottom"))).expect("read"),
            "at the bottom"
        );
    });
}

#[test]
fn attributes_of_other_systems_are_left_out_with_a_warning() {
    let guard = Guard::new();
    let mut records = Vec::new();
    record(&mut records, b"SCHILY.xattr.com.apple.provenance", b"\x01\0");
    record(&mut records, b"LIBARCHIVE.xattr.com.apple.quarantine", b"eA==");
    record(&mut records, b"SCHILY.xattr.user.kept", b"v");
    let mut tar = Tar::default();
    tar.block(b'x', b"records", &records);
    tar.entry(&Raw::new(b'0', "file").data("x"), Style::Pax);
    let image = TestImage::new("mac").tar(Packing::Gzip, tar.end());
    let path = guard.input("archive.tar");
    fs::write(&path, pack(&image.layout())).expect("write");
    let answer = guard.world.ask(&["load", "-q", path.to_str().expect("UTF-8")]);
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("left out 2 extended attributes that Linux has no place for"),
        "{}",
        answer.stderr
    );
    guard.world.ok(&["create", "--image", "mac", "c"]);
    let xattrs = &crate::support::tree_digest(&guard.world.tree("c"))[&b"file"[..]].xattrs;
    assert_eq!(xattrs.keys().collect::<Vec<_>>(), [&b"user.kept".to_vec()]);
}
