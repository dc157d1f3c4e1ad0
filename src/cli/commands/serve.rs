use std::path::PathBuf;

use crate::Result;
use crate::daemon::{self, Doors};
use crate::engine::Engine;

/// Answer Docker, and say what happens, until a signal says to stop
///
/// Without a socket's option those of the configuration are open (docker_socket, metrics_socket), which by default is all
/// of them; with one, only those that are named. Sockets that systemd listens at are taken over. A second signal doesn't
/// wait for what is being done.
#[derive(clap::Args, Debug)]
pub struct Serve {
    /// Answer Docker's graph-driver protocol here [default: /run/docker/plugins/reflinkd.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::DOCKER_SOCKET)]
    docker: Option<PathBuf>,
    /// Answer GET /metrics here, for Prometheus [default: /run/reflinkd/metrics.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::METRICS_SOCKET)]
    metrics: Option<PathBuf>,
}

impl Serve {
    pub fn run(self, engine: Engine, configured: Doors) -> Result<()> {
        let named = Doors { docker: self.docker, metrics: self.metrics };
        let doors = if named == Doors::default() { configured } else { named };
        daemon::serve(engine, &doors)
    }
}
