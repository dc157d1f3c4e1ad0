//! Containers from create to rm.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{MB, Process, reflinkd, reflinkd_command, run, tree_digest, write_random};
use crate::world::{Ground, World, bytes};

on_btrfs_and_xfs! {
    create_prints_the_id_and_makes_a_writable_copy_of_the_image
    writes_survive_a_remount_and_rm_loses_them_all
    rename_is_kept
    what_a_process_uses_is_not_removed
    a_command_of_ours_is_waited_for
    several_are_removed_even_if_one_is_not_there
    a_bundle_is_run_by_runc
}
on_every_ground! {
    reset_makes_it_anew_at_the_same_path
}

fn create_prints_the_id_and_makes_a_writable_copy_of_the_image(ground: Ground) {
    let world = World::on(ground).with_base();
    let id = world.ok(&["create", "--image", "base", "--label", "tier=web", "-l", "bare", "web1"]);
    assert!(id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let tree = world.tree("web1");
    assert_eq!(fs::read_to_string(tree.join("etc/new")).expect("read"), "new\n");
    assert!(!tree.join("etc/old").exists(), "whited out in the second layer");
    let row = world.row(&["ps"], "web1");
    assert_eq!(row["id"], id.as_str());
    assert_eq!(row["image"], "base:latest");
    assert_eq!(row["labels"], json!({ "tier": "web", "bare": "" }));
    // By ID and by the beginning of it, in every command.
    for name in [&id[..], &id[..12], &id[..3]] {
        assert_eq!(world.tree(name), tree);
    }
    let made_up = world.ok(&["create", "--image", "docker.io/library/base:latest"]);
    let names: Vec<_> =
        world.rows(&["ps"]).iter().map(|row| row["name"].as_str().expect("text").to_string()).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0] != "web1" && !names[0].is_empty(), "the newest first, with a name made up: {names:?}");
    assert_eq!(world.ok(&["ps", "-q"]).lines().next(), Some(&made_up[..12]));
    assert_eq!(world.ok(&["ps", "-q", "--no-trunc"]).lines().next(), Some(&made_up[..]));
}

#[test]
fn filters_select() {
    let world = World::simple().with_base();
    world.ok(&["tag", "base", "other:v1"]);
    world.ok(&["create", "--image", "base", "--label", "a=1", "web1"]);
    world.ok(&["create", "--image", "other:v1", "--label", "a=2", "db1"]);
    let names = |filter: &str| {
        let rows = world.rows(&["ps", "--filter", filter]);
        rows.iter().map(|row| row["name"].as_str().expect("text").to_string()).collect::<Vec<_>>()
    };
    assert_eq!(names("name=web"), ["web1"]);
    assert_eq!(names("label=a"), ["db1", "web1"]);
    assert_eq!(names("label=a=2"), ["db1"]);
    assert_eq!(names("image=other:v1"), ["db1", "web1"], "one image under two names");
    assert!(names("id=zz").is_empty());
    assert!(world.fails(&["ps", "--filter", "colour=red"]).contains("invalid filter"));
}

fn writes_survive_a_remount_and_rm_loses_them_all(ground: Ground) {
    let world = World::on(ground).with_base();
    let limit = ground.limit(&["--size-limit", "50MB"]);
    world.ok(&[&["create", "--image", "base", "--label", "k=v", "c"], limit].concat());
    let before = world.row(&["ps"], "c");
    write_random(&world.tree("c").join("data"), 3 * MB);
    let written = tree_digest(&world.tree("c"));
    // As after a reboot: another mount of the filesystem, so the index is made anew from the records.
    world.fs.remount("rw");
    assert_eq!(tree_digest(&world.tree("c")), written);
    let row = world.row(&["ps", "-s"], "c");
    for kept in ["id", "labels", "size_limit"] {
        assert_eq!(row[kept], before[kept], "{kept}");
    }
    assert_eq!(row["labels"], json!({ "k": "v" }));
    assert!(bytes(&row, "size") >= 3 * MB);
    // And with the index lost altogether.
    for file in ["index.db", "index.db-journal", "index.current"] {
        let _ = fs::remove_file(world.root().join(file));
    }
    assert_eq!(world.row(&["ps"], "c")["id"], row["id"]);
    fs::write(world.root().join("index.db"), b"not a database at all, but long enough to be looked at")
        .expect("write");
    assert_eq!(world.row(&["ps"], "c")["id"], row["id"]);

    let tree = world.tree("c");
    assert_eq!(world.ok(&["rm", "c"]), "c");
    assert!(!tree.exists());
    assert!(world.rows(&["ps"]).is_empty());
    world.ok(&["create", "--image", "base", "c"]);
    assert!(!world.tree("c").join("data").exists());
}

fn reset_makes_it_anew_at_the_same_path(ground: Ground) {
    let world = World::on(ground).with_base();
    let limit = ground.limit(&["--size-limit", "30MB"]);
    world.ok(&[&["create", "--image", "base", "--label", "k=v", "c"], limit].concat());
    let (tree, before) = (world.tree("c"), world.row(&["ps"], "c"));
    let fresh = tree_digest(&tree);
    write_random(&tree.join("x"), 20 * MB);
    fs::remove_file(tree.join("etc/passwd")).expect("unlink");
    world.ok(&["reset", "c"]);
    assert_eq!(world.tree("c"), tree);
    assert_eq!(tree_digest(&tree), fresh);
    let after = world.row(&["ps", "-s"], "c");
    assert_eq!(bytes(&after, "size"), 0);
    for kept in ["id", "name", "labels", "size_limit", "image", "created"] {
        assert_eq!(after[kept], before[kept], "{kept}");
    }
    if !ground.holds_limits() {
        return;
    }
    // The limit holds for the new tree, and what the old one held doesn't count.
    write_random(&tree.join("x"), 20 * MB);
    let over = fs::write(tree.join("y"), crate::support::random_bytes(20 * MB))
        .and_then(|()| File::open(tree.join("y"))?.sync_all());
    assert_eq!(over.expect_err("over the limit").raw_os_error(), Some(libc::EDQUOT));
}

fn rename_is_kept(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "one"]);
    world.ok(&["create", "--image", "base", "two"]);
    let tree = world.tree("one");
    world.ok(&["rename", "one", "three"]);
    assert_eq!(world.tree("three"), tree);
    assert!(world.fails(&["mount", "one"]).contains("there is no container one"));
    let error = world.fails(&["rename", "three", "two"]);
    assert!(error.contains("cannot rename container three to two: the name two is taken by container"), "{error}");
    world.fs.remount("rw");
    assert_eq!(world.tree("three"), tree);
}

#[test]
fn update_is_kept() {
    let world = World::simple().with_base();
    world.ok(&["create", "--image", "base", "one"]);
    let tree = world.tree("one");
    world.ok(&["update", "--size-limit", "10MB", "one"]);
    world.fs.remount("rw");
    assert_eq!(bytes(&world.row(&["ps"], "one"), "size_limit"), 10 * MB);
    let over = fs::write(tree.join("y"), crate::support::random_bytes(20 * MB))
        .and_then(|()| File::open(tree.join("y"))?.sync_all());
    assert_eq!(over.expect_err("over the limit").raw_os_error(), Some(libc::EDQUOT));
}

fn what_a_process_uses_is_not_removed(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    let tree = world.tree("c");
    let sleeper =
        |command: &mut Command| Process::spawn(command.args(["300"]).stdin(Stdio::null()).stdout(Stdio::null()));
    {
        let process = sleeper(Command::new("sleep").current_dir(tree.join("etc")));
        for verb in ["rm", "reset"] {
            let error = world.fails(&[verb, "c"]);
            let named = format!("process {} (sleep) has its working directory there", process.id());
            assert!(error.contains(&named) && error.contains("--force"), "{error}");
        }
        // The kernel shows a process's paths without the links that led there.
        let link = world.files.path().join("link");
        std::os::unix::fs::symlink(world.fs.path(), &link).expect("symlink");
        for verb in ["rm", "reset"] {
            let answer = reflinkd(&link.join("store"), &[verb, "c"]);
            assert!(
                answer.status == Some(1) && answer.stderr.contains("has its working directory there"),
                "{answer:?}"
            );
        }
    }
    {
        // It calls itself what it likes.
        let mut shell = Command::new("sh");
        shell.args(["-c", r"printf '\033[2Jx' >/proc/$$/comm; read x"]).current_dir(&tree).stdin(Stdio::piped());
        let process = Process::spawn(&mut shell);
        let called = || fs::read_to_string(format!("/proc/{}/comm", process.id())).expect("read");
        while !called().starts_with('\x1b') {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let error = world.fails(&["rm", "c"]);
        assert!(error.contains(&format!(r"process {} (\u{{1b}}[2Jx) has", process.id())), "{error}");
    }
    {
        let open = File::open(tree.join("etc/passwd")).expect("open");
        let process = sleeper(Command::new("sleep").env("X", "").stdin(Stdio::null()).stderr(Stdio::from(open)));
        assert!(
            world.fails(&["rm", "c"]).contains(&format!("process {} (sleep) has a file open there", process.id()))
        );
    }
    {
        // Mounted in a namespace that we don't see (but which follows our unmounts: other tests have mounts, too).
        let script = format!("mount --bind {0}/etc /mnt && echo ready && exec sleep 300", tree.display());
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "slave", "sh", "-c", &script]).stdout(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        let mut ready = [0; 6];
        let stdout = process.child().stdout.as_mut().expect("piped");
        std::io::Read::read_exact(stdout, &mut ready).expect("ready");
        assert!(world.fails(&["rm", "c"]).contains("has it mounted in its mount namespace"));
        assert!(tree.exists());
        // Forced, it goes all the same.
        world.ok(&["rm", "--force", "c"]);
        assert!(!tree.exists());
    }
    world.ok(&["rm", "--force", "c"]);
    assert!(world.fails(&["rm", "c"]).contains("cannot remove container c: there is no container c"));
}

fn a_command_of_ours_is_waited_for(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "c"]);
    world.ok(&["create", "--image", "base", "other"]);
    // It goes on for as long as its standard input does.
    let open = File::open(world.tree("c").join("etc/passwd")).expect("open");
    let copy = |open: File| {
        let mut command = reflinkd_command(world.root(), &["cp", "-", "other:/"]);
        Process::spawn(command.stdin(Stdio::piped()).stderr(Stdio::from(open)))
    };
    let copying = copy(open);
    let mut removing = Process::spawn(reflinkd_command(world.root(), &["rm", "c"]).stdin(Stdio::null()));
    std::thread::sleep(std::time::Duration::from_millis(500));
    drop(copying);
    assert!(removing.child().wait().expect("wait").success());
    assert_eq!(world.rows(&["ps"]).len(), 1);
}

fn several_are_removed_even_if_one_is_not_there(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "a"]);
    world.ok(&["create", "--image", "base", "b"]);
    let error = world.fails(&["rm", "a", "nothing", "b"]);
    assert!(error.contains("there is no container nothing"), "{error}");
    assert!(world.rows(&["ps"]).is_empty());
    assert_eq!(world.places(), 2, "the layers");
}

fn a_bundle_is_run_by_runc(ground: Ground) {
    let world = World::on(ground);
    // A static program is all that a root filesystem needs.
    let busybox = fs::read("/bin/busybox").expect("Debian's busybox-static at /bin/busybox");
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, mode: u32, content: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        match link {
            Some(target) => tar.append_link(&mut header, name, target).expect("tar"),
            None => tar.append_data(&mut header, name, content).expect("tar"),
        }
    };
    for directory in ["bin/", "etc/", "proc/", "dev/", "sys/", "data/", "home/", "home/app/"] {
        add(directory, tar::EntryType::Directory, 0o755, b"", None);
    }
    add("bin/busybox", tar::EntryType::Regular, 0o755, &busybox, None);
    add("bin/sh", tar::EntryType::Symlink, 0o777, b"", Some("busybox"));
    add(
        "etc/passwd",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:0::/root:/bin/sh\napp:x:77:78::/home/app:/bin/sh\n",
        None,
    );
    add("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:78:\nextra:x:99:app\n", None);
    add("data/seed", tar::EntryType::Regular, 0o644, b"seeded\n", None);
    let image = crate::support::image::TestImage::new("app")
        .tar(crate::support::image::Packing::Gzip, tar.into_inner().expect("tar"))
        .config(json!({
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": ["id -u; id -g; id -G; pwd; echo $GREETING; echo $HOME; cat /data/seed; echo written > /data/new"],
            "Env": ["PATH=/bin", "GREETING=hello"],
            "User": "app",
            "WorkingDir": "/home/app",
            "Volumes": { "/data": {} },
            "StopSignal": "SIGQUIT",
        }));
    world.load(&image);
    world.ok(&["create", "--image", "app", "c"]);
    fs::set_permissions(world.tree("c").join("data"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .expect("chmod");
    let bundle = world.files.path().join("bundle");
    let directory = bundle.to_str().expect("UTF-8");
    world.ok(&["bundle", "c", directory]);
    let spec: serde_json::Value =
        serde_json::from_slice(&fs::read(bundle.join("config.json")).expect("read")).expect("JSON");
    assert_eq!(spec["annotations"]["org.opencontainers.image.stopSignal"], "SIGQUIT");
    assert_eq!(spec["root"]["path"], world.tree("c").to_str().expect("UTF-8"));
    assert_eq!(spec["linux"]["resources"], json!({ "devices": [{ "allow": false, "access": "rwm" }] }));
    let id = format!("reflinkd-test-{}-{}", ground.filesystem(), std::process::id());
    let output = run("runc", &["run", "-b", directory, &id]);
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines, ["77", "78", "78 99", "/home/app", "hello", "/home/app", "seeded"]);
    assert_eq!(fs::read_to_string(bundle.join("volumes/0/new")).expect("in the volume"), "written\n");
    assert!(!world.tree("c").join("data/new").exists(), "not in the container's tree");

    // Another command, another environment, and the container's users must be there.
    let second = world.files.path().join("second");
    world.ok(&["bundle", "-e", "GREETING=bye", "c", second.to_str().expect("UTF-8"), "--", "echo $GREETING"]);
    assert_eq!(run("runc", &["run", "-b", second.to_str().expect("UTF-8"), &id]), "bye\n");
    assert!(world.fails(&["bundle", "c", directory]).contains("the directory is not empty"));
    fs::write(world.tree("c").join("etc/passwd"), "").expect("write");
    let third = world.files.path().join("third");
    let error = world.fails(&["bundle", "c", third.to_str().expect("UTF-8")]);
    assert!(error.contains("user \"app\" is not in the container's /etc/passwd"), "{error}");
    assert!(!third.exists(), "nothing is left behind");
    assert_eq!(fs::metadata(world.tree("c")).expect("stat").uid(), 0);
}
