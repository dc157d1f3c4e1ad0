//! Errors as a client is told of them, and the log: what he asked for is in them, whatever that was.

use crate::Error;

/// Bytes at most. In a gRPC status, which is a header, each may become three.
const LONGEST: usize = 2000;

/// An error with its hint, on one line that fits anywhere.
pub(super) fn told(error: &Error) -> String {
    let text = match error.hint() {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    };
    short(&text)
}

/// Text of a client's, or with some of his in it.
pub(super) fn short(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars() {
        let before = short.len();
        // What a terminal would obey is shown as it is written in a program.
        if c.is_control() {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
        if short.len() > LONGEST {
            short.truncate(before);
            short.push_str("...");
            break;
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn what_is_asked_for_fills_no_log_and_moves_no_cursor() {
        let error = Error::new(Kind::NotFound, "there is no a\nb\u{1b}[2J\0ü").with_hint("look");
        assert_eq!(told(&error), "there is no a\\nb\\u{1b}[2J\\u{0}ü (hint: look)");
        assert_eq!(short(&"x".repeat(LONGEST)), "x".repeat(LONGEST), "just so");
        for long in ["x".repeat(LONGEST + 1), "ü".repeat(1 << 20), "\u{7}".repeat(1 << 20)] {
            let short = short(&long);
            assert!(short.len() <= LONGEST + 3 && short.len() > LONGEST - 8 && short.ends_with("..."), "{short}");
        }
    }
}
