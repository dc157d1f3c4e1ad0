//! What the user sees: lines and tables on standard output, warnings and errors on standard error.
#![allow(clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Write};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

use crate::{Context, Error, Kind, Result};

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    #[default]
    Table,
    /// An array of objects; sizes in bytes, times in RFC 3339
    Json,
}

/// Standard output and standard error of one command.
pub(super) struct Output {
    out: BufWriter<io::Stdout>,
    closed: bool,
    damage: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { out: BufWriter::new(io::stdout()), closed: false, damage: false }
    }

    /// One line on standard output.
    pub(super) fn line(&mut self, line: impl Display) -> Result<()> {
        let written = writeln!(self.out, "{line}");
        self.written(written)
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.out.write_all(bytes);
        self.written(written)
    }

    /// A list: a table of `cells` under `header`, or the rows as they serialise.
    pub(super) fn list<T: Serialize>(
        &mut self,
        format: Format,
        rows: &[T],
        header: &[&str],
        cells: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        match format {
            Format::Json => self.json(&rows),
            Format::Table => self.table(header, rows.iter().map(cells).collect()),
        }
    }

    pub(super) fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let json = serde_json::to_string_pretty(value)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write JSON: {e}")))?;
        self.line(json)
    }

    /// Columns as wide as they need, three blanks between: Docker's look, and never wrapped. What cells say of images
    /// comes from outside, and must not speak to the terminal.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> Result<()> {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(header.iter().map(ToString::to_string));
        table.add_rows(rows.into_iter().map(|cells| cells.into_iter().map(printable).collect::<Vec<_>>()));
        for column in table.column_iter_mut() {
            column.set_padding((0, 3)).set_cell_alignment(CellAlignment::Left);
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(4)));
        }
        for line in table.lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Something that the user should know, on standard error.
    pub(super) fn warn(&mut self, warning: impl Display) {
        eprintln!("warning: {}", printable(warning.to_string()));
    }

    /// What was done, on standard error.
    pub(super) fn note(&mut self, note: impl Display) {
        eprintln!("{}", printable(note.to_string()));
    }

    /// A failure, and the way out. Names of processes and subvolumes are in some, and a container chooses those.
    pub(super) fn error(&mut self, error: &Error) {
        let _ = self.out.flush();
        eprintln!("reflinkd: {}", printable(error.to_string()));
        if let Some(hint) = error.hint() {
            eprintln!("hint: {}", printable(hint.to_string()));
        }
    }

    /// Ask a question on the terminal; without one the answer is no.
    pub(super) fn confirm(&mut self, question: &str) -> Result<bool> {
        self.flush()?;
        if !io::stdin().is_terminal() {
            return Ok(false);
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).context(|| "read the answer")?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        let flushed = self.out.flush();
        self.written(flushed)
    }

    /// Whether the reader of our output went away (`reflinkd ps | head -1`): no failure of ours.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The command did what it should, and that is bad news: its exit code is another one.
    pub(super) fn found_damage(&mut self) {
        self.damage = true;
    }

    pub(super) fn has_found_damage(&self) -> bool {
        self.damage
    }

    fn written(&mut self, written: io::Result<()>) -> Result<()> {
        if let Err(e) = &written {
            self.closed |= e.kind() == io::ErrorKind::BrokenPipe;
        }
        written.context(|| "write to standard output")
    }
}

/// Bytes as they are, for whoever writes them piece by piece.
impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|e| self.closed |= e.kind() == io::ErrorKind::BrokenPipe)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The text with control characters escaped, and those that turn the direction of writing.
fn printable(text: String) -> String {
    let speaks = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !text.contains(speaks) {
        return text;
    }
    let shown = |c: char| if speaks(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(shown).collect()
}

/// Logs on standard error: warnings, or everything with `--debug`; `REFLINKD_LOG` takes a filter.
pub(super) fn start_tracing(debug: bool) {
    use tracing_subscriber::EnvFilter;
    let default = if debug { "reflinkd=debug" } else { "reflinkd=warn" };
    let filter = EnvFilter::try_from_env("REFLINKD_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .init();
}
