//! A tree of 10,000 files: what its manifest says it takes is what the filesystem says.

use std::fs;
use std::path::Path;
use std::time::Instant;

use reflinkd::backend::{Access, Backend};

use crate::fixture::{World, entries};
use crate::support::{random_bytes, write_random};

const FILES: usize = 10_000;
const DIRECTORIES: usize = 700;

/// Files of up to 20 kB, every eighth empty, in directories as packages have them; a symlink in each.
fn packages(root: &Path) {
    let data = random_bytes(20_000);
    let directory = |number: usize| {
        let package = root.join(format!("usr/share/package-{}", number / 7));
        if number.is_multiple_of(7) { package } else { package.join(format!("part-{}", number % 7)) }
    };
    for number in 0..DIRECTORIES {
        fs::create_dir_all(directory(number)).expect("mkdir");
        std::os::unix::fs::symlink("../LICENSE", directory(number).join("license")).expect("symlink");
    }
    for number in 0..FILES {
        let length = if number.is_multiple_of(8) { 0 } else { number * 7919 % data.len() };
        let name = format!("{}-resource-{number}.json", ["index", "common", "locale", "x"][number % 4]);
        fs::write(directory(number % DIRECTORIES).join(name), &data[..length]).expect("write");
    }
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    eprintln!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    result
}

/// With `--nocapture` it prints how long everything takes.
fn overhead_is_what_clones_take(world: &World, share: std::ops::Range<f64>) {
    let image = world.image("image", packages);
    world.reclaim();
    let before = world.used();
    let clones: Vec<_> =
        (0..4).map(|n| timed("clone", || world.cloned(&image, &format!("web-{n}"), Access::Writable))).collect();
    let grown = world.used() - before;
    let trees: Vec<_> = clones.iter().collect();
    let overhead = timed("overhead of 4", || world.backend.overhead(&trees).expect("overhead"));
    let manifest = entries(clones[0].place()).into_iter().find(|name| name.starts_with("manifest."));
    let manifest = clones[0].place().join(manifest.expect("it has a manifest"));
    eprintln!(
        "{} names, manifest {} bytes, overhead {} bytes each, {} by statvfs",
        FILES + 2 * DIRECTORIES,
        fs::metadata(manifest).expect("stat").len(),
        overhead / 4,
        grown / 4
    );
    let found = overhead as f64 / grown as f64;
    assert!(share.contains(&found), "overhead says {overhead}, statvfs {grown}: {found:.3}");
    let untouched = timed("measure an untouched tree", || world.size(&clones[0]));
    assert_eq!((untouched.charged, untouched.apparent), (0, Some(0)));
    for number in 0..10 {
        let path = clones[1].root().join(format!("usr/share/package-{number}"));
        let file = entries(&path).into_iter().find(|name| name.contains("resource")).expect("it has files");
        write_random(&path.join(file), 8192);
    }
    assert_eq!(timed("measure one with 10 files touched", || world.size(&clones[1])).charged, 10 * 8192);
    let work = world.created("work");
    packages(&work.root());
    let all = timed("measure one with 10,000 new files", || world.size(&work));
    assert!(all.charged >= all.apparent.expect("it was asked for"), "{all:?}");
    let one = world.backend.overhead(&[&clones[2]]).expect("overhead");
    timed("destroy", || world.backend.destroy(&clones[2]).expect("destroy"));
    let leftovers = timed("leftovers", || world.leftovers());
    assert_eq!(leftovers.len(), 1);
    assert_eq!(leftovers[0].charged, one, "it is untouched");
    assert_eq!(timed("reclaim", || world.reclaim()), 1);
}

#[test]
fn overhead_on_xfs_is_what_clones_take() {
    overhead_is_what_clones_take(&World::xfs(), 0.8..1.2);
}

#[test]
fn overhead_on_btrfs_is_about_what_clones_take() {
    overhead_is_what_clones_take(&World::btrfs(), 0.5..2.0);
}
