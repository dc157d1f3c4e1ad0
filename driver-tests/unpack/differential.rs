//! Python's tarfile as a second opinion: what both accept, both read alike.
//!
//! Every archive where the two differ is named here with the reason, and an exception that is none any more fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use reflinkd::layer::reader::What;
use serde::Deserialize;

use super::fixture::scratch;
use super::generate::{layer, tar};
use super::listing::{Listed, MOST_CONTENT, list};
use super::model::Model;
use super::random::Random;
use super::{cases, doubtful, foreign};

/// Random layers besides the corpora.
const GENERATED: u64 = 500;
const MOST_BYTES: u64 = 1 << 40;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Theirs {
    Accepted { entries: Vec<Seen> },
    Refused { error: String },
}

#[derive(Debug, PartialEq, Deserialize)]
struct Seen {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    size: i64,
    mode: u32,
    uid: i64,
    gid: i64,
    mtime: f64,
    link: String,
    device: (i64, i64),
    sha256: Option<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// tarfile takes slashes from the ends of directories' names and of PAX paths.
fn without_slashes(mut name: &[u8]) -> String {
    while let Some(rest) = name.strip_suffix(b"/") {
        name = rest;
    }
    hex(name)
}

impl Seen {
    fn of(Listed { entry, sha256 }: &Listed) -> Self {
        let (kind, link, device) = match &entry.what {
            What::File { .. } => ("file", String::new(), (0, 0)),
            What::HardLink(target) => ("hard", hex(target), (0, 0)),
            What::Symlink(target) => ("symlink", hex(target), (0, 0)),
            What::CharDevice { major, minor } => ("char", String::new(), ((*major).into(), (*minor).into())),
            What::BlockDevice { major, minor } => ("block", String::new(), ((*major).into(), (*minor).into())),
            What::Directory => ("dir", String::new(), (0, 0)),
            What::Fifo => ("fifo", String::new(), (0, 0)),
        };
        let attributes = &entry.attributes;
        let size = if let What::File { size, .. } = entry.what { size } else { 0 };
        Self {
            name: without_slashes(&entry.name),
            kind: kind.to_string(),
            size: size.try_into().expect("below 2^63"),
            mode: attributes.mode,
            uid: attributes.uid.into(),
            gid: attributes.gid.into(),
            mtime: attributes.mtime.seconds as f64 + f64::from(attributes.mtime.nanoseconds) / 1e9,
            link,
            device,
            sha256: sha256.as_ref().map(|sum| hex(sum)),
        }
    }

    /// The same but for what a float can't hold of a time.
    fn agrees(&self, theirs: &Self) -> bool {
        let close = (self.mtime - theirs.mtime).abs() <= 1e-6_f64.max(theirs.mtime.abs() * 1e-15);
        close && *self == Self { mtime: self.mtime, name: trimmed(&theirs.name), ..theirs.copy() }
    }

    fn copy(&self) -> Self {
        Self {
            name: self.name.clone(),
            kind: self.kind.clone(),
            link: self.link.clone(),
            sha256: self.sha256.clone(),
            ..*self
        }
    }
}

fn trimmed(name: &str) -> String {
    let mut name = name;
    while let Some(rest) = name.strip_suffix("2f") {
        name = rest;
    }
    name.to_string()
}

/// Archives by what they are called in a failure.
fn archives() -> BTreeMap<String, Vec<u8>> {
    let mut archives = BTreeMap::new();
    archives.insert("lower".to_string(), cases::lower("/outside"));
    archives.extend(cases::all().into_iter().map(|case| (case.what, case.tar)));
    archives.extend(doubtful::all().into_iter().map(|doubt| (doubt.what.to_string(), doubt.tar)));
    archives.extend(foreign::archives());
    for seed in 0..GENERATED {
        let mut random = Random(seed);
        let ops = layer(&mut random, &mut Model::new());
        archives.insert(format!("seed {seed}"), tar(&mut random, &ops));
    }
    archives
}

/// What tarfile says of each.
fn ask_python(archives: &BTreeMap<String, Vec<u8>>) -> Vec<Theirs> {
    let dir = scratch();
    let mut paths = String::new();
    for (number, tar) in archives.values().enumerate() {
        let path = dir.path().join(number.to_string());
        std::fs::write(&path, tar).expect("write");
        let _ = writeln!(paths, "{}", path.display());
    }
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("driver-tests/unpack/tarfile_list.py");
    let mut python = Command::new("python3")
        .arg(script)
        .arg(MOST_CONTENT.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("these tests need python3");
    let mut stdin = python.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || stdin.write_all(paths.as_bytes()));
    let output = python.wait_with_output().expect("wait");
    writer.join().expect("no panic").expect("write");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("ASCII");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// Archives that both accept and read differently.
const READ_DIFFERENTLY: &[(&str, &str)] = &[
    (
        "PAX path, then long name",
        "tarfile lets whichever stands first win; in Go, and so in Docker, the long name does",
    ),
    ("an empty path", "an empty value takes back what was said before (POSIX); tarfile takes it for the name"),
    ("device of an old header", "v7 headers have no device numbers; tarfile reads them all the same"),
    ("prefix behind GNU's magic", "GNU's format has times in the prefix's place; tarfile takes them for a prefix"),
    ("prefix without a magic", "v7 headers have no prefix; tarfile reads it all the same"),
    ("a file whose PAX path ends in a slash", "tarfile decides what is a directory before it reads the path"),
];

/// What we refuse and tarfile doesn't, by our words.
const ONLY_THEY_ACCEPT: &[(&str, &str)] = &[
    ("is unknown", "tarfile takes unknown types for files"),
    ("volume", "tarfile passes over volume labels and parts of files"),
    ("malformed", "tarfile reads lengths as they come, and records up to where they end"),
    ("larger than 1048576", "tarfile reads headers of any size into memory"),
    ("stand before one entry", "of two headers before one entry, tarfile lets the first one win, Go the last"),
    ("is not a number", "tarfile takes signs and underlines in octal, and 0 for a record that is no number"),
    ("global PAX header", "tarfile gives all entries one name or size"),
    ("single zero block", "tarfile stops at the first zero block"),
    ("checksum is wrong", "tarfile takes what is no header for the end, but for the first"),
    ("truncated", "tarfile takes half a header for the end"),
    ("device numbers", "no kernel has such devices; tarfile doesn't care before extraction"),
    ("is not valid", "no kernel has such owners; tarfile doesn't care before extraction"),
    ("size is negative", "tarfile goes back in the file"),
    ("links to nothing", "no kernel has such links; tarfile doesn't care before extraction"),
    ("has no name", "tarfile doesn't care before extraction"),
    ("holds a NUL", "tarfile cuts names at a NUL, or keeps it"),
    ("doesn't say the file's length", "tarfile ignores a sparse map without one"),
    ("badly encoded", "tarfile knows no extended attributes"),
];

/// What we accept and tarfile doesn't, by its words.
const ONLY_WE_ACCEPT: &[(&str, &str)] = &[("empty file", "a layer of no bytes is an empty layer, as in Docker")];

#[test]
fn tarfile_reads_what_we_read() {
    let archives = archives();
    let theirs = ask_python(&archives);
    assert_eq!(archives.len(), theirs.len());
    let mut both = 0;
    let mut unneeded: BTreeSet<_> = ONLY_THEY_ACCEPT.iter().map(|(why, _)| why).collect();
    let mut failures = Vec::new();
    for ((what, tar), theirs) in archives.iter().zip(&theirs) {
        match (list(tar, MOST_BYTES), theirs) {
            (Ok(ours), Theirs::Accepted { entries }) => {
                both += 1;
                let ours: Vec<_> = ours.iter().map(Seen::of).collect();
                let same = ours.len() == entries.len() && ours.iter().zip(entries).all(|(a, b)| a.agrees(b));
                let known = READ_DIFFERENTLY.iter().any(|(name, _)| name == what);
                if same == known {
                    failures.push(format!("{what}: {ours:#?}\nand tarfile: {entries:#?}"));
                }
            }
            (Err(ours), Theirs::Accepted { .. }) => {
                let text = ours.to_string();
                match ONLY_THEY_ACCEPT.iter().find(|(why, _)| text.contains(why)) {
                    Some((why, _)) => _ = unneeded.remove(why),
                    None => failures.push(format!("{what}: tarfile accepts what we refuse: {text}")),
                }
            }
            (Ok(_), Theirs::Refused { error }) => {
                if !ONLY_WE_ACCEPT.iter().any(|(why, _)| error.contains(why)) {
                    failures.push(format!("{what}: we accept what tarfile refuses: {error}"));
                }
            }
            (Err(_), Theirs::Refused { .. }) => {}
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(unneeded.is_empty(), "no archive is refused any more for: {unneeded:?}");
    assert!(both > 500, "{both}");
}
