use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::Output;
use crate::engine::{Engine, Settings};
use crate::sys::process;
use crate::{Context, Result};

/// How often a tender looks whether somebody wants the store for himself.
const POLL: Duration = Duration::from_millis(50);
/// Enough to give way to everything else. The kernel derives a low I/O priority from it. Not SCHED_IDLE or the idle I/O
/// class: now and then it holds the index, and whoever waits for that would wait for an idle moment.
const NICE: i32 = 10;

/// Make the spare clones that are missing and empty what was removed, until there is nothing to do
///
/// Other commands start it in the background where clones and removals take time (not on Btrfs), unless
/// --no-tend or `tend = false` leaves that to a timer.
#[derive(clap::Args, Debug)]
pub struct Tend {
    /// In a session of its own, with low priority and without a word: as other commands start it
    #[arg(long, hide = true)]
    detached: bool,
}

impl Tend {
    pub fn run(self, settings: Settings, out: &mut Output) -> Result<()> {
        if self.detached {
            // Started by /proc/self/exe, it would be `exe` to ps and pgrep.
            rustix::thread::set_name(c"reflinkd").context(|| "set the process's name")?;
            rustix::process::setsid().context(|| "setsid")?;
            rustix::process::nice(NICE).context(|| "nice")?;
        }
        let Some(engine) = Engine::open_existing(settings)? else { return out.line("there is no store") };
        super::load::stop_on_signals(&engine)?;
        let requests = engine.stop_requests();
        std::thread::spawn(move || {
            while !requests.is_made() {
                std::thread::sleep(POLL);
            }
            // Perhaps in the middle of a clone, which takes seconds: what is left of it is cleared like a crash's.
            std::process::exit(0);
        });
        let tended = engine.tend()?;
        out.line(format_args!(
            "made {} spares, dropped {}, emptied {} removed trees",
            tended.made, tended.dropped, tended.emptied
        ))
    }
}

/// Leave slow work to a process of its own if a command has left any. Nothing depends on it.
pub fn start_if_needed(engine: &Engine, config: Option<&Path>) {
    match engine.needs_tending() {
        Ok(false) => {}
        Ok(true) => {
            if let Err(e) = start(engine.root(), config) {
                tracing::warn!("cannot start reflinkd tend: {e}");
            }
        }
        Err(e) => tracing::warn!("cannot tell whether the store needs tending: {e}"),
    }
}

fn start(root: &Path, config: Option<&Path>) -> Result<()> {
    process::keep_descriptors_to_ourselves()?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("reflinkd").arg("--root").arg(root);
    if let Some(config) = config {
        let config = std::path::absolute(config).context(|| format!("resolve {}", config.display()))?;
        command.arg("--config").arg(config);
    }
    command.args(["tend", "--detached"]).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // Not waited for: it outlives us.
    command.spawn().map(drop).context(|| "run /proc/self/exe")
}
