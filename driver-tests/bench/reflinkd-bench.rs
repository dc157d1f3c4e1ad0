//! Rows of `make bench` that are measured in process, and against the raw ioctls in the same breath.
//!
//! ```text
//! reflinkd-bench STORE IMAGE REFLINKD [COUNT]
//! ```
//!
//! STORE is a store on Btrfs that holds IMAGE and no container; REFLINKD is the program, for the rows of whole commands.
//! Prints an array of `{"row", "ours_ms", "limit_ms", "ratio", "most_ms", "most_ratio"}`, the last two being what we
//! aim at. Raw and ours alternate, so that a busy machine slows down both; medians throughout. COUNT (300) is how many
//! pairs are made. Removes what it makes, also when it fails.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use reflinkd::backend::Want;
use reflinkd::engine::container::CreateContainer;
use reflinkd::engine::{Engine, Settings};
use reflinkd::sys::btrfs::{BtrfsFd, Create, space, subvol};

mod rows;
use rows::{Result, Row, median, timed};

/// Containers of the rows that make many, and how many workers make them.
const MANY: usize = 1000;
const WORKERS: usize = 32;
/// Repeats of `ps -s`.
const REPEATS: usize = 15;
/// An image of one empty directory.
const SMALL: &str = "reflinkd-bench-small";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [store, image, program, rest @ ..] = arguments.as_slice() else {
        return Err("usage: reflinkd-bench STORE IMAGE REFLINKD [COUNT]".into());
    };
    let count = rest.first().map_or(Ok(300), |count| count.parse())?;
    let bench = Bench::open(Path::new(store), image, Path::new(program))?;
    let rows = bench.rows(count);
    let cleaned = bench.clean();
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string_pretty(&rows?)?)?;
    cleaned
}

struct Bench {
    engine: Engine,
    image: String,
    program: PathBuf,
    /// Parents of raw snapshots, each in a directory of its own.
    raw: PathBuf,
    any: BtrfsFd,
    source: BtrfsFd,
}

/// Do `act(0..count)` on [`WORKERS`] threads and say how long all of it took.
fn together(count: usize, act: impl Fn(usize) -> Result<()> + Sync) -> Result<f64> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    number if number < count => act(number)?,
                    _ => return Ok(()),
                }
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    Ok(start.elapsed().as_secs_f64() * 1000.0)
}

impl Bench {
    fn open(store: &Path, image: &str, program: &Path) -> Result<Self> {
        let engine = Engine::open(Settings { root: store.to_path_buf(), ..Settings::default() })?;
        let top = engine.find_image(image)?.top.ok_or("the image has no layers")?;
        let source = BtrfsFd::open(&store.join("snapshots").join(top.to_string()).join("fs"))?;
        // Outside of the store, which nobody but its engine writes to.
        let raw = store.with_extension("raw");
        std::fs::create_dir(&raw)?;
        let any = BtrfsFd::open(&raw)?;
        let bench = Self { engine, image: image.to_string(), program: program.to_path_buf(), raw, any, source };
        // The end of a tar, and nothing before it.
        let tar = bench.raw.with_extension("tar");
        std::fs::write(&tar, [0; 1024])?;
        let imported = bench.command(&["import", tar.to_str().ok_or("a path that is no text")?, SMALL]);
        std::fs::remove_file(&tar)?;
        imported.map(|()| bench)
    }

    fn rows(&self, count: usize) -> Result<Vec<Row>> {
        let mut rows = self.creates(count)?;
        rows.extend(self.parallel()?);
        Ok(rows)
    }

    fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(&self.any)?)
    }

    fn raw_snapshot(&self, name: &str) -> Result<()> {
        let place = BtrfsFd::open(&self.raw.join(name))?;
        Ok(subvol::snap_create(&self.source, &place, "fs".as_ref(), &Create::default())?)
    }

    fn create(&self, name: &str) -> Result<()> {
        let wanted =
            CreateContainer { name: Some(name.to_string()), image: self.image.clone(), ..Default::default() };
        self.engine.create_container(wanted)?;
        Ok(())
    }

    fn command(&self, arguments: &[&str]) -> Result<()> {
        let ran = Command::new(&self.program)
            .arg("--root")
            .arg(self.engine.root())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        if ran.success() { Ok(()) } else { Err(format!("reflinkd {arguments:?}: {ran}").into()) }
    }

    /// One at a time: raw, in process, and the whole command, in turns; then their removal.
    fn creates(&self, count: usize) -> Result<Vec<Row>> {
        let (mut raw, mut ours, mut command) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let place = format!("pair{number}");
            std::fs::create_dir(self.raw.join(&place))?;
            raw.push(timed(|| self.raw_snapshot(&place))?);
            ours.push(timed(|| self.create(&place))?);
            let whole = format!("whole{number}");
            command.push(timed(|| self.command(&["create", "--image", &self.image, &whole]))?);
        }
        let (mut raw_gone, mut gone, mut command_gone) = (Vec::new(), Vec::new(), Vec::new());
        let (mut small_gone, mut start) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (place, whole, small) = (format!("pair{number}"), format!("whole{number}"), format!("small{number}"));
            self.command(&["create", "--image", SMALL, &small])?;
            let directory = BtrfsFd::open(&self.raw.join(&place))?;
            raw_gone.push(timed(|| Ok(subvol::snap_destroy(&directory, "fs".as_ref())?))?);
            gone.push(timed(|| Ok(self.engine.remove_container(&place, false)?))?);
            command_gone.push(timed(|| self.command(&["rm", &whole]))?);
            small_gone.push(timed(|| self.command(&["rm", &small]))?);
            start.push(timed(|| self.command(&["--version"]))?);
        }
        let ours = median(ours);
        Ok(vec![
            Row::new("create, in process", ours).limit(median(raw)).most_ratio(1.25),
            Row::new("create, in turns with it", median(command)).limit(ours).most_ms(ours + 8.0),
            Row::new("rm, in process", median(gone)).limit(median(raw_gone)),
            Row::new("rm, this image", median(command_gone)).most_ms(5.0),
            Row::new("rm, an empty image", median(small_gone)).most_ms(5.0),
            Row::new("--version: the start of a process", median(start)),
        ])
    }

    /// Many at once, each way on a settled filesystem; then what it costs to list them.
    fn parallel(&self) -> Result<Vec<Row>> {
        self.settle()?;
        let limit = together(MANY, |number| {
            let place = format!("many{number}");
            std::fs::create_dir(self.raw.join(&place))?;
            self.raw_snapshot(&place)
        })?;
        for number in 0..MANY {
            let place = self.raw.join(format!("many{number}"));
            subvol::snap_destroy(&BtrfsFd::open(&place)?, "fs".as_ref())?;
            std::fs::remove_dir(place)?;
        }
        self.settle()?;
        let threads = together(MANY, |number| self.create(&format!("many{number}")))?;
        self.remove_all()?;
        self.settle()?;
        let names: Vec<_> = (0..MANY).map(|number| format!("many{number}")).collect();
        let processes = together(MANY, |n| self.command(&["create", "--image", &self.image, &names[n]]))?;
        let starts = together(MANY, |_| self.command(&["--version"]))?;
        self.settle()?;
        let (mut ps, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            ps.push(timed(|| self.command(&["ps", "-s"]))?);
            let want = Want { sync: true, apparent: false };
            sizes.push(timed(|| Ok(self.engine.sizes(self.engine.containers()?, want)?))?);
        }
        Ok(vec![
            Row::new("1,000 creates, 32 threads", threads).limit(limit).most_ratio(1.3),
            Row::new("1,000 creates, 32 processes", processes).limit(limit).most_ratio(1.3),
            Row::new("1,000 x --version, 32 processes", starts),
            Row::new("ps -s, 1,000 containers", median(ps)).most_ms(50.0),
            Row::new("ps -s, 1,000, in process", median(sizes)),
        ])
    }

    fn remove_all(&self) -> Result<()> {
        for container in self.engine.containers()? {
            if let Some(container) = container.container() {
                self.engine.remove_container(&container.id, true)?;
            }
        }
        Ok(())
    }

    fn clean(&self) -> Result<()> {
        self.remove_all()?;
        self.command(&["rmi", SMALL])?;
        for entry in std::fs::read_dir(&self.raw)? {
            let place = entry?.path();
            match subvol::snap_destroy(&BtrfsFd::open(&place)?, "fs".as_ref()) {
                Ok(()) | Err(nix::errno::Errno::ENOENT) => {}
                Err(e) => return Err(e.into()),
            }
            std::fs::remove_dir(place)?;
        }
        std::fs::remove_dir(&self.raw)?;
        space::sync(&self.any)?;
        Ok(())
    }
}
