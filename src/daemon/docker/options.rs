//! `--storage-opt`, of dockerd and of a container.

use std::collections::BTreeMap;

use crate::{Error, Kind, Result};

const HINT: &str = "the one storage option is size, such as size=10G";

/// The size limit in a container's options. Unknown ones are errors.
pub(super) fn of_container(options: Option<&BTreeMap<String, String>>) -> Result<Option<u64>> {
    let mut limit = None;
    for (name, value) in options.into_iter().flatten() {
        if !name.eq_ignore_ascii_case("size") {
            return Err(Error::new(Kind::Invalid, format!("unknown storage option {name}={value}")).with_hint(HINT));
        }
        if limit.replace(size(value)?).is_some() {
            return Err(Error::new(Kind::Invalid, "the storage option size is given twice"));
        }
    }
    Ok(limit)
}

/// The size limit in dockerd's options, for containers without one of their own.
pub(super) fn of_daemon(options: &[String]) -> Result<Option<u64>> {
    let mut limit = None;
    for option in options {
        let unknown = || Error::new(Kind::Invalid, format!("unknown storage option {option}")).with_hint(HINT);
        let (name, value) = option.split_once('=').ok_or_else(unknown)?;
        // Docker's own drivers want their name in front.
        let name = name.rsplit_once('.').map_or(name, |(_, name)| name);
        if !name.eq_ignore_ascii_case("size") {
            return Err(unknown());
        }
        limit = Some(size(value)?);
    }
    Ok(limit)
}

/// Bytes, as Docker reads sizes (`units.RAMInBytes`): 10G, 10GB and 10GiB are all 10 x 2^30.
fn size(text: &str) -> Result<u64> {
    let invalid = || {
        Error::new(Kind::Invalid, format!("storage option size={text} is no size"))
            .with_hint("give a number and a unit, such as 500M or 10G")
    };
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim_start();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(invalid()),
    };
    let number: f64 = number.parse().map_err(|_| invalid())?;
    let bytes = number * 1024f64.powi(power);
    if !(1.0..1e18).contains(&bytes) {
        return Err(invalid());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("32", 32),
            ("32b", 32),
            ("32k", 32 << 10),
            ("32KB", 32 << 10),
            ("32kib", 32 << 10),
            ("1.5 G", 3 << 29),
            ("10GB", 10 << 30),
            ("10G", 10 << 30),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text).ok(), Some(bytes), "{text}");
        }
        for text in ["", "G", "-1", "0", "1x", "1 2", "ten", "1.2.3", "9999P", "inf", "nan"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn options_that_nobody_knows_are_named() {
        let option = |name: &str, value: &str| BTreeMap::from([(name.to_string(), value.to_string())]);
        assert_eq!(of_container(Some(&option("size", "1M"))).ok(), Some(Some(1 << 20)));
        assert_eq!(of_container(None).ok(), Some(None));
        let error = of_container(Some(&option("inodes", "7"))).expect_err("unknown");
        assert_eq!(error.to_string(), "unknown storage option inodes=7");
        let twice = BTreeMap::from([("size", "1M"), ("SIZE", "2M")].map(|(a, b)| (a.to_string(), b.to_string())));
        assert!(of_container(Some(&twice)).is_err(), "one of them would be ignored");
        assert_eq!(of_daemon(&["reflinkd.size=2G".into()]).ok(), Some(Some(2 << 30)));
        assert_eq!(of_daemon(&["size=2G".into()]).ok(), Some(Some(2 << 30)));
        for option in ["size", "btrfs.min_space=1G", "=", "sizes=1G"] {
            assert!(of_daemon(&[option.into()]).is_err(), "{option}");
        }
    }
}
