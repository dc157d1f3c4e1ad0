//! What the programs of the bench print, and how they take times.

use std::error::Error;
use std::time::Instant;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Milliseconds that `act` takes.
pub(crate) fn timed<T>(act: impl FnOnce() -> Result<T>) -> Result<f64> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

pub(crate) fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A row of the table, and what we aim at.
#[derive(serde::Serialize)]
pub(crate) struct Row {
    row: &'static str,
    ours_ms: f64,
    limit_ms: Option<f64>,
    ratio: Option<f64>,
    most_ms: Option<f64>,
    most_ratio: Option<f64>,
}

// Each program that includes this uses another part of it.
#[allow(dead_code)]
impl Row {
    pub(crate) fn new(row: &'static str, ours_ms: f64) -> Self {
        Self { row, ours_ms, limit_ms: None, ratio: None, most_ms: None, most_ratio: None }
    }

    pub(crate) fn limit(self, ms: f64) -> Self {
        Self { limit_ms: Some(ms), ratio: Some(self.ours_ms / ms), ..self }
    }

    pub(crate) fn most_ms(self, ms: f64) -> Self {
        Self { most_ms: Some(ms), ..self }
    }

    pub(crate) fn most_ratio(self, ratio: f64) -> Self {
        Self { most_ratio: Some(ratio), ..self }
    }
}
