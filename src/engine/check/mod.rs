//! `check`: what is on disk held against what the records say of it, and `repair`: making right what isn't.
//!
//! A check looks before anything is mended, as opening a store finishes or undoes what dead processes left and makes a lost
//! index anew. It changes nothing, works on a store that is in use, and one damaged thing never keeps it from the others:
//! what two looks a moment apart both find, at places that nobody works on, is a finding.
//!
//! ```text
//! survey      store::survey: places, records, index, images as they are on disk
//! records     records against trees: missing, half made, of the wrong kind, changed, without parents
//! images      images against their configurations, manifests and layers
//! charges     quota groups against records
//! deep        each layer's tar from its recipe and its tree against its diff ID
//! repair      findings one by one; `remake` unpacks a damaged layer anew from an archive
//! ```
//!
//! # Findings
//!
//! The codes stay as they are. *Damage* makes the exit code 3. A *leftover* is what everyday work leaves to `gc`, the daemon or
//! the next verb, is listed, and leaves it 0. "From an archive" is a repair that needs `--from` with an archive or a registry's image that has the
//! layer (registries aren't known yet).
//!
//! | Code | What it is, and how it comes about | Repair |
//! |---|---|---|
//! | `tree-missing` | a record whose tree is gone: deleted by hand, or lost with the disk | layers: from an archive. Others: nothing is left but the record, which goes |
//! | `tree-foreign` | at `fs` is something else than a tree, or something is mounted on it | none: move it away, then a layer can be made again |
//! | `tree-unreadable` | the filesystem, or what its backend notes beside it, says nothing of the tree | layers: from an archive |
//! | `tree-writable` | a layer, a snapshot or a client's committed tree takes writes, and nobody has written | the flag, if nothing was changed |
//! | `tree-read-only` | a container's tree refuses writes | the flag |
//! | `tree-changed` | one that stays as it is was written to after it was made | layers: from an archive |
//! | `layer-differs` | (deep) what recipe and tree give isn't the tar that the layer was | from an archive |
//! | `layer-missing` | an image or trees are based on a layer that has no place | from an archive, under its old UUID |
//! | `parent-missing` | a tree that is based on nothing any more, and no image says what that was | spares go; others none |
//! | `recipe-missing` | a layer can't be saved: its recipe was deleted. A leftover where an older version, which made none, has been | from an archive, the tree stays |
//! | `recipe-damaged` | the same, torn | from an archive, the tree stays |
//! | `record-missing` | a place with a tree and no record: copied or restored without extended attributes | from the index, if that has it |
//! | `record-unreadable` | a record that is torn, of another place, or whose file is gone | from the index, if that has it |
//! | `name-taken` | two trees with one name: a place was copied | a container keeps the name that it is listed by. Others none |
//! | `place-half-made` | who made a tree died | it goes |
//! | `place-half-removed` | who removed a tree died | it goes |
//! | `place-half-replaced` | who exchanged a tree, or wrote a record, died | settled: one of the two stays |
//! | `snapshot-parted` | a snapshot whose container is gone | none: `rm <uuid>@LABEL`, or `clone` it |
//! | `subvolume-foreign` | a subvolume in the store that is none of its trees | none: it isn't ours to remove |
//! | `file-foreign` | the same of a file or directory | none |
//! | `directory-missing` | a directory of the store is gone | made |
//! | `directory-open` | others than root can look into the store | closed |
//! | `lock-missing` | leftover: a lock file is gone, which is made when it is needed, unless the disk is full then | made |
//! | `index-missing` | the index was deleted since this mount | made anew from the records |
//! | `index-torn` | its file is damaged | made anew from the records |
//! | `index-behind` | it says otherwise than the records | made anew from the records |
//! | `image-unreadable` | the file of an image is torn | made from the image's configuration, with the names that containers or the archive know |
//! | `image-missing` | a container's image is gone | the same, if its configuration is there |
//! | `image-differs` | an image's layers are not those of its configuration | none: load it again |
//! | `config-unreadable` | an image's configuration is gone or not what its digest says | from an archive |
//! | `manifest-unreadable` | the same of its manifest, or of the index it was pulled through | from an archive |
//! | `door-unreadable` | what a front door keeps of its client is torn | none: the client says it again when it begins |
//! | `group-stale` | a quota group without a tree. A leftover, unless nobody was ever given its number | dropped |
//! | `charge-dead` | leftover: charged to a removed tree for what others still hold | dropped, once nothing is charged |
//! | `charge-differs` | a tree is charged to another group than its record says | none |
//! | `limit-missing` | a container has a limit that its group hasn't | set |
//! | `trash-left` | leftover: a removed tree that isn't taken apart yet | taken apart |
//! | `docker-orphan` | leftover: a tree that dockerd lost | `gc` removes it |

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use uuid::Uuid;

use super::{Engine, Settings, load};
use crate::backend::Backend;
use crate::oci::Source;
use crate::store::survey::{self, Survey};
use crate::store::{Record, Store, TreeKind};
use crate::{Error, Result};

mod charges;
mod deep;
mod images;
mod known;
mod records;
mod remake;
mod repair;

pub use repair::Repaired;

use known::Known;

macro_rules! codes {
    ($($name:ident $text:literal)+) => {
        /// What a finding is of: see the module's head.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $($name,)+
        }

        impl Code {
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name that it always has.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    DirectoryMissing "directory-missing"
    DirectoryOpen "directory-open"
    LockMissing "lock-missing"
    IndexMissing "index-missing"
    IndexTorn "index-torn"
    IndexBehind "index-behind"
    RecordMissing "record-missing"
    RecordUnreadable "record-unreadable"
    NameTaken "name-taken"
    LayerMissing "layer-missing"
    TreeMissing "tree-missing"
    TreeForeign "tree-foreign"
    TreeUnreadable "tree-unreadable"
    TreeWritable "tree-writable"
    TreeReadOnly "tree-read-only"
    TreeChanged "tree-changed"
    LayerDiffers "layer-differs"
    RecipeMissing "recipe-missing"
    RecipeDamaged "recipe-damaged"
    ParentMissing "parent-missing"
    SnapshotParted "snapshot-parted"
    PlaceHalfMade "place-half-made"
    PlaceHalfRemoved "place-half-removed"
    PlaceHalfReplaced "place-half-replaced"
    ImageUnreadable "image-unreadable"
    ImageMissing "image-missing"
    ImageDiffers "image-differs"
    ConfigUnreadable "config-unreadable"
    ManifestUnreadable "manifest-unreadable"
    DoorUnreadable "door-unreadable"
    ChargeDiffers "charge-differs"
    LimitMissing "limit-missing"
    GroupStale "group-stale"
    ChargeDead "charge-dead"
    SubvolumeForeign "subvolume-foreign"
    FileForeign "file-foreign"
    TrashLeft "trash-left"
    DockerOrphan "docker-orphan"
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Damage,
    /// Everyday work leaves it.
    Leftover,
}

/// What a repair does about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// This.
    Do(&'static str),
    /// This, with an archive that has what is lost.
    FromArchive(&'static str),
    /// Nothing; the user can.
    Left(&'static str),
}

/// Something that isn't as it should be.
#[derive(Debug, Clone)]
pub struct Finding {
    pub code: Code,
    pub severity: Severity,
    /// Whose it is; none of what is nobody's.
    pub owner: Option<String>,
    /// What its owner calls it: a container's name, a diff ID, a key, a file.
    pub object: String,
    /// Where it is.
    pub path: Option<PathBuf>,
    pub reason: String,
    pub remedy: Remedy,
    /// The place it is about.
    uuid: Option<Uuid>,
}

impl Finding {
    fn new(code: Code, object: impl Into<String>, reason: impl Into<String>, remedy: Remedy) -> Self {
        Self {
            code,
            severity: Severity::Damage,
            owner: None,
            object: object.into(),
            path: None,
            reason: reason.into(),
            remedy,
            uuid: None,
        }
    }

    fn leftover(self) -> Self {
        Self { severity: Severity::Leftover, ..self }
    }

    fn at(self, path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..self }
    }

    fn is(&self, other: &Self) -> bool {
        let what = |finding: &Self| (finding.code, finding.severity, finding.object.clone(), finding.uuid);
        what(self) == what(other)
    }
}

/// How much of an owner's was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Audited {
    pub owner: String,
    /// Places with a record.
    pub trees: usize,
    /// Those of them that stay as they are.
    pub layers: usize,
    pub images: usize,
    /// Layers whose tars were held against their diff IDs.
    pub verified: usize,
}

/// What a check came to.
#[derive(Debug, Clone)]
pub struct Checked {
    pub findings: Vec<Finding>,
    pub owners: Vec<Audited>,
}

impl Checked {
    /// Whether nothing is damaged.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Leftover)
    }
}

/// Told how a deep check goes on. Layers are named by the first digits of their diff ID.
pub trait Progress: Sync {
    /// A layer of this many bytes is being read; the counter rises to that.
    fn started(&self, layer: &str, total: u64, read: &Arc<AtomicU64>);
    fn finished(&self, layer: &str);
}

/// A store that is looked at.
pub struct Check {
    engine: Engine,
    survey: Survey,
    /// Where the index said otherwise than the records at the look before.
    behind: Option<Vec<String>>,
}

impl Check {
    /// See [`Engine::look_only`].
    pub fn open(settings: Settings) -> Result<Self> {
        Self::looking(settings, None)
    }

    /// A check on a given backend: for tests with the in-memory double.
    pub fn on_backend(settings: Settings, backend: Box<dyn Backend>) -> Result<Self> {
        Self::looking(settings, Some(backend))
    }

    fn looking(settings: Settings, backend: Option<Box<dyn Backend>>) -> Result<Self> {
        let (engine, survey) = Engine::look_only(settings, backend)?;
        Ok(Self { engine, survey, behind: None })
    }

    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Look at everything, with `deep` into all layers too.
    pub fn run(&mut self, deep: Option<&dyn Progress>) -> Result<Checked> {
        let mut findings = self.find()?;
        if findings.iter().any(|finding| finding.severity == Severity::Damage) {
            // Somebody may have been at work.
            self.behind = Some(self.find_behind(&Known::of(&self.survey, &self.engine)));
            self.look_again()?;
            let again = self.find()?;
            findings.retain(|finding| again.iter().any(|other| finding.is(other)));
        }
        let mut owners = self.audited();
        if let Some(progress) = deep {
            let verified = self.find_in_layers(&mut findings, progress)?;
            for owner in &mut owners {
                owner.verified = verified.get(&owner.owner).copied().unwrap_or_default();
            }
        }
        findings.sort_by(|one, other| (one.code, &one.object).cmp(&(other.code, &other.object)));
        Ok(Checked { findings, owners })
    }

    /// Make right what was found, as far as [`Finding::remedy`] says that it can be; what became of each.
    pub fn repair(
        self,
        checked: &Checked,
        source: Option<&Source>,
        progress: &dyn load::Progress,
    ) -> Result<Vec<Repaired>> {
        let settings = self.engine.settings.clone();
        let known = Known::of(&self.survey, &self.engine);
        let survey = self.survey;
        let cancelled = self.engine.cancellation();
        // What it knows is of before.
        drop(self.engine);
        repair::repair(settings, cancelled, &survey, &known, checked, source, progress)
    }

    fn look_again(&mut self) -> Result<()> {
        let root = self.engine.root().to_path_buf();
        self.survey = survey::look(&root, &self.engine.backend.instance()?)?;
        self.engine.store = Store::of_survey(&root, self.engine.store.identity().clone(), &self.survey)?;
        Ok(())
    }

    fn find(&self) -> Result<Vec<Finding>> {
        let known = Known::of(&self.survey, &self.engine);
        let mut findings = Vec::new();
        self.find_in_directories(&mut findings);
        self.find_in_places(&known, &mut findings);
        self.find_in_index(&known, &mut findings);
        self.find_in_images(&known, &mut findings);
        // Each by itself: what one can't tell, the others can.
        for (what, found) in [("quota groups", self.find_charges()), ("trees", self.find_foreign())] {
            match found {
                Ok(found) => findings.extend(found),
                Err(e) => tracing::warn!("cannot look at the {what}: {e}"),
            }
        }
        Ok(findings)
    }

    fn audited(&self) -> Vec<Audited> {
        let mut owners: BTreeMap<String, Audited> = BTreeMap::new();
        let mut of = |owner: &str, count: &dyn Fn(&mut Audited)| {
            count(
                owners
                    .entry(owner.to_string())
                    .or_insert_with(|| Audited { owner: owner.into(), ..Audited::default() }),
            );
        };
        for record in self.survey.places.iter().filter_map(survey::Place::whole) {
            of(record.owner.as_str(), &|audited| {
                audited.trees += 1;
                audited.layers += usize::from(stays(record));
            });
        }
        for _ in &self.survey.images {
            of(crate::store::Owner::cli().as_str(), &|audited| audited.images += 1);
        }
        owners.into_values().collect()
    }
}

impl std::fmt::Debug for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Check").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Whether a tree is one that nobody writes to once it is made.
fn stays(record: &Record) -> bool {
    use crate::store::{Content, SnapshotOrigin, Stage};
    match &record.content {
        Content::Layer(_) => true,
        Content::Keyed(keyed) => matches!(keyed.stage, Stage::Committed { .. }),
        // One that was a container's tree until a rollback has stayed writable.
        Content::Snapshot(snapshot) => snapshot.origin != SnapshotOrigin::Replaced,
        Content::Work | Content::Spare | Content::Container(_) => false,
    }
}

/// What people call a tree.
fn called(record: &Record) -> String {
    match record.content.kind() {
        TreeKind::Container => record.name().unwrap_or_default().to_string(),
        TreeKind::Layer => record.layer().map_or_else(String::new, |layer| layer.diff_id.clone()),
        TreeKind::Keyed | TreeKind::Snapshot => record.key().unwrap_or_default().into_owned(),
        TreeKind::Work | TreeKind::Spare => record.uuid.to_string(),
    }
}

/// A failure in the way of a look.
fn told(error: &Error) -> String {
    error.to_string()
}
