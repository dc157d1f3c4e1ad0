//! The label of SELinux, which is the host's: on all of a tree, in no tar. Any kernel lets root set it.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use reflinkd::Kind;
use reflinkd::layer::pack::pack_tree;
use reflinkd::layer::sink::Plain;
use reflinkd::layer::{Limits, Summary, label_of, relabel};
use reflinkd::sys::selinux::is_enabled;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, XattrFlags, getxattr, lgetxattr, lsetxattr, renameat_with};
use rustix::io::Errno;

use super::cases::{dir, file};
use super::fixture::{run, scratch};
use super::restored::unpack;
use super::tree::read;
use super::writer::{Raw, Tar};

const NAME: &str = "security.selinux";
const ONE: &str = "system_u:object_r:container_file_t:s0:c1,c2";
const OTHER: &str = "system_u:object_r:container_file_t:s0:c3,c4";

fn apply(root: &Path, entries: &[Raw]) -> Summary {
    unpack(&mut &Tar::of(entries)[..], root, &Limits::default(), &|| false).expect("unpack")
}

fn relabelled(root: &Path, label: &str) -> u64 {
    relabel(root, label, &|| false).expect("relabel")
}

fn label(path: &Path) -> Option<Vec<u8>> {
    let mut value = [0; 300];
    match lgetxattr(path, NAME, &mut value[..]) {
        Ok(length) => Some(value[..length].to_vec()),
        Err(Errno::NODATA) => None,
        Err(errno) => panic!("{}: {errno}", path.display()),
    }
}

fn stored(label: &str) -> Option<Vec<u8>> {
    Some([label.as_bytes(), b"\0"].concat())
}

#[test]
fn everything_in_a_tree_has_it_and_nothing_else() {
    let dir = scratch();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for made in [&root, &outside] {
        fs::create_dir(made).expect("mkdir");
    }
    fs::write(outside.join("f"), "x").expect("write");
    super::foreign::everything(&root);
    symlink(&outside, root.join("out")).expect("symlink");
    symlink(outside.join("f"), root.join("out-file")).expect("symlink");
    let tree = read(&root);
    let inodes = tree.values().map(|seen| &seen.first).collect::<std::collections::BTreeSet<_>>().len() as u64;
    assert!(inodes < tree.len() as u64, "some inode has two names");
    assert_eq!(label_of(&root).expect("a label"), None);
    assert_eq!(relabelled(&root, ONE), inodes);
    assert_eq!(label_of(&root).expect("a label").as_deref(), Some(ONE));
    let paths: Vec<_> = tree.keys().map(|name| root.join(OsStr::from_bytes(name))).collect();
    for path in &paths {
        assert_eq!(label(path), stored(ONE), "{}", path.display());
    }
    assert_eq!((label(&outside), label(&outside.join("f")), label(dir.path())), (None, None, None));
    let mut plain = read(&root);
    for seen in plain.values_mut() {
        seen.xattrs.remove(NAME.as_bytes());
    }
    super::tree::assert_same(&plain, &tree, || "nothing but the label".to_string());

    // What has it already isn't touched, whoever set it without the NUL.
    lsetxattr(root.join("out"), NAME, ONE.as_bytes(), XattrFlags::empty()).expect("setxattr");
    let touched = |path: &Path| {
        let facts = path.symlink_metadata().expect("stat");
        (facts.ctime(), facts.ctime_nsec())
    };
    let before: Vec<_> = paths.iter().map(|path| touched(path)).collect();
    assert_eq!(relabelled(&root, ONE), 0);
    assert_eq!(paths.iter().map(|path| touched(path)).collect::<Vec<_>>(), before);
    lsetxattr(root.join("out"), NAME, &[b'x'; 280], XattrFlags::empty()).expect("setxattr");
    lsetxattr(&root, NAME, &stored(OTHER).expect("some"), XattrFlags::empty()).expect("setxattr");
    assert_eq!(relabelled(&root, ONE), 2);
    assert_eq!(relabelled(&root, OTHER), inodes);
}

#[test]
fn what_is_no_label_is_no_label() {
    let root = scratch();
    fs::write(root.path().join("f"), "").expect("write");
    let long = format!("u:r:t:{}", "s".repeat(250));
    for (text, why) in [
        ("", "USER:ROLE:TYPE:LEVEL"),
        ("u:r:t", "USER:ROLE:TYPE:LEVEL"),
        ("u::t:s0", "USER:ROLE:TYPE:LEVEL"),
        ("u:r:t:s0\0", "the character '\\0'"),
        ("u:r:t:s0 ", "the character ' '"),
        ("u:r:t:s0\n", "the character '\\n'"),
        ("u:r:t:\u{e9}", "the character '\u{e9}'"),
        (&long, "256 bytes"),
    ] {
        let error = relabel(root.path(), text, &|| false).expect_err("no label");
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!((label(root.path()), label(&root.path().join("f"))), (None, None));
    assert_eq!(relabelled(root.path(), &long[..255]), 2);
    assert_eq!(label_of(root.path()).expect("a label").as_deref(), Some(&long[..255]));
    for error in [
        relabel(&root.path().join("gone"), ONE, &|| false).expect_err("no tree"),
        label_of(&root.path().join("gone")).map(drop).map(|()| 0_u64).expect_err("no tree"),
    ] {
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
    }
    let asked = Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) == 1;
    assert_eq!(relabel(root.path(), ONE, &cancelled).expect_err("cancelled").kind(), Kind::Interrupted);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("read");
    assert_eq!(is_enabled(), mounts.lines().any(|line| line.starts_with("selinuxfs /sys/fs/selinux ")));
}

#[test]
fn a_mount_in_the_tree_is_not_labelled() {
    let root = scratch();
    let mounted = root.path().join("mounted");
    fs::create_dir(&mounted).expect("mkdir");
    run(Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mounted));
    fs::write(mounted.join("f"), "").expect("write");
    let result = relabel(root.path(), ONE, &|| false);
    let labels = (label(&mounted), label(&mounted.join("f")));
    run(Command::new("umount").arg(&mounted));
    assert_eq!(labels, (None, None));
    let error = result.expect_err("something is mounted");
    assert!(error.kind() == Kind::InUse && error.to_string().contains("\"mounted\""), "{error}");
    assert_eq!(relabelled(root.path(), OTHER), 2);
}

/// Removed by a program that needs no descriptor for each step.
struct Deep(tempfile::TempDir);

impl Drop for Deep {
    fn drop(&mut self) {
        let _ = Command::new("rm").arg("-rf").arg(self.0.path().join("deep")).status();
    }
}

#[test]
fn depth_costs_no_descriptors() {
    let root = Deep(scratch());
    let root = root.0.path();
    let down = |at, name: &str| {
        rustix::fs::mkdirat(&at, name, 0o755.into()).expect("mkdir");
        rustix::fs::openat(&at, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open")
    };
    let mut at = rustix::fs::open(root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open");
    const DEPTH: u64 = 3000;
    for _ in 0..DEPTH {
        at = down(at, "deep");
    }
    let most = Cell::new(0);
    let count = || {
        most.set(most.get().max(fs::read_dir("/proc/self/fd").expect("list").count()));
        false
    };
    count();
    let before = most.get();
    assert_eq!(relabel(root, ONE, &count).expect("relabel"), DEPTH + 1);
    // Other tests of this process have some of their own.
    assert!(most.get() < before + 200, "{before} {}", most.get());
    let deepest = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&at));
    let mut value = [0; 300];
    let length = getxattr(deepest, NAME, &mut value[..]).expect("getxattr");
    assert_eq!(Some(value[..length].to_vec()), stored(ONE));
    assert_eq!(relabelled(root, ONE), 0);
}

/// Ends what the other thread does, also when the test fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn nobody_leads_it_out_of_the_tree() {
    let dir = scratch();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    for below in [root.join("d"), outside.clone()] {
        fs::create_dir_all(below.join("e")).expect("mkdir");
        fs::write(below.join("e/f"), "").expect("write");
    }
    symlink(&outside, root.join("s")).expect("symlink");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stopped = SetOnDrop(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                renameat_with(CWD, root.join("d"), CWD, root.join("s"), RenameFlags::EXCHANGE).expect("exchange");
            }
        });
        for turn in 0..3000 {
            relabelled(&root, if turn % 2 == 0 { ONE } else { OTHER });
        }
    });
    for path in ["", "e", "e/f"] {
        assert_eq!(label(&outside.join(path)), None, "{path}");
    }
}

#[test]
fn no_tar_has_it() {
    let root = scratch();
    let with = |raw: Raw, value: &str| Raw {
        xattrs: [(NAME, value), ("user.key", "v")].map(|(name, value)| (name.into(), value.into())).into(),
        ..raw
    };
    let entries = [with(dir("d"), OTHER), with(file("d/f"), OTHER)];
    let summary = apply(root.path(), &entries);
    assert_eq!(summary.foreign_attributes, 0, "nobody misses it");
    let names: Vec<_> =
        read(root.path()).into_values().map(|seen| seen.xattrs.into_keys().collect::<Vec<_>>()).collect();
    assert_eq!(names, [vec![], vec![b"user.key".to_vec()], vec![b"user.key".to_vec()]]);

    let packed = || {
        let mut tar = Plain(Vec::new());
        pack_tree(root.path(), u64::MAX, &mut tar, &|| false).expect("pack");
        tar.0
    };
    let before = packed();
    assert_eq!(relabelled(root.path(), ONE), 3);
    assert!(packed() == before, "a label is nothing of a tar");
    // What is merged keeps that of the host, what is new has none.
    apply(root.path(), &entries);
    let labels = ["", "d", "d/f"].map(|path| label(&root.path().join(path)));
    assert_eq!(labels, [stored(ONE), stored(ONE), None]);
    assert_eq!(relabelled(root.path(), ONE), 1);
}
