//! Sizes, times and IDs as Docker's users read and write them.

use std::str::FromStr;

/// Decimal units, three digits: `0B`, `10.1MB`, `1.26GB` (as `docker ps -s`).
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // Rounded to three digits it must stay below 1,000.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if unit == 0 || v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", UNITS[unit])
}

/// A size given by the user: `10G` and `10GB` are 10^10 bytes, `10GiB` is 10 * 2^30.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{text:?} is not a size; write 10G (10^10 bytes) or 10GiB"));
    }
    bytesize::ByteSize::from_str(text)
        .map(|size| size.as_u64())
        .map_err(|_| format!("{text:?} is not a size; write 10G (10^10 bytes) or 10GiB"))
}

/// How long ago, in one unit: `5 minutes ago`.
pub(super) fn ago(time: jiff::Timestamp) -> String {
    let seconds = jiff::Timestamp::now().as_second().saturating_sub(time.as_second()).max(0);
    let (count, unit) = match seconds {
        0 => return "Less than a second ago".into(),
        s if s < 60 => (s, "second"),
        s if s < 3600 => (s / 60, "minute"),
        s if s < 48 * 3600 => (s / 3600, "hour"),
        s if s < 14 * 86400 => (s / 86400, "day"),
        s if s < 60 * 86400 => (s / (7 * 86400), "week"),
        s if s < 730 * 86400 => (s / (30 * 86400), "month"),
        s => (s / (365 * 86400), "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// The first twelve digits of an ID, or all of it.
pub(super) fn id(id: &str, whole: bool) -> String {
    if whole { id.to_string() } else { crate::engine::image::short(id).to_string() }
}

/// A client's key, with twelve digits of each ID in it: `default/3/sha256:0123456789ab`.
pub(super) fn key(key: &str, whole: bool) -> String {
    if whole {
        return key.to_string();
    }
    let is_other = |c: char| !c.is_ascii_hexdigit();
    let parts = key.split_inclusive(is_other).map(|part| {
        let (digits, other) = part.split_at(part.trim_end_matches(is_other).len());
        let shown = if digits.len() < 32 { digits } else { &digits[..12] };
        [shown, other].concat()
    });
    parts.collect()
}

/// `text` cut to `width` characters, with an ellipsis where it was cut.
pub(super) fn cut(text: &str, width: usize, whole: bool) -> String {
    if whole || text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_with_short_ids() {
        let id = "0123456789abcdef".repeat(4);
        let shown = |text: &str| key(text, false);
        assert_eq!(shown(&id), "0123456789ab");
        assert_eq!(shown(&format!("default/3/sha256:{id}")), "default/3/sha256:0123456789ab");
        assert_eq!(shown(&format!("{id}-init")), "0123456789ab-init");
        assert_eq!(shown("k8s.io/12/extract-1234 über"), "k8s.io/12/extract-1234 über");
        assert_eq!(key(&id, true), id);
    }

    #[test]
    fn sizes_have_three_digits_and_decimal_units() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1_000, "1kB"),
            (16_384, "16.4kB"),
            (999_499, "999kB"),
            (999_500, "1MB"),
            (10_000_000, "10MB"),
            (10_080_256, "10.1MB"),
            (142_300_000, "142MB"),
            (1_260_000_000, "1.26GB"),
            (u64::MAX, "18.4EB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read_in_decimal_units_unless_they_say_i() {
        assert_eq!(parse_size("10G"), Ok(10_000_000_000));
        assert_eq!(parse_size("10GB"), Ok(10_000_000_000));
        assert_eq!(parse_size("10gib"), Ok(10 << 30));
        assert_eq!(parse_size("1500"), Ok(1500));
        assert_eq!(parse_size("50m"), Ok(50_000_000));
        for bad in ["", "-1", "G", "ten", "1X"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
