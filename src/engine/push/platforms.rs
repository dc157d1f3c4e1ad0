//! Pushing the index that an image came with: its other platforms are copied from where it came from.

use std::collections::BTreeMap;

use super::transfer::Transfer;
use super::{Known, Pushed};
use crate::engine::Engine;
use crate::oci::{Descriptor, Digest, Named, Remote, beyond};
use crate::store::Image;
use crate::{Context, Error, Kind, Result};

/// What the destination lacks of an index.
#[derive(Default)]
struct Lacking {
    /// Manifests and indexes, each behind all that it names.
    documents: Vec<(String, Vec<u8>)>,
    blobs: BTreeMap<Digest, Descriptor>,
    /// Of all documents that were looked at.
    count: usize,
    bytes: u64,
}

impl Engine {
    pub(super) fn push_index(&self, image: &Image, transfer: &Transfer<'_>) -> Result<Pushed> {
        let Some(index) = &image.index else {
            let why = "there is no index of several platforms that it came with";
            return Err(Error::new(Kind::NotFound, why).with_hint(
                "reflinkd pull keeps an image's index; without --all-platforms this machine's image is pushed",
            ));
        };
        let about = || format!("index {}", index.digest);
        let bytes = self.document(&index.digest).context(about)?;
        let named = Named::by(&bytes, &self.settings.source_limits).context(about)?;
        let mut lacking = Lacking::default();
        self.find_lacking(image, &index.repository, transfer, &named, 0, &mut lacking)?;

        let blobs: Vec<Descriptor> = lacking.blobs.into_values().collect();
        for blob in &blobs {
            transfer.progress().preparing(&blob.digest.short());
        }
        transfer.each(&blobs, |blob| {
            let mut known = Known { blob: blob.clone(), repositories: Vec::new() };
            let noted = image.blobs.iter().filter(|noted| noted.digest == blob.digest.to_string());
            known.repositories.extend(noted.flat_map(|noted| noted.repositories.iter().rev().cloned()));
            if !known.repositories.contains(&index.repository) {
                known.repositories.push(index.repository.clone());
            }
            match transfer.known(&blob.digest.short(), &[known])? {
                Some(_) => Ok(()),
                None => {
                    let why = format!("blob {}: no registry that had it gives it any more", blob.digest);
                    Err(Error::new(Kind::NotFound, why))
                }
            }
        })?;
        for (media_type, document) in &lacking.documents {
            transfer.destination().put_manifest(None, media_type, document)?;
        }
        transfer.tag(&named.media_type, &bytes)?;
        Ok(Pushed { digest: Digest::of(&bytes), size: bytes.len() as u64 })
    }

    /// All that an index names and the destination hasn't, the lowest first.
    fn find_lacking(
        &self,
        image: &Image,
        repository: &str,
        transfer: &Transfer<'_>,
        index: &Named,
        depth: usize,
        lacking: &mut Lacking,
    ) -> Result<()> {
        let limits = &self.settings.source_limits;
        if depth > limits.index_depth {
            let why = format!("it has indexes within indexes more than the limit of {} deep", limits.index_depth);
            return Err(beyond(why, "max_index_depth"));
        }
        for entry in &index.manifests {
            lacking.count += 1;
            if lacking.count > limits.images {
                let why = format!("it has more manifests and indexes than the limit of {}", limits.images);
                return Err(beyond(why, "max_images"));
            }
            if transfer.destination().has_manifest(entry)? {
                continue;
            }
            let about = || format!("manifest {}", entry.digest);
            let bytes = self.entry(image, repository, transfer, entry).context(about)?;
            lacking.bytes += bytes.len() as u64;
            if lacking.bytes > limits.metadata_bytes {
                let why = format!("its manifests have more bytes than the limit of {}", limits.metadata_bytes);
                return Err(beyond(why, "max_metadata_size"));
            }
            let named = Named::by(&bytes, limits).context(about)?;
            if named.blobs.len() > limits.layers {
                return Err(beyond(format!("it has more layers than the limit of {}", limits.layers), "max_layers"))
                    .context(about);
            }
            self.find_lacking(image, repository, transfer, &named, depth + 1, lacking)?;
            lacking.blobs.extend(named.blobs.iter().map(|blob| (blob.digest, blob.clone())));
            lacking.documents.push((named.media_type, bytes));
        }
        Ok(())
    }

    /// A manifest or index that an index names, verified: from here if it is here.
    fn entry(&self, image: &Image, repository: &str, transfer: &Transfer<'_>, entry: &Descriptor) -> Result<Vec<u8>> {
        let limit = self.settings.source_limits.manifest_bytes;
        if entry.size > limit {
            let why = format!("it has {} bytes, more than the limit of {limit}", entry.size);
            return Err(beyond(why, "max_manifest_size"));
        }
        if image.manifest == Some(entry.digest.to_string())
            && let Ok(bytes) = self.document(&entry.digest.to_string())
        {
            return Ok(bytes);
        }
        let bytes = transfer.source(repository)?.manifest(entry)?;
        if bytes.len() as u64 != entry.size || Digest::of(&bytes) != entry.digest {
            let (size, digest) = (bytes.len(), Digest::of(&bytes));
            let why = format!("{repository} gives {size} bytes with the digest {digest} in its place");
            return Err(Error::new(Kind::BadInput, why));
        }
        Ok(bytes)
    }
}
