use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::familiar;
use crate::engine::keyed::KeyedInfo;
use crate::engine::layers::LayerInfo;
use crate::store::Stage;

/// Show all layers as a tree: what each is, how big, and who shares it
///
/// Below them the trees of Docker and containerd, by their own IDs: layers, containers, views, and the layer between one of
/// Docker's containers and its image, which has no tree of its own.
#[derive(clap::Args, Debug)]
pub struct Layers {
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row of `layers --format json`.
#[derive(Serialize)]
struct Row {
    diff_id: String,
    chain_id: String,
    /// Chain ID of the layer below; null for a base layer
    parent: Option<String>,
    directory: PathBuf,
    /// Bytes charged for the layer when it was committed
    size: u64,
    size_method: String,
    /// Lengths of the files in it, in bytes
    apparent_size: u64,
    /// Images that include it
    images: Vec<String>,
    /// Containers made from it
    containers: Vec<String>,
}

/// A row of `layers --format json` for a tree of a front door's client.
#[derive(Serialize)]
struct KeyedRow {
    owner: String,
    /// The client's own ID
    key: String,
    /// `reserved` (it has no tree yet), `layer`, `container`, `view` (it shows its parent), or `init`: the layer between a
    /// container and its image
    kind: &'static str,
    /// Key of what it is based on
    parent: Option<String>,
    /// Null for an init layer, whose tree became the container's
    directory: Option<PathBuf>,
    /// Bytes that it takes on disk and its parent doesn't
    size: Option<u64>,
    size_method: Option<String>,
    size_limit: Option<u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnyRow {
    Layer(Row),
    Keyed(KeyedRow),
}

/// A tree's row, below that of the init layer which it began as.
fn keyed_rows(info: &KeyedInfo) -> Vec<KeyedRow> {
    let Some(keyed) = info.record.keyed() else { return Vec::new() };
    let owner = info.record.owner.as_str().to_string();
    let kind = match keyed.stage {
        Stage::Reserved => "reserved",
        Stage::Active => "container",
        Stage::View => "view",
        Stage::Committed { .. } => "layer",
    };
    let init = keyed.init.as_ref().filter(|init| init.stands).map(|init| KeyedRow {
        owner: owner.clone(),
        key: init.key.clone(),
        kind: "init",
        parent: info.below_init.clone(),
        directory: None,
        size: None,
        size_method: None,
        size_limit: None,
    });
    let own = KeyedRow {
        owner,
        key: keyed.key.clone(),
        kind,
        parent: info.parent.clone(),
        directory: info.directory.clone(),
        size: Some(info.size).filter(|_| info.directory.is_some()),
        size_method: info.method.clone(),
        size_limit: keyed.size_limit,
    };
    init.into_iter().chain([own]).collect()
}

impl Layers {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let layers = engine.layers()?;
        if self.format == Format::Json {
            let rows = layers.iter().filter_map(|layer| row(layer, &layers)).map(AnyRow::Layer);
            return out.json(
                &rows.chain(engine.keyed_trees()?.iter().flat_map(keyed_rows).map(AnyRow::Keyed)).collect::<Vec<_>>(),
            );
        }
        let mut rows = Vec::new();
        for layer in layers.iter().filter(|layer| layer.record.parent.is_none()) {
            self.branch(layer, &layers, "", &mut rows);
        }
        out.table(&["DIFF ID", "CHAIN ID", "SIZE", "SHARED BY", "CONTAINERS", "DIRECTORY"], rows)?;
        let keyed = engine.keyed_trees()?;
        if keyed.is_empty() {
            return Ok(());
        }
        out.line("")?;
        let rows = keyed.iter().flat_map(keyed_rows).map(|row| {
            vec![
                row.owner,
                format::key(&row.key, self.no_trunc),
                row.kind.to_string(),
                row.parent.map_or_else(String::new, |parent| format::key(&parent, self.no_trunc)),
                row.size.map_or_else(String::new, format::size),
                row.size_limit.map_or_else(String::new, format::size),
                row.directory.map_or_else(String::new, |directory| directory.display().to_string()),
            ]
        });
        out.table(&["OWNER", "KEY", "KIND", "PARENT", "SIZE", "LIMIT", "DIRECTORY"], rows.collect())
    }

    fn branch(&self, info: &LayerInfo, all: &[LayerInfo], indent: &str, rows: &mut Vec<Vec<String>>) {
        let Some(layer) = info.record.layer() else { return };
        rows.push(vec![
            format!("{indent}{}", format::id(&layer.diff_id, self.no_trunc)),
            format::id(&layer.chain_id, self.no_trunc),
            format::size(layer.size),
            info.images.iter().map(|name| familiar(name)).collect::<Vec<_>>().join(", "),
            info.containers.len().to_string(),
            info.directory.display().to_string(),
        ]);
        let children: Vec<_> = all.iter().filter(|child| child.record.parent == Some(info.record.uuid)).collect();
        // A chain goes straight down; only a fork moves to the right, so that 127 layers stay readable.
        let below = if children.len() > 1 { format!("{indent}  ") } else { indent.to_string() };
        for child in children {
            self.branch(child, all, &below, rows);
        }
    }
}

fn row(info: &LayerInfo, all: &[LayerInfo]) -> Option<Row> {
    let layer = info.record.layer()?;
    Some(Row {
        diff_id: layer.diff_id.clone(),
        chain_id: layer.chain_id.clone(),
        parent: info.record.parent.and_then(|parent| chain_id(parent, all)),
        directory: info.directory.clone(),
        size: layer.size,
        size_method: layer.size_method.clone(),
        apparent_size: layer.apparent_size,
        images: info.images.iter().map(|name| familiar(name)).collect(),
        containers: info.containers.clone(),
    })
}

fn chain_id(uuid: Uuid, all: &[LayerInfo]) -> Option<String> {
    let layer = all.iter().find(|layer| layer.record.uuid == uuid)?;
    layer.record.layer().map(|layer| layer.chain_id.clone())
}
