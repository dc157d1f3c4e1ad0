//! The guard of an embedded pool: its host must not run full before its filesystem does.
//!
//! A pool is a sparse file, and its filesystem believes in all of it. What the host can't store any more is lost after the
//! writer was told that it is written; then Btrfs turns read-only, and XFS waits ([`super::pool`]). So a reserve is kept on the
//! host. Whatever adds to the store asks first whether it is there, and asks again while much goes in. What removes never
//! asks: it needs a few blocks of metadata, which the reserve is there for.
//!
//! What a container writes passes by all this.

use std::cell::{Cell, RefCell};

use super::Engine;
use crate::sys::memory;
use crate::{Kind, Result};

/// The way out of a full store.
pub const MAKE_ROOM: &str = "reflinkd df shows what fills the store; rm, rmi and gc make room";
/// After how many blocks or entries to look again. A block is 1 MiB at most.
const BETWEEN_LOOKS: u32 = 16;

impl Engine {
    /// Refuse to write where the pool's host is about to fill up. Costs microseconds, unless what is in memory could fill it:
    /// then that is written out first.
    ///
    /// # Errors
    /// `NoSpace`.
    pub(super) fn guard_host(&self) -> Result<()> {
        let Some(pool) = &self.pool else { return Ok(()) };
        let reserve = self.settings.host_reserve;
        pool.guard(reserve)?;
        // Nobody says how much of it is the pool's.
        let dirty = memory::dirty()?;
        if pool.guard(reserve.saturating_add(dirty)).is_ok() {
            return Ok(());
        }
        self.backend.sync().and_then(|()| pool.guard(reserve))
    }

    /// Whether the reserve on the pool's host is touched.
    pub(super) fn is_host_short(&self) -> Result<bool> {
        let Some(pool) = &self.pool else { return Ok(false) };
        Ok(pool.host_space()?.free < self.settings.host_reserve)
    }

    /// Do what takes in a stream or a tree, for as long as nobody cancels it and the host has room. It asks whether to stop at
    /// each block and entry, and fails then.
    pub(super) fn while_room<T>(&self, work: impl FnOnce(&dyn Fn() -> bool) -> Result<T>) -> Result<T> {
        let (asked, refusal) = (Cell::new(0_u32), RefCell::new(None));
        let stop = || {
            let turn = asked.replace(asked.get().wrapping_add(1)) % BETWEEN_LOOKS == 0;
            if turn && let Err(e) = self.guard_host() {
                refusal.replace(Some(e));
            }
            self.is_cancelled() || refusal.borrow().is_some()
        };
        let done = work(&stop);
        match (done, refusal.into_inner()) {
            // That it was stopped says less than why.
            (Err(e), Some(refusal)) if e.kind() == Kind::Interrupted && !self.is_cancelled() => Err(refusal),
            (Err(e), _) if e.kind() == Kind::NoSpace => Err(e.with_hint(MAKE_ROOM)),
            (done, _) => done,
        }
    }
}
