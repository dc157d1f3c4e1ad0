//! shim until merged
use crate::Result;
use std::path::{Path, PathBuf};
#[derive(Debug)]
pub struct Pool {
    file: PathBuf,
}
#[derive(Debug)]
pub struct HostSpace {
    pub occupied: u64,
    pub free: u64,
}
impl Pool {
    pub fn at(root: &Path) -> Self {
        Self { file: root.with_extension("pool") }
    }
    pub fn exists(&self) -> bool {
        self.file.exists()
    }
    pub fn create(&self, _: u64) -> Result<()> {
        Ok(())
    }
    pub fn attach(&self) -> Result<()> {
        Ok(())
    }
    pub fn destroy(&self) -> Result<()> {
        Ok(())
    }
    pub fn guard(&self, _: u64) -> Result<()> {
        Ok(())
    }
    pub fn file(&self) -> &Path {
        &self.file
    }
    pub fn host_space(&self) -> Result<HostSpace> {
        Ok(HostSpace { occupied: 0, free: 0 })
    }
}
