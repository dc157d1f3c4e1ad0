//! Limits by project quotas, as a user meets them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use reflinkd::sys::xfs::XfsFd;
use reflinkd::sys::xfs::quota::ProjectQuotas;
use reflinkd::sys::xfs::space::free_preallocated;

use crate::support::image::{Packing, TestImage, tar_of};
use crate::support::{LoopFs, MB, MIB, random_bytes, scratch, write_random};
use crate::world::{Ground, World, bytes};

on_project_quotas! {
    a_limit_counts_the_containers_writes_and_answers_enospc
    a_spare_has_the_limit_it_is_given
    nothing_is_left_of_a_limit
    quotas_are_a_mount_option
}

fn image() -> TestImage {
    TestImage::new("big").tar(Packing::Plain, tar_of(&[("large", &random_bytes(30 * MB)), ("small", b"x")]))
}

fn write(path: &Path, count: u64) -> io::Result<()> {
    fs::write(path, random_bytes(count)).and_then(|()| File::open(path)?.sync_all())
}

#[track_caller]
fn refused(written: io::Result<()>) {
    assert_eq!(written.expect_err("over the limit").raw_os_error(), Some(libc::ENOSPC));
}

/// Limits that the kernel has, in bytes, by project.
fn limits(fs: &LoopFs) -> Vec<(u32, u64)> {
    let open = || XfsFd::open(fs.path()).expect("open the filesystem");
    free_preallocated(&open()).expect("wait for what is unlinked");
    let quotas = ProjectQuotas::open(open()).expect("open the quotas");
    let (mut found, mut next) = (Vec::new(), 1);
    while let Some((project, dquot)) = quotas.next(next).expect("the next project") {
        found.extend(dquot.limit.map(|limit| (project, limit)));
        next = project + 1;
    }
    found
}

fn a_limit_counts_the_containers_writes_and_answers_enospc(ground: Ground) {
    let world = World::on(ground);
    world.load(&image());
    let answer = world.ask(&["create", "--image", "big", "--size-limit", "20MB", "c"]);
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    assert!(answer.stderr.contains("warning: project quotas let the container write more"), "{}", answer.stderr);
    let tree = world.tree("c");
    write(&tree.join("fits"), 15 * MB).expect("below the limit");
    refused(write(&tree.join("more"), 10 * MB));
    fs::remove_file(tree.join("more")).expect("unlink works at the limit");
    let row = world.row(&["ps", "-s"], "c");
    assert!((15 * MB..16 * MB).contains(&bytes(&row, "size")), "{row}");

    // Live: raised, and kept over a reset and a remount; then lifted.
    world.ok(&["update", "--size-limit", "40MB", "c"]);
    write(&tree.join("more"), 20 * MB).expect("below the new limit");
    world.ok(&["reset", "c"]);
    assert_eq!(bytes(&world.row(&["ps", "-s"], "c"), "size"), 0);
    world.fs.remount("prjquota");
    write(&tree.join("fits"), 35 * MB).expect("below the limit");
    refused(write(&tree.join("more"), 10 * MB));
    world.ok(&["update", "--size-limit", "none", "c"]);
    write(&tree.join("more"), 60 * MB).expect("without a limit");

    // Deleting what is the image's makes room, as create has said.
    world.ok(&["reset", "c"]);
    world.ok(&["update", "--size-limit", "10MB", "c"]);
    fs::remove_file(tree.join("large")).expect("remove a file of the image");
    write(&tree.join("log"), 35 * MB).expect("the limit and the image's 30 MB");
    refused(write(&tree.join("more"), 10 * MB));
}

fn a_spare_has_the_limit_it_is_given(ground: Ground) {
    let world = World::on(ground);
    world.load(&image());
    world.ok(&["create", "--image", "big", "first"]);
    world.ok(&["tend"]);
    assert_eq!(bytes(&world.row(&["df"], "spares"), "count"), 1, "there is one to be had");
    world.ok(&["create", "--image", "big", "--size-limit", "20MB", "c"]);
    let tree = world.tree("c");
    write(&tree.join("fits"), 15 * MB).expect("below the limit");
    refused(write(&tree.join("more"), 10 * MB));
    let large = fs::metadata(tree.join("large")).expect("stat").len();
    assert_eq!(large, 30 * MB, "the image is there, and doesn't count");
}

fn nothing_is_left_of_a_limit(ground: Ground) {
    let world = World::on(ground);
    world.load(&image());
    for name in ["one", "two"] {
        world.ok(&["create", "--image", "big", "--size-limit", "20MB", name]);
        write_random(&world.tree(name).join("own"), MB);
    }
    world.ok(&["reset", "two"]);
    assert_eq!(limits(&world.fs).len(), 3, "the old tree of two is in the trash");
    world.ok(&["rm", "one"]);
    world.ok(&["gc"]);
    let left = limits(&world.fs);
    let limited: Vec<u64> = left.iter().map(|(_, limit)| *limit).collect();
    assert!(matches!(limited[..], [limit] if (50 * MB..51 * MB).contains(&limit)), "image and allowance: {left:?}");
    world.ok(&["rm", "two"]);
    world.ok(&["gc"]);
    assert_eq!(limits(&world.fs), []);
}

fn quotas_are_a_mount_option(ground: Ground) {
    let world = World::on(ground).with_base();
    let status = &world.rows(&["quota", "status"])[0];
    assert_eq!((status["mode"].as_str(), status["owned"].as_bool()), (Some("project"), Some(false)));
    assert!(status["limits"].as_str().is_some_and(|limits| limits.starts_with("limits hold, but")), "{status}");
    for args in [&["quota", "enable", "--simple", "--yes"][..], &["quota", "disable", "--yes"]] {
        let error = world.fails(args);
        assert!(error.contains("hint: project quotas of XFS are a mount option"), "{error}");
    }
    // A pool of XFS is mounted with them.
    let files = scratch("pool");
    let pooled = files.path().join("store");
    let ask = |args: &[&str]| crate::support::reflinkd(&pooled, args);
    let answer = ask(&["init", "--pool-fs", "xfs", "--pool-size", &format!("{}", 400 * MIB)]);
    assert_eq!(answer.status, Some(0), "{}", answer.stderr);
    let mode = ask(&["quota", "status", "--format", "json"]).stdout;
    assert!(mode.contains("\"project\"") && mode.contains("\"owned\": true"), "{mode}");
    assert_eq!(ask(&["destroy", "--yes"]).status, Some(0));
}
