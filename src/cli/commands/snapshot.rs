use super::Output;
use crate::engine::Engine;
use crate::engine::keep::Keep;
use crate::store::Record;
use crate::{Kind, Result};

/// Keep a container as it is now, running or not; prints NAME@LABEL
///
/// On Btrfs in one step, whatever is in it; on XFS file by file. A snapshot goes with its container, and with simple quotas it
/// counts against that one's size limit as long as it is there. With --keep the snapshot is named by the time, and those that
/// an earlier --keep has made and this one doesn't keep are removed; without a NAME that is done for each container.
#[derive(clap::Args, Debug)]
pub struct Snapshot {
    /// Name or ID of the container
    #[arg(required_unless_present = "keep")]
    name: Option<String>,
    /// Label; made of the time if not given
    #[arg(conflicts_with = "keep")]
    label: Option<String>,
    /// Keep the newest of so many hours, days, ... that have one: hourly=24,daily=7 (also last, weekly, monthly, yearly)
    #[arg(long, value_name = "RULE")]
    keep: Option<String>,
}

impl Snapshot {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let keep = self.keep.as_deref().map(str::parse::<Keep>).transpose()?;
        let names = match self.name {
            Some(name) => vec![name],
            None => writable(&engine.containers()?),
        };
        crate::cli::each(&names, out, |name, out| match &keep {
            None => out.line(engine.snapshot(name, self.label.as_deref())?),
            Some(keep) => {
                let kept = match engine.snapshot_and_keep(name, keep) {
                    // Of all containers, one may have been removed meanwhile.
                    Err(e) if e.kind() == Kind::NotFound && names.len() > 1 => return Ok(()),
                    kept => kept?,
                };
                out.line(&kept.taken)?;
                kept.removed.iter().try_for_each(|name| out.line(format!("removed {name}")))
            }
        })
    }
}

/// The names of those that can change.
fn writable(containers: &[Record]) -> Vec<String> {
    let writable = containers.iter().filter_map(Record::container).filter(|container| !container.read_only);
    writable.map(|container| container.name.clone()).collect()
}
