//! Names of containers: what is valid, and making one up.

use crate::{Error, Kind, Result};

const LONGEST: usize = 128;

/// Check a container's name given by the user.
pub(super) fn check(name: &str) -> Result<()> {
    check_word("container name", name)?;
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::new(Kind::Invalid, format!("container name {name:?} would look like an ID")));
    }
    Ok(())
}

/// Check a snapshot's label given by the user.
pub(super) fn check_label(label: &str) -> Result<()> {
    check_word("label", label)
}

/// Docker's rule for names: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
fn check_word(what: &str, word: &str) -> Result<()> {
    let mut bytes = word.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) || word.len() > LONGEST {
        return Err(Error::new(Kind::Invalid, format!("invalid {what} {word:?}")).with_hint(format!(
            "use letters, digits, `_`, `.` and `-`, starting with a letter or digit, at most {LONGEST}"
        )));
    }
    Ok(())
}

/// 64 hexadecimal digits at random: a container ID.
pub(super) fn random_id() -> Result<String> {
    let mut bytes = [0_u8; 32];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(Kind::System, format!("getrandom: {e}")))?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A name that is easy to say, from a container's ID; `attempt` counts those that were taken.
pub(super) fn made_up(id: &str, attempt: u32) -> String {
    const ADJECTIVES: [&str; 32] = [
        "able", "amber", "bold", "brisk", "calm", "clear", "deft", "eager", "early", "fair", "fleet", "fond", "glad",
        "grand", "hardy", "keen", "kind", "light", "lucid", "mellow", "neat", "nimble", "plain", "proud", "quick",
        "quiet", "ready", "sharp", "solid", "steady", "warm", "wise",
    ];
    const NOUNS: [&str; 32] = [
        "acorn", "alder", "aspen", "badger", "beech", "birch", "bramble", "cedar", "clover", "crane", "elm",
        "falcon", "fern", "finch", "grove", "hazel", "heron", "ivy", "juniper", "larch", "linden", "maple", "moss",
        "oak", "otter", "pine", "raven", "reed", "rowan", "sorrel", "willow", "wren",
    ];
    let number = id.get(..8).and_then(|hex| u32::from_str_radix(hex, 16).ok()).unwrap_or(0) as usize;
    let base = format!("{}-{}", ADJECTIVES[number % 32], NOUNS[(number >> 5) % 32]);
    match attempt {
        0 => base,
        _ => format!("{base}-{}", &id[8..12]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["a", "web1", "Web_1.x-y", "9lives"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = "x".repeat(129);
        for bad in ["", "-x", ".x", "_x", "a/b", "a b", "ä", "..", long.as_str(), &"a".repeat(64)] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn made_up_names_are_valid_and_differ_when_taken() {
        let id = random_id().expect("random");
        assert_eq!(id.len(), 64);
        assert!(check(&made_up(&id, 0)).is_ok());
        assert!(check(&made_up(&id, 1)).is_ok());
        assert_ne!(made_up(&id, 0), made_up(&id, 1));
    }
}
