//! Finding, making and opening a store.
//!
//! Where ROOT lies on Btrfs, the first command makes the store in place. Elsewhere `init` makes an embedded pool
//! (a loop-backed Btrfs file beside ROOT), and every later command attaches it if it isn't.
//!
//! ```text
//! ROOT on Btrfs        reflinkd load -i nginx.tar          makes ROOT a subvolume and the store in it
//! ROOT on ext4         reflinkd load -i nginx.tar          refused, naming the next line
//!                      reflinkd init --pool-size 20G       ROOT.pool, simple quotas, mounted at ROOT
//! after a reboot       reflinkd ps                         attaches ROOT.pool again
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::pool::Pool;
use super::{Engine, Settings};
use crate::backend::btrfs::{Btrfs, root as subvolume};
use crate::backend::{Backend, QuotaMode};
use crate::store::{Identity, Store};
use crate::{Context, Error, Kind, Result};

/// What `init` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialised {
    /// The store was there already.
    Unchanged,
    /// In place, on the Btrfs filesystem that ROOT lies on.
    InPlace,
    /// In a new embedded pool.
    Pool,
}

impl Engine {
    /// Open the store, attaching its pool, or making it in place where ROOT lies on Btrfs.
    pub fn open(settings: Settings) -> Result<Self> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = attached_pool(&root)?;
            match Identity::read(&root)? {
                Some(identity) => Self::with(settings, identity, pool),
                None if pool.is_none() && is_btrfs(&root)? => {
                    let identity = make_in_place(&root)?;
                    Self::with(settings, identity, None)
                }
                None if pool.is_some() => {
                    let identity = Identity::create(&root, "btrfs")?;
                    Self::with(settings, identity, pool)
                }
                None => Err(Error::new(
                    Kind::Unsupported,
                    format!("it lies on {}, which can't hold snapshots", filesystem_name(&root)?),
                )
                .with_hint(format!(
                    "reflinkd --root {} init makes a Btrfs pool in a file beside it; or choose a directory on Btrfs with --root",
                    root.display()
                ))),
            }
        })()
        .context(|| format!("cannot open the store at {}", root.display()))
    }

    /// Make the store: in place on Btrfs, else in a new embedded pool with simple quotas.
    pub fn init(settings: Settings) -> Result<(Self, Initialised)> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = attached_pool(&root)?;
            if let Some(identity) = Identity::read(&root)? {
                return Ok((Self::with(settings, identity, pool)?, Initialised::Unchanged));
            }
            if pool.is_none() && is_btrfs(&root)? {
                let identity = make_in_place(&root)?;
                return Ok((Self::with(settings, identity, None)?, Initialised::InPlace));
            }
            let made = pool.is_none();
            let pool = match pool {
                Some(pool) => pool,
                None => {
                    let pool = Pool::at(&root);
                    pool.create(settings.pool_size)?;
                    pool
                }
            };
            let filled = pool.attach().and_then(|()| {
                let identity = Identity::create(&root, "btrfs")?;
                let backend = Btrfs::open(&root, identity.group_prefix)?;
                if backend.quota_mode()? == QuotaMode::None {
                    enable_simple_quotas(&backend)?;
                }
                Ok(identity)
            });
            match filled {
                Ok(identity) => Ok((Self::with(settings, identity, Some(pool))?, Initialised::Pool)),
                Err(e) => {
                    if made {
                        pool.destroy()?;
                    }
                    Err(e)
                }
            }
        })()
        .context(|| format!("cannot make a store at {}", root.display()))
    }

    fn with(settings: Settings, identity: Identity, pool: Option<Pool>) -> Result<Self> {
        let root = settings.root.clone();
        let backend: Box<dyn Backend> = Box::new(Btrfs::open(&root, identity.group_prefix)?);
        Self::assemble(settings, identity, backend, pool)
    }

    /// An engine on a given backend: for tests with the in-memory double.
    pub fn on_backend(settings: Settings, backend: Box<dyn Backend>) -> Result<Self> {
        let identity = match Identity::read(&settings.root)? {
            Some(identity) => identity,
            None => Identity::create(&settings.root, "memory")?,
        };
        Self::assemble(settings, identity, backend, None)
    }

    fn assemble(
        settings: Settings,
        identity: Identity,
        backend: Box<dyn Backend>,
        pool: Option<Pool>,
    ) -> Result<Self> {
        let instance = backend.instance()?;
        let highest_group = || Ok(backend.highest_group()?.map(|group| group.0));
        let store = Store::open(&settings.root, identity, &instance, &highest_group)?;
        Ok(Self { settings, store, backend, pool, cancelled: Arc::new(AtomicBool::new(false)) })
    }
}

fn require_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(Kind::Denied, "only root can make snapshots and read other users' trees").with_hint("use sudo"))
}

/// The pool of `root`, attached, if there is one.
fn attached_pool(root: &Path) -> Result<Option<Pool>> {
    let pool = Pool::at(root);
    if !pool.exists() {
        return Ok(None);
    }
    pool.attach()?;
    Ok(Some(pool))
}

/// Kernels before 6.7 have no simple quotas: there, sizes are counted from extents and limits refused.
fn enable_simple_quotas(backend: &Btrfs) -> Result<()> {
    match backend.set_quota_mode(QuotaMode::Simple) {
        Err(e) if e.kind() == Kind::Unsupported => Ok(()),
        other => other,
    }
}

/// Make ROOT a subvolume of its own, so that snapshots of the host's filesystem don't pin what it holds.
fn make_in_place(root: &Path) -> Result<Identity> {
    if root.exists() {
        let mut entries = std::fs::read_dir(root).context(|| format!("read {}", root.display()))?;
        if entries.next().is_some() {
            return Err(Error::new(Kind::Exists, "it is not empty and not a store")
                .with_hint("choose an empty or new directory with --root"));
        }
    } else if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent).context(|| format!("mkdir {}", parent.display()))?;
    }
    subvolume::make(root)?;
    Identity::create(root, "btrfs")
}

fn is_btrfs(root: &Path) -> Result<bool> {
    Ok(statfs(root)?.f_type == BTRFS_SUPER_MAGIC)
}

/// linux/magic.h
const BTRFS_SUPER_MAGIC: i64 = 0x9123_683e;

fn filesystem_name(root: &Path) -> Result<String> {
    Ok(match statfs(root)?.f_type {
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

/// Of the filesystem that `root` lies on, or would if it were made.
fn statfs(root: &Path) -> Result<rustix::fs::StatFs> {
    let mut path = PathBuf::from(root);
    while !path.exists() {
        if !path.pop() {
            break;
        }
    }
    rustix::fs::statfs(&path).context(|| format!("statfs {}", path.display()))
}
