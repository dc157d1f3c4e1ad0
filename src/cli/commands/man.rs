use std::path::PathBuf;

use clap::CommandFactory;

use super::Output;
use crate::cli::Cli;
use crate::{Context, Result};

/// Write manual pages into a directory, or print the first one
#[derive(clap::Args, Debug)]
pub struct Man {
    directory: Option<PathBuf>,
}

impl Man {
    pub fn run(self, out: &mut Output) -> Result<()> {
        match self.directory {
            Some(directory) => clap_mangen::generate_to(Cli::command(), &directory)
                .context(|| format!("cannot write manual pages to {}", directory.display())),
            None => {
                let mut page = Vec::new();
                clap_mangen::Man::new(Cli::command()).render(&mut page).context(|| "render the manual page")?;
                out.bytes(&page)
            }
        }
    }
}
