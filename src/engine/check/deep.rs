//! Layers against their diff IDs: each tar from its recipe and its tree.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::records::{MAKE_LAYER, of};
use super::{Check, Code, Finding, Progress, Remedy, called, stays, told};
use crate::backend::CloneCost;
use crate::engine::image::short;
use crate::engine::load::Silent;
use crate::layer::recipe;
use crate::oci::Digesting;
use crate::store::{self, Record, State};
use crate::{Error, Kind, Result};

impl Progress for Silent {
    fn started(&self, _: &str, _: u64, _: &Arc<AtomicU64>) {}
    fn finished(&self, _: &str) {}
}

/// Counts what goes by.
struct Counted<W>(W, Arc<AtomicU64>);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.1.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Check {
    /// Add what is found; how many layers of each owner were verified.
    pub(super) fn find_in_layers(
        &self,
        findings: &mut Vec<Finding>,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<String, usize>> {
        let mut verified = BTreeMap::new();
        for place in self.survey.places.iter().filter(|place| !place.busy && place.state() == Some(State::Ready)) {
            let Some(record) = place.whole().filter(|record| stays(record) && record.has_tree()) else { continue };
            if self.engine.is_cancelled() {
                return Err(Error::new(Kind::Interrupted, "interrupted"));
            }
            // What is known to be damaged needs no proof.
            if findings.iter().any(|found| found.uuid == Some(record.uuid) && found.code != Code::TreeWritable) {
                continue;
            }
            if self.engine.backend.clone_cost() == CloneCost::PerFile
                && let Some(found) = self.touched(record, &self.engine.tree(record))
            {
                findings.push(found.at(&place.path));
                continue;
            }
            if !place.recipe {
                continue;
            }
            match self.verify(record, progress) {
                Ok(None) => *verified.entry(record.owner.as_str().to_string()).or_default() += 1,
                Ok(Some(found)) => findings.push(found.at(&place.path)),
                Err(e) if e.kind() == Kind::Interrupted => return Err(e),
                Err(e) => findings.push(of(record, Code::TreeUnreadable, told(&e), MAKE_LAYER).at(&place.path)),
            }
        }
        Ok(verified)
    }

    fn verify(&self, record: &Record, progress: &dyn Progress) -> Result<Option<Finding>> {
        let tree = self.engine.tree(record);
        let path = store::recipe(tree.place());
        let is_layer = record.layer().is_some();
        let name = record.layer().map_or_else(|| called(record), |layer| short(&layer.diff_id).to_string());
        if let Err(e) = recipe::verify(&path) {
            let again = if is_layer {
                Remedy::FromArchive("make the recipe again; the tree stays")
            } else {
                Remedy::Left("its client has to make it again")
            };
            return Ok(Some(of(record, Code::RecipeDamaged, told(&e), again)));
        }
        let remedy = if is_layer { MAKE_LAYER } else { Remedy::Left("its client has to make it again") };
        let read = Arc::new(AtomicU64::new(0));
        progress.started(&name, recipe::plain_size(&path)?, &read);
        let mut out = Counted(Digesting::new(io::sink()), read);
        let restored = recipe::restore(&path, &tree.root(), &mut out, &|| self.engine.is_cancelled());
        progress.finished(&name);
        match restored {
            Err(e) if e.kind() == Kind::Damaged => return Ok(Some(of(record, Code::LayerDiffers, told(&e), remedy))),
            restored => restored?,
        }
        let digest = out.0.into_inner().1.finish().to_string();
        Ok(record.layer().filter(|layer| layer.diff_id != digest).map(|_| {
            let why = format!("recipe and tree give a tar with the digest {digest}");
            of(record, Code::LayerDiffers, why, remedy)
        }))
    }
}
