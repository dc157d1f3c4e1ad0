//! Places, records, trees and the index, each against the others.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use super::known::Known;
use super::{Check, Code, Finding, Remedy, called, stays, told};
use crate::backend::{CloneCost, Tree};
use crate::store::survey::{self, IndexLook, Noted, Place};
use crate::store::{Content, Record, Stage, State};
use crate::{Kind, Result};

pub(super) const MAKE_LAYER: Remedy = Remedy::FromArchive("make this layer again, under its UUID");
const SETTLE: Remedy = Remedy::Do("finish or undo it");

impl Check {
    pub(super) fn find_in_directories(&self, findings: &mut Vec<Finding>) {
        let survey = &self.survey;
        let shown =
            |path: &std::path::Path| path.strip_prefix(self.engine.root()).unwrap_or(path).display().to_string();
        for path in &survey.directories {
            let what = Finding::new(Code::DirectoryMissing, shown(path), "it is gone", Remedy::Do("make it"));
            findings.push(what.at(path));
        }
        for path in &survey.locks {
            let why = "it is made when it is needed, which a full disk would keep from";
            findings
                .push(Finding::new(Code::LockMissing, shown(path), why, Remedy::Do("make it")).leftover().at(path));
        }
        for (path, mode) in &survey.open {
            let why = format!("others than root may use it: mode {mode:o}");
            findings.push(Finding::new(Code::DirectoryOpen, shown(path), why, Remedy::Do("close it")).at(path));
        }
        for path in &survey.foreign {
            let left = Remedy::Left("it isn't reflinkd's: move it away");
            findings.push(Finding::new(Code::FileForeign, shown(path), "it is none of the store's", left).at(path));
        }
        for (path, why) in &survey.doors {
            let left = Remedy::Left("remove it: the client says it again when it begins");
            findings.push(Finding::new(Code::DoorUnreadable, shown(path), why, left).at(path));
        }
    }

    pub(super) fn find_in_places(&self, known: &Known, findings: &mut Vec<Finding>) {
        for place in self.survey.places.iter().filter(|place| !place.busy) {
            let found = match &place.record {
                Noted::Missing => self.unrecorded(place, known),
                Noted::Unreadable(why) => Some(self.lost_record(place, Code::RecordUnreadable, why.clone(), known)),
                Noted::Whole(record) => self.in_place(place, record, known),
            };
            findings.extend(found.map(|finding| Finding { uuid: Some(place.uuid), ..finding }.at(&place.path)));
        }
        for record in known.missing(&self.survey) {
            let why = format!("it has no place, and is needed by {}", known.users(record.uuid));
            let found = of(record, Code::LayerMissing, why, MAKE_LAYER).at(self.engine.store.place(record.uuid));
            findings.push(found);
        }
        self.find_parents(known, findings);
        self.find_names(findings);
    }

    /// A place without a record.
    fn unrecorded(&self, place: &Place, known: &Known) -> Option<Finding> {
        if place.tree {
            return Some(self.lost_record(
                place,
                Code::RecordMissing,
                "a tree is there, and no record".into(),
                known,
            ));
        }
        if self.survey.index.row(place.uuid).is_some_and(|(_, state)| *state == State::Ready) {
            let why = "there is neither a record nor a tree".into();
            return Some(self.lost_record(place, Code::RecordMissing, why, known));
        }
        let why = "it has neither record nor tree: who made it died";
        Some(Finding::new(Code::PlaceHalfMade, place.uuid.to_string(), why, Remedy::Do("remove it")))
    }

    fn lost_record(&self, place: &Place, code: Code, why: String, known: &Known) -> Finding {
        let row = self.survey.index.row(place.uuid).map(|(record, _)| record);
        match (row, known.layers.get(&place.uuid)) {
            (Some(record), _) => of(record, code, why, Remedy::Do("write it again, as the index has it")),
            (None, Some(record)) => of(record, code, why, Remedy::Do("write it again, as its image tells")),
            (None, None) => Finding::new(
                code,
                place.uuid.to_string(),
                why,
                Remedy::Left("nobody knows what it was: look into it, and remove or keep what it holds"),
            ),
        }
    }

    /// What is wrong with a place whose record says what it is; one thing, the worst.
    fn in_place(&self, place: &Place, record: &Record, known: &Known) -> Option<Finding> {
        let row = self.survey.index.row(place.uuid).map(|(_, state)| *state);
        if self.survey.index.is_changing(place.uuid) {
            return Some(of(record, Code::PlaceHalfReplaced, "who was writing its record died", SETTLE));
        }
        if record.content == Content::Work {
            let why = "who was making a layer in it died";
            return Some(of(record, Code::PlaceHalfMade, why, SETTLE));
        }
        match row {
            Some(State::Removing) => {
                return Some(of(record, Code::PlaceHalfRemoved, "who was removing it died", SETTLE));
            }
            Some(State::Making) if place.tree || !known.is_needed(place.uuid) => {
                return Some(of(record, Code::PlaceHalfMade, "who was making it died", SETTLE));
            }
            _ => {}
        }
        let reserved = record.keyed().is_some_and(|keyed| keyed.stage == Stage::Reserved);
        if !place.tree && !reserved && place.state() == Some(State::Making) {
            return Some(self.without_tree(record, row, known));
        }
        if !place.tree {
            let unknown = matches!(self.survey.index, IndexLook::Current { .. }) && row.is_none();
            return unknown.then(|| of(record, Code::PlaceHalfMade, "who was making it died", SETTLE));
        }
        if row == Some(State::Replacing) || place.state() == Some(State::Replacing) {
            let why = "who was exchanging its tree for another died";
            return Some(of(record, Code::PlaceHalfReplaced, why, SETTLE));
        }
        if !record.has_tree() {
            return None;
        }
        self.in_tree(place, record)
    }

    fn without_tree(&self, record: &Record, row: Option<State>, known: &Known) -> Finding {
        let layer = record.layer().is_some();
        if layer && known.is_needed(record.uuid) {
            let why = format!("its tree is gone, and is needed by {}", known.users(record.uuid));
            return of(record, Code::TreeMissing, why, MAKE_LAYER);
        }
        if known.is_needed(record.uuid) {
            let why = format!("its tree is gone, and is needed by {}", known.users(record.uuid));
            let left = Remedy::Left("its data is lost: remove what is based on it, then this, by its client");
            return of(record, Code::TreeMissing, why, left);
        }
        if row == Some(State::Ready) {
            let why = "its tree is gone, and with it what it held";
            return of(record, Code::TreeMissing, why, Remedy::Do("forget it: nothing is left of it"));
        }
        of(record, Code::PlaceHalfMade, "it has no tree: who made or removed it died", SETTLE)
    }

    fn in_tree(&self, place: &Place, record: &Record) -> Option<Finding> {
        let tree = self.engine.tree(record);
        let stays = stays(record);
        let from_archive = record.layer().is_some();
        let lost = if from_archive { MAKE_LAYER } else { Remedy::Left("restore or remove it") };
        match self.engine.backend.exists(&tree) {
            Ok(true) => {}
            Ok(false) => return Some(of(record, Code::TreeMissing, "its tree is gone", lost)),
            Err(e) if matches!(e.kind(), Kind::Damaged | Kind::InUse) => {
                let left = Remedy::Left("move or unmount what is there, then check again");
                return Some(of(record, Code::TreeForeign, told(&e), left));
            }
            Err(e) => return Some(of(record, Code::TreeUnreadable, told(&e), lost)),
        }
        let read_only = match self.engine.backend.is_read_only(&tree) {
            Ok(read_only) => read_only,
            Err(e) => return Some(of(record, Code::TreeUnreadable, told(&e), lost)),
        };
        // A client's view of nothing has an empty tree that may be either.
        let view = record.keyed().is_some_and(|keyed| keyed.stage == Stage::View);
        let replaced = !stays && record.snapshot().is_some();
        if stays {
            // Where it takes a look at each file, a deep check does it.
            if self.engine.backend.clone_cost() == CloneCost::Constant
                && let Some(found) = self.touched(record, &tree)
            {
                return Some(found);
            }
            if !read_only {
                let why = "it takes writes, though nothing was written";
                return Some(of(record, Code::TreeWritable, why, Remedy::Do("make it read-only again")));
            }
        } else if read_only && !view && !replaced {
            let why = "it refuses writes";
            return Some(of(record, Code::TreeReadOnly, why, Remedy::Do("let it take writes again")));
        }
        self.recipe_of(place, record)
    }

    /// What was changed in a tree that stays as it is.
    pub(super) fn touched(&self, record: &Record, tree: &Tree) -> Option<Finding> {
        let remedy = if record.layer().is_some() {
            MAKE_LAYER
        } else {
            Remedy::Left("what it was is lost: keep it as it is, or remove it")
        };
        match self.engine.backend.touched(tree) {
            Ok(None) => None,
            Ok(Some(paths)) if paths.is_empty() => None,
            Ok(Some(paths)) => {
                // The deepest says most: a directory changes with what is in it.
                let deepest = paths.iter().max_by_key(|path| (path.iter().count(), std::cmp::Reverse(*path)));
                let first = deepest.map_or_else(String::new, |path| format!("/{}", path.display()));
                let why = format!("it was changed after it was made: {first}");
                Some(of(record, Code::TreeChanged, why, remedy))
            }
            Err(e) => Some(of(record, Code::TreeUnreadable, told(&e), remedy)),
        }
    }

    fn recipe_of(&self, place: &Place, record: &Record) -> Option<Finding> {
        record.layer()?;
        const AGAIN: Remedy = Remedy::FromArchive("make the recipe again; the tree stays");
        if !place.recipe {
            let why = "what its tar is made of again is gone: it can't be saved, nor verified";
            let found = of(record, Code::RecipeMissing, why, AGAIN);
            let older = ["1", "2", "3"]
                .iter()
                .any(|schema| self.engine.root().join(format!("backup-schema-{schema}")).exists());
            return Some(if older { found.leftover() } else { found });
        }
        match crate::layer::recipe::plain_size(&crate::store::recipe(&place.path)) {
            Ok(_) => None,
            Err(e) => Some(of(record, Code::RecipeDamaged, told(&e), AGAIN)),
        }
    }

    /// Records whose parents nobody knows, and snapshots without a container.
    fn find_parents(&self, known: &Known, findings: &mut Vec<Finding>) {
        let places: HashSet<Uuid> = self.survey.places.iter().map(|place| place.uuid).collect();
        // What is half-made has nothing to lose.
        let half_made = |place: &Place| {
            let row = self.survey.index.row(place.uuid).map(|(_, state)| *state);
            // The index may have heard nothing of it yet; on disk it has no tree then.
            row == Some(State::Making)
                || row.is_none() && place.state() == Some(State::Making)
                || place.whole().is_some_and(|record| record.content == Content::Work)
        };
        for place in self.survey.places.iter().filter(|place| !place.busy && !half_made(place)) {
            let Some(record) = place.whole() else { continue };
            let lost = record.parent.filter(|parent| !places.contains(parent) && !known.layers.contains_key(parent));
            if let Some(parent) = lost {
                let spare = record.content == Content::Spare;
                let remedy = if spare {
                    Remedy::Do("remove it: nobody has written to it")
                } else {
                    Remedy::Left("nobody knows what it is based on: its own tree is whole")
                };
                let why = format!("it is based on {parent}, of which nothing is there");
                findings.push(of(record, Code::ParentMissing, why, remedy).at(&place.path));
            }
            if let Some(snapshot) = record.snapshot()
                && !places.contains(&snapshot.container)
            {
                let why = "its container is gone";
                let left = Remedy::Left("reflinkd rm <uuid>@LABEL removes it");
                findings.push(of(record, Code::SnapshotParted, why, left).at(&place.path));
            }
        }
    }

    /// Two trees with one name, or key.
    fn find_names(&self, findings: &mut Vec<Finding>) {
        let mut records: Vec<_> = self.survey.places.iter().filter(|place| !place.busy && place.tree).collect();
        records.retain(|place| place.whole().is_some_and(|record| record.content != Content::Work));
        records.sort_by_key(|place| place.whole().map(|record| (record.created, record.uuid)));
        let mut keys: HashMap<_, Uuid> = HashMap::new();
        let mut names: HashMap<_, Uuid> = HashMap::new();
        for place in records {
            let Some(record) = place.whole() else { continue };
            let key = record.key().map(|key| (record.owner.clone(), record.content.kind() as u8, key.into_owned()));
            let name = record.name().map(|name| (record.owner.clone(), name.to_string()));
            let same_key = key.and_then(|key| keys.insert(key, record.uuid));
            let same_name = name.and_then(|name| names.insert(name, record.uuid));
            if let Some(other) = same_key.or(same_name) {
                let why = format!("{other}, which is older, has the same");
                let remedy = match (&record.content, same_key) {
                    (Content::Container(_), None) => Remedy::Do("let it keep the name that it is listed by"),
                    _ => Remedy::Left("look at both, and remove the one that isn't wanted"),
                };
                findings.push(of(record, Code::NameTaken, why, remedy).at(&place.path));
            }
        }
    }

    pub(super) fn find_in_index(&self, known: &Known, findings: &mut Vec<Finding>) {
        const ANEW: Remedy = Remedy::Do("make it anew from the records");
        let index =
            |code, why: String| Finding::new(code, "index.db", why, ANEW).at(self.engine.root().join("index.db"));
        match &self.survey.index {
            IndexLook::Stale => {}
            IndexLook::Missing => findings.push(index(Code::IndexMissing, "it is gone".into())),
            IndexLook::Torn(why) => findings.push(index(Code::IndexTorn, why.clone())),
            IndexLook::Current { .. } => {
                let mut behind = self.find_behind(known);
                behind.retain(|why| self.behind.as_ref().is_none_or(|before| before.contains(why)));
                if let Some(first) = behind.first() {
                    let more =
                        if behind.len() > 1 { format!(", and {} more", behind.len() - 1) } else { String::new() };
                    findings.push(index(Code::IndexBehind, format!("{first}{more}")));
                }
            }
        }
    }

    /// Where the index and the records say otherwise.
    pub(super) fn find_behind(&self, known: &Known) -> Vec<String> {
        let IndexLook::Current { rows, .. } = &self.survey.index else { return Vec::new() };
        let by_uuid: HashMap<Uuid, &Place> = self.survey.places.iter().map(|place| (place.uuid, place)).collect();
        let mut behind = Vec::new();
        for (row, state) in rows {
            match by_uuid.get(&row.uuid) {
                None if known.is_needed(row.uuid) && row.layer().is_some() => {}
                // Who was making or removing it died: the next verb forgets it.
                None if *state != State::Ready => {}
                None => behind.push(format!("it has {}, which has no place", row.uuid)),
                Some(place) if place.busy || *state != State::Ready => {}
                // Said of its place.
                Some(place) if self.survey.index.is_changing(place.uuid) => {}
                Some(place) => {
                    let record = place.whole().filter(|record| !record.replacing);
                    if record.is_some_and(|record| !survey::is_same(row, record)) {
                        behind.push(format!("it has another record of {}", row.uuid));
                    }
                }
            }
        }
        let rows: HashSet<Uuid> = rows.iter().map(|(row, _)| row.uuid).collect();
        // One without a tree that the index doesn't have was never made.
        let whole = self.survey.places.iter().filter(|place| !place.busy && place.tree);
        let whole = whole.filter(|place| place.state() == Some(State::Ready) && !rows.contains(&place.uuid));
        behind.extend(whole.map(|place| format!("it lacks {}", place.uuid)));
        behind
    }

    pub(super) fn find_foreign(&self) -> Result<Vec<Finding>> {
        let foreign = self.engine.backend.foreign_trees()?;
        let left = Remedy::Left("it isn't reflinkd's: btrfs subvolume delete removes it");
        let mut findings: Vec<_> = foreign
            .into_iter()
            .map(|path| {
                let why = "a subvolume that is none of the store's trees";
                Finding::new(Code::SubvolumeForeign, path.display().to_string(), why, left)
                    .at(self.engine.root().join(&path))
            })
            .collect();
        match self.engine.docker_orphans() {
            Ok(orphans) => findings.extend(orphans.trees.iter().map(|record| {
                let why = "dockerd was killed, and doesn't know it any more";
                of(record, Code::DockerOrphan, why, Remedy::Left("reflinkd gc removes it")).leftover()
            })),
            // The file is named by itself.
            Err(e) if e.kind() == Kind::Damaged => {}
            Err(e) => return Err(e),
        }
        Ok(findings)
    }
}

pub(super) fn of(record: &Record, code: Code, reason: impl Into<String>, remedy: Remedy) -> Finding {
    let owner = Some(record.owner.as_str().to_string());
    Finding { owner, uuid: Some(record.uuid), ..Finding::new(code, called(record), reason, remedy) }
}
