use std::io::IsTerminal;
use std::path::PathBuf;

use super::{Output, format};
use crate::cli::progress::Layers;
use crate::engine::load::{Progress, Silent};
use crate::engine::{Engine, Settings};
use crate::oci::{Input, Reference};
use crate::store::Image;
use crate::{Context, Error, Kind, Result};

/// Load images from an OCI layout directory, an OCI archive or a `docker save` archive
#[derive(clap::Args, Debug)]
pub struct Load {
    /// File or directory; `-` (the default) is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The same, as `docker load` has it
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,
    /// Don't show how it goes on
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    pub limits: LayerLimits,
}

/// Bounds on what comes from outside.
#[derive(clap::Args, Debug)]
pub struct LayerLimits {
    /// Most bytes of one layer, unpacked [default: 64GiB]
    #[arg(long, value_name = "BYTES", env = "REFLINKD_MAX_LAYER_SIZE", value_parser = format::parse_size)]
    max_layer_size: Option<u64>,
}

impl LayerLimits {
    pub fn apply(&self, settings: &mut Settings) {
        if let Some(bytes) = self.max_layer_size {
            settings.layer_limits = settings.layer_limits.with_bytes(bytes);
        }
    }
}

impl Load {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let file = self.input.unwrap_or(self.file);
        let source = engine.open_source(input(&file)?).context(|| format!("cannot load {}", file.display()))?;
        stop_on_signals(engine)?;
        let layers = Layers::new(self.quiet);
        let progress: &dyn Progress = layers.as_ref().map_or(&Silent, |layers| layers as &dyn Progress);
        let images = engine.load(&source, progress);
        drop(layers);
        images?.iter().zip(source.images()).try_for_each(|(image, loaded)| report(image, &loaded.names, out))
    }
}

/// A line for each name that an image was loaded by, as `docker load` prints it.
fn report(image: &Image, names: &[Reference], out: &mut Output) -> Result<()> {
    if names.is_empty() {
        return out.line(format_args!("Loaded image ID: {}", image.id));
    }
    names.iter().try_for_each(|name| out.line(format_args!("Loaded image: {name}")))
}

pub(super) fn input(file: &std::path::Path) -> Result<Input> {
    if file.as_os_str() != "-" {
        return Ok(Input::Path(file.to_path_buf()));
    }
    if std::io::stdin().is_terminal() {
        return Err(
            Error::new(Kind::Invalid, "standard input is a terminal").with_hint("give a file, or pipe one in")
        );
    }
    Ok(Input::Stdin(Box::new(std::io::stdin())))
}

/// Ctrl-C and SIGTERM undo what was begun; a second one ends at once, and the next command clears up.
pub(super) fn stop_on_signals(engine: &Engine) -> Result<()> {
    let flag = engine.cancellation();
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())
            .and_then(|_| signal_hook::flag::register(signal, flag.clone()))
            .context(|| "install a signal handler")?;
    }
    Ok(())
}
