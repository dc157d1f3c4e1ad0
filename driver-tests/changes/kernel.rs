//! What the feed of Btrfs relies on the kernel for, and what it does where that ends.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use reflinkd::Kind;
use reflinkd::backend::changes::What::{Added, Modified, Touched};
use reflinkd::backend::changes::{Comparison, EntryKind, FeedMethod, walk};
use reflinkd::backend::{Access, QuotaMode, Tree, Want};
use reflinkd::sys::btrfs::{BtrfsFd, subvol};
use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, mkdirat, mknodat, openat, renameat_with};

use crate::fixture::Fixture;
use crate::model::lines;
use crate::support::{MIB, Process, QuotaSetup, arg, random_bytes, run};

fn small(root: &Path) {
    fs::create_dir(root.join("d")).expect("mkdir");
    for file in ["a", "d/b"] {
        fs::write(root.join(file), random_bytes(20_000)).expect("write");
    }
}

fn found_by(fixture: &Fixture, layer: &Tree, container: &Tree) -> FeedMethod {
    fixture.agreed("as it is", layer, container).1
}

#[test]
fn what_nobody_touched_is_known_at_once() {
    let fixture = Fixture::btrfs(QuotaSetup::Simple);
    fixture.fs().no_access_times();
    let (layer, container) = fixture.pair(small);
    let unchanged = || assert_eq!(found_by(&fixture, &layer, &container), FeedMethod::Unchanged);
    unchanged();
    fixture.backend.quotas().expect("simple quotas").set_limit(&container, Some(MIB)).expect("limit");
    unchanged();
    fs::read(container.root().join("a")).expect("read");
    fixture.backend.sync().expect("sync");
    unchanged();
    let clone = fixture.tree();
    fixture.backend.clone_tree(&container, &clone, Access::Writable, None).expect("clone");
    fs::write(clone.root().join("a"), "the clone's").expect("write");
    unchanged();
    fixture.backend.set_quota_mode(QuotaMode::None).expect("quotas off");
    fixture.backend.set_quota_mode(QuotaMode::Full).expect("full quotas");
    unchanged();
    run("btrfs", &["balance", "start", "--full-balance", arg(fixture.fs().path())]);
    unchanged();
    fs::set_permissions(container.root().join("a"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(found_by(&fixture, &layer, &container), FeedMethod::Send);
}

#[test]
fn an_access_time_is_no_change() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    // With `relatime` the first read writes it.
    fs::read(container.root().join("a")).expect("read");
    let (found, method) = fixture.agreed("read", &layer, &container);
    assert_eq!((found.len(), method), (0, FeedMethod::Send));
}

#[test]
fn what_is_in_memory_only_is_seen() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    let changed = || {
        let changes = fixture.feed(Some(&layer), &container, false);
        changes.list.into_iter().map(|change| change.path.to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    // Without the page cache being written back: the file was opened, and its pages mapped, before.
    let file = OpenOptions::new().write(true).open(container.root().join("a")).expect("open");
    const MAPPER: &str = "import mmap, sys\n\
        f = open(sys.argv[1], 'r+b')\n\
        m = mmap.mmap(f.fileno(), 0)\n\
        for line in sys.stdin:\n    m[int(line)] ^= 255\n    print(flush=True)\n";
    let mut command = Command::new("python3");
    command.args(["-c", MAPPER]).arg(container.root().join("d/b")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut mapper = Process::spawn(&mut command);
    let mut stdin = mapper.child().stdin.take().expect("piped");
    let mut stdout = BufReader::new(mapper.child().stdout.take().expect("piped"));
    let mut store = |at: u32| {
        writeln!(stdin, "{at}").expect("ask");
        stdout.read_line(&mut String::new()).expect("stored");
    };
    assert!(changed().is_empty());
    file.write_all_at(b"x", 5).expect("write");
    assert_eq!(changed(), ["a"]);
    store(100);
    assert_eq!(changed(), ["a", "d/b"]);
    // A page that was mapped, written and written back already.
    let before = fs::read(container.root().join("d/b")).expect("read");
    store(101);
    let layered = container_of(&fixture, &container);
    assert_ne!(fs::read(layered.root().join("d/b")).expect("read"), before, "a snapshot has it");
    assert_eq!(changed(), ["a", "d/b"]);
}

/// A read-only clone.
fn container_of(fixture: &Fixture, tree: &Tree) -> Tree {
    let copy = fixture.tree();
    fixture.backend.clone_tree(tree, &copy, Access::ReadOnly, None).expect("clone");
    copy
}

#[test]
fn a_path_longer_than_the_kernels_is_walked() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    let name = "n".repeat(250);
    let mut directory = File::open(container.root()).expect("open");
    for _ in 0..40 {
        mkdirat(&directory, &name, Mode::RWXU).expect("mkdir");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        directory = openat(&directory, &name, flags, Mode::empty()).map(File::from).expect("open");
    }
    let changes = fixture.feed(Some(&layer), &container, true);
    let deepest = changes.list.last().expect("some");
    assert_eq!((deepest.path.as_os_str().len(), deepest.what), (40 * 251 - 1, Added));
    // Within one tick of the clock the root's time is what it was.
    let added = changes.list.iter().filter(|change| change.what == Added).count();
    assert_eq!((added, changes.method), (40, FeedMethod::Walk));
    drop(directory);
    // The layer may have one, too.
    let committed = container_of(&fixture, &container);
    let next = fixture.container(&committed);
    fs::write(next.root().join("new"), "").expect("write");
    let found = lines(&fixture.feed(Some(&committed), &next, false));
    assert_eq!(found, [(String::new(), Touched, EntryKind::Directory), ("new".to_string(), Added, EntryKind::File)]);
}

#[test]
fn what_send_cannot_compare_is_walked() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    // Another tree with the same inode numbers, of which each is another thing.
    let (other, _) = fixture.pair(|root| {
        fs::write(root.join("d"), "").expect("write");
        fs::create_dir(root.join("a")).expect("mkdir");
    });
    assert_eq!(found_by(&fixture, &other, &container), FeedMethod::Walk);
    fs::write(container.root().join("new"), "x").expect("write");
    subvol::set_read_only(&BtrfsFd::open(&layer.root()).expect("open"), false).expect("writable");
    assert_eq!(found_by(&fixture, &layer, &container), FeedMethod::Walk);
    fs::write(layer.root().join("a"), "the layer's").expect("write");
    assert_eq!(found_by(&fixture, &layer, &container), FeedMethod::Walk);
}

#[test]
fn a_layer_that_was_written_to_is_not_taken_for_what_it_was() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    fixture.fs().no_access_times();
    let (layer, container) = fixture.pair(small);
    assert_eq!(found_by(&fixture, &layer, &container), FeedMethod::Unchanged);
    let root = BtrfsFd::open(&layer.root()).expect("open");
    subvol::set_read_only(&root, false).expect("writable");
    fs::write(layer.root().join("a"), "the layer's").expect("write");
    fixture.backend.sync().expect("sync");
    subvol::set_read_only(&root, true).expect("read-only");
    let (found, method) = fixture.agreed("a layer that was written to", &layer, &container);
    assert_eq!((found.len(), method), (1, FeedMethod::Send));
}

#[test]
fn clones_of_clones_are_compared_with_the_first() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    fs::write(container.root().join("a"), "the container's").expect("write");
    let committed = container_of(&fixture, &container);
    let clone = fixture.container(&committed);
    fixture.backend.destroy(&container).expect("destroy");
    fs::write(clone.root().join("d/new"), "the clone's").expect("write");
    let (found, method) = fixture.agreed("a clone of a clone", &layer, &clone);
    assert_eq!((found.len(), method), (3, FeedMethod::Send));
    // A committed tree needs no snapshot.
    let wanted = Comparison { parent: Some(&layer), tree: &committed, scratch: None, sizes: false };
    let changes = fixture.backend.changes(&wanted).expect("changes");
    assert_eq!(lines(&changes), [("a".to_string(), Modified, EntryKind::File)]);
    assert_eq!(changes.method, FeedMethod::Send);
}

#[test]
fn a_tree_without_a_parent_is_all_its_own() {
    for fixture in [Fixture::btrfs(QuotaSetup::None), Fixture::memory()] {
        let tree = fixture.tree();
        fixture.backend.create(&tree, None).expect("create");
        small(&tree.root());
        let changes = fixture.feed(None, &tree, true);
        let paths: Vec<_> =
            changes.list.iter().map(|change| (change.path.to_str().expect("text"), change.what)).collect();
        assert_eq!(paths, [("", Added), ("a", Added), ("d", Added), ("d/b", Added)]);
        let sizes: Vec<_> = changes.list.iter().map(|change| change.size).collect();
        assert_eq!(sizes, [Some(0), Some(20_480), Some(0), Some(20_480)]);
    }
}

#[test]
fn failures_leave_nothing() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    fs::write(container.root().join("new"), "").expect("write");
    let (gone, scratch) = (fixture.tree(), fixture.tree());
    let nowhere = Tree::new(fixture.fs().path().join("nowhere"), None);
    let ask = |parent, tree, scratch| {
        let error =
            fixture.backend.changes(&Comparison { parent: Some(parent), tree, scratch: Some(scratch), sizes: true });
        error.expect_err("this must fail")
    };
    for error in [ask(&layer, &gone, &scratch), ask(&gone, &container, &scratch), ask(&layer, &container, &nowhere)] {
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        assert!(error.to_string().contains("/mnt/"), "it names a path: {error}");
    }
    assert_eq!(ask(&layer, &container, &container).kind(), Kind::Exists);
    let swap = container.root().join("swap");
    File::create(&swap).expect("create");
    run("chattr", &["+C", arg(&swap)]);
    fs::write(&swap, vec![0; 4 << 20]).expect("write");
    run("mkswap", &[arg(&swap)]);
    run("swapon", &[arg(&swap)]);
    let error = ask(&layer, &container, &scratch);
    run("swapoff", &[arg(&swap)]);
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("swap is an active swapfile"), "{error}");
    assert_eq!(fs::read_dir(scratch.place()).expect("read").count(), 0);
    assert!(container.root().join("new").exists());
}

#[test]
fn charges_are_as_they_were() {
    for quota in [QuotaSetup::Simple, QuotaSetup::Full, QuotaSetup::None, QuotaSetup::Inconsistent] {
        let fixture = Fixture::btrfs(quota);
        let (layer, container) = fixture.pair(small);
        let own = random_bytes(3 * MIB);
        fs::write(container.root().join("d/own"), own).expect("write");
        let charged = || {
            let measured = fixture.backend.measure(&[&container], Want { sync: true, apparent: false });
            measured.expect("measure").sizes[0].charged
        };
        let before = charged();
        for _ in 0..3 {
            let changes = fixture.feed(Some(&layer), &container, true);
            assert_eq!(changes.method, FeedMethod::Send, "{quota:?}");
            let sizes: Vec<_> = changes.list.iter().map(|change| (change.path.to_str(), change.size)).collect();
            assert_eq!(sizes, [(Some("d"), Some(0)), (Some("d/own"), Some(3 * MIB))], "{quota:?}");
            assert_eq!(charged(), before, "{quota:?}");
        }
    }
}

#[test]
fn sizes_are_what_the_layer_does_not_hold() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(|root| {
        small(root);
        fs::write(root.join("big"), random_bytes(8 * MIB)).expect("write");
    });
    let root = container.root();
    let big = OpenOptions::new().write(true).open(root.join("big")).expect("open");
    big.write_all_at(&random_bytes(4096), MIB).expect("write");
    fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::write(root.join("d/new"), random_bytes(MIB)).expect("write");
    fs::hard_link(root.join("d/new"), root.join("e-link")).expect("link");
    run("cp", &["--reflink=always", arg(&root.join("d/new")), arg(&root.join("f-shared"))]);
    run("cp", &["--reflink=always", arg(&root.join("big")), arg(&root.join("g-shared"))]);
    fs::write(root.join("inline"), "12345").expect("write");
    let nested = make_subvolume(&root.join("d"), "nested");
    fs::write(nested.join("in"), random_bytes(2 * MIB)).expect("write");
    run("btrfs", &["subvolume", "snapshot", arg(&root), arg(&root.join("h-snapshot"))]);
    let changes = fixture.feed(Some(&layer), &container, true);
    let sizes: Vec<_> = changes.list.iter().filter(|change| change.size != Some(0)).collect();
    let sizes: Vec<_> =
        sizes.iter().map(|change| (change.path.to_str().expect("text"), change.size.expect("asked"))).collect();
    let expected = [("big", 4096), ("d/nested/in", 2 * MIB), ("d/new", MIB), ("h-snapshot/inline", 5), ("inline", 5)];
    assert_eq!(sizes, expected);
    // And together they are what the tree holds of its own.
    let measured = fixture.backend.measure(&[&container], Want { sync: true, apparent: false }).expect("measure");
    assert_eq!(measured.sizes[0].charged, expected.iter().map(|(_, size)| size).sum::<u64>());
}

fn make_subvolume(directory: &Path, name: &str) -> std::path::PathBuf {
    let path = directory.join(name);
    run("btrfs", &["subvolume", "create", arg(&path)]);
    path
}

#[test]
fn subvolumes_inside_are_part_of_the_answer() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    let root = container.root();
    // One that was elsewhere before, and is in the place of a directory of the layer.
    let moved = make_subvolume(fixture.fs().path(), "elsewhere");
    fs::write(moved.join("b"), fs::read(root.join("d/b")).expect("read")).expect("write");
    fs::remove_dir_all(root.join("d")).expect("rm");
    fs::rename(&moved, root.join("d")).expect("rename");
    fs::set_permissions(root.join("d"), fs::Permissions::from_mode(0o700)).expect("chmod");
    // Nested in each other, in a directory that was renamed then.
    fs::create_dir_all(root.join("new/dir")).expect("mkdir");
    let outer = make_subvolume(&root.join("new/dir"), "outer");
    fs::create_dir(outer.join("in")).expect("mkdir");
    let inner = make_subvolume(&outer.join("in"), "inner");
    fs::write(inner.join("data"), "x").expect("write");
    fs::hard_link(inner.join("data"), inner.join("same")).expect("link");
    fs::rename(root.join("new/dir"), root.join("renamed")).expect("rename");
    let (found, method) = fixture.agreed("nested", &layer, &container);
    assert_eq!(method, FeedMethod::Send);
    let paths: Vec<_> = found.iter().map(|(path, what, _)| (path.as_str(), *what)).collect();
    let expected = [
        ("", Touched),
        ("d", Modified),
        ("d/b", Modified),
        ("new", Added),
        ("renamed", Added),
        ("renamed/outer", Added),
        ("renamed/outer/in", Added),
        ("renamed/outer/in/inner", Added),
        ("renamed/outer/in/inner/data", Added),
        ("renamed/outer/in/inner/same", Added),
    ];
    assert_eq!(paths, expected);

    // Walked by a snapshot they are there, too; never an empty directory in their place.
    let (other, _) = fixture.pair(|_| {});
    assert_eq!(fixture.agreed("nested, walked", &other, &container).1, FeedMethod::Walk);

    // A snapshot made inside holds what is nested in its source as empty directories, and so they are its own.
    let outer = root.join("renamed/outer");
    run("btrfs", &["subvolume", "snapshot", arg(&outer), arg(&root.join("copy"))]);
    let (found, _) = fixture.agreed("a snapshot inside", &layer, &container);
    assert!(found.contains(&("copy/in/inner".to_string(), Added, EntryKind::Directory)), "{found:?}");

    // In a snapshot of the tree that outlives what was nested, there is nothing.
    let alone = fixture.tree();
    run("btrfs", &["subvolume", "snapshot", "-r", arg(&root), arg(&alone.root())]);
    let found: Vec<_> = lines(&fixture.feed(Some(&layer), &alone, true)).into_iter().map(|(path, ..)| path).collect();
    assert_eq!(found, ["", "d", "new", "renamed"]);
}

/// A process appends files, one after the other: the answer has all up to some moment, and none behind it.
#[test]
fn an_answer_is_of_one_moment() {
    let fixture = Fixture::btrfs(QuotaSetup::None);
    let (layer, container) = fixture.pair(small);
    let (stop, written) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let _stopped = SetOnDrop(&stop);
        scope.spawn(|| {
            for number in 0..200_000 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // Alternating, so that a walk would be late for the one or early for the other.
                let directory = if number % 2 == 0 { "" } else { "d" };
                fs::write(container.root().join(directory).join(format!("n{number:06}")), "x").expect("write");
                written.store(number + 1, Ordering::Release);
                thread::sleep(Duration::from_micros(200));
            }
        });
        let mut last = 0;
        for _ in 0..8 {
            while written.load(Ordering::Acquire) <= last {
                thread::sleep(Duration::from_millis(20));
            }
            let changes = fixture.feed(Some(&layer), &container, false);
            let mut numbers: Vec<usize> = changes
                .list
                .iter()
                .filter(|change| change.what == Added)
                .map(|change| {
                    change.path.file_name().expect("named").to_str().expect("text")[1..].parse().expect("a number")
                })
                .collect();
            numbers.sort_unstable();
            assert!(numbers.iter().enumerate().all(|(at, number)| at == *number), "a gap in {numbers:?}");
            assert!(numbers.len() > last, "the writer goes on");
            last = numbers.len();
        }
    });
}

/// Walked as it is, a tree may change under our feet, but not bring us down.
#[test]
fn a_tree_that_changes_can_be_walked() {
    let fixture = Fixture::memory();
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
        mknodat(CWD, root.join("socket"), FileType::Socket, Mode::RUSR, 0).expect("mknod");
    });
    let pairs =
        [("file", "link"), ("d", "file"), ("d", "link"), ("file", "socket"), ("file", "twin"), ("d/sub", "file")];
    let stop = AtomicBool::new(false);
    let path = |name| container.root().join(name);
    thread::scope(|scope| {
        let _stopped = SetOnDrop(&stop);
        // What is where is there again after two exchanges, so that each is met as it was and as something else.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (one, two) in pairs {
                    for _ in 0..2 {
                        renameat_with(CWD, path(one), CWD, path(two), RenameFlags::EXCHANGE).expect("exchange");
                    }
                }
            }
        });
        scope.spawn(|| {
            let aside = container.place().join("aside");
            while !stop.load(Ordering::Relaxed) {
                for name in ["sometimes", "link2"] {
                    fs::rename(path(name), &aside)
                        .and_then(|()| fs::rename(&aside, path(name)))
                        .expect("go and come");
                }
            }
        });
        for _ in 0..2_000 {
            let wanted = Comparison { parent: Some(&layer), tree: &container, scratch: None, sizes: true };
            walk(&wanted).expect("walk");
        }
    });
}

/// Ends what the other threads of a test do, also when it fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_mount_in_a_tree_is_named() {
    let fixture = Fixture::memory();
    let (layer, container) = fixture.pair(small);
    let at = container.root().join("d");
    run("mount", &["-t", "tmpfs", "none", arg(&at)]);
    let error = walk(&Comparison { parent: Some(&layer), tree: &container, scratch: None, sizes: false });
    run("umount", &[arg(&at)]);
    let error = error.expect_err("it hides what is there");
    assert_eq!(error.kind(), Kind::InUse);
    assert!(error.to_string().contains(&format!("something is mounted on {}", at.display())), "{error}");
}
