//! Spare clones and who makes them, on XFS, where a clone takes a few calls for each file.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::image::{Packing, TestImage};
use crate::support::{GIB, LoopFs, MB, MIB, Process, arg, reflinkd_command, run, scratch};
use crate::world::{World, base_image, bytes};

/// How long something may take that goes on in the background, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command as its users run it: what it leaves to the background goes on there.
fn command(root: &Path, args: &[&str]) -> Command {
    let mut command = reflinkd_command(root, args);
    command.env_remove("REFLINKD_NO_TEND").stdin(Stdio::null());
    command
}

fn with_background(world: &World, args: &[&str]) -> String {
    let output = command(world.root(), args).output().expect("run");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim_end().to_string()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The record beside each tree.
fn records(root: &Path) -> Vec<(PathBuf, Value)> {
    let places = fs::read_dir(root.join("snapshots")).into_iter().flatten().flatten().map(|place| place.path());
    let read = |place: PathBuf| {
        let mut record = vec![0; 8192];
        let length = rustix::fs::getxattr(&place, "trusted.reflinkd", &mut record[..]).ok()?;
        Some((place, serde_json::from_slice(&record[..length]).expect("JSON")))
    };
    places.filter_map(read).collect()
}

/// The roots of all spares that are whole.
fn spares(root: &Path) -> Vec<PathBuf> {
    let spares = records(root).into_iter().filter(|(_, record)| record["content"] == "spare");
    spares.map(|(place, _)| place.join("fs")).filter(|root| root.exists()).collect()
}

/// The processes in the background that tend a store.
fn tenders(root: &Path) -> Vec<u32> {
    let wanted = ["--root", arg(root), "tend", "--detached"];
    let processes = fs::read_dir("/proc").expect("read").flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let said: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        wanted.iter().all(|word| said.iter().any(|said| said == word))
    };
    pids.filter(is_one).collect()
}

fn wait_for_tenders(root: &Path) {
    until("nothing goes on in the background", || tenders(root).is_empty());
}

/// Wait until somebody is in the middle of making a spare; who it is.
fn wait_for_a_clone(root: &Path) -> u32 {
    let half_made = |(place, record): &(PathBuf, Value)| {
        record["content"] == "spare" && !place.join("fs").exists() && place.join("fs.new").exists()
    };
    until("a spare is being made", || records(root).iter().any(half_made));
    *tenders(root).first().expect("somebody makes it")
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.try_into().expect("pid")).expect("pid"), signal).expect("kill");
}

/// An image whose clone takes a while.
fn many_files(count: usize) -> TestImage {
    let names: Vec<_> = (0..count).map(|n| format!("d{}/f{n}", n % 97)).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"a small file\n"[..])).collect();
    TestImage::new("many").files(Packing::Plain, &entries)
}

#[test]
fn a_create_takes_the_spare_and_the_next_is_made_in_the_background() {
    let world = World::xfs().with_base();
    assert_eq!((bytes(&world.row(&["df"], "spares"), "count"), spares(world.root()).len()), (0, 0));
    with_background(&world, &["create", "--image", "base", "c1"]);
    for n in 2..6 {
        until("there is a spare", || spares(world.root()).len() == 1);
        wait_for_tenders(world.root());
        let spare = spares(world.root()).remove(0);
        let inode = fs::metadata(&spare).expect("stat").ino();
        let name = format!("c{n}");
        with_background(&world, &["create", "--image", "base", &name]);
        let tree = world.tree(&name);
        assert_eq!((&tree, fs::metadata(&tree).expect("stat").ino()), (&spare, inode), "the spare, where it was");
        assert_eq!(fs::read(tree.join("etc/new")).expect("read"), b"new\n");
    }
    until("there is a spare again", || spares(world.root()).len() == 1);
    wait_for_tenders(world.root());
    assert_eq!((world.rows(&["ps"]).len(), bytes(&world.rows(&["info"])[0], "containers")), (5, 5));

    let row = world.row(&["df"], "spares");
    assert_eq!((bytes(&row, "count"), bytes(&row, "size")), (1, bytes(&row, "reclaimable")));
    assert!(bytes(&row, "size") > 0);
    let named = world.rows(&["gc", "--dry-run"]);
    assert_eq!(
        (named.len(), named[0]["type"].as_str(), bytes(&named[0], "size")),
        (1, Some("spare"), bytes(&row, "size"))
    );
    world.ok(&["gc"]);
    assert_eq!((bytes(&world.row(&["df"], "spares"), "count"), world.places(), world.remains().len()), (0, 7, 0));

    // With the last container and the image, spares go, too.
    with_background(&world, &["rm", "c1"]);
    until("there is a spare once more", || spares(world.root()).len() == 1);
    with_background(&world, &["rm", "c2", "c3", "c4", "c5"]);
    with_background(&world, &["rmi", "base"]);
    wait_for_tenders(world.root());
    assert_eq!((world.places(), world.remains().len()), (0, 0), "and what was removed is emptied");
}

#[test]
fn spares_are_made_as_many_as_asked_for_and_by_whom() {
    let world = World::xfs().with_base();
    let config = world.files.path().join("config.toml");
    let set = |text: &str| fs::write(&config, text).expect("write");
    let with_config = |args: &[&str]| {
        let mut all = vec!["--config", arg(&config)];
        all.extend(args);
        with_background(&world, &all)
    };
    set("spares = 0\n");
    with_config(&["create", "--image", "base", "none"]);
    assert!(tenders(world.root()).is_empty());
    assert_eq!(with_config(&["tend"]), "made 0 spares, dropped 0, emptied 2 removed trees");
    assert!(spares(world.root()).is_empty());
    set("spares = 3\ntend = false\n");
    with_config(&["create", "--image", "base", "by-hand"]);
    assert!(tenders(world.root()).is_empty());
    assert_eq!(with_config(&["tend"]), "made 3 spares, dropped 0, emptied 0 removed trees");
    assert_eq!(spares(world.root()).len(), 3);
    set("spares = 1\n");
    assert_eq!(with_config(&["tend"]), "made 0 spares, dropped 2, emptied 2 removed trees");
    // Its relative path means the same to who is started elsewhere.
    set("spares = 2\n");
    let mut create = command(world.root(), &["--config", "config.toml", "create", "--image", "base", "relative"]);
    assert!(create.current_dir(world.files.path()).stdout(Stdio::null()).status().expect("run").success());
    until("there are two", || spares(world.root()).len() == 2);
    wait_for_tenders(world.root());
    // An administrator may have none of it at all.
    let answer = world.ask(&["--no-tend", "create", "--image", "base", "last"]);
    assert_eq!((answer.status, tenders(world.root()).len(), spares(world.root()).len()), (Some(0), 0, 1));
}

#[test]
fn who_tends_is_on_his_own() {
    let world = World::xfs();
    world.load(&many_files(20_000));
    world.ok(&["tend"]);
    // A script that has a lock open has it back as soon as the command is done, and so has who waits for its output.
    let lock = world.files.path().join("lock");
    let script = format!(
        "exec 9>{0}; flock -n 9; {1} --root {2} create --image many c",
        lock.display(),
        env!("CARGO_BIN_EXE_reflinkd"),
        world.root().display()
    );
    let created = Command::new("sh").args(["-c", &script]).env_remove("REFLINKD_NO_TEND").output().expect("sh");
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
    let pid = wait_for_a_clone(world.root());
    run("flock", &["-n", arg(&lock), "true"]);
    let process = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(process.join("stat")).expect("read");
    // proc_pid_stat(5), from the third field on: session is the 6th, nice the 19th.
    let field = |stat: &str, number: usize| -> i64 {
        let fields = stat.rsplit(')').next().expect("fields");
        fields.split_whitespace().nth(number - 3).and_then(|text| text.parse().ok()).expect("a number")
    };
    let ours = field(&fs::read_to_string("/proc/self/stat").expect("read"), 19);
    assert_eq!((field(&stat, 6), field(&stat, 19)), (i64::from(pid), (ours + 10).min(19)), "{stat}");
    assert!(stat.contains("(reflinkd)"), "{stat}");
    assert_eq!(fs::read_link(process.join("cwd")).expect("readlink"), Path::new("/"));
    for entry in fs::read_dir(process.join("fd")).expect("read").flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let number = entry.file_name().to_string_lossy().into_owned();
        let own = target.starts_with(world.root()) || !target.is_absolute() || target.starts_with("/proc");
        let expected =
            if ["0", "1", "2"].contains(&number.as_str()) { target == Path::new("/dev/null") } else { own };
        assert!(expected, "descriptor {number} is {}", target.display());
    }
    wait_for_tenders(world.root());
    assert_eq!(spares(world.root()).len(), 1);
}

#[test]
fn of_many_creates_at_once_none_is_lost_and_one_spare_is_left() {
    let world = World::xfs().with_base();
    let creates: Vec<_> = (0..16)
        .map(|n| {
            let name = format!("c{n}");
            let mut create = command(world.root(), &["create", "--image", "base", &name]);
            Process::spawn(create.stdout(Stdio::null()))
        })
        .collect();
    for mut create in creates {
        assert!(create.child().wait().expect("wait").success());
    }
    let trees: BTreeSet<_> = (0..16).map(|n| world.tree(&format!("c{n}"))).collect();
    assert_eq!((trees.len(), world.rows(&["ps"]).len()), (16, 16));
    assert!(trees.iter().all(|tree| tree.join("etc/new").exists()));
    wait_for_tenders(world.root());
    assert_eq!((spares(world.root()).len(), world.places(), world.remains().len()), (1, 19, 0));
}

#[test]
fn who_is_killed_while_tending_leaves_nothing_that_gc_cant_name() {
    let world = World::xfs();
    world.load(&many_files(20_000));
    world.ok(&["create", "--image", "many", "c"]);
    world.ok(&["gc"]);
    let clean = (world.places(), world.remains().len());
    let kill = |by: Signal| {
        let tender = Process::spawn(command(world.root(), &["tend", "--detached"]).stdout(Stdio::null()));
        assert_eq!(wait_for_a_clone(world.root()), tender.id());
        signal(tender.id(), by);
        tender
    };
    drop(kill(Signal::KILL));
    let named = world.rows(&["gc", "--dry-run"]);
    assert_eq!((named.len(), named[0]["type"].as_str()), (1, Some("tree")), "{named:#?}");
    world.ok(&["gc"]);
    assert_eq!((world.places(), world.remains().len()), clean);
    assert_eq!(world.ok(&["gc", "-n"]), "nothing to remove");
    // Politely asked, it does the step that it is at, and leaves nothing half done.
    let mut tender = kill(Signal::TERM);
    assert!(tender.child().wait().expect("wait").success());
    let named = world.rows(&["gc", "--dry-run"]);
    assert_eq!((named.len(), named[0]["type"].as_str()), (1, Some("spare")), "{named:#?}");
}

#[test]
fn who_wants_the_store_for_himself_waits_for_no_clone() {
    let world = World::of_size(8 * GIB, crate::world::Ground::Xfs);
    world.load(&many_files(50_000));
    with_background(&world, &["create", "--image", "many", "c"]);
    wait_for_a_clone(world.root());
    // It gives up after three seconds of waiting for others. Refused, because somebody is in a container, it has come that
    // far already.
    let user = Process::spawn(Command::new("sleep").arg("300").current_dir(world.tree("c")));
    assert!(world.fails(&["destroy", "--yes"]).contains("(sleep) has its working directory there"));
    assert!(tenders(world.root()).is_empty());
    drop(user);
    with_background(&world, &["create", "--image", "many", "d"]);
    wait_for_a_clone(world.root());
    world.ok(&["destroy", "--yes"]);
    assert!(!world.root().exists());
    assert!(tenders(world.root()).is_empty(), "and nobody makes the store again");
}

#[test]
fn a_pool_is_taken_down_while_somebody_tends_it() {
    let host = LoopFs::ext4(4 * GIB);
    let (root, files) = (host.path().join("reflinkd"), scratch("pool"));
    let ok = |args: &[&str]| {
        let output = command(&root, args).output().expect("run");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let archive = files.path().join("many.tar");
    many_files(20_000).write_archive(&archive);
    ok(&["init", "--pool-fs", "xfs", "--pool-size", "2GiB"]);
    ok(&["load", "-q", arg(&archive)]);
    ok(&["create", "--image", "many", "--read-only", "v"]);
    ok(&["create", "--image", "many", "c"]);
    wait_for_a_clone(&root);
    ok(&["destroy", "--yes"]);
    assert!(!root.exists() && !root.with_extension("pool").exists());
    assert!(tenders(&root).is_empty());
    // Who is started as it goes neither attaches a pool nor makes one.
    ok(&["tend", "--detached"]);
    assert!(!root.exists());
}

#[test]
fn df_says_what_spares_and_inodes_take_to_within_two_percent() {
    let world = World::xfs();
    world.ok(&["images"]);
    let before = world.used();
    world.load(&many_files(20_000));
    for name in ["a", "b", "c"] {
        world.ok(&["create", "--image", "many", name]);
    }
    crate::support::write_random(&world.tree("a").join("own"), 5 * MB);
    let compare = |what: &str| {
        let rows = world.rows(&["df"]);
        let size = |kind: &str| bytes(rows.iter().find(|row| row["type"] == kind).expect(kind), "size");
        let parts = ["images", "containers", "spares", "metadata", "pending"].map(size);
        let (total, grown) = (size("total"), world.used() - before);
        assert_eq!(parts.iter().sum::<u64>(), total, "{what}");
        assert!(total.abs_diff(grown) * 50 <= grown, "{what}: df says {parts:?}, the filesystem grew by {grown}");
        parts
    };
    world.ok(&["tend"]);
    let [_, containers, spare, metadata, pending] = compare("with a spare");
    assert!((5 * MB..6 * MB).contains(&containers) && pending == 0);
    assert!(spare > 10 * MB && metadata.abs_diff(4 * spare) < MB, "20,000 inodes of 512 bytes in each tree");
    world.ok(&["rm", "b", "c"]);
    let [_, _, _, _, pending] = compare("with two removed");
    assert!(pending.abs_diff(2 * spare) < MB, "{pending} for two trees of {spare}");
    world.ok(&["gc"]);
    let [_, _, spares, less, pending] = compare("after gc");
    assert_eq!((spares, pending), (0, 0));
    assert!(less.abs_diff(metadata - 2 * spare) < MB, "{less} of {metadata} are left, {spare} for each tree");
}

#[test]
fn a_full_disk_gives_up_its_spares_first() {
    let world = World::of_size(512 * MIB, crate::world::Ground::Xfs);
    let files: Vec<_> = (0..40).map(|n| (format!("f{n}"), crate::support::random_bytes(10_000))).collect();
    let entries: Vec<_> = files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    world.load(&TestImage::new("one").files(Packing::Plain, &entries));
    world.load(&base_image());
    for (image, name) in [("one", "a"), ("base", "b")] {
        world.ok(&["create", "--image", image, name]);
    }
    world.ok(&["tend"]);
    assert_eq!(spares(world.root()).len(), 2);
    let stat = rustix::fs::statvfs(world.fs.path()).expect("statvfs");
    let ballast = (stat.f_bavail - stat.f_blocks / 40) * stat.f_frsize;
    run("fallocate", &["-l", &ballast.to_string(), arg(&world.fs.path().join("ballast"))]);
    with_background(&world, &["create", "--image", "base", "c"]);
    assert!(spares(world.root()).is_empty(), "its own was taken over, the other one dropped");
    assert!(tenders(world.root()).is_empty() && world.remains().is_empty());
    world.ok(&["tend"]);
    assert!(spares(world.root()).is_empty(), "none is made while space is short");
    fs::remove_file(world.fs.path().join("ballast")).expect("unlink");
    world.ok(&["tend"]);
    assert_eq!(spares(world.root()).len(), 2);
}
