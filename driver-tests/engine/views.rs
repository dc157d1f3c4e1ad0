//! Read-only containers: views of their image's own files.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reflinkd::Kind;
use reflinkd::backend::Want;
use reflinkd::engine::bundle::BundleOptions;
use reflinkd::engine::container::CreateContainer;
use reflinkd::store::{Content, New, NewGroup, Owner, Record};
use reflinkd::sys::{bind, mount};

use crate::fixture::{World, kind, wanted};
use crate::support::Process;

fn viewer(name: &str) -> CreateContainer {
    CreateContainer { read_only: true, ..wanted(name) }
}

fn view(world: &World, name: &str) -> Record {
    world.double().create_container(viewer(name)).expect("create").record
}

/// Where its root is, without a mount being made there.
fn root(world: &World, record: &Record) -> PathBuf {
    world.root().join(format!("snapshots/{}/fs", record.uuid))
}

fn layer(world: &World) -> PathBuf {
    let top = world.engine().find_image("base").expect("find").top.expect("a layer");
    world.root().join(format!("snapshots/{top}/fs"))
}

fn inode(path: &Path) -> (u64, u64) {
    let about = fs::metadata(path).expect("stat");
    (about.dev(), about.ino())
}

fn is_mounted(path: &Path) -> bool {
    mount::table("self").expect("readable").iter().any(|entry| entry.target == path)
}

#[test]
fn a_view_has_its_images_own_files_and_refuses_writes() {
    let world = World::with_base();
    let clones = world.controls().clones.load(std::sync::atomic::Ordering::SeqCst);
    let record = view(&world, "v");
    let engine = world.double();
    assert_eq!(world.controls().clones.load(std::sync::atomic::Ordering::SeqCst), clones, "nothing is cloned");
    assert_eq!((record.group, record.container().map(|c| c.read_only)), (None, Some(true)));
    let root = engine.container_root("v").expect("root");
    assert_eq!(root, self::root(&world, &record));
    // The same inodes: so the page cache, which is by inode, has one copy for all views.
    for path in ["", "etc", "etc/passwd"] {
        assert_eq!(inode(&root.join(path)), inode(&layer(&world).join(path)), "{path}");
    }
    let refused = [
        fs::write(root.join("new"), "x"),
        fs::write(root.join("etc/passwd"), "x"),
        fs::remove_file(root.join("etc/new")),
        fs::create_dir(root.join("d")),
        fs::set_permissions(root.join("etc"), std::os::unix::fs::PermissionsExt::from_mode(0o777)),
    ];
    for refused in refused {
        assert_eq!(refused.expect_err("read-only").raw_os_error(), Some(libc::EROFS));
    }
    let sized = engine.sizes(vec![record.clone()], Want { sync: true, apparent: true }).expect("sizes");
    let image = engine.images().expect("images")[0].size;
    assert_eq!((sized[0].1.size, sized[0].1.apparent_size, sized[0].1.virtual_size), (0, Some(0), image));
    // Among others, each has its own.
    engine.create_container(wanted("w")).expect("create");
    fs::write(engine.container_root("w").expect("root").join("x"), vec![1; 8192]).expect("write");
    let sizes = |engine: &reflinkd::engine::Engine| {
        let sized = engine.sizes(engine.containers().expect("list"), Want { sync: true, apparent: false });
        sized.expect("sizes").iter().map(|(_, sizes)| sizes.size).collect::<Vec<_>>()
    };
    assert_eq!(sizes(&engine), [0, 8192]);
    assert!(engine.nested(&record).expect("nested").is_empty());
    let usage = engine.usage(true).expect("usage");
    assert_eq!(
        (usage.containers.len(), usage.metadata),
        (2, 3 * crate::double::OVERHEAD + world.recipes()),
        "it has no tree"
    );
}

#[test]
fn what_makes_no_sense_for_a_view_is_refused_and_reset_has_nothing_to_do() {
    let world = World::with_base();
    let places = world.places();
    let limited = CreateContainer { size_limit: Some(1_000_000), ..viewer("v") };
    let error = world.double().create_container(limited).expect_err("refused");
    assert!(
        error.kind() == Kind::Invalid && error.to_string().contains("read-only container writes nothing"),
        "{error}"
    );
    assert_eq!(world.places(), places);
    let record = view(&world, "v");
    let engine = world.double();
    for limit in [Some(1_000_000), None] {
        let error = engine.limit_container("v", limit).expect_err("refused");
        assert!(error.kind() == Kind::Unsupported && error.to_string().contains("it is read-only"), "{error}");
    }
    let sleeper = Process::spawn(Command::new("sleep").arg("300").current_dir(root(&world, &record)));
    engine.reset_container("v", false).expect("it is as it was made, used or not");
    drop(sleeper);
    engine.rename_container("v", "w").expect("rename");
    assert_eq!(engine.container_root("w").expect("root"), root(&world, &record));
}

#[test]
fn the_layer_stays_while_there_are_views() {
    let world = World::with_base();
    let record = view(&world, "v");
    let engine = world.double();
    assert_eq!(kind(engine.remove_image("base", false)), Kind::InUse);
    engine.remove_image("base", true).expect("forced: it loses its name");
    assert!(engine.collect_garbage(false).expect("gc").garbage.is_empty());
    assert!(root(&world, &record).join("etc/new").exists());
    engine.remove_container("v", false).expect("rm");
    let id = engine.images().expect("images")[0].image.id.clone();
    engine.remove_image(&id, false).expect("rmi");
    assert_eq!(world.places(), 0);
}

#[test]
fn a_view_is_mounted_again_where_the_mount_is_missing() {
    let world = World::with_base();
    let record = view(&world, "v");
    let root = root(&world, &record);
    // As after a reboot: the record and an empty directory.
    assert!(bind::detach(&root).expect("unmount"));
    assert_eq!(fs::read_dir(&root).expect("read").count(), 0);
    world.lose_index();
    assert_eq!(world.names(), ["v"]);
    assert!(world.double().collect_garbage(false).expect("gc").garbage.is_empty());
    // Of several at once that miss it, one mounts it.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| world.double().container_root("v").expect("root"));
        }
    });
    assert_eq!(inode(&root), inode(&layer(&world)));
    assert!(bind::detach(&root).expect("unmount"));
    assert!(!is_mounted(&root), "it was mounted once");
    let bundle = world.root().with_file_name("bundle");
    world
        .double()
        .bundle("v", &bundle, &BundleOptions { command: vec!["/bin/sh".into()], ..Default::default() })
        .expect("bundle");
    assert!(is_mounted(&root));
    let spec = fs::read_to_string(bundle.join("config.json")).expect("read");
    let spec: serde_json::Value = serde_json::from_str(&spec).expect("JSON");
    assert_eq!((spec["root"]["readonly"].as_bool(), spec["root"]["path"].as_str()), (Some(true), root.to_str()));
    // What somebody else mounted there is not taken for it.
    assert!(bind::detach(&root).expect("unmount"));
    bind::mount_read_only(&world.root().join("images"), &root).expect("mount");
    assert_eq!(kind(world.double().container_root("v")), Kind::InUse);
    world.double().remove_container("v", true).expect("rm");
    assert!(!is_mounted(&root));
}

/// A process that says so when it is where the test wants it, and then waits.
fn waiting(command: &mut Command) -> Process {
    let mut process = Process::spawn(command.stdout(Stdio::piped()));
    let mut ready = [0; 6];
    process.child().stdout.as_mut().expect("piped").read_exact(&mut ready).expect("ready");
    process
}

/// In a mount namespace of its own, where `script` sets it up.
fn elsewhere(propagation: &str, script: &str) -> Process {
    let script = format!("set -e; {script}; echo ready; exec sleep 300");
    waiting(Command::new("unshare").args(["--mount", "--propagation", propagation, "sh", "-c", &script]))
}

#[test]
fn a_view_is_not_removed_while_used_and_one_views_users_are_not_anothers() {
    let world = World::with_base();
    let root = root(&world, &view(&world, "used"));
    let engine = world.double();
    // Whoever uses one view keeps only that one.
    let refused = |how: &str| {
        let error = engine.remove_container("used", false).expect_err(how);
        assert!(error.kind() == Kind::InUse && error.to_string().contains(how), "{how}: {error}");
        view(&world, "idle");
        engine.remove_container("idle", false).unwrap_or_else(|e| panic!("{how}: {e}"));
    };
    {
        let _user = Process::spawn(Command::new("sleep").arg("300").current_dir(root.join("etc")));
        refused("has its working directory there");
    }
    {
        let open = File::open(root.join("etc/passwd")).expect("open");
        let _user = Process::spawn(Command::new("sleep").arg("300").stdin(Stdio::from(open)));
        refused("has a file open there");
    }
    let bind = format!("mount --bind {0} /mnt", root.display());
    {
        let _user = elsewhere("private", &format!("cd {}", root.display()));
        refused("has its working directory there");
    }
    {
        // As a runtime does: the copy is in the view's peer group.
        let _user = elsewhere("slave", &bind);
        refused("has it mounted in its mount namespace");
    }
    // A namespace that has the view because everything was there when it was made is no user.
    let _bystander = elsewhere("private", "true");
    engine.remove_container("used", false).expect("rm");
    assert!(!root.exists());
}

#[test]
fn a_copy_of_which_nobody_can_say_whose_it_is_keeps_the_last_view() {
    let world = World::with_base();
    let root = root(&world, &view(&world, "one"));
    view(&world, "two");
    let engine = world.double();
    let _user = elsewhere("private", &format!("mount --bind {0} /mnt; umount --lazy {0}", root.display()));
    engine.remove_container("one", false).expect("it may be of two");
    let error = engine.remove_container("two", false).expect_err("it is of nothing else");
    assert!(error.to_string().contains("has it mounted in its mount namespace"), "{error}");
    assert!(layer(&world).join("etc/new").exists());
    engine.remove_container("two", true).expect("forced");
}

#[test]
fn what_is_mounted_in_a_view_is_named_and_goes_with_force() {
    let world = World::with_base();
    let root = root(&world, &view(&world, "v"));
    let inner = root.join("etc");
    bind::mount_read_only(&world.root().join("images"), &inner).expect("mount");
    let error = world.double().remove_container("v", false).expect_err("mounted in");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(inner.to_str().expect("UTF-8")) && error.hint().is_some(), "{error}");
    assert_eq!(kind(world.double().destroy(false)), Kind::InUse);
    world.double().remove_container("v", true).expect("forced");
    assert!(!is_mounted(&inner) && !root.exists());
    assert!(layer(&world).join("etc/new").exists() && world.root().join("images").exists());
}

#[test]
fn what_was_written_where_a_view_belongs_is_named_and_goes_with_force() {
    let world = World::with_base();
    let root = root(&world, &view(&world, "v"));
    assert!(bind::detach(&root).expect("unmount"));
    fs::create_dir(root.join("d")).expect("mkdir");
    fs::write(root.join("d/mine"), "x").expect("write");
    let error = world.double().remove_container("v", false).expect_err("refused");
    assert!(error.kind() == Kind::InUse && error.to_string().contains("somebody wrote"), "{error}");
    assert_eq!(fs::read(root.join("d/mine")).expect("read"), b"x");
    world.double().remove_container("v", true).expect("rm");
    assert_eq!((world.places(), root.exists()), (2, false));
    assert_eq!(fs::read(layer(&world).join("etc/new")).expect("read"), b"new\n");
}

#[test]
fn removing_a_view_takes_it_away_in_every_namespace() {
    let world = World::with_base();
    let root = root(&world, &view(&world, "v"));
    let other = elsewhere("private", "true");
    let seen = || mount::table(&other.id().to_string()).expect("readable").iter().any(|entry| entry.target == root);
    assert!(seen());
    world.double().remove_container("v", false).expect("rm");
    assert!(!seen() && !root.exists());
}

/// What a create begins with.
fn begun(world: &World, name: &str) -> New {
    let Content::Container(mut container) = view(world, "model").content else { panic!("a container") };
    world.engine().remove_container("model", false).expect("rm");
    container.name = name.into();
    let parent = world.engine().find_image("base").expect("find").top;
    New { owner: Owner::cli(), parent, group: NewGroup::None, content: Content::Container(container) }
}

/// Remove a container, once the other tests' children have become programs: until then they have what is open here, too.
fn remove_when_left(world: &World, name: &str) {
    let attempt = || world.double().remove_container(name, false);
    let used = |done: &reflinkd::Result<_>| done.as_ref().is_err_and(|e: &reflinkd::Error| e.kind() == Kind::InUse);
    let mut done = attempt();
    for _ in 0..200 {
        if !used(&done) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        done = attempt();
    }
    done.expect("rm");
}

#[test]
fn a_view_that_was_half_made_is_whole_or_was_never() {
    for (power_cut, step) in [false, true].into_iter().flat_map(|cut| (0..3).map(move |step| (cut, step))) {
        let world = World::with_base();
        let new = begun(&world, "v");
        let store = world.store();
        let draft = store.begin(new).expect("begin");
        let root = draft.place().join("fs");
        if step > 0 {
            fs::create_dir(&root).expect("mkdir");
            store.confirm(&draft).expect("confirm");
        }
        if step > 1 {
            bind::mount_read_only(&layer(&world), &root).expect("mount");
        }
        drop((draft, store));
        if power_cut {
            // Mounts don't survive one.
            bind::detach(&root).expect("unmount");
            world.lose_index();
        }
        let whole = power_cut && step > 0;
        assert_eq!(world.names().len(), usize::from(whole), "{power_cut} {step}");
        let named = world.double().collect_garbage(true).expect("gc").garbage;
        assert_eq!(named.iter().map(|g| g.kind).collect::<Vec<_>>(), if whole { vec![] } else { vec!["tree"] });
        if whole {
            let root = world.double().container_root("v").expect("root");
            assert!(root.join("etc/new").exists());
            remove_when_left(&world, "v");
        } else {
            world.double().create_container(wanted("v")).expect("cleared, and the name is free");
            remove_when_left(&world, "v");
        }
        assert!(!is_mounted(&root) && !root.exists());
        assert_eq!(world.places(), 2);
        assert!(layer(&world).join("etc/new").exists());
    }
}

#[test]
fn a_removal_of_a_view_that_died_is_finished() {
    for (power_cut, unmounted) in [(false, false), (false, true), (true, true)] {
        let world = World::with_base();
        let record = view(&world, "v");
        let root = root(&world, &record);
        let store = world.store();
        let held = store.begin_removal(record.uuid).expect("hold");
        if unmounted {
            bind::detach(&root).expect("unmount");
            fs::remove_dir(&root).expect("rmdir");
        }
        drop((held, store));
        if power_cut {
            world.lose_index();
        }
        assert!(world.names().is_empty());
        let garbage = world.double().collect_garbage(false).expect("gc").garbage;
        assert_eq!(garbage.iter().map(|g| g.kind).collect::<Vec<_>>(), ["tree"]);
        assert_eq!((world.places(), is_mounted(&root)), (2, false));
    }
}

#[test]
fn a_stray_place_with_a_mount_costs_the_layer_nothing() {
    let world = World::with_base();
    let place = world.root().join("snapshots/00000000-0000-4000-8000-000000000000");
    fs::create_dir_all(place.join("fs")).expect("mkdir");
    // Twice, as no lock keeps damage from it; and writable, so that nothing but we keep its files.
    for _ in 0..2 {
        rustix::mount::mount_bind(layer(&world), place.join("fs")).expect("mount");
    }
    for dry_run in [true, false] {
        let collected = world.double().collect_garbage(dry_run).expect("gc");
        assert_eq!((collected.garbage, collected.unknown.len(), is_mounted(&place.join("fs"))), (vec![], 1, true));
    }
    for _ in 0..2 {
        bind::detach(&place.join("fs")).expect("unmount");
    }
    assert_eq!(fs::read(layer(&world).join("etc/new")).expect("read"), b"new\n");
}

#[test]
fn destroy_takes_views_along_unless_they_are_used() {
    for force in [false, true] {
        let world = World::with_base();
        let roots = ["a", "b"].map(|name| root(&world, &view(&world, name)));
        let user = Process::spawn(Command::new("sleep").arg("300").current_dir(roots[1].join("etc")));
        let error = world.double().destroy(false).expect_err("used");
        assert!(error.to_string().contains("container b: process"), "{error}");
        assert!(roots.iter().all(|root| is_mounted(root)));
        if !force {
            drop(user);
        }
        world.double().destroy(force).expect("destroy");
        assert!(!world.root().exists() && !roots.iter().any(|root| is_mounted(root)));
    }
}
