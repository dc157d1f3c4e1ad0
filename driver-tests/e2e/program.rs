//! The program itself: what it runs, what it prints about itself, who may use it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{arg, reflinkd_command, run};
use crate::world::{World, base_image};

/// The programs that a command ran, by strace: itself, and what it started, each once; `exe` is itself again, by /proc.
fn programs_run(root: &Path, args: &[&str]) -> BTreeSet<String> {
    let trace = root.with_extension("trace");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=execve,execveat", "-e", "status=successful", "-o"]).arg(&trace);
    command.arg(env!("CARGO_BIN_EXE_reflinkd")).arg("--root").arg(root).args(args);
    let output = command.stdin(Stdio::null()).output().expect("strace");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let lines = fs::read_to_string(&trace).expect("read");
    fs::remove_file(&trace).expect("unlink");
    let programs = lines.lines().filter(|line| line.contains("exec")).map(|line| {
        let path = line.split('"').nth(1).unwrap_or_else(|| panic!("no program in {line}"));
        path.rsplit('/').next().expect("a name").to_string()
    });
    programs.collect()
}

fn set(programs: &[&str]) -> BTreeSet<String> {
    programs.iter().map(ToString::to_string).collect()
}

#[test]
fn no_verb_runs_another_program_but_mkfs_xfs() {
    let (btrfs, xfs) = (World::simple(), World::xfs());
    let files = btrfs.files.path();
    let archive = files.join("base.tar");
    base_image().write_archive(&archive);
    let tar = files.join("root.tar");
    fs::write(&tar, crate::support::image::tar_of(&[("x", b"x")])).expect("write");
    let bundle = files.join("bundle");
    let verbs: &[&[&str]] = &[
        &["load", arg(&archive)],
        &["import", arg(&tar), "imported"],
        &["images"],
        &["history", "base"],
        &["tag", "base", "other"],
        &["layers"],
        &["create", "--image", "base", "c"],
        &["ps", "-s"],
        &["mount", "c"],
        &["cp", arg(&tar), "c:/"],
        &["cp", "c:/etc/new", arg(files)],
        &["cp", "c:/", "-"],
        &["bundle", "c", arg(&bundle), "--", "/bin/sh"],
        &["inspect", "c", "base"],
        &["rename", "c", "d"],
        &["update", "--size-limit", "none", "d"],
        &["reset", "d"],
        &["df", "-v"],
        &["rm", "d"],
        &["rmi", "other", "base", "imported"],
        &["gc"],
        &["check", "--deep"],
        &["quota", "status"],
        &["info"],
        &["destroy", "--yes"],
    ];
    // Stores in place, and in embedded pools.
    let (pool_btrfs, pool_xfs) = (files.join("pooled-btrfs"), files.join("pooled-xfs"));
    // Where clones and removals take time, these leave some of it to the program itself in the background.
    let slow = ["load", "import", "create", "reset", "rm", "rmi"];
    let inits: [(&Path, &[&str], &[&str]); 4] = [
        (btrfs.root(), &["init"], &["reflinkd"]),
        (xfs.root(), &["init"], &["reflinkd"]),
        (&pool_btrfs, &["init", "--pool-fs", "btrfs", "--pool-size", "400MB"], &["reflinkd"]),
        (&pool_xfs, &["init", "--pool-fs", "xfs", "--pool-size", "400MB"], &["reflinkd", "mkfs.xfs"]),
    ];
    for (root, init, ran) in inits {
        let _ = fs::remove_dir_all(&bundle);
        assert_eq!(programs_run(root, init), set(ran), "{init:?}");
        for verb in verbs {
            let background = slow.contains(&verb[0]) && (root == xfs.root() || root == pool_xfs);
            let expected = if background { set(&["reflinkd", "exe"]) } else { set(&["reflinkd"]) };
            assert_eq!(programs_run(root, verb), expected, "{verb:?} at {}", root.display());
        }
        assert!(!root.exists() && !root.with_extension("pool").exists(), "destroyed");
    }
}

#[test]
fn only_root_is_served() {
    let world = World::simple().with_base();
    // Where an unprivileged user may run it from.
    let program = "/tmp/reflinkd-under-test";
    fs::copy(env!("CARGO_BIN_EXE_reflinkd"), program).expect("copy");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", program, "--root"])
        .arg(world.root())
        .arg("ps")
        .output();
    let _ = fs::remove_file(program);
    let output = output.expect("setpriv");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        error.contains("cannot open the store at") && error.contains("only root") && error.contains("hint: "),
        "{error}"
    );
}

#[test]
fn flag_goes_over_environment_over_file() {
    let world = World::simple();
    let files = world.files.path();
    let config = files.join("config.toml");
    let [by_file, by_env, by_flag] = ["file", "env", "flag"].map(|name| world.fs.path().join(name));
    fs::write(&config, format!("root = {:?}\nmax_layer_size = \"1MB\"\n", by_file.to_str().expect("UTF-8")))
        .expect("write");
    let root_of = |env: bool, flag: bool| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflinkd"));
        command.arg("--config").arg(&config).args(["info", "--format", "json"]).env_remove("REFLINKD_ROOT");
        if env {
            command.env("REFLINKD_ROOT", &by_env);
        }
        if flag {
            command.arg("--root").arg(&by_flag);
        }
        let output = command.output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let info: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        info[0]["root"].as_str().expect("text").to_string()
    };
    assert_eq!(root_of(false, false), by_file.to_str().expect("UTF-8"));
    assert_eq!(root_of(true, false), by_env.to_str().expect("UTF-8"));
    assert_eq!(root_of(true, true), by_flag.to_str().expect("UTF-8"));
    fs::write(&config, "rot = \"/x\"\n").expect("write");
    let output =
        Command::new(env!("CARGO_BIN_EXE_reflinkd")).arg("--config").arg(&config).arg("ps").output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rot"), "names the unknown key");
}

#[test]
fn completions_and_manual_pages_are_written() {
    let world = World::simple();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.ok(&["completions", shell]).contains("reflinkd"));
    }
    let pages = world.files.path().join("man");
    fs::create_dir(&pages).expect("mkdir");
    world.ok(&["man", pages.to_str().expect("UTF-8")]);
    let names: Vec<_> = fs::read_dir(&pages).expect("read").map(|entry| entry.expect("entry").file_name()).collect();
    for page in ["reflinkd.1", "reflinkd-create.1", "reflinkd-df.1"] {
        assert!(names.iter().any(|name| name == page), "{page} is not among {names:?}");
    }
    assert!(!world.root().exists(), "these need no store and make none");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let world = World::simple().with_base();
    let mut child = reflinkd_command(world.root(), &["layers"]).stdout(Stdio::piped()).spawn().expect("spawn");
    drop(child.stdout.take());
    assert!(child.wait().expect("wait").success());
    assert!(run("true", &[]).is_empty());
}
