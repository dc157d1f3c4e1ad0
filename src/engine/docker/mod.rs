//! What dockerd said when it began, kept for as long as it goes on: it says so only once, and not to a daemon that was
//! started again in the middle. And which of its trees it doesn't know any more ([`orphans`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Engine;
use super::keyed::Keyspace;
use crate::layer::IdMaps;
use crate::store::Owner;
use crate::{Error, Kind, Result};

pub mod orphans;

/// A dockerd, as of its last start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// How often a dockerd has started with this store.
    pub session: u32,
    /// Where a built-in driver would have its files: `<data-root>/<name of the driver>`.
    pub home: PathBuf,
    /// All homes that there have been, this one included. A tree's record has its home's number, from 0.
    #[serde(default)]
    pub homes: Vec<Home>,
    /// Most bytes that a container may add for which nothing else is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    /// Whose ids are on disk (`--userns-remap`).
    #[serde(default)]
    pub ids: IdMaps,
}

/// Where a dockerd was at home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    pub path: PathBuf,
    /// What the kernel calls the filesystem that its data root was on, so that one which isn't mounted is no empty one; 0 if
    /// that isn't known.
    pub filesystem: u64,
}

/// What the kernel calls the filesystem that the data root of a home is on; 0 if there is none.
fn filesystem_of(home: &Path) -> u64 {
    let root = home.parent().unwrap_or(home);
    rustix::fs::statvfs(root).map_or(0, |filesystem| filesystem.f_fsid)
}

impl Client {
    /// The dockerd that begins after this one.
    #[must_use]
    pub fn next(&self, home: PathBuf, size_limit: Option<u64>, ids: IdMaps) -> Self {
        let mut homes = self.homes.clone();
        let this = Home { filesystem: filesystem_of(&home), path: home.clone() };
        if !homes.contains(&this) {
            homes.push(this);
        }
        Self { session: self.session + 1, home, homes, size_limit, ids }
    }

    /// The number of its home.
    fn home_number(&self) -> u32 {
        let found = self.homes.iter().rposition(|home| home.path == self.home);
        found.and_then(|found| u32::try_from(found).ok()).unwrap_or(0)
    }
}

impl Engine {
    /// What the last dockerd said; nothing if there was none yet.
    pub fn docker_client(&self) -> Result<Client> {
        let Some(text) = self.store.door(&Owner::docker())? else { return Ok(Client::default()) };
        serde_json::from_slice(&text)
            .map_err(|e| Error::new(Kind::Damaged, format!("what is kept of dockerd is damaged: {e}")))
    }

    /// Keep what a dockerd said that begins. Durable on return. One caller at a time.
    pub fn set_docker_client(&self, client: &Client) -> Result<()> {
        let text = serde_json::to_vec_pretty(client)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write down what dockerd said: {e}")))?;
        if !client.ids.is_identity() {
            self.store.let_through(client.ids.root()?.1)?;
        }
        self.store.set_door(&Owner::docker(), &text)
    }

    /// The trees of a dockerd.
    #[must_use]
    pub fn docker_trees(&self, client: &Client) -> Keyspace<'_> {
        self.keyspace(Owner::docker(), client.session, client.ids.clone()).at_home(client.home_number())
    }
}
