//! Where a store goes and by which backend: what is asked for, and what is there.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Answer, GIB, LoopFs, MB, MIB, QuotaSetup, arg, kernel_since, reflinkd, reflinkd_command, run, scratch,
};
use crate::world::{Ground, World, bytes};

/// A filesystem that a user may have.
#[derive(Debug, Clone, Copy)]
enum Host {
    Btrfs,
    Xfs,
    XfsWithoutReflink,
    Ext4,
    Tmpfs,
}

impl Host {
    fn make(self) -> LoopFs {
        match self {
            Self::Btrfs => LoopFs::btrfs(2 * GIB, QuotaSetup::None),
            Self::Xfs => LoopFs::xfs(2 * GIB),
            Self::XfsWithoutReflink => LoopFs::xfs_without_reflink(2 * GIB),
            Self::Ext4 => LoopFs::ext4(2 * GIB),
            Self::Tmpfs => LoopFs::tmpfs(2 * GIB),
        }
    }
}

/// Backend, filesystem, and whether in a pool.
type Made = (&'static str, &'static str, bool);

const IN_PLACE_BTRFS: Made = ("btrfs", "btrfs", false);
const IN_PLACE_XFS: Made = ("reflink", "xfs", false);
const POOL_BTRFS: Made = ("btrfs", "btrfs", true);
const POOL_XFS: Made = ("reflink", "xfs", true);

fn info(root: &Path) -> Value {
    let answer = reflinkd(root, &["info", "--format", "json"]);
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    let rows: Value = serde_json::from_str(&answer.stdout).expect("JSON");
    rows[0].clone()
}

fn is(root: &Path, made: Made) {
    let info = info(root);
    let found = (info["backend"].as_str(), info["filesystem"].as_str(), info["pool"].is_object());
    assert_eq!(found, (Some(made.0), Some(made.1), made.2), "{info}");
}

fn ok(answer: &Answer) -> &str {
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    &answer.stdout
}

/// Exit code 1, one error, and a way out.
fn refused(answer: &Answer) -> &str {
    assert_eq!(answer.status, Some(1), "{}{}", answer.stdout, answer.stderr);
    assert!(answer.stderr.contains("hint: "), "{}", answer.stderr);
    &answer.stderr
}

#[test]
fn init_makes_what_is_asked_for() {
    let table: &[(Host, &[&str], Made)] = &[
        (Host::Btrfs, &[], IN_PLACE_BTRFS),
        (Host::Btrfs, &["--backend", "auto"], IN_PLACE_BTRFS),
        (Host::Btrfs, &["--backend", "btrfs"], IN_PLACE_BTRFS),
        (Host::Btrfs, &["--backend", "reflink"], ("reflink", "btrfs", false)),
        (Host::Btrfs, &["--pool-fs", "btrfs"], POOL_BTRFS),
        (Host::Btrfs, &["--pool-fs", "xfs"], POOL_XFS),
        (Host::Xfs, &[], IN_PLACE_XFS),
        (Host::Xfs, &["--backend", "reflink"], IN_PLACE_XFS),
        (Host::Xfs, &["--backend", "btrfs"], POOL_BTRFS),
        (Host::Xfs, &["--pool-fs", "xfs"], POOL_XFS),
        (Host::XfsWithoutReflink, &[], POOL_BTRFS),
        (Host::XfsWithoutReflink, &["--backend", "reflink"], POOL_XFS),
        (Host::Ext4, &[], POOL_BTRFS),
        (Host::Ext4, &["--backend", "btrfs"], POOL_BTRFS),
        (Host::Ext4, &["--backend", "reflink"], POOL_XFS),
        (Host::Ext4, &["--pool-fs", "xfs", "--backend", "auto"], POOL_XFS),
        (Host::Ext4, &["--pool-fs", "xfs", "--backend", "reflink"], POOL_XFS),
        (Host::Tmpfs, &["--pool-fs", "btrfs"], POOL_BTRFS),
    ];
    for (host, args, made) in table {
        let fs = host.make();
        let root = fs.path().join("lib/reflinkd");
        let args = [&["init"], *args].concat();
        let said = reflinkd(&root, &[&args[..], &["--pool-size", "400MB"]].concat());
        assert!(ok(&said).contains("made a store at "), "{host:?} {args:?}: {}", said.stdout);
        is(&root, *made);
        // Asked for again, it is there; asked for nothing, too.
        for again in [&args[..], &["init"]] {
            assert!(ok(&reflinkd(&root, again)).contains("is a store already"), "{host:?} {again:?}");
        }
        ok(&reflinkd(&root, &["destroy", "--yes"]));
        let left = fs::read_dir(fs.path().join("lib")).expect("read").count();
        assert_eq!(left, 0, "{host:?} {args:?} left something");
    }
}

#[test]
fn other_commands_make_a_store_in_place_or_name_init() {
    for (host, made) in [(Host::Btrfs, IN_PLACE_BTRFS), (Host::Xfs, IN_PLACE_XFS)] {
        let fs = host.make();
        let root = fs.path().join("store");
        ok(&reflinkd(&root, &["ps"]));
        is(&root, made);
    }
}

/// Whatever is asked for: the answer names the filesystem and what to do, and nothing is left.
fn refuses(host: Host, name: &str) {
    let fs = host.make();
    let root = fs.path().join("store");
    for args in [&["ps"][..], &["create", "--image", "a", "b"], &["df"], &["gc"]] {
        let answer = reflinkd(&root, args);
        let error = refused(&answer);
        for part in [&format!("it lies on {name}"), " init ", "--pool-fs xfs", "on Btrfs or XFS with --root"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
    }
    assert!(!root.exists());
    let left = fs::read_dir(fs.path()).expect("read").map(|entry| entry.expect("entry").file_name());
    assert_eq!(left.filter(|name| name != "lost+found").count(), 0, "they left nothing on {name}");
}

mod what_shares_no_blocks_is_refused {
    use super::{Host, refuses};

    #[test]
    fn ext4() {
        refuses(Host::Ext4, "ext4");
    }

    #[test]
    fn tmpfs() {
        refuses(Host::Tmpfs, "tmpfs");
    }

    #[test]
    fn xfs_without_reflink() {
        refuses(Host::XfsWithoutReflink, "xfs");
    }
}

#[test]
fn another_store_than_the_one_asked_for_is_refused() {
    let world = World::simple();
    world.ok(&["init"]);
    let xfs = World::xfs();
    xfs.ok(&["init"]);
    for (world, args, there, asked) in [
        (&world, ["--backend", "reflink"], "in place with the backend btrfs", "the backend reflink"),
        (&world, ["--pool-fs", "btrfs"], "in place with the backend btrfs", "a pool of Btrfs"),
        (&xfs, ["--backend", "btrfs"], "in place with the backend reflink", "the backend btrfs"),
        (&xfs, ["--pool-fs", "xfs"], "in place with the backend reflink", "a pool of XFS"),
    ] {
        let error = world.fails(&[&["init"], &args[..]].concat());
        let expected = format!("there is one already, {there}, and {asked} was asked for");
        assert!(error.contains("cannot make a store at ") && error.contains(&expected), "{error}");
        assert!(error.contains("hint: "), "{error}");
        assert!(!world.root().with_extension("pool").exists());
    }

    let host = LoopFs::ext4(GIB);
    let root = host.path().join("store");
    ok(&reflinkd(&root, &["init", "--pool-size", "400MB"]));
    for args in [["init", "--pool-fs", "xfs"], ["init", "--backend", "reflink"]] {
        assert!(refused(&reflinkd(&root, &args)).contains("there is one already, in a pool of Btrfs, and "));
    }
    // The same for a pool whose making was cut short before it had a store.
    run("umount", &[arg(&root)]);
    run("mount", &["-o", "loop", arg(&root.with_extension("pool")), arg(&root)]);
    fs::remove_file(root.join("store.json")).expect("unlink");
    run("umount", &[arg(&root)]);
    assert!(refused(&reflinkd(&root, &["init", "--pool-fs", "xfs"])).contains("there is one already"));
    assert!(!root.join("store.json").exists());
    ok(&reflinkd(&root, &["init", "--backend", "btrfs"]));
    is(&root, POOL_BTRFS);
    ok(&reflinkd(&root, &["destroy", "--yes"]));
}

#[test]
fn a_backend_that_cannot_be_in_such_a_pool_is_wrong_usage() {
    let host = LoopFs::ext4(GIB);
    let root = host.path().join("store");
    for (backend, pool_fs) in [("btrfs", "xfs"), ("reflink", "btrfs")] {
        let answer = reflinkd(&root, &["init", "--backend", backend, "--pool-fs", pool_fs]);
        assert_eq!(answer.status, Some(2), "{}", answer.stderr);
        assert!(
            answer.stderr.contains(&format!("the backend {backend} can't be in a pool of ")),
            "{}",
            answer.stderr
        );
        assert!(answer.stderr.contains("Usage: "), "{}", answer.stderr);
    }
    for unknown in [["init", "--backend", "zfs"], ["init", "--pool-fs", "ext4"]] {
        assert_eq!(reflinkd(&root, &unknown).status, Some(2));
    }
    assert_eq!(fs::read_dir(host.path()).expect("read").count(), 1, "only lost+found");
}

#[test]
fn a_flag_goes_over_the_environment_over_the_file() {
    let host = LoopFs::xfs(4 * GIB);
    let files = scratch("files");
    let config = files.path().join("config.toml");
    let made = |name: &str, file: &str, env: Option<(&str, &str)>, flags: &[&str]| {
        fs::write(&config, format!("pool_size = \"400MB\"\n{file}\n")).expect("write");
        let root = host.path().join(name);
        let mut command = reflinkd_command(&root, &[&["--config", arg(&config), "init"], flags].concat());
        command.env_remove("REFLINKD_BACKEND").env_remove("REFLINKD_POOL_FS").envs(env);
        let output = command.output().expect("run");
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let info = info(&root);
        ok(&reflinkd(&root, &["destroy", "--yes"]));
        (info["filesystem"].as_str().expect("text").to_string(), info["pool"].is_object())
    };
    let (btrfs, pool_xfs) = (("btrfs".to_string(), true), ("xfs".to_string(), true));
    let (env_btrfs, env_xfs) = (Some(("REFLINKD_BACKEND", "btrfs")), Some(("REFLINKD_POOL_FS", "xfs")));
    assert_eq!(made("default", "", None, &[]), ("xfs".to_string(), false));
    assert_eq!(made("file", "backend = \"btrfs\"", None, &[]), btrfs);
    assert_eq!(made("file-pool", "pool_fs = \"xfs\"", None, &[]), pool_xfs);
    assert_eq!(made("env", "pool_fs = \"xfs\"", env_btrfs, &[]), btrfs);
    assert_eq!(made("env-pool", "backend = \"btrfs\"", env_xfs, &[]), pool_xfs);
    assert_eq!(made("flag", "", env_btrfs, &["--backend", "reflink"]), ("xfs".to_string(), false));
    assert_eq!(made("flag-pool", "pool_fs = \"btrfs\"", None, &["--pool-fs", "xfs"]), pool_xfs);

    // The other commands follow the file, but what is there is used as it is.
    let asks = |text: &str, root: &Path| {
        fs::write(&config, text).expect("write");
        reflinkd(root, &["--config", arg(&config), "ps"])
    };
    let root = host.path().join("store");
    assert!(refused(&asks("pool_fs = \"xfs\"", &root)).contains("the configuration asks for a pool of XFS"));
    assert!(refused(&asks("backend = \"btrfs\"", &root)).contains("the configuration asks for the backend btrfs"));
    assert!(!root.exists());
    let contradiction = asks("backend = \"btrfs\"\npool_fs = \"xfs\"", &root);
    assert_eq!(contradiction.status, Some(1));
    assert!(contradiction.stderr.contains("the backend btrfs can't be in a pool of XFS"), "{}", contradiction.stderr);
    ok(&asks("backend = \"reflink\"", &root));
    ok(&asks("backend = \"btrfs\"", &root));
    is(&root, IN_PLACE_XFS);
}

#[test]
fn a_backend_that_this_program_lacks_is_refused() {
    let world = World::xfs().with_base();
    let path = world.root().join("store.json");
    let text = fs::read_to_string(&path).expect("read");
    fs::write(&path, text.replace("\"reflink\"", "\"zfs\"")).expect("write");
    for args in [["ps"], ["init"]] {
        let error = world.fails(&args);
        assert!(error.contains("the backend \"zfs\"") && error.contains("hint: "), "{error}");
    }
    fs::write(&path, text).expect("write");
    assert_eq!(world.rows(&["images"]).len(), 1);
}

#[test]
fn without_mkfs_xfs_a_pool_of_xfs_is_refused() {
    let host = LoopFs::ext4(GIB);
    let root = host.path().join("store");
    // In a mount namespace of its own there are no administrator's programs.
    let script = "mount -t tmpfs none /usr/sbin && exec \"$0\" --root \"$1\" init --pool-fs xfs --pool-size 400MB";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", script, env!("CARGO_BIN_EXE_reflinkd")]);
    let output = command.arg(&root).env("PATH", "/usr/bin:/bin").output().expect("unshare");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("there is no mkfs.xfs on this machine") && error.contains("xfsprogs"), "{error}");
    let left = fs::read_dir(host.path()).expect("read").map(|entry| entry.expect("entry").file_name());
    let left: Vec<_> = left.filter(|name| name != "lost+found").collect();
    assert_eq!(left, ["store.lock"]);
}

fn a_pool_is_made_grown_found_after_a_reboot_and_destroyed(ground: Ground) {
    let host = LoopFs::ext4(2048 * MIB);
    let root = host.path().join("lib/reflinkd");
    let ask = |args: &[&str]| reflinkd(&root, args);
    ok(&ask(&["init", "--pool-fs", ground.filesystem(), "--pool-size", "500MB"]));
    let made = info(&root);
    // As good as the kernel has them: simple quotas, or project quotas.
    let quotas = match ground {
        Ground::Xfs if Path::new("/proc/fs/xfs/xqm").exists() => "project",
        Ground::SIMPLE if !kernel_since(6, 7) => "none",
        _ => ground.quota_mode(),
    };
    assert_eq!(made["quotas"], quotas);
    assert_eq!(made["backend"], ground.backend());
    // The log of an XFS is there from the beginning.
    let occupied = if ground == Ground::Xfs { 75 * MB } else { 50 * MB };
    assert!(bytes(&made["pool"], "occupied") < occupied, "sparse: {made}");
    let roughly = |size: u64| {
        let total = bytes(&info(&root), "total");
        assert!(total <= size && size - total < 80 * MB, "{total} of {size}");
    };
    roughly(500 * MB);
    // Grown while in use, and never shrunk.
    assert!(ok(&ask(&["init", "--pool-size", "800MB"])).contains("has grown to 800MB"));
    roughly(800 * MB);
    for again in [&["init"][..], &["init", "--pool-size", "800MB"]] {
        assert!(ok(&ask(again)).contains("is a store already"));
    }
    assert_eq!(ask(&["init", "--pool-size", "400MB"]).status, Some(1));
    // After a reboot: nothing mounted, and the next command attaches it.
    run("umount", &[arg(&root)]);
    assert_eq!(fs::read_dir(&root).expect("read").count(), 0);
    ok(&ask(&["images"]));
    assert!(root.join("store.json").exists());

    ok(&ask(&["destroy", "--yes"]));
    assert_eq!(fs::read_dir(host.path().join("lib")).expect("read").count(), 0);
    let mounts = fs::read_to_string("/proc/mounts").expect("read");
    assert!(!mounts.contains(arg(&root)));
}

fn a_full_host_refuses_creates(ground: Ground) {
    let host = LoopFs::ext4(1024 * MIB);
    let root = host.path().join("reflinkd");
    let files = scratch("host");
    let archive = files.path().join("base.tar");
    crate::world::base_image().write_archive(&archive);
    let config = files.path().join("config.toml");
    fs::write(&config, "host_reserve = \"900MB\"\n").expect("write");
    let with = |args: &[&str]| reflinkd(&root, &[&["--config", arg(&config)], args].concat());
    ok(&reflinkd(&root, &["init", "--pool-fs", ground.filesystem(), "--pool-size", "400MB"]));
    ok(&reflinkd(&root, &["load", arg(&archive)]));
    crate::support::write_random(&host.path().join("ballast"), 100 * MB);
    for args in [&["create", "--image", "base", "c"][..], &["load", arg(&archive)]] {
        refused(&with(args));
    }
    ok(&with(&["ps"]));
    ok(&reflinkd(&root, &["create", "--image", "base", "c"]));
    ok(&with(&["rm", "c"]));
    ok(&reflinkd(&root, &["destroy", "--yes"]));
}

on_btrfs_and_xfs! {
    a_pool_is_made_grown_found_after_a_reboot_and_destroyed
    a_full_host_refuses_creates
}

#[test]
fn an_xfs_that_shut_down_is_recognised() {
    // In place, and in a pool.
    let world = World::xfs().with_base();
    let host = LoopFs::ext4(GIB);
    let pool = host.path().join("store");
    ok(&reflinkd(&pool, &["init", "--pool-fs", "xfs", "--pool-size", "400MB"]));
    for (root, mounted) in [(world.root(), world.fs.path()), (&pool, &pool)] {
        run("xfs_io", &["-x", "-c", "shutdown", arg(mounted)]);
        for args in [["info"], ["ps"]] {
            let answer = reflinkd(root, &args);
            let error = refused(&answer);
            assert!(error.contains("has shut down") && error.contains("mount"), "{error}");
        }
    }
    run("umount", &[arg(&pool)]);
    ok(&reflinkd(&pool, &["info"]));
    ok(&reflinkd(&pool, &["destroy", "--yes"]));
    world.fs.remount("rw");
    assert_eq!(world.rows(&["images"]).len(), 1);
}
