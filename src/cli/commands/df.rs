use serde::Serialize;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::{familiar, short};
use crate::engine::usage::{Relative, Usage};

/// Show what fills the store
#[derive(clap::Args, Debug)]
pub struct Df {
    /// Show each image (what it shares, what is its own) and each container
    #[arg(short, long)]
    verbose: bool,
    /// Don't commit the filesystem first; numbers are those of its last commit
    #[arg(long)]
    no_sync: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row of `df --format json`: `images`, `containers`, `snapshots`; `client layers` and `client containers` of each front
/// door's client, whose owner is the `name`; `shared` (what several of these hold, beyond the first
/// time), `spares`, `metadata`, `pending` (removed, not cleaned up yet), `total` and `filesystem`; with `-v` also one `image`,
/// `container` and `snapshot` each.
#[derive(Serialize, Default)]
struct Row {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<usize>,
    /// Images that have containers
    #[serde(skip_serializing_if = "Option::is_none")]
    active: Option<usize>,
    /// Bytes
    size: u64,
    /// Bytes that removing what is unused would give back
    #[serde(skip_serializing_if = "Option::is_none")]
    reclaimable: Option<u64>,
    /// Bytes in layers that other images include too; own data that another container, snapshot or layer has, too
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<u64>,
    /// Bytes in layers that no other image includes; own data that nobody else has
    #[serde(skip_serializing_if = "Option::is_none")]
    unique: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    containers: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<u64>,
    /// Of the filesystem
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u64>,
}

impl Row {
    /// What it is of, by its owner where that is not the command line.
    fn label(&self) -> String {
        match (&self.name, self.kind.strip_prefix("client ")) {
            (Some(owner), Some(kind)) => format!("{owner} {kind}"),
            _ => self.kind.to_string(),
        }
    }
}

impl Df {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let usage = engine.usage(!self.no_sync)?;
        let summary = summary(&usage);
        let details = if self.verbose { details(&usage) } else { (Vec::new(), Vec::new()) };
        if self.format == Format::Json {
            let rows: Vec<Row> = summary.into_iter().chain(details.0).chain(details.1).collect();
            return out.json(&rows);
        }
        let number = |n: Option<usize>| n.map_or_else(String::new, |n| n.to_string());
        let bytes = |n: Option<u64>| n.map_or_else(String::new, format::size);
        out.list(Format::Table, &summary, &["TYPE", "COUNT", "ACTIVE", "SIZE", "RECLAIMABLE"], |row| {
            vec![
                row.label(),
                number(row.count),
                number(row.active),
                // Taken off the total.
                format!("{}{}", if row.kind == "shared" && row.size > 0 { "-" } else { "" }, format::size(row.size)),
                bytes(row.reclaimable),
            ]
        })?;
        if let Some(pool) = engine.pool_info()? {
            super::info::warn_of_host(&pool, out);
        }
        if !self.verbose {
            return Ok(());
        }
        out.line("")?;
        out.list(Format::Table, &details.0, &["IMAGE", "ID", "SIZE", "SHARED", "UNIQUE", "CONTAINERS"], |row| {
            vec![
                row.name.clone().unwrap_or_default(),
                row.id.as_deref().map_or_else(String::new, |id| short(id).to_string()),
                format::size(row.size),
                bytes(row.shared),
                bytes(row.unique),
                number(row.containers),
            ]
        })?;
        out.line("")?;
        out.list(Format::Table, &details.1, &["CONTAINER", "ID", "SIZE", "SHARED", "UNIQUE", "VIRTUAL"], |row| {
            vec![
                row.name.clone().unwrap_or_default(),
                row.id.as_deref().map_or_else(String::new, |id| short(id).to_string()),
                format::size(row.size),
                bytes(row.shared),
                bytes(row.unique),
                bytes(row.virtual_size),
            ]
        })
    }
}

fn summary(usage: &Usage) -> Vec<Row> {
    let keyed = usage.keyed.iter().flat_map(|keyed| {
        let row = |kind, count, size| Row {
            kind,
            name: Some(keyed.owner.as_str().to_string()),
            count: Some(count),
            size,
            ..Row::default()
        };
        [
            row("client layers", keyed.layers, keyed.layers_size),
            row("client containers", keyed.containers, keyed.containers_size),
        ]
    });
    let active = usage.images.iter().filter(|image| image.containers > 0).count();
    let mut rows = vec![
        Row {
            kind: "images",
            count: Some(usage.images.len()),
            active: Some(active),
            size: usage.layers_size,
            reclaimable: Some(usage.reclaimable),
            ..Row::default()
        },
        Row {
            kind: "containers",
            count: Some(usage.containers.len()),
            size: usage.containers_size,
            ..Row::default()
        },
        Row { kind: "snapshots", count: Some(usage.snapshots.len()), size: usage.snapshots_size, ..Row::default() },
        Row { kind: "shared", size: usage.shared, ..Row::default() },
        Row {
            kind: "spares",
            count: Some(usage.spares),
            size: usage.spares_size,
            reclaimable: Some(usage.spares_size),
            ..Row::default()
        },
        Row { kind: "metadata", size: usage.metadata, ..Row::default() },
        Row { kind: "pending", size: usage.pending, reclaimable: Some(usage.pending), ..Row::default() },
        Row { kind: "total", size: usage.total, ..Row::default() },
        Row { kind: "filesystem", size: usage.space.used, available: Some(usage.space.available), ..Row::default() },
    ];
    // Before what is not a tree.
    rows.splice(3..3, keyed);
    rows
}

fn details(usage: &Usage) -> (Vec<Row>, Vec<Row>) {
    let images = usage.images.iter().map(|image| Row {
        kind: "image",
        name: Some(image.info.image.names.keys().next().map_or_else(|| "<none>".into(), |name| familiar(name))),
        id: Some(image.info.image.id.clone()),
        size: image.info.size,
        shared: Some(image.shared),
        unique: Some(image.unique),
        containers: Some(image.containers),
        ..Row::default()
    });
    let containers = usage.containers.iter().filter_map(|relative| {
        relative.record.container().map(|container| Row {
            kind: "container",
            name: Some(container.name.clone()),
            id: Some(container.id.clone()),
            virtual_size: Some(relative.sizes.virtual_size),
            ..own(relative)
        })
    });
    let names: std::collections::HashMap<_, _> =
        usage.containers.iter().map(|relative| (relative.record.uuid, relative.record.name())).collect();
    let snapshots = usage.snapshots.iter().filter_map(|relative| {
        let snapshot = relative.record.snapshot()?;
        let container = names.get(&snapshot.container).copied().flatten();
        let container = container.map_or_else(|| snapshot.container.to_string(), str::to_string);
        Some(Row { kind: "snapshot", name: Some(format!("{container}@{}", snapshot.label)), ..own(relative) })
    });
    (images.collect(), containers.chain(snapshots).collect())
}

fn own(relative: &Relative) -> Row {
    Row {
        size: relative.sizes.size,
        shared: Some(relative.sizes.size.saturating_sub(relative.unique)),
        unique: Some(relative.unique),
        ..Row::default()
    }
}
