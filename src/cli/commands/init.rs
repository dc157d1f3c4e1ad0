use super::{Output, format};
use crate::Result;
use crate::engine::open::Initialised;
use crate::engine::{Engine, Settings};

/// Make the store: in place on Btrfs, elsewhere in a Btrfs pool in a file beside it
#[derive(clap::Args, Debug)]
pub struct Init {
    /// Size of a new pool, or the one that an existing pool grows to; it takes room only as it fills [default: 20G]
    #[arg(long, value_name = "BYTES", env = "REFLINKD_POOL_SIZE", value_parser = format::parse_size)]
    pool_size: Option<u64>,
}

impl Init {
    pub fn run(self, mut settings: Settings, out: &mut Output) -> Result<()> {
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
            Initialised::InPlace => format!("made a store at {root}, on the Btrfs filesystem there"),
            Initialised::Pool => {
                format!("made a store at {root}, in a Btrfs pool of {} in {root}.pool", format::size(pool_size))
            }
        })
    }
}
