//! Finding, making, opening and destroying a store.

use std::fs;

use reflinkd::store::SCHEMA;

use crate::support::image::{Packing, TestImage};
use crate::support::{MB, QuotaSetup, arg, reflinkd, run};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    the_first_command_makes_the_store
    of_first_commands_at_once_one_makes_the_store
    an_older_store_is_upgraded_by_the_first_command
    what_a_killed_first_command_left_is_gone_on_with
    a_directory_with_other_things_is_left_alone
    a_read_only_root_can_be_read
    destroy_takes_what_was_written_where_a_view_belongs
}
on_every_ground! {
    destroy_takes_all_that_is_the_stores_and_nothing_else
}

fn the_first_command_makes_the_store(ground: Ground) {
    let world = World::on(ground);
    assert!(!world.root().exists());
    world.ok(&["ps"]);
    world.check_root();
    assert!(world.ok(&["init"]).contains("is a store already"));
    let info = &world.rows(&["info"])[0];
    assert_eq!(info["backend"], ground.backend());
    assert_eq!(info["filesystem"], ground.filesystem());
    assert_eq!(info["quotas"], ground.quota_mode());
    assert!(info["pool"].is_null());
}

fn of_first_commands_at_once_one_makes_the_store(ground: Ground) {
    for plain_directory in [false, true] {
        let world = World::on(ground);
        if plain_directory {
            fs::create_dir(world.root()).expect("mkdir");
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| world.ok(&["images"]));
            }
        });
        world.check_root();
        assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    }
}

fn an_older_store_is_upgraded_by_the_first_command(ground: Ground) {
    let world = World::on(ground).with_base();
    let limit = ground.limit(&["--size-limit", "10MB"]);
    world.ok(&[&["create", "--image", "base", "--label", "k=v", "c"], limit].concat());
    let before = world.row(&["ps"], "c");
    let path = world.root().join("store.json");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replacen(&format!("\"schema\": {SCHEMA}"), "\"schema\": 1", 1)).expect("write");
    world.fs.remount("rw");
    assert_eq!(world.row(&["ps"], "c"), before);
    assert_eq!(fs::read_to_string(&path).expect("read"), text);
    assert!(world.root().join("backup-schema-1/records.json").exists());
    world.ok(&["destroy", "--yes"]);
    assert!(!world.root().exists());
}

fn what_a_killed_first_command_left_is_gone_on_with(ground: Ground) {
    let world = World::on(ground);
    world.ok(&["images"]);
    for file in ["store.json", "index.db", "index.db-journal", "index.current"] {
        let _ = fs::remove_file(world.root().join(file));
    }
    world.load(&crate::world::base_image());
    assert_eq!(world.rows(&["images"]).len(), 1);
}

fn a_directory_with_other_things_is_left_alone(ground: Ground) {
    let world = World::on(ground);
    fs::create_dir(world.root()).expect("mkdir");
    fs::write(world.root().join("precious"), "x").expect("write");
    let error = world.fails(&["ps"]);
    assert!(error.contains("not empty and not a store") && error.contains("hint: "), "{error}");
    assert_eq!(fs::read_dir(world.root()).expect("read").count(), 1);
}

#[test]
fn another_schema_is_refused() {
    let world = World::simple().with_base();
    let path = world.root().join("store.json");
    let text = fs::read_to_string(&path).expect("read");
    let mut store: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    store["schema"] = 999.into();
    let newer = store.to_string();
    assert_ne!(text, newer);
    fs::write(&path, newer).expect("write");
    let error = world.fails(&["ps"]);
    assert!(error.contains("has schema 999") && error.contains("hint: "), "{error}");
    fs::write(&path, "{").expect("write");
    assert!(world.fails(&["ps"]).contains("store.json is damaged"));
    fs::write(&path, text).expect("write");
    assert_eq!(world.rows(&["images"]).len(), 1);
}

fn a_read_only_root_can_be_read(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    world.ok(&["create", "--read-only", "--image", "base", "v"]);
    let view = world.tree("v");
    run("umount", &[arg(&view)]);
    world.load(&TestImage::new("unused").files(Packing::Plain, &[("x", b"x")]));
    // What was made in passing while loading.
    world.ok(&["gc"]);
    world.fs.remount("ro");
    assert_eq!(world.rows(&["ps"]).len(), 2);
    assert_eq!(world.rows(&["images"]).len(), 2);
    assert_eq!(world.ok(&["mount", "v"]), arg(&view));
    assert!(view.join("etc/passwd").exists());
    run("umount", &[arg(&view)]);
    assert_eq!(world.ok(&["gc", "--dry-run"]), "nothing to remove");
    assert_eq!(world.rows(&["info"])[0]["read_only"], true);
    for args in [
        &["create", "--image", "base", "d"][..],
        &["rm", "c"],
        &["rmi", "unused"],
        &["tag", "base", "other"],
        &["rename", "c", "d"],
        &["reset", "c"],
    ] {
        let error = world.fails(args);
        assert!(error.contains("Read-only file system"), "{args:?}: {error}");
    }
    world.fs.remount("rw");
    assert_eq!(world.rows(&["ps"]).len(), 2);
    world.ok(&["rm", "c", "v"]);
}

#[test]
fn quotas_that_go_by_mounting_are_not_switched() {
    let world = World::xfs();
    assert_eq!(world.rows(&["quota", "status"])[0]["mode"], "none");
    for how in ["--simple", "--full"] {
        let error = world.fails(&["quota", "enable", how]);
        assert!(error.contains("hint: ") && error.contains("prjquota"), "{error}");
        assert!(
            !error.contains("warning: ") && !error.contains("said yes"),
            "nothing is asked or warned of: {error}"
        );
    }
    assert!(world.ok(&["quota", "disable"]).contains("unchanged: none"));
}

#[test]
fn quotas_are_shown_and_switched_only_when_asked() {
    let world = World::on(Ground::Btrfs(QuotaSetup::None)).with_base();
    assert_eq!(world.rows(&["quota", "status"])[0]["mode"], "none");
    let refused = world.ask(&["quota", "enable", "--simple"]);
    assert_eq!(refused.status, Some(1));
    assert!(
        refused.stderr.contains("concerns the whole filesystem") && refused.stderr.contains("nobody said yes"),
        "{}",
        refused.stderr
    );
    assert_eq!(world.rows(&["quota", "status"])[0]["mode"], "none");
    world.ok(&["create", "--image", "base", "before"]);
    assert!(world.ok(&["quota", "enable", "--simple", "--yes"]).ends_with("mode: simple"));
    world.ok(&["create", "--image", "base", "--size-limit", "10MB", "after"]);
    crate::support::write_random(&world.tree("before").join("x"), 2 * MB);
    crate::support::write_random(&world.tree("after").join("x"), 2 * MB);
    for name in ["before", "after"] {
        let size = bytes(&world.row(&["ps", "-s"], name), "size");
        assert!((2 * MB..3 * MB).contains(&size), "{name}: {size}");
    }
    world.ok(&["quota", "disable", "--yes"]);
    assert_eq!(world.row(&["ps", "-s"], "after")["size_method"], "extents");
    world.ok(&["quota", "enable", "--full", "--yes"]);
    assert_eq!(world.rows(&["quota", "status"])[0]["mode"], "full");
    assert_eq!(world.ask(&["quota", "enable"]).status, Some(2));
}

fn destroy_takes_all_that_is_the_stores_and_nothing_else(ground: Ground) {
    let world = World::on(ground).with_base();
    fs::write(world.fs.path().join("mine"), "x").expect("write");
    world.make_tree(&world.fs.path().join("own"));
    for name in ["a", "b", "c"] {
        world.ok(&["create", "--image", "base", name]);
    }
    world.make_tree(&world.tree("a").join("nested"));
    // Its remains may still be there.
    world.ok(&["rm", "c"]);
    let refused = world.ask(&["destroy"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("nobody said yes"));
    assert_eq!(world.rows(&["ps"]).len(), 2);
    world.ok(&["destroy", "--yes"]);
    assert!(!world.root().exists());
    assert_eq!((world.all_trees(), world.remains()), (Vec::new(), Vec::new()));
    let mut left: Vec<_> =
        fs::read_dir(world.fs.path()).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
    left.sort();
    assert_eq!(left, ["mine", "own"]);
    // And a new one can be made there; what somebody put into it stays.
    world.ok(&["images"]);
    fs::write(world.root().join("foreign"), "x").expect("write");
    world.ok(&["destroy", "--yes"]);
    let left = fs::read_dir(world.root()).expect("read").map(|entry| entry.expect("entry").file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["foreign"]);
}

fn destroy_takes_what_was_written_where_a_view_belongs(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--read-only", "--image", "base", "v"]);
    let root = world.tree("v");
    run("umount", &[arg(&root)]);
    fs::create_dir(root.join("d")).expect("mkdir");
    fs::write(root.join("d/mine"), "x").expect("write");
    assert!(world.fails(&["destroy", "--yes"]).contains("somebody wrote"));
    assert!(root.join("d/mine").exists());
    world.ok(&["destroy", "--yes", "--force"]);
    assert!(!world.root().exists());
}

#[test]
fn what_a_linked_root_leads_to_is_emptied_and_stays() {
    let world = World::xfs();
    fs::create_dir(world.root()).expect("mkdir");
    let link = world.files.path().join("link");
    std::os::unix::fs::symlink(world.root(), &link).expect("symlink");
    for verb in [&["ps"][..], &["destroy", "--yes"]] {
        let answer = reflinkd(&link, verb);
        assert_eq!(answer.status, Some(0), "{answer:?}");
    }
    assert_eq!(fs::read_dir(world.root()).expect("read").count(), 0);
}
