//! Taking a whole store away: trees, groups, pool, loop device, mount.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Engine, view};
use crate::backend::Tree;
use crate::backend::btrfs::root as subvolume;
use crate::store::{self, Lock, TreeKind};
use crate::sys::durable;
use crate::{Context, Error, Kind, Result};

const PATIENCE: Duration = Duration::from_secs(120);
/// What a command that isn't a load takes.
const MOMENT: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(20);

impl Engine {
    /// Remove everything the store made, and nothing else. If something of somebody else's stands in ROOT, ROOT stays.
    ///
    /// # Errors
    /// `InUse` naming a process that uses a container, unless `force`.
    pub fn destroy(self, force: bool) -> Result<()> {
        let root = self.root().to_path_buf();
        self.destroy_all(force).context(|| format!("cannot destroy the store at {}", root.display()))
    }

    fn destroy_all(mut self, force: bool) -> Result<()> {
        let alone = match self.alone() {
            // Of a pool others are kept out by its filesystem, which can't be unmounted while they use it, and says who.
            Err(e) if e.kind() == Kind::InUse && self.pool.is_some() => None,
            alone => alone?,
        };
        let containers = self.store.list(TreeKind::Container)?;
        if !force {
            for container in &containers {
                let name = container.container().map_or_else(String::new, |c| c.name.clone());
                self.check_unused(container).context(|| format!("container {name}"))?;
            }
        }
        let root = self.root().to_path_buf();
        if let Some(pool) = self.pool {
            // The pool's filesystem goes whole; closing the index first lets it be unmounted.
            drop(self.store);
            drop(self.backend);
            drop(self.lock);
            drop(alone);
            return pool.destroy();
        }
        for container in containers.iter().filter(|container| container.is_view()) {
            view::take_away(self.tree(container).place())?;
        }
        for place in self.store.all_places()? {
            view::clear(&place)?;
            self.backend.destroy(&Tree::new(&place, None))?;
            self.store.remove_any(&place)?;
        }
        self.backend.reclaim(&BTreeSet::new(), PATIENCE)?;
        self.backend.trim()?;
        drop(self.store);
        remove_own_files(&root)?;
        remove_if_empty(&root)?;
        drop(alone);
        Ok(())
    }

    /// Wait a moment for others to be done with the store, and keep them out of it. Who tends it is asked to stop.
    fn alone(&mut self) -> Result<Option<File>> {
        drop(self.lock.take());
        let _asked = store::ask_to_stop(self.root())?;
        let start = Instant::now();
        loop {
            if let Some(lock) = store::lock_root(self.root(), Lock::TryExclusive)? {
                return Ok(Some(lock));
            }
            if start.elapsed() > MOMENT {
                return Err(Error::new(Kind::InUse, "another reflinkd is working in it").with_hint(
                    "stop reflinkd serve first, if it runs (systemctl stop reflinkd); else let the other command end",
                ));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// What `Identity::create` and the index made; `store.json` last, so that a destroy cut short can be repeated.
fn remove_own_files(root: &Path) -> Result<()> {
    let backups = (1..store::SCHEMA).map(|schema| format!("backup-schema-{schema}"));
    for directory in ["images", "blobs", "doors"].map(String::from).into_iter().chain(backups) {
        ignore_missing(durable::remove_all(&root.join(&directory))).context(|| format!("remove {directory}"))?;
    }
    let index = ["index.db", "index.db-journal", "index.current"];
    let locks = ["index.lock", "index.turn", "places.lock", "tend.next", "tend.lock", "tend.stop"];
    for file in index.into_iter().chain(locks) {
        ignore_missing(durable::unlink(&root.join(file))).context(|| format!("unlink {file}"))?;
    }
    for directory in ["snapshots", "trash"] {
        ignore_missing(durable::rmdir(&root.join(directory))).context(|| format!("rmdir {directory}"))?;
    }
    ignore_missing(durable::unlink(&root.join("store.json"))).context(|| "unlink store.json")
}

fn ignore_missing(result: std::io::Result<()>) -> std::io::Result<()> {
    match result {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn remove_if_empty(root: &Path) -> Result<()> {
    let mut entries = std::fs::read_dir(root).context(|| format!("read {}", root.display()))?;
    if entries.next().is_some() {
        return Ok(());
    }
    subvolume::remove(root)
}
