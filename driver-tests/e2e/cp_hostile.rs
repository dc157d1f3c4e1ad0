//! `cp` and a container that wants to be copied from, or to, elsewhere.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use reflinkd::copy::place::{Side, Spec};
use reflinkd::copy::tree;
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use crate::support::{arg, run, tree_digest};
use crate::world::{Ground, World};

on_btrfs_and_xfs! {
    links_lead_nowhere_outside
    what_is_mounted_is_not_crossed
    names_that_are_exchanged_all_the_time_lead_nowhere_outside
}

const SECRET: &str = "the host's secret";

/// A container, and a directory of the host that nothing must read or write.
struct Prison {
    world: World,
    tree: PathBuf,
    host: PathBuf,
}

impl Prison {
    fn on(ground: Ground) -> Self {
        let world = World::on(ground).with_base();
        world.ok(&["create", "--image", "base", "evil"]);
        let (tree, host) = (world.tree("evil"), world.files.path().join("host"));
        fs::create_dir_all(host.join("sub")).expect("mkdir");
        for file in ["secret", "sub/secret", "payload"] {
            fs::write(host.join(file), SECRET).expect("write");
        }
        Self { world, tree, host }
    }

    fn link(&self, name: &str, target: impl AsRef<Path>) {
        symlink(target, self.tree.join(name)).expect("symlink");
    }
}

fn links_lead_nowhere_outside(ground: Ground) {
    let p = Prison::on(ground);
    let host = p.host.display().to_string();
    p.link("absolute", &host);
    p.link("climbing", format!("{}{host}", "../".repeat(64)));
    p.link("chain1", "chain2");
    p.link("chain2", "/climbing");
    p.link("circle1", "circle2");
    p.link("circle2", "circle1");
    p.link("self", "/proc/self/root");
    p.link("descriptor", "/proc/self/fd/0");
    p.link("cwd", "/proc/self/cwd");
    p.link("file", format!("{host}/secret"));
    p.link("fresh", format!("{host}/fresh"));
    let before = tree_digest(&p.host);
    let payload = p.world.files.path().join("payload");
    fs::write(&payload, "overwritten").expect("write");
    let out = p.world.files.path().join("out");
    let links = ["absolute", "climbing", "chain1", "circle1", "self", "descriptor", "cwd", "file", "fresh"];
    for link in links {
        let inside = [format!("evil:/{link}/secret"), format!("evil:/{link}/"), format!("evil:/{link}/.")];
        for source in &inside {
            p.world.fails(&["cp", source, arg(&out)]);
        }
        p.world.fails(&["cp", "-L", &format!("evil:/{link}"), arg(&out)]);
        p.world.fails(&["cp", &inside[0], "-"]);
        for target in inside.iter().chain([&format!("evil:/{link}/sub/x")]) {
            p.world.fails(&["cp", arg(&payload), target]);
        }
        // What the link leads to would be in directories that the container doesn't have.
        p.world.fails(&["cp", arg(&payload), &format!("evil:/{link}")]);
        p.world.fails(&["cp", arg(&p.host), &format!("evil:/{link}")]);
        assert!(!out.exists(), "{link}");
    }
    let error = p.world.fails(&["cp", "evil:/circle1/x", arg(&out)]);
    assert!(error.contains("lead in a circle") && error.contains("hint: "), "{error}");
    assert_eq!(tree_digest(&p.host), before);
    // With such directories in the container, that is where it goes, and comes from.
    let twin = p.tree.join(host.trim_start_matches('/'));
    fs::create_dir_all(&twin).expect("mkdir");
    p.world.ok(&["cp", arg(&payload), "evil:/file"]);
    p.world.ok(&["cp", arg(&payload), "evil:/chain1/two"]);
    p.world.ok(&["cp", "evil:/climbing/secret", arg(&out)]);
    for written in [twin.join("secret"), twin.join("two"), out.clone()] {
        assert_eq!(fs::read_to_string(written).expect("read"), "overwritten");
    }
    // A tree keeps its links, and reads through none of them.
    p.world.ok(&["cp", "evil:/", arg(&p.world.files.path().join("all"))]);
    let copy = p.world.files.path().join("all");
    assert!(links.iter().all(|link| copy.join(link).is_symlink()));
    assert_eq!(tree_digest(&p.host), before);
    // Nor does a tree go through a link that stands where it would go.
    let tree = p.world.files.path().join("tree");
    fs::create_dir_all(tree.join("absolute")).expect("mkdir");
    fs::write(tree.join("absolute/secret"), "overwritten").expect("write");
    p.world.fails(&["cp", &format!("{}/.", tree.display()), "evil:/"]);
    assert_eq!(tree_digest(&p.host), before);
}

/// Unmounts when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn what_is_mounted_is_not_crossed(ground: Ground) {
    let p = Prison::on(ground);
    let at = p.tree.join("etc/mounted");
    fs::create_dir(&at).expect("mkdir");
    run("mount", &["--bind", arg(&p.host), arg(&at)]);
    let mounted = Mounted(at.clone());
    let proc = p.tree.join("proc");
    fs::create_dir(&proc).expect("mkdir");
    run("mount", &["-t", "proc", "proc", arg(&proc)]);
    let proc = Mounted(proc);
    let out = p.world.files.path().join("out");
    let before = tree_digest(&p.host);
    for source in
        ["evil:/etc/mounted/secret", "evil:/etc/mounted", "evil:/etc", "evil:/proc/self/root/etc", "evil:/proc"]
    {
        let error = p.world.fails(&["cp", source, arg(&out)]);
        assert!(error.contains("something is mounted there"), "{source}: {error}");
        let _ = fs::remove_dir_all(&out);
    }
    let payload = p.host.join("payload");
    for target in ["evil:/etc/mounted/x", "evil:/etc/mounted", "evil:/proc/self/cwd/x"] {
        let error = p.world.fails(&["cp", arg(&payload), target]);
        assert!(error.contains("something is mounted there"), "{target}: {error}");
    }
    assert_eq!(tree_digest(&p.host), before);
    drop((mounted, proc));
    p.world.ok(&["cp", "evil:/etc", arg(&out)]);
}

/// Exchanges two names again and again, until dropped.
struct Exchanging {
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Exchanging {
    fn start(directory: &Path, pairs: &'static [(&'static str, &'static str)]) -> Self {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let (stopped, directory) = (stop.clone(), File::open(directory).expect("open"));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                for (one, other) in pairs {
                    // One of them may be being replaced at this moment.
                    let _ = renameat_with(directory.as_fd(), *one, directory.as_fd(), *other, RenameFlags::EXCHANGE);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Exchanging {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || matches!(joined, Some(Ok(()))));
    }
}

fn names_that_are_exchanged_all_the_time_lead_nowhere_outside(ground: Ground) {
    let p = Prison::on(ground);
    let arena = p.tree.join("arena");
    fs::create_dir_all(arena.join("d/sub")).expect("mkdir");
    fs::write(arena.join("d/secret"), "the container's own").expect("write");
    fs::write(arena.join("d/sub/secret"), "the container's own").expect("write");
    symlink(&p.host, arena.join("l")).expect("symlink");
    fs::write(arena.join("f"), "the container's own").expect("write");
    symlink(p.host.join("secret"), arena.join("g")).expect("symlink");
    // Whoever opened it would wait for ever.
    mknodat(CWD, arena.join("p"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("mkfifo");
    fs::write(arena.join("q"), "the container's own").expect("write");
    let before = tree_digest(&p.host);
    let payload = p.world.files.path().join("payload");
    fs::create_dir_all(payload.join("d/sub")).expect("mkdir");
    for file in ["d/secret", "d/sub/secret", "f", "p"] {
        fs::write(payload.join(file), "overwritten").expect("write");
    }
    let out = p.world.files.path().join("out");
    let exchanging = Exchanging::start(&arena, &[("d", "l"), ("f", "g"), ("p", "q")]);
    let container = Side::container(&p.tree).expect("open");
    let host = Side::host().expect("open");
    let copy = |from: (&Side, &str), to: (&Side, &str)| {
        let source = from.0.source(&Spec::new(b"/", from.1.as_bytes()), false)?;
        let target = to.0.target(&Spec::new(b"/", to.1.as_bytes()))?;
        tree::copy(&source, target, to.0, Some((0, 0)), &|| false)
    };
    let is_clean = |tree: &Path| {
        let all = tree_digest(tree);
        let secret: [u8; 32] = tree_digest(&p.host)[&b"secret"[..]].sha256.expect("a file");
        assert!(all.values().all(|facts| facts.sha256 != Some(secret)), "{all:#?}");
    };
    for round in 0..400 {
        // Any of these may fail: what counts is where it leads.
        fs::create_dir(&out).expect("mkdir");
        for source in ["arena", "arena/d", "arena/d/", "arena/d/secret", "arena/d/sub", "arena/f", "arena/q"] {
            let _ = copy((&container, source), (&host, arg(&out)));
        }
        is_clean(&out);
        fs::remove_dir_all(&out).expect("rm");
        let name = |name: &str| format!("{}/{name}", payload.display());
        for (source, target) in [
            (name("d/."), "arena/d"),
            (name("d"), "arena"),
            (name("f"), "arena/f"),
            (name("f"), "arena/d/secret"),
            (name("f"), "arena/l/sub/secret"),
            (name("p"), "arena/q"),
        ] {
            let _ = copy((&host, &source), (&container, target));
        }
        if round % 20 == 0 {
            assert_eq!(tree_digest(&p.host), before);
            for source in ["evil:/arena", "evil:/arena/d", "evil:/arena/f"] {
                assert!(!p.world.ask(&["cp", source, "-"]).stdout.contains(SECRET));
            }
        }
        // Back to where it began: what was copied over a link or FIFO has replaced it.
        let link = |target: &Path, name: &str| {
            let aside = arena.join(".fresh");
            symlink(target, &aside).and_then(|()| fs::rename(&aside, arena.join(name)))
        };
        let _ = link(&p.host.join("secret"), "g");
        let _ = mknodat(CWD, arena.join(".fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0);
        let _ = fs::rename(arena.join(".fifo"), arena.join("p"));
    }
    drop(exchanging);
    assert_eq!(tree_digest(&p.host), before);
    is_clean(&p.tree);
}
