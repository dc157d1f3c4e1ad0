//! What the feed of trees with a manifest relies on, and what it does where that ends.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use reflinkd::Kind;
use reflinkd::backend::changes::What::{Added, Modified};
use reflinkd::backend::changes::{Comparison, EntryKind, FeedMethod, walk};
use reflinkd::backend::{Access, Tree, Want};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, XattrFlags, lgetxattr, lsetxattr, mknodat, renameat_with};

use crate::fixture::Fixture;
use crate::model::lines;
use crate::support::{MIB, arg, random_bytes, run};

fn small(root: &Path) {
    fs::create_dir(root.join("d")).expect("mkdir");
    for file in ["a", "d/b"] {
        fs::write(root.join(file), random_bytes(20_000)).expect("write");
    }
}

fn comparison<'a>(layer: &'a Tree, tree: &'a Tree, sizes: bool) -> Comparison<'a> {
    Comparison { parent: Some(layer), tree, scratch: None, sizes }
}

#[test]
fn a_manifest_is_asked_only_about_what_it_speaks_of() {
    for fixture in [Fixture::xfs(), Fixture::reflink_on_btrfs()] {
        let (layer, container) = fixture.pair(small);
        let found_by = |parent: &Tree, tree: &Tree| fixture.agreed("as it is", parent, tree).1;
        assert_eq!(found_by(&layer, &container), FeedMethod::Manifest);
        let (other, its) = fixture.pair(small);
        assert_eq!(found_by(&other, &container), FeedMethod::Walk);
        // A clone of a clone is a clone of that alone; a fork is one of the layer.
        fs::write(container.root().join("a"), "the container's").expect("write");
        let committed = fixture.forked(&container, Access::ReadOnly);
        let next = fixture.container(&committed);
        fs::write(next.root().join("d/new"), "the next one's").expect("write");
        assert_eq!(found_by(&layer, &committed), FeedMethod::Manifest);
        assert_eq!(found_by(&committed, &next), FeedMethod::Manifest);
        assert_eq!(found_by(&layer, &next), FeedMethod::Walk);
        // Nor about a tree that may have changed since.
        let twin = fixture.container(&its);
        fs::write(its.root().join("a"), "later").expect("write");
        assert_eq!(found_by(&its, &twin), FeedMethod::Walk);
        // A manifest that is damaged tells nothing.
        for name in fs::read_dir(container.place()).expect("read").map(|entry| entry.expect("read").path()) {
            if name.to_string_lossy().contains("manifest.") {
                fs::write(name, "damaged").expect("write");
            }
        }
        assert_eq!(found_by(&layer, &container), FeedMethod::Walk);
        let gone = fixture.tree();
        for (parent, tree) in [(&layer, &gone), (&gone, &next)] {
            let error = fixture.backend.changes(&comparison(parent, tree, true)).expect_err("there is no such tree");
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
        }
    }
}

/// A few calls after the clone, in the same tick of the clock, and with the time put back.
#[test]
fn what_comes_right_after_the_clone_is_seen() {
    for fixture in [Fixture::xfs(), Fixture::reflink_on_btrfs()] {
        let (layer, first) = fixture.pair(small);
        fixture.backend.destroy(&first).expect("destroy");
        for turn in 0..30 {
            let container = fixture.container(&layer);
            let path = container.root().join("d/b");
            let file = OpenOptions::new().write(true).open(&path).expect("open");
            let before = file.metadata().expect("stat").modified().expect("a time");
            file.write_all_at(&random_bytes(50), 1000).expect("write");
            file.set_modified(before).expect("set the time");
            let (found, method) = fixture.agreed("at once", &layer, &container);
            assert_eq!(found, [("d/b".to_string(), Modified, EntryKind::File)], "turn {turn}");
            assert_eq!(method, FeedMethod::Manifest);
            fixture.backend.destroy(&container).expect("destroy");
        }
    }
}

#[test]
fn sizes_are_what_the_layer_does_not_hold() {
    for fixture in [Fixture::xfs(), Fixture::reflink_on_btrfs()] {
        let (layer, container) = fixture.pair(|root| {
            small(root);
            fs::write(root.join("big"), random_bytes(8 * MIB)).expect("write");
        });
        let root = container.root();
        let big = OpenOptions::new().write(true).open(root.join("big")).expect("open");
        big.write_all_at(&random_bytes(4096), MIB).expect("write");
        fs::set_permissions(root.join("a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("chmod");
        fs::write(root.join("d/new"), random_bytes(MIB)).expect("write");
        fs::hard_link(root.join("d/new"), root.join("e-link")).expect("link");
        run("cp", &["--reflink=always", arg(&root.join("d/new")), arg(&root.join("f-shared"))]);
        run("cp", &["--reflink=always", arg(&root.join("big")), arg(&root.join("g-shared"))]);
        let expected = [("big", 4096), ("d/new", MIB)];
        let fork = fixture.forked(&container, Access::Writable);
        fixture.backend.sync().expect("sync");
        for tree in [&container, &fork] {
            let changes = fixture.feed(Some(&layer), tree, true);
            assert_eq!(changes.method, FeedMethod::Manifest);
            let sized = changes.list.iter().filter(|change| change.size != Some(0));
            let sizes: Vec<_> =
                sized.map(|change| (change.path.to_str().expect("text"), change.size.expect("asked"))).collect();
            assert_eq!(sizes, expected);
            let measured = fixture.backend.measure(&[tree], Want { sync: true, apparent: false }).expect("measure");
            assert_eq!(measured.sizes[0].charged, MIB + 4096);
        }
    }
}

#[test]
fn a_mount_in_a_tree_is_named() {
    let fixture = Fixture::xfs();
    let (layer, container) = fixture.pair(small);
    for (make, name) in [(false, "d"), (true, "new")] {
        let at = container.root().join(name);
        if make {
            fs::create_dir(&at).expect("mkdir");
        }
        run("mount", &["-t", "tmpfs", "none", arg(&at)]);
        let error = fixture.backend.changes(&comparison(&layer, &container, false));
        run("umount", &[arg(&at)]);
        let error = error.expect_err("it hides what is there");
        assert_eq!(error.kind(), Kind::InUse);
        assert!(error.to_string().contains(&format!("something is mounted on {}", at.display())), "{error}");
    }
}

/// A name whose inode nobody touched, and which goes with other names than before all the same: what it went with was moved
/// away with the directory around it.
#[test]
fn names_that_part_without_being_touched_are_found() {
    for fixture in [Fixture::xfs(), Fixture::reflink_on_btrfs()] {
        let (layer, container) = fixture.pair(|root| {
            for directory in ["d", "e"] {
                fs::create_dir(root.join(directory)).expect("mkdir");
            }
            fs::write(root.join("one"), "one").expect("write");
            fs::hard_link(root.join("one"), root.join("d/two")).expect("link");
            fs::hard_link(root.join("one"), root.join("d/three")).expect("link");
            fs::copy(root.join("one"), root.join("e/two")).expect("copy");
        });
        let path = |name: &str| container.root().join(name);
        let modified = |about: &str| {
            let (found, method) = fixture.agreed(about, &layer, &container);
            assert_eq!(method, FeedMethod::Manifest);
            let names = found.into_iter().filter(|(_, what, _)| *what == Modified).map(|(name, ..)| name);
            names.collect::<Vec<_>>()
        };
        // Both directories are touched, by their names, and no inode in them.
        renameat_with(CWD, path("d"), CWD, path("e"), RenameFlags::EXCHANGE).expect("exchange");
        assert!(modified("exchanged").contains(&"e/two".to_string()));
        renameat_with(CWD, path("d"), CWD, path("e"), RenameFlags::EXCHANGE).expect("exchange");
        assert_eq!(modified("and back"), [""; 0]);
        fs::rename(path("d"), path("aside")).expect("rename");
        fs::create_dir(path("d")).expect("mkdir");
        for name in ["two", "three"] {
            run("cp", &["-p", arg(&path("one")), arg(&path("d").join(name))]);
        }
        run("touch", &["-r", arg(&path("aside")), arg(&path("d"))]);
        // Alike to the last attribute. Of the three names the first is known by itself, as before.
        assert_eq!(modified("parted"), ["d/two", "one"]);
    }
}

/// As [`crate::kernel`] does to walking: what is met is now this, now that.
#[test]
fn a_tree_that_changes_can_be_asked() {
    let fixture = Fixture::xfs();
    let (layer, container) = fixture.pair(|root| {
        for directory in ["d", "d/sub"] {
            fs::create_dir(root.join(directory)).expect("mkdir");
        }
        for file in ["file", "d/file", "d/sub/file", "twin", "sometimes"] {
            fs::write(root.join(file), random_bytes(100)).expect("write");
        }
        for link in ["link", "link2"] {
            symlink("/", root.join(link)).expect("symlink");
        }
        fs::hard_link(root.join("file"), root.join("d/linked")).expect("link");
        mknodat(CWD, root.join("socket"), FileType::Socket, Mode::RUSR, 0).expect("mknod");
    });
    let pairs =
        [("file", "link"), ("d", "file"), ("d", "link"), ("file", "socket"), ("file", "twin"), ("d/sub", "file")];
    let stop = AtomicBool::new(false);
    let path = |name| container.root().join(name);
    thread::scope(|scope| {
        let _stopped = SetOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (one, two) in pairs {
                    for _ in 0..2 {
                        renameat_with(CWD, path(one), CWD, path(two), RenameFlags::EXCHANGE).expect("exchange");
                    }
                }
            }
        });
        for _ in 0..1_000 {
            let changes = fixture.backend.changes(&comparison(&layer, &container, false)).expect("changes");
            assert_eq!(changes.method, FeedMethod::Manifest);
        }
    });
    fixture.agreed("when it is quiet again", &layer, &container);
}

/// What a writer changes while a fork is made of its tree counts as changed in the fork, whatever came into it.
#[test]
fn a_fork_of_a_live_tree_takes_nothing_changed_for_untouched() {
    const FILES: u64 = 600;
    for fixture in [Fixture::xfs(), Fixture::reflink_on_btrfs()] {
        let (layer, container) = fixture.pair(|root| {
            for number in 0..FILES {
                let directory = root.join(format!("d{}", number % 7));
                fs::create_dir_all(&directory).expect("mkdir");
                fs::write(directory.join(number.to_string()), random_bytes(9000)).expect("write");
            }
        });
        let mut changed_late = false;
        for turn in 0..6 {
            let stop = AtomicBool::new(false);
            let fork = thread::scope(|scope| {
                let _stopped = SetOnDrop(&stop);
                scope.spawn(|| {
                    // Same sizes and times: only the change time tells, and the bytes.
                    for number in (0..FILES).cycle().skip(turn * 100) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let path = container.root().join(format!("d{}/{number}", number % 7));
                        let file = OpenOptions::new().write(true).open(path).expect("open");
                        let before = file.metadata().expect("stat").modified().expect("a time");
                        file.write_all_at(&random_bytes(20), 5000).expect("write");
                        file.set_modified(before).expect("set the time");
                        thread::sleep(Duration::from_micros(100));
                    }
                });
                thread::sleep(Duration::from_millis(5));
                fixture.forked(&container, Access::Writable)
            });
            let (found, method) = fixture.agreed(&format!("turn {turn}"), &layer, &fork);
            assert_eq!(method, FeedMethod::Manifest);
            changed_late |= !found.is_empty() && found.len() < FILES as usize;
            fixture.backend.destroy(&fork).expect("destroy");
            let fresh = Tree::new(container.place(), container.group());
            fixture.backend.replace(&layer, &fresh, None).expect("start again");
        }
        assert!(changed_late, "the writer was never in the middle of it");
    }
}

/// What is taken from a file after its blocks are shared, which takes long where they are many, may be newer than what was
/// known of it before.
#[test]
fn an_attribute_that_comes_while_blocks_are_shared_is_no_secret() {
    const FILES: usize = 30;
    let fixture = Fixture::xfs();
    let name = |number: usize| format!("file-{number}");
    let set = |path: &Path, name: &str| lsetxattr(path, name, b"x", XattrFlags::empty()).expect("set an xattr");
    let (layer, mut container) = fixture.pair(|root| {
        for number in 0..FILES {
            let file = File::create(root.join(name(number))).expect("create");
            (0..600).for_each(|block| file.write_all_at(&[7; 4096], block * 8192).expect("write"));
            set(&root.join(name(number)), "user.before");
        }
    });
    for turn in 0..4 {
        let stop = AtomicBool::new(false);
        let fork = thread::scope(|scope| {
            let _stopped = SetOnDrop(&stop);
            scope.spawn(|| {
                // Each once, in an order of its own.
                for number in (0..FILES).map(|number| (number * 29 + turn) % FILES) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    set(&container.root().join(name(number)), "user.while");
                    thread::sleep(Duration::from_micros(500));
                }
            });
            fixture.forked(&container, Access::Writable)
        });
        let changes = fixture.feed(Some(&layer), &fork, false);
        assert_eq!(changes.method, FeedMethod::Manifest);
        let found: HashSet<_> = changes.list.into_iter().map(|change| change.path).collect();
        for number in 0..FILES {
            let has = lgetxattr(fork.root().join(name(number)), "user.while", &mut [0; 9]).is_ok();
            assert_eq!(has, found.contains(Path::new(&name(number))), "turn {turn}, file {number}");
        }
        fixture.backend.destroy(&fork).expect("destroy");
        fixture.backend.destroy(&container).expect("destroy");
        container = fixture.container(&layer);
    }
}

/// With `--nocapture` it prints what each way takes.
#[test]
#[allow(clippy::print_stderr, reason = "measured times, shown with --nocapture")]
fn a_manifest_spares_reading_what_nobody_touched() {
    const FILES: usize = 10_000;
    let fixture = Fixture::xfs();
    let (layer, container) = fixture.pair(|root| {
        let data = random_bytes(20_000);
        for number in 0..FILES {
            let directory = root.join(format!("usr/share/package-{}/part-{}", number % 400, number % 7));
            if number < 2800 {
                fs::create_dir_all(&directory).expect("mkdir");
            }
            fs::write(directory.join(format!("resource-{number}")), &data[..number * 7919 % data.len()])
                .expect("write");
        }
    });
    for number in 0..10 {
        let path = container.root().join(format!("usr/share/package-{number}/part-{number}"));
        fs::create_dir_all(&path).expect("mkdir");
        fs::write(path.join(format!("new-{number}")), "new").expect("write");
    }
    fixture.backend.sync().expect("sync");
    let timed = |cold: bool, ask: &dyn Fn() -> usize| {
        if cold {
            File::options()
                .write(true)
                .open("/proc/sys/vm/drop_caches")
                .and_then(|f| f.write_all_at(b"3", 0))
                .expect("root");
        }
        let start = Instant::now();
        (ask(), start.elapsed())
    };
    let by_manifest = || fixture.feed(Some(&layer), &container, false).list.len();
    let by_walking = || walk(&comparison(&layer, &container, false)).expect("walk").list.len();
    for cold in [true, false] {
        let (found, fast) = timed(cold, &by_manifest);
        let (expected, slow) = timed(cold, &by_walking);
        eprintln!("{}: manifest {fast:.1?}, walk {slow:.1?}", if cold { "cold" } else { "warm" });
        assert_eq!(found, expected);
    }
    let changes = fixture.feed(Some(&layer), &container, false);
    assert_eq!(changes.method, FeedMethod::Manifest);
    assert_eq!(
        lines(&changes).iter().filter(|(_, what, kind)| (*what, *kind) == (Added, EntryKind::File)).count(),
        10
    );
}

/// Ends what the other threads of a test do, also when it fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
