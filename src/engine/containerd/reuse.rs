//! Layers that another owner has unpacked already.
//!
//! ```text
//! prepare(key, on parent, TARGET=chain)  as always a clone of the parent
//! apply(key, tar)                        an owner in `Space::reuse` has the layer `chain`: the tar is digested, and nothing is
//!                                        unpacked. If it is that layer's, a clone of its tree takes the place of the parent's
//! commit(name, key)                      its size is the layer's
//! ```
//!
//! containerd goes on fetching what it hasn't, so its content store is whole, and images can be exported and pushed; and whoever
//! mounts a snapshot and unpacks by himself finds what he expects
//! (`docs/decisions/014-a-layer-is-reused-when-it-is-applied.md`).
//!
//! # What is believed
//! That a tree is what a chain of layers gives, of trees alone that we have unpacked ourselves from a tar with that digest: the
//! command line's layers. Never a label: it says what to look for, and the tar says whether it is that.
//!
//! # Lineage
//! Changes between a snapshot and its parent are found in O(changes) if both come from one tree. So a layer is reused only if
//! the snapshot's parent is itself its parent, reused, or both have none: from an image's base up.
//!
//! # Cut short
//! The tree is exchanged as in a reset: whichever of both is there after a crash is settled by the next verb. Its record says
//! that it is reused only after that; without, it is a layer half applied, as after any crash.

use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use super::{Snapshots, TARGET};
use crate::backend::changes::Comparison;
use crate::engine::{Engine, tree_at};
use crate::layer::WHITEOUT;
use crate::layer::reader::{Archive, What};
use crate::oci::{Digest, Hasher};
use crate::store::{
    Content, Draft, Held, Keyed, Layer, New, NewGroup, Owner, Record, Reused, Stage, State, TreeKind,
};
use crate::{Context, Error, Kind, Result};

/// A layer of another owner, which nobody removes while this is there.
#[derive(Debug)]
pub(super) struct Origin<'e> {
    engine: &'e Engine,
    record: Record,
    layer: Layer,
    /// A place without a tree, which is based on it.
    pin: Option<Draft>,
}

impl Drop for Origin<'_> {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take() {
            self.engine.discard(pin);
        }
    }
}

impl Snapshots<'_> {
    /// The layer of another owner that a snapshot is to become, if it may be reused for that.
    pub(super) fn reusable(&self, record: &Record) -> Result<Option<Origin<'_>>> {
        // A limit is on what is written, and nothing would be.
        let Some(keyed) = record.keyed().filter(|keyed| keyed.size_limit.is_none() && keyed.reused.is_none()) else {
            return Ok(None);
        };
        let Some(chain) = keyed.labels.get(TARGET) else { return Ok(None) };
        for owner in &self.space.reuse {
            if let Some((origin, State::Ready)) = self.engine.store.by_key(owner, TreeKind::Layer, chain)?
                && let Some(layer) = origin.layer().cloned()
                // What was committed of a container may have what no tar can hold.
                && !origin.related
                && self.is_on_parent_of(record, &origin)?
                && self.engine.backend.exists(&self.engine.tree(&origin))?
                && self.is_untouched(record)?
            {
                return self.pinned(origin, layer);
            }
        }
        Ok(None)
    }

    fn is_on_parent_of(&self, record: &Record, origin: &Record) -> Result<bool> {
        let Some(parent) = record.parent else { return Ok(origin.parent.is_none()) };
        let parent = self.engine.store.get(parent)?;
        let reused = parent.as_ref().and_then(Record::keyed).and_then(|keyed| keyed.reused.as_ref());
        Ok(reused.is_some_and(|reused| !reused.altered && Some(reused.origin) == origin.parent))
    }

    /// Whether a snapshot is what it was prepared as.
    fn is_untouched(&self, record: &Record) -> Result<bool> {
        let changes = match self.engine.changes(record, false) {
            // Something is mounted in it, or swapped to: nothing that it is prepared with.
            Err(e) if matches!(e.kind(), Kind::InUse | Kind::Unsupported) => return Ok(false),
            changes => changes?.list,
        };
        if record.parent.is_some() {
            return Ok(changes.is_empty());
        }
        let root = self.engine.tree(record).root();
        let facts = std::fs::symlink_metadata(&root).context(|| format!("stat {}", root.display()))?;
        let as_made = (facts.mode() & 0o7777, facts.uid(), facts.gid(), facts.mtime()) == (0o755, 0, 0, 0);
        Ok(as_made && changes.iter().all(|change| change.path.as_os_str().is_empty()))
    }

    fn pinned(&self, record: Record, layer: Layer) -> Result<Option<Origin<'_>>> {
        let engine = self.engine;
        let new =
            New { owner: Owner::cli(), parent: Some(record.uuid), group: NewGroup::None, content: Content::Work };
        match engine.store.begin(new) {
            Ok(pin) => Ok(Some(Origin { engine, record, layer, pin: Some(pin) })),
            // Its owner removes it.
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Put a clone of a layer's tree in the place of a snapshot's, if that is the layer which the tar is of. Durable on return.
    pub(super) fn reuse(&self, held: Held, origin: &Origin<'_>, tar: &mut dyn Read) -> Result<()> {
        let engine = self.engine;
        let (digest, inodes) = read(tar, &|| engine.is_cancelled())?;
        let Layer { diff_id, chain_id, .. } = &origin.layer;
        if digest.to_string() != *diff_id {
            let why =
                format!("its plain tar has the digest {digest}, and {TARGET} says {chain_id}, which is {diff_id}");
            return Err(
                Error::new(Kind::BadInput, why).with_hint("nothing was unpacked: apply the layer that it is for")
            );
        }
        let inodes = inodes?;
        let mut held = engine.store.begin_replacement_of(held)?;
        engine.usages.forget(held.record().uuid);
        let fresh = tree_at(held.place().to_path_buf(), held.record());
        let replaced = engine.backend.replace(&engine.tree(&origin.record), &fresh, None);
        engine.removed.store(true, Ordering::Relaxed);
        if replaced.is_err() {
            // Whichever tree is there counts, with the group it is charged to.
            let settled = engine.settle(held, false);
            return replaced.and(settled);
        }
        let Some(keyed) = held.record().keyed().cloned() else {
            return Err(Error::new(Kind::Damaged, "its record is of another kind"));
        };
        let Layer { size, size_method, apparent_size, .. } = origin.layer.clone();
        let reused = Reused { origin: origin.record.uuid, size, size_method, apparent_size, inodes, altered: false };
        let reused = Record {
            // What both have stays charged to these when the other is gone.
            inherits: origin.record.groups().collect(),
            content: Content::Keyed(Keyed { reused: Some(reused), ..keyed }),
            ..held.record().clone()
        };
        engine.store.amend(&mut held, reused)
    }

    /// What a snapshot that is sealed is from now on, if it was made of another owner's layer.
    pub(super) fn kept_as(&self, record: &Record, stage: Stage) -> (Stage, Option<Reused>) {
        let reused = record.keyed().and_then(|keyed| keyed.reused.clone());
        let (Some(reused), Stage::Committed { size: written, .. }) = (reused, &stage) else {
            return (stage, None);
        };
        let altered = !self.is_as(record, &reused);
        let Reused { size, size_method, apparent_size, inodes, .. } = reused.clone();
        let size = if altered { size + written } else { size };
        // What isn't known any more is counted when somebody asks.
        let known = |number| (!altered).then_some(number);
        let (apparent_size, inodes) = (known(apparent_size), known(inodes));
        (Stage::Committed { size, size_method, apparent_size, inodes }, Some(Reused { altered, ..reused }))
    }

    /// Whether a sealed tree is still as the layer that it was made of. Not if that is gone, as then nobody can tell.
    fn is_as(&self, record: &Record, reused: &Reused) -> bool {
        let engine = self.engine;
        let compared = || -> Result<bool> {
            let Some(origin) = engine.store.get(reused.origin)? else { return Ok(false) };
            let (origin, tree) = (engine.tree(&origin), engine.tree(record));
            let comparison = Comparison { parent: Some(&origin), tree: &tree, scratch: None, sizes: false };
            Ok(engine.backend.changes(&comparison)?.list.is_empty())
        };
        compared().unwrap_or_else(|e| {
            tracing::warn!("cannot tell whether {} is as it was applied: {e}", record.uuid);
            false
        })
    }
}

/// Bytes that are digested as they are read.
struct Digested<'a> {
    tar: &'a mut dyn Read,
    hasher: Hasher,
}

impl Read for Digested<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.tar.read(into)?;
        self.hasher.update(&into[..count]);
        Ok(count)
    }
}

/// Read a tar to its very end: its digest, and how many inodes it makes, if it is a layer's.
fn read(tar: &mut dyn Read, cancelled: &dyn Fn() -> bool) -> Result<(Digest, Result<u64>)> {
    let mut digested = Digested { tar, hasher: Hasher::new() };
    let inodes = inodes_in(&mut digested, cancelled);
    std::io::copy(&mut digested, &mut std::io::sink()).context(|| "read the tar")?;
    Ok((digested.hasher.finish(), inodes))
}

fn inodes_in(tar: &mut dyn Read, cancelled: &dyn Fn() -> bool) -> Result<u64> {
    let (mut archive, mut count) = (Archive::new(tar, u64::MAX, cancelled), 0);
    while let Some(entry) = archive.next_entry()? {
        let last = entry.name.rsplit(|byte| *byte == b'/').find(|name| !name.is_empty());
        let is_marker = last.is_some_and(|name| name.starts_with(WHITEOUT));
        count += u64::from(!is_marker && !matches!(entry.what, What::HardLink(_)));
    }
    Ok(count)
}
