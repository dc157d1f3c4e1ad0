//! What the packer writes, read by others: GNU tar, libarchive's bsdtar, Python's tarfile. And what it does with trees that
//! are in nobody's order.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use reflinkd::layer::pack::{Item, Packed, pack, pack_tree};
use reflinkd::layer::sink::{Plain, Sink};
use reflinkd::layer::{IdMaps, Limits, unpack};
use reflinkd::{Kind, Result};
use rustix::fs::{AtFlags, CWD, FileType, Timespec, Timestamps};

use super::fixture::{run, scratch};
use super::tree::{Tree, What, assert_same, data_map, read};

const HUGE: u64 = (9 << 30) + 5;

fn packed(root: &Path, items: &[&str]) -> Result<(Vec<u8>, Packed)> {
    let items: Vec<Item> = items
        .iter()
        .map(|item| match item.strip_prefix('-') {
            Some(path) => Item::Hide(path.into()),
            None => Item::Make((*item).into()),
        })
        .collect();
    let mut tar = Plain(Vec::new());
    let packed = pack(root, &items, &IdMaps::default(), u64::MAX, &mut tar, &|| false)?;
    Ok((tar.0, packed))
}

fn whole(root: &Path, to: &Path) -> Packed {
    let mut tar = Plain(File::create(to).expect("create"));
    pack_tree(root, u64::MAX, &mut tar, &|| false).expect("pack")
}

/// Names of the tar, each as it stands there.
fn names(tar: &[u8]) -> Vec<String> {
    let listed = super::listing::list(tar, u64::MAX).expect("list");
    listed.iter().map(|listed| listed.entry.name.escape_ascii().to_string()).collect()
}

/// What Python keeps: no attributes, no times of symlinks, no hard links to one that leads nowhere; other times as
/// doubles, which lose some 200 ns today.
fn as_python_has_it(mut tree: Tree) -> Tree {
    for seen in tree.values_mut() {
        seen.xattrs.clear();
        let us = (i128::from(seen.mtime.0) * 1_000_000_000 + i128::from(seen.mtime.1) + 500).div_euclid(1000);
        let time = (us.div_euclid(1_000_000) as i64, us.rem_euclid(1_000_000) as u32);
        (seen.mtime, seen.first) = match seen.what {
            What::Symlink(_) => ((0, 0), Vec::new()),
            _ => (time, std::mem::take(&mut seen.first)),
        };
    }
    tree
}

#[test]
fn others_read_what_is_packed() {
    let dir = scratch();
    let (from, tar) = (dir.path().join("from"), dir.path().join("archive"));
    fs::create_dir(&from).expect("mkdir");
    super::foreign::everything(&from);
    fs::write(from.join("far"), "x").expect("write");
    // In a PAX record, which POSIX wants to be UTF-8.
    fs::write(from.join(OsStr::from_bytes(&[0xfe; 120])), "x").expect("write");
    chown(from.join("far"), Some(3_000_000_000), Some(2_097_152)).expect("chown");
    for (name, tv_sec) in [("far", 1 << 33), ("", 1_600_000_000)] {
        let time = Timespec { tv_sec, tv_nsec: 5 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, from.join(name), &times, AtFlags::empty()).expect("utimensat");
    }
    let expected = read(&from);
    let packed = whole(&from, &tar);
    assert_eq!(packed.entries, expected.len() as u64);
    let archive = tar.to_str().expect("UTF-8");

    for (program, options) in [("tar", &["--quoting-style=escape"][..]), ("bsdtar", &[])] {
        let output = Command::new(program).env("LC_ALL", "C.UTF-8").args(["-tf", archive]).args(options).output();
        let output = output.expect(program);
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.iter().filter(|&&byte| byte == b'\n').count();
        assert_eq!(lines, expected.len(), "{program}: {}", String::from_utf8_lossy(&output.stdout));
    }

    let extract = |what: &str, command: &mut Command| {
        let to = dir.path().join(what);
        fs::create_dir(&to).expect("mkdir");
        run(command.env("LC_ALL", "C.UTF-8").current_dir(&to));
        to
    };
    let xattrs = ["--xattrs", "--xattrs-include=*"];
    let gnu = ["-xpf", archive, "--numeric-owner"];
    let to = extract("gnu", Command::new("tar").args(gnu).args(xattrs));
    assert_same(&read(&to), &expected, || "GNU tar".to_string());

    let to = extract("bsd", Command::new("bsdtar").args(["-xpf", archive, "--numeric-owner"]));
    // It leaves the directory alone that it is in, and takes -5.25 for -5 and 0.25.
    let theirs = |mut tree: Tree| {
        tree.remove(&b""[..]);
        tree.get_mut(&b"-dash"[..]).expect("it is there").mtime = (0, 0);
        tree
    };
    assert_same(&theirs(read(&to)), &theirs(expected.clone()), || "bsdtar".to_string());

    const SCRIPT: &str = "import sys, tarfile\ntarfile.open(sys.argv[1], encoding='utf-8', errors='surrogateescape')\
                          .extractall(numeric_owner=True, filter='fully_trusted')";
    let to = extract("python", Command::new("python3").args(["-c", SCRIPT, archive]));
    assert_same(&as_python_has_it(read(&to)), &as_python_has_it(expected), || "tarfile".to_string());
}

#[test]
fn others_read_a_sparse_file() {
    let dir = scratch();
    let (from, tar) = (dir.path().join("from"), dir.path().join("archive"));
    fs::create_dir(&from).expect("mkdir");
    let huge = File::create(from.join("huge")).expect("create");
    huge.set_len(HUGE).expect("lengthen");
    let parts = [(0, 1), (5 << 20, 100_000), (4 << 30, 65_536), (HUGE - 3, 3)];
    for (at, length) in parts {
        huge.write_all_at(&vec![7; length], at).expect("write");
    }
    let ends = File::create(from.join("ends-with-a-hole")).expect("create");
    ends.set_len(3 << 30).expect("lengthen");
    ends.write_all_at(b"x", 9).expect("write");
    File::create(from.join("nothing")).expect("create").set_len(1 << 30).expect("lengthen");
    let packed = whole(&from, &tar);
    assert_eq!(packed.file_bytes, HUGE + (3 << 30) + (1 << 30));
    assert!(packed.bytes < 1 << 20, "{}", packed.bytes);
    assert_eq!(packed.bytes, tar.metadata().expect("stat").len());
    let archive = tar.to_str().expect("UTF-8");
    let python = ["-c", "import sys, tarfile\ntarfile.open(sys.argv[1]).extractall(filter='fully_trusted')", archive];
    for (program, args) in [("tar", &["-xf", archive][..]), ("bsdtar", &["-xf", archive]), ("python3", &python)] {
        let to = dir.path().join(program);
        fs::create_dir(&to).expect("mkdir");
        run(Command::new(program).args(args).current_dir(&to));
        compare_sparse(program, &from, &to);
    }
    let to = dir.path().join("ours");
    fs::create_dir(&to).expect("mkdir");
    unpack(&mut File::open(&tar).expect("open"), &to, &Limits::default(), &|| false).expect("unpack");
    compare_sparse("unpack", &from, &to);
}

/// Where the one has data, the other has the same; holes of the one that hold data in the other are zeros.
fn compare_sparse(what: &str, from: &Path, to: &Path) {
    for name in ["huge", "ends-with-a-hole", "nothing"] {
        let [from, to] = [from, to].map(|tree| tree.join(name));
        let [ours, theirs] = [&from, &to].map(|path| path.metadata().expect("stat").len());
        assert_eq!(ours, theirs, "{what}: {name}");
        let content = |path: &Path, (start, end): (u64, u64)| {
            let mut bytes = vec![0; (end - start) as usize];
            File::open(path).expect("open").read_exact_at(&mut bytes, start).expect("read");
            bytes
        };
        assert!(what != "unpack" || to.metadata().expect("stat").blocks() * 512 < 1 << 20, "{name} is sparse");
        for part in [data_map(&from), data_map(&to)].concat() {
            assert!(part.1 - part.0 < 1 << 20, "{what}: {name} is sparse: {part:?}");
            assert!(content(&from, part) == content(&to, part), "{what}: {name} at {part:?}");
        }
    }
}

#[test]
fn parents_markers_and_links_stand_where_they_have_to() {
    let dir = scratch();
    let root = dir.path();
    fs::create_dir_all(root.join("a/b/c")).expect("mkdir");
    for file in ["a/b/c/f", "a/b-file", "a/z", "top"] {
        fs::write(root.join(file), file).expect("write");
    }
    fs::hard_link(root.join("top"), root.join("a/b/link")).expect("link");
    symlink("a", root.join("s")).expect("symlink");
    let listed = |items: &[&str]| names(&packed(root, items).expect("pack").0);
    assert_eq!(listed(&[]), Vec::<String>::new());
    assert_eq!(listed(&["", "s"]), ["./", "s"]);
    assert_eq!(listed(&["a/b/c/f", "a/b-file"]), ["a/", "a/b/", "a/b/c/", "a/b/c/f", "a/b-file"]);
    assert_eq!(
        listed(&["-0", "a/b/c", "-a/b/gone", "-a/q", "a/z", "-zz"]),
        [".wh.0", ".wh.zz", "a/", "a/.wh.q", "a/b/", "a/b/.wh.gone", "a/b/c/", "a/z"]
    );
    assert_eq!(listed(&["", "-0"]), ["./", ".wh.0"]);
    // A link whose other name is no item carries the content.
    let (tar, of_both) = packed(root, &["a/b/link", "top"]).expect("pack");
    assert_eq!(names(&tar), ["a/", "a/b/", "a/b/link", "top"]);
    let (_, of_one) = packed(root, &["top"]).expect("pack");
    assert_eq!((of_both.file_bytes, of_one.file_bytes), (3, 3));
    assert_eq!((of_both.entries, of_one.entries), (4, 1));
}

#[test]
fn what_no_layer_can_hold() {
    let dir = scratch();
    let root = dir.path();
    fs::create_dir(root.join("d")).expect("mkdir");
    fs::write(root.join("d/.wh.x"), "").expect("write");
    rustix::fs::mknodat(rustix::fs::CWD, root.join("socket"), rustix::fs::FileType::Socket, 0o600.into(), 0)
        .expect("mknod");
    let error = packed(root, &["d", "d/.wh.x"]).expect_err("a marker's name");
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("\"d/.wh.x\"") && error.hint().is_some(), "{error}");
    assert_eq!(packed(root, &["-d/.wh.x"]).expect_err("hides a marker's name").kind(), Kind::Unsupported);
    assert_eq!(packed(root, &["not-there"]).expect_err("gone").kind(), Kind::NotFound);
    assert_eq!(packed(root, &["not-there/below"]).expect_err("gone").kind(), Kind::NotFound);
    assert_eq!(packed(root, &["d/.wh.x/below"]).expect_err("no directory").kind(), Kind::Unsupported);
    symlink("d", root.join("s")).expect("symlink");
    assert_eq!(packed(root, &["s/.wh.x"]).expect_err("through a symlink").kind(), Kind::NotFound);
    let (tar, left) = packed(root, &["", "socket"]).expect("pack");
    assert_eq!((names(&tar), left.left_out, left.entries), (vec!["./".to_string()], 1, 1));
    let tar = dir.path().with_extension("tar");
    let whole = whole(root, &tar);
    assert_eq!(names(&fs::read(&tar).expect("read")), ["./", "d/", "d/.wh.x", "s"]);
    assert_eq!(whole.left_out, 1);
    fs::remove_file(tar).expect("rm");

    let mut sink = Plain(Vec::new());
    let error = pack_tree(root, 2000, &mut sink, &|| false).expect_err("a limit");
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("2000 bytes"), "{error}");
    assert!(sink.0.len() <= 2000);
    let asked = Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) == 2;
    let error = pack_tree(root, u64::MAX, &mut Plain(Vec::new()), &cancelled).expect_err("cancelled");
    assert_eq!(error.kind(), Kind::Interrupted);
}

/// Does something when the first bytes of a file have come by.
struct Meddling<F: FnOnce()>(Vec<u8>, Option<F>);

impl<F: FnOnce()> Sink for Meddling<F> {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.extend(bytes);
        Ok(())
    }

    fn content(&mut self, _: &[u8], _: u64, bytes: &[u8]) -> Result<()> {
        self.0.extend(bytes);
        if let Some(meddle) = self.1.take() {
            meddle();
        }
        Ok(())
    }
}

#[test]
fn a_tree_may_change_meanwhile() {
    let dir = scratch();
    let root = dir.path();
    fs::create_dir_all(root.join("d/e")).expect("mkdir");
    for file in ["b", "c", "d/f", "e"] {
        fs::write(root.join(file), file).expect("write");
    }
    fs::write(root.join("a"), vec![7; 1_000_000]).expect("write");
    symlink("/etc", root.join("to-etc")).expect("symlink");
    let meddle = || {
        let a = fs::OpenOptions::new().write(true).open(root.join("a")).expect("open");
        a.set_len(300_000).expect("shorten");
        fs::remove_file(root.join("b")).expect("rm");
        // A directory becomes a link that leads out of the tree.
        fs::remove_dir_all(root.join("d")).expect("rm");
        fs::rename(root.join("to-etc"), root.join("d")).expect("rename");
    };
    let mut sink = Meddling(Vec::new(), Some(meddle));
    let packed = pack_tree(root, u64::MAX, &mut sink, &|| false).expect("pack");
    let tar = sink.0;
    assert_eq!(names(&tar), ["./", "a", "c", "d", "e"]);
    assert_eq!(packed.bytes, tar.len() as u64);
    let to = scratch();
    unpack(&mut &tar[..], to.path(), &Limits::default(), &|| false).expect("unpack");
    let a = fs::read(to.path().join("a")).expect("read");
    assert_eq!(a.len(), 1_000_000);
    assert!(a[..262_144].iter().all(|&byte| byte == 7) && a[300_000..].iter().all(|&byte| byte == 0));
}

#[test]
fn nothing_is_opened_that_may_bite_and_times_of_access_stay() {
    let dir = scratch();
    let root = dir.path();
    fs::create_dir(root.join("d")).expect("mkdir");
    fs::write(root.join("d/f"), "x").expect("write");
    // Opening it for reading would wait for a writer, for ever.
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, 0o600.into(), 0).expect("mkfifo");
    // Nobody drives this one: opening it is ENXIO.
    let device = rustix::fs::makedev(4000, 7);
    rustix::fs::mknodat(CWD, root.join("device"), FileType::CharacterDevice, 0o600.into(), device).expect("mknod");
    let old = Timespec { tv_sec: 5, tv_nsec: 0 };
    let times = Timestamps { last_access: old, last_modification: Timespec { tv_sec: 1000, tv_nsec: 0 } };
    for name in ["", "d", "d/f"] {
        rustix::fs::utimensat(CWD, root.join(name), &times, AtFlags::empty()).expect("utimensat");
    }
    let mut tar = Plain(Vec::new());
    pack_tree(root, u64::MAX, &mut tar, &|| false).expect("pack");
    assert_eq!(names(&tar.0), ["./", "d/", "d/f", "device", "fifo"]);
    for name in ["", "d", "d/f"] {
        assert_eq!(root.join(name).metadata().expect("stat").atime(), 5, "{name}");
    }
}

#[test]
fn depth_costs_no_descriptors() {
    let dir = scratch();
    let mut at = rustix::fs::open(dir.path(), rustix::fs::OFlags::PATH, 0.into()).expect("open");
    let depth = 1500;
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "deep", 0o755.into()).expect("mkdir");
        rustix::fs::mkdirat(&at, "side", 0o755.into()).expect("mkdir");
        at = rustix::fs::openat(&at, "deep", rustix::fs::OFlags::PATH, 0.into()).expect("open");
    }
    let most = Cell::new(0);
    let count = || {
        most.set(most.get().max(fs::read_dir("/proc/self/fd").expect("list").count()));
        false
    };
    count();
    let before = most.get();
    let mut tar = Plain(Vec::new());
    let packed = pack_tree(dir.path(), u64::MAX, &mut tar, &count).expect("pack");
    assert_eq!(packed.entries, 1 + 2 * depth);
    // Other tests of this process have some of their own.
    assert!(most.get() < before + 200, "{before} {}", most.get());
    let deepest = vec![OsStr::new("deep").as_bytes(); depth as usize].join(&b'/');
    let items = [Item::Make([&deepest[..deepest.len() - 4], b"side"].concat())];
    let packed =
        pack(dir.path(), &items, &IdMaps::default(), u64::MAX, &mut Plain(Vec::new()), &count).expect("pack");
    assert_eq!(packed.entries, depth);
}
