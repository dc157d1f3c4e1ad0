use serde::Serialize;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::ImageInfo;
use crate::oci::Reference;

/// List images
#[derive(clap::Args, Debug)]
pub struct Images {
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Only this repository, or this name
    name: Option<String>,
}

/// A row of `images --format json`.
#[derive(Serialize)]
struct Row {
    /// `<none>` for an image without a name
    repository: String,
    tag: String,
    /// Digest of its configuration
    id: String,
    /// Digest of its manifest, if it came with one
    digest: Option<String>,
    /// RFC 3339
    loaded: String,
    /// Bytes of all its layers
    size: u64,
    layers: usize,
    #[serde(skip)]
    age: jiff::Timestamp,
}

impl Images {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let wanted = self.name.as_deref().map(str::parse::<Reference>).transpose()?;
        let any_tag = self.name.as_deref().is_some_and(|name| !name.rsplit('/').next().unwrap_or(name).contains(':'));
        let mut rows: Vec<Row> = engine.images()?.iter().rev().flat_map(rows).collect();
        if let Some(wanted) = wanted {
            rows.retain(|row| {
                row.repository == wanted.familiar_name() && (any_tag || Some(row.tag.as_str()) == wanted.tag())
            });
        }
        if self.quiet {
            return rows.iter().try_for_each(|row| out.line(format::id(&row.id, self.no_trunc)));
        }
        out.list(self.format, &rows, &["REPOSITORY", "TAG", "IMAGE ID", "LOADED", "SIZE"], |row| {
            vec![
                row.repository.clone(),
                row.tag.clone(),
                format::id(&row.id, self.no_trunc),
                format::ago(row.age),
                format::size(row.size),
            ]
        })
    }
}

/// A row for each name, or one for an image without.
fn rows(info: &ImageInfo) -> Vec<Row> {
    let row = |repository: String, tag: String| Row {
        repository,
        tag,
        id: info.image.id.clone(),
        digest: info.image.manifest.clone(),
        loaded: info.image.loaded.to_string(),
        size: info.size,
        layers: info.layers.len(),
        age: info.image.loaded,
    };
    if info.image.names.is_empty() {
        return vec![row("<none>".into(), "<none>".into())];
    }
    let names = info.image.names.keys().filter_map(|name| name.parse::<Reference>().ok());
    names.map(|name| row(name.familiar_name(), name.tag().unwrap_or("<none>").to_string())).collect()
}
