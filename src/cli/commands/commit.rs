use super::Output;
use super::load::stop_on_signals;
use crate::Result;
use crate::engine::Engine;
use crate::engine::commit::CommitContainer;

/// Make an image of a container as it is now, running or not; prints its ID
///
/// The image is that of the container with a further layer, which shares all its blocks with the container. What
/// was written before is in it; of a file that is being written to, what a power cut would leave: on Btrfs names are of one
/// moment, on XFS each file is as of the moment that it was cloned at. Without changes no layer is made.
#[derive(clap::Args, Debug)]
pub struct Commit {
    /// Said in the image's history
    #[arg(short, long, default_value = "", hide_default_value = true)]
    message: String,
    /// Author of the image
    #[arg(short, long, default_value = "", hide_default_value = true)]
    author: String,
    /// Instruction to apply: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    changes: Vec<String>,
    /// Name or ID of the container, or NAME@LABEL for a snapshot of it
    container: String,
    /// Name for the image
    image: Option<String>,
}

impl Commit {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        stop_on_signals(engine)?;
        let committed = engine.commit(&CommitContainer {
            container: self.container,
            image: self.image.as_deref().map(crate::engine::image::checked_tag).transpose()?,
            message: self.message,
            author: self.author,
            changes: self.changes,
        })?;
        for warning in committed.warnings {
            out.warn(warning);
        }
        out.line(committed.image.id)
    }
}
