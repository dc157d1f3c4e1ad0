use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use super::Output;
use super::load::stop_on_signals;
use crate::engine::Engine;
use crate::layer::pack::Packed;
use crate::layer::sink::{Plain, Sink};
use crate::{Context, Error, Kind, Result};

/// Write a container's whole root filesystem as a tar, which `import` makes an image of
///
/// On Btrfs it is as of one moment. Where a clone costs a few calls for each file (XFS), the files are read as they are
/// while others may write to them. Sockets are left out. What has been written to FILE appears there when it is whole.
#[derive(clap::Args, Debug)]
pub struct Export {
    /// Container: name, or ID prefix; NAME@LABEL for a snapshot
    name: String,
    /// Write to this file, not to standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Export {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let Some(path) = self.output.filter(|path| path.as_os_str() != "-") else {
            if std::io::stdout().is_terminal() {
                return Err(Error::new(Kind::Invalid, "standard output is a terminal")
                    .with_hint("name a file with -o, or pipe it on"));
            }
            stop_on_signals(engine)?;
            let packed = engine.export(&self.name, &mut ToOutput(out))?;
            return report(&packed, out);
        };
        stop_on_signals(engine)?;
        let packed = to_file(&path, |sink| engine.export(&self.name, sink))?;
        report(&packed, out)
    }
}

fn report(packed: &Packed, out: &mut Output) -> Result<()> {
    match packed.left_out {
        0 => {}
        1 => out.warn("a socket was left out"),
        sockets => out.warn(format_args!("{sockets} sockets were left out")),
    }
    Ok(())
}

/// Write a file that appears whole or not at all. What is there and no file, a FIFO or device, is written to as it is.
fn to_file<T>(path: &Path, write: impl FnOnce(&mut dyn Sink) -> Result<T>) -> Result<T> {
    let call = || format!("cannot write {}", path.display());
    // Through a link to the file itself.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    if fs::metadata(&path).is_ok_and(|there| !there.is_file()) {
        let file = File::options().write(true).open(&path).context(call)?;
        return written(Plain(BufWriter::new(file)), write).map(|(_, done)| done);
    }
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let temporary = tempfile::NamedTempFile::new_in(directory).context(call)?;
    let (temporary, done) = written(Plain(BufWriter::new(temporary)), write)?;
    temporary.as_file().sync_all().context(call)?;
    temporary.persist(&path).map_err(|e| e.error).context(call)?;
    Ok(done)
}

fn written<W: std::io::Write, T>(
    mut sink: Plain<BufWriter<W>>,
    write: impl FnOnce(&mut dyn Sink) -> Result<T>,
) -> Result<(W, T)> {
    let done = write(&mut sink)?;
    let file = sink.0.into_inner().map_err(std::io::IntoInnerError::into_error).context(|| "write the tar")?;
    Ok((file, done))
}

/// Standard output, whose reader may go away.
struct ToOutput<'a>(&'a mut Output);

impl Sink for ToOutput<'_> {
    fn literal(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.bytes(bytes)
    }

    fn content(&mut self, _: &[u8], _: u64, bytes: &[u8]) -> Result<()> {
        self.0.bytes(bytes)
    }
}
