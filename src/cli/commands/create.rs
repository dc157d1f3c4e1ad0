use std::collections::BTreeMap;

use super::pull::fetch;
use super::{Output, format};
use crate::engine::Engine;
use crate::engine::container::CreateContainer;
use crate::{Error, Kind, Result};

/// Make a container from an image by snapshotting its top layer; prints its ID
#[derive(clap::Args, Debug)]
pub struct Create {
    /// Image to start from: name, name:tag, or the beginning of an ID
    #[arg(long, value_name = "IMAGE")]
    image: String,
    /// When to fetch the image from its registry: if it isn't here, each time, or never
    #[arg(long, value_enum, value_name = "WHEN", env = "REFLINKD_PULL", default_value_t)]
    pull: Pull,
    /// Most bytes the container may write itself (10G, 500MiB); its image doesn't count
    #[arg(long, value_name = "BYTES", value_parser = format::parse_size)]
    size_limit: Option<u64>,
    /// Let nobody write to it: it shows its image's own files, and has no tree
    #[arg(long)]
    read_only: bool,
    /// Label, as key=value or key; may be given several times
    #[arg(long = "label", short = 'l', value_name = "KEY=VALUE")]
    labels: Vec<String>,
    /// Name; made up if not given
    name: Option<String>,
}

/// When a registry is asked for an image.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

impl Create {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        if matches!(self.pull, Pull::Always) {
            fetch(engine, &self.image.parse()?, false, out)?;
        }
        let wanted = CreateContainer {
            name: self.name,
            image: self.image,
            size_limit: self.size_limit,
            read_only: self.read_only,
            labels: self.labels.iter().map(|label| parse_label(label)).collect::<Result<BTreeMap<_, _>>>()?,
        };
        let mut created = engine.create_container(wanted.clone());
        // Only now: an image that is here isn't looked for twice.
        if let (Pull::Missing, Err(e)) = (self.pull, &created)
            && e.kind() == Kind::NotFound
            && let Some(name) = engine.missing_image(&wanted.image)?
        {
            fetch(engine, &name, false, out)?;
            created = engine.create_container(wanted);
        }
        let created = created?;
        for warning in created.warnings {
            out.warn(warning);
        }
        out.line(created.record.container().map_or("", |container| &container.id))
    }
}

fn parse_label(label: &str) -> Result<(String, String)> {
    let (key, value) = label.split_once('=').unwrap_or((label, ""));
    if key.is_empty() {
        return Err(Error::new(Kind::Invalid, format!("label {label:?} has no key")));
    }
    Ok((key.to_string(), value.to_string()))
}
