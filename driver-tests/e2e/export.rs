//! A container's root filesystem as a tar, and back.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, XattrFlags, lsetxattr, mknodat};

use crate::support::digest::assert_same;
use crate::support::image::{Packing, TestImage};
use crate::support::{
    LoopFs, MB, MIB, Process, QuotaSetup, arg, fill, random_bytes, reflinkd_command, run, tree_digest,
};
use crate::world::{Ground, World};

/// A container `c` with something of everything.
fn nasty(ground: Ground) -> World {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let root = world.tree("c");
    fs::remove_file(root.join("etc/new")).expect("rm");
    fs::create_dir(root.join("data")).expect("mkdir");
    fs::write(root.join("data/file"), random_bytes(700_000)).expect("write");
    fs::hard_link(root.join("data/file"), root.join("also")).expect("link");
    fs::hard_link(root.join("bin/sh"), root.join("data/sh")).expect("link");
    symlink("/data/file", root.join("link")).expect("symlink");
    fs::set_permissions(root.join("data/file"), PermissionsExt::from_mode(0o4711)).expect("chmod");
    chown(root.join("data"), Some(3_000_000_000), Some(7)).expect("chown");
    lsetxattr(root.join("link"), "trusted.x", b"\0\n=", XattrFlags::CREATE).expect("setxattr");
    lsetxattr(root.join("data"), "user.y", b"y", XattrFlags::CREATE).expect("setxattr");
    let device = rustix::fs::makedev(1, 3);
    mknodat(CWD, root.join("null"), FileType::CharacterDevice, 0o666.into(), device).expect("mknod");
    mknodat(CWD, root.join("fifo"), FileType::Fifo, 0o600.into(), 0).expect("mkfifo");
    let sparse = File::create(root.join("sparse")).expect("create");
    sparse.set_len(5 << 30).expect("lengthen");
    sparse.write_all_at(b"data", 3 << 30).expect("write");
    world
}

fn is_the_tree_and_import_takes_it(ground: Ground) {
    let world = nasty(ground);
    let root = world.tree("c");
    mknodat(CWD, root.join("data/socket"), FileType::Socket, 0o600.into(), 0).expect("mknod");
    let before = (world.places(), world.all_trees().len());
    let tar = world.files.path().join("c.tar");
    let answer = world.ask(&["export", "c", "-o", arg(&tar)]);
    assert_eq!((answer.status, answer.stdout.as_str()), (Some(0), ""), "{}", answer.stderr);
    assert!(answer.stderr.contains("warning: a socket was left out"), "{}", answer.stderr);
    assert_eq!((world.places(), world.all_trees().len()), before, "nothing is left of it");
    fs::remove_file(root.join("data/socket")).expect("rm");

    let listed = run("tar", &["-tf", arg(&tar)]);
    let found = run("find", &[arg(&root), "-printf", "%P%y\\n"]);
    let mut expected: Vec<String> = found
        .lines()
        .map(|line| match line.split_at(line.len() - 1) {
            ("", _) => "./".to_string(),
            (path, "d") => format!("{path}/"),
            (path, _) => path.to_string(),
        })
        .collect();
    let mut names: Vec<&str> = listed.lines().collect();
    expected.sort();
    names.sort_unstable();
    assert_eq!(names, expected);
    assert!(tar.metadata().expect("stat").len() < 2 * MB, "GiBs of holes take nothing");

    // The socket has changed the time of its directory, and nothing else.
    world.ok(&["export", "c", "-o", arg(&tar)]);
    let piped = reflinkd_command(world.root(), &["export", "c"]).output().expect("run");
    assert!(piped.status.success() && piped.stderr.is_empty());
    assert!(piped.stdout == fs::read(&tar).expect("read"), "the same bytes each time, wherever to");

    world.ok(&["import", arg(&tar), "copy"]);
    world.ok(&["create", "--image", "copy", "d"]);
    assert_same("imported", &tree_digest(&world.tree("d")), &tree_digest(&root));
    let again = world.files.path().join("d.tar");
    world.ok(&["export", "d", "-o", arg(&again)]);
    assert!(fs::read(&again).expect("read") == fs::read(&tar).expect("read"), "and its export is the same");
}

fn a_read_only_container_exports_its_image(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "w"]);
    world.ok(&["create", "--image", "base", "--read-only", "v"]);
    let export = |name: &str| reflinkd_command(world.root(), &["export", name]).output().expect("run").stdout;
    let of_view = export("v");
    assert!(of_view.len() > 1024 && of_view == export("w"));
    // A file stays what it is when it is written to through a link, and so does what is no file.
    let (file, link) = (world.files.path().join("file"), world.files.path().join("link"));
    fs::write(&file, "old").expect("write");
    symlink(&file, &link).expect("symlink");
    world.ok(&["export", "v", "-o", arg(&link)]);
    assert!(link.is_symlink() && fs::read(&file).expect("read") == of_view);
    world.ok(&["export", "v", "-o", "/dev/null"]);
    assert!(fs::metadata("/dev/null").expect("stat").file_type().is_char_device());
}

/// What is read while a process makes a name in one directory and then in another, and makes and removes files.
fn of_a_tree_that_is_written_to(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let root = world.tree("c");
    for directory in ["a-first", "z-second"] {
        fs::create_dir(root.join(directory)).expect("mkdir");
    }
    for number in 0..200 {
        fs::write(root.join(format!("m{number}")), random_bytes(10_000)).expect("write");
    }
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0.. {
                for directory in ["a-first", "z-second"] {
                    symlink("x", root.join(directory).join(round.to_string())).expect("symlink");
                }
                let [come, go] = [round, round + 100].map(|round| root.join(format!("m{}", round % 200)));
                let _ = fs::remove_file(&go);
                fs::write(&come, round.to_string()).expect("write");
                rounds.store(round + 1, Ordering::Relaxed);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..5 {
                let seen = rounds.load(Ordering::Relaxed) + 10;
                while rounds.load(Ordering::Relaxed) < seen {
                    std::thread::yield_now();
                }
                let tar = world.files.path().join("c.tar");
                world.ok(&["export", "c", "-o", arg(&tar)]);
                let listed = run("tar", &["-tf", arg(&tar)]);
                let made = |directory: &str| -> BTreeSet<u64> {
                    let names = listed.lines().filter_map(|name| name.strip_prefix(directory));
                    names.filter(|name| !name.is_empty()).map(|name| name.parse().expect("a number")).collect()
                };
                let (first, second) = (made("a-first/"), made("z-second/"));
                for found in [&first, &second] {
                    assert!((0..seen).all(|round| found.contains(&round)), "what was there before is in it");
                }
                if ground.filesystem() == "btrfs" {
                    let (first, second) = (first.len() as u64, second.len() as u64);
                    assert!(first == second || first == second + 1, "of one moment: {first} {second}");
                }
            }
        }));
        stop.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert_eq!(world.places(), world.trees(), "nothing is left of it");
}

fn a_failed_export_leaves_nothing(ground: Ground) {
    let world = World::on(ground);
    world.load(&TestImage::new("big").files(Packing::Plain, &[("data", &random_bytes(5 * MB))]));
    world.ok(&["create", "--image", "big", "c"]);
    let before = (world.places(), world.all_trees().len());
    let small = LoopFs::tmpfs(2 * MIB);
    let target = small.path().join("c.tar");
    let in_small = || fs::read_dir(small.path()).expect("list").count();
    let error = world.fails(&["export", "c", "-o", arg(&target)]);
    assert!(error.contains("cannot export container c") && error.contains("No space left"), "{error}");
    assert_eq!(in_small(), 0);
    fs::write(&target, "what was there").expect("write");
    world.fails(&["export", "c", "-o", arg(&target)]);
    assert_eq!((in_small(), fs::read_to_string(&target).expect("read").as_str()), (1, "what was there"));
    let error = world.fails(&["export", "c", "-o", arg(&small.path().join("not/there"))]);
    assert!(error.contains("cannot write") && error.contains("not/there"), "{error}");
    world.fails(&["export", "c", "-o", arg(small.path())]);
    world.fails(&["export", "c", "-o", "/dev/full"]);
    let error = world.fails(&["export", "nobody"]);
    assert!(error.contains("cannot export container nobody"), "{error}");

    // A terminal gets no tar.
    let export = format!("{} --root {} export c", env!("CARGO_BIN_EXE_reflinkd"), arg(world.root()));
    let shown = Command::new("script").args(["-qec", &export, "/dev/null"]).stdin(Stdio::null()).output();
    let shown = shown.expect("script(1)");
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(!shown.status.success() && text.contains("standard output is a terminal"), "{text}");

    // A reader that goes away has had enough; a signal is obeyed.
    let (mut closed, _) = begun(&world);
    drop(closed.child().stdout.take());
    let mut said = String::new();
    closed.child().stderr.take().expect("piped").read_to_string(&mut said).expect("read");
    assert_eq!((closed.child().wait().expect("wait").code(), said.as_str()), (Some(0), ""));
    let (mut stopped, mut rest) = begun(&world);
    run("kill", &["-INT", &stopped.id().to_string()]);
    std::io::copy(&mut rest, &mut std::io::sink()).expect("read");
    assert_eq!(stopped.child().wait().expect("wait").code(), Some(130));
    assert_eq!((world.places(), world.all_trees().len()), before);
}

/// An export that has begun, and can't go on unless what is given back is read.
fn begun(world: &World) -> (Process, impl Read + use<>) {
    let mut command = reflinkd_command(world.root(), &["export", "c"]);
    let mut export = Process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    let stdout = export.child().stdout.as_mut().expect("piped");
    stdout.read_exact(&mut [0; 2048]).expect("it begins");
    let rest: Box<dyn Read> = match export.child().stdout.take() {
        Some(stdout) => Box::new(stdout),
        None => Box::new(std::io::empty()),
    };
    (export, rest)
}

/// A snapshot outlives its container; a tree that is read as it is doesn't.
fn what_is_removed_meanwhile(ground: Ground) {
    let world = World::on(ground);
    world.load(&TestImage::new("big").files(Packing::Plain, &[("data", &random_bytes(5 * MB)), ("z", b"z")]));
    for verb in [&["reset", "-f", "c"][..], &["rm", "-f", "c"]] {
        if verb[0] == "reset" {
            world.ok(&["create", "--image", "big", "c"]);
        }
        let (mut export, mut rest) = begun(&world);
        world.ok(verb);
        std::io::copy(&mut rest, &mut std::io::sink()).expect("read");
        let mut said = String::new();
        export.child().stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        let code = export.child().wait().expect("wait").code();
        match ground {
            Ground::Btrfs(_) | Ground::Zstd => assert_eq!((code, said.as_str()), (Some(0), "")),
            Ground::Xfs | Ground::XfsPrjquota => {
                assert_eq!(code, Some(1));
                assert!(said.contains("it was removed or reset meanwhile"), "{said}");
            }
        }
    }
}

fn of_a_full_disk(ground: Ground) {
    let world = World::of_size(600 * MIB, ground).with_room_for_metadata().with_base();
    world.ok(&["create", "--image", "base", "c"]);
    fill(&world.tree("c").join("fill"), 1000 * MB);
    world.ok(&["export", "c", "-o", "/dev/null"]);
    assert_eq!(world.places(), world.trees());
}

#[test]
fn subvolumes_inside_are_named() {
    let world = World::on(Ground::Btrfs(QuotaSetup::None)).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let inside = world.tree("c").join("var-lib-docker");
    run("btrfs", &["subvolume", "create", arg(&inside)]);
    let before = (world.places(), world.all_trees().len());
    let target = world.files.path().join("c.tar");
    let error = world.fails(&["export", "c", "-o", arg(&target)]);
    assert!(error.contains("cannot export container c") && error.contains("var-lib-docker"), "{error}");
    assert_eq!((world.places(), world.all_trees().len()), before);
    assert!(!Path::new(&target).exists());
}

on_btrfs_and_xfs! {
    is_the_tree_and_import_takes_it
    a_read_only_container_exports_its_image
    of_a_tree_that_is_written_to
    a_failed_export_leaves_nothing
    what_is_removed_meanwhile
    of_a_full_disk
}
