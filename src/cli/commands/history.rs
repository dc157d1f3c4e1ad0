use serde::Serialize;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::store::Record;

/// Show how an image was made, the newest step first
#[derive(clap::Args, Debug)]
pub struct History {
    /// Don't cut anything
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Name or ID of the image
    image: String,
}

/// A row of `history --format json`.
#[derive(Serialize)]
struct Row {
    /// Diff ID of the layer that the step made; null for a step that only configured
    layer: Option<String>,
    created: Option<String>,
    created_by: String,
    /// Bytes charged for the layer; 0 without one
    size: u64,
    comment: String,
}

impl History {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let steps = engine.history(&self.image)?;
        let rows: Vec<Row> = steps
            .into_iter()
            .rev()
            .map(|step| {
                let layer = step.layer.as_ref().and_then(Record::layer);
                Row {
                    layer: layer.map(|layer| layer.diff_id.clone()),
                    created: step.created,
                    created_by: step.created_by,
                    size: layer.map_or(0, |layer| layer.size),
                    comment: step.comment,
                }
            })
            .collect();
        out.list(self.format, &rows, &["LAYER", "CREATED BY", "SIZE", "COMMENT"], |row| {
            vec![
                row.layer.as_ref().map_or_else(|| "-".into(), |layer| format::id(layer, self.no_trunc)),
                format::cut(&row.created_by.replace(['\n', '\t'], " "), 60, self.no_trunc),
                format::size(row.size),
                row.comment.clone(),
            ]
        })
    }
}
