use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Give a container another name
#[derive(clap::Args, Debug)]
pub struct Rename {
    /// Name or ID of the container
    name: String,
    new_name: String,
}

impl Rename {
    pub fn run(self, engine: &Engine, _out: &mut Output) -> Result<()> {
        engine.rename_container(&self.name, &self.new_name).map(|_| ())
    }
}
