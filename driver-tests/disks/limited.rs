//! Containers at their size limit: the limit is named as one, and what doesn't add to the container works.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::give::{ask, ok};
use crate::inventory::inventory;
use crate::support::{MB, MIB, QuotaSetup, arg, random_bytes};
use crate::world::{Ground, World};

/// What the containers may write.
const LIMIT: u64 = 20 * MB;

/// Write and sync a file of so many bytes.
fn write(path: &Path, bytes: u64) -> io::Result<()> {
    fs::write(path, random_bytes(bytes)).and_then(|()| File::open(path)?.sync_all())
}

/// Write until the limit refuses; names of files and all.
fn fill(tree: &Path) {
    let mut refused = None;
    for n in 0..100_000 {
        let size = if n < 40 { MB } else { 4096 };
        if let Err(e) = write(&tree.join(format!("fill-{n}")), size) {
            refused = Some(e);
            if n >= 40 {
                break;
            }
        }
    }
    assert_eq!(refused.expect("there is a limit").raw_os_error(), Some(libc::EDQUOT));
}

fn at_its_limit(ground: Ground) {
    let world = World::of_size(1024 * MIB, ground).with_base();
    let root = world.root();
    let small = world.files.path().join("small");
    fs::write(&small, random_bytes(MB)).expect("write");
    let limit = LIMIT.to_string();
    for name in ["web", "gone"] {
        ok(root, &["create", "--image", "base", "--size-limit", &limit, name]);
    }
    fs::write(world.tree("web").join("early"), "kept").expect("write");
    ok(root, &["snapshot", "web", "early"]);
    for name in ["web", "gone"] {
        fill(&world.tree(name));
    }

    // What adds to it says that it is the limit, and what to do.
    let before = inventory(root);
    let answer = ask(root, &["cp", arg(&small), "web:/more"]);
    assert_eq!(answer.status, Some(1), "{}", answer.stderr);
    for part in ["Disk quota exceeded", "hint: ", "size limit", "update --size-limit"] {
        assert!(answer.stderr.contains(part), "{part}: {}", answer.stderr);
    }
    assert!(!answer.stderr.contains("No space left"), "{}", answer.stderr);
    assert_eq!(inventory(root), before);

    // More room for it, and none again.
    ok(root, &["update", "--size-limit", &(3 * LIMIT).to_string(), "web"]);
    ok(root, &["cp", arg(&small), "web:/more"]);
    ok(root, &["update", "--size-limit", &limit, "web"]);
    assert_eq!(ask(root, &["cp", arg(&small), "web:/still-more"]).status, Some(1));

    // What shows it, and what makes another of it: with full quotas the limit doesn't count what several have.
    for args in [
        &["ps", "-s"][..],
        &["df", "-v"],
        &["diff", "web"],
        &["diff", "-s", "web"],
        &["inspect", "web"],
        &["export", "web", "-o", arg(&world.files.path().join("export.tar"))],
        &["cp", "web:/early", arg(&world.files.path().join("early"))],
        &["snapshot", "web", "full"],
        &["clone", "web", "clone"],
        &["commit", "web", "committed"],
        &["create", "--image", "committed", "child"],
        &["rename", "web", "www"],
        &["rename", "www", "web"],
        &["check"],
    ] {
        let answer = ask(root, args);
        assert_eq!(answer.status, Some(0), "{args:?} at the limit: {}{}", answer.stdout, answer.stderr);
    }
    assert_eq!(fs::read(world.files.path().join("early")).expect("read"), b"kept");

    ok(root, &["rollback", "--discard", "web", "early"]);
    assert_eq!(fs::read(world.tree("web").join("early")).expect("read"), b"kept");
    ok(root, &["rm", "web@full"]);
    ok(root, &["reset", "web"]);
    ok(root, &["rm", "gone", "clone", "child"]);
    ok(root, &["rmi", "committed"]);
    ok(root, &["gc"]);
    write(&world.tree("web").join("again"), LIMIT / 2).expect("what was reset has its limit to itself");
    assert_eq!(ask(root, &["check"]).status, Some(0));
}

#[test]
fn with_simple_quotas() {
    at_its_limit(Ground::SIMPLE);
}

#[test]
fn with_full_quotas() {
    at_its_limit(Ground::Btrfs(QuotaSetup::Full));
}
