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
    pub host_free: u64,
}

impl Engine {
    pub fn info(&self) -> Result<StoreInfo> {
        let pool = match &self.pool {
            None => None,
            Some(pool) => {
                let host = pool.host_space()?;
                Some(PoolInfo { file: pool.file().to_path_buf(), occupied: host.occupied, host_free: host.free })
            }
        };
        Ok(StoreInfo {
            identity: self.store.identity().clone(),
            filesystem: home::filesystem_name(self.root())?,
            images: self.store.images()?.len(),
            layers: self.store.list(TreeKind::Layer)?.len(),
            containers: self.containers()?.len(),
            quota: self.quota_status()?,
            space: self.backend.space()?,
            read_only: self.is_read_only()?,
            pool,
        })
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
