use serde_json::{Value, json};

use super::Output;
use crate::backend::Want;
use crate::engine::Engine;
use crate::engine::image::familiar;
use crate::store::{Image, Record};
use crate::{Error, Kind, Result};

/// Show everything about containers or images, as JSON
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// Look only among these
    #[arg(long = "type", value_enum)]
    kind: Option<What>,
    /// Names or IDs; a container comes before an image of the same name
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Container,
    Image,
}

impl Inspect {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let mut found = Vec::new();
        let searched = crate::cli::each(&self.names, out, |name, _| {
            found.push(self.find(engine, name)?);
            Ok(())
        });
        out.json(&found)?;
        searched
    }

    fn find(&self, engine: &Engine, name: &str) -> Result<Value> {
        if self.kind != Some(What::Image) {
            match engine.find_container(name) {
                Ok(record) => return container(engine, &record),
                Err(e) if e.kind() == Kind::NotFound && self.kind.is_none() => {}
                Err(e) => return Err(e),
            }
        }
        match engine.find_image(name) {
            Ok(found) => image(engine, found),
            Err(e) if e.kind() == Kind::NotFound && self.kind.is_none() => {
                Err(Error::new(Kind::NotFound, format!("there is no container or image {name}")))
            }
            Err(e) => Err(e),
        }
    }
}

fn container(engine: &Engine, record: &Record) -> Result<Value> {
    let sized = engine.sizes(vec![record.clone()], Want { sync: true, apparent: true })?;
    let Some((container, (_, sizes))) = record.container().zip(sized.first()) else {
        return Err(Error::new(Kind::NotFound, format!("container {} was removed", record.uuid)));
    };
    let snapshots = engine.snapshots(Some(&container.id))?;
    let snapshots: Vec<_> =
        snapshots.iter().filter_map(|info| info.record.snapshot()).map(|s| s.label.clone()).collect();
    let nested: Vec<_> = engine.nested(record)?.into_iter().map(|nested| nested.path).collect();
    Ok(json!({
        "type": "container",
        "id": container.id,
        "name": container.name,
        "created": record.created.to_string(),
        "image": familiar(&container.image),
        "image_id": container.image_id,
        "labels": container.labels,
        "size_limit": container.size_limit,
        "read_only": container.read_only,
        "root": engine.container_root(&container.id)?,
        "size": sizes.size,
        "apparent_size": sizes.apparent_size,
        "virtual_size": sizes.virtual_size,
        "size_method": sizes.method,
        "group": record.group,
        "charged": engine.charged(record)?,
        "snapshots": snapshots,
        "subvolumes": nested,
    }))
}

fn image(engine: &Engine, image: Image) -> Result<Value> {
    let config: Value = serde_json::from_slice(&engine.image_config_bytes(&image.id)?)
        .map_err(|e| Error::new(Kind::Damaged, format!("configuration of image {}: {e}", image.id)))?;
    let info = engine.image_info(image)?;
    let layers: Vec<_> = info
        .layers
        .iter()
        .filter_map(Record::layer)
        .map(|layer| json!({ "diff_id": layer.diff_id, "chain_id": layer.chain_id, "size": layer.size }))
        .collect();
    Ok(json!({
        "type": "image",
        "id": info.image.id,
        "digest": info.image.manifest,
        "names": info.image.names.keys().map(|name| familiar(name)).collect::<Vec<_>>(),
        "loaded": info.image.loaded.to_string(),
        "size": info.size,
        "layers": layers,
        "containers": engine.containers_of(&info.image)?,
        "config": config,
    }))
}
