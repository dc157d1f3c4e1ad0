//! JSON from outside: bounded in depth, tolerant where Go's decoder is.
//!
//! Callers bound the length before they read; this bounds what the length can't: nesting (serde_json
//! has a limit of its own, but not inside fields that it skips) and lists, whose entries may take
//! far more memory than text.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::{Error, Kind, Result};

/// Deepest nesting. Real documents have five or so.
const MAX_DEPTH: usize = 64;
/// Most entries in one list.
pub(super) const MAX_ENTRIES: usize = 10_000;

/// Read a document.
///
/// # Errors
/// [`Kind::BadInput`] for what isn't JSON, is nested too deeply or has fields of other types.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if depth(bytes) > MAX_DEPTH {
        return Err(Error::new(Kind::BadInput, format!("its JSON is nested more than {MAX_DEPTH} deep")));
    }
    serde_json::from_slice(bytes)
        .map_err(|e| Error::new(Kind::BadInput, format!("its JSON: {}", e.to_string().escape_debug())))
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

/// The deepest nesting of brackets outside strings.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// `null` stands for the type's empty value, as Go's decoder has it.
pub(super) fn null_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// A list of at most [`MAX_ENTRIES`], or `null`.
pub(super) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    from.deserialize_any(List { text: None, item: PhantomData })
}

/// The same, or a single string in place of the list: Docker before 1.8 wrote commands so.
pub(super) fn words<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    from.deserialize_any(List { text: Some(|text| vec![text.to_string()]), item: PhantomData })
}

struct List<T> {
    /// What a single string stands for, where one is allowed.
    text: Option<fn(&str) -> Vec<T>>,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX_ENTRIES} entries")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
        match self.text {
            Some(split) => Ok(split(text)),
            None => Err(E::invalid_type(de::Unexpected::Other("a string"), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            if list.len() == MAX_ENTRIES {
                return Err(de::Error::invalid_length(MAX_ENTRIES + 1, &self));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        for (json, expected) in [
            ("1", 0),
            ("[]", 1),
            (r#"{"a":[{}],"b":[]}"#, 3),
            (r#"{"a":"[[[[\"[[["}"#, 1),
            (r#"{"a":"\\","b":[[]]}"#, 3),
            ("]]]][[", 2),
        ] {
            assert_eq!(depth(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn nesting_is_refused_even_in_a_field_nobody_reads() {
        #[derive(Debug, Deserialize)]
        struct Nothing {}
        let nested = |deep| format!(r#"{{"x":{}{}}}"#, "[".repeat(deep), "]".repeat(deep));
        parse::<Nothing>(nested(MAX_DEPTH - 1).as_bytes()).unwrap();
        assert_eq!(parse::<Nothing>(nested(MAX_DEPTH).as_bytes()).unwrap_err().kind(), Kind::BadInput);
        assert_eq!(parse::<Nothing>(nested(1_000_000).as_bytes()).unwrap_err().kind(), Kind::BadInput);
    }
}
