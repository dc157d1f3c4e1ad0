use clap::CommandFactory;

use super::Output;
use crate::Result;
use crate::cli::Cli;

/// Print the completion script of a shell
#[derive(clap::Args, Debug)]
pub struct Completions {
    shell: clap_complete::Shell,
}

impl Completions {
    pub fn run(self, out: &mut Output) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "reflinkd", &mut script);
        out.bytes(&script)
    }
}
