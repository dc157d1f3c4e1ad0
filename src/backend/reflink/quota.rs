//! Project quotas: what XFS counts for each tree, and holds to a limit.
//!
//! A writable tree is a project of its own, `(prefix << 16) + group`, which its root hands down to all that is made in it
//! (PROJINHERIT). XFS charges a project for every block of its files, shared ones too: for a clone, from the first
//! moment, what it was cloned from. So
//!
//! ```text
//! size  = what the project has now - what it had when the tree was made (the manifest's head keeps that)
//! limit = what it had then + what its writers may add
//! ```
//!
//! Both are inexact, as no project knows a clone's blocks from its own:
//! - deleting or cutting what was cloned makes the size smaller (never less than 0), and makes room for more;
//! - overwriting what was cloned adds nothing, though on disk it takes its blocks a second time. Until it is written back
//!   it needs room under the limit.
//!
//! A writer at the limit is told ENOSPC, not EDQUOT, and statfs(2) below the root shows the limit as the filesystem's
//! size. Root can take files out of their project (FS_IOC_FSSETXATTR, from outside a user namespace), and with that out of
//! the limit. Nothing can be renamed or linked into a tree from outside (EXDEV); trees themselves can be moved, as places
//! hand nothing down. Where ROOT itself does, as part of somebody's own project, trees get none and limits are refused.
//!
//! A tree that is rolled back leaves its project (0 from then on, measured by its extents), which counts the one that has
//! taken its place. While both are in it there is no limit: a crash then leaves none, until it is set again.
//!
//! Quotas are switched by mount options (prjquota, pqnoenforce) and never from here.

use std::io;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{CWD, FileType, Mode, openat};

use super::manifest::Head;
use super::walk::{self, OPEN_DIRECTORY};
use super::{Reflink, blocks, place};
use crate::backend::{Backend, GroupId, Guarantee, Inherited, QuotaMode, Quotas, Tree, TreeSize};
use crate::sys::durable;
use crate::sys::reflink::{self, Project};
use crate::sys::xfs::XfsFd;
use crate::sys::xfs::quota::{ProjectQuotas, State};
use crate::{Context, Error, Kind, Result};

/// The projects of one store.
#[derive(Debug)]
pub(super) struct Projects {
    /// `None` if the device isn't to be found, where that is what the kernel wants to know.
    quotas: Option<ProjectQuotas>,
    prefix: u16,
    /// The project that ROOT hands down.
    foreign: Option<u32>,
}

/// A limit that is lifted for now.
#[derive(Debug)]
pub(super) struct Suspended<'a> {
    quotas: &'a ProjectQuotas,
    project: u32,
    limit: Option<u64>,
}

impl Suspended<'_> {
    /// Let it be as it was.
    pub(super) fn resume(&self) {
        if let Err(error) = self.quotas.set_limit(self.project, self.limit) {
            tracing::warn!(%error, self.project, "cannot set a limit again");
        }
    }
}

impl Projects {
    pub(super) fn open(root: &XfsFd, prefix: u16) -> io::Result<Self> {
        let of_root = reflink::project(root)?;
        let quotas = match ProjectQuotas::open(root.try_clone()?) {
            Ok(quotas) => Some(quotas),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => None,
            Err(e) => return Err(e),
        };
        Ok(Self { quotas, prefix, foreign: of_root.inherited.then_some(of_root.id) })
    }

    /// The project of a group: never 0, which is the project of all that has none.
    fn of(&self, group: GroupId) -> u32 {
        (u32::from(self.prefix) << 16).wrapping_add(group.0).max(1)
    }
}

impl Reflink {
    /// The project that a new writable tree charged to `group` belongs to, where the filesystem has projects. Trees get
    /// one whether project quotas are on or not, so that a later mount finds them.
    pub(super) fn project(&self, group: Option<GroupId>) -> Option<u32> {
        let projects = self.projects.as_ref().filter(|projects| projects.foreign.is_none())?;
        Some(projects.of(group?))
    }

    pub(super) fn quota_state(&self) -> Result<State> {
        match &self.projects {
            Some(Projects { quotas: Some(quotas), foreign: None, .. }) => {
                quotas.state().context(|| self.call("Q_XGETQSTATV"))
            }
            _ => Ok(State::default()),
        }
    }

    /// The quotas, and the project of the tree at `root` if that counts what is in it.
    fn counting(&self, root: &Path, head: &Head) -> Result<Option<(&ProjectQuotas, u32)>> {
        let Some(wanted) = self.project(head.group).filter(|_| !head.read_only) else { return Ok(None) };
        let Some(quotas) = self.projects.as_ref().and_then(|projects| projects.quotas.as_ref()) else {
            return Ok(None);
        };
        let found = XfsFd::open(root).and_then(|root| Ok(reflink::project(&root)?));
        let found = found.context(|| format!("FS_IOC_FSGETXATTR {}", root.display()))?;
        Ok((found == Project { id: wanted, inherited: true }).then_some((quotas, wanted)))
    }

    /// What the project of a tree has more than when the tree was made; `None` if it has no project.
    pub(super) fn project_size(&self, tree: &Tree) -> Result<Option<TreeSize>> {
        let (root, head) = (tree.root(), place::head(tree)?);
        let Some((quotas, project)) = self.counting(&root, &head)? else { return Ok(None) };
        let now = quotas.get(project).context(|| format!("Q_XGETQUOTA {project} for {}", root.display()))?;
        Ok(Some(TreeSize { charged: now.bytes.saturating_sub(head.blocks), apparent: None }))
    }

    /// Refuse early what [`Reflink::limit_new`] can't do.
    pub(super) fn check_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        if limit.is_none() {
            return Ok(());
        }
        if !self.quota_state()?.enforced {
            return Err(self.no_limits()?.context(format!("limit {}", tree.root().display())));
        }
        match tree.group() {
            Some(_) => Ok(()),
            None => Err(Error::new(Kind::Invalid, "a limit needs a group that the tree is charged to")),
        }
    }

    /// Limit a tree that is being made at `root`, as `head` says that it was made. Durable with the next commit.
    pub(super) fn limit_new(&self, root: &Path, head: &Head, limit: Option<u64>) -> Result<()> {
        match limit {
            None => Ok(()),
            Some(_) => self.limit(root, head, limit).map(drop),
        }
    }

    /// Set the limit of the tree at `root`; whether it was another one before.
    fn limit(&self, root: &Path, head: &Head, limit: Option<u64>) -> Result<bool> {
        let Some((quotas, project)) = self.counting(root, head)? else {
            return Err(Error::new(Kind::Unsupported, format!("{} is no project of its own", root.display())));
        };
        let limit = limit.map(|bytes| head.blocks.saturating_add(bytes));
        let call = |call: &str| format!("{call} {project} for {}", root.display());
        if quotas.get(project).context(|| call("Q_XGETQUOTA"))?.limit == limit {
            return Ok(false);
        }
        quotas.set_limit(project, limit).context(|| call("Q_XSETQLIM"))?;
        Ok(true)
    }

    /// Lift the limit of a group for as long as it has a second tree. `None` where nothing counts.
    pub(super) fn suspend_limit(&self, group: Option<GroupId>) -> Result<Option<Suspended<'_>>> {
        let Some(project) = self.project(group).filter(|_| self.quota_state().is_ok_and(|state| state.accounted))
        else {
            return Ok(None);
        };
        let Some(quotas) = self.projects.as_ref().and_then(|projects| projects.quotas.as_ref()) else {
            return Ok(None);
        };
        let limit = quotas.get(project).context(|| format!("Q_XGETQUOTA {project}"))?.limit;
        if limit.is_some() {
            quotas.set_limit(project, None).context(|| format!("Q_XSETQLIM {project}"))?;
        }
        Ok(Some(Suspended { quotas, project, limit }))
    }

    /// Take all of the tree at `root` out of its project, if that has not been done. The root is last, as it is what tells
    /// that. Symlinks and nodes stay: nobody can open them for it, and they take no blocks.
    pub(super) fn leave_project(&self, root: &Path) -> Result<()> {
        if self.projects.as_ref().is_none_or(|projects| projects.foreign.is_some()) {
            return Ok(());
        }
        let call = || format!("FS_IOC_FSSETXATTR {}", root.display());
        let tree = openat(CWD, root, OPEN_DIRECTORY, Mode::empty()).context(call)?;
        if reflink::project(&tree).context(call)?.id == 0 {
            return Ok(());
        }
        let leave = |found: walk::Found<'_>| {
            let opened = match found.kind {
                FileType::Directory => openat(found.directory, found.name, OPEN_DIRECTORY, Mode::empty()).map(Some),
                FileType::RegularFile => {
                    blocks::open_file(&found.directory, found.name).map(|file| file.map(Into::into))
                }
                _ => return Ok(None),
            };
            match opened {
                Ok(Some(opened)) => reflink::leave_project(&opened).map(|_| None::<()>),
                Ok(None) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP) => {
                    Ok(None)
                }
                Err(e) => Err(e),
            }
            .context(|| format!("FS_IOC_FSSETXATTR {}", found.shown()))
        };
        walk::entries(&tree, leave).context(|| format!("take {} out of its project", root.display()))?;
        reflink::leave_project(&tree).map(drop).context(call)
    }

    /// Lift the limit of a tree that is gone, whose manifest is at `manifest`: the kernel keeps an account of nothing for
    /// as long as it has a limit. If it can't be lifted, nobody is kept from anything: groups aren't used twice.
    pub(super) fn drop_limit(&self, manifest: &Path) {
        let Some(quotas) = self.projects.as_ref().and_then(|projects| projects.quotas.as_ref()) else { return };
        // What is read-only is in no project, and its group may be a container's that lives on.
        let head = Head::read(manifest).ok().filter(|head| !head.read_only);
        let Some(project) = head.and_then(|head| self.project(head.group)) else { return };
        let dropped = match quotas.get(project) {
            Ok(dquot) if dquot.limit.is_some() => quotas.set_limit(project, None),
            // Quotas are off.
            Ok(_) | Err(Errno::ESRCH | Errno::ENOSYS) => Ok(()),
            Err(errno) => Err(errno),
        };
        if let Err(error) = dropped {
            tracing::warn!(%error, project, "cannot lift the limit of a tree that is gone");
        }
    }

    pub(super) fn why_no_limits(&self) -> Result<Error> {
        let root = self.root.display();
        let refused = |why: String, hint: &str| Error::new(Kind::Unsupported, why).with_hint(hint);
        Ok(match &self.projects {
            None => refused(
                format!("{root} isn't on XFS, whose project quotas would hold the limit of a directory"),
                "choose a directory on XFS mounted with -o prjquota, or one on Btrfs, with --root",
            ),
            Some(Projects { foreign: Some(project), .. }) => refused(
                format!("{root} is part of project {project}, which counts all that is in it"),
                "choose a directory that hands down no project, with --root",
            ),
            Some(_) if self.quota_state()?.accounted => refused(
                format!("project quotas are counted but not enforced on {root}, so nothing would hold the limit"),
                "mount the filesystem with -o prjquota in place of pqnoenforce",
            ),
            Some(_) => refused(
                format!("project quotas are off on {root}, so nothing would hold the limit"),
                "mount the filesystem with -o prjquota (a kernel without XFS quotas refuses that)",
            ),
        })
    }

    pub(super) fn mode(&self) -> Result<QuotaMode> {
        Ok(if self.quota_state()?.accounted { QuotaMode::Project } else { QuotaMode::None })
    }

    /// Nobody can while it is mounted: the kernel has no call to switch project quotas on.
    pub(super) fn switch_quotas(&self, to: QuotaMode) -> Result<()> {
        let why = match to {
            QuotaMode::Inconsistent => {
                return Err(Error::new(Kind::Invalid, "nobody can ask for inconsistent quotas"));
            }
            to if to == self.mode()? => return Ok(()),
            QuotaMode::Simple | QuotaMode::Full => {
                format!("only Btrfs has such quotas, and the trees at {} are plain directories", self.root.display())
            }
            QuotaMode::Project | QuotaMode::None => {
                format!("quotas of {} can't be switched while it is mounted", self.root.display())
            }
        };
        let error = Error::new(Kind::Unsupported, why);
        Err(match &self.projects {
            Some(_) => error.with_hint("project quotas of XFS are a mount option: prjquota or noquota"),
            None => error,
        })
    }
}

impl Quotas for Reflink {
    fn set_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        let (root, head) = (tree.root(), place::head(tree)?);
        if !self.limit(&root, &head, limit)? {
            return Ok(());
        }
        // The log is written in order: whoever has a file made after the change on disk has the change, too.
        let file = tempfile::tempfile_in(tree.place()).and_then(|file| Ok(durable::fsync(&file, tree.place())?));
        file.or_else(|_| self.sync())
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::CountsTheClone
    }

    fn inherited(&self) -> Inherited {
        Inherited::Both
    }
}
