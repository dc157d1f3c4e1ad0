//! Who is using a tree: nothing in the kernel protects a running container, so we look before we remove.
//!
//! A process uses a tree by its root directory, its working directory, its executable or an open file in it,
//! or by a mount of (a part of) it in its mount namespace. Each is looked at as the kernel shows it in
//! `/proc`, for all processes and all mount namespaces.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Context, Error, Kind, Result};

/// A process and how it uses the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub pid: u32,
    /// Its name as in `/proc/PID/comm`.
    pub command: String,
    pub how: How,
}

/// In what way a process uses a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Root,
    WorkingDirectory,
    Executable,
    OpenFile,
    Mount,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let how = match self.how {
            How::Root => "has its root there",
            How::WorkingDirectory => "has its working directory there",
            How::Executable => "runs a program from there",
            How::OpenFile => "has a file open there",
            How::Mount => "has it mounted in its mount namespace",
        };
        write!(f, "process {} ({}) {how}", self.pid, self.command)
    }
}

/// The first user found of the tree at `root` in place `place`, apart from this process.
///
/// `place` is `.../snapshots/<uuid>`: mounts are recognised by that part of their path within the filesystem.
pub fn user_of(root: &Path, place: &Path) -> Result<Option<User>> {
    let Ok(tree) = fs::metadata(root) else { return Ok(None) };
    let outside = fs::metadata(place).context(|| format!("stat {}", place.display()))?;
    let target = Target {
        // A subvolume has a device number of its own; a plain directory is recognised by its path.
        device: (tree.dev() != outside.dev()).then_some(tree.dev()),
        path: root.to_path_buf(),
        within: mount_root(place)?,
    };
    let me = std::process::id();
    let mut namespaces = HashSet::new();
    for entry in fs::read_dir("/proc").context(|| "read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == me {
            continue;
        }
        if let Some(how) = target.used_by(pid, &mut namespaces) {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Ok(Some(User { pid, command: command.trim_end().to_string(), how }));
        }
    }
    Ok(None)
}

struct Target {
    device: Option<u64>,
    path: PathBuf,
    /// How the root of a mount of the tree ends, within its filesystem.
    within: String,
}

impl Target {
    /// A process that ends while we look uses nothing: all failures to read mean "no".
    fn used_by(&self, pid: u32, namespaces: &mut HashSet<PathBuf>) -> Option<How> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        // A thread of the kernel has no executable, and neither has a zombie: both use nothing. Half of all processes.
        fs::read_link(process.join("exe")).ok()?;
        for (link, how) in [("root", How::Root), ("cwd", How::WorkingDirectory), ("exe", How::Executable)] {
            if self.holds(&process.join(link)) {
                return Some(how);
            }
        }
        if let Ok(files) = fs::read_dir(process.join("fd"))
            && files.flatten().any(|file| self.holds(&file.path()))
        {
            return Some(How::OpenFile);
        }
        let namespace = fs::read_link(process.join("ns/mnt")).ok()?;
        if namespaces.insert(namespace) && self.is_mounted(&process.join("mountinfo")) {
            return Some(How::Mount);
        }
        None
    }

    fn holds(&self, link: &Path) -> bool {
        match self.device {
            Some(device) => fs::metadata(link).is_ok_and(|meta| meta.dev() == device),
            None => fs::read_link(link).is_ok_and(|path| path.starts_with(&self.path)),
        }
    }

    /// The fourth field of a mountinfo line (proc_pid_mountinfo(5)) is the mount's root within its filesystem.
    fn is_mounted(&self, mountinfo: &Path) -> bool {
        let Ok(text) = fs::read_to_string(mountinfo) else { return false };
        text.lines().filter_map(|line| line.split(' ').nth(3)).any(|root| {
            root.find(&self.within).is_some_and(|at| {
                let rest = &root[at + self.within.len()..];
                rest.is_empty() || rest.starts_with('/')
            })
        })
    }
}

fn mount_root(place: &Path) -> Result<String> {
    let name = place.file_name().and_then(|name| name.to_str());
    name.map(|name| format!("/{name}/fs"))
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{} is not the place of a tree", place.display())))
}
