//! Layers into snapshots, and snapshots into layers.

use std::io::{Read, Write};

use super::{Snapshots, stage_of};
use crate::layer;
use crate::store::Stage;
use crate::{Context, Error, Kind, Result};

impl Snapshots<'_> {
    /// Unpack a layer's plain tar into an active snapshot, and read it to its very end. Durable on return if `sync`; otherwise
    /// when the snapshot is committed. After a failure the tree is half done, and only good to be removed.
    ///
    /// If another owner's layer may be reused for what it is to become, the tar is only read and digested.
    ///
    /// # Errors
    /// As [`layer::unpack`]; `BadInput` if the tar isn't that layer's: then the tree is as it was.
    pub fn apply(&self, key: &str, tar: &mut dyn Read, sync: bool) -> Result<()> {
        let mut applied = || -> Result<()> {
            let engine = self.engine;
            engine.tidy()?;
            engine.make_room(None)?;
            engine.guard_host()?;
            // Nobody commits or removes it meanwhile.
            let held = self.hold(key)?;
            if *stage_of(held.record())? != Stage::Active {
                return Err(Error::new(Kind::InUse, "only an active snapshot can be written to"));
            }
            if let Some(origin) = self.reusable(held.record())? {
                return self.reuse(held, &origin, tar);
            }
            let root = engine.tree(held.record()).root();
            engine.while_room(|stop| layer::unpack(tar, &root, &engine.settings.layer_limits, stop))?;
            std::io::copy(tar, &mut std::io::sink()).context(|| "read what follows the tar")?;
            if sync { engine.backend.sync() } else { Ok(()) }
        };
        applied().context(|| format!("cannot unpack a layer into {key}"))
    }

    /// Write the plain tar of a layer of what `right` has that `left` doesn't; all of it without `left`.
    pub fn diff(&self, left: Option<&str>, right: &str, out: &mut dyn Write) -> Result<()> {
        self.record(right).context(|| format!("cannot compare {right}"))?;
        self.keys.diff(right, left, out)
    }
}
