use std::path::PathBuf;

use super::Output;
use super::load::{LayerLimits, stop_on_signals};
use crate::cli::progress::Layers;
use crate::engine::Engine;
use crate::engine::load::{Progress, Silent};
use crate::oci::{ImageConfig, Input, Reference};
use crate::{Context, Result};

/// Make an image of one layer from the tar (plain, gzip or zstd) of a root filesystem; prints its ID
#[derive(clap::Args, Debug)]
pub struct Import {
    /// File; `-` is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name for the image
    name: Option<String>,
    /// Said in the image's history
    #[arg(short, long)]
    message: Option<String>,
    /// Instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    #[command(flatten)]
    pub limits: LayerLimits,
}

impl Import {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let name: Option<Reference> = self.name.as_deref().map(crate::engine::image::checked_tag).transpose()?;
        let (raw, total): (Box<dyn std::io::Read + Send>, _) = match super::load::input(&self.file)? {
            Input::Stdin(stdin) => (stdin, None),
            Input::Path(path) => {
                let file = std::fs::File::open(&path).context(|| format!("cannot import {}", path.display()))?;
                let length = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|meta| meta.len());
                (Box::new(file), length)
            }
        };
        let comment = self.message.unwrap_or_else(|| format!("Imported from {}", self.file.display()));
        let config =
            |diff_id: &crate::oci::DiffId| ImageConfig::for_root_filesystem(*diff_id, &comment, &self.changes);
        // A bad instruction is found before anything is read.
        config(&crate::oci::DiffId(crate::oci::Digest::of(b"")))?;
        stop_on_signals(engine)?;
        let layers = Layers::new(false);
        let progress: &dyn Progress = layers.as_ref().map_or(&Silent, |layers| layers as &dyn Progress);
        let image = engine.import(raw, total, name.as_ref(), &config, progress);
        drop(layers);
        out.line(image?.id)
    }
}
