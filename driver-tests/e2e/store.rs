//! Finding, making, opening and destroying a store.

use std::fs;

use reflinkd::store::SCHEMA;

use crate::support::image::{Packing, TestImage};
use crate::support::{LoopFs, MB, MIB, QuotaSetup, reflinkd, require_root, run, scratch};
use crate::world::{World, bytes};

#[test]
fn the_first_command_makes_the_store_on_btrfs() {
    let world = World::simple();
    assert!(!world.root().exists());
    world.ok(&["ps"]);
    let shown = run("btrfs", &["subvolume", "show", world.root().to_str().expect("UTF-8")]);
    assert!(shown.contains("store"), "ROOT is a subvolume of its own");
    assert!(world.ok(&["init"]).contains("is a store already"));
    let info = &world.rows(&["info"])[0];
    assert_eq!(
        (info["quotas"].as_str(), info["backend"].as_str(), info["pool"].is_null()),
        (Some("simple"), Some("btrfs"), true)
    );
}

#[test]
fn of_first_commands_at_once_one_makes_the_store() {
    for plain_directory in [false, true] {
        let world = World::simple();
        if plain_directory {
            fs::create_dir(world.root()).expect("mkdir");
        }
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| world.ok(&["images"]));
            }
        });
        assert!(run("btrfs", &["subvolume", "show", world.root().to_str().expect("UTF-8")]).contains("store"));
        assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    }
}

#[test]
fn an_older_store_is_upgraded_by_the_first_command() {
    let world = World::simple().with_base();
    world.ok(&["create", "--image", "base", "--size-limit", "10MB", "--label", "k=v", "c"]);
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

#[test]
fn what_a_killed_first_command_left_is_gone_on_with() {
    let world = World::simple();
    world.ok(&["images"]);
    for file in ["store.json", "index.db", "index.db-journal", "index.current"] {
        let _ = fs::remove_file(world.root().join(file));
    }
    world.load(&crate::world::base_image());
    assert_eq!(world.rows(&["images"]).len(), 1);
}

#[test]
fn a_directory_with_other_things_is_left_alone() {
    let world = World::simple();
    fs::create_dir(world.root()).expect("mkdir");
    fs::write(world.root().join("precious"), "x").expect("write");
    let error = world.fails(&["ps"]);
    assert!(error.contains("not empty and not a store") && error.contains("hint: "), "{error}");
    assert_eq!(fs::read_dir(world.root()).expect("read").count(), 1);
}

fn info_of(output: &str) -> serde_json::Value {
    let rows: serde_json::Value = serde_json::from_str(output).expect("JSON");
    rows[0].clone()
}

#[test]
fn elsewhere_init_makes_a_pool_and_commands_say_so() {
    require_root();
    let host = LoopFs::ext4(2048 * MIB);
    let root = host.path().join("lib/reflinkd");
    let ask = |args: &[&str]| reflinkd(&root, args);
    let refused = ask(&["ps"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.stderr.contains("it lies on ext4") && refused.stderr.contains("init"), "{}", refused.stderr);
    assert!(!root.exists());

    let made = ask(&["init", "--pool-size", "500MB"]);
    assert_eq!(made.status, Some(0), "{}", made.stderr);
    let info: serde_json::Value = serde_json::from_str(&ask(&["info", "--format", "json"]).stdout).expect("JSON");
    assert_eq!(info[0]["quotas"], "simple");
    assert!(info[0]["pool"]["occupied"].as_u64().expect("bytes") < 50 * MB, "sparse: {info}");
    assert!(bytes(&info[0], "total").abs_diff(500 * MB) < 10 * MB, "{info}");
    // Grown while in use, and never shrunk.
    assert!(ask(&["init", "--pool-size", "800MB"]).stdout.contains("has grown to 800MB"));
    assert!(bytes(&info_of(&ask(&["info", "--format", "json"]).stdout), "total").abs_diff(800 * MB) < 10 * MB);
    for again in [&["init"][..], &["init", "--pool-size", "800MB"]] {
        assert!(ask(again).stdout.contains("is a store already"));
    }
    assert_eq!(ask(&["init", "--pool-size", "300MB"]).status, Some(1));
    // After a reboot: nothing mounted, and the next command attaches it.
    run("umount", &[root.to_str().expect("UTF-8")]);
    assert_eq!(fs::read_dir(&root).expect("read").count(), 0);
    assert_eq!(ask(&["images"]).status, Some(0));
    assert!(root.join("store.json").exists());

    let destroyed = ask(&["destroy", "--yes"]);
    assert_eq!(destroyed.status, Some(0), "{}", destroyed.stderr);
    assert_eq!(
        fs::read_dir(host.path().join("lib"))
            .expect("read")
            .map(|e| e.expect("entry").file_name())
            .collect::<Vec<_>>(),
        Vec::<std::ffi::OsString>::new()
    );
    let mounts = fs::read_to_string("/proc/mounts").expect("read");
    assert!(!mounts.contains(root.to_str().expect("UTF-8")));
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

#[test]
fn a_read_only_root_can_be_read() {
    let world = World::simple().with_base();
    world.ok(&["create", "--image", "base", "c"]);
    world.load(&TestImage::new("unused").files(Packing::Plain, &[("x", b"x")]));
    world.fs.remount("ro");
    assert_eq!(world.rows(&["ps"]).len(), 1);
    assert_eq!(world.rows(&["images"]).len(), 2);
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
    assert_eq!(world.rows(&["ps"]).len(), 1);
    world.ok(&["rm", "c"]);
}

#[test]
fn quotas_are_shown_and_switched_only_when_asked() {
    let world = World::new(QuotaSetup::None).with_base();
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

#[test]
fn destroy_takes_all_that_is_the_stores_and_nothing_else() {
    for mode in [QuotaSetup::Simple, QuotaSetup::Full, QuotaSetup::None] {
        let world = World::new(mode).with_base();
        fs::write(world.fs.path().join("mine"), "x").expect("write");
        run("btrfs", &["subvolume", "create", world.fs.path().join("own").to_str().expect("UTF-8")]);
        for name in ["a", "b"] {
            world.ok(&["create", "--image", "base", name]);
        }
        run("btrfs", &["subvolume", "create", world.tree("a").join("nested").to_str().expect("UTF-8")]);
        let refused = world.ask(&["destroy"]);
        assert_eq!(refused.status, Some(1));
        assert!(refused.stderr.contains("nobody said yes"));
        assert_eq!(world.rows(&["ps"]).len(), 2);
        world.ok(&["destroy", "--yes"]);
        assert!(!world.root().exists());
        let list = run("btrfs", &["subvolume", "list", world.fs.path().to_str().expect("UTF-8")]);
        assert_eq!(list.lines().count(), 1, "{list}");
        assert!(world.fs.path().join("mine").exists());
        // And a new one can be made there.
        world.ok(&["images"]);
    }
}

#[test]
fn a_full_host_refuses_creates() {
    require_root();
    let host = LoopFs::ext4(1024 * MIB);
    let root = host.path().join("reflinkd");
    let files = scratch("host");
    let archive = files.path().join("base.tar");
    crate::world::base_image().write_archive(&archive);
    let config = files.path().join("config.toml");
    fs::write(&config, "host_reserve = \"900MB\"\n").expect("write");
    let with = |args: &[&str]| {
        let mut all = vec!["--config", config.to_str().expect("UTF-8")];
        all.extend(args);
        reflinkd(&root, &all)
    };
    assert_eq!(reflinkd(&root, &["init", "--pool-size", "400MB"]).status, Some(0));
    assert_eq!(reflinkd(&root, &["load", archive.to_str().expect("UTF-8")]).status, Some(0));
    crate::support::write_random(&host.path().join("ballast"), 100 * MB);
    for args in [&["create", "--image", "base", "c"][..], &["load", archive.to_str().expect("UTF-8")]] {
        let refused = with(args);
        assert_eq!(refused.status, Some(1), "{args:?}");
        assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    }
    assert_eq!(with(&["ps"]).status, Some(0));
    let created = reflinkd(&root, &["create", "--image", "base", "c"]);
    assert_eq!(created.status, Some(0), "{}", created.stderr);
    assert_eq!(with(&["rm", "c"]).status, Some(0));
    assert_eq!(reflinkd(&root, &["destroy", "--yes"]).status, Some(0));
}
