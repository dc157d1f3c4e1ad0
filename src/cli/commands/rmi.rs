use super::Output;
use crate::Result;
use crate::engine::Engine;
use crate::engine::image::{Removed, familiar};

/// Remove images: a name, and with the last name the image with the layers that nothing else needs
#[derive(clap::Args, Debug)]
pub struct Rmi {
    /// Even if it has several names; if containers are based on it, it loses its names and stays for them
    #[arg(short, long)]
    force: bool,
    /// Names or IDs of images
    #[arg(required = true)]
    images: Vec<String>,
}

impl Rmi {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        crate::cli::each(&self.images, out, |name, out| {
            engine.remove_image(name, self.force)?.into_iter().try_for_each(|removed| match removed {
                Removed::Untagged(name) => out.line(format_args!("Untagged: {}", familiar(&name))),
                Removed::Deleted(id) => out.line(format_args!("Deleted: {id}")),
            })
        })
    }
}
