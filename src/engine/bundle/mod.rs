//! OCI runtime bundles: a container's tree with the configuration that its image asks for.
//!
//! ```text
//! reflinkd bundle web1 /run/web1     /run/web1/config.json, with root.path the tree of web1
//! runc run -b /run/web1 web1
//! ```
//!
//! The tree stays where it is, so the bundle goes on to work after a reset. Volumes of the image become directories
//! in the bundle, filled with what the image has there, as Docker fills new volumes.

mod spec;
mod user;

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::Engine;
use crate::backend::clone::{Content, Source, clone_tree};
use crate::{Context, Error, Kind, Result};

pub use spec::Network;

/// What a bundle is to be like beyond its image's configuration.
#[derive(Debug, Clone, Default)]
pub struct BundleOptions {
    pub network: Network,
    /// Instead of the image's command.
    pub command: Vec<String>,
    /// `KEY=VALUE`, over the image's.
    pub env: Vec<String>,
    pub terminal: bool,
    pub read_only: bool,
}

impl Engine {
    /// Write a bundle for a container into `directory`, which must be new or empty.
    pub fn bundle(&self, name: &str, directory: &Path, options: &BundleOptions) -> Result<()> {
        (|| {
            let record = self.find_container(name)?;
            let container = record.container().ok_or_else(|| Error::new(Kind::Damaged, "it is not a container"))?;
            let config = self.image_config(&container.image_id)?;
            let root = self.root_of(&record)?;
            let user = user::resolve(&root, &config.user)?;
            let made = make_empty(directory)?;
            let written = (|| {
                let directory = fs::canonicalize(directory).context(|| format!("resolve {}", directory.display()))?;
                let volumes = make_volumes(&root, &directory, &config.volumes)?;
                let spec = spec::build(&spec::Parts {
                    root: &root,
                    hostname: super::image::short(&container.id),
                    annotations: spec::annotations(container, &config),
                    config: &config,
                    user: &user,
                    volumes: &volumes,
                    read_only: container.read_only || options.read_only,
                    options,
                })?;
                let path = directory.join("config.json");
                fs::write(&path, spec).context(|| format!("write {}", path.display()))
            })();
            if written.is_err() && made {
                let _ = fs::remove_dir_all(directory);
            }
            written
        })()
        .context(|| format!("cannot make a bundle of container {name} in {}", directory.display()))
    }
}

/// Whether the directory was made; an error if it is there with something in it.
fn make_empty(directory: &Path) -> Result<bool> {
    match fs::read_dir(directory) {
        Ok(mut entries) => match entries.next() {
            None => Ok(false),
            Some(_) => Err(Error::new(Kind::Exists, "the directory is not empty")),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => fs::DirBuilder::new()
            .mode(0o700)
            .recursive(true)
            .create(directory)
            .context(|| format!("mkdir {}", directory.display()))
            .map(|()| true),
        Err(e) => Err(e).context(|| format!("read {}", directory.display())),
    }
}

/// A volume: where it is mounted, and the directory in the bundle that holds it.
#[derive(Debug)]
struct Volume {
    destination: String,
    source: PathBuf,
}

fn make_volumes(root: &Path, directory: &Path, wanted: &BTreeSet<String>) -> Result<Vec<Volume>> {
    let mut volumes = Vec::new();
    if !wanted.is_empty() {
        let directory = directory.join("volumes");
        fs::create_dir(&directory).context(|| format!("mkdir {}", directory.display()))?;
    }
    for (number, destination) in wanted.iter().enumerate() {
        let source = directory.join("volumes").join(number.to_string());
        let filled = match crate::sys::rooted::directory(root, destination)? {
            // By its descriptor: what runs in the container can't swap it for a link.
            Some(inside) => {
                let inside = format!("/proc/self/fd/{}/.", inside.as_raw_fd());
                clone_tree(Path::new(&inside), &source, Source::Live, Content::Copy, None).map(drop)
            }
            None => fs::create_dir(&source).context(|| format!("mkdir {}", source.display())),
        };
        filled.context(|| format!("cannot fill volume {destination}"))?;
        volumes.push(Volume { destination: destination.clone(), source });
    }
    Ok(volumes)
}
