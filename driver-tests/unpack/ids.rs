//! The host's ids on disk for the container's in a tar, and back: owners, ACLs and capabilities.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;
use std::time::UNIX_EPOCH;

use reflinkd::layer::pack::{Count, Item, Packed, count, pack};
use reflinkd::layer::sink::Plain;
use reflinkd::layer::{IdMaps, IdRange, Limits, Summary};
use reflinkd::{Kind, Result};

use super::cases::{dir, file, link, sym};
use super::fixture::{Btrfs, scratch};
use super::generate::{CAPABILITY, layer, tar};
use super::model::Model;
use super::random::Random;
use super::restored::{unpack, unpack_mapped};
use super::tree::{Tree, What, Xattrs, assert_same, read};
use super::writer::{Raw, Tar};

const CASES: u64 = 200;
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// As rows of container id, host id, size; what the generated layers have.
const USERS: [(u32, u32, u32); 5] = [
    (0, 100_000, 7),
    (7, 65_534, 1),
    (8, 2_000_000, 65_528),
    (3_000_000_000, 0, 1),
    (4_294_967_290, 3_000_000_000, 5),
];
const GROUPS: [(u32, u32, u32); 3] =
    [(0, 300_000, 65_536), (2_999_999_999, 1_000_000, 2), (u32::MAX - 1, u32::MAX - 1, 1)];

fn ranges(rows: &[(u32, u32, u32)]) -> Vec<IdRange> {
    rows.iter().map(|&(container, host, size)| IdRange { container, host, size }).collect()
}

fn maps() -> IdMaps {
    IdMaps::new(ranges(&USERS), ranges(&GROUPS)).expect("maps")
}

/// The same as tables say it, for those ids that the layers have.
fn host(rows: &[(u32, u32, u32)], id: u32) -> u32 {
    let (container, host, _) =
        rows.iter().rfind(|(container, ..)| *container <= id).expect("the first row begins at 0");
    host + (id - container)
}

/// An ACL that is named users and groups, and what an ACL has to have.
fn acl(users: &[u32], groups: &[u32]) -> Vec<u8> {
    let nobody = |tag, perm| [(tag, perm, u32::MAX)];
    let named = |tag: u16, ids: &[u32]| ids.iter().map(|&id| (tag, 5, id)).collect::<Vec<(u16, u16, u32)>>();
    let all = [&nobody(1, 7)[..], &named(2, users), &nobody(4, 5), &named(8, groups), &nobody(16, 5), &nobody(32, 0)];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, perm, id) in all.concat() {
        acl.extend([&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    acl
}

/// Revision 3 of the capability: it counts in the namespace of that root.
fn capability_of(root: u32) -> Vec<u8> {
    let mut capability = CAPABILITY.to_vec();
    capability[3] = 3;
    capability.extend(root.to_le_bytes());
    capability
}

/// A tree that the model has with the container's ids, as it is to be on disk. Its ACLs name user 7.
fn on_disk(mut tree: Tree) -> Tree {
    for seen in tree.values_mut() {
        seen.owner = (host(&USERS, seen.owner.0), host(&GROUPS, seen.owner.1));
        if let Some(acl) = seen.xattrs.get_mut(DEFAULT_ACL) {
            let at = acl.windows(4).position(|id| id == [7, 0, 0, 0]).expect("user 7");
            acl[at..at + 4].copy_from_slice(&host(&USERS, 7).to_le_bytes());
        }
    }
    tree
}

/// All that is in a tree, or each thing with its chance.
fn items(root: &Path, mut wanted: impl FnMut() -> bool) -> Vec<Item> {
    let mut paths: Vec<_> = read(root).into_keys().filter(|_| wanted()).collect();
    paths.sort_by_key(|path| path.split(|&b| b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>());
    paths.into_iter().map(Item::Make).collect()
}

fn packed(root: &Path, items: &[Item], ids: &IdMaps) -> Result<(Vec<u8>, Packed)> {
    let mut tar = Plain(Vec::new());
    let packed = pack(root, items, ids, u64::MAX, &mut tar, &|| false)?;
    Ok((tar.0, packed))
}

/// A root directory as the model has it.
fn fresh(root: &Path, owner: (u32, u32)) {
    fs::create_dir(root).expect("root");
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).expect("chmod");
    lchown(root, Some(owner.0), Some(owner.1)).expect("chown");
    fs::File::open(root).and_then(|root| root.set_modified(UNIX_EPOCH)).expect("set its time");
}

fn apply(entries: &[Raw], root: &Path, ids: &IdMaps) -> Result<Summary> {
    unpack_mapped(&mut &Tar::of(entries)[..], root, &Limits::default(), ids, &|| false)
}

#[test]
fn random_layers_go_in_and_out() {
    let btrfs = Btrfs::new();
    let seeds = match std::env::var("UNPACK_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..CASES).collect(),
    };
    let (maps, identity) = (maps(), IdMaps::default());
    let whole = ranges(&[(0, 0, u32::MAX)]);
    let itself = IdMaps::new(whole.clone(), whole).expect("maps");
    for seed in seeds {
        let [root, back, same] = ["root", "back", "same"].map(|what| btrfs.path().join(format!("{seed}-{what}")));
        let mut random = Random(seed);
        let mut model = Model::new();
        fresh(&root, maps.root().expect("a root"));
        fresh(&back, (0, 0));
        fresh(&same, (0, 0));
        for number in 0..1 + random.below(4) {
            let ops = layer(&mut random, &mut model);
            let tar = tar(&mut random, &ops);
            let about = || format!("UNPACK_SEED={seed} layer {number}: {ops:#?}");
            for (root, ids) in [(&root, &maps), (&same, &itself)] {
                unpack_mapped(&mut &tar[..], root, &Limits::default(), ids, &|| false)
                    .unwrap_or_else(|e| panic!("{}\n{e}", about()));
            }
            assert_same(&read(&root), &on_disk(model.tree()), about);
            assert_same(&read(&same), &model.tree(), about);
        }
        let about = || format!("UNPACK_SEED={seed} packed");
        let (tar, _) = packed(&root, &items(&root, || true), &maps).unwrap_or_else(|e| panic!("{}: {e}", about()));
        unpack(&mut &tar[..], &back, &Limits::default(), &|| false).expect("unpack");
        assert_same(&read(&back), &model.tree(), about);
        let all = items(&same, || true);
        assert!(
            packed(&same, &all, &identity).expect("pack") == (tar, packed(&same, &all, &itself).expect("pack").1)
        );

        let some = items(&root, || random.one_in(2));
        let (_, of_some) = packed(&root, &some, &maps).expect("pack");
        assert_eq!(count(&root, &some, &|| false).expect("count").file_bytes, of_some.file_bytes, "{}", about());
        for tree in [root, back, same] {
            fs::remove_dir_all(tree).expect("clean up");
        }
    }
}

#[test]
fn whatever_says_who_somebody_is_goes_in_and_out() {
    let btrfs = Btrfs::new();
    let (root, back) = (btrfs.path().join("root"), btrfs.path().join("back"));
    fresh(&root, (0, 0));
    fresh(&back, (0, 0));
    let with = |raw: Raw, xattrs: &[(&[u8], Vec<u8>)]| Raw {
        xattrs: xattrs.iter().map(|(name, value)| (name.to_vec(), value.clone())).collect(),
        ..raw
    };
    let owned = |raw: Raw, uid, gid| Raw { uid, gid, ..raw };
    let acls = |ids: [u32; 4]| {
        let names = [(ACCESS_ACL, acl(&ids[..2], &ids[2..])), (DEFAULT_ACL, acl(&ids[1..2], &ids[3..]))];
        names.map(|(name, value)| (name.to_vec(), value))
    };
    let capability = &b"security.capability"[..];
    let (shared, setuid) = (Raw { mode: 0o750, ..dir("d") }, Raw { mode: 0o4755, ..file("d/setuid") });
    let entries = [
        Raw { xattrs: BTreeMap::from(acls([1000, 7, 5, 1000])), ..owned(shared, 1000, 5) },
        owned(with(setuid, &[(capability, CAPABILITY.to_vec())]), 7, 7),
        with(file("cap-root"), &[(capability, capability_of(0))]),
        with(file("cap-1000"), &[(capability, capability_of(1000))]),
        owned(sym("s", "d"), 1000, 65_535),
        owned(Raw { rdev: (8, 1), ..Raw::new(b'3', "device") }, 1001, 0),
        owned(Raw::new(b'6', "fifo"), 0, 1001),
        owned(dir("full"), 5, 5),
        owned(file("full/lower"), 5, 5),
    ];
    apply(&entries, &root, &maps()).expect("unpack");
    // Neither ids of links nor of markers are anybody's; a directory that nothing describes any more is root's.
    let upper = [
        owned(link("hard", "d/setuid"), 4_000_000_000, 4_000_000_000),
        file("implied/dir/f"),
        file("full/new"),
        owned(Raw::new(b'0', ".wh.full"), 4_000_000_000, 0),
        owned(Raw::new(b'0', "d/.wh..wh..opq"), 4_000_000_000, 0),
        owned(link("hard-2", "hard"), 1, 1),
        owned(Raw::new(b'0', ".wh..wh.aufs"), 4_000_000_000, 0),
    ];
    apply(&upper, &root, &maps()).expect("unpack");

    let tree = read(&root);
    let seen = |name: &str| (tree[name.as_bytes()].owner, tree[name.as_bytes()].xattrs.clone());
    let none = Xattrs::new();
    let root_of = maps().root().expect("a root");
    let d = BTreeMap::from(acls([2_000_992, 65_534, 300_005, 301_000]));
    assert_eq!(seen("d"), ((2_000_992, 300_005), d));
    assert_eq!(seen("hard"), ((65_534, 300_007), [(capability.to_vec(), CAPABILITY.to_vec())].into()));
    assert_eq!(tree[&b"hard-2"[..]].mode, 0o4755);
    let capability_seen = |name| seen(name).1[capability].clone();
    assert_eq!(capability_seen("cap-root"), capability_of(100_000));
    assert_eq!(capability_seen("cap-1000"), capability_of(2_000_992));
    assert_eq!(seen("s"), ((2_000_992, 365_535), none.clone()));
    assert_eq!(seen("device"), ((2_000_993, 300_000), none.clone()));
    assert_eq!(seen("fifo"), ((100_000, 301_001), none.clone()));
    for implied in ["implied", "implied/dir", "implied/dir/f", "full", "full/new"] {
        assert_eq!(seen(implied), (root_of, none.clone()), "{implied}");
    }
    assert!(!tree.contains_key(&b"full/lower"[..]) && !tree.contains_key(&b"d/setuid"[..]));

    // Nothing says whose the root directory is: whoever makes a tree gives it to the container's root.
    let error = packed(&root, &items(&root, || true), &maps()).expect_err("the host's root has no group there");
    assert_eq!(error.to_string(), "entry \"./\": host group 0 is in no range of the id map");
    lchown(&root, Some(root_of.0), Some(root_of.1)).expect("chown");
    let (tar, of_all) = packed(&root, &items(&root, || true), &maps()).expect("pack");
    unpack(&mut &tar[..], &back, &Limits::default(), &|| false).expect("unpack");
    let tree = read(&back);
    let seen = |name: &str| (tree[name.as_bytes()].owner, tree[name.as_bytes()].xattrs.clone());
    assert_eq!(seen("d"), ((1000, 5), acls([1000, 7, 5, 1000]).into()));
    assert_eq!(seen("hard").0, (7, 7));
    assert_eq!(seen("cap-root").1[capability], CAPABILITY, "the container's root needs no naming");
    assert_eq!(seen("cap-1000").1[capability], capability_of(1000));
    assert_eq!((seen("s").0, seen("device").0, seen("fifo").0), ((1000, 65_535), (1001, 0), (0, 1001)));
    assert_eq!(count(&root, &items(&root, || true), &|| false).expect("count").file_bytes, of_all.file_bytes);
}

/// A directory with an ACL for those below it, a merge, and inodes that have their owner already.
#[test]
fn what_is_there_becomes_the_hosts() {
    let root = scratch();
    apply(&[dir("d"), file("f")], root.path(), &IdMaps::default()).expect("unpack");
    apply(&[dir("."), dir("d"), file("f")], root.path(), &maps()).expect("unpack");
    let owners: Vec<_> = read(root.path()).into_values().map(|seen| seen.owner).collect();
    assert_eq!(owners, [(100_000, 300_000); 3]);
    // This process's own ids are those of the container's user 3,000,000,000 and of no group.
    let none = IdMaps::new(ranges(&USERS), Vec::new()).expect("maps");
    apply(&[Raw { uid: 3_000_000_000, ..file("g") }], root.path(), &none).expect("unpack");
    assert_eq!(read(root.path())[&b"g"[..]].owner, (0, 0));
}

#[test]
fn ids_that_no_range_has() {
    let owned = |raw: Raw, uid, gid| Raw { uid, gid, ..raw };
    let with = |name: &[u8], value: Vec<u8>| Raw { xattrs: [(name.to_vec(), value)].into(), ..dir("d/bad") };
    let of = |who: &str| format!("{who} is in no range of the id map");
    for (raw, why) in [
        (owned(file("d/bad"), 70_000, 0), of("container user 70000")),
        (owned(dir("d/bad"), 0, 65_536), of("container group 65536")),
        (owned(sym("d/bad", "x"), 4_294_967_289, 0), of("container user 4294967289")),
        (owned(Raw::new(b'6', "d/bad"), 0, 1 << 31), of("container group 2147483648")),
        (with(ACCESS_ACL, acl(&[7, 70_000], &[])), format!("its ACL: {}", of("container user 70000"))),
        (with(DEFAULT_ACL, acl(&[], &[80_000])), format!("its ACL: {}", of("container group 80000"))),
        (
            with(b"security.capability", capability_of(99_999)),
            format!("its capabilities: {}", of("container user 99999")),
        ),
    ] {
        let root = scratch();
        // That the recipe is gone is checked in there.
        let error = apply(&[dir("d"), raw, file("after")], root.path(), &maps()).expect_err("no such id");
        assert_eq!(error.kind(), Kind::BadInput);
        assert_eq!(error.to_string(), format!("entry \"d/bad\": {why}"));
        let names: Vec<_> = read(root.path()).into_keys().collect();
        assert_eq!(names, [&b""[..], b"d"], "nothing was made of it");
    }
    let root = scratch();
    let rootless = IdMaps::new(ranges(&[(1, 1, 9)]), Vec::new()).expect("maps");
    let error = apply(&[], root.path(), &rootless).expect_err("no root");
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("container user 0 "), "{error}");

    fs::create_dir(root.path().join("d")).expect("mkdir");
    fs::write(root.path().join("d/f"), "x").expect("write");
    for path in ["", "d", "d/f"] {
        lchown(root.path().join(path), Some(100_000), Some(300_000)).expect("chown");
    }
    let all = items(root.path(), || true);
    packed(root.path(), &all, &maps()).expect("pack");
    lchown(root.path().join("d/f"), Some(1), Some(300_000)).expect("chown");
    let error = packed(root.path(), &all, &maps()).expect_err("no such id");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), format!("entry \"d/f\": {}", of("host user 1")));
    assert_eq!(count(root.path(), &all, &|| false).expect("count").file_bytes, 1, "which says nothing of owners");
}

#[test]
fn bytes_are_counted_without_reading() {
    let root = scratch();
    let path = |name: &str| root.path().join(name);
    fs::create_dir(path("d")).expect("mkdir");
    fs::write(path("d/f"), "12345").expect("write");
    fs::hard_link(path("d/f"), path("g")).expect("link");
    fs::File::create(path("sparse")).and_then(|file| file.set_len(3 << 30)).expect("lengthen");
    std::os::unix::fs::symlink("d/f", path("s")).expect("symlink");
    let make = |names: &[&str]| names.iter().map(|name| Item::Make((*name).into())).collect::<Vec<_>>();
    let counted = |names: &[&str]| count(root.path(), &make(names), &|| false).expect("count");
    let all = ["", "d", "d/f", "g", "s", "sparse"];
    assert_eq!(counted(&all), Count { file_bytes: 5 + (3 << 30), inodes: 5 }, "a file with two names is one");
    assert_eq!(packed(root.path(), &make(&all), &IdMaps::default()).expect("pack").1.file_bytes, 5 + (3 << 30));
    assert_eq!(counted(&["d/f"]), Count { file_bytes: 5, inodes: 1 });
    assert_eq!(counted(&["gone", "gone/too", "d/f/no-directory", "g"]), Count { file_bytes: 5, inodes: 1 });
    assert_eq!(count(root.path(), &[Item::Hide("g".into())], &|| false).expect("count"), Count::default());
    let error = count(root.path(), &make(&all), &|| true).expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Interrupted);
    assert_eq!(read(root.path())[&b"s"[..]].what, What::Symlink(b"d/f".to_vec()));
}
