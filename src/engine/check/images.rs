//! Images against their configurations, manifests and layers.

use std::collections::HashSet;

use super::known::{Known, blob_name};
use super::{Check, Code, Finding, Remedy};
use crate::engine::image::{familiar, short};
use crate::oci::Digest;
use crate::store::{Image, Owner, Record};

pub(super) const FROM_CONFIG: Remedy = Remedy::Do("write it again, from its configuration");
const LOAD: Remedy = Remedy::Left("load the image again");

impl Check {
    pub(super) fn find_in_images(&self, known: &Known, findings: &mut Vec<Finding>) {
        let owner = || Some(Owner::cli().as_str().to_string());
        for file in &self.survey.images {
            match &file.image {
                Ok(image) => self.find_in_image(image, known, findings),
                Err(why) => {
                    let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let remedy = if self.forgotten(known).is_empty() { LOAD } else { FROM_CONFIG };
                    let found = Finding::new(Code::ImageUnreadable, name, why, remedy).at(&file.path);
                    findings.push(Finding { owner: owner(), ..found });
                }
            }
        }
        if self.survey.images.iter().any(|file| file.image.is_err()) {
            return;
        }
        for (id, users) in self.without_image() {
            let remedy = if known.configs.contains_key(&id) { FROM_CONFIG } else { LOAD };
            let why = format!("it is gone, and is needed by {}", users.join(", "));
            let found = Finding::new(Code::ImageMissing, short(&id), why, remedy);
            findings.push(Finding { owner: owner(), ..found });
        }
    }

    fn find_in_image(&self, image: &Image, known: &Known, findings: &mut Vec<Finding>) {
        let name = image.names.keys().next().map_or_else(|| short(&image.id).to_string(), |name| familiar(name));
        let mut add = |code, why: String, remedy| {
            let owner = Some(Owner::cli().as_str().to_string());
            findings.push(Finding { owner, ..Finding::new(code, &name, why, remedy) });
        };
        let blob = |digest: &str| match self.engine.store.blob(blob_name(digest)) {
            Ok(bytes) if Digest::of(&bytes).to_string() == digest => Ok(()),
            Ok(_) => Err(format!("{digest} is not what it was")),
            Err(e) => Err(super::told(&e)),
        };
        const AGAIN: Remedy = Remedy::FromArchive("write it again");
        if let Err(why) = blob(&image.id) {
            add(Code::ConfigUnreadable, why, AGAIN);
        }
        for document in image.documents().filter(|digest| *digest != image.id) {
            if let Err(why) = blob(document) {
                add(Code::ManifestUnreadable, why, AGAIN);
            }
        }
        let Some(config) = known.configs.get(&image.id) else { return };
        let mut found: Vec<String> = Vec::new();
        let mut next = image.top;
        while let Some(record) = next.and_then(|uuid| known.layers.get(&uuid)) {
            // Damaged records may form a ring.
            if found.len() > known.layers.len() {
                break;
            }
            found.extend(record.layer().map(|layer| layer.diff_id.clone()));
            next = record.parent;
        }
        found.reverse();
        if !found.iter().eq(config.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>().iter()) {
            add(Code::ImageDiffers, "its layers are not those of its configuration".into(), LOAD);
        }
    }

    /// IDs of images that containers were made from and that aren't there, with those.
    fn without_image(&self) -> Vec<(String, Vec<String>)> {
        let ids: HashSet<_> =
            self.survey.images.iter().filter_map(|file| Some(&file.image.as_ref().ok()?.id)).collect();
        let mut users: std::collections::BTreeMap<String, Vec<String>> = std::collections::BTreeMap::new();
        let places = self.survey.places.iter().filter(|place| !place.busy && place.tree);
        for container in places.filter_map(|place| place.whole()).filter_map(Record::container) {
            if !ids.contains(&container.image_id) {
                users.entry(container.image_id.clone()).or_default().push(container.name.clone());
            }
        }
        users.into_iter().collect()
    }

    /// Configurations that no image names, and whose layers are all there: an image's whose file is lost.
    pub(super) fn forgotten(&self, known: &Known) -> Vec<String> {
        forgotten(&self.survey, known)
    }
}

/// See [`Check::forgotten`].
pub(super) fn forgotten(survey: &crate::store::survey::Survey, known: &Known) -> Vec<String> {
    let named: HashSet<_> = survey.images.iter().filter_map(|file| Some(&file.image.as_ref().ok()?.id)).collect();
    let mut lost: Vec<_> = known
        .configs
        .iter()
        .filter(|(id, config)| !named.contains(id) && known.top_of(config).is_some())
        .map(|(id, _)| id.clone())
        .collect();
    lost.sort();
    lost
}
