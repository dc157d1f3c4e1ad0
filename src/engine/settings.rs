//! What an administrator can choose. The command line reads it from flags, environment and file; the engine only takes it.

use std::path::PathBuf;
use std::sync::Arc;

use super::home::Layout;
use crate::layer;
use crate::oci::SourceLimits;
use crate::registry;

/// Choices with their defaults. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The store's directory.
    pub root: PathBuf,
    /// Where a new store goes, and by which backend.
    pub layout: Layout,
    /// Apparent size of a new embedded pool.
    pub pool_size: u64,
    /// Creates and loads are refused when the host of an embedded pool has less room than this.
    pub host_reserve: u64,
    /// Clones kept ready of each image in use, where a clone costs more than a moment.
    pub spares: usize,
    /// Whether commands leave slow work to a process of its own.
    pub tend: bool,
    /// What a layer may hold at most.
    pub layer_limits: layer::Limits,
    /// What the input of a load may hold at most.
    pub source_limits: SourceLimits,
    /// Where images are pulled from, and how.
    pub registries: Arc<registry::Settings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/reflinkd"),
            layout: Layout::default(),
            pool_size: 20_000_000_000,
            host_reserve: 500_000_000,
            spares: 1,
            tend: true,
            layer_limits: layer::Limits::default(),
            source_limits: SourceLimits::default(),
            registries: Arc::default(),
        }
    }
}
