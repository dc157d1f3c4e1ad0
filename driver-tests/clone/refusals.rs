//! What can't be cloned is an error that names it, and nothing is copied instead.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use reflinkd::backend::clone::{Content, Source, clone_tree};
use reflinkd::backend::remove::remove_tree;
use reflinkd::{Error, Kind};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::fixture::Setup;
use crate::support::{LoopFs, MIB, arg, fill, run, write_random};

/// Fails as a clone must, having named `named`.
#[track_caller]
fn refused(from: &Path, to: &Path, content: Content, kind: Kind, named: &str) -> Error {
    for state in [Source::Still, Source::Live] {
        let error = clone_tree(from, to, state, content, None).expect_err("it can't be cloned");
        assert_eq!(error.kind(), kind, "{error}");
        let (text, prefix) = (error.to_string(), format!("clone {} to {}: ", from.display(), to.display()));
        assert!(text.starts_with(&prefix) && text.contains(named), "{error}");
        remove_tree(to).expect("remove what was made");
        assert!(!to.exists());
    }
    clone_tree(from, to, Source::Still, content, None).expect_err("it can't be cloned")
}

/// A tree with one file, two directories down.
fn small(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/file"), "text").unwrap();
}

#[test]
fn files_that_share_no_blocks() {
    for setup in [Setup::Ext4, Setup::Tmpfs] {
        let fs = setup.make();
        let (from, to) = (fs.path().join("from"), fs.path().join("to"));
        small(&from);
        refused(&from, &to, Content::Reflink, Kind::Unsupported, ": /a/b/file: ");
        assert_eq!(fs::read(to.join("a/b/file")).expect("it was made"), b"", "nothing is copied");
    }
}

#[test]
fn another_filesystem() {
    let (one, two) = (Setup::Xfs.make(), Setup::Xfs.make());
    let (from, to) = (one.path().join("from"), two.path().join("to"));
    small(&from);
    refused(&from, &to, Content::Reflink, Kind::Unsupported, ": /a/b/file: ");
    assert_eq!(fs::read(to.join("a/b/file")).expect("it was made"), b"", "nothing is copied");
}

/// Switched off when dropped.
struct Swap<'a>(&'a Path);

impl Drop for Swap<'_> {
    fn drop(&mut self) {
        run("swapoff", &[arg(self.0)]);
    }
}

#[test]
fn an_active_swapfile() {
    let fs = Setup::Xfs.make();
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    small(&from);
    let file = from.join("a/swap");
    write_random(&file, 16 * MIB);
    run("chmod", &["600", arg(&file)]);
    run("mkswap", &[arg(&file)]);
    run("swapon", &[arg(&file)]);
    let swap = Swap(&file);
    let error = refused(&from, &to, Content::Reflink, Kind::Unsupported, ": /a/swap: it is an active swapfile");
    assert!(error.hint().expect("a way out").contains("swapoff"));
    let error = remove_tree(&from).expect_err("the kernel uses it");
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(error.to_string().contains("/a: unlink swap: "), "{error}");
    drop(swap);
    remove_tree(&from).expect("remove it when it is off");
}

#[test]
fn mounts_inside() {
    let fs = Setup::Xfs.make();
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    small(&from);
    let outside = fs.path().join("outside");
    small(&outside);
    mknodat(CWD, from.join("a/device"), FileType::CharacterDevice, Mode::RUSR, makedev(1, 5)).unwrap();
    for (source, target) in [
        (outside.join("a"), "a/b"),
        (outside.join("a/b/file"), "a/b/file"),
        (Path::new("/dev/null").to_path_buf(), "a/device"),
    ] {
        let mountpoint = from.join(target);
        run("mount", &["--bind", arg(&source), arg(&mountpoint)]);
        let clone = std::panic::catch_unwind(|| {
            refused(&from, &to, Content::Reflink, Kind::InUse, &format!(": /{target}: something is mounted there"))
        });
        run("umount", &[arg(&mountpoint)]);
        remove_tree(&to).expect("remove what was made");
        clone.unwrap();
    }
    clone_tree(&from, &to, Source::Still, Content::Reflink, None).expect("without mounts it is cloned");
}

#[test]
fn what_is_no_tree() {
    let fs = Setup::Tmpfs.make();
    let path = |name: &str| fs.path().join(name);
    small(&path("tree"));
    symlink(path("tree"), path("link")).unwrap();
    fs::write(path("file"), "").unwrap();
    let kind = |from: &str, to: &str| {
        let result = clone_tree(&path(from), &path(to), Source::Still, Content::Copy, None);
        result.map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(kind("missing", "to"), Err(Kind::NotFound));
    assert_eq!(kind("link", "to"), Err(Kind::System));
    assert_eq!(kind("file", "to"), Err(Kind::System));
    assert!(!path("to").exists());
    assert_eq!(kind("tree", "file"), Err(Kind::Exists));
    assert_eq!(kind("tree", "link"), Err(Kind::Exists));
    assert_eq!(kind("tree", "to"), Ok(()));
    assert_eq!(kind("tree", "to"), Err(Kind::Exists));
    let error = clone_tree(&path("tree"), &path("other"), Source::Still, Content::Copy, Some(7)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "tmpfs has no projects: {error}");
}

#[test]
fn no_room_for_a_clone() {
    let fs = LoopFs::xfs(300 * MIB);
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    for number in 0..8000 {
        if number % 100 == 0 {
            fs::create_dir_all(from.join((number / 100).to_string())).unwrap();
        }
        fs::write(from.join(format!("{}/{number}", number / 100)), "text").unwrap();
    }
    let filler = fs.path().join("filler");
    fill(&filler, 400 * MIB);
    // Enough to begin with.
    let filler = fs::File::options().write(true).open(filler).unwrap();
    filler.set_len(filler.metadata().unwrap().len() - MIB).unwrap();
    refused(&from, &to, Content::Reflink, Kind::NoSpace, ": /");
}

#[test]
fn no_room_for_a_copy() {
    let fs = LoopFs::tmpfs(16 * MIB);
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    fs::create_dir(&from).unwrap();
    write_random(&from.join("file"), 10 * MIB);
    refused(&from, &to, Content::Copy, Kind::NoSpace, ": /file: ");
}
