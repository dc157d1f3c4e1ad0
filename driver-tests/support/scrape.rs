//! What Prometheus reads, held to its text format by a parser that forgives nothing.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by name and labels, as they are written.
#[derive(Debug)]
pub(crate) struct Scrape(BTreeMap<String, f64>);

fn is_name(name: &str) -> bool {
    name.starts_with("reflinkd_") && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// A sample's name and its labels.
fn parts(series: &str) -> (&str, Vec<(&str, &str)>) {
    let Some((name, labels)) = series.split_once('{') else { return (series, Vec::new()) };
    let labels = labels.strip_suffix('}').unwrap_or_else(|| panic!("{series}"));
    let pair = |label: &str| -> Option<(usize, usize)> {
        let equals = label.find("=\"")?;
        Some((equals, label.len().checked_sub(1).filter(|&end| label.as_bytes()[end] == b'"')?))
    };
    let pairs = labels.split(',').filter(|label| !label.is_empty()).map(|label| {
        let (equals, end) = pair(label).unwrap_or_else(|| panic!("a label in {series}"));
        (&label[..equals], &label[equals + 2..end])
    });
    (name, pairs.collect())
}

impl Scrape {
    pub(crate) fn parse(text: &str) -> Self {
        let (mut kinds, mut helped) = (BTreeMap::new(), BTreeSet::new());
        let mut samples = BTreeMap::new();
        let mut family = "";
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a text");
                assert!(is_name(name) && help.len() > 5 && helped.insert(name), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type");
                assert!(helped.contains(name) && kinds.insert(name, kind).is_none(), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                family = name;
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let (name, _) = parts(series);
                let suffix = name.strip_prefix(family).unwrap_or_else(|| panic!("{line} isn't of {family}"));
                let histogram = kinds[family] == "histogram";
                assert!(if histogram { ["_bucket", "_sum", "_count"].contains(&suffix) } else { suffix.is_empty() });
                let value: f64 = value.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
                assert!(samples.insert(series.to_string(), value).is_none(), "{line} is there twice");
            }
        }
        let scrape = Self(samples);
        scrape.check_buckets();
        scrape
    }

    /// The last bucket has all.
    fn check_buckets(&self) {
        for (series, count) in &self.0 {
            let (name, labels) = parts(series);
            let Some(bucket) = labels.iter().find(|(label, _)| *label == "le") else { continue };
            assert!(name.ends_with("_bucket"), "{series}");
            if bucket.1 == "+Inf" {
                let rest: Vec<_> = labels.iter().filter(|(label, _)| *label != "le").copied().collect();
                assert_eq!(self.sum(&name.replace("_bucket", "_count"), &rest), *count, "{series}");
            }
        }
    }

    /// All samples of this name with these labels, together.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let matches = |series: &str| {
            let (own, all) = parts(series);
            own == name && labels.iter().all(|label| all.contains(label))
        };
        self.0.iter().filter(|(series, _)| matches(series)).map(|(_, value)| value).sum()
    }

    pub(crate) fn value(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0))
    }
}
