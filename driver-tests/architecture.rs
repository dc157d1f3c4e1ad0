//! Holds src/ to the rules that src/lib.rs states: who may use whom, where unsafe code stands, who
//! prints, how long a file gets. Reads text, needs no root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each part, and the parts it may name by `crate::`. `error` and what the crate's root re-exports of it are
/// everybody's.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cli", &["daemon", "engine", "store", "backend", "layer", "registry", "oci", "sys"]),
    ("daemon", &["engine", "store", "backend", "layer", "oci", "sys"]),
    ("engine", &["store", "backend", "copy", "layer", "registry", "oci", "sys"]),
    ("store", &["sys"]),
    ("backend", &["copy", "sys"]),
    ("copy", &["sys"]),
    ("layer", &["oci", "copy", "sys"]),
    ("registry", &["oci", "sys"]),
    ("oci", &["sys"]),
    ("sys", &[]),
    ("error", &[]),
];
const EVERYBODYS: &[&str] = &["error", "Context", "Error", "Kind", "Result"];
const MOST_LINES: usize = 600;
/// What nobody wrote, nor reads.
const GENERATED: &str = "daemon/containerd/api";

/// Parts that change what is on disk by the steps of `sys::durable` only, so that a test can stop before each.
const DURABLE: &[&str] = &["store", "engine", "backend"];
/// What in them makes, fills or takes apart trees that nobody finds, or writes for others than the store; and the backend
/// that is for tests.
const WITHOUT_STEPS: &[&str] =
    &["backend/clone", "backend/remove.rs", "backend/memory", "engine/bundle", "store/tests.rs"];
/// What a step is there for.
const STEPS: &[&str] = &[
    "sync_all",
    "sync_data",
    "fsync",
    "fdatasync",
    "syncfs",
    "rename",
    "renameat",
    "renameat_with",
    "create_dir",
    "create_dir_all",
    "DirBuilder",
    "mkdirat",
    "remove_dir",
    "remove_dir_all",
    "remove_file",
    "unlinkat",
    "linkat",
    "hard_link",
    "symlinkat",
    "symlink",
    "mknodat",
    "fsetxattr",
    "setxattr",
    "lsetxattr",
    "set_permissions",
];

/// A source file: its path below src/, and its code without comments and text in quotes.
struct Source {
    path: PathBuf,
    lines: usize,
    code: String,
}

impl Source {
    /// The part it belongs to: `backend` for both backend/mod.rs and a backend.rs.
    fn part(&self) -> String {
        let first = self.path.iter().next().expect("a file has a name");
        Path::new(first).file_stem().expect("a file has a name").to_string_lossy().into_owned()
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("read src") {
            let path = entry.expect("read src").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).expect("read a source file");
                let below = path.strip_prefix(&root).expect("it is below src").to_path_buf();
                found.push(Source { path: below, lines: text.lines().count(), code: code_only(&text) });
            }
        }
    }
    assert!(found.len() > 5, "src has its files");
    found
}

/// Blank out comments, string and character literals; line breaks stay.
fn code_only(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    let keep_breaks = |skipped: &str| skipped.chars().filter(|&c| c == '\n').collect::<String>();
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = raw_string(rest, &code) {
            length
        } else if c == '"' {
            quoted(rest, '"')
        } else if c == '\'' && is_character(rest) {
            quoted(rest, '\'')
        } else {
            0
        };
        if skip == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            code.push(' ');
            code.push_str(&keep_breaks(&rest[..skip]));
            rest = &rest[skip..];
        }
    }
    code
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        if text[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if text[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of `r"..."`, `r#"..."#`, also as the tail of `br`, `cr`, if `text` starts with one.
fn raw_string(text: &str, before: &str) -> Option<usize> {
    let inside_name = before.chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefixed = before.ends_with('b') || before.ends_with('c');
    let after = text.strip_prefix('r').filter(|_| !inside_name || prefixed)?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(2 + hashes + body.find(&end).map_or(body.len(), |at| at + end.len()))
}

/// The length of a literal that ends at the next `quote` without a backslash before it.
fn quoted(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == '\\' {
            characters.next();
        } else if c == quote {
            return at + quote.len_utf8();
        }
    }
    text.len()
}

/// Tells `'x'` and `'\n'` from the lifetime `'a`.
fn is_character(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    match characters.next() {
        Some('\\') => true,
        Some(_) => characters.next() == Some('\''),
        None => false,
    }
}

/// The names right after every `crate::`, those of `crate::{a, b::c}` too.
fn parts_named(code: &str) -> BTreeSet<String> {
    let dense: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in dense.match_indices("crate::") {
        // `$crate::` counts, `my_crate::` doesn't.
        if dense[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let after = dense[at + "crate::".len()..].trim_start();
        match after.strip_prefix('{') {
            None => drop(names.insert(name(after))),
            Some(group) => names.extend(top_level(group).into_iter().map(|item| name(item.trim()))),
        }
    }
    names.remove("");
    names
}

/// The comma-separated items of a group whose opening brace is gone, up to its closing one.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&group[start..at]);
                return items;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&group[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}

fn has_word(code: &str, word: &str) -> bool {
    let boundary = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word)
        .any(|(at, _)| boundary(code[..at].chars().next_back()) && boundary(code[at + word.len()..].chars().next()))
}

fn none(what: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{what}:\n  {}", offenders.join("\n  "));
}

#[test]
fn dependencies_point_downwards() {
    let mut offenders = Vec::new();
    for source in sources() {
        let part = source.part();
        if part == "lib" || part == "main" {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == part) else {
            offenders.push(format!("src/{}: the part {part} has no place in the order", source.path.display()));
            continue;
        };
        for named in parts_named(&source.code) {
            let fine = named == part || allowed.contains(&named.as_str()) || EVERYBODYS.contains(&named.as_str());
            if !fine {
                offenders.push(format!("src/{} ({part}) uses crate::{named}", source.path.display()));
            }
        }
    }
    none("against the direction of dependency in src/lib.rs", &offenders);
}

#[test]
fn every_durable_call_has_a_failpoint() {
    let mut offenders = Vec::new();
    let mut stepped = 0;
    for source in sources() {
        let exempt = WITHOUT_STEPS.iter().any(|path| source.path.starts_with(path));
        if exempt || !DURABLE.contains(&source.part().as_str()) {
            continue;
        }
        let code = source.code.split("\nmod tests {").next().unwrap_or_default();
        stepped += code.matches("durable::").count();
        for call in STEPS {
            if has_word(&code.replace(&format!("durable::{call}"), ""), call) {
                offenders.push(format!("src/{}: {call}", source.path.display()));
            }
        }
    }
    none("durable steps without a failpoint: use sys::durable", &offenders);
    assert!(stepped > 40, "{stepped} calls of sys::durable were found");
    // The ioctls of sys have theirs themselves.
    let raw = [
        "subvol_create_v2",
        "snap_create_v2",
        "snap_destroy_v2",
        "subvol_setflags",
        "qgroup_create",
        "qgroup_limit",
        "quota_ctl",
    ];
    for source in sources().iter().filter(|s| s.part() == "sys" && !s.path.ends_with("raw.rs")) {
        let used: usize = raw.iter().map(|call| source.code.matches(&format!("raw::{call}(")).count()).sum();
        let steps = source.code.matches("durable::step(").count();
        assert!(
            used <= steps,
            "src/{}: {used} ioctls that change something, {steps} failpoints",
            source.path.display()
        );
    }
}

#[test]
fn unsafe_code_stands_in_sys_only() {
    let outside = |s: &Source| s.part() != "sys" && has_word(&s.code, "unsafe");
    let allows = |s: &Source| s.part() != "sys" && has_word(&s.code, "unsafe_code");
    let offending = sources().into_iter().filter(|s| outside(s) || allows(s));
    let offenders: Vec<String> = offending.map(|s| format!("src/{}", s.path.display())).collect();
    none("unsafe code outside src/sys", &offenders);
}

#[test]
fn only_the_command_line_prints() {
    let printing = ["println", "eprintln", "print", "eprint", "dbg"];
    let mut offenders = Vec::new();
    for source in sources().iter().filter(|s| s.part() != "cli" && s.part() != "main") {
        for name in printing {
            if has_word(&source.code, name) && source.code.contains(&format!("{name}!")) {
                offenders.push(format!("src/{}: {name}!", source.path.display()));
            }
        }
    }
    none("prints below cli", &offenders);
}

#[test]
fn files_stay_readable() {
    let written = |s: &Source| !s.path.starts_with(GENERATED) || s.path.ends_with("mod.rs");
    let long = sources().into_iter().filter(|s| s.lines > MOST_LINES && written(s));
    let offenders: Vec<String> = long.map(|s| format!("src/{}: {} lines", s.path.display(), s.lines)).collect();
    none("files of more than 600 lines", &offenders);
}

#[test]
fn the_reader_sees_through_comments_literals_and_groups() {
    let code = code_only(
        "use crate::{oci::{Digest, X}, sys as s, Result}; // crate::cli\n/* crate::engine /* */ crate::cli */\n\
         let a = \"crate::cli \\\" crate::cli\"; let b = r#\"crate::cli \" \"#; let c = '\"'; let d: &'a str;\n\
         pub(crate) fn f() -> crate :: store::Index { other_crate::cli(); br\"crate::cli\" } '\\'' crate::layer::y",
    );
    let names: Vec<String> = parts_named(&code).into_iter().collect();
    assert_eq!(names, ["Result", "layer", "oci", "store", "sys"]);
    assert_eq!(code.lines().count(), 4);
    assert!(has_word("pub unsafe fn", "unsafe") && !has_word("unsafe_code", "unsafe"));
}
