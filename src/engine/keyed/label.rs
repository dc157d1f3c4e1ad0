//! SELinux labels of keyed trees: one for all files of a tree, which is no part of its content.
//!
//! A clone has its parent's. Where a client wants another one for a new tree, all of it is labelled anew, before anybody
//! has it: so it costs a look at each file, once. A tree that is there keeps its label.

use super::Keyspace;
use crate::layer;
use crate::store::Record;
use crate::sys::selinux;
use crate::{Error, Kind, Result};

/// For the files of a layer that nobody wanted a label for: containers may read and run them, whatever their own is.
const LAYER: &str = "system_u:object_r:container_ro_file_t:s0";

/// The label that a tree's files have, if it is one.
pub(super) fn of(record: &Record) -> Option<&str> {
    record.keyed().and_then(|keyed| keyed.label.as_deref())
}

/// Whether a tree has the label that its client asks for, who may ask for none.
pub(super) fn check(record: &Record, wanted: Option<&str>) -> Result<()> {
    match wanted {
        Some(wanted) if of(record) != Some(wanted) => {
            let has = of(record).map_or("none".to_string(), |label| format!("the label {label}"));
            Err(Error::new(Kind::Unsupported, format!("its files have {has}, and not {wanted}")).with_hint(
                "files are labelled when a container is made: make it anew, or run it with --security-opt label=disable",
            ))
        }
        _ => Ok(()),
    }
}

impl Keyspace<'_> {
    /// Give all files of a new tree the label of its record, unless they have it from the parent. Durable on return.
    pub(super) fn labelled(&self, record: &Record, parent: Option<&Record>) -> Result<()> {
        match of(record) {
            Some(label) if parent.and_then(of) != Some(label) => self.relabel(record, label),
            _ => Ok(()),
        }
    }

    /// The label that the files of a layer get which is being unpacked in the tree of `work`: the one asked for, or where the
    /// kernel cares one for all layers.
    pub(super) fn label_layer(&self, work: &Record, wanted: Option<&str>) -> Result<Option<String>> {
        if let Some(label) = wanted {
            return self.relabel(work, label).map(|()| Some(label.to_string()));
        }
        if !selinux::is_enabled() {
            return Ok(None);
        }
        match self.relabel(work, LAYER) {
            Ok(()) => Ok(Some(LAYER.to_string())),
            // This policy doesn't know it: the files have what the policy gives to new ones.
            Err(e) if !matches!(e.kind(), Kind::NoSpace | Kind::Interrupted) => {
                tracing::warn!("cannot label a layer: {e}");
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    fn relabel(&self, record: &Record, label: &str) -> Result<()> {
        let engine = self.engine;
        layer::relabel(&engine.tree(record).root(), label, &|| engine.is_cancelled())?;
        engine.backend.sync()
    }
}
