//! Findings made right, one by one: what one of them meets doesn't keep the others. Nothing else is touched.
//!
//! What has to be done before the store is opened comes first, as opening it makes an index anew and forgets what only the old
//! one knew. Layers come before what dead processes left, and the lower ones before those on them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::known::{Known, blob_name};
use super::remake::{Part, not_there};
use super::{Checked, Code, Finding, Remedy, charges, images};
use crate::backend::Tree;
use crate::engine::gc::PATIENCE;
use crate::engine::load::Progress;
use crate::engine::{Engine, Settings};
use crate::oci::{Digest, Source};
use crate::store::survey::{Place, Survey};
use crate::store::{self, Content, Image, Lock, Record, State, mend};
use crate::{Error, Kind, Result};

/// What became of a finding.
#[derive(Debug)]
pub struct Repaired {
    pub finding: Finding,
    /// Why it is as it was.
    pub error: Option<Error>,
}

/// Everything that a repair goes by.
struct Repair<'a> {
    survey: &'a Survey,
    known: &'a Known,
    source: Option<&'a Source>,
    progress: &'a dyn Progress,
    done: Vec<Repaired>,
}

pub(super) fn repair(
    settings: Settings,
    cancelled: Arc<AtomicBool>,
    survey: &Survey,
    known: &Known,
    checked: &Checked,
    source: Option<&Source>,
    progress: &dyn Progress,
) -> Result<Vec<Repaired>> {
    let mut repair = Repair { survey, known, source, progress, done: Vec::new() };
    let wanted: Vec<&Finding> = checked
        .findings
        .iter()
        .filter(|finding| match finding.remedy {
            Remedy::Do(_) => true,
            Remedy::FromArchive(_) => source.is_some(),
            Remedy::Left(_) => false,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(repair.done);
    }
    let root = settings.root.clone();
    {
        // Nobody upgrades or destroys it meanwhile.
        let _lock = store::lock_root(&root, Lock::Shared)?;
        repair.before_opening(&root, &wanted);
    }
    let mut engine = Engine::open(settings)?;
    engine.cancelled = cancelled;
    repair.records(&engine, &wanted);
    repair.layers(&engine, &wanted)?;
    repair.others(&engine, &wanted);
    repair.left_by_the_dead(&engine, &wanted);
    repair.groups(&engine, &wanted);
    Ok(repair.done)
}

impl Repair<'_> {
    fn note(&mut self, finding: &Finding, done: Result<()>) {
        self.done.push(Repaired { finding: finding.clone(), error: done.err() });
    }

    fn before_opening(&mut self, root: &std::path::Path, wanted: &[&Finding]) {
        for finding in wanted {
            let done = match finding.code {
                Code::DirectoryMissing | Code::LockMissing => mend::make_missing(root),
                Code::DirectoryOpen => finding.path.as_deref().map_or(Ok(()), mend::close),
                Code::RecordMissing | Code::RecordUnreadable => self.write_record(root, finding),
                Code::IndexMissing | Code::IndexBehind => mend::make_index_anew(root, true),
                Code::IndexTorn => mend::make_index_anew(root, false),
                _ => continue,
            };
            self.note(finding, done);
        }
        // What the index says of these is of before; what it calls ready nobody would finish.
        let settled = |finding: &Finding| match finding.uuid.map(|uuid| self.survey.index.row(uuid)) {
            Some(Some((_, state))) => *state == State::Ready,
            Some(None) => true,
            None => false,
        };
        let wrong = |finding: &Finding| is_of_record(finding) || is_of_the_dead(finding) && settled(finding);
        if wanted.iter().any(|finding| wrong(finding))
            && let Err(e) = mend::make_index_anew(root, true)
        {
            tracing::warn!("cannot make the index anew: {e}");
        }
    }

    fn write_record(&self, root: &std::path::Path, finding: &Finding) -> Result<()> {
        let uuid = finding.uuid.unwrap_or_default();
        let row = self.survey.index.row(uuid).map(|(record, _)| record);
        let record = row.or_else(|| self.known.layers.get(&uuid));
        let record = record.ok_or_else(|| Error::new(Kind::NotFound, "nobody knows what it was"))?;
        mend::write_record(root, record)
    }

    /// Records that were written again by what images tell.
    fn records(&mut self, engine: &Engine, wanted: &[&Finding]) {
        for finding in wanted.iter().filter(|finding| is_of_record(finding)) {
            let Some(uuid) = finding.uuid.filter(|uuid| self.survey.index.row(*uuid).is_none()) else { continue };
            let Some(record) = self.known.layers.get(&uuid) else { continue };
            if let Err(e) = self.complete(engine, record) {
                tracing::warn!("cannot tell the size of layer {uuid}: {e}");
            }
        }
    }

    /// Layers, the lower ones first.
    fn layers(&mut self, engine: &Engine, wanted: &[&Finding]) -> Result<()> {
        let Some(source) = self.source else { return Ok(()) };
        let mut damaged: Vec<(&Finding, Part)> = wanted
            .iter()
            .filter_map(|finding| {
                let part = match finding.code {
                    Code::LayerMissing => Part::All,
                    Code::TreeMissing | Code::TreeUnreadable | Code::TreeChanged | Code::LayerDiffers => Part::Tree,
                    Code::RecipeMissing | Code::RecipeDamaged => Part::Recipe,
                    _ => return None,
                };
                matches!(finding.remedy, Remedy::FromArchive(_)).then_some((*finding, part))
            })
            .collect();
        damaged.sort_by_key(|(finding, _)| self.known.depth(finding.uuid.unwrap_or_default()));
        // Who collects layers waits.
        let _loading = engine.store.lock_loads(Lock::Shared)?;
        for (finding, part) in damaged {
            let record = finding.uuid.and_then(|uuid| self.known.layers.get(&uuid));
            let done = match record {
                Some(record) => engine.remake(record, part, source, self.progress),
                None => Err(Error::new(Kind::NotFound, "nobody knows what it was")),
            };
            self.note(finding, done);
        }
        Ok(())
    }

    fn others(&mut self, engine: &Engine, wanted: &[&Finding]) {
        for finding in wanted {
            let record = finding.uuid.and_then(|uuid| self.known.there.get(&uuid));
            let done = match (finding.code, record) {
                (Code::TreeWritable, Some(record)) => engine.backend.set_read_only(&engine.tree(record), true),
                (Code::TreeReadOnly, Some(record)) => engine.backend.set_read_only(&engine.tree(record), false),
                (Code::TreeMissing, Some(record)) if record.layer().is_none() => engine.store.forget_lost(record),
                (Code::ParentMissing, Some(record)) => engine.remove_tree(record),
                (Code::NameTaken, Some(record)) => engine.store.keep_given_name(record.uuid).map(drop),
                (Code::LimitMissing, Some(record)) => {
                    engine.set_limit(&engine.tree(record), charges::limit_of(record))
                }
                (Code::ImageUnreadable | Code::ImageMissing, _) => self.write_image(engine, finding),
                (Code::ConfigUnreadable | Code::ManifestUnreadable, _) => self.write_blob(engine, finding),
                _ => continue,
            };
            self.note(finding, done);
        }
    }

    /// What an image doesn't tell of a layer, its tree does: the group that it is charged to, and its size.
    fn complete(&self, engine: &Engine, record: &Record) -> Result<()> {
        let group = engine.backend.charge(&engine.tree(record))?.and_then(|charge| charge.group);
        let tree = Tree::new(engine.store.place(record.uuid), group);
        let (method, bytes) = engine.backend.measure_for_good(&tree)?;
        let completed = engine.store.update(record.uuid, |record| {
            record.group = group.map(|group| group.0);
            if let Content::Layer(layer) = &mut record.content {
                (layer.size, layer.size_method) = (bytes, method.to_string());
            }
            Ok(())
        });
        completed.map(drop)
    }

    fn write_image(&self, engine: &Engine, finding: &Finding) -> Result<()> {
        let guard = engine.store.lock_images()?;
        let forgotten = images::forgotten(self.survey, self.known);
        let (ids, instead_of) = match finding.code {
            Code::ImageMissing => {
                (forgotten.into_iter().filter(|id| id.contains(&finding.object)).collect::<Vec<_>>(), None)
            }
            _ => (forgotten, finding.path.as_deref()),
        };
        if ids.is_empty() {
            return Err(Error::new(Kind::NotFound, "its configuration, or a layer of it, isn't there"));
        }
        for id in ids {
            let Some(top) = self.known.configs.get(&id).and_then(|config| self.known.top_of(config)) else {
                continue;
            };
            let names = self.names_of(&id);
            let now = jiff::Timestamp::now();
            let image = Image {
                uuid: uuid::Uuid::new_v4(),
                manifest: self.manifest_of(&id),
                id,
                top,
                index: None,
                blobs: Vec::new(),
                loaded: now,
                names: names.into_iter().map(|name| (name, now)).collect(),
            };
            guard.mend(&image, instead_of)?;
        }
        Ok(())
    }

    /// What an image was called: by the archive, or by the containers made from it.
    fn names_of(&self, id: &str) -> Vec<String> {
        let archived = self.source.map(Source::images).unwrap_or_default();
        let archived = archived.iter().filter(|image| image.id.0.to_string() == id).flat_map(|image| &image.names);
        let containers = self.known.there.values().filter_map(Record::container);
        let asked = containers.filter(|container| container.image_id == id && container.image != id);
        // A name is one image's.
        let taken = |name: &String| {
            let images = self.survey.images.iter().filter_map(|file| file.image.as_ref().ok());
            images.into_iter().any(|image| image.names.contains_key(name))
        };
        let mut names: Vec<_> = archived
            .map(crate::oci::Reference::canonical)
            .chain(asked.map(|container| container.image.clone()))
            .filter(|name| !taken(name))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    fn manifest_of(&self, id: &str) -> Option<String> {
        let archived = self.source.map(Source::images).unwrap_or_default();
        let image = archived.iter().find(|image| image.id.0.to_string() == id)?;
        let digest = image.manifest.as_ref()?.0;
        self.survey.blobs.contains(blob_name(&digest.to_string())).then(|| digest.to_string())
    }

    /// A manifest or configuration from the archive.
    fn write_blob(&self, engine: &Engine, finding: &Finding) -> Result<()> {
        let index = self.source.and_then(Source::named);
        let source = self.source.map(Source::images).unwrap_or_default();
        let files: Vec<&Image> = self.survey.images.iter().filter_map(|file| file.image.as_ref().ok()).collect();
        let guard = engine.store.lock_images()?;
        let mut written = BTreeMap::new();
        for image in files {
            for archived in source.iter().filter(|archived| archived.id.0.to_string() == image.id) {
                if finding.code == Code::ConfigUnreadable {
                    written.insert(archived.id.0.hex(), archived.config_bytes.as_slice());
                    continue;
                }
                let needed = |digest: &Digest| image.documents().any(|needed| needed == digest.to_string());
                let manifest = archived.manifest.as_ref().map(|(digest, bytes)| (digest, bytes.as_slice()));
                let index = index.and_then(|named| Some((&named.digest, named.index.as_deref()?)));
                for (digest, bytes) in manifest.into_iter().chain(index).filter(|(digest, _)| needed(digest)) {
                    written.insert(digest.hex(), bytes);
                }
            }
        }
        if written.is_empty() {
            return Err(not_there());
        }
        written.into_iter().try_for_each(|(hex, bytes)| guard.mend_blob(&hex, bytes))
    }

    /// What dead processes left: finished or undone as the next verb would.
    fn left_by_the_dead(&mut self, engine: &Engine, wanted: &[&Finding]) {
        let findings: Vec<_> = wanted.iter().filter(|finding| is_of_the_dead(finding)).collect();
        if findings.is_empty() {
            return;
        }
        let mut done = engine.tidy().map(drop);
        let unrecorded = |uuid| {
            let place = self.survey.places.iter().find(|place| Some(place.uuid) == uuid);
            let is_known = |place: &Place| place.whole().is_some() && self.survey.index.row(place.uuid).is_some();
            place.is_some_and(|place| !place.tree && !is_known(place))
        };
        if findings.iter().any(|finding| finding.uuid.is_some_and(|uuid| unrecorded(Some(uuid)))) {
            done = done.and_then(|()| {
                for stray in engine.store.strays()?.0 {
                    if !stray.place().join("fs").exists() {
                        engine.store.remove_stray(stray)?;
                    }
                }
                Ok(())
            });
        }
        for finding in findings {
            let failed = done.as_ref().err().map(|e| Error::new(e.kind(), e.to_string()));
            self.note(finding, failed.map_or(Ok(()), Err));
        }
    }

    fn groups(&mut self, engine: &Engine, wanted: &[&Finding]) {
        let groups = |code| matches!(code, Code::GroupStale | Code::ChargeDead | Code::TrashLeft);
        let findings: Vec<_> = wanted.iter().filter(|finding| groups(finding.code)).collect();
        if findings.is_empty() {
            return;
        }
        let done = engine.live_groups().and_then(|live| engine.backend.reclaim(&live, PATIENCE)).map(drop);
        for finding in findings {
            let failed = done.as_ref().err().map(|e| Error::new(e.kind(), e.to_string()));
            self.note(finding, failed.map_or(Ok(()), Err));
        }
    }
}

fn is_of_record(finding: &Finding) -> bool {
    matches!(finding.code, Code::RecordMissing | Code::RecordUnreadable)
}

fn is_of_the_dead(finding: &Finding) -> bool {
    matches!(finding.code, Code::PlaceHalfMade | Code::PlaceHalfRemoved | Code::PlaceHalfReplaced)
}
