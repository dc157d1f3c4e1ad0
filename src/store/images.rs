//! Images and their names: one small file each, so that forgetting an image is one unlink, which works on a full disk.
//!
//! A name belongs to the image that got it last: should a power cut come between giving it to one image and
//! taking it from another, the newer time decides.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Store;
use super::files::{self, Lock};
use crate::{Context, Error, Kind, Result};

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub uuid: Uuid,
    /// Digest of its configuration.
    pub id: String,
    /// Digest of its manifest, if it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// The tree of its topmost layer; none for an image without layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<Uuid>,
    pub loaded: jiff::Timestamp,
    /// Canonical names, each with the time it was given.
    #[serde(default)]
    pub names: BTreeMap<String, jiff::Timestamp>,
    /// The index that it was pulled through, if it was; the newest one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<ImageIndex>,
    /// What registries have of its layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blobs: Vec<LayerBlob>,
}

/// An index that an image is in. Its bytes are a blob of the store, as a manifest's are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIndex {
    pub digest: String,
    /// The repository that has it, with what it names: `localhost:5000/team/app`.
    pub repository: String,
}

/// A layer as a registry has it. Another registry may have it packed otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerBlob {
    pub diff_id: String,
    pub digest: String,
    pub media_type: String,
    /// In bytes.
    pub size: u64,
    /// Where it was when it was last fetched from there or sent there, the latest last: `localhost:5000/team/app`.
    pub repositories: Vec<String>,
}

/// Most repositories that are remembered for one blob.
const REPOSITORIES: usize = 16;

impl Image {
    /// Remember where a layer's blob is.
    pub fn remember(&mut self, blob: &LayerBlob) {
        let same = |known: &&mut LayerBlob| known.diff_id == blob.diff_id && known.digest == blob.digest;
        let Some(known) = self.blobs.iter_mut().find(same) else {
            self.blobs.push(blob.clone());
            return;
        };
        for repository in &blob.repositories {
            known.repositories.retain(|known| known != repository);
            known.repositories.push(repository.clone());
        }
        let surplus = known.repositories.len().saturating_sub(REPOSITORIES);
        known.repositories.drain(..surplus);
    }

    /// All blobs of the store that it needs, by digest.
    pub fn documents(&self) -> impl Iterator<Item = &str> {
        let index = self.index.as_ref().map(|index| index.digest.as_str());
        [Some(self.id.as_str()), self.manifest.as_deref(), index].into_iter().flatten()
    }
}

/// The right to change images, until dropped.
#[derive(Debug)]
pub struct ImagesGuard<'a> {
    pub(super) store: &'a Store,
    _lock: Option<File>,
}

impl Store {
    /// All images, oldest first. Whoever has the right to change them asks that ([`ImagesGuard::list`]): this waits for it.
    pub fn images(&self) -> Result<Vec<Image>> {
        let directory = self.images_directory();
        let _still = keep_still(&directory)?;
        read_images(&directory)
    }

    /// Change images; one process at a time.
    pub fn lock_images(&self) -> Result<ImagesGuard<'_>> {
        let lock = files::lock_file(&self.images_directory().join("lock"), Lock::Exclusive)?;
        Ok(ImagesGuard { store: self, _lock: lock })
    }

    /// Keep images from changing until the handle is dropped.
    pub fn keep_images(&self) -> Result<Option<File>> {
        files::lock_file(&self.images_directory().join("lock"), Lock::Shared)
    }

    /// Keep collectors of layers away while images are loaded.
    pub fn lock_loads(&self, how: Lock) -> Result<Option<File>> {
        files::lock_file(&self.images_directory().join("load.lock"), how)
    }

    /// Be the one who pulls what has this digest, until the handle is dropped; `None` while somebody else does.
    pub fn try_lock_pull(&self, digest_hex: &str) -> Result<Option<File>> {
        // As many locks as there are digests, in a file that is there anyway: none is left behind. Loads lock all of it by
        // flock, which knows nothing of locks on bytes.
        let path = self.images_directory().join("load.lock");
        let byte = digest_hex.get(..15).and_then(|hex| i64::from_str_radix(hex, 16).ok()).unwrap_or_default();
        files::try_lock_byte(&path, byte)
    }

    /// A manifest, index or configuration.
    pub fn blob(&self, digest_hex: &str) -> Result<Vec<u8>> {
        let path = self.blob_path(digest_hex)?;
        std::fs::read(&path).context(|| format!("read {}", path.display()))
    }

    /// Blobs that no image names; removed unless `dry_run`. Only while images are locked.
    ///
    /// First it is made durable that images were forgotten: a power cut would bring one back without its configuration, as
    /// the two directories are synced apart. Where there is no room for that, the blobs stay for another collection.
    pub fn collect_blobs(&self, guard: &ImagesGuard<'_>, dry_run: bool) -> Result<Vec<String>> {
        let images = guard.list()?;
        let digests = images.iter().flat_map(Image::documents);
        let used: HashSet<&str> = digests.filter_map(|digest| Some(digest.split_once(':')?.1)).collect();
        let directory = self.root.join("blobs/sha256");
        let mut unused = Vec::new();
        for entry in std::fs::read_dir(&directory).context(|| format!("read {}", directory.display()))? {
            let entry = entry.context(|| format!("read {}", directory.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !used.contains(name.as_str()) {
                unused.push(name);
            }
        }
        if dry_run || unused.is_empty() {
            return Ok(unused);
        }
        match files::sync(&self.images_directory()) {
            Err(e) if e.kind() == Kind::NoSpace => {
                tracing::warn!("blobs that no image names stay for now: {e}");
                return Ok(Vec::new());
            }
            synced => synced?,
        }
        for name in &unused {
            files::remove(&directory.join(name))?;
        }
        Ok(unused)
    }

    /// Files that were being written for images by who died at it, by name; removed unless `dry_run`. Only while images are
    /// locked, as nobody else writes then.
    pub fn collect_drafts(&self, _: &ImagesGuard<'_>, dry_run: bool) -> Result<Vec<String>> {
        let directory = self.images_directory();
        let mut drafts = Vec::new();
        for entry in std::fs::read_dir(&directory).context(|| format!("read {}", directory.display()))? {
            let path = entry.context(|| format!("read {}", directory.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                if !dry_run {
                    files::remove(&path)?;
                }
                drafts.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
            }
        }
        Ok(drafts)
    }

    fn images_directory(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(super) fn blob_path(&self, digest_hex: &str) -> Result<PathBuf> {
        // A digest becomes a file name only here; whatever else reached us, this can't leave the directory.
        if digest_hex.len() != 64 || !digest_hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Error::new(Kind::Invalid, format!("{digest_hex:?} is not a sha256 digest")));
        }
        Ok(self.root.join("blobs/sha256").join(digest_hex))
    }
}

impl ImagesGuard<'_> {
    /// All images, oldest first.
    pub fn list(&self) -> Result<Vec<Image>> {
        read_images(&self.store.images_directory())
    }

    /// Keep a manifest, index or configuration. `digest` is 64 hexadecimal digits, which the caller has verified.
    pub fn put_blob(&self, digest_hex: &str, bytes: &[u8]) -> Result<()> {
        let path = self.store.blob_path(digest_hex)?;
        if path.exists() {
            return Ok(());
        }
        files::replace(&path, |file| file.write_all(bytes))
    }

    /// The time to give names at: now, but after all that were given before, whatever the clock did.
    pub fn time(&self) -> Result<jiff::Timestamp> {
        let given = self.list_raw()?.iter().flat_map(|image| image.names.values().copied().collect::<Vec<_>>()).max();
        let next = given.and_then(|last| last.checked_add(jiff::SignedDuration::from_nanos(1)).ok());
        Ok(next.map_or_else(jiff::Timestamp::now, |next| next.max(jiff::Timestamp::now())))
    }

    /// Write an image. Its names are taken from the images that had them.
    pub fn put(&self, image: &Image) -> Result<()> {
        self.write(image)?;
        if let Err(e) = self.take_names(image) {
            // It has them by their time all the same.
            tracing::warn!("an older image is still written down with a name of {}: {e}", image.id);
        }
        Ok(())
    }

    /// Let no other image have a name that this one was given.
    fn take_names(&self, image: &Image) -> Result<()> {
        for mut other in self.list_raw()? {
            let before = other.names.len();
            other.names.retain(|name, _| other.uuid == image.uuid || !image.names.contains_key(name));
            if other.names.len() != before {
                self.write(&other)?;
            }
        }
        Ok(())
    }

    /// Forget an image. Its layers and blobs are the caller's to collect.
    pub fn delete(&self, image: &Image) -> Result<()> {
        files::remove(&self.path(image))
    }

    /// The file alone.
    pub(super) fn write(&self, image: &Image) -> Result<()> {
        let json = serde_json::to_vec(image)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write image {}: {e}", image.id)))?;
        files::replace(&self.path(image), |file| file.write_all(&json))
    }

    fn path(&self, image: &Image) -> PathBuf {
        self.store.images_directory().join(format!("{}.json", image.uuid))
    }

    fn list_raw(&self) -> Result<Vec<Image>> {
        read_files(&self.store.images_directory())
    }
}

/// Keep images from changing while their directory is listed: a listing may miss a file that is replaced meanwhile
/// (docs/kernel.md), and the layers of an image that isn't there are removed.
pub(super) fn keep_still(directory: &Path) -> Result<Option<File>> {
    match File::open(directory.join("lock")) {
        Ok(file) => files::lock(file, directory, Lock::Shared),
        // Nobody has changed one yet.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).context(|| format!("open {}", directory.join("lock").display())),
    }
}

fn read_images(directory: &Path) -> Result<Vec<Image>> {
    let mut images = read_files(directory)?;
    let mut newest: HashMap<String, (jiff::Timestamp, Uuid)> = HashMap::new();
    for image in &images {
        for (name, time) in &image.names {
            let candidate = (*time, image.uuid);
            newest.entry(name.clone()).and_modify(|best| *best = candidate.max(*best)).or_insert(candidate);
        }
    }
    for image in &mut images {
        let uuid = image.uuid;
        image.names.retain(|name, _| newest.get(name).is_some_and(|(_, owner)| *owner == uuid));
    }
    images.sort_by_key(|image| (image.loaded, image.uuid));
    Ok(images)
}

/// Whether there is any image in the store at `root`, readable or not.
pub(super) fn any(root: &Path) -> Result<bool> {
    let directory = root.join("images");
    let entries = std::fs::read_dir(&directory).context(|| format!("read {}", directory.display()))?;
    Ok(entries.flatten().any(|entry| entry.path().extension().is_some_and(|extension| extension == "json")))
}

fn read_files(directory: &Path) -> Result<Vec<Image>> {
    let mut images = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        // A store that is half destroyed.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(images),
        entries => entries.context(|| format!("read {}", directory.display()))?,
    };
    for entry in entries {
        let path = entry.context(|| format!("read {}", directory.display()))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            // Forgotten by somebody else since we listed the directory.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e).context(|| format!("read {}", path.display())),
        };
        images.push(serde_json::from_slice(&text).map_err(|e| {
            Error::new(Kind::Damaged, format!("{} is damaged: {e}", path.display()))
                .with_hint("remove the file, then load the image again")
        })?);
    }
    Ok(images)
}
