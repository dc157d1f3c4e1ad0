//! What the tests of this directory share: filesystems on loop devices, pictures of trees, the built
//! binary, processes that end with their test.
//!
//! Every guard undoes its work when dropped, also when the test panics. A test that needs root or loop
//! devices says so by panicking without them; it never passes by skipping.

// Each test binary includes this module and uses another part of it.
#![allow(dead_code)]

pub(crate) mod activated;
pub(crate) mod digest;
pub(crate) mod image;
pub(crate) mod loopfs;
pub(crate) mod scrape;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

#[allow(unused_imports)]
pub(crate) use digest::{EntryFacts, tree_digest};
#[allow(unused_imports)]
pub(crate) use loopfs::{LoopFs, QuotaSetup};

/// A whole MB, as people and disks count.
pub(crate) const MB: u64 = 1_000_000;
pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// The first number, or where REFLINKD_EMULATED says that the processor is emulated, twenty times slower, the second.
pub(crate) fn or_emulated(count: u64, emulated: u64) -> u64 {
    if std::env::var_os("REFLINKD_EMULATED").is_some() { emulated } else { count }
}

/// Whether this kernel is of that version or later.
pub(crate) fn kernel_since(major: u32, minor: u32) -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's version");
    let mut numbers = release.split('.').map(|number| number.parse().expect("6.12.1"));
    (numbers.next(), numbers.next()) >= (Some(major), Some(minor))
}

/// Bytes of a file that takes its time to be read.
pub(crate) fn large_file() -> u64 {
    or_emulated(GIB, 32 * MIB)
}

/// Panics unless this is root on a machine with loop devices.
pub(crate) fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root: it mounts filesystems");
    assert!(Path::new("/dev/loop-control").exists(), "this test needs loop devices: there is no /dev/loop-control");
}

/// A new, empty directory of this test below the target directory, removed when dropped.
pub(crate) fn scratch(purpose: &str) -> Scratch {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{purpose}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&path).expect("create a scratch directory");
    Scratch(path)
}

/// See [`scratch`].
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Run a program to its end; panics with what it said unless it succeeds. Returns its standard output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{stdout}{stderr}", output.status);
    stdout.into_owned()
}

/// Unmount what is mounted at a path. A child that another test starts has all that is open in this process open too, until it
/// is another program: that is waited for.
pub(crate) fn unmount(path: &Path) {
    for _ in 0..1000 {
        let output = Command::new("umount").arg(path).output().expect("run umount");
        if output.status.success() {
            return;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("busy"), "umount {}: {said}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{} stays in use", path.display());
}

/// Wait until this has happened, a minute at most.
pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !happened() {
        assert!(start.elapsed().as_secs() < 60, "waited in vain until {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// A path as an argument of [`run`].
pub(crate) fn arg(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}

/// What the built binary answered.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Exit code; `None` if a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Run the built `reflinkd --root ROOT ARGS...` to its end.
pub(crate) fn reflinkd(root: &Path, args: &[&str]) -> Answer {
    let output = reflinkd_command(root, args).stdin(Stdio::null()).output().expect("run the built reflinkd");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("reflinkd prints UTF-8");
    let Output { status, stdout, stderr } = output;
    Answer { status: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// The command that [`reflinkd`] runs, for a test that wants its input, environment or process id. Nothing goes on in the
/// background after it, so that what is on disk then is what it left; and no registry is asked unless the arguments say so.
pub(crate) fn reflinkd_command(root: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_reflinkd"));
    command.arg("--root").arg(root).args(args).env("REFLINKD_NO_TEND", "1").env("REFLINKD_PULL", "never");
    command
}

/// A running program, killed and reaped when dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// That many bytes which no filesystem can compress or share.
pub(crate) fn random_bytes(count: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(count).expect("fits in memory")];
    fastrand::fill(&mut bytes);
    bytes
}

/// Make the file `path` of that many random bytes.
pub(crate) fn write_random(path: &Path, count: u64) {
    fs::write(path, random_bytes(count)).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
}

/// Make the file `path` of `blocks` x 4 KiB, each block random and different: fast enough for GiBs.
pub(crate) fn write_blocks(path: &Path, blocks: u64) {
    let mut chunk = random_bytes(256 * 4096);
    let mut file = File::create_new(path).unwrap_or_else(|e| panic!("create {}: {e}", path.display()));
    let mut block = 0;
    while block < blocks {
        let count = (blocks - block).min(256);
        for at in 0..count {
            let start = usize::try_from(at * 4096).expect("small");
            chunk[start..start + 8].copy_from_slice(&(block + at).to_le_bytes());
        }
        let bytes = usize::try_from(count * 4096).expect("small");
        file.write_all(&chunk[..bytes]).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        block += count;
    }
}

/// Append random data to `path` until the filesystem or a limit refuses, and return how many bytes it took.
/// Panics when nothing refuses within `most` bytes, or for a refusal other than ENOSPC and EDQUOT.
pub(crate) fn fill(path: &Path, most: u64) -> u64 {
    let refused = |e: std::io::Error| {
        let errno = e.raw_os_error();
        assert!(errno == Some(libc::ENOSPC) || errno == Some(libc::EDQUOT), "write {}: {e}", path.display());
    };
    let mut chunk = random_bytes(64 * KIB);
    let mut written = 0;
    let mut file = match OpenOptions::new().append(true).create(true).open(path) {
        Ok(file) => file,
        Err(e) => {
            refused(e);
            return written;
        }
    };
    while written < most {
        match file.write(&chunk) {
            Ok(count) => written += count as u64,
            Err(e) => {
                refused(e);
                return written;
            }
        }
        // The same again would compress.
        fastrand::fill(&mut chunk);
    }
    panic!("{} took {written} bytes and nothing refused", path.display());
}
