use clap::CommandFactory;

use super::{Output, format};
use crate::Result;
use crate::cli::config::{self, BackendChoice, PoolChoice};
use crate::engine::home::Home;
use crate::engine::open::Initialised;
use crate::engine::{Engine, Settings};

/// Make the store: in place on Btrfs and on XFS, elsewhere in a pool in a file beside it
///
/// --backend and --pool-fs together replace what the configuration file says of either.
#[derive(clap::Args, Debug)]
pub struct Init {
    /// How the store keeps its trees: in place where the filesystem can, else in a pool that can [default: auto]
    #[arg(long, value_enum, env = "REFLINKD_BACKEND")]
    backend: Option<BackendChoice>,
    /// Make a pool of this filesystem, whatever the directory lies on; xfs needs mkfs.xfs
    #[arg(long, value_enum, value_name = "FILESYSTEM", env = "REFLINKD_POOL_FS")]
    pool_fs: Option<PoolChoice>,
    /// Size of a new pool, or the one that an existing pool grows to; it takes room only as it fills [default: 20G]
    #[arg(long, value_name = "BYTES", env = "REFLINKD_POOL_SIZE", value_parser = format::parse_size)]
    pool_size: Option<u64>,
}

impl Init {
    pub fn run(self, mut settings: Settings, out: &mut Output) -> Result<()> {
        let chosen = config::layout(self.backend, self.pool_fs).unwrap_or_else(|error| {
            crate::cli::Cli::command().error(clap::error::ErrorKind::ArgumentConflict, error).exit()
        });
        settings.layout = chosen.unwrap_or(settings.layout);
        settings.pool_size = self.pool_size.unwrap_or(settings.pool_size);
        let pool_size = settings.pool_size;
        let (engine, done) = Engine::init(settings)?;
        if let (Initialised::Unchanged, Some(size)) = (done, self.pool_size)
            && engine.grow_pool(size)?
        {
            return out.line(format_args!("{}.pool has grown to {}", engine.root().display(), format::size(size)));
        }
        let root = engine.root().display();
        out.line(match done {
            Initialised::Unchanged => format!("{root} is a store already"),
            Initialised::Made(Home::InPlace(kind)) => {
                format!("made a store at {root}, in place, with the backend {}", kind.name())
            }
            Initialised::Made(Home::Pool(fs)) => {
                format!("made a store at {root}, in a pool of {fs} of {} in {root}.pool", format::size(pool_size))
            }
        })
    }
}
