//! Damages of trees and recipes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::fs::{XattrFlags, setxattr};

use crate::catalogue::{Kind, Mend, clients, each, kind};
use crate::hands::*;
use crate::store::{DOCKERS, Store};
use crate::support::{QuotaSetup, arg, run};
use crate::world::Ground;

/// On any filesystem. `deep` says whether only a deep check sees that a layer was changed.
fn of_layers(deep: bool) -> Vec<Kind> {
    macro_rules! changed {
        ($name:literal, $at:literal, $how:expr) => {
            kind($name, Mend::From, |store| {
                let (diff_id, place) = store.layer($at);
                write_into(store, &place.join("fs"), $how);
                vec![("tree-changed", diff_id)]
            })
        };
    }
    let mut kinds = vec![
        changed!("a file of a layer is written to", 1, |tree| fs::write(tree.join("etc/new"), "old\n")
            .expect("write")),
        changed!("a file is added to a layer", 0, |tree| fs::write(tree.join("etc/evil"), "x").expect("write")),
        changed!("a file of a layer is removed", 1, |tree| fs::remove_file(tree.join("data")).expect("unlink")),
        changed!("a file of a layer gets another mode", 0, |tree| {
            fs::set_permissions(tree.join("etc/passwd"), fs::Permissions::from_mode(0o4755)).expect("chmod");
        }),
        changed!("a file of a layer gets an attribute", 1, |tree| {
            setxattr(tree.join("etc/new"), "user.evil", b"1", XattrFlags::empty()).expect("setxattr");
        }),
        changed!("a file of a layer is renamed", 0, |tree| {
            fs::rename(tree.join("etc/old"), tree.join("etc/older")).expect("rename");
        }),
    ];
    if deep {
        kinds = kinds.into_iter().map(Kind::deep).collect();
    }
    kinds.extend([
        kind("the tree of a layer is deleted", Mend::From, |store| {
            let (diff_id, place) = store.layer(1);
            delete_tree(store, &place.join("fs"));
            vec![("tree-missing", diff_id)]
        }),
        kind("the tree of the lowest layer is deleted", Mend::From, |store| {
            let (diff_id, place) = store.layer(0);
            delete_tree(store, &place.join("fs"));
            vec![("tree-missing", diff_id)]
        }),
        kind("the tree of a layer, and the index", Mend::From, |store| {
            let (diff_id, place) = store.layer(1);
            delete_tree(store, &place.join("fs"));
            fs::remove_file(store.world.root().join("index.db")).expect("unlink");
            vec![("tree-missing", diff_id), ("index-missing", "index.db".into())]
        }),
        kind("the place of a layer is deleted", Mend::From, |store| {
            let (diff_id, place) = store.layer(1);
            delete_place(store, &place);
            vec![("layer-missing", diff_id)]
        }),
        kind("the places of two layers", Mend::From, |store| {
            let ((one, lower), (other, upper)) = (store.layer(0), store.layer(1));
            delete_place(store, &lower);
            delete_place(store, &upper);
            vec![("layer-missing", one), ("layer-missing", other)]
        }),
        kind("the recipe of a layer is deleted", Mend::From, |store| {
            let (diff_id, place) = store.layer(1);
            fs::remove_file(place.join("recipe")).expect("unlink");
            vec![("recipe-missing", diff_id)]
        }),
        kind("the head of a recipe is overwritten", Mend::From, |store| {
            let (diff_id, place) = store.layer(0);
            overwrite(&place.join("recipe"), 8, &[0xff; 4]);
            vec![("recipe-damaged", diff_id)]
        }),
        kind("a byte of a recipe is overwritten", Mend::From, |store| {
            let (diff_id, place) = store.layer(0);
            overwrite(&place.join("recipe"), 40, &[0xff; 4]);
            vec![("recipe-damaged", diff_id)]
        })
        .deep(),
        kind(
            "something is mounted on a container's tree",
            Mend::ByHand(|store| {
                let mounted = run("findmnt", &["-rn", "-t", "tmpfs", "-o", "TARGET"]);
                let ours = mounted.lines().filter(|target| target.starts_with(arg(store.world.root())));
                ours.for_each(|target| drop(run("umount", &[target])));
            }),
            |store| {
                let root = store.world.tree("onit");
                run("mount", &["-t", "tmpfs", "none", arg(&root)]);
                vec![("tree-foreign", "onit".into())]
            },
        ),
    ]);
    kinds
}

#[test]
fn trees_of_btrfs() {
    each(&Store::on(Ground::SIMPLE), &of_layers(false));
}

#[test]
fn trees_of_btrfs_with_full_quotas() {
    each(&Store::on(Ground::Btrfs(QuotaSetup::Full)), &of_layers(false));
}

#[test]
fn trees_of_btrfs_that_compresses_and_counts_nothing() {
    each(&Store::on(Ground::Zstd), &of_layers(false));
}

#[test]
fn trees_of_xfs() {
    let mut kinds = of_layers(true);
    kinds.push(kind("the manifest of a layer's tree is gone", Mend::From, |store| {
        let (diff_id, place) = store.layer(1);
        let manifests = fs::read_dir(&place).expect("read").flatten().map(|entry| entry.path());
        let mut manifests = manifests.filter(|path| path.to_str().expect("UTF-8").contains("manifest."));
        fs::remove_file(manifests.next().expect("a manifest")).expect("unlink");
        vec![("tree-unreadable", diff_id)]
    }));
    each(&Store::on(Ground::Xfs), &kinds);
}

#[test]
fn flags_of_btrfs() {
    each(
        &Store::on(Ground::SIMPLE),
        &[
            kind("a layer takes writes", Mend::Itself, |store| {
                let (diff_id, place) = store.layer(0);
                run("btrfs", &["property", "set", arg(&place.join("fs")), "ro", "false"]);
                vec![("tree-writable", diff_id)]
            }),
            kind("a snapshot takes writes", Mend::Itself, |store| {
                run("btrfs", &["property", "set", arg(&store.world.tree("web@then")), "ro", "false"]);
                vec![("tree-writable", format!("{}/then", uuid(&store.place("web"))))]
            }),
            kind("a client's layer takes writes", Mend::Itself, |store| {
                let tree = store.key_place("docker", DOCKERS).join("fs");
                run("btrfs", &["property", "set", arg(&tree), "ro", "false"]);
                vec![("tree-writable", DOCKERS.into())]
            }),
            kind("a container refuses writes", Mend::Itself, |store| {
                run("btrfs", &["property", "set", arg(&store.world.tree("web")), "ro", "true"]);
                vec![("tree-read-only", "web".into())]
            }),
            kind("a layer is exchanged for another tree", Mend::From, |store| {
                let (diff_id, place) = store.layer(1);
                let (tree, other) = (place.join("fs"), store.world.fs.path().join("other"));
                run("btrfs", &["subvolume", "snapshot", arg(&tree), arg(&other)]);
                fs::write(other.join("etc/new"), "bad\n").expect("write");
                delete_tree(store, &tree);
                run("btrfs", &["subvolume", "snapshot", "-r", arg(&other), arg(&tree)]);
                delete_tree(store, &other);
                vec![("layer-differs", diff_id)]
            })
            .deep(),
        ],
    );
}

#[test]
fn lost_trees_of_btrfs() {
    let store = Store::on(Ground::SIMPLE);
    // What has no copy is not made up: its record goes, and all others stay.
    store.world.ok(&["create", "--image", "base", "victim"]);
    delete_tree(&store, &store.world.tree("victim"));
    assert_eq!(store.found(&[]), [("tree-missing".to_string(), "victim".to_string())]);
    let (status, report) = store.check(&["--repair"]);
    assert_eq!(status, 0, "{report:#}");
    assert!(store.world.fails(&["mount", "victim"]).contains("victim"));
    store.world.ok(&["mount", "web"]);

    // A client's tree that was written to is named, and left as it is.
    let (_, key) = clients()[0];
    let tree = store.key_place("docker", key).join("fs");
    write_into(&store, &tree, |tree| fs::write(tree.join("docker"), "not").expect("write"));
    let expected = [("tree-changed".to_string(), key.to_string())];
    assert_eq!(store.found(&[]), expected);
    let (status, report) = store.check(&["--repair", "--from", arg(&store.archive)]);
    assert_eq!((status, crate::store::found(&report)), (3, expected.to_vec()));
    assert_eq!(fs::read_to_string(tree.join("docker")).expect("read"), "not");
}
