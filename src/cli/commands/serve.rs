use std::path::PathBuf;

use crate::Result;
use crate::daemon::{self, Doors};
use crate::engine::Engine;

/// Answer Docker until a signal says to stop
///
/// Without a door's option those of the configuration are open (docker_socket), which by default is all of them; with
/// one, only those that are named.
#[derive(clap::Args, Debug)]
pub struct Serve {
    /// Answer Docker's graph-driver protocol here [default: /run/docker/plugins/reflinkd.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::DOCKER_SOCKET)]
    docker: Option<PathBuf>,
}

impl Serve {
    pub fn run(self, engine: Engine, configured: Doors) -> Result<()> {
        let named = Doors { docker: self.docker };
        let doors = if named == Doors::default() { configured } else { named };
        daemon::serve(engine, &doors)
    }
}
