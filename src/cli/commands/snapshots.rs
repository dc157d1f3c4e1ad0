use serde::Serialize;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::store::SnapshotOrigin;

/// List snapshots, of one container or all
#[derive(clap::Args, Debug)]
pub struct Snapshots {
    /// Name or ID of the container
    name: Option<String>,
    /// Show what each holds beyond its image, and what of that no other container, snapshot or layer has
    #[arg(short, long)]
    size: bool,
    /// Only names
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row of `snapshots --format json`.
#[derive(Serialize)]
struct Row {
    /// NAME@LABEL
    name: String,
    label: String,
    /// RFC 3339
    created: String,
    origin: SnapshotOrigin,
    directory: String,
    /// Bytes of its own data
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    /// Bytes that removing it gives back
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<u64>,
    #[serde(skip)]
    age: jiff::Timestamp,
}

impl Snapshots {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let snapshots = engine.snapshots(self.name.as_deref())?;
        if self.quiet {
            return snapshots.iter().try_for_each(|snapshot| out.line(&snapshot.name));
        }
        let sizes = match self.size {
            true => engine.snapshot_sizes(snapshots.iter().map(|snapshot| snapshot.record.clone()).collect())?,
            false => Vec::new(),
        };
        let rows: Vec<Row> = snapshots
            .iter()
            .filter_map(|info| {
                let snapshot = info.record.snapshot()?;
                let sized = sizes.iter().find(|sized| sized.record.uuid == info.record.uuid);
                if self.size && sized.is_none() {
                    // Removed while it was measured.
                    return None;
                }
                Some(Row {
                    name: info.name.clone(),
                    label: snapshot.label.clone(),
                    created: info.record.created.to_string(),
                    origin: snapshot.origin,
                    directory: info.directory.display().to_string(),
                    size: sized.map(|sized| sized.sizes.size),
                    unique: sized.map(|sized| sized.unique),
                    age: info.record.created,
                })
            })
            .collect();
        let mut header = vec!["SNAPSHOT", "CREATED", "ORIGIN"];
        if self.size {
            header.extend(["SIZE", "UNIQUE"]);
        }
        out.list(self.format, &rows, &header, |row| {
            let origin = match row.origin {
                SnapshotOrigin::Manual => "manual",
                SnapshotOrigin::Automatic => "automatic",
                SnapshotOrigin::Replaced => "replaced",
            };
            let mut cells = vec![row.name.clone(), format::ago(row.age), origin.to_string()];
            if self.size {
                cells.extend([row.size, row.unique].map(|bytes| bytes.map_or_else(String::new, format::size)));
            }
            cells
        })
    }
}
