use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Output;
use super::load::{LayerLimits, stop_on_signals};
use crate::cli::output::Format;
use crate::cli::progress::Layers;
use crate::engine::check::{Audited, Check as Look, Checked, Finding, Progress, Remedy, Repaired, Severity};
use crate::engine::load::Progress as Loading;
use crate::engine::load::Silent;
use crate::engine::{Engine, Settings};
use crate::oci::{Reference, Source};
use crate::{Context, Error, Kind, Result};

/// Hold what is on disk against the records, and make right what isn't: exit code 0 if it is healthy, 3 if not
///
/// Changes nothing without --repair. Each finding has a code, a reason, and what a repair does about it; docs/json.md lists
/// them. A repair never touches a healthy thing, and makes again only the layer that is damaged.
#[derive(clap::Args, Debug)]
pub struct Check {
    /// Also read every layer, and hold its tar against its diff ID
    #[arg(long)]
    deep: bool,
    /// Make right what was found
    #[arg(long)]
    repair: bool,
    /// With --repair: only say what would be done
    #[arg(short = 'n', long, requires = "repair")]
    dry_run: bool,
    /// Where damaged layers, configurations and manifests are to come from: what `load` takes, or docker://IMAGE for what
    /// `pull IMAGE` would fetch
    #[arg(long, value_name = "ARCHIVE", requires = "repair")]
    from: Option<PathBuf>,
    /// Don't show how it goes on
    #[arg(short, long)]
    quiet: bool,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub limits: LayerLimits,
}

/// What `check --format json` prints.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    findings: Vec<Row>,
    owners: &'a [Audited],
}

#[derive(Serialize)]
struct Row {
    code: &'static str,
    severity: Severity,
    owner: Option<String>,
    object: String,
    path: Option<PathBuf>,
    reason: String,
    repair: String,
    /// `true` and `false` after a repair; null where none was tried
    repaired: Option<bool>,
    error: Option<String>,
}

impl Check {
    pub fn run(self, settings: Settings, out: &mut Output) -> Result<()> {
        let mut look = Look::open(settings.clone())?;
        stop_on_signals(look.engine())?;
        let source = self.from.as_deref().map(|from| source(look.engine(), from)).transpose()?;
        let layers = Layers::new(self.quiet);
        let deep = |deep: bool| deep.then(|| layers.as_ref().map_or(&Silent as &dyn Progress, |layers| layers));
        let checked = look.run(deep(self.deep))?;
        let (mut rows, mut healthy) = (rows(&checked, source.is_some(), &[]), checked.is_healthy());
        let mut owners = checked.owners.clone();
        if self.repair && !self.dry_run {
            let loading = layers.as_ref().map_or(&Silent as &dyn Loading, |layers| layers);
            let done = look.repair(&checked, source.as_ref(), loading)?;
            // What became of it is looked for, not believed.
            let after = Look::open(settings)?.run(deep(self.deep))?;
            healthy = after.is_healthy();
            rows = self::rows(&checked, source.is_some(), &done);
            for row in &mut rows {
                let still = after.findings.iter().any(|f| f.code.as_str() == row.code && f.object == row.object);
                row.repaired = row.repaired.map(|repaired| repaired && !still);
            }
            let new = after
                .findings
                .iter()
                .filter(|found| !checked.findings.iter().any(|f| f.code == found.code && f.object == found.object));
            rows.extend(new.map(|found| row(found, source.is_some())));
            owners.clone_from(&after.owners);
        }
        drop(layers);
        if !healthy {
            out.found_damage();
        }
        if self.json || self.format == Format::Json {
            return out.json(&Report { healthy, findings: rows, owners: &owners });
        }
        self.show(&rows, healthy, &owners, out)
    }

    fn show(&self, rows: &[Row], healthy: bool, owners: &[Audited], out: &mut Output) -> Result<()> {
        if !rows.is_empty() {
            let cells = rows.iter().map(|row| {
                let owner = row.owner.clone().unwrap_or_else(|| "-".into());
                let became = match (row.repaired, &row.error) {
                    (Some(true), _) => "done".into(),
                    (_, Some(error)) => format!("failed: {error}"),
                    (Some(false), None) => format!("not mended: {}", row.repair),
                    (None, None) => row.repair.clone(),
                };
                vec![row.code.to_string(), owner, row.object.clone(), row.reason.clone(), became]
            });
            out.table(&["CODE", "OWNER", "OBJECT", "REASON", "REPAIR"], cells.collect())?;
        }
        for owner in owners {
            let verified = if self.deep { format!(", {} verified", owner.verified) } else { String::new() };
            out.line(format_args!(
                "checked {}: trees {}, of them read-only {}{verified}; images {}",
                owner.owner, owner.trees, owner.layers, owner.images
            ))?;
        }
        if healthy {
            return out.line("healthy");
        }
        let damaged =
            rows.iter().filter(|row| row.severity == Severity::Damage && row.repaired != Some(true)).count();
        out.line(format_args!("damaged: {damaged}"))
    }
}

/// What `--from` names.
fn source(engine: &Engine, from: &Path) -> Result<Source> {
    // As skopeo and podman write what is in a registry.
    let opened = match from.to_str().and_then(|text| text.strip_prefix("docker://")) {
        Some(name) => name.parse().and_then(|name: Reference| engine.remote_source(&name)),
        None => super::load::input(from).and_then(|input| engine.open_source(input)),
    };
    opened.context(|| format!("cannot read {}", from.display()))
}

fn rows(checked: &Checked, archive: bool, done: &[Repaired]) -> Vec<Row> {
    let with_outcome = |finding: &Finding| {
        let repaired = done.iter().find(|done| {
            (done.finding.code, &done.finding.object, &done.finding.path)
                == (finding.code, &finding.object, &finding.path)
        });
        Row {
            repaired: repaired.map(|done| done.error.is_none()),
            error: repaired.and_then(|done| done.error.as_ref()).map(shown),
            ..row(finding, archive)
        }
    };
    checked.findings.iter().map(with_outcome).collect()
}

fn row(finding: &Finding, archive: bool) -> Row {
    let repair = match finding.remedy {
        Remedy::Do(what) => what.to_string(),
        Remedy::FromArchive(what) if archive => what.to_string(),
        Remedy::FromArchive(what) => format!("{what}; needs --from ARCHIVE"),
        Remedy::Left(what) => format!("none: {what}"),
    };
    Row {
        code: finding.code.as_str(),
        severity: finding.severity,
        owner: finding.owner.clone(),
        object: finding.object.clone(),
        path: finding.path.clone(),
        reason: finding.reason.clone(),
        repair,
        repaired: None,
        error: None,
    }
}

fn shown(error: &Error) -> String {
    match (error.kind(), error.hint()) {
        (Kind::Interrupted, _) | (_, None) => error.to_string(),
        (_, Some(hint)) => format!("{error} ({hint})"),
    }
}
