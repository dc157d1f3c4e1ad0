//! What is known of one keyed tree.

use std::path::PathBuf;

use super::{Found, Keyspace};
use crate::backend::{QuotaMode, Want};
use crate::store::{Record, Stage};
use crate::{Context, Error, Kind, Result};

/// A tree for its client's user.
#[derive(Debug, Clone)]
pub struct KeyedFacts {
    pub record: Record,
    pub directory: PathBuf,
    /// Bytes that it takes on disk and what it is based on doesn't, as of the last commit of the filesystem.
    pub charged: u64,
    /// How they were counted.
    pub method: String,
    pub quota_mode: QuotaMode,
    pub size_limit: Option<u64>,
}

impl Keyspace<'_> {
    /// What is known of a key's tree; of the one that its tree became, if it did. Reads only.
    pub fn facts(&self, key: &str) -> Result<KeyedFacts> {
        (|| -> Result<_> {
            let record = match self.find(key)? {
                Some(Found::Tree(record) | Found::Init(record) | Found::Lost(record)) => record,
                None => return Err(Error::new(Kind::NotFound, format!("there is no {key}"))),
            };
            let tree = self.engine.tree(&record);
            let (charged, method) = match record.keyed().map(|keyed| &keyed.stage) {
                Some(Stage::Committed { size, size_method, .. }) => (*size, size_method.clone()),
                Some(Stage::Reserved | Stage::View) | None => (0, "none".into()),
                Some(Stage::Active) => {
                    let want = Want { sync: false, apparent: false };
                    let measured = self.engine.backend.measure(&[&tree], want)?;
                    (measured.sizes.first().map_or(0, |size| size.charged), measured.method.to_string())
                }
            };
            Ok(KeyedFacts {
                directory: tree.root(),
                charged,
                method,
                quota_mode: self.engine.backend.quota_mode()?,
                size_limit: record.keyed().and_then(|keyed| keyed.size_limit),
                record,
            })
        })()
        .context(|| format!("cannot tell about {key}"))
    }
}
