use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::{Output, format, load};
use crate::engine::Engine;
use crate::engine::cp::{CopyOptions, End};
use crate::{Error, Kind, Result};

/// Copy files and directories between a container and the host, or two containers
///
/// As `docker cp` has it: a file goes to DEST, or into it if that is a directory; a directory becomes DEST if there is
/// nothing, or goes into it; with `/.` at the end of SRC only what is in the directory is copied. Parents of DEST
/// are not made. On one filesystem files share their blocks. The container may be running.
///
/// What has a colon is a container's path, unless it begins with `/` or `.`. With `-` as SRC a tar from standard input is
/// extracted to the directory DEST; as DEST, SRC is written to standard output as a tar.
#[derive(clap::Args, Debug)]
pub struct Cp {
    /// Keep owners; else files are root's in a container, and the caller's on the host
    #[arg(short, long)]
    archive: bool,
    /// If SRC is a link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Don't say what was copied
    #[arg(short, long)]
    quiet: bool,
    /// CONTAINER:PATH (or CONTAINER@LABEL:PATH of a snapshot), a path on the host, or `-`
    #[arg(value_name = "SRC")]
    source: OsString,
    /// CONTAINER:PATH, a path on the host, or `-`
    #[arg(value_name = "DEST")]
    destination: OsString,
}

/// What an argument means.
#[derive(Debug, PartialEq, Eq)]
enum Argument {
    Stream,
    End(End),
}

impl Cp {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let options = CopyOptions { owners: self.archive, follow: self.follow_link };
        load::stop_on_signals(engine)?;
        let shown = self.destination.as_bytes().escape_ascii();
        let bytes = match (argument(&self.source)?, argument(&self.destination)?) {
            (Argument::End(End::Host(_)) | Argument::Stream, Argument::End(End::Host(_)) | Argument::Stream) => {
                return Err(Error::new(Kind::Invalid, "neither SRC nor DEST is in a container")
                    .with_hint("name one as CONTAINER:PATH"));
            }
            (Argument::Stream, Argument::End(End::Container { name, path })) => {
                if std::io::stdin().is_terminal() {
                    return Err(Error::new(Kind::Invalid, "standard input is a terminal").with_hint("pipe a tar in"));
                }
                let summary = engine.copy_tar_in(std::io::stdin(), &name, &path)?;
                if summary.foreign_attributes > 0 {
                    out.warn(format_args!("left out {} attributes of other systems", summary.foreign_attributes));
                }
                summary.bytes
            }
            (Argument::End(End::Container { name, path }), Argument::Stream) => {
                if std::io::stdout().is_terminal() {
                    let why = "a tar would be written to the terminal";
                    return Err(Error::new(Kind::Invalid, why).with_hint("send it to a file or a program"));
                }
                let packed = engine.copy_tar_out(&name, &path, self.follow_link, out)?;
                if packed.left_out > 0 {
                    out.warn(format_args!("left out {} sockets", packed.left_out));
                }
                return Ok(());
            }
            (Argument::End(from), Argument::End(to)) => {
                let copied = engine.copy(&from, &to, options)?;
                if copied.unheld > 0 {
                    out.warn(format_args!("left out {} attributes that {shown} has no place for", copied.unheld));
                }
                if copied.sockets > 0 {
                    out.warn(format_args!("left out {} sockets", copied.sockets));
                }
                copied.bytes
            }
        };
        if !self.quiet && std::io::stderr().is_terminal() {
            out.note(format_args!("Successfully copied {} to {shown}", format::size(bytes)));
        }
        Ok(())
    }
}

/// Tell a container's path from one of the host, as Docker does.
fn argument(argument: &OsStr) -> Result<Argument> {
    let bytes = argument.as_bytes();
    if bytes == b"-" {
        return Ok(Argument::Stream);
    }
    let host = || Ok(Argument::End(End::Host(PathBuf::from(argument))));
    if bytes.is_empty() {
        return Err(Error::new(Kind::Invalid, "a path is empty").with_hint("`.` is the working directory"));
    }
    if matches!(bytes[0], b'/' | b'.') {
        return host();
    }
    match bytes.iter().position(|&b| b == b':') {
        None => host(),
        Some(colon) => Ok(Argument::End(End::Container {
            name: String::from_utf8_lossy(&bytes[..colon]).into_owned(),
            path: PathBuf::from(OsStr::from_bytes(&bytes[colon + 1..])),
        })),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_makes_a_container_unless_the_path_says_otherwise() {
        let read = |text: &str| argument(OsStr::new(text)).unwrap();
        let host = |path: &str| Argument::End(End::Host(PathBuf::from(path)));
        let container = |name: &str, path: &str| {
            Argument::End(End::Container { name: name.to_string(), path: PathBuf::from(path) })
        };
        assert_eq!(read("-"), Argument::Stream);
        assert_eq!(read("web1:/etc/a:b"), container("web1", "/etc/a:b"));
        assert_eq!(read("web1:etc"), container("web1", "etc"));
        assert_eq!(read("file"), host("file"));
        assert_eq!(read("./file:name"), host("./file:name"));
        assert_eq!(read("../file:name"), host("../file:name"));
        assert_eq!(read("/tmp/file:name"), host("/tmp/file:name"));
        assert!(argument(OsStr::new("")).is_err());
    }
}
