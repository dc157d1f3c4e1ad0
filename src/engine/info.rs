//! What `info`, `inspect` and `destroy` ask.

use std::path::PathBuf;

use super::image::ImageInfo;
use super::quota::QuotaStatus;
use super::{Engine, home};
use crate::backend::{Nested, Space};
use crate::store::{Identity, Image, Record, TreeKind};
use crate::{Error, Kind, Result};

/// The state of a store.
#[derive(Debug, Clone)]
pub struct StoreInfo {
    pub identity: Identity,
    /// What the filesystem is called that the store lies on: `btrfs`, `xfs`, ...
    pub filesystem: String,
    pub images: usize,
    pub layers: usize,
    pub containers: usize,
    pub quota: QuotaStatus,
    pub space: Space,
    /// Its filesystem takes no writes: a pool whose host ran full, or a root mounted so.
    pub read_only: bool,
    pub pool: Option<PoolInfo>,
}

/// The state of an embedded pool, in bytes.
#[derive(Debug, Clone)]
pub struct PoolInfo {
    pub file: PathBuf,
    /// What the file takes on the host.
    pub occupied: u64,
    /// What it can come to take besides, by what containers write if by nothing else.
    pub may_grow: u64,
    pub host_free: u64,
    /// Below this nothing is added to the store ([`super::Settings::host_reserve`]).
    pub host_reserve: u64,
}

impl PoolInfo {
    /// Whether nothing is added to the store for want of room on the host.
    #[must_use]
    pub fn is_host_short(&self) -> bool {
        self.host_free < self.host_reserve
    }

    /// Whether what containers write may fill the host, which nothing holds back.
    #[must_use]
    pub fn is_overcommitted(&self) -> bool {
        self.host_free < self.may_grow
    }
}

impl Engine {
    pub fn info(&self) -> Result<StoreInfo> {
        Ok(StoreInfo {
            identity: self.store.identity().clone(),
            filesystem: home::filesystem_name(self.root())?,
            images: self.store.images()?.len(),
            layers: self.store.list(TreeKind::Layer)?.len(),
            containers: self.containers()?.len(),
            quota: self.quota_status()?,
            space: self.backend.space()?,
            read_only: self.is_read_only()?,
            pool: self.pool_info()?,
        })
    }

    /// The store's pool, if it has one, and its host.
    pub fn pool_info(&self) -> Result<Option<PoolInfo>> {
        let Some(pool) = &self.pool else { return Ok(None) };
        let host = pool.host_space()?;
        Ok(Some(PoolInfo {
            file: pool.file().to_path_buf(),
            occupied: host.occupied,
            may_grow: host.length.saturating_sub(host.occupied),
            host_free: host.free,
            host_reserve: self.settings.host_reserve,
        }))
    }

    fn is_read_only(&self) -> Result<bool> {
        let stat = rustix::fs::statvfs(self.root());
        let stat = crate::Context::context(stat, || format!("statvfs {}", self.root().display()))?;
        Ok(stat.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    }

    /// Let the embedded pool grow to `size` bytes, while it is in use. Whether it was smaller.
    ///
    /// # Errors
    /// `Unsupported` for a store without a pool; `Invalid` for a size below what it has.
    pub fn grow_pool(&self, size: u64) -> Result<bool> {
        let pool = self.pool.as_ref().ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                format!("the store at {} has no pool that could grow", self.root().display()),
            )
        })?;
        let before = pool.host_space()?.length;
        pool.grow(size)?;
        Ok(pool.host_space()?.length > before)
    }

    /// An image with its layers and size.
    pub fn image_info(&self, image: Image) -> Result<ImageInfo> {
        Ok(Self::info_of(image, &self.all_layers()?))
    }

    /// Subvolumes that somebody made inside a container.
    pub fn nested(&self, container: &Record) -> Result<Vec<Nested>> {
        if container.is_view() {
            return Ok(Vec::new());
        }
        self.backend.nested(&self.tree(container))
    }
}
