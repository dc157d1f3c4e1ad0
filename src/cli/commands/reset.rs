use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Make containers anew from their image: what they wrote is lost; name, labels and limit stay
///
/// Read-only ones are as they were made.
#[derive(clap::Args, Debug)]
pub struct Reset {
    /// Even if a process is using it: that process goes on in the old tree
    #[arg(short, long)]
    force: bool,
    /// Names or IDs of containers
    #[arg(required = true)]
    names: Vec<String>,
}

impl Reset {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        crate::cli::each(&self.names, out, |name, out| {
            engine.reset_container(name, self.force)?;
            out.line(name)
        })
    }
}
