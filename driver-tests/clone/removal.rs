//! What is to go goes, and nothing else.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::thread;

use reflinkd::Kind;
use reflinkd::backend::remove::remove_tree;
use rustix::fs::IFlags;

use crate::fixture::{Setup, everything, set_flags};
use crate::support::{arg, run};

#[test]
fn what_is_missing_is_removed() {
    let fs = Setup::Tmpfs.make();
    assert_eq!(remove_tree(&fs.path().join("missing")).expect("remove nothing"), 0);
}

#[test]
fn only_directories_are_removed() {
    let fs = Setup::Tmpfs.make();
    let (file, link, directory) = (fs.path().join("file"), fs.path().join("link"), fs.path().join("directory"));
    fs::write(&file, "text").unwrap();
    fs::create_dir(&directory).unwrap();
    symlink(&directory, &link).unwrap();
    for path in [&file, &link] {
        let error = remove_tree(path).expect_err("it is no directory");
        assert!(error.to_string().contains(arg(path)), "{error}");
    }
    assert!(file.exists() && directory.exists() && link.is_symlink());
}

#[test]
fn flags_are_no_protection() {
    for setup in [Setup::Xfs, Setup::Btrfs, Setup::Ext4, Setup::Tmpfs] {
        let fs = setup.make();
        let root = fs.path().join("root");
        everything(setup, &root);
        set_flags(&root, IFlags::IMMUTABLE | IFlags::APPEND);
        remove_tree(&root).expect("remove a tree with flags");
        assert!(!root.exists());
    }
}

/// Flags are cleared inside of the tree only.
#[test]
fn a_directory_around_it_keeps_its_flags() {
    let fs = Setup::Xfs.make();
    let around = fs.path().join("around");
    fs::create_dir_all(around.join("root/below")).unwrap();
    set_flags(&around, IFlags::IMMUTABLE);
    let error = remove_tree(&around.join("root")).expect_err("the directory around it is immutable");
    assert_eq!(error.kind(), Kind::Denied, "{error}");
    assert!(around.join("root").exists());
    assert!(reflinkd::sys::reflink::flags(File::open(&around).unwrap()).unwrap().contains(IFlags::IMMUTABLE));
    set_flags(&around, IFlags::empty());
}

#[test]
fn two_remove_it_at_once() {
    let fs = Setup::Xfs.make();
    let root = fs.path().join("root");
    for round in 0..5 {
        everything(Setup::Xfs, &root);
        for number in 0..2000 {
            fs::write(root.join(format!("names/{number}")), "").unwrap();
            fs::create_dir_all(root.join(format!("names/d{number}/below"))).unwrap();
        }
        let total = thread::scope(|scope| {
            let threads = [scope.spawn(|| remove_tree(&root)), scope.spawn(|| remove_tree(&root))];
            threads.map(|thread| thread.join().unwrap().expect("remove what another removes too")).iter().sum::<u64>()
        });
        assert!(!root.exists(), "round {round}");
        assert!(total > 6000, "each entry is removed by one: {total}");
    }
}

#[test]
fn a_mount_inside_stays() {
    let fs = Setup::Xfs.make();
    let root = fs.path().join("root");
    for on_directory in [true, false] {
        fs::create_dir_all(root.join("a/b")).unwrap();
        let (source, target) = (fs.path().join("source"), root.join("a/b/target"));
        if on_directory {
            fs::create_dir_all(&source).unwrap();
            fs::create_dir(&target).unwrap();
            fs::write(source.join("precious"), "text").unwrap();
        } else {
            fs::write(&source, "text").unwrap();
            fs::write(&target, "").unwrap();
        }
        run("mount", &["--bind", arg(&source), arg(&target)]);
        let refused = remove_tree(&root);
        run("umount", &[arg(&target)]);
        let error = refused.expect_err("something is mounted inside");
        assert_eq!(error.kind(), Kind::InUse, "{error}");
        assert!(error.to_string().contains("a/b") && error.to_string().contains("target"), "{error}");
        assert!(if on_directory { source.join("precious").exists() } else { source.exists() });
        remove_tree(&root).expect("remove it without the mount");
        remove_tree(&source).or_else(|_| fs::remove_file(&source).map(|()| 0)).unwrap();
    }
}
