use super::{Output, format};
use crate::engine::Engine;
use crate::{Error, Kind, Result};

/// Change a container's size limit, running or not
#[derive(clap::Args, Debug)]
pub struct Update {
    /// Most bytes the container may write itself (10G, 500MiB), or `none`
    #[arg(long, value_name = "BYTES")]
    size_limit: String,
    /// Names or IDs of containers
    #[arg(required = true)]
    names: Vec<String>,
}

impl Update {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let limit = match self.size_limit.as_str() {
            "none" => None,
            text => Some(format::parse_size(text).map_err(|e| Error::new(Kind::Invalid, e))?),
        };
        crate::cli::each(&self.names, out, |name, out| {
            for warning in engine.limit_container(name, limit)? {
                out.warn(warning);
            }
            out.line(name)
        })
    }
}
