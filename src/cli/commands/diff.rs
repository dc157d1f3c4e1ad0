use std::cmp::Reverse;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::Serialize;

use super::{Output, format};
use crate::Result;
use crate::backend::changes::EntryKind;
use crate::cli::output::Format;
use crate::engine::Engine;
use crate::engine::diff::{DiffChange, DiffLine};

/// List what a container has added (A), changed (C) and deleted (D)
#[derive(clap::Args, Debug)]
pub struct Diff {
    /// Container: name, or ID prefix; NAME@LABEL for a snapshot
    name: String,
    /// Show what each path takes on disk besides the image, the biggest first; directories with all below them
    #[arg(short, long)]
    size: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A row of `diff --format json`.
#[derive(Serialize)]
struct Row {
    change: DiffChange,
    /// From the container's root; what is no UTF-8 is replaced
    path: String,
    /// The path's bytes in hexadecimal digits, if it is no UTF-8
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: EntryKind,
    /// Bytes on disk that the image doesn't hold (--size)
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl Diff {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let diff = engine.diff(&self.name, self.size)?;
        let mut lines = diff.lines;
        // Stable: a directory stays before what fills it.
        lines.sort_by_key(|line| Reverse(line.size));
        match (self.format, diff.size) {
            (Format::Json, _) => out.json(&lines.iter().map(row).collect::<Vec<_>>()),
            (Format::Table, None) => {
                lines.iter().try_for_each(|line| out.line(format!("{} {}", letter(line.change), shown(&line.path))))
            }
            (Format::Table, Some(total)) => {
                let cells = |line: &DiffLine| {
                    let size = line.size.map(format::size).unwrap_or_default();
                    vec![size, letter(line.change).to_string(), shown(&line.path)]
                };
                let all = vec![format::size(total), String::new(), "/".to_string()];
                out.table(&["SIZE", "", "PATH"], std::iter::once(all).chain(lines.iter().map(cells)).collect())
            }
        }
    }
}

fn letter(change: DiffChange) -> char {
    match change {
        DiffChange::Added => 'A',
        DiffChange::Changed => 'C',
        DiffChange::Deleted => 'D',
    }
}

/// A path as a terminal may get it: what would not be printed is `\n`, `\t`, `\r` or `\xNN`.
fn shown(path: &Path) -> String {
    let mut text = String::from("/");
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.to_string().bytes().map(escaped)) } else { text.push(c) }
        }
        text.extend(chunk.invalid().iter().copied().map(escaped));
    }
    text
}

fn escaped(byte: u8) -> String {
    std::ascii::escape_default(byte).to_string()
}

fn row(line: &DiffLine) -> Row {
    let bytes = line.path.as_os_str().as_bytes();
    let hex = || bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Row {
        change: line.change,
        path: format!("/{}", line.path.display()),
        path_hex: line.path.to_str().is_none().then(hex),
        kind: line.kind,
        size: line.size,
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let path = |bytes: &[u8]| shown(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(path(b"etc/caf\xc3\xa9 one"), "/etc/café one");
        assert_eq!(path(b"a\nb\t\x1b[2J\x7f"), r"/a\nb\t\x1b[2J\x7f");
        assert_eq!(path(b"\xff\xc3/\xc2\x9b1"), r"/\xff\xc3/\xc2\x9b1");
        assert_eq!(path(br"dev-disk\x2dby"), r"/dev-disk\x2dby");
    }
}
