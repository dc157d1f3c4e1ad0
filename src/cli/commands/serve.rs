use std::path::PathBuf;

use crate::Result;
use crate::daemon::{self, Containerd, Doors};
use crate::engine::Engine;

/// Answer Docker and containerd, and say what happens, until a signal says to stop
///
/// Without a socket's option those of the configuration are open (docker_socket, metrics_socket, and for each containerd
/// that of its table), which by default is all of them; with one, only those that are named. Sockets that systemd listens at
/// are taken over. A second signal doesn't wait for what is being done.
#[derive(clap::Args, Debug)]
pub struct Serve {
    /// Answer Docker's graph-driver protocol here [default: /run/docker/plugins/reflinkd.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::DOCKER_SOCKET)]
    docker: Option<PathBuf>,
    /// Answer containerd's proxy plugins for snapshots and diffs here [default: /run/reflinkd/containerd.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::CONTAINERD_SOCKET)]
    containerd: Option<PathBuf>,
    /// Where that containerd answers, which has the content of layers [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "ADDRESS")]
    containerd_address: Option<PathBuf>,
    /// Answer GET /metrics here, for Prometheus [default: /run/reflinkd/metrics.sock]
    #[arg(long, value_name = "SOCKET", num_args = 0..=1, default_missing_value = daemon::METRICS_SOCKET)]
    metrics: Option<PathBuf>,
    /// Don't serve: see whether another process answers at each of these sockets, as a kubelet's probe asks
    #[arg(long)]
    pub(in crate::cli) probe: bool,
}

impl Serve {
    /// Opens no store.
    pub fn probe(self, configured: Doors) -> Result<()> {
        daemon::probe(&self.doors(configured))
    }

    pub fn run(self, engine: Engine, configured: Doors) -> Result<()> {
        daemon::serve(engine, &self.doors(configured))
    }

    /// What is configured, but for what is named here.
    fn doors(self, mut doors: Doors) -> Doors {
        let is_default = |one: &Containerd| one.space.name == daemon::CONTAINERD_NAME;
        if self.docker.is_some() || self.containerd.is_some() || self.metrics.is_some() {
            (doors.docker, doors.metrics) = (self.docker, self.metrics);
            for one in &mut doors.containerds {
                one.socket = self.containerd.clone().filter(|_| is_default(one));
            }
        }
        if let (Some(address), Some(one)) =
            (self.containerd_address, doors.containerds.iter_mut().find(|one| is_default(one)))
        {
            one.address = address;
        }
        doors
    }
}
