//! Who is using a tree: nothing in the kernel protects a running container, so we look before we remove.
//!
//! A process uses a tree by its root directory, its working directory, its executable or an open file in it,
//! or by a mount of (a part of) it in its mount namespace. Each is looked at as the kernel shows it in
//! `/proc`, for all processes and all mount namespaces.
//!
//! A *view* is a read-only mount of a tree that other views show, too: its users have the same files open. They are told
//! apart by the mount they came by. What a runtime mounts for its container from a view is in the view's peer group
//! (`shared:` or `master:` in mountinfo), unless the runtime cut it off, as crun and runc 1.2 do: then nobody can say
//! which view it came from, and it is taken for a user of the last one.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::mount::{self, MountEntry};
use crate::{Context, Error, Kind, Result};

/// A process and how it uses the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub pid: u32,
    /// Its name as in `/proc/PID/comm`.
    pub command: String,
    pub how: How,
}

impl User {
    /// Whether it runs the program that this process runs.
    #[must_use]
    pub fn is_of_this_program(&self) -> bool {
        let program = |pid: &str| fs::metadata(format!("/proc/{pid}/exe")).map(|file| (file.dev(), file.ino()));
        program(&self.pid.to_string()).is_ok_and(|its| program("self").is_ok_and(|ours| its == ours))
    }
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
    find(&Target::Tree {
        device: tree.dev(),
        // A subvolume has a device number of its own; in a plain directory files are recognised by their path, too.
        whole_device: tree.dev() != outside.dev(),
        within: mount_root(place)?,
    })
}

/// The first user found of the view in `place`, apart from this process. It shows the tree in the place `shown`; `last`
/// says that no other view does.
pub fn user_of_view(place: &Path, shown: &Path, last: bool) -> Result<Option<User>> {
    let (at, within) = (mount_root(place)?, mount_root(shown)?);
    let mut tables = Vec::new();
    let mut namespaces = HashSet::new();
    for pid in ["self".to_string()].into_iter().chain(processes()?.map(|pid| pid.to_string())) {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if namespaces.insert(namespace) {
            tables.extend(mount::table(&pid).unwrap_or_default());
        }
    }
    let is_view = |entry: &&MountEntry| entry.target.to_string_lossy().ends_with(&at);
    let peers: HashSet<u64> = tables.iter().filter(is_view).flat_map(|entry| entry.peers.clone()).collect();
    let from_it = |entry: &&MountEntry| match entry.peers.as_slice() {
        [] => last && !is_place_of_a_tree(&entry.target),
        of => of.iter().any(|group| peers.contains(group)),
    };
    let copies: HashSet<u64> = tables
        .iter()
        .filter(|entry| reaches(&entry.root.to_string_lossy(), &within) && !is_view(entry) && from_it(entry))
        .map(|entry| entry.id)
        .collect();
    let inside = tables.iter().filter(|entry| reaches(&entry.target.to_string_lossy(), &at)).map(|entry| entry.id);
    find(&Target::View { mounts: inside.chain(copies.iter().copied()).collect(), copies })
}

/// Of all processes but this one.
fn find(target: &Target) -> Result<Option<User>> {
    let mut namespaces = HashSet::new();
    for pid in processes()? {
        if let Some(how) = target.used_by(pid, &mut namespaces) {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Ok(Some(User { pid, command: command.trim_end().to_string(), how }));
        }
    }
    Ok(None)
}

/// All processes but this one.
fn processes() -> Result<impl Iterator<Item = u32>> {
    let me = std::process::id();
    let entries = fs::read_dir("/proc").context(|| "read /proc")?.flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    Ok(pids.filter(move |pid| *pid != me))
}

enum Target {
    Tree {
        device: u64,
        /// Whether all on the device is the tree's.
        whole_device: bool,
        /// How all paths to the tree end, whatever links and mounts lead there; so does the root of a mount of it, within
        /// its filesystem.
        within: String,
    },
    View {
        /// The mounts whose files are the view's, in any namespace.
        mounts: HashSet<u64>,
        /// Those of them that somebody made from the view: the view's own in another namespace just came with that.
        copies: HashSet<u64>,
    },
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
        if namespaces.insert(namespace) && self.is_mounted(pid) {
            return Some(How::Mount);
        }
        None
    }

    fn holds(&self, link: &Path) -> bool {
        match self {
            Self::Tree { device, whole_device, within } => {
                (*whole_device || fs::read_link(link).is_ok_and(|held| reaches(&held.to_string_lossy(), within)))
                    && fs::metadata(link).is_ok_and(|meta| meta.dev() == *device)
            }
            Self::View { mounts, .. } => mount::mount_id(link).is_some_and(|id| mounts.contains(&id)),
        }
    }

    fn is_mounted(&self, pid: u32) -> bool {
        let table = mount::table(&pid.to_string()).unwrap_or_default();
        table.iter().any(|entry| match self {
            Self::Tree { within, .. } => reaches(&entry.root.to_string_lossy(), within),
            Self::View { copies, .. } => copies.contains(&entry.id),
        })
    }
}

/// Whether a path leads to what `end` is the end of, or further down.
fn reaches(path: &str, end: &str) -> bool {
    path.find(end).is_some_and(|at| {
        let rest = &path[at + end.len()..];
        rest.is_empty() || rest.starts_with('/')
    })
}

/// Whether a mount there is of a view: those of other views, too, come into every new namespace.
fn is_place_of_a_tree(target: &Path) -> bool {
    let place = target.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    target.ends_with("fs") && place.is_some_and(|name| Uuid::try_parse(name).is_ok())
}

fn mount_root(place: &Path) -> Result<String> {
    let name = place.file_name().and_then(|name| name.to_str());
    name.map(|name| format!("/{name}/fs"))
        .ok_or_else(|| Error::new(Kind::Invalid, format!("{} is not the place of a tree", place.display())))
}
