//! A look at everything that a store has on disk, damaged or not. Changes nothing: it makes no lock file, waits for nobody,
//! and asks a copy of the index. Nothing that is found in one place keeps it from looking at the others.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use uuid::Uuid;

use super::identity::{DIRECTORIES, LOCK_FILES};
use super::images::keep_still;
use super::index::{Index, Looked};
use super::record::{Content, Record};
use super::{Identity, Image, State, Store, places, recipe, record, scan};
use crate::{Context, Error, Kind, Result};

/// What was found.
#[derive(Debug)]
pub struct Survey {
    pub places: Vec<Place>,
    pub index: IndexLook,
    pub images: Vec<ImageFile>,
    /// Files of `blobs/sha256`, by name.
    pub blobs: HashSet<String>,
    /// Files of `doors` that can't be read, and why.
    pub doors: Vec<(PathBuf, String)>,
    /// Directories of the store that aren't there.
    pub directories: Vec<PathBuf>,
    /// Lock files that aren't there.
    pub locks: Vec<PathBuf>,
    /// What is none of the store's.
    pub foreign: Vec<PathBuf>,
    /// Directories that others may look into, and their modes.
    pub open: Vec<(PathBuf, u32)>,
}

/// One directory of `snapshots`.
#[derive(Debug, Clone)]
pub struct Place {
    pub uuid: Uuid,
    pub path: PathBuf,
    pub record: Noted,
    /// Whether anything is at `fs`, and at `fs.new`.
    pub tree: bool,
    pub second: bool,
    pub recipe: bool,
    /// Whether somebody works on it.
    pub busy: bool,
}

/// The record beside a tree.
#[derive(Debug, Clone)]
pub enum Noted {
    Missing,
    /// Why it means nothing.
    Unreadable(String),
    Whole(Box<Record>),
}

/// The index, and whether anybody goes by it.
#[derive(Debug)]
pub enum IndexLook {
    /// Who opens the store next makes it anew, whatever is in it: it is of another boot or mount, or somebody gave it up.
    Stale,
    /// It should be there.
    Missing,
    Torn(String),
    Current {
        next_group: Option<u32>,
        rows: Vec<(Record, State)>,
        /// Whose records were being written.
        changing: Vec<Uuid>,
    },
}

/// A file of `images`.
#[derive(Debug)]
pub struct ImageFile {
    pub path: PathBuf,
    /// The image, or why there is none.
    pub image: Result<Image, String>,
}

impl Place {
    #[must_use]
    pub fn whole(&self) -> Option<&Record> {
        match &self.record {
            Noted::Whole(record) => Some(record),
            Noted::Missing | Noted::Unreadable(_) => None,
        }
    }

    /// How far the tree has come by what is on disk.
    #[must_use]
    pub fn state(&self) -> Option<State> {
        self.whole().map(|record| scan::state_of(record, self.tree, self.second))
    }
}

impl IndexLook {
    /// What it says of a tree, if anybody goes by it.
    #[must_use]
    pub fn row(&self, uuid: Uuid) -> Option<&(Record, State)> {
        self.rows().iter().find(|(record, _)| record.uuid == uuid)
    }

    /// Whether the record of a tree was being written, and may be another than its row's.
    #[must_use]
    pub fn is_changing(&self, uuid: Uuid) -> bool {
        matches!(self, Self::Current { changing, .. } if changing.contains(&uuid))
    }

    #[must_use]
    pub fn rows(&self) -> &[(Record, State)] {
        match self {
            Self::Current { rows, .. } => rows,
            Self::Stale | Self::Missing | Self::Torn(_) => &[],
        }
    }
}

/// Look at the store at `root`, which is there. `instance` as in [`Store::open`].
///
/// # Errors
/// What keeps from looking at anything: the directory itself can't be read.
pub fn look(root: &Path, instance: &str) -> Result<Survey> {
    // The index first: what it says is settled has its record by then.
    let index = look_at_index(root, instance)?;
    let mut foreign = foreign_in(root, &is_ours)?;
    let (mut places, strangers) = look_at_places(root)?;
    disown_replaced(&mut places, &index);
    foreign.extend(strangers);
    foreign.extend(foreign_in(&root.join("images"), &is_of_images)?);
    foreign.extend(foreign_in(&root.join("blobs"), &|name| name == "sha256")?);
    foreign.extend(foreign_in(&root.join("blobs/sha256"), &|name| is_digest(name.trim_end_matches(".new")))?);
    foreign.sort();
    let missing = |names: &[&str]| {
        let paths = names.iter().map(|name| root.join(name));
        paths.filter(|path| path.symlink_metadata().is_err()).collect()
    };
    Ok(Survey {
        places,
        index,
        images: look_at_images(root)?,
        blobs: names_in(&root.join("blobs/sha256"))?.into_iter().collect(),
        doors: look_at_doors(root)?,
        directories: missing(&DIRECTORIES),
        locks: missing(&LOCK_FILES),
        foreign,
        open: open_to_others(root),
    })
}

impl Store {
    /// A store that knows what a survey has found, and can change nothing: an index of its own, in memory.
    pub fn of_survey(root: &Path, identity: Identity, survey: &Survey) -> Result<Self> {
        let mut index = Index::in_memory(Error::new(Kind::Denied, "a store that is looked at can't be changed"))?;
        let mut found: Vec<_> =
            survey.places.iter().filter_map(|place| Some((place.whole()?.clone(), place.state()?))).collect();
        found.sort_by_key(|(record, _)| (record.created, record.uuid));
        index.change(|change| {
            found.into_iter().try_for_each(|(record, state)| change.adopt_quietly(record, state).map(drop))
        })?;
        Ok(Self { root: root.to_path_buf(), identity, index: std::sync::Mutex::new(index) })
    }
}

fn look_at_index(root: &Path, instance: &str) -> Result<IndexLook> {
    // Made under another mount, or by an older version, which didn't say.
    if scan::marked(root).is_none_or(|marked| marked != instance) {
        return Ok(IndexLook::Stale);
    }
    Ok(match Index::look(&root.join("index.db"))? {
        Looked::Missing => IndexLook::Missing,
        Looked::Torn(why) => IndexLook::Torn(why),
        Looked::Whole { instance: made, .. } if made.as_deref() != Some(instance) => IndexLook::Stale,
        Looked::Whole { next_group, rows, changing, .. } => IndexLook::Current { next_group, rows, changing },
    })
}

fn look_at_places(root: &Path) -> Result<(Vec<Place>, Vec<PathBuf>)> {
    let (mut found, mut foreign) = (Vec::new(), Vec::new());
    let snapshots = root.join("snapshots");
    for name in names_in(&snapshots)? {
        let path = snapshots.join(&name);
        let is_directory = path.symlink_metadata().is_ok_and(|facts| facts.is_dir());
        match Uuid::try_parse(&name) {
            // As we write it: others aren't found by their UUIDs.
            Ok(uuid) if is_directory && uuid.to_string() == name => found.push(look_at_place(uuid, path)),
            _ => foreign.push(path),
        }
    }
    let all: Vec<_> = found.iter().map(|place| place.uuid).collect();
    let free: HashSet<_> = places::unlocked(root, all)?.into_iter().collect();
    for place in &mut found {
        place.busy = !free.contains(&place.uuid);
        foreign.extend(foreign_in(&place.path, &is_of_places)?);
    }
    found.sort_by_key(|place| place.uuid);
    Ok((found, foreign))
}

/// Let the records of trees that whole ones have taken the place of say what they are: nobody's.
fn disown_replaced(places: &mut [Place], index: &IndexLook) {
    // While the index says that a tree is being made, that is who has its key in its place.
    let whole = places.iter().filter(|place| !matches!(index.row(place.uuid), Some((_, State::Making))));
    let replaced = scan::replaced(whole.filter_map(|place| Some((place.whole()?, place.state()?))));
    for place in places.iter_mut().filter(|place| replaced.contains(&place.uuid)) {
        if let Noted::Whole(record) = &mut place.record {
            record.content = Content::Work;
        }
    }
}

fn look_at_place(uuid: Uuid, path: PathBuf) -> Place {
    let there = |name: &str| path.join(name).symlink_metadata().is_ok();
    let read = File::open(&path)
        .map_err(|e| e.to_string())
        .and_then(|directory| Record::read(&directory, &path).map_err(|e| e.to_string()));
    let record = match read {
        Ok(None) => Noted::Missing,
        Ok(Some(record)) if record.uuid != uuid => Noted::Unreadable(format!("it is the record of {}", record.uuid)),
        Ok(Some(record)) => Noted::Whole(Box::new(record)),
        Err(why) => Noted::Unreadable(why),
    };
    let (tree, second, recipe) = (there("fs"), there("fs.new"), recipe(&path).symlink_metadata().is_ok());
    Place { uuid, record, tree, second, recipe, busy: false, path }
}

fn look_at_images(root: &Path) -> Result<Vec<ImageFile>> {
    let directory = root.join("images");
    let _still = keep_still(&directory)?;
    let files = names_in(&directory)?.into_iter().filter(|name| name.ends_with(".json"));
    Ok(files
        .map(|name| {
            let path = directory.join(&name);
            let image = std::fs::read(&path).map_err(|e| e.to_string()).and_then(|text| {
                let image: Image = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
                if name == format!("{}.json", image.uuid) { Ok(image) } else { Err("it is another image's".into()) }
            });
            ImageFile { path, image }
        })
        .collect())
}

fn look_at_doors(root: &Path) -> Result<Vec<(PathBuf, String)>> {
    let directory = root.join("doors");
    let files = names_in(&directory)?.into_iter().filter(|name| name.ends_with(".json"));
    Ok(files
        .filter_map(|name| {
            let path = directory.join(name);
            let read = std::fs::read(&path)
                .map_err(|e| e.to_string())
                .and_then(|text| serde_json::from_slice::<IgnoredAny>(&text).map_err(|e| e.to_string()));
            read.err().map(|why| (path, why))
        })
        .collect())
}

/// Names in a directory that are text, sorted; none if there is no such directory.
fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(|| format!("read {}", directory.display()))?,
    };
    let mut names: Vec<_> = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

fn foreign_in(directory: &Path, is_ours: &dyn Fn(&str) -> bool) -> Result<Vec<PathBuf>> {
    let names = names_in(directory)?.into_iter();
    Ok(names.filter(|name| !is_ours(name)).map(|name| directory.join(name)).collect())
}

/// Whether a name below ROOT is one of the store's, or of a step of one that was cut short.
fn is_ours(name: &str) -> bool {
    const OTHERS: [&str; 8] = [
        "store.json",
        "store.new",
        "doors",
        "trash",
        "index.db",
        "index.db-journal",
        "index.current",
        // Of the filesystem, where ROOT is all of it.
        // Of the filesystem, where ROOT is all of it.
        "lost+found",
    ];
    DIRECTORIES.contains(&name)
        || LOCK_FILES.contains(&name)
        || OTHERS.contains(&name)
        || name.starts_with("backup-schema-")
}

fn is_of_images(name: &str) -> bool {
    let file = name.strip_suffix(".json").or_else(|| name.strip_suffix(".new"));
    LOCK_FILES.contains(&format!("images/{name}").as_str()) || file.is_some_and(|uuid| Uuid::try_parse(uuid).is_ok())
}

/// Whether a name in a place is a tree's, a note's, or its backend's.
fn is_of_places(name: &str) -> bool {
    let ours = ["fs", "fs.new", "recipe", "recipe.new", "streaming"];
    ours.contains(&name)
        || record::is_spill(name)
        || ["manifest.", "memory."].iter().any(|backends| name.starts_with(backends))
}

fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Directories of the store that somebody else than root, or the group of an id map's root, could look into.
fn open_to_others(root: &Path) -> Vec<(PathBuf, u32)> {
    const OTHERS: u32 = 0o007;
    let directories = DIRECTORIES.iter().copied().filter(|name| !name.contains('/')).chain(["doors", "trash"]);
    directories
        .map(|name| root.join(name))
        .filter_map(|path| {
            let facts = path.symlink_metadata().ok().filter(|facts| !facts.file_type().is_symlink())?;
            let strange = facts.uid() != 0 || facts.mode() & OTHERS != 0;
            strange.then_some((path, facts.mode() & 0o7777))
        })
        .collect()
}

/// Whether two looks found the same record.
#[must_use]
pub fn is_same(row: &Record, record: &Record) -> bool {
    // Two with one name: the index has another for the one that came later.
    let nameless = |record: &Record| {
        let mut record = record.clone();
        if let Content::Container(container) = &mut record.content {
            container.name.clear();
        }
        record
    };
    row == record
        || nameless(row) == nameless(record)
            && row.name().is_some_and(|name| name.ends_with(&row.uuid.simple().to_string()))
}
