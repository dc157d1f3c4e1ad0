//! Who keeps a mount from going away: for error messages only, so whatever can't be read is passed over.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::loopdev::LoopDevice;
use crate::sys::mount;
use crate::{Error, Kind};

/// How many of them a message names.
const NAMED: usize = 5;

/// A process, as a message names it: `process 4242 (nginx)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pid: String,
    name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// The error for a `root` that can't be unmounted, `mount` being the id of its mount.
pub(super) fn busy(root: &Path, mount: u64) -> Error {
    let mut users: Vec<String> =
        processes().filter(|process| uses(process, mount)).map(|process| process.to_string()).collect();
    users.extend(mounts_on(mount).iter().map(|target| format!("the mount at {}", target.display())));
    let more = users.len().saturating_sub(NAMED);
    users.truncate(NAMED);
    let mut list = if users.is_empty() { "something".to_owned() } else { users.join(", ") };
    if more > 0 {
        list.push_str(&format!(" and {more} more"));
    }
    Error::new(Kind::InUse, format!("{} is in use by {list}", root.display()))
        .with_hint("end those processes and undo those mounts first")
}

/// A process that sees `device` mounted, in whatever namespace, and where. The caller holds the device open: its
/// name can't come to mean another one. (The number of a Btrfs can, as soon as its last mount is gone.)
pub(super) fn mounted_for(device: &LoopDevice) -> Option<(Process, PathBuf)> {
    processes().find_map(|process| {
        let table = mount::table(&process.pid).ok()?;
        let entry = table.into_iter().find(|entry| entry.source == device.path())?;
        Some((process, entry.target))
    })
}

fn processes() -> impl Iterator<Item = Process> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let pid = entry.ok()?.file_name().into_string().ok()?;
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some(Process { name: name.trim_end().to_owned(), pid })
    })
}

/// Whether a process has its working directory, its root, its program or an open file on that very mount.
/// The mount's id tells, where a path would say little of a process in a namespace or root of its own.
fn uses(process: &Process, mount: u64) -> bool {
    let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", process.pid));
    let on_it = |path: &Path| mount::mount_id(path) == Some(mount);
    ["cwd", "root", "exe"].iter().any(|what| on_it(&of(what)))
        || ["fd", "map_files"]
            .iter()
            .any(|what| fs::read_dir(of(what)).into_iter().flatten().flatten().any(|entry| on_it(&entry.path())))
}

/// Where this namespace has something mounted on top of that mount.
fn mounts_on(mount: u64) -> Vec<PathBuf> {
    let table = mount::table("self").unwrap_or_default();
    table.into_iter().filter(|entry| entry.parent == mount && entry.id != mount).map(|entry| entry.target).collect()
}
