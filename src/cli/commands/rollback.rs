use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Make a container as one of its snapshots is, in one step; prints the name of what was replaced
///
/// What the container was is kept as another snapshot, NAME@replaced-N, until that is removed.
#[derive(clap::Args, Debug)]
pub struct Rollback {
    /// Name or ID of the container
    name: String,
    /// Label of the snapshot
    label: String,
    /// Even if a process is using it: that process goes on in what was replaced
    #[arg(short, long)]
    force: bool,
    /// Don't keep what is replaced
    #[arg(long)]
    discard: bool,
}

impl Rollback {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let done = engine.roll_back(&self.name, &self.label, self.force, self.discard)?;
        for warning in done.warnings {
            out.warn(warning);
        }
        done.kept.map_or(Ok(()), |kept| out.line(kept))
    }
}
