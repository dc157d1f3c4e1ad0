//! A manifest that is damaged or missing is an error that names it, never a wrong number; and it never keeps a tree
//! from being removed. What else is known from manifests.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use reflinkd::backend::reflink::Reflink;
use reflinkd::backend::{Access, Backend, GroupId, Tree, Want};
use reflinkd::{Error, Kind};

use crate::fixture::{World, entries};
use crate::support::{arg, run, write_random};

fn manifest(tree: &Tree) -> PathBuf {
    tree.place().join(format!("manifest.{}", fs::metadata(tree.root()).expect("stat").ino()))
}

#[test]
fn a_damaged_manifest_is_named() {
    let world = World::xfs();
    let image =
        world.image("image", |root| (0..100).for_each(|n| write_random(&root.join(format!("file-{n}")), 3000)));
    world.reclaim();
    let (web, twin) = (world.container(&image, "web"), world.tree("twin"));
    let path = manifest(&web);
    let whole = fs::read(&path).expect("read");
    let named = |error: Error| {
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert!(error.to_string().contains(path.to_str().expect("UTF-8")), "{error}");
    };
    let want = Want { sync: false, apparent: true };
    let measure = || world.backend.measure(&[&web], want).map(drop);
    // All need the head, sizes the whole.
    let damages = [
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("its head is damaged", Some([&whole[..20], &[whole[20] ^ 1], &whole[21..]].concat())),
        ("of another format", Some([&whole[..8], &[9], &whole[9..]].concat())),
    ];
    for (how, damaged) in damages {
        match damaged {
            Some(bytes) => fs::write(&path, bytes).expect("write"),
            None => fs::remove_file(&path).expect("remove"),
        }
        named(measure().expect_err(how));
        named(world.backend.overhead(&[&web]).expect_err(how));
        named(world.backend.is_read_only(&web).expect_err(how));
        named(world.backend.settle(web.place()).expect_err(how));
        named(world.backend.clone_tree(&web, &twin, Access::Writable, None).expect_err(how));
        assert!(world.backend.exists(&web).expect("the tree is there all the same"));
        let highest = world.backend.highest_group().expect("nobody is kept from opening the store");
        assert_eq!(highest, image.group());
    }
    let at = whole.len() - 20;
    fs::write(&path, [&whole[..at], &[whole[at] ^ 1], &whole[at + 1..]].concat()).expect("write");
    named(measure().expect_err("its names are damaged"));
    assert_eq!(world.backend.settle(web.place()).expect("its head isn't"), web.group());
    assert_eq!(entries(twin.place()).len(), 0);

    world.backend.destroy(&web).expect("destroy");
    assert_eq!(entries(web.place()).len(), 0);
    assert_eq!(world.leftovers().len(), 1);
    assert_eq!(world.reclaim(), 1);
    assert_eq!(world.leftovers(), []);
}

#[test]
fn the_highest_group_is_of_any_tree_of_the_store() {
    let world = World::xfs();
    assert_eq!(world.backend.highest_group().expect("highest group"), None);
    let image = world.image("image", |root| fs::create_dir(root.join("dir")).expect("mkdir"));
    let web = world.container(&image, "web");
    // What looks like a manifest inside of a tree is its users'.
    let fake = Tree::new(world.fs.path().join("snapshots/fake"), Some(GroupId(4_000_000_000)));
    fs::create_dir(fake.place()).expect("mkdir");
    world.backend.create(&fake, None).expect("create");
    for to in [web.root().join("manifest.7"), web.root().join("dir/manifest.7")] {
        fs::copy(manifest(&fake), to).expect("copy");
    }
    let highest = world.backend.highest_group().expect("highest group");
    assert_eq!(highest, fake.group());
    world.backend.destroy(&fake).expect("destroy");
    assert_eq!(world.backend.highest_group().expect("highest group"), fake.group(), "its number is in use still");
    world.reclaim();
    assert_eq!(world.reopened().highest_group().expect("highest group"), web.group());
}

#[test]
fn an_instance_is_one_mount() {
    for world in [World::xfs(), World::btrfs()] {
        let first = world.backend.instance().expect("instance");
        assert_eq!(world.reopened().instance().expect("instance"), first);
        // Another mount point of the same mounted filesystem.
        let other = world.fs.path().join("other");
        fs::create_dir(&other).expect("mkdir");
        run("mount", &["--bind", arg(world.fs.path()), arg(&other)]);
        let bound = Reflink::open(&other, 1).and_then(|backend| backend.instance());
        run("umount", &[arg(&other)]);
        assert_eq!(bound.expect("instance"), first);
        let world = world.remounted();
        assert_ne!(world.backend.instance().expect("instance"), first);
    }
}
