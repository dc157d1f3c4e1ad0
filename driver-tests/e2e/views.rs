//! Read-only containers: their image's own files, on every filesystem.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::image::{Packing, TestImage};
use crate::support::{KIB, LoopFs, MB, MIB, Process, arg, reflinkd, run, scratch, tree_digest};
use crate::world::{Ground, World, base_image, bytes};

/// Bytes of a file that are in the page cache.
fn cached(path: &Path) -> u64 {
    run("fincore", &["--bytes", "--noheadings", "--output", "RES", arg(path)]).trim().parse().expect("a number")
}

fn a_read_only_container_is_its_image(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["gc"]);
    world.ok(&["create", "--image", "base", "w"]);
    let trees = world.all_trees().len();
    let id = world.ok(&["create", "--read-only", "--image", "base", "--label", "k=v", "v"]);
    assert_eq!(world.all_trees().len(), trees + usize::from(ground == Ground::Xfs), "at most its mount point");
    let (view, written) = (world.tree("v"), world.tree("w"));
    assert_eq!(tree_digest(&view), tree_digest(&written), "the same content");
    for refused in
        [fs::write(view.join("x"), "x"), fs::remove_file(view.join("etc/new")), fs::create_dir(view.join("d"))]
    {
        assert_eq!(refused.expect_err("read-only").raw_os_error(), Some(libc::EROFS));
    }
    let image = bytes(&world.rows(&["images"])[0], "size");
    let row = world.row(&["ps", "-s"], "v");
    assert_eq!((row["read_only"].as_bool(), row["id"].as_str()), (Some(true), Some(id.as_str())));
    assert_eq!((bytes(&row, "size"), bytes(&row, "apparent_size"), bytes(&row, "virtual_size")), (0, 0, image));
    assert_eq!(row["size_method"], ground.size_method());
    assert_eq!(world.row(&["ps"], "w")["read_only"], false);
    let shown: serde_json::Value = serde_json::from_str(&world.ok(&["inspect", "v"])).expect("JSON");
    assert_eq!(
        (&shown[0]["read_only"], &shown[0]["subvolumes"], &shown[0]["group"]),
        (&json!(true), &json!([]), &json!(null))
    );
    assert_eq!(shown[0]["root"], arg(&view));

    let error = world.fails(&["create", "--read-only", "--size-limit", "10MB", "--image", "base", "x"]);
    assert!(error.contains("a read-only container writes nothing that a limit could hold"), "{error}");
    let error = world.fails(&["update", "--size-limit", "10MB", "v"]);
    assert!(error.contains("cannot limit container v to 10000000 bytes: it is read-only"), "{error}");
    assert_eq!(world.ok(&["reset", "v"]), "v");
    world.ok(&["rename", "v", "u"]);
    assert!(world.fails(&["rmi", "base"]).contains("containers are based on it: w, u"));

    // As after a reboot: another mount of the filesystem, and none of the view.
    run("umount", &[arg(&view)]);
    world.fs.remount("rw");
    assert_eq!(world.rows(&["ps"]).len(), 2);
    assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    assert_eq!(fs::read_dir(&view).expect("read").count(), 0);
    assert_eq!(tree_digest(&world.tree("u")), tree_digest(&written));
    world.ok(&["rm", "u", "w"]);
    assert!(!view.exists());
    world.ok(&["rmi", "base"]);
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.all_trees().len()), (0, 0));
}

fn views_share_the_page_cache(ground: Ground) {
    let world = World::on(ground);
    let data = crate::support::random_bytes(10 * MB);
    world.load(&TestImage::new("big").files(Packing::Plain, &[("data", &data)]));
    for (name, kind) in [("a", &["--read-only"][..]), ("b", &["--read-only"]), ("w", &[])] {
        world.ok(&["create", "--image", "big", name].iter().chain(kind).copied().collect::<Vec<_>>());
    }
    let [a, b, w] = ["a", "b", "w"].map(|name| world.tree(name).join("data"));
    let inode = |path: &Path| {
        let about = fs::metadata(path).expect("stat");
        (about.dev(), about.ino())
    };
    assert_eq!(inode(&a), inode(&b));
    // From nothing in memory: nothing dirty, nothing kept.
    run("sync", &["-f", arg(world.fs.path())]);
    fs::write("/proc/sys/vm/drop_caches", "1").expect("drop the page cache");
    assert!(cached(&b) < MB, "{}", cached(&b));
    assert_eq!(fs::read(&a).expect("read").len(), data.len());
    let whole = 10 * MB / (4 * KIB) * 4 * KIB;
    assert!(cached(&b) >= whole, "what one has read is there for the other: {}", cached(&b));
    assert!(cached(&w) < MB, "and not for a clone: {}", cached(&w));
}

/// A busybox with what a runtime mounts things on.
fn busybox() -> TestImage {
    let program = fs::read("/bin/busybox").expect("Debian's busybox-static at /bin/busybox");
    let mut tar = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size as u64);
        header
    };
    for directory in ["bin/", "etc/", "proc/", "dev/", "sys/", "tmp/"] {
        let mut header = header(tar::EntryType::Directory, 0o755, 0);
        tar.append_data(&mut header, directory, &b""[..]).expect("tar");
    }
    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, program.len()), "bin/busybox", &program[..])
        .expect("tar");
    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), "bin/sh", "busybox").expect("tar");
    TestImage::new("app")
        .tar(Packing::Gzip, tar.into_inner().expect("tar"))
        .config(json!({ "Entrypoint": ["/bin/sh", "-c"], "Env": ["PATH=/bin"], "WorkingDir": "/" }))
}

fn runc_runs_a_read_only_container(ground: Ground) {
    let world = World::on(ground);
    world.load(&busybox());
    for name in ["used", "idle"] {
        world.ok(&["create", "--read-only", "--image", "app", name]);
    }
    let bundle = |name: &str, script: &str| {
        let directory = world.files.path().join(name);
        world.ok(&["bundle", "used", arg(&directory), "--", script]);
        directory
    };
    let id = format!("reflinkd-view-{}-{}", ground.filesystem(), std::process::id());
    let writes = bundle("writes", "echo read; busybox touch /new 2>&1; busybox touch /etc/new 2>&1; busybox ls /");
    let said = run("runc", &["run", "-b", arg(&writes), &id]);
    assert!(said.starts_with("read\n") && said.matches("Read-only file system").count() == 2, "{said}");
    assert!(!said.lines().any(|line| line == "new"), "{said}");
    let spec: serde_json::Value =
        serde_json::from_slice(&fs::read(writes.join("config.json")).expect("read")).expect("JSON");
    assert_eq!(spec["root"], json!({ "path": world.tree("used"), "readonly": true }));

    // While it runs it is not removed, and another view of the same files is.
    let ready = world.files.path().join("said");
    let sleeps = bundle("sleeps", "echo ready; exec busybox sleep 300");
    let stdout = Stdio::from(File::create(&ready).expect("create"));
    let _runc = Process::spawn(
        Command::new("runc").args(["run", "-b", arg(&sleeps), &id]).stdin(Stdio::null()).stdout(stdout),
    );
    let begun = Instant::now();
    while fs::read(&ready).expect("read").is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it doesn't start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let refused = world.fails(&["rm", "used"]);
    let removed = world.ask(&["rm", "idle"]);
    run("runc", &["delete", "--force", &id]);
    assert!(refused.contains("cannot remove container used: process"), "{refused}");
    assert_eq!(removed.status, Some(0), "{}", removed.stderr);
    world.ok(&["rm", "used"]);
    assert_eq!(world.places(), 1);
}

on_btrfs_and_xfs! {
    a_read_only_container_is_its_image
    views_share_the_page_cache
    runc_runs_a_read_only_container
}

#[test]
fn a_pool_is_taken_down_with_its_views() {
    let host = LoopFs::ext4(2048 * MIB);
    let files = scratch("views");
    let archive = files.path().join("base.tar");
    base_image().write_archive(&archive);
    for filesystem in ["btrfs", "xfs"] {
        let root = host.path().join(filesystem);
        let ok = |args: &[&str]| {
            let answer = reflinkd(&root, args);
            assert_eq!(answer.status, Some(0), "{filesystem} {args:?}: {}", answer.stderr);
            answer.stdout.trim_end().to_string()
        };
        ok(&["init", "--pool-fs", filesystem, "--pool-size", "400MB"]);
        ok(&["load", "-q", arg(&archive)]);
        for name in ["a", "b"] {
            ok(&["create", "--read-only", "--image", "base", name]);
        }
        let view = ok(&["mount", "b"]);
        let user = Process::spawn(Command::new("sleep").arg("300").current_dir(&view));
        let refused = reflinkd(&root, &["destroy", "--yes"]);
        assert_eq!(refused.status, Some(1));
        assert!(refused.stderr.contains("container b: process"), "{}", refused.stderr);
        drop(user);
        assert!(Path::new(&view).join("etc/new").exists(), "refused, it left everything as it was");
        ok(&["destroy", "--yes"]);
        assert!(!root.exists() && !root.with_extension("pool").exists());
        assert!(!fs::read_to_string("/proc/mounts").expect("read").contains(arg(&root)));
    }
}
