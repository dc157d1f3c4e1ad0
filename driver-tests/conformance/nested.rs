//! Subvolumes that somebody makes inside a tree. Where trees are plain directories, on Btrfs, these are directories too;
//! elsewhere there are none.

use std::fs;
use std::path::{Path, PathBuf};

use reflinkd::Kind;
use reflinkd::backend::{Access, Tree};

use crate::fixture::Fixture;
use crate::support::digest::{assert_same, tree_digest};
use crate::support::{MB, arg, run, write_random};

/// As a process in the container makes it.
pub(crate) fn make_subvolume(path: &Path) {
    run("btrfs", &["subvolume", "create", arg(path)]);
}

/// `dir/outer` and in it `below/inner`, `alike`; 2, 3 and 1 MB.
fn make_nested(root: &Path) -> Vec<PathBuf> {
    fs::create_dir(root.join("dir")).expect("mkdir");
    make_subvolume(&root.join("dir/outer"));
    fs::create_dir(root.join("dir/outer/below")).expect("mkdir");
    make_subvolume(&root.join("dir/outer/below/inner"));
    make_subvolume(&root.join("alike"));
    write_random(&root.join("dir/outer/file"), 2 * MB);
    write_random(&root.join("dir/outer/below/inner/file"), 3 * MB);
    write_random(&root.join("alike/file"), MB);
    ["dir/outer", "dir/outer/below/inner", "alike"].map(PathBuf::from).to_vec()
}

fn listed(f: &Fixture, tree: &Tree) -> Vec<PathBuf> {
    f.backend.nested(tree).expect("nested").into_iter().map(|nested| nested.path).collect()
}

pub(crate) fn a_plain_tree_has_none(f: &Fixture) {
    let image = f.image("image", |root| fs::create_dir_all(root.join("a/b/c")).expect("mkdir"));
    let web = f.container(&image, "web");
    for tree in [&image, &web] {
        assert_eq!(f.backend.nested(tree).expect("nested"), []);
    }
    let gone = f.tree("gone");
    f.refused(Kind::NotFound, gone.place(), || f.backend.nested(&gone).map(drop));
}

pub(crate) fn nested_subvolumes_are_listed_and_charged(f: &Fixture) {
    let web = f.created("web");
    if !f.setup.on_btrfs() {
        return assert_eq!(f.backend.nested(&web).expect("nested"), []);
    }
    let made = make_nested(&web.root());
    let found = listed(f, &web);
    if f.setup.is_btrfs() {
        let (mut sorted_found, mut sorted_made) = (found.clone(), made);
        sorted_found.sort();
        sorted_made.sort();
        assert_eq!(sorted_found, sorted_made);
        let place = |path: &str| found.iter().position(|p| p == Path::new(path));
        assert!(place("dir/outer") < place("dir/outer/below/inner"), "parents come before their children: {found:?}");
    } else {
        assert_eq!(found, [""; 0].map(PathBuf::from), "they are directories like others");
    }
    write_random(&web.root().join("own"), 4 * MB);
    let size = f.sizes(&[&web])[0];
    let (least, most) = (10 * MB, 10 * MB + 4 * 4096 + f.setup.overhead());
    assert!((least..=most).contains(&size.charged), "charged {}, not {least}..={most}", size.charged);
    assert_eq!(size.apparent, Some(10 * MB));
}

pub(crate) fn nested_subvolumes_go_with_their_tree(f: &Fixture) {
    let image = f.image("image", |root| fs::write(root.join("file"), "image").expect("write"));
    let (web, reset) = (f.container(&image, "web"), f.container(&image, "reset"));
    if f.setup.on_btrfs() {
        for tree in [&web, &reset] {
            make_nested(&tree.root());
            // What a container can do to stand in the way: a read-only one, and one nobody may unlink.
            let (outer, frozen) = (tree.root().join("dir/outer"), tree.root().join("frozen"));
            run("btrfs", &["subvolume", "snapshot", "-r", arg(&outer), arg(&frozen)]);
            run("chattr", &["+i", arg(&outer.join("below/inner"))]);
            run("chattr", &["+i", arg(&outer)]);
            run("chattr", &["+i", arg(&tree.root())]);
        }
    }
    let fresh = Tree::new(reset.place(), Some(f.group()));
    f.backend.replace(&image, &fresh, None).expect("replace a tree with subvolumes inside");
    assert_eq!(fs::read_dir(fresh.root()).expect("read").count(), 1);
    f.backend.destroy(&web).expect("destroy a tree with subvolumes inside");
    assert!(!f.backend.exists(&web).expect("exists"));
    fs::remove_dir(web.place()).expect("nothing is left in the place");
    let live = f.reclaim(&[&image, &fresh]);
    assert_eq!(f.backend.leftovers(&live).expect("leftovers"), []);
    if f.setup.on_btrfs() {
        let left = run("btrfs", &["subvolume", "list", "-o", arg(f.fs().path())]);
        assert!(!left.contains("outer") && !left.contains("inner") && !left.contains("alike"), "{left}");
    }
}

pub(crate) fn a_tree_with_nested_subvolumes_is_cloned_whole_or_not(f: &Fixture) {
    let (web, twin) = (f.created("web"), f.tree("twin"));
    if !f.setup.is_btrfs() {
        if f.setup.on_btrfs() {
            make_nested(&web.root());
        }
        f.backend.clone_tree(&web, &twin, Access::Writable, None).expect("there is nothing to refuse");
        return assert_same("what is in them", &tree_digest(&web.root()), &tree_digest(&twin.root()));
    }
    let victim = f.created("victim");
    fs::write(victim.root().join("own"), "own").expect("write");
    make_nested(&web.root());
    for access in [Access::Writable, Access::ReadOnly] {
        let clone = || f.backend.clone_tree(&web, &twin, access, None);
        let error = f.refused(Kind::Unsupported, twin.place(), clone);
        assert!(error.to_string().contains("dir/outer"), "it names what is in the way: {error}");
    }
    let fresh = Tree::new(victim.place(), Some(f.group()));
    f.refused(Kind::Unsupported, victim.place(), || f.backend.replace(&web, &fresh, None));
    assert_eq!(fs::read_to_string(victim.root().join("own")).expect("read"), "own");
}
