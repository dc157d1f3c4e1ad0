use serde_json::json;

use super::Output;
use super::info::limits;
use crate::backend::QuotaMode;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::{Error, Kind, Result};

/// Show or switch the quotas of the filesystem that the store lies on
#[derive(clap::Args, Debug)]
pub struct Quota {
    #[command(subcommand)]
    command: QuotaCommand,
}

#[derive(clap::Subcommand, Debug)]
enum QuotaCommand {
    /// Show the mode, and how far limits hold in it
    Status {
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Switch quotas on
    Enable {
        /// Each extent is charged to who first wrote it: cheap, never inconsistent (kernel 6.7)
        #[arg(long, required_unless_present = "full", conflicts_with = "full")]
        simple: bool,
        /// Referenced and exclusive bytes: slow with many snapshots, and may turn inconsistent
        #[arg(long)]
        full: bool,
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Switch quotas off: limits hold no longer, sizes are counted from extents
    Disable {
        /// Don't ask
        #[arg(short, long)]
        yes: bool,
    },
}

impl Quota {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        match self.command {
            QuotaCommand::Status { format } => status(engine, out, format),
            QuotaCommand::Enable { full: false, yes, .. } => switch(engine, out, QuotaMode::Simple, yes),
            QuotaCommand::Enable { full: true, yes, .. } => switch(engine, out, QuotaMode::Full, yes),
            QuotaCommand::Disable { yes } => switch(engine, out, QuotaMode::None, yes),
        }
    }
}

fn status(engine: &Engine, out: &mut Output, format: Format) -> Result<()> {
    let status = engine.quota_status()?;
    if format == Format::Json {
        let row = json!({ "mode": status.mode, "limits": limits(status.guarantee), "owned": status.owned });
        return out.json(&[row]);
    }
    out.line(format_args!("mode: {}", status.mode))?;
    out.line(limits(status.guarantee))?;
    if status.mode == QuotaMode::Inconsistent {
        out.warn("the kernel calls these numbers wrong; they are not used. `btrfs quota rescan` mends them");
    }
    Ok(())
}

fn switch(engine: &Engine, out: &mut Output, to: QuotaMode, yes: bool) -> Result<()> {
    let now = engine.quota_status()?;
    if now.mode == to {
        return out.line(format_args!("unchanged: {to}"));
    }
    // Where there is nothing to switch, the refusal is all that there is to say.
    if now.switchable {
        announce(engine, out, to, now.owned, yes)?;
    }
    engine.set_quota_mode(to)?;
    out.line(format_args!("mode: {to}"))
}

/// Say what follows, and ask where it concerns others than the store.
fn announce(engine: &Engine, out: &mut Output, to: QuotaMode, owned: bool, yes: bool) -> Result<()> {
    for consequence in consequences(to) {
        out.warn(consequence);
    }
    if !owned {
        out.warn(format_args!(
            "this concerns the whole filesystem at {}, not the store alone",
            engine.root().display()
        ));
        if !yes && !out.confirm("Switch quotas?")? {
            return Err(Error::new(Kind::Invalid, "quotas not switched: nobody said yes").with_hint("--yes says it"));
        }
    }
    Ok(())
}

fn consequences(to: QuotaMode) -> &'static [&'static str] {
    match to {
        QuotaMode::Simple => &[
            "what is written from now on is charged to who writes it; containers made before it have no limit and are \
             counted from their extents until they are reset",
            "kernels before 6.7 can't mount the filesystem any more",
        ],
        QuotaMode::Full => &[
            "every commit takes longer the more snapshots there are: 30 times with 200",
            "the numbers may turn inconsistent; subvolumes made inside a container escape its limit",
            "the first scan reads all metadata",
        ],
        QuotaMode::None | QuotaMode::Inconsistent | QuotaMode::Project => {
            &["limits hold no longer; sizes are counted from extents"]
        }
    }
}
