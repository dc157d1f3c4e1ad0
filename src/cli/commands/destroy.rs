use super::Output;
use crate::engine::Engine;
use crate::{Error, Kind, Result};

/// Remove the whole store: containers, images, subvolumes, quota groups, pool, loop device and mount
#[derive(clap::Args, Debug)]
pub struct Destroy {
    /// Don't ask
    #[arg(short, long)]
    yes: bool,
    /// Even if a process is using a container
    #[arg(short, long)]
    force: bool,
}

impl Destroy {
    pub fn run(self, engine: Engine, out: &mut Output) -> Result<()> {
        let info = engine.info()?;
        let root = engine.root().display().to_string();
        let question =
            format!("Destroy the store at {root} with {} images and {} containers?", info.images, info.containers);
        if !self.yes && !out.confirm(&question)? {
            return Err(Error::new(Kind::Invalid, "nothing destroyed: nobody said yes").with_hint("--yes says it"));
        }
        engine.destroy(self.force)?;
        out.line(format_args!("destroyed {root}"))
    }
}
