use super::Output;
use super::load::{LayerLimits, stop_on_signals};
use crate::Result;
use crate::cli::progress::Layers;
use crate::engine::Engine;
use crate::engine::load::{Progress, Silent};
use crate::engine::pull::Pulled;
use crate::oci::Reference;

/// Fetch an image from a registry
///
/// Logins are those that `docker login`, `podman login` or `skopeo login` have written. Of an image for several platforms,
/// the one for this machine is fetched.
#[derive(clap::Args, Debug)]
pub struct Pull {
    /// Name of the image: nginx, ghcr.io/team/app:1, localhost:5000/app@sha256:...
    #[arg(value_name = "IMAGE")]
    image: Reference,
    /// Print the image's full name alone
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    pub limits: LayerLimits,
}

impl Pull {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let pulled = fetch(engine, &self.image, self.quiet, out)?;
        if !self.quiet {
            let status = if pulled.up_to_date { "Image is up to date" } else { "Downloaded newer image" };
            out.line(format_args!("Digest: {}", pulled.digest))?;
            out.line(format_args!("Status: {status} for {}", self.image.kept()))?;
        }
        out.line(self.image.kept().canonical())
    }
}

/// Pull an image, and show on standard error how it goes on.
pub(super) fn fetch(engine: &Engine, name: &Reference, quiet: bool, out: &mut Output) -> Result<Pulled> {
    stop_on_signals(engine)?;
    if !quiet {
        let what = name.digest().map(|digest| digest.to_string());
        let what = what.or_else(|| name.tag().map(str::to_string)).unwrap_or_default();
        out.note(format_args!("{what}: Pulling from {}", name.path()));
    }
    let layers = Layers::pulling(quiet);
    let progress: &dyn Progress = layers.as_ref().map_or(&Silent, |layers| layers as &dyn Progress);
    engine.pull(name, progress)
}
