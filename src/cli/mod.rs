//! The command line: arguments, tables, exit codes. The only place that prints.
//!
//! Exit codes: 0 done; 1 it could not be done, with one `reflinkd: ...` on standard error and a `hint:` where there
//! is a way out; 2 wrong usage; 3 `check` has found damage; 130 interrupted.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::engine::Engine;
use crate::engine::room::MAKE_ROOM;
use crate::{Error, Kind, Result};

mod commands;
mod config;
mod format;
mod output;
mod progress;
mod registries;

use commands as c;
use output::Output;

/// Containers from images by Btrfs snapshots and XFS reflinks: made in milliseconds, accounted to the byte
#[derive(Parser, Debug)]
#[command(name = "reflinkd", version, about, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Directory of the store [default: /var/lib/reflinkd]
    #[arg(long, global = true, env = "REFLINKD_ROOT", value_name = "DIR")]
    root: Option<PathBuf>,
    /// Configuration file [default: /etc/reflinkd/config.toml]
    #[arg(long, global = true, env = "REFLINKD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Leave slow work (spare clones, emptying what was removed) to `reflinkd tend`, run by a timer
    #[arg(long, global = true, env = "REFLINKD_NO_TEND", hide = true, value_parser = FalseyValueParser::new())]
    no_tend: bool,
    /// Say on standard error what is being done
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    // Making and using containers
    Create(c::create::Create),
    Ps(c::ps::Ps),
    Diff(c::diff::Diff),
    Cp(c::cp::Cp),
    Export(c::export::Export),
    Mount(c::mount::Mount),
    Bundle(c::bundle::Bundle),
    Rename(c::rename::Rename),
    Update(c::update::Update),
    Clone(c::clone::Clone),
    Commit(c::commit::Commit),
    Snapshot(c::snapshot::Snapshot),
    Snapshots(c::snapshots::Snapshots),
    Rollback(c::rollback::Rollback),
    Reset(c::reset::Reset),
    Rm(c::rm::Rm),
    // Images
    Pull(c::pull::Pull),
    Push(c::push::Push),
    Load(c::load::Load),
    Import(c::import::Import),
    Save(c::save::Save),
    Images(c::images::Images),
    History(c::history::History),
    Tag(c::tag::Tag),
    Rmi(c::rmi::Rmi),
    Layers(c::layers::Layers),
    Inspect(c::inspect::Inspect),
    // The store
    Init(c::init::Init),
    Info(c::info::Info),
    Df(c::df::Df),
    Gc(c::gc::Gc),
    Check(c::check::Check),
    #[command(hide = true)]
    Tend(c::tend::Tend),
    Quota(c::quota::Quota),
    Destroy(c::destroy::Destroy),
    Serve(c::serve::Serve),
    // The program
    Completions(c::completions::Completions),
    Man(c::man::Man),
}

/// The whole program.
pub fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    let cli = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    output::start_tracing(cli.debug);
    let mut out = Output::new();
    let done = cli.run(&mut out).and_then(|()| out.flush());
    match done {
        Ok(()) if out.has_found_damage() => ExitCode::from(3),
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if out.is_closed() => {
            tracing::debug!("nobody reads our output: {e}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            out.error(&e);
            ExitCode::from(if e.kind() == Kind::Interrupted { 130 } else { 1 })
        }
    }
}

impl Cli {
    fn run(self, out: &mut Output) -> Result<()> {
        // These need no store.
        match self.command {
            Command::Completions(args) => return args.run(out),
            Command::Man(args) => return args.run(out),
            _ => {}
        }
        let (mut settings, doors) = config::settings(self.root, self.config.as_deref())?;
        settings.tend &= !self.no_tend;
        match self.command {
            Command::Init(args) => return args.run(settings, out),
            Command::Tend(args) => return args.run(settings, out),
            Command::Serve(args) if args.probe => return args.probe(doors),
            Command::Check(args) => {
                args.limits.apply(&mut settings);
                return args.run(settings, out);
            }
            Command::Load(ref args) => args.limits.apply(&mut settings),
            Command::Pull(ref args) => args.limits.apply(&mut settings),
            Command::Import(ref args) => args.limits.apply(&mut settings),
            _ => {}
        }
        let engine = Engine::open(settings)?;
        let (leaves_work, writes) = (self.command.leaves_work(), self.command.writes_to_the_store());
        let done = match self.command {
            Command::Create(args) => args.run(&engine, out),
            Command::Ps(args) => args.run(&engine, out),
            Command::Diff(args) => args.run(&engine, out),
            Command::Cp(args) => args.run(&engine, out),
            Command::Export(args) => args.run(&engine, out),
            Command::Mount(args) => args.run(&engine, out),
            Command::Bundle(args) => args.run(&engine, out),
            Command::Rename(args) => args.run(&engine, out),
            Command::Update(args) => args.run(&engine, out),
            Command::Clone(args) => args.run(&engine, out),
            Command::Commit(args) => args.run(&engine, out),
            Command::Snapshot(args) => args.run(&engine, out),
            Command::Snapshots(args) => args.run(&engine, out),
            Command::Rollback(args) => args.run(&engine, out),
            Command::Reset(args) => args.run(&engine, out),
            Command::Rm(args) => args.run(&engine, out),
            Command::Pull(args) => args.run(&engine, out),
            Command::Push(args) => args.run(&engine, out),
            Command::Load(args) => args.run(&engine, out),
            Command::Import(args) => args.run(&engine, out),
            Command::Save(args) => args.run(&engine),
            Command::Images(args) => args.run(&engine, out),
            Command::History(args) => args.run(&engine, out),
            Command::Tag(args) => args.run(&engine, out),
            Command::Rmi(args) => args.run(&engine, out),
            Command::Layers(args) => args.run(&engine, out),
            Command::Inspect(args) => args.run(&engine, out),
            Command::Info(args) => args.run(&engine, out),
            Command::Df(args) => args.run(&engine, out),
            Command::Gc(args) => args.run(&engine, out),
            Command::Quota(args) => args.run(&engine, out),
            Command::Destroy(args) => return args.run(engine, out),
            Command::Serve(args) => return args.run(engine, doors),
            Command::Init(_) | Command::Tend(_) | Command::Check(_) | Command::Completions(_) | Command::Man(_) => {
                Ok(())
            }
        };
        let done = done.map_err(|e| if writes && e.kind() == Kind::NoSpace { e.with_hint(MAKE_ROOM) } else { e });
        // Also after a failure: what it undid may have to be cleaned up.
        if leaves_work {
            c::tend::start_if_needed(&engine, self.config.as_deref());
        }
        done
    }
}

impl Command {
    /// Whether there is no room in the store if there is none for it.
    fn writes_to_the_store(&self) -> bool {
        self.leaves_work() || matches!(self, Self::Push(_) | Self::Tag(_) | Self::Rename(_) | Self::Update(_))
    }

    /// Whether it may leave something to do for whoever tends the store.
    fn leaves_work(&self) -> bool {
        matches!(
            self,
            Self::Create(_)
                | Self::Clone(_)
                | Self::Commit(_)
                | Self::Snapshot(_)
                | Self::Rollback(_)
                | Self::Reset(_)
                | Self::Rm(_)
                | Self::Rmi(_)
                | Self::Pull(_)
                | Self::Load(_)
                | Self::Import(_)
        )
    }
}

/// Do something for each name; go on after a failure, as Docker and podman do, and fail at the end.
fn each(names: &[String], out: &mut Output, mut verb: impl FnMut(&str, &mut Output) -> Result<()>) -> Result<()> {
    let mut last: Option<Error> = None;
    for name in names {
        if let Err(e) = verb(name, out)
            && let Some(earlier) = last.replace(e)
        {
            out.error(&earlier);
        }
    }
    last.map_or(Ok(()), Err)
}
