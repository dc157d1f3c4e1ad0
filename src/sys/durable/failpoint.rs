//! What a debug build does before a step: see the table in [`super`].

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use uuid::Uuid;

use super::Failed;

/// What is to happen, and before which step.
struct Plan {
    stop_before: Option<u64>,
    fail_at: Option<Which>,
    fail_from: Option<u64>,
    fail_with: i32,
    steps: Option<PathBuf>,
}

enum Which {
    Number(u64),
    Name(String),
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| Plan::of(&|name| std::env::var(name).ok()));
static COUNT: AtomicU64 = AtomicU64::new(0);
/// Whether the step that [`Plan::fail_at`] names has failed.
static FAILED: AtomicBool = AtomicBool::new(false);

impl Plan {
    /// What the environment says; `None` if that is nothing. What can't be read is no number of any step.
    fn of(variable: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let number = |name: &str| variable(name).map(|text| text.parse().unwrap_or(0));
        let fail_at = variable("REFLINKD_FAIL_AT").map(|text| match text.parse() {
            Ok(number) => Which::Number(number),
            Err(_) => Which::Name(text),
        });
        let plan = Self {
            stop_before: number("REFLINKD_STOP_BEFORE"),
            fail_at,
            fail_from: number("REFLINKD_FAIL_FROM").filter(|from| *from > 0),
            fail_with: match variable("REFLINKD_FAIL_WITH").as_deref() {
                Some("EDQUOT") => libc::EDQUOT,
                Some("EIO") => libc::EIO,
                _ => libc::ENOSPC,
            },
            steps: variable("REFLINKD_STEPS").map(PathBuf::from),
        };
        let says = plan.stop_before.is_some() || plan.fail_at.is_some() || plan.fail_from.is_some();
        (says || plan.steps.is_some()).then_some(plan)
    }

    fn fails(&self, number: u64, name: &str) -> bool {
        self.fail_from.is_some_and(|from| number >= from)
            || match &self.fail_at {
                Some(Which::Number(at)) => *at == number,
                Some(Which::Name(at)) => at == name && !FAILED.swap(true, Ordering::Relaxed),
                None => false,
            }
    }
}

/// A failpoint; what it stands before is the next thing that the caller does.
pub fn step(call: &str, object: &Path) -> Result<(), Failed> {
    let Some(plan) = &*PLAN else { return Ok(()) };
    let number = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let name = format!("{call} {}", name_of(object));
    if let Some(path) = &plan.steps
        && let Ok(mut steps) = OpenOptions::new().append(true).create(true).open(path)
    {
        // In one call, so that those of several threads don't mix.
        let _ = steps.write_all(format!("{name}\n").as_bytes());
    }
    if plan.stop_before == Some(number) {
        std::process::abort();
    }
    if plan.fails(number, &name) { Err(Failed(plan.fail_with)) } else { Ok(()) }
}

/// The last two components, with `UUID` and `DIGEST` in the place of such.
fn name_of(object: &Path) -> String {
    let names: Vec<_> = object.iter().map(|name| name.to_string_lossy()).collect();
    let last = names.iter().skip(names.len().saturating_sub(2));
    last.map(|name| general(name)).collect::<Vec<_>>().join("/")
}

fn general(name: &str) -> String {
    let (stem, rest) = name.split_at(name.find('.').unwrap_or(name.len()));
    if Uuid::try_parse(stem).is_ok() {
        return format!("UUID{rest}");
    }
    if stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit()) {
        return format!("DIGEST{rest}");
    }
    name.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_for_each_tree() {
        let name = |path: &str| name_of(Path::new(path));
        assert_eq!(name("/a/snapshots/6d2f3f6e-6a6b-4dbb-9d2e-0c8b1f0d7a11/fs"), "UUID/fs");
        assert_eq!(name("/a/images/6d2f3f6e-6a6b-4dbb-9d2e-0c8b1f0d7a11.json"), "images/UUID.json");
        assert_eq!(name(&format!("/a/sha256/{}", "a".repeat(64))), "sha256/DIGEST");
        assert_eq!(name("store.json"), "store.json");
    }

    #[test]
    fn the_environment_says_which_step_fails_and_how() {
        let plan = |text: &'static str| {
            let variables: Vec<_> = text.split(' ').filter_map(|variable| variable.split_once('=')).collect();
            Plan::of(&|name| {
                let found = variables.iter().find(|(key, _)| format!("REFLINKD_{key}") == name);
                found.map(|(_, value)| (*value).to_string())
            })
        };
        assert!(plan("").is_none() && plan("FAIL_WITH=EIO").is_none());
        let at = plan("FAIL_AT=2").expect("a plan");
        assert!((1..4).map(|n| at.fails(n, "mkdir x")).eq([false, true, false]));
        assert_eq!(at.fail_with, libc::ENOSPC);
        let from = plan("FAIL_FROM=2 FAIL_WITH=EDQUOT").expect("a plan");
        assert!((1..4).map(|n| from.fails(n, "mkdir x")).eq([false, true, true]));
        assert_eq!(from.fail_with, libc::EDQUOT);
        let named = plan("FAIL_AT=fsync FAIL_WITH=EIO").expect("a plan");
        assert!(["mkdir", "fsync", "fsync"].iter().map(|name| named.fails(1, name)).eq([false, true, false]));
        assert_eq!(named.fail_with, libc::EIO);
        // Nothing at all rather than everything.
        let unread = plan("FAIL_FROM=x STOP_BEFORE=y STEPS=z").expect("a plan");
        assert!(!unread.fails(1, "mkdir") && unread.stop_before == Some(0));
    }
}
