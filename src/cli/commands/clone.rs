use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Make a container that begins as another one is now, running or not; prints its ID
///
/// On Btrfs in one step, whatever is in it; on XFS file by file. A running container is copied as a power cut would leave it.
/// The clone has the other's image, labels and size limit, and what it has from the other counts as its own.
#[derive(clap::Args, Debug)]
pub struct Clone {
    /// Name or ID of the container, or NAME@LABEL for a snapshot of it
    source: String,
    /// Name of the new one; made up if not given
    name: Option<String>,
}

impl Clone {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let created = engine.clone_container(&self.source, self.name.as_deref())?;
        for warning in created.warnings {
            out.warn(warning);
        }
        out.line(created.record.container().map_or("", |container| &container.id))
    }
}
