use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Print the path of a container's root directory; nothing is mounted, it is there all the time
///
/// Only the root of a read-only container is a mount, and mounted again here if it is missing (after a reboot).
#[derive(clap::Args, Debug)]
pub struct Mount {
    /// Name or ID of the container, or NAME@LABEL for a snapshot
    name: String,
}

impl Mount {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        out.line(engine.container_root(&self.name)?.display())
    }
}
