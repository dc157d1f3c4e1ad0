use std::path::PathBuf;

use super::Output;
use crate::Result;
use crate::engine::Engine;
use crate::engine::bundle::{BundleOptions, Network};

/// Write an OCI runtime bundle for a container: runc, crun and others run it
#[derive(clap::Args, Debug)]
pub struct Bundle {
    /// A network namespace of its own, or the host's network
    #[arg(long, value_enum, default_value_t = NetworkArgument::None)]
    network: NetworkArgument,
    /// Environment variable, as KEY=VALUE; may be given several times
    #[arg(short, long = "env", value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// With a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The container's root can't be written to
    #[arg(long)]
    read_only: bool,
    /// Name or ID of the container
    name: String,
    /// New or empty directory for the bundle
    directory: PathBuf,
    /// Command to run instead of the image's
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum NetworkArgument {
    None,
    Host,
}

impl Bundle {
    pub fn run(self, engine: &Engine, _out: &mut Output) -> Result<()> {
        let options = BundleOptions {
            network: match self.network {
                NetworkArgument::None => Network::None,
                NetworkArgument::Host => Network::Host,
            },
            command: self.command,
            env: self.env,
            terminal: self.tty,
            read_only: self.read_only,
        };
        engine.bundle(&self.name, &self.directory, &options)
    }
}
