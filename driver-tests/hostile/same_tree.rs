//! One image, everywhere the same tree: on Btrfs subvolumes, on reflinks on XFS, on reflinks on Btrfs. And one tree,
//! everywhere the same tar.

use std::collections::BTreeMap;
use std::path::Path;

use crate::generate::{self, CAPABILITY};
use crate::model::Model;
use crate::random::Random;
use crate::support::image::{Packing, TestImage};
use crate::support::{EntryFacts, QuotaSetup, arg, tree_digest};
use crate::tree::data_map;
use crate::world::{Ground, World};
use crate::writer::{Raw, Style, Tar};

/// POSIX ACL, version 2 (linux/posix_acl_xattr.h): owner rwx, user 7 r--, group r-x, mask r-x, others ---.
fn acl() -> Vec<u8> {
    let entries = [(1_u16, 7_u16, u32::MAX), (2, 4, 7), (4, 5, u32::MAX), (16, 5, u32::MAX), (32, 0, u32::MAX)];
    let entry = |(tag, permissions, id): (u16, u16, u32)| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    };
    [vec![2, 0, 0, 0], entries.map(entry).concat()].concat()
}

fn file(name: impl AsRef<[u8]>) -> Raw {
    Raw { mtime: (1_700_000_000, 987_654_321), ..Raw::new(b'0', name.as_ref()).data(name) }
}

fn with(raw: Raw, xattrs: &[(&str, &[u8])]) -> Raw {
    Raw { xattrs: xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect(), ..raw }
}

/// A bit of everything that is accepted.
fn base() -> Vec<u8> {
    let acl = acl();
    let dir = |name: &str| Raw { mtime: (1_600_000_000, 1), ..Raw::new(b'5', name) };
    let link = |name: &str, target: &str| Raw::new(b'1', name).link(target);
    let sym = |name: &str, target: &str| Raw { uid: 3, mtime: (-5, 5), ..Raw::new(b'2', name).link(target) };
    let device = |kind, name: &str, rdev| Raw { rdev, mode: 0o622, mtime: (9, 9), ..Raw::new(kind, name) };
    let mut entries = vec![
        Raw { mode: 0o1755, uid: 5, ..dir("./") },
        with(dir("acl"), &[("system.posix_acl_default", &acl), ("system.posix_acl_access", &acl)]),
        file("acl/inherits"),
        with(file("acl/own"), &[("system.posix_acl_access", &acl)]),
        Raw { mode: 0o2770, ..dir("acl/below") },
        device(b'6', "acl/fifo", (0, 0)),
        with(Raw { mode: 0o4755, uid: 1, ..file("tool") }, &[("security.capability", &CAPABILITY)]),
        link("tool-2", "tool"),
        Raw {
            uid: 3_000_000_000,
            gid: u32::MAX - 1,
            mode: 0o7777,
            mtime: (-2_000_000_000, 999_999_999),
            ..file("far")
        },
        Raw { mtime: (1 << 33, 1), ..file("late") },
        with(file("attributes"), &[("user.a", b""), ("user.b", b"\0=\n\xff"), ("trusted.t", &[b't'; 3000])]),
        file(b"\xff\xfe=\n\t\\\""),
        file([b'n'; 255]),
        Raw::new(b'0', "empty"),
        Raw { kind: b'7', ..file("contiguous") },
        with(sym("symlink", &"t".repeat(1000)), &[("trusted.s", b"v")]),
        link("symlink-2", "symlink"),
        device(b'3', "null", (1, 3)),
        link("null-2", "null"),
        with(device(b'4', "disk", (511, 0x3_ffff)), &[("trusted.d", b"v")]),
        device(b'6', "fifo", (0, 0)),
        link("fifo-2", "fifo"),
        file(format!("{}/bottom", ["deep"; 300].join("/"))),
        dir("hidden"),
        file("hidden/below"),
        file("opaque/lower"),
        file("becomes-a-directory"),
        file("becomes-a-file/below"),
    ];
    entries.extend((0..300).map(|n| file(format!("many/{n}"))));
    let mut tar = Tar::default();
    for (number, entry) in entries.iter().enumerate() {
        tar.entry(entry, if number % 2 == 0 { Style::Pax } else { Style::Gnu });
    }
    sparse(&mut tar);
    tar.end()
}

/// A file of 1 TiB whose parts begin and end inside of blocks.
fn sparse(tar: &mut Tar) {
    let parts: [(u64, usize); 3] = [(0, 5), (1 << 20, 70_000), ((1 << 40) - 9, 9)];
    let map: String = parts.iter().map(|(offset, length)| format!("{offset}\n{length}\n")).collect();
    let mut stored = format!("{}\n{map}", parts.len()).into_bytes();
    stored.resize(stored.len().next_multiple_of(512), 0);
    stored.extend(vec![b's'; parts.iter().map(|(_, length)| length).sum()]);
    let size = (1_u64 << 40).to_string();
    tar.pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())]);
    tar.entry(&Raw { mtime: (77, 0), ..Raw::new(b'0', "sparse").data(stored) }, Style::Pax);
}

/// What a layer above changes.
fn upper() -> Vec<u8> {
    let marker = |name: &str| Raw::new(b'0', name);
    Tar::of(&[
        // Its ACLs go, those of what is in it stay.
        Raw { mtime: (5, 5), mode: 0o711, ..Raw::new(b'5', "acl") },
        marker(".wh.hidden"),
        file("hidden/new"),
        file("opaque/new"),
        marker("opaque/.wh..wh..opq"),
        marker(".wh.not-there"),
        marker(".wh.many"),
        file("many/7"),
        Raw::new(b'5', "becomes-a-directory"),
        file("becomes-a-directory/below"),
        file("becomes-a-file"),
        Raw::new(b'1', "tool-3").link("tool-2"),
        Raw::new(b'1', "from-below").link("symlink"),
        with(file("attributes"), &[("user.c", b"v")]),
        Raw::new(b'1', "sparse-2").link("sparse"),
    ])
}

/// Everything above, and generated layers on top of each other below a directory of their own.
fn nasty() -> TestImage {
    let mut image = TestImage::new("nasty").tar(Packing::Gzip, base()).tar(Packing::Zstd, upper());
    let mut random = Random(7);
    let mut model = Model::new();
    for _ in 0..12 {
        let ops = generate::layer(&mut random, &mut model);
        image = image.tar(Packing::Plain, generate::tar(&mut random, &ops));
    }
    image
}

/// All that can be seen of a tree but what one filesystem alone has.
fn seen(root: &Path) -> BTreeMap<Vec<u8>, EntryFacts> {
    let mut tree = tree_digest(root);
    for facts in tree.values_mut() {
        // XFS lists each ACL a second time.
        facts.xattrs.retain(|name, _| !name.starts_with(b"trusted.SGI_ACL_"));
        facts.flags = 0;
    }
    tree
}

#[test]
fn on_every_backend() {
    let image = nasty();
    let mut known = None;
    for (ground, backend) in
        [(Ground::SIMPLE, "btrfs"), (Ground::Btrfs(QuotaSetup::None), "reflink"), (Ground::Xfs, "reflink")]
    {
        let world = World::on(ground);
        world.ok(&["init", "--backend", backend]);
        assert!(world.ok(&["info"]).contains(backend), "{ground:?}");
        world.load(&image);
        world.ok(&["create", "--image", "nasty", "c"]);
        let what = format!("{backend} on {}", ground.filesystem());
        let root = world.tree("c");
        let (tree, holes) = (seen(&root), data_map(&root.join("sparse")));
        assert_eq!(holes, [(0, 4096), (1 << 20, (1 << 20) + 73_728), ((1 << 40) - 4096, 1 << 40)], "{what}");
        assert!(tree.len() > 100, "{what}: {}", tree.len());
        let exported = world.files.path().join("c.tar");
        world.ok(&["export", "c", "-o", arg(&exported)]);
        let tar = std::fs::read(&exported).expect("read");
        let (first, expected, expected_tar) = known.get_or_insert_with(|| (what.clone(), tree.clone(), tar.clone()));
        crate::support::digest::assert_same(&format!("{first} and {what}"), expected, &tree);
        assert!(*expected_tar == tar, "{first} and {what}: exports of the same tree");
        world.ok(&["import", arg(&exported), "again"]);
        world.ok(&["create", "--image", "again", "d"]);
        let again = world.tree("d");
        crate::support::digest::assert_same(&format!("{what}, there and back"), &seen(&again), expected);
        assert_eq!(data_map(&again.join("sparse"))[1..2], [(1 << 20, (1 << 20) + 131_072)], "{what}: grains");
    }
}
