//! What a container has changed, as Docker prints it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::support::random_bytes;
use crate::world::{Ground, World, bytes};

fn letters_are_dockers(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let before = (world.places(), world.all_trees().len());
    assert_eq!(world.ok(&["diff", "c"]), "");
    assert_eq!(world.rows(&["diff", "c"]), Vec::<serde_json::Value>::new());
    let root = world.tree("c");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").expect("write");
    fs::remove_file(root.join("etc/new")).expect("rm");
    fs::create_dir_all(root.join("data/deep")).expect("mkdir");
    fs::write(root.join("data/deep/a\nb"), "x").expect("write");
    fs::write(root.join("data").join(OsStr::from_bytes(b"\xff")), "x").expect("write");
    symlink("deep", root.join("data/link")).expect("symlink");
    // A name more of what the image has: no change of the other name, though a layer would have to hold both.
    fs::hard_link(root.join("bin/sh"), root.join("data/sh")).expect("link");
    assert_eq!(
        world.ok(&["diff", "c"]).lines().collect::<Vec<_>>(),
        [
            "A /data",
            "A /data/deep",
            r"A /data/deep/a\nb",
            "A /data/link",
            "A /data/sh",
            r"A /data/\xff",
            "C /etc",
            "D /etc/new",
            "C /etc/passwd",
        ]
    );
    let rows = world.rows(&["diff", "c"]);
    assert_eq!(rows.len(), 9);
    assert_eq!(rows[2], json!({ "change": "added", "path": "/data/deep/a\nb", "kind": "file" }));
    assert_eq!(rows[3], json!({ "change": "added", "path": "/data/link", "kind": "symlink" }));
    let odd = json!({ "change": "added", "path": "/data/\u{fffd}", "path_hex": "646174612fff", "kind": "file" });
    assert_eq!(rows[5], odd);
    assert_eq!(rows[6], json!({ "change": "changed", "path": "/etc", "kind": "directory" }));
    assert_eq!(rows[7], json!({ "change": "deleted", "path": "/etc/new", "kind": "file" }));
    assert_eq!((world.places(), world.all_trees().len()), before, "nothing is left of it");
    // What is put back is no change.
    world.ok(&["reset", "c"]);
    assert_eq!(world.ok(&["diff", "c"]), "");
    world.ok(&["create", "--read-only", "--image", "base", "v"]);
    assert_eq!(world.ok(&["diff", "v"]), "");
    let error = world.fails(&["diff", "nobody"]);
    assert!(error.contains("cannot compare container nobody with its image"), "{error}");
}

fn sizes_show_what_fills_it(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let root = world.tree("c");
    for (name, length) in [("logs/big", 3_000_000), ("logs/small", 100_000), ("other", 1_000_000)] {
        let path = root.join(name);
        fs::create_dir_all(path.parent().expect("in the tree")).expect("mkdir");
        fs::write(path, random_bytes(length)).expect("write");
    }
    fs::remove_file(root.join("etc/new")).expect("rm");
    let rows = world.rows(&["diff", "-s", "c"]);
    let paths: Vec<&str> = rows.iter().map(|row| row["path"].as_str().expect("text")).collect();
    assert_eq!(paths, ["/logs", "/logs/big", "/other", "/logs/small", "/etc", "/etc/new"]);
    let whole = |length: u64| length.next_multiple_of(4096);
    let sizes: Vec<u64> = rows.iter().map(|row| bytes(row, "size")).collect();
    let (big, small, other) = (whole(3_000_000), whole(100_000), whole(1_000_000));
    assert_eq!(sizes, [big + small, big, other, small, 0, 0]);
    let table = world.ok(&["diff", "--size", "c"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["SIZE", "PATH"]);
    assert_eq!(lines[1].last(), Some(&"/"), "{table}");
    assert!(lines[2].ends_with(&["A", "/logs"]) && lines[7].ends_with(&["D", "/etc/new"]), "{table}");
    assert_eq!(lines.len(), 8);
}

on_btrfs_and_xfs! {
    letters_are_dockers
    sizes_show_what_fills_it
}
