use serde::Serialize;

use super::{Output, format};
use crate::backend::Want;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::image::familiar;
use crate::engine::keyed::KeyedInfo;
use crate::engine::usage::Sizes;
use crate::store::{Keyed, Record, Stage};
use crate::{Error, Kind, Result};

/// List containers
#[derive(clap::Args, Debug)]
pub struct Ps {
    /// Also those of Docker and containerd, by their own keys: whatever they write to
    #[arg(short, long)]
    all: bool,
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
    /// Whose it is: `cli`, the command line's
    owner: String,
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

/// A row of `ps --all --format json` for what a front door's client writes to.
#[derive(Serialize)]
struct ClientRow {
    /// Whose it is: `docker`, `containerd` or `containerd/NAME`
    owner: String,
    /// The client's own key
    id: String,
    /// Key of what it is based on
    parent: Option<String>,
    /// RFC 3339
    created: String,
    labels: std::collections::BTreeMap<String, String>,
    size_limit: Option<u64>,
    /// Bytes charged on disk for its own data; only with --size
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_method: Option<String>,
    #[serde(skip)]
    age: jiff::Timestamp,
}

#[derive(Serialize)]
#[serde(untagged)]
enum AnyRow<'a> {
    Own(&'a Row),
    Client(&'a ClientRow),
}

impl Ps {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let filters = self.filters.iter().map(|text| Filter::parse(text, engine)).collect::<Result<Vec<_>>>()?;
        let mut containers = engine.containers()?;
        containers.retain(|record| filters.iter().all(|filter| filter.matches(record)));
        containers.reverse(); // the newest first, as Docker has it
        if self.quiet {
            let own = containers.iter().filter_map(Record::container).map(|container| container.id.clone());
            let others = self.clients(engine, &filters)?.into_iter().map(|row| row.id);
            return own.chain(others).try_for_each(|id| out.line(format::id(&id, self.no_trunc)));
        }
        let rows: Vec<Row> = if self.size {
            let want = Want { sync: !self.no_sync, apparent: self.format == Format::Json };
            let sized = engine.sizes(containers, want)?;
            sized.iter().filter_map(|(record, sizes)| row(record, Some(*sizes), self.no_sync)).collect()
        } else {
            containers.iter().filter_map(|record| row(record, None, self.no_sync)).collect()
        };
        let clients = self.clients(engine, &filters)?;
        if self.all && self.format == Format::Json {
            let rows = rows.iter().map(AnyRow::Own).chain(clients.iter().map(AnyRow::Client));
            return out.json(&rows.collect::<Vec<_>>());
        }
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
        if !clients.is_empty() {
            out.line("")?;
            self.client_table(clients, out)?;
        }
        if self.no_sync && self.format == Format::Table {
            out.warn("sizes are stale: those of the filesystem's last commit");
        }
        Ok(())
    }

    /// What other owners write to, the newest first; nothing without `--all`. Sizes are as of the filesystem's last commit.
    fn clients(&self, engine: &Engine, filters: &[Filter]) -> Result<Vec<ClientRow>> {
        if !self.all {
            return Ok(Vec::new());
        }
        let mut rows: Vec<_> =
            engine.keyed_trees()?.into_iter().filter_map(|info| self.client_row(info, filters)).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.age));
        Ok(rows)
    }

    fn client_row(&self, info: KeyedInfo, filters: &[Filter]) -> Option<ClientRow> {
        let keyed = info.record.keyed().filter(|keyed| keyed.stage == Stage::Active)?;
        filters.iter().all(|filter| filter.matches_client(keyed)).then(|| ClientRow {
            owner: info.record.owner.as_str().to_string(),
            id: keyed.key.clone(),
            parent: info.parent,
            created: info.record.created.to_string(),
            labels: keyed.labels.clone(),
            size_limit: keyed.size_limit,
            size: self.size.then_some(info.size),
            size_method: info.method.filter(|_| self.size),
            age: info.record.created,
        })
    }

    fn client_table(&self, clients: Vec<ClientRow>, out: &mut Output) -> Result<()> {
        let mut header = vec!["OWNER", "KEY", "PARENT", "CREATED"];
        if self.size {
            header.push("SIZE");
        }
        let rows = clients.into_iter().map(|row| {
            let parent = row.parent.map_or_else(String::new, |parent| format::key(&parent, self.no_trunc));
            let mut cells = vec![row.owner, format::key(&row.id, self.no_trunc), parent, format::ago(row.age)];
            cells.extend(row.size.map(format::size));
            cells
        });
        out.table(&header, rows.collect())
    }
}

fn row(record: &Record, sizes: Option<Sizes>, stale: bool) -> Option<Row> {
    let container = record.container()?;
    Some(Row {
        owner: record.owner.as_str().to_string(),
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

    fn matches_client(&self, keyed: &Keyed) -> bool {
        match self {
            Self::Name(text) => keyed.key.contains(text.as_str()),
            Self::Id(prefix) => keyed.key.starts_with(prefix.as_str()),
            Self::Image(_) => false,
            Self::Label(key, None) => keyed.labels.contains_key(key),
            Self::Label(key, Some(value)) => keyed.labels.get(key) == Some(value),
        }
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
