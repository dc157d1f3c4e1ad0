//! A container whose directories are in each other, and then many in the last: the paths of all together are far longer than
//! what memory anybody may take for them.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, mkdirat, openat};

use crate::support::{arg, reflinkd_command};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    what_is_deep_and_wide_takes_no_memory
}

const DEPTH: usize = 150;
const WIDTH: usize = 2000;
/// What a command may have: a third of these paths.
const MEMORY: usize = DEPTH * NAME.len() * WIDTH / 3;
/// The paths of so many directories in each other are more than 512 MiB together.
const DEEPER: usize = 2100;
const NAME: &str = match str::from_utf8(&[b'n'; 255]) {
    Ok(name) => name,
    Err(_) => "",
};

fn open(at: OwnedFd, name: &str) -> OwnedFd {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open")
}

fn fill(root: &Path, depth: usize, width: usize) {
    let mut at = openat(CWD, root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
    for _ in 0..depth {
        mkdirat(&at, NAME, Mode::RWXU).expect("mkdir");
        at = open(at, NAME);
    }
    for n in 0..width {
        mkdirat(&at, n.to_string(), Mode::RWXU).expect("mkdir");
        // An inode with two names, the first of which has to be remembered.
        let (one, other) = (format!("one{n}"), format!("other{n}"));
        openat(&at, &one, OFlags::CREATE | OFlags::WRONLY, Mode::RUSR).expect("create");
        linkat(&at, &one, &at, &other, AtFlags::empty()).expect("link");
    }
}

fn what_is_deep_and_wide_takes_no_memory(ground: Ground) {
    let world = World::on(ground).with_base();
    world.ok(&["create", "--image", "base", "evil"]);
    world.ok(&["create", "--image", "base", "other"]);
    world.ok(&["create", "--image", "base", "deeper"]);
    fill(&world.tree("evil"), DEPTH, WIDTH);
    fill(&world.tree("deeper"), DEEPER, 0);
    let bounded = |args: &[&str]| {
        let command = reflinkd_command(world.root(), args);
        let mut bounded = Command::new("prlimit");
        bounded.arg(format!("--data={MEMORY}")).arg(command.get_program()).args(command.get_args());
        bounded.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = bounded.output().expect("prlimit, of util-linux");
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let tar = world.files.path().join("tar");
    bounded(&["ps", "-s"]);
    bounded(&["cp", &format!("evil:/{NAME}"), "other:/copy"]);
    bounded(&["export", "evil", "-o", arg(&tar)]);
    bounded(&["snapshot", "evil", "s"]);
    let error = world.fails(&["diff", "deeper"]);
    assert!(error.contains("the paths that are compared are longer than 512 MiB together"), "{error}");
    assert!(error.contains("hint: the longest may be below /nnn"), "{error}");
    bounded(&["reset", "evil"]);
    for name in ["evil", "other", "deeper"] {
        bounded(&["rm", name]);
    }
    world.ok(&["check"]);
}
