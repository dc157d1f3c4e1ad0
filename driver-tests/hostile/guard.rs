//! A store and a canary beside it, and what must hold after every attempt to load something.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Answer, EntryFacts, MIB, arg, tree_digest};
use crate::world::World;

/// Bytes of memory that a load may take, whatever it is given. The buffers of a layer's stream are 6 MiB of it.
pub(crate) const MEMORY: u64 = 64 * MIB;
/// The same where a zstd window of 128 MiB has to be held.
pub(crate) const MEMORY_ZSTD: u64 = 192 * MIB;
/// Not measured, where many loads of one kind follow each other.
pub(crate) const UNMEASURED: u64 = u64::MAX;
/// Longest that a refusal may take. Most take a few hundredths of a second; a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program, and writes down the most memory that it had.
const MEASURE: &str = "import resource, subprocess, sys
done = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
open(sys.argv[1], 'w').write(str(peak * 1024))
sys.exit(done.returncode if done.returncode >= 0 else 128 - done.returncode)";

/// See the module.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) world: World,
    canary: BTreeMap<Vec<u8>, EntryFacts>,
    store: Vec<String>,
    config: Option<PathBuf>,
}

impl Guard {
    pub(crate) fn new() -> Self {
        let world = World::simple();
        world.ok(&["images"]);
        let canary = world.fs.path().join("canary");
        for dir in ["", "sub"] {
            fs::create_dir(canary.join(dir)).expect("mkdir");
        }
        fs::write(canary.join("file"), "untouched").expect("write");
        fs::write(canary.join("sub/secret"), "root:x:0:0").expect("write");
        fs::set_permissions(canary.join("sub/secret"), PermissionsExt::from_mode(0o600)).expect("chmod");
        std::os::unix::fs::symlink("file", canary.join("link")).expect("symlink");
        let flags = rustix::fs::XattrFlags::CREATE;
        rustix::fs::setxattr(canary.join("file"), "user.canary", b"sings", flags).expect("setxattr");
        let mut guard = Self { world, canary: BTreeMap::new(), store: Vec::new(), config: None };
        guard.canary = tree_digest(&canary);
        guard.store = guard.world.stored();
        guard
    }

    /// The same with a configuration file.
    pub(crate) fn with_config(text: &str) -> Self {
        let mut guard = Self::new();
        let path = guard.world.files.path().join("config.toml");
        fs::write(&path, text).expect("write");
        guard.config = Some(path);
        guard
    }

    /// What is never to be touched.
    pub(crate) fn canary(&self) -> PathBuf {
        self.world.fs.path().join("canary")
    }

    /// A place for what is to be loaded, from where the canary is at `../canary`.
    pub(crate) fn input(&self, name: &str) -> PathBuf {
        let dir = self.world.fs.path().join("input");
        fs::create_dir_all(&dir).expect("mkdir");
        dir.join(name)
    }

    /// Load a file or directory. The answer, and the most bytes of memory that it took if that is to be bounded.
    fn load(&self, path: &Path, flags: &[&str], memory: u64) -> (Answer, u64) {
        let peak = self.world.files.path().join("peak");
        let measured = memory != UNMEASURED;
        let program = if measured { "python3" } else { env!("CARGO_BIN_EXE_reflinkd") };
        let mut command = Command::new(program);
        if measured {
            command.args(["-S", "-c", MEASURE, arg(&peak), env!("CARGO_BIN_EXE_reflinkd")]);
        }
        command.args(["--root", arg(self.world.root())]);
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        let begun = Instant::now();
        let output = command.args(["load", "-q", arg(path)]).args(flags).stdin(Stdio::null()).output();
        let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(begun.elapsed() < PATIENCE, "{} took {:?}", path.display(), begun.elapsed());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("reflinkd prints UTF-8");
        let answer =
            Answer { status: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
        let peak = if measured { fs::read_to_string(peak).expect("read").parse().expect("a number") } else { 0 };
        (answer, peak)
    }

    /// Load what must be refused with `why` in the one error; `what` is it in a failure.
    #[track_caller]
    pub(crate) fn refuses(&self, what: &str, path: &Path, flags: &[&str], why: &str, memory: u64) -> String {
        let (answer, peak) = self.load(path, flags, memory);
        let error = &answer.stderr;
        assert_eq!(answer.status, Some(1), "{what}: {}{error}", answer.stdout);
        let first = error.lines().next().unwrap_or_default();
        assert!(first.starts_with("reflinkd: cannot load "), "{what}: {error}");
        assert!(first.contains(why), "{what}: not refused for {why:?}: {error}");
        assert!(error.lines().skip(1).all(|line| line.starts_with("hint: ")), "{what}: more than one error: {error}");
        self.assert_harmless(what, &answer, peak, memory);
        assert_eq!(self.world.stored(), self.store, "{what} left something");
        answer.stderr
    }

    /// Load what must be accepted, look at it, and remove it again.
    #[track_caller]
    pub(crate) fn accepts(&self, what: &str, path: &Path, flags: &[&str], memory: u64, look: impl FnOnce(&Self)) {
        let (answer, peak) = self.load(path, flags, memory);
        assert_eq!(answer.status, Some(0), "{what}: {}", answer.stderr);
        self.assert_harmless(what, &answer, peak, memory);
        look(self);
        for image in self.world.rows(&["images"]) {
            self.world.ok(&["rmi", "-f", image["id"].as_str().expect("an ID")]);
        }
        self.world.ok(&["gc"]);
        assert_eq!(self.world.stored(), self.store, "{what}: removed, it left something");
    }

    #[track_caller]
    fn assert_harmless(&self, what: &str, answer: &Answer, peak: u64, memory: u64) {
        let said = format!("{}{}", answer.stdout, answer.stderr);
        assert!(!said.contains(|c: char| c.is_control() && c != '\n'), "{what}: control characters: {said:?}");
        assert!(said.len() < 4000, "{what}: {} bytes of message", said.len());
        assert!(peak < memory, "{what}: {peak} bytes of memory");
        let canary = self.canary();
        crate::support::digest::assert_same(what, &self.canary, &tree_digest(&canary));
        assert_eq!(fs::metadata(canary.join("file")).expect("stat").nlink(), 1, "{what}: linked to");
    }
}
