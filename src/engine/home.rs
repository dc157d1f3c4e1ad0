//! Where a new store goes: in place, or in an embedded pool; and by which backend.
//!
//! ```text
//! asked for            ROOT on Btrfs     on XFS, or what else clones files    elsewhere (ext4, tmpfs)
//! nothing              in place, btrfs   in place, reflink                    a pool of Btrfs
//! backend btrfs        in place          a pool of Btrfs                      a pool of Btrfs
//! backend reflink      in place          in place                             a pool of XFS
//! a pool of Btrfs/XFS  that pool; the backend follows
//! ```
//!
//! Pools are made by `init` only. Whether files can be cloned is tried, not told by the filesystem's name. Once there is
//! a store, `store.json` says what it is, whatever is asked for.

use std::fmt;
use std::path::{Path, PathBuf};

use super::pool::PoolFs;
use crate::backend::btrfs::{Btrfs, root as subvolume};
use crate::backend::reflink::Reflink;
use crate::backend::{Backend, QuotaMode};
use crate::store::{self, Identity, Lock};
use crate::sys::durable;
use crate::sys::selinux;
use crate::{Context, Error, Kind, Result};

/// How a store keeps its trees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendKind {
    /// Subvolumes.
    Btrfs,
    /// Directories whose files share blocks.
    Reflink,
}

/// What a user asks of a new store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Layout {
    #[default]
    Auto,
    /// In place where this backend can be, else in a pool that fits it.
    Backend(BackendKind),
    /// In a pool of this filesystem, wherever ROOT lies.
    Pool(PoolFs),
}

/// Where a store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// On the filesystem that ROOT lies on.
    InPlace(BackendKind),
    Pool(PoolFs),
}

impl BackendKind {
    const ALL: [Self; 2] = [Self::Btrfs, Self::Reflink];

    /// As `store.json` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Reflink => "reflink",
        }
    }

    /// What `store.json` says.
    ///
    /// # Errors
    /// `Unsupported` for what this program doesn't know.
    pub(super) fn named(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("it was made with the backend {name:?}, which this reflinkd lacks"))
                .with_hint("use the reflinkd that made it, or a newer one")
        })
    }

    /// The filesystem of a pool for it.
    #[must_use]
    pub fn pool_fs(self) -> PoolFs {
        match self {
            Self::Btrfs => PoolFs::Btrfs,
            Self::Reflink => PoolFs::Xfs,
        }
    }

    /// The backend of the store at `root`.
    pub(super) fn open(self, root: &Path, group_prefix: u16) -> Result<Box<dyn Backend>> {
        Ok(match self {
            Self::Btrfs => Box::new(Btrfs::open(root, group_prefix)?),
            Self::Reflink => Box::new(Reflink::open(root, group_prefix)?),
        })
    }

    /// Whether stores can be made in `directory`.
    fn can_be_in(self, directory: &Path) -> Result<bool> {
        match self {
            Self::Btrfs => Ok(filesystem_type(directory)? == BTRFS_SUPER_MAGIC),
            Self::Reflink => Reflink::probe(directory),
        }
    }

    /// Make ROOT, 0700; an empty directory may be there. On Btrfs it is a subvolume of its own, so that snapshots of the
    /// filesystem around it don't pin what it holds.
    fn make_root(self, root: &Path) -> Result<()> {
        match self {
            Self::Btrfs => subvolume::make(root),
            Self::Reflink => {
                durable::mkdir_all(root, 0o700).context(|| format!("mkdir {}", root.display()))?;
                durable::chmod(root, 0o700).context(|| format!("chmod {}", root.display()))?;
                Reflink::make(root)
            }
        }
    }

    /// Make the store in a filesystem of its own, mounted at `root`, that has none.
    pub(super) fn fill_pool(self, root: &Path) -> Result<()> {
        selinux::inherit(root).context(|| format!("label {}", root.display()))?;
        match self {
            Self::Btrfs => set_up_btrfs(root)?,
            Self::Reflink => Reflink::make(root)?,
        }
        Identity::create(root, self.name()).map(drop)
    }
}

impl PoolFs {
    /// The backend of a store in a pool of it.
    #[must_use]
    pub fn backend(self) -> BackendKind {
        match self {
            Self::Btrfs => BackendKind::Btrfs,
            Self::Xfs => BackendKind::Reflink,
        }
    }
}

impl Layout {
    /// Where a store would go whose `root` isn't there yet, or an empty directory.
    pub(super) fn choose(self, root: &Path) -> Result<Home> {
        let directory = existing(root);
        let (candidates, otherwise): (&[BackendKind], PoolFs) = match &self {
            Self::Auto => (&BackendKind::ALL, PoolFs::Btrfs),
            Self::Backend(kind) => (std::slice::from_ref(kind), kind.pool_fs()),
            Self::Pool(fs) => (&[], *fs),
        };
        for kind in candidates {
            if kind.can_be_in(&directory)? {
                return Ok(Home::InPlace(*kind));
            }
        }
        Ok(Home::Pool(otherwise))
    }

    /// Refuse a store that is not what was asked for.
    ///
    /// # Errors
    /// `Exists`.
    pub(super) fn check(self, home: Home) -> Result<()> {
        let agrees = match self {
            Self::Auto => true,
            Self::Backend(kind) => home.backend() == kind,
            Self::Pool(fs) => home == Home::Pool(fs),
        };
        if agrees {
            return Ok(());
        }
        Err(Error::new(Kind::Exists, format!("there is one already, {home}, and {self} was asked for"))
            .with_hint("use it as it is, or choose another directory with --root"))
    }
}

impl Home {
    pub(super) fn backend(self) -> BackendKind {
        match self {
            Self::InPlace(kind) => kind,
            Self::Pool(fs) => fs.backend(),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("whatever fits"),
            Self::Backend(kind) => write!(f, "the backend {}", kind.name()),
            Self::Pool(fs) => write!(f, "a pool of {fs}"),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InPlace(kind) => write!(f, "in place with the backend {}", kind.name()),
            Self::Pool(fs) => write!(f, "in a pool of {fs}"),
        }
    }
}

/// The error for a `root` where a command other than `init` can't make a store: it would need a pool.
pub(super) fn needs_pool(root: &Path, layout: Layout) -> Result<Error> {
    let filesystem = filesystem_name(&existing(root))?;
    let (why, ways) = match layout {
        Layout::Auto => (
            format!("it lies on {filesystem}, which has neither snapshots nor clones of files"),
            "; or choose a directory on Btrfs or XFS with --root",
        ),
        asked => (format!("it lies on {filesystem}, and the configuration asks for {asked}"), ""),
    };
    Ok(Error::new(Kind::Unsupported, why).with_hint(format!(
        "reflinkd --root {} init makes a pool in a file beside it (of Btrfs, or with --pool-fs xfs){ways}",
        root.display()
    )))
}

/// Make the store where ROOT lies. Of several processes that do so at once, one makes it: they lock the directory around
/// it. The others find it, whatever backend it has.
pub(super) fn make_in_place(root: &Path, kind: BackendKind) -> Result<()> {
    let _alone = match root.parent() {
        Some(parent) => {
            durable::mkdir_all(parent, 0o777).context(|| format!("mkdir {}", parent.display()))?;
            store::lock_root(parent, Lock::Exclusive)?
        }
        None => None,
    };
    if root.exists() {
        if Identity::read(root)?.is_some() {
            return Ok(());
        }
        if !Identity::is_unfinished(root)? {
            return Err(Error::new(Kind::Exists, "it is not empty and not a store")
                .with_hint("choose an empty or new directory with --root"));
        }
    }
    kind.make_root(root)?;
    Identity::create(root, kind.name()).map(drop)
}

/// Quotas first: whoever finds the store finds them switched on.
fn set_up_btrfs(root: &Path) -> Result<()> {
    // No group of the store that is to be made is asked for here.
    let backend = Btrfs::open(root, 0)?;
    backend.make_room_for_metadata()?;
    if backend.quota_mode()? == QuotaMode::None {
        match backend.set_quota_mode(QuotaMode::Simple) {
            // Kernels before 6.7 have none: there, sizes are counted from extents and limits refused.
            Err(e) if e.kind() == Kind::Unsupported => {}
            other => other?,
        }
    }
    Ok(())
}

/// `root`, or the nearest directory above it that is there.
fn existing(root: &Path) -> PathBuf {
    root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/")).to_path_buf()
}

/// Whether the filesystem at `root` met an error and answers nothing any more, as XFS does.
pub(super) fn has_shut_down(root: &Path) -> bool {
    rustix::fs::stat(root).is_err_and(|errno| errno == rustix::io::Errno::IO)
}

/// linux/magic.h
const BTRFS_SUPER_MAGIC: u32 = 0x9123_683e;

fn filesystem_type(path: &Path) -> Result<u32> {
    let stat = rustix::fs::statfs(path).context(|| format!("statfs {}", path.display()))?;
    // The field's type differs between platforms; the magic number is one of 32 bits everywhere.
    Ok(stat.f_type as u32)
}

/// What the filesystem that `path` lies on is called.
pub(super) fn filesystem_name(path: &Path) -> Result<String> {
    Ok(match filesystem_type(path)? {
        BTRFS_SUPER_MAGIC => "btrfs".to_string(),
        0xef53 => "ext4".to_string(),
        0x5846_5342 => "xfs".to_string(),
        0x0102_1994 => "tmpfs".to_string(),
        0x794c_7630 => "overlay".to_string(),
        0x6969 => "nfs".to_string(),
        0x2fc1_2fc1 => "zfs".to_string(),
        0xf2f5_2010 => "f2fs".to_string(),
        other => format!("a filesystem of type {other:#x}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_used_only_as_what_was_asked_for() {
        let homes = [
            Home::InPlace(BackendKind::Btrfs),
            Home::InPlace(BackendKind::Reflink),
            Home::Pool(PoolFs::Btrfs),
            Home::Pool(PoolFs::Xfs),
        ];
        let allowed = |layout: Layout| homes.map(|home| layout.check(home).is_ok());
        assert_eq!(allowed(Layout::Auto), [true, true, true, true]);
        assert_eq!(allowed(Layout::Backend(BackendKind::Btrfs)), [true, false, true, false]);
        assert_eq!(allowed(Layout::Backend(BackendKind::Reflink)), [false, true, false, true]);
        assert_eq!(allowed(Layout::Pool(PoolFs::Btrfs)), [false, false, true, false]);
        assert_eq!(allowed(Layout::Pool(PoolFs::Xfs)), [false, false, false, true]);
        let error = Layout::Pool(PoolFs::Xfs).check(homes[0]).expect_err("another one");
        assert_eq!(
            error.to_string(),
            "there is one already, in place with the backend btrfs, and a pool of XFS was asked for"
        );
    }

    #[test]
    fn backends_go_by_the_names_of_store_json() {
        for kind in BackendKind::ALL {
            assert_eq!(BackendKind::named(kind.name()).expect("known"), kind);
        }
        let error = BackendKind::named("zfs").expect_err("unknown");
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("\"zfs\"") && error.hint().is_some(), "{error}");
    }
}
