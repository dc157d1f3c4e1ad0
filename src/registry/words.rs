//! What a server says of a failure, for a message: short, and harmless to a terminal.

use serde::Deserialize;

use crate::oci::quoted;

/// Most bytes of an answer that are looked at.
pub(super) const MOST: u64 = 64 << 10;

/// The OCI distribution specification's errors, and what token servers write.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<Entry>,
    #[serde(default)]
    details: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    error_description: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    detail: serde_json::Value,
}

/// The server's own words, in quotes, or what it sent instead of any.
pub(super) fn of(body: &[u8]) -> String {
    if let Ok(said) = serde_json::from_slice::<Body>(body) {
        let described = |entry: &Entry| {
            let detail = entry.detail.as_str().unwrap_or_default();
            let parts = [entry.message.as_str(), detail].into_iter().filter(|part| !part.is_empty());
            let text = parts.collect::<Vec<_>>().join(": ");
            if text.is_empty() { entry.code.clone() } else { text }
        };
        let first = said.errors.first().map(described);
        let words = first.or(said.details).or(said.error_description).or(said.message).or(said.error);
        if let Some(words) = words.filter(|words| !words.trim().is_empty()) {
            return quoted(words.trim());
        }
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    let html = text.get(..100.min(text.len())).unwrap_or(text).to_ascii_lowercase();
    if html.contains("<html") || html.contains("<!doctype") {
        return match title(text) {
            Some(title) => format!("a page titled {}", quoted(title)),
            None => "a page for browsers".into(),
        };
    }
    match text.lines().next() {
        Some(line) if !line.is_empty() && !line.starts_with(['{', '[']) => quoted(line),
        _ => "no reason given".into(),
    }
}

fn title(page: &str) -> Option<&str> {
    let lower = page.to_ascii_lowercase();
    let begin = lower.find("<title>")? + "<title>".len();
    let length = lower[begin..].find("</title>")?;
    page.get(begin..begin + length).map(str::trim).filter(|title| !title.is_empty())
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn words_are_found_and_harmless() {
        for (body, words) in [
            (
                r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{"Tag":"x"}}]}"#,
                "\"manifest unknown\"",
            ),
            (r#"{"errors":[{"code":"DENIED","message":"no","detail":"pay first"}]}"#, "\"no: pay first\""),
            (r#"{"errors":[{"code":"DENIED"}]}"#, "\"DENIED\""),
            (r#"{"details":"incorrect username or password"}"#, "\"incorrect username or password\""),
            (r#"{"error":"invalid_grant","error_description":"it is old"}"#, "\"it is old\""),
            (r#"{"errors":[]}"#, "no reason given"),
            ("<!DOCTYPE html><html><TITLE> 502 Bad\u{1b}[2J </title>", "a page titled \"502 Bad\\u{1b}[2J\""),
            ("<html></html>", "a page for browsers"),
            ("404 page not found\nmore", "\"404 page not found\""),
            ("", "no reason given"),
        ] {
            assert_eq!(of(body.as_bytes()), words);
        }
        assert!(of("x".repeat(10_000).as_bytes()).len() < 300);
    }
}
