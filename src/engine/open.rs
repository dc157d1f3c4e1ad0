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

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::pool::{Creation, Pool};
use super::{Engine, Settings};
use crate::backend::btrfs::{Btrfs, root as subvolume};
use crate::backend::{Backend, QuotaMode};
use crate::store::{self, Identity, Lock, Store};
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
    /// Open the store, attaching its pool, or making it in place where ROOT lies on Btrfs. One of an older schema is
    /// upgraded first.
    pub fn open(settings: Settings) -> Result<Self> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = attached_pool(&root)?;
            loop {
                if let Some(entered) = enter(&root)? {
                    return Self::with(settings, entered, pool);
                }
                match pool {
                    Some(_) => fill_pool(&root)?,
                    None if is_btrfs(&root)? => make_in_place(&root)?,
                    None => return Err(cannot_hold(&root)?),
                }
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
            if let Some(entered) = enter(&root)? {
                return Ok((Self::with(settings, entered, pool)?, Initialised::Unchanged));
            }
            if pool.is_none() && is_btrfs(&root)? {
                make_in_place(&root)?;
                return Ok((Self::open(settings)?, Initialised::InPlace));
            }
            if pool.is_none() {
                let pool = Pool::at(&root);
                let created = pool.create(settings.pool_size)?;
                if let Err(e) = pool.attach().and_then(|()| fill_pool(&root)) {
                    // Another process's pool is not ours to undo.
                    if created == Creation::Created
                        && let Err(undone) = pool.destroy()
                    {
                        tracing::warn!("cannot remove the new pool: {undone}");
                    }
                    return Err(e);
                }
            }
            Ok((Self::open(settings)?, Initialised::Pool))
        })()
        .context(|| format!("cannot make a store at {}", root.display()))
    }

    fn with(settings: Settings, entered: Entered, pool: Option<Pool>) -> Result<Self> {
        let root = settings.root.clone();
        let backend: Box<dyn Backend> = Box::new(Btrfs::open(&root, entered.identity.group_prefix)?);
        Self::assemble(settings, entered, backend, pool)
    }

    /// The store if it is there and can be worked in as it is: makes none, and attaches no pool. For work that nobody
    /// waits for.
    pub fn open_existing(settings: Settings) -> Result<Option<Self>> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = Some(Pool::at(&root)).filter(Pool::exists);
            enter(&root)?.map(|entered| Self::with(settings, entered, pool)).transpose()
        })()
        .context(|| format!("cannot open the store at {}", root.display()))
    }

    /// An engine on a given backend: for tests with the in-memory double.
    pub fn on_backend(settings: Settings, backend: Box<dyn Backend>) -> Result<Self> {
        loop {
            match enter(&settings.root)? {
                Some(entered) => return Self::assemble(settings, entered, backend, None),
                None => drop(Identity::create(&settings.root, "memory")?),
            }
        }
    }

    fn assemble(settings: Settings, entered: Entered, backend: Box<dyn Backend>, pool: Option<Pool>) -> Result<Self> {
        let instance = backend.instance()?;
        let highest_group = || Ok(backend.highest_group()?.map(|group| group.0));
        let store = Store::open(&settings.root, entered.identity, &instance, &highest_group)?;
        Ok(Self {
            settings,
            store,
            backend,
            pool,
            lock: entered.lock,
            cancelled: Arc::new(AtomicBool::new(false)),
            removed: AtomicBool::new(false),
        })
    }
}

/// A store that nobody upgrades or destroys while this lives.
struct Entered {
    lock: Option<File>,
    identity: Identity,
}

/// Enter the store at `root`, upgrading one of an older schema. `None` if there is none.
fn enter(root: &Path) -> Result<Option<Entered>> {
    loop {
        if let Some(from) = store::upgrade(root)? {
            tracing::info!(from, "upgraded the store; what was changed is kept in backup-schema-{from}");
        }
        match store::lock_root(root, Lock::Shared) {
            Ok(lock) => return Ok(Identity::read(root)?.map(|identity| Entered { lock, identity })),
            Err(e) if e.kind() == Kind::NotFound && !root.exists() => return Ok(None),
            // Destroyed and made anew while we waited.
            Err(e) if e.kind() == Kind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
}

fn cannot_hold(root: &Path) -> Result<Error> {
    let why = format!("it lies on {}, which can't hold snapshots", filesystem_name(root)?);
    Ok(Error::new(Kind::Unsupported, why).with_hint(format!(
        "reflinkd --root {} init makes a Btrfs pool in a file beside it; or choose a directory on Btrfs with --root",
        root.display()
    )))
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

/// Make the store in a pool that has none. Quotas first: whoever finds the store finds them switched on.
fn fill_pool(root: &Path) -> Result<()> {
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
    Identity::create(root, "btrfs").map(|_| ())
}

/// Make ROOT a subvolume of its own, so that snapshots of the host's filesystem don't pin what it holds. Of several
/// processes that do so at once, one makes it: they lock the directory around it.
fn make_in_place(root: &Path) -> Result<()> {
    let _alone = match root.parent() {
        Some(parent) => {
            std::fs::create_dir_all(parent).context(|| format!("mkdir {}", parent.display()))?;
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
    subvolume::make(root)?;
    Identity::create(root, "btrfs").map(|_| ())
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
