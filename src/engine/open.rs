//! Finding, making and opening a store.
//!
//! Where ROOT lies on a filesystem that has what it takes, the first command makes the store in place. Elsewhere `init`
//! makes an embedded pool (a loop-backed file beside ROOT), and every later command attaches it if it isn't. Which it
//! is, and by which backend, `home` decides for a new store; an existing one says it itself.
//!
//! ```text
//! ROOT on Btrfs        reflinkd load -i nginx.tar             makes ROOT a subvolume and the store in it
//! ROOT on XFS          reflinkd load -i nginx.tar             makes ROOT a directory and the store in it
//! ROOT on ext4         reflinkd load -i nginx.tar             refused, naming the next line
//!                      reflinkd init --pool-size 20G          ROOT.pool, Btrfs with simple quotas, mounted at ROOT
//!                      reflinkd init --pool-fs xfs            the same with XFS
//! after a reboot       reflinkd ps                            attaches ROOT.pool again
//! ```

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::home::{self, BackendKind, Home};
use super::pool::{Creation, Pool, PoolFs};
use super::{Engine, Settings, highest_group};
use crate::backend::Backend;
use crate::store::survey::{self, Survey};
use crate::store::{self, Identity, Lock, Store};
use crate::{Context, Error, Kind, Result};

/// What `init` did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialised {
    /// The store was there already.
    Unchanged,
    Made(Home),
}

/// For a store in place; a pool has words of its own.
const SHUT_DOWN: &str = "its filesystem met an error and has shut down (dmesg has the cause): end what uses it, unmount \
                         it, and mount it again; what was synced is there";

impl Engine {
    /// Open the store, attaching its pool, or making it in place where ROOT lies on a filesystem that can hold it. One
    /// of an older schema is upgraded first.
    pub fn open(settings: Settings) -> Result<Self> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = attached_pool(&root)?;
            loop {
                if let Some(entered) = enter(&root)? {
                    return Self::with(settings, entered, pool);
                }
                match &pool {
                    Some(pool) => pool.filesystem()?.backend().fill_pool(&root)?,
                    None => match settings.layout.choose(&root)? {
                        Home::InPlace(kind) => home::make_in_place(&root, kind)?,
                        Home::Pool(_) => return Err(home::needs_pool(&root, settings.layout)?),
                    },
                }
            }
        })()
        .map_err(|error| if home::has_shut_down(&root) { error.with_hint(SHUT_DOWN) } else { error })
        .context(|| format!("cannot open the store at {}", root.display()))
    }

    /// Make the store, in place or in a new embedded pool, as [`Settings::layout`] has it.
    ///
    /// # Errors
    /// `Exists` for a store or pool that isn't what the layout asks for.
    pub fn init(settings: Settings) -> Result<(Self, Initialised)> {
        let (root, layout) = (settings.root.clone(), settings.layout);
        (|| -> Result<_> {
            require_root()?;
            let done = match attached_pool(&root)? {
                // It may have no store yet.
                Some(pool) => {
                    layout.check(Home::Pool(pool.filesystem()?)).and_then(|()| found_or_made(&root, &pool))?
                }
                None if enter(&root)?.is_some() => Initialised::Unchanged,
                None => {
                    let home = layout.choose(&root)?;
                    match home {
                        Home::InPlace(kind) => home::make_in_place(&root, kind)?,
                        Home::Pool(fs) => make_pool(&Pool::at(&root), fs, settings.pool_size)?,
                    }
                    Initialised::Made(home)
                }
            };
            let engine = Self::open(settings)?;
            // Another process may have made it meanwhile, otherwise.
            layout.check(engine.home()?)?;
            Ok((engine, done))
        })()
        .context(|| format!("cannot make a store at {}", root.display()))
    }

    /// Where this store is.
    fn home(&self) -> Result<Home> {
        match &self.pool {
            Some(pool) => Ok(Home::Pool(pool.filesystem()?)),
            None => Ok(Home::InPlace(BackendKind::named(&self.store.identity().backend)?)),
        }
    }

    fn with(settings: Settings, entered: Entered, pool: Option<Pool>) -> Result<Self> {
        let kind = BackendKind::named(&entered.identity.backend)?;
        let backend = kind.open(&settings.root, entered.identity.group_prefix)?;
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
        let store = Store::open(&settings.root, entered.identity, &instance, &|| highest_group(&*backend))?;
        Ok(Self::of(settings, store, backend, pool, entered.lock))
    }

    /// The store as it is on disk, which nothing is made, mended or upgraded in: its engine can only look. With what a look at
    /// the whole of it found. On the store's own backend, unless another one is given.
    ///
    /// # Errors
    /// `NotFound` if there is no store; `Unsupported` for one of another schema.
    pub(super) fn look_only(settings: Settings, given: Option<Box<dyn Backend>>) -> Result<(Self, Survey)> {
        let root = settings.root.clone();
        (|| {
            require_root()?;
            let pool = attached_pool(&root)?;
            let none = || Error::new(Kind::NotFound, "there is no store");
            let lock = match store::lock_root(&root, Lock::Shared) {
                Err(e) if e.kind() == Kind::NotFound => return Err(none()),
                lock => lock?,
            };
            let identity = Identity::read(&root)
                .map_err(|e| match e.kind() {
                    Kind::Unsupported => Error::new(e.kind(), e.to_string())
                        .with_hint("any other command upgrades an older store; a newer one needs a newer reflinkd"),
                    _ => e,
                })?
                .ok_or_else(none)?;
            let backend = match given {
                Some(backend) => backend,
                None => BackendKind::named(&identity.backend)?.open(&root, identity.group_prefix)?,
            };
            let survey = survey::look(&root, &backend.instance()?)?;
            let store = Store::of_survey(&root, identity, &survey)?;
            Ok((Self::of(settings, store, backend, pool, lock), survey))
        })()
        .context(|| format!("cannot check the store at {}", root.display()))
    }

    fn of(
        settings: Settings,
        store: Store,
        backend: Box<dyn Backend>,
        pool: Option<Pool>,
        lock: Option<File>,
    ) -> Self {
        Self {
            settings,
            store,
            backend,
            pool,
            lock,
            cancelled: Arc::new(AtomicBool::new(false)),
            removed: AtomicBool::new(false),
            diff_sizes: super::keyed::Counted::default(),
            usages: super::containerd::Usages::default(),
            claims: super::containerd::Claims::default(),
        }
    }
}

/// The store in an attached pool.
fn found_or_made(root: &Path, pool: &Pool) -> Result<Initialised> {
    if enter(root)?.is_some() {
        return Ok(Initialised::Unchanged);
    }
    let fs = pool.filesystem()?;
    fs.backend().fill_pool(root)?;
    Ok(Initialised::Made(Home::Pool(fs)))
}

/// Make a pool, and the store in it. If another process has made one meanwhile, it stays what it is.
fn make_pool(pool: &Pool, fs: PoolFs, size: u64) -> Result<()> {
    let created = pool.create(fs, size)?;
    let filled = pool.attach().and_then(|()| pool.filesystem()?.backend().fill_pool(pool.root()));
    if filled.is_err()
        // Another process's pool is not ours to undo.
        && created == Creation::Created
        && let Err(undone) = pool.destroy()
    {
        tracing::warn!("cannot remove the new pool: {undone}");
    }
    filled
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
