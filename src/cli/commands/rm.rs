use super::Output;
use crate::engine::Engine;
use crate::{Kind, Result};

/// Remove containers with all they wrote and their snapshots, or snapshots alone
#[derive(clap::Args, Debug)]
pub struct Rm {
    /// Even if a process is using it; and a container that doesn't exist is no error
    #[arg(short, long)]
    force: bool,
    /// Names or IDs of containers; snapshots as NAME@LABEL
    #[arg(required = true)]
    names: Vec<String>,
}

impl Rm {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        crate::cli::each(&self.names, out, |name, out| match engine.remove_container(name, self.force) {
            Ok(_) => out.line(name),
            Err(e) if self.force && e.kind() == Kind::NotFound => Ok(()),
            Err(e) => Err(e),
        })
    }
}
