use super::Output;
use crate::Result;
use crate::engine::Engine;

/// Give an image a further name; the image that had it loses it
#[derive(clap::Args, Debug)]
pub struct Tag {
    /// Name or ID of the image
    image: String,
    name: String,
}

impl Tag {
    pub fn run(self, engine: &Engine, _out: &mut Output) -> Result<()> {
        engine.tag(&self.image, &self.name)
    }
}
