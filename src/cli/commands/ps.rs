use serde::Serialize;

use super::{Output, format};
use crate::backend::Want;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::familiar;
use crate::engine::usage::Sizes;
use crate::store::Record;
use crate::{Error, Kind, Result};

/// List containers
#[derive(clap::Args, Debug)]
pub struct Ps {
    /// Show what each container holds of its own, and with its image
    #[arg(short, long)]
    size: bool,
    /// With --size: don't commit the filesystem first; numbers are those of its last commit
    #[arg(long, requires = "size")]
    no_sync: bool,
    /// Only IDs
    #[arg(short, long)]
    quiet: bool,
    /// Only those that match: name=TEXT, id=PREFIX, image=NAME, label=KEY or label=KEY=VALUE
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Whole IDs
    #[arg(long)]
    no_trunc: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row of `ps --format json`.
#[derive(Serialize)]
struct Row {
    /// 64 hexadecimal digits
    id: String,
    name: String,
    /// The image's name as it was asked for
    image: String,
    /// Digest of the image's configuration
    image_id: String,
    /// RFC 3339
    created: String,
    labels: std::collections::BTreeMap<String, String>,
    /// Most bytes it may write itself, or null
    size_limit: Option<u64>,
    read_only: bool,
    #[serde(flatten)]
    sizes: Option<SizeColumns>,
    #[serde(skip)]
    age: jiff::Timestamp,
}

#[derive(Serialize)]
struct SizeColumns {
    /// Bytes charged on disk for its own data
    size: u64,
    /// Lengths of the files it made or changed, in bytes
    apparent_size: Option<u64>,
    /// Its image and its own data, in bytes
    virtual_size: u64,
    size_method: String,
    /// Whether the sizes are those of the filesystem's last commit (--no-sync)
    stale: bool,
}

impl Ps {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let filters = self.filters.iter().map(|text| Filter::parse(text, engine)).collect::<Result<Vec<_>>>()?;
        let mut containers = engine.containers()?;
        containers.retain(|record| filters.iter().all(|filter| filter.matches(record)));
        containers.reverse(); // the newest first, as Docker has it
        if self.quiet {
            return containers
                .iter()
                .filter_map(Record::container)
                .try_for_each(|container| out.line(format::id(&container.id, self.no_trunc)));
        }
        let rows: Vec<Row> = if self.size {
            let want = Want { sync: !self.no_sync, apparent: self.format == Format::Json };
            let sized = engine.sizes(containers, want)?;
            sized.iter().filter_map(|(record, sizes)| row(record, Some(*sizes), self.no_sync)).collect()
        } else {
            containers.iter().filter_map(|record| row(record, None, self.no_sync)).collect()
        };
        let mut header = vec!["CONTAINER ID", "IMAGE", "CREATED", "NAME"];
        if self.size {
            header.extend(["SIZE", "VIRTUAL"]);
        }
        out.list(self.format, &rows, &header, |row| {
            let mut cells = vec![
                format::id(&row.id, self.no_trunc),
                short_image(&row.image, self.no_trunc),
                format::ago(row.age),
                row.name.clone(),
            ];
            if let Some(sizes) = &row.sizes {
                cells.push(format::size(sizes.size));
                cells.push(format::size(sizes.virtual_size));
            }
            cells
        })?;
        if self.no_sync && self.format == Format::Table {
            out.warn("sizes are stale: those of the filesystem's last commit");
        }
        Ok(())
    }
}

fn row(record: &Record, sizes: Option<Sizes>, stale: bool) -> Option<Row> {
    let container = record.container()?;
    Some(Row {
        id: container.id.clone(),
        name: container.name.clone(),
        image: familiar(&container.image),
        image_id: container.image_id.clone(),
        created: record.created.to_string(),
        labels: container.labels.clone(),
        size_limit: container.size_limit,
        read_only: container.read_only,
        sizes: sizes.map(|sizes| SizeColumns {
            size: sizes.size,
            apparent_size: sizes.apparent_size,
            virtual_size: sizes.virtual_size,
            size_method: sizes.method.to_string(),
            stale,
        }),
        age: record.created,
    })
}

/// An image without a name is shown by its ID.
fn short_image(image: &str, whole: bool) -> String {
    if image.starts_with("sha256:") { format::id(image, whole) } else { image.to_string() }
}

enum Filter {
    Name(String),
    Id(String),
    /// The ID of its configuration; none if there is no such image, so that nothing matches.
    Image(Option<String>),
    Label(String, Option<String>),
}

impl Filter {
    fn parse(text: &str, engine: &Engine) -> Result<Self> {
        let invalid = || {
            Error::new(Kind::Invalid, format!("invalid filter {text:?}"))
                .with_hint("filters are name=, id=, image= and label=")
        };
        let (key, value) = text.split_once('=').ok_or_else(invalid)?;
        Ok(match key {
            "name" => Self::Name(value.to_string()),
            "id" => Self::Id(value.to_string()),
            "image" | "ancestor" => match engine.find_image(value) {
                Ok(image) => Self::Image(Some(image.id)),
                Err(e) if e.kind() == Kind::NotFound => Self::Image(None),
                Err(e) => return Err(e),
            },
            "label" => match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_string(), Some(value.to_string())),
                None => Self::Label(value.to_string(), None),
            },
            _ => return Err(invalid()),
        })
    }

    fn matches(&self, record: &Record) -> bool {
        let Some(container) = record.container() else { return false };
        match self {
            Self::Name(text) => container.name.contains(text.as_str()),
            Self::Id(prefix) => container.id.starts_with(prefix.as_str()),
            Self::Image(id) => id.as_ref() == Some(&container.image_id),
            Self::Label(key, None) => container.labels.contains_key(key),
            Self::Label(key, Some(value)) => container.labels.get(key) == Some(value),
        }
    }
}
