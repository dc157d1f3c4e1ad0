use std::path::PathBuf;

use serde::Serialize;
use uuid::Uuid;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::familiar;
use crate::engine::layers::LayerInfo;

/// Show all layers as a tree: what each is, how big, and who shares it
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

impl Layers {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let layers = engine.layers()?;
        if self.format == Format::Json {
            let rows: Vec<Row> = layers.iter().filter_map(|layer| row(layer, &layers)).collect();
            return out.json(&rows);
        }
        let mut rows = Vec::new();
        for layer in layers.iter().filter(|layer| layer.record.parent.is_none()) {
            self.branch(layer, &layers, "", &mut rows);
        }
        out.table(&["DIFF ID", "CHAIN ID", "SIZE", "SHARED BY", "CONTAINERS", "DIRECTORY"], rows)
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
