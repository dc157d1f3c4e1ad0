//! JSON from outside: bounded in depth and in values, tolerant where Go's decoder is.
//!
//! Callers bound the length before they read; [`check`] bounds what the length can't: nesting (serde_json
//! has a limit of its own, but not inside fields that it skips), and lists and objects, whose values take
//! far more memory than text.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use super::limits::{SourceLimits, beyond};
use crate::{Error, Kind, Result};

/// Refuse a document that no image has, before anything is made of it.
///
/// # Errors
/// [`Kind::BadInput`] for nesting or values past the limits. Whether it is JSON at all is [`parse`]'s to say.
pub(super) fn check(bytes: &[u8], limits: &SourceLimits) -> Result<()> {
    let Shape { depth, values } = Shape::of(bytes);
    if depth > limits.json_depth {
        let why = format!("its JSON is nested more than the limit of {} deep", limits.json_depth);
        return Err(beyond(why, "max_json_depth"));
    }
    if values > limits.json_values {
        let why = format!("its JSON has {values} values, more than the limit of {}", limits.json_values);
        return Err(beyond(why, "max_json_values"));
    }
    Ok(())
}

/// Read a document.
///
/// # Errors
/// [`Kind::BadInput`] for what isn't JSON or has fields of other types.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::new(Kind::BadInput, format!("its JSON: {}", shown(&e))))
}

/// The parser's message, which may quote any string of the document whole.
fn shown(error: &serde_json::Error) -> String {
    const MOST: usize = 300;
    let message = error.to_string();
    match message.char_indices().nth(MOST) {
        Some((at, _)) => {
            format!("{}... at line {} column {}", message[..at].escape_debug(), error.line(), error.column())
        }
        None => message.escape_debug().to_string(),
    }
}

/// Read a document that has to be an object. (serde takes a list for a struct's fields in order.)
///
/// # Errors
/// As [`parse`].
pub(super) fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    match bytes.trim_ascii_start().first() {
        Some(b'{') => parse(bytes),
        _ => Err(Error::new(Kind::BadInput, "it isn't a JSON object")),
    }
}

/// What a text takes at most when it is read as JSON.
#[derive(Debug, PartialEq, Eq)]
struct Shape {
    /// The deepest nesting of brackets outside strings.
    depth: usize,
    /// Each value but the outermost follows a bracket or a comma.
    values: usize,
}

impl Shape {
    fn of(bytes: &[u8]) -> Self {
        let mut shape = Self { depth: 0, values: 0 };
        let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
        for byte in bytes {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ if in_string => {}
                b'[' | b'{' => (depth, shape.values) = (depth + 1, shape.values + 1),
                b']' | b'}' => depth = depth.saturating_sub(1),
                b',' => shape.values += 1,
                _ => {}
            }
            shape.depth = shape.depth.max(depth);
        }
        shape
    }
}

/// `null` stands for the type's empty value, as Go's decoder has it.
pub(super) fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A list of strings, or a single one in its place (Docker before 1.8 wrote commands so), or `null`.
pub(super) fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Line(String),
        List(Vec<String>),
    }
    Ok(match Option::deserialize(from)? {
        None => Vec::new(),
        Some(Words::Line(line)) => vec![line],
        Some(Words::List(list)) => list,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_and_commas_count_outside_strings() {
        for (json, depth, values) in [
            ("1", 0, 0),
            ("[]", 1, 1),
            (r#"{"a":[{}],"b":[]}"#, 3, 5),
            (r#"{"a":"[[[[,\"[[[,"}"#, 1, 1),
            (r#"{"a":"\\","b":[[]]}"#, 3, 4),
            ("]]]][[", 2, 2),
            ("[1,2,3]", 1, 3),
        ] {
            assert_eq!(Shape::of(json.as_bytes()), Shape { depth, values }, "{json}");
        }
    }

    #[test]
    fn absurd_documents_are_refused_even_in_a_field_nobody_reads() {
        let limits = SourceLimits::default();
        let nested = |deep| format!(r#"{{"x":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
        check(nested(limits.json_depth - 1).as_bytes(), &limits).unwrap();
        for deep in [limits.json_depth, 1_000_000] {
            let error = check(nested(deep).as_bytes(), &limits).unwrap_err();
            assert!(error.to_string().contains("limit of 64 deep"), "{error}");
            assert!(error.hint().unwrap().contains("max_json_depth"));
        }
        let long = |values: usize| format!("[{}0]", "0,".repeat(values - 1));
        check(long(limits.json_values).as_bytes(), &limits).unwrap();
        let error = check(long(limits.json_values + 1).as_bytes(), &limits).unwrap_err();
        assert!(error.to_string().contains("100001 values, more than the limit of 100000"), "{error}");
        assert!(error.hint().unwrap().contains("max_json_values"));
    }

    #[test]
    fn without_a_check_nesting_still_costs_no_stack() {
        #[derive(Debug, Deserialize)]
        struct Nothing {}
        let deep = 1_000_000;
        parse::<Nothing>(format!(r#"{{"x":{}{}}}"#, "[".repeat(deep), "]".repeat(deep)).as_bytes()).unwrap();
        let error = parse::<Nothing>("[".repeat(deep).as_bytes()).unwrap_err();
        assert_eq!(error.kind(), Kind::BadInput);
    }

    #[test]
    fn messages_stay_short() {
        let error = parse::<u64>(format!("\"{}\"", "\u{1b}".repeat(100_000)).as_bytes()).unwrap_err().to_string();
        assert!(error.len() < 5000 && error.is_ascii() && !error.contains('\u{1b}'), "{error}");
        let error = parse::<u64>(format!("\"{}\"", "x".repeat(100_000)).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("...") && error.ends_with("column 100002"), "{error}");
    }
}
