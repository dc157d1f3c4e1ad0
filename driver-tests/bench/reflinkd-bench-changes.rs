//! Rows of the table `changes` of `make bench` that no command has.
//!
//! ```text
//! reflinkd-bench-changes walk STORE CONTAINER [COUNT]
//! reflinkd-bench-changes relatives STORE CONTAINER REFLINKD [COUNT]
//! ```
//!
//! `walk` compares the container with its image by walking both trees, what changes it or not, and prints the milliseconds
//! (median of COUNT) and the number of changes. `relatives` is for Btrfs: it clones and snapshots the container by the raw
//! ioctl, in process and by REFLINKD in turns, and prints rows as reflinkd-bench does. It removes what it makes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use reflinkd::backend::Tree;
use reflinkd::backend::changes::{Comparison, walk};
use reflinkd::engine::{Engine, Settings};
use reflinkd::sys::btrfs::{BtrfsFd, Create, subvol};

mod rows;
use rows::{Result, Row, median, timed};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let count = |rest: &[&str], default| rest.first().map_or(Ok(default), |count| count.parse());
    let text = match words.as_slice() {
        ["walk", store, container, rest @ ..] => {
            serde_json::to_string(&walked(Path::new(store), container, count(rest, 5)?)?)?
        }
        ["relatives", store, container, program, rest @ ..] => {
            let relatives = Relatives::open(Path::new(store), container, Path::new(program))?;
            let rows = relatives.rows(count(rest, 50)?);
            let cleaned = relatives.clean();
            let rows = serde_json::to_string_pretty(&rows?)?;
            cleaned?;
            rows
        }
        _ => return Err("usage: reflinkd-bench-changes walk|relatives STORE CONTAINER ...".into()),
    };
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

fn engine_at(store: &Path) -> Result<Engine> {
    Ok(Engine::open(Settings { root: store.to_path_buf(), tend: false, ..Settings::default() })?)
}

/// The answer of `walk`.
#[derive(serde::Serialize)]
struct Walked {
    ms: f64,
    changes: usize,
}

fn walked(store: &Path, container: &str, count: usize) -> Result<Walked> {
    let engine = engine_at(store)?;
    let record = engine.find_container(container)?;
    let place = |uuid: uuid::Uuid| Tree::new(store.join("snapshots").join(uuid.to_string()), None);
    let (tree, parent) = (place(record.uuid), record.parent.map(place));
    let wanted = Comparison { parent: parent.as_ref(), tree: &tree, scratch: None, sizes: false };
    let mut changes = 0;
    let times: Result<Vec<f64>> = (0..count)
        .map(|_| {
            timed(|| {
                changes = walk(&wanted)?.list.len();
                Ok(())
            })
        })
        .collect();
    Ok(Walked { ms: median(times?), changes })
}

struct Relatives {
    engine: Engine,
    container: String,
    program: PathBuf,
    /// Parents of raw snapshots, each in a directory of its own.
    raw: PathBuf,
    source: BtrfsFd,
}

impl Relatives {
    fn open(store: &Path, container: &str, program: &Path) -> Result<Self> {
        let engine = engine_at(store)?;
        let source = BtrfsFd::open(&engine.container_root(container)?)?;
        // Outside of the store, which nobody but its engine writes to.
        let raw = store.with_extension("relatives");
        std::fs::create_dir(&raw)?;
        Ok(Self { engine, container: container.to_string(), program: program.to_path_buf(), raw, source })
    }

    fn rows(&self, count: usize) -> Result<Vec<Row>> {
        rustix::fs::syncfs(&BtrfsFd::open(&self.raw)?)?;
        let [mut raw, mut cloned, mut clone, mut snapped, mut snapshot] = [const { Vec::new() }; 5];
        for number in 0..count {
            let place = self.raw.join(number.to_string());
            std::fs::create_dir(&place)?;
            let place = BtrfsFd::open(&place)?;
            let (one, other) = (format!("clone{number}"), format!("whole{number}"));
            raw.push(timed(|| Ok(subvol::snap_create(&self.source, &place, "fs".as_ref(), &Create::default())?))?);
            cloned.push(timed(|| Ok(self.engine.clone_container(&self.container, Some(&one))?))?);
            clone.push(timed(|| self.command(&["clone", &self.container, &other]))?);
            snapped.push(timed(|| Ok(self.engine.snapshot(&self.container, Some(&one))?))?);
            snapshot.push(timed(|| self.command(&["snapshot", &self.container, &other]))?);
        }
        let raw = median(raw);
        Ok(vec![
            Row::new("clone, in process", median(cloned)).limit(raw).most_ratio(1.25),
            Row::new("clone", median(clone)).limit(raw),
            Row::new("snapshot, in process", median(snapped)).limit(raw).most_ratio(1.25),
            Row::new("snapshot", median(snapshot)).limit(raw),
        ])
    }

    fn command(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--no-tend", "--root"]).arg(self.engine.root()).args(arguments);
        let ran = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
        if ran.success() { Ok(()) } else { Err(format!("reflinkd {arguments:?}: {ran}").into()) }
    }

    fn clean(&self) -> Result<()> {
        for container in self.engine.containers()? {
            let made = |name: &str| name.starts_with("clone") || name.starts_with("whole");
            if let Some(container) = container.container().filter(|container| made(&container.name)) {
                self.engine.remove_container(&container.id, true)?;
            }
        }
        for snapshot in self.engine.snapshots(Some(&self.container))? {
            self.engine.remove_container(&snapshot.name, false)?;
        }
        for entry in std::fs::read_dir(&self.raw)? {
            let place = entry?.path();
            match subvol::snap_destroy(&BtrfsFd::open(&place)?, "fs".as_ref()) {
                Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
            std::fs::remove_dir(place)?;
        }
        Ok(std::fs::remove_dir(&self.raw)?)
    }
}
