//! Which snapshots a rule keeps: the newest of each of the last hours, days, weeks, months or years that have one.
//!
//! `hourly=24,daily=7` keeps, of the newest 24 different hours in which there is a snapshot, the newest one each, and of the
//! newest 7 different days likewise; a snapshot that either keeps stays. Periods are those of UTC, weeks begin on
//! Mondays. Hours in which none was taken don't count: a machine that was off loses nothing by it.

use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::{Error, Kind, Result};

/// How many of each period to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep(Vec<(Period, usize)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Period {
    /// Whatever the time.
    Last,
    Hour,
    Day,
    Week,
    Month,
    Year,
}

impl Period {
    const NAMES: [(&'static str, Self); 6] = [
        ("last", Self::Last),
        ("hourly", Self::Hour),
        ("daily", Self::Day),
        ("weekly", Self::Week),
        ("monthly", Self::Month),
        ("yearly", Self::Year),
    ];

    /// Equal for times of one period.
    fn of(self, time: Timestamp) -> String {
        let format = match self {
            Self::Last => return time.to_string(),
            Self::Hour => "%Y-%m-%dT%H",
            Self::Day => "%Y-%m-%d",
            Self::Week => "%G-W%V",
            Self::Month => "%Y-%m",
            Self::Year => "%Y",
        };
        time.to_zoned(TimeZone::UTC).strftime(format).to_string()
    }
}

impl Keep {
    /// Which of the times to keep, in their order.
    #[must_use]
    pub fn choose(&self, times: &[Timestamp]) -> Vec<bool> {
        let mut newest_first: Vec<_> = (0..times.len()).collect();
        newest_first.sort_by_key(|&at| std::cmp::Reverse((times[at], at)));
        let mut kept = vec![false; times.len()];
        for &(period, count) in &self.0 {
            let mut seen = Vec::new();
            for &at in &newest_first {
                let this = period.of(times[at]);
                if period != Period::Last && seen.last() == Some(&this) {
                    continue;
                }
                if seen.len() == count {
                    break;
                }
                seen.push(this);
                kept[at] = true;
            }
        }
        kept
    }
}

impl FromStr for Keep {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let invalid = |why: String| {
            Error::new(Kind::Invalid, format!("invalid rule {text:?}: {why}"))
                .with_hint("a rule is like hourly=24,daily=7; last, weekly, monthly and yearly are known, too")
        };
        let mut rule: Vec<(Period, usize)> = Vec::new();
        for part in text.split(',') {
            let (name, count) = part.split_once('=').ok_or_else(|| invalid(format!("{part:?} has no number")))?;
            let period = Period::NAMES.iter().find(|(known, _)| *known == name.trim());
            let (_, period) = period.ok_or_else(|| invalid(format!("{name:?} is no period")))?;
            let count = count.trim().parse().map_err(|_| invalid(format!("{count:?} is no number")))?;
            if rule.iter().any(|(known, _)| known == period) {
                return Err(invalid(format!("{name} is there twice")));
            }
            rule.push((*period, count));
        }
        // Else the snapshot that was just taken would go at once.
        if rule.iter().all(|(_, count)| *count == 0) {
            return Err(invalid("it keeps nothing".into()));
        }
        Ok(Self(rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(rule: &str, times: &[&str]) -> Vec<String> {
        let parsed: Vec<Timestamp> = times.iter().map(|time| time.parse().expect("a time")).collect();
        let chosen = rule.parse::<Keep>().expect("a rule").choose(&parsed);
        times.iter().zip(chosen).filter(|(_, kept)| *kept).map(|(time, _)| (*time).to_string()).collect()
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let times = [
            "2026-01-01T10:05:00Z",
            "2026-01-02T10:05:00Z",
            "2026-01-02T23:05:00Z",
            "2026-01-03T00:10:00Z",
            "2026-01-03T00:40:00Z",
            "2026-01-03T02:00:00Z",
        ];
        assert_eq!(kept("hourly=2", &times), [times[4], times[5]]);
        assert_eq!(kept("daily=2", &times), [times[2], times[5]]);
        assert_eq!(kept("hourly=1,daily=9", &times), [times[0], times[2], times[5]]);
        assert_eq!(kept("last=3", &times), times[3..]);
        assert_eq!(kept("daily=0,last=1", &times), [times[5]]);
    }

    #[test]
    fn weeks_months_and_years_have_their_borders() {
        // The 4th of January 2026 is a Sunday.
        let times = ["2025-12-31T23:59:59Z", "2026-01-04T23:00:00Z", "2026-01-05T00:00:00Z", "2026-02-01T00:00:00Z"];
        assert_eq!(kept("weekly=4", &times), times[1..], "the last day of 2025 is in the week of that Sunday");
        assert_eq!(kept("monthly=2", &times), [times[2], times[3]]);
        assert_eq!(kept("yearly=2", &times), [times[0], times[3]]);
    }

    #[test]
    fn a_clock_that_went_back_changes_nothing() {
        let times = ["2026-01-02T10:00:00Z", "2026-01-01T10:00:00Z", "2026-01-02T09:00:00Z"];
        assert_eq!(kept("daily=1", &times), [times[0]]);
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for rule in ["", "hourly", "hourly=", "hourly=-1", "hourly=x", "fortnightly=2", "daily=1,daily=2", "daily=0"]
        {
            assert!(rule.parse::<Keep>().is_err(), "{rule}");
        }
    }
}
