use serde_json::json;

use super::{Output, format};
use crate::Result;
use crate::cli::output::Format;
use crate::engine::Engine;

/// Clear up what nobody needs, wait for the filesystem, and give freed space back to the host
#[derive(clap::Args, Debug)]
pub struct Gc {
    /// Only say what would be removed, and why
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

impl Gc {
    pub fn run(self, engine: &Engine, out: &mut Output) -> Result<()> {
        let collected = engine.collect_garbage(self.dry_run)?;
        for unknown in &collected.unknown {
            match unknown.hint() {
                Some(hint) => out.warn(format_args!("{unknown} (hint: {hint})")),
                None => out.warn(unknown),
            }
        }
        if self.format == Format::Json {
            let rows: Vec<_> = collected
                .garbage
                .iter()
                .map(|g| json!({ "type": g.kind, "id": g.id, "reason": g.reason, "size": g.size }))
                .collect();
            return out.json(&rows);
        }
        if !collected.garbage.is_empty() {
            let cells = collected.garbage.iter().map(|garbage| {
                let size = garbage.size.map_or_else(|| "-".into(), format::size);
                vec![garbage.kind.to_string(), garbage.id.clone(), size, garbage.reason.to_string()]
            });
            out.table(&["TYPE", "ID", "SIZE", "REASON"], cells.collect())?;
        }
        match (self.dry_run, collected.garbage.is_empty()) {
            (true, true) => out.line("nothing to remove"),
            (true, false) => Ok(()),
            (false, _) => out.line(format_args!(
                "removed {}; the filesystem uses {} less",
                collected.garbage.len(),
                format::size(collected.freed)
            )),
        }
    }
}
