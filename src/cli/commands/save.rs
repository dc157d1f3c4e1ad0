use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;

use super::load::stop_on_signals;
use crate::engine::Engine;
use crate::oci::{self, Output, Target};
use crate::{Context, Error, Kind, Result};

/// Write images to an archive or OCI layout, as they came: with the same IDs and diff IDs
#[derive(clap::Args, Debug)]
pub struct Save {
    /// Names (saved with the image) or IDs (saved without a name)
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// File, or for a layout a directory that is empty or doesn't exist; standard output if not given
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// How to compress layers in OCI formats
    #[arg(long, value_enum, default_value_t)]
    compress: Compression,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Format {
    /// A tar that every Docker, podman and skopeo reads, and tools for OCI archives
    #[default]
    DockerArchive,
    /// An OCI layout in a tar
    OciArchive,
    /// An OCI layout in a directory
    #[value(alias = "oci-dir")]
    OciLayout,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Compression {
    #[default]
    None,
    Gzip,
    Zstd,
}

impl Save {
    pub fn run(self, engine: &Engine) -> Result<()> {
        let target = Target {
            format: match self.format {
                Format::DockerArchive => oci::Format::DockerArchive,
                Format::OciArchive => oci::Format::OciArchive,
                Format::OciLayout => oci::Format::OciLayout,
            },
            compression: match self.compress {
                Compression::None => oci::Compression::Plain,
                Compression::Gzip => oci::Compression::Gzip,
                Compression::Zstd => oci::Compression::Zstd,
            },
            spool: engine.spool_directory(),
        };
        stop_on_signals(engine)?;
        let to = self.output.filter(|path| path.as_os_str() != "-");
        match &to {
            Some(path) => engine.save(&self.images, &target, Output::Path(path)),
            None if std::io::stdout().is_terminal() => {
                Err(Error::new(Kind::Invalid, "standard output is a terminal")
                    .with_hint("say where with -o FILE, or pipe it into something"))
            }
            None => {
                // Not through what looks for line ends in it.
                let stdout = std::io::stdout().as_fd().try_clone_to_owned().context(|| "dup standard output")?;
                engine.save(&self.images, &target, Output::Stream(&mut File::from(stdout)))
            }
        }
    }
}
