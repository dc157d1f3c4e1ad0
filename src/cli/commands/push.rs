use super::Output;
use super::load::stop_on_signals;
use crate::cli::progress::Layers;
use crate::engine::Engine;
use crate::engine::push::{self, Progress, Silent};
use crate::oci::{self, Reference};
use crate::{Error, Kind, Result};

/// Send an image to a registry
///
/// Layers that came from a registry leave with their digests; where another repository of the registry has them, they are
/// mounted from there. Others are packed, the same each time. Logins are those that `docker login`, `podman login` or `skopeo
/// login` have written.
#[derive(clap::Args, Debug)]
pub struct Push {
    /// Name of the image, or its ID with a DESTINATION; with --all-tags a name without a tag
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Name to push it to: ghcr.io/team/app:1, localhost:5000/app [default: the image's name]
    #[arg(value_name = "DESTINATION", conflicts_with = "all_tags")]
    destination: Option<Reference>,
    /// Push all tags that the repository has here
    #[arg(short, long)]
    all_tags: bool,
    /// Push the index that the image came with, and the images for other platforms from where it came from
    #[arg(long, conflicts_with = "compress")]
    all_platforms: bool,
    /// Have all layers compressed like this, also those that came otherwise [default: gzip for those that have to be packed]
    #[arg(long, value_enum)]
    compress: Option<Compression>,
    /// Print the full name alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Compression {
    Gzip,
    Zstd,
}

impl Push {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        stop_on_signals(engine)?;
        let names =
            if self.all_tags { self.tags(engine)? } else { vec![(self.image.clone(), self.destination(engine)?)] };
        if let Some((_, first)) = names.first()
            && !self.quiet
        {
            out.note(format_args!("The push refers to repository [{}]", first.repository()));
        }
        for (image, destination) in names {
            let wanted = push::Push {
                image,
                destination: destination.clone(),
                compression: self.compress.map(|compress| match compress {
                    Compression::Gzip => oci::Compression::Gzip,
                    Compression::Zstd => oci::Compression::Zstd,
                }),
                all_platforms: self.all_platforms,
            };
            let layers = Layers::pushing(self.quiet);
            let progress: &dyn Progress = layers.as_ref().map_or(&Silent, |layers| layers as &dyn Progress);
            let pushed = engine.push(&wanted, progress)?;
            if self.quiet {
                out.line(destination.canonical())?;
            } else {
                let tag = destination.tag().unwrap_or_default();
                out.line(format_args!("{tag}: digest: {} size: {}", pushed.digest, pushed.size))?;
            }
            out.flush()?;
        }
        Ok(())
    }

    /// Where the image is to go: a name with a tag.
    fn destination(&self, engine: &Engine) -> Result<Reference> {
        let failed = |why: &str| Error::new(Kind::Invalid, why).context(format!("cannot push {}", self.image));
        let destination = match &self.destination {
            Some(destination) => destination.clone(),
            None => {
                let image =
                    engine.find_image(&self.image).map_err(|e| e.context(format!("cannot push {}", self.image)))?;
                // An ID may be read as a name, which it isn't here.
                let name = self.image.parse::<Reference>().ok();
                let known = |name: &Reference| name.digest().is_some() || image.names.contains_key(&name.canonical());
                name.filter(known)
                    .ok_or_else(|| failed("an ID says nothing of where to").with_hint("name a DESTINATION, too"))?
            }
        };
        if destination.digest().is_some() {
            return Err(failed("a digest isn't pushed to, but comes of what is pushed")
                .with_hint("name a DESTINATION with a tag"));
        }
        Ok(destination)
    }

    /// All names of images in the repository, each pushed to itself.
    fn tags(&self, engine: &Engine) -> Result<Vec<(String, Reference)>> {
        let failed = |kind, why: &str| Error::new(kind, why).context(format!("cannot push {}", self.image));
        let repository: Reference = self.image.parse()?;
        // The parser makes a tag up where there is none.
        let bare = repository.repository().parse::<Reference>()?;
        if repository != bare || self.image.ends_with(":latest") {
            return Err(failed(Kind::Invalid, "with --all-tags a repository is named, without a tag or digest"));
        }
        let images = engine.images()?;
        let names = images.iter().flat_map(|info| info.image.names.keys());
        let mut tags: Vec<_> = names
            .filter_map(|name| name.parse::<Reference>().ok())
            .filter(|name| name.repository() == bare.repository() && name.tag().is_some())
            .map(|name| (name.canonical(), name))
            .collect();
        tags.sort();
        if tags.is_empty() {
            return Err(failed(Kind::NotFound, "no image here has a tag in that repository"));
        }
        Ok(tags)
    }
}
