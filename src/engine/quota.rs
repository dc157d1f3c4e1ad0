//! Quotas of the filesystem that the store lies on: shown, and switched only when asked.

use super::Engine;
use crate::backend::{Guarantee, QuotaMode, Quotas};
use crate::{Context, Result};

/// What `quota status` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuotaStatus {
    pub mode: QuotaMode,
    /// How far a limit can be trusted; `None` where nothing holds one.
    pub guarantee: Option<Guarantee>,
    /// Whether there is anything to switch: project quotas are a matter of mounting.
    pub switchable: bool,
    /// Whether the filesystem is this store's own (an embedded pool), so that switching concerns nobody else.
    pub owned: bool,
}

impl Engine {
    pub fn quota_status(&self) -> Result<QuotaStatus> {
        Ok(QuotaStatus {
            mode: self.backend.quota_mode()?,
            guarantee: self.backend.quotas().map(Quotas::guarantee),
            switchable: self.backend.switches_quotas(),
            owned: self.pool.is_some(),
        })
    }

    /// Switch quotas for the whole filesystem. Whoever calls this has told the user what follows.
    pub fn set_quota_mode(&self, mode: QuotaMode) -> Result<()> {
        self.backend.set_quota_mode(mode).context(|| format!("cannot switch quotas on {}", self.root().display()))
    }
}
