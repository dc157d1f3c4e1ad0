//! Spare clones: where a clone takes a few calls for each file, ready ones of each image in use are kept, and a create
//! takes one over. They are made in the background (`tend`), and never at the cost of anything else: where space is
//! short they go first.

use std::sync::atomic::Ordering;

use super::Engine;
use super::gc::PATIENCE;
use crate::backend::CloneCost;
use crate::store::{Record, TreeKind};
use crate::{Kind, Result};

impl Engine {
    /// All spares, oldest first.
    pub(super) fn spares(&self) -> Result<Vec<Record>> {
        self.store.list(TreeKind::Spare)
    }

    /// Whether clones are worth making ahead here.
    pub(super) fn keeps_spares(&self) -> bool {
        self.backend.clone_cost() == CloneCost::PerFile
    }

    /// Remove spares. One that somebody is turning into a container stays.
    pub(super) fn drop_spares(&self, mut which: impl FnMut(&Record) -> bool) -> Result<Vec<Record>> {
        let mut dropped = Vec::new();
        for spare in self.spares()? {
            if which(&spare)
                && let Some(held) = self.store.begin_dropping(spare.uuid)?
            {
                self.remove_held(held)?;
                dropped.push(spare);
            }
        }
        Ok(dropped)
    }

    /// Before a create or load: give spares up where space is short, but not those of the image named.
    pub(super) fn make_room(&self, keep: Option<&str>) -> Result<()> {
        if !self.keeps_spares() || !self.is_space_short()? {
            return Ok(());
        }
        let top = keep.and_then(|image| self.find_image(image).ok()).and_then(|image| image.top);
        self.give_up_spares(|spare| top.is_none() || spare.parent != top).map(drop)
    }

    /// Do a step that leaves nothing when it fails; where it finds no room, once more without any spares.
    pub(super) fn with_room<T>(&self, mut step: impl FnMut() -> Result<T>) -> Result<T> {
        match step() {
            Err(e) if e.kind() == Kind::NoSpace && self.keeps_spares() && self.give_up_spares(|_| true)? => step(),
            done => done,
        }
    }

    /// Whether the filesystem, or the host of its pool, has too little left for what is only convenient.
    pub(super) fn is_space_short(&self) -> Result<bool> {
        let space = self.backend.space()?;
        Ok(space.available < space.total / 20 || self.is_host_short()?)
    }

    /// Wait until removed trees are cleaned up; how many there were. The host of a pool gets their space back.
    pub(super) fn reclaim(&self) -> Result<u64> {
        let removed = self.backend.reclaim(&self.live_groups()?, PATIENCE)?;
        self.removed.store(false, Ordering::Relaxed);
        if removed > 0 && self.pool.is_some() {
            self.backend.trim()?;
        }
        Ok(removed)
    }

    /// Remove spares and wait until their space is free. Whether there were any.
    fn give_up_spares(&self, which: impl FnMut(&Record) -> bool) -> Result<bool> {
        let dropped = self.drop_spares(which)?;
        if dropped.is_empty() {
            return Ok(false);
        }
        tracing::debug!(count = dropped.len(), "gave up spares for want of room");
        self.reclaim()?;
        Ok(true)
    }
}
