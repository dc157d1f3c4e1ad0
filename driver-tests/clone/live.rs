//! Sources that are changed while they are cloned, by somebody who wishes us ill.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use reflinkd::Kind;
use reflinkd::backend::clone::{Content, Source, clone_tree};
use reflinkd::backend::remove::remove_tree;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, inotify, makedev, mknodat, renameat_with};
use rustix::io::Errno;

use crate::fixture::{Setup, assert_listed};
use crate::support::tree_digest;

const NUMBERS: usize = 40;
/// Clones to try before a test gives up.
const MOST: usize = 500;
const TEXT: &str = "text";
const SECRET: &str = "of the host";

/// Is told when one of some inodes is opened or read.
struct Alarm(OwnedFd);

impl Alarm {
    fn on(paths: &[&Path]) -> Self {
        let alarm = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC).unwrap();
        for path in paths {
            inotify::add_watch(&alarm, *path, inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS).unwrap();
        }
        Self(alarm)
    }

    fn rang(&self) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        match inotify::Reader::new(&self.0, &mut buffer).next() {
            Err(Errno::AGAIN) => false,
            event => {
                event.expect("read events");
                true
            }
        }
    }
}

/// Do `change` again and again, given a number that counts up, while `work` goes on.
fn meanwhile(change: impl Fn(usize) + Sync, work: impl FnOnce()) -> u64 {
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                change(number);
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Also when the work panics: else the scope waits for the changer forever.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    changes.into_inner()
}

fn exchange(one: &Path, two: &Path) {
    renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).expect("exchange");
}

/// Directories and files change places with symlinks that lead out, and with devices and FIFOs: nothing outside is read,
/// no device is opened, nothing hangs.
#[test]
fn nothing_leads_out() {
    let fs = Setup::Xfs.make();
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    let (outside, secret) = (fs.path().join("outside"), fs.path().join("outside/secret"));
    fs::create_dir(&outside).unwrap();
    fs::write(&secret, SECRET).unwrap();
    fs::create_dir(&from).unwrap();
    let device = fs.path().join("device");
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, makedev(1, 5)).unwrap();
    let path = |kind: &str, number: usize| from.join(format!("{kind}-{number}"));
    for number in 0..NUMBERS {
        fs::create_dir_all(path("directory", number).join("below")).unwrap();
        fs::write(path("directory", number).join("below/file"), TEXT).unwrap();
        symlink(&outside, path("out", number)).unwrap();
        for kind in ["file-a", "file-b", "file-c"] {
            fs::write(path(kind, number), TEXT).unwrap();
        }
        symlink(&secret, path("secret", number)).unwrap();
        mknodat(CWD, path("fifo", number), FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::hard_link(&device, path("device", number)).unwrap();
    }
    let alarm = Alarm::on(&[&outside, &secret, &device]);
    let change = |turn: usize| {
        let number = turn % NUMBERS;
        exchange(&path("directory", number), &path("out", number));
        exchange(&path("file-a", number), &path("secret", number));
        exchange(&path("file-b", number), &path("fifo", number));
        exchange(&path("file-c", number), &path("device", number));
    };
    let changes = meanwhile(change, || {
        let mut clones = 0;
        for tries in 0.. {
            if clones >= 20 {
                break;
            }
            assert!(tries < MOST, "{clones} clones of {tries} succeeded: this shows nothing");
            match clone_tree(&from, &to, Source::Live, Content::Reflink, None) {
                Ok(cloned) => {
                    clones += 1;
                    let files = cloned.entries.iter().filter(|entry| entry.kind.is_file()).count() as u64;
                    assert_eq!(files, cloned.counts.cloned);
                    for (path, facts) in tree_digest(&to) {
                        assert!(!path.ends_with(b"/secret"), "{} is from outside", path.escape_ascii());
                        assert!(facts.kind != "file" || facts.size == TEXT.len() as u64, "{}", path.escape_ascii());
                    }
                }
                Err(error) => assert_eq!(error.kind(), Kind::InUse, "{error}"),
            }
            remove_tree(&to).expect("remove a clone");
        }
    });
    assert!(!alarm.rang(), "something outside or a device was opened");
    assert!(changes > 1000, "{changes} changes: this shows nothing");
    // The alarm does ring.
    fs::read(&secret).unwrap();
    assert!(alarm.rang());
}

/// What comes and goes may be in a clone or not; what stays is, and the clone is as it is described.
#[test]
fn what_vanishes_is_left_out() {
    const STAYING: usize = 300;
    let fs = Setup::Xfs.make();
    let (from, to) = (fs.path().join("from"), fs.path().join("to"));
    let path = |kind: &str, number: usize| from.join(format!("{}/{kind}-{number}", number % 7));
    for number in 0..STAYING {
        fs::create_dir_all(path("stays", number)).unwrap();
        fs::write(path("stays", number).join("file"), TEXT).unwrap();
    }
    let change = |turn: usize| {
        let number = turn % 1000;
        let directory = path("comes", number);
        if directory.exists() {
            fs::remove_dir_all(&directory).unwrap();
        } else {
            fs::create_dir_all(directory.join("below")).unwrap();
            fs::write(directory.join("below/file"), TEXT).unwrap();
            fs::hard_link(directory.join("below/file"), directory.join("link")).unwrap();
            symlink("target", directory.join("symlink")).unwrap();
        }
    };
    let mut gone = 0;
    let changes = meanwhile(change, || {
        for clones in 0.. {
            if clones >= 5 && gone > 0 {
                break;
            }
            assert!(clones < MOST, "no directory vanished between being listed and being opened: this shows nothing");
            let cloned = clone_tree(&from, &to, Source::Live, Content::Reflink, None).expect("clone a changing tree");
            assert_listed(&cloned, &to);
            let highest = cloned.entries.iter().filter_map(|entry| entry.child).max().unwrap();
            gone += u64::from(highest) + 1 - cloned.counts.directories;
            for number in 0..STAYING {
                let staying = to.join(path("stays", number).strip_prefix(&from).unwrap());
                assert_eq!(fs::read(staying.join("file")).expect("it was there all the time"), TEXT.as_bytes());
            }
            remove_tree(&to).expect("remove a clone");
        }
    });
    assert!(changes > 1000, "{changes} changes: this shows nothing");
}

/// Who goes up from a directory that was moved away meanwhile is somewhere else, and must notice.
#[test]
fn a_directory_that_moves_away_is_not_followed() {
    const DEPTH: usize = 60;
    let fs = Setup::Xfs.make();
    let (from, to, outside) = (fs.path().join("from"), fs.path().join("to"), fs.path().join("outside"));
    // Both alike but for a file: one beside each step down.
    let nest = |root: &Path, file: &str| {
        let mut at = root.to_path_buf();
        for _ in 0..DEPTH {
            for beside in ["a", "z"] {
                fs::create_dir_all(at.join(beside)).unwrap();
                fs::write(at.join(beside).join(file), TEXT).unwrap();
            }
            at.push("m");
        }
        at
    };
    let (below, moved) = (nest(&from, "file"), nest(&outside, "secret"));
    nest(&below, "file");
    nest(&moved, "file");
    let changes = meanwhile(
        |_| exchange(&below, &moved),
        || {
            for _ in 0..20 {
                clone_tree(&from, &to, Source::Live, Content::Reflink, None).expect("clone a changing tree");
                for (path, _) in tree_digest(&to) {
                    assert!(!path.ends_with(b"/secret"), "{} is from outside", path.escape_ascii());
                }
                remove_tree(&to).expect("remove a clone");
            }
        },
    );
    assert!(changes > 1000, "{changes} changes: this shows nothing");
}
