//! Fetching an image's layers ahead of their unpacking: three at a time, as Docker does.
//!
//! Each goes into a file without a name, on the store's filesystem, and is read there while it still grows. Unpacking takes
//! the layers one by one from the lowest up; nothing waits for it, so that the connections are used all the time, at the price
//! of as much space as the layers that are ahead have compressed.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::load::{OpenLayer, Progress};
use crate::oci::{Source, SourceImage};
use crate::{Context, Error, Kind, Result};

/// Layers fetched at the same time.
const AT_ONCE: usize = 3;
const BUFFER: usize = 128 << 10;
/// Bytes of one layer after which it is asked again whether there is room.
const ROOM_EVERY: u64 = 16 << 20;
/// How long until whoever waits for bytes notices a signal.
const PATIENCE: Duration = Duration::from_millis(50);

/// The fetching of one image's layers.
pub(super) struct Fetch<'a> {
    source: &'a Source,
    image: &'a SourceImage,
    /// For what is fetched.
    directory: PathBuf,
    progress: &'a dyn Progress,
    /// Whether there is room for more.
    room: &'a (dyn Fn() -> Result<()> + Sync),
    cancelled: Arc<AtomicBool>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Layers to be fetched, by their numbers.
    waiting: VecDeque<usize>,
    spools: BTreeMap<usize, Arc<Spool>>,
    closed: bool,
}

impl<'a> Fetch<'a> {
    /// `wanted` are the numbers of the layers to be fetched ahead, the lowest first. The others aren't, unless they are read.
    pub(super) fn new(
        source: &'a Source,
        image: &'a SourceImage,
        wanted: &[usize],
        directory: PathBuf,
        progress: &'a dyn Progress,
        room: &'a (dyn Fn() -> Result<()> + Sync),
        cancelled: Arc<AtomicBool>,
    ) -> Self {
        let queue = Queue { waiting: wanted.iter().copied().collect(), ..Queue::default() };
        Self {
            source,
            image,
            directory,
            progress,
            room,
            cancelled,
            queue: Mutex::new(queue),
            changed: Condvar::new(),
        }
    }

    /// Do something with a function that gives the bytes of a layer's blob, while they are fetched.
    pub(super) fn during<T>(&self, work: impl FnOnce(&OpenLayer<'_>) -> T) -> T {
        std::thread::scope(|scope| {
            // Also if the work panics: the scope waits for its threads.
            let _closing = Closing(self);
            for _ in 0..AT_ONCE.min(self.image.layers.len()) {
                scope.spawn(|| self.work());
            }
            work(&|at| self.reader(at))
        })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one thread does.
    fn work(&self) {
        loop {
            let mut queue = self.queue();
            let at = loop {
                if queue.closed {
                    return;
                }
                match queue.waiting.pop_front() {
                    Some(at) => break at,
                    None => queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            };
            let spool = Arc::clone(queue.spools.entry(at).or_default());
            drop(queue);
            let fetched = self.fetch(at, &spool);
            spool.end(fetched);
        }
    }

    fn fetch(&self, at: usize, spool: &Spool) -> Result<()> {
        let layer = &self.image.layers[at];
        let label = layer.diff_id.0.short();
        let mut blob = self.source.layer_reader(layer)?;
        let open = || format!("make a file in {}", self.directory.display());
        let file = spool.begin(tempfile::tempfile_in(&self.directory).context(open)?);
        self.progress.fetching(&label, layer.size(), &spool.fetched);
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = match blob.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).context(|| "read its blob"),
            };
            let written = spool.fetched.load(Ordering::Relaxed);
            if written / ROOM_EVERY != (written + n as u64) / ROOM_EVERY {
                (self.room)()?;
            }
            let write = || format!("write to a file in {}", self.directory.display());
            file.write_all_at(&buffer[..n], written).context(write)?;
            spool.grow(n as u64);
        }
        self.progress.fetched(&label);
        Ok(())
    }

    /// The bytes of a layer's blob from the front, as they come. Layers below it aren't kept any longer.
    fn reader(&self, at: usize) -> Result<Box<dyn Read + Send>> {
        let mut queue = self.queue();
        queue.spools = queue.spools.split_off(&at);
        let failed = queue.spools.get(&at).is_some_and(|spool| spool.has_failed());
        if failed || !queue.spools.contains_key(&at) {
            queue.spools.insert(at, Arc::default());
            queue.waiting.retain(|waiting| *waiting != at);
            queue.waiting.push_front(at);
            self.changed.notify_one();
        }
        let spool = Arc::clone(&queue.spools[&at]);
        Ok(Box::new(SpoolReader { spool, file: None, at: 0, cancelled: Arc::clone(&self.cancelled) }))
    }
}

/// Ends the fetching when it is dropped.
struct Closing<'f, 'a>(&'f Fetch<'a>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.source.stop();
        self.0.changed.notify_all();
    }
}

/// What is there of a blob.
#[derive(Default)]
struct Spool {
    /// Bytes that can be read.
    fetched: Arc<AtomicU64>,
    state: Mutex<SpoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct SpoolState {
    file: Option<Arc<File>>,
    end: Option<Result<()>>,
}

impl Spool {
    fn state(&self) -> MutexGuard<'_, SpoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, file: File) -> Arc<File> {
        let file = Arc::new(file);
        self.state().file = Some(Arc::clone(&file));
        file
    }

    fn grow(&self, by: u64) {
        // While it is locked: a reader that found nothing new waits already, or looks again.
        let _state = self.state();
        self.fetched.fetch_add(by, Ordering::Release);
        self.changed.notify_all();
    }

    fn end(&self, how: Result<()>) {
        self.state().end = Some(how);
        self.changed.notify_all();
    }

    fn has_failed(&self) -> bool {
        matches!(self.state().end, Some(Err(_)))
    }
}

struct SpoolReader {
    spool: Arc<Spool>,
    file: Option<Arc<File>>,
    at: u64,
    cancelled: Arc<AtomicBool>,
}

impl SpoolReader {
    /// Wait for bytes; how many there are beyond those that were read, 0 at the end.
    fn wait(&mut self) -> Result<u64> {
        let mut state = self.spool.state();
        loop {
            let fetched = self.spool.fetched.load(Ordering::Acquire);
            if fetched > self.at {
                self.file.clone_from(&state.file);
                return Ok(fetched - self.at);
            }
            match &state.end {
                Some(end) => return end.clone().map(|()| 0),
                None if self.cancelled.load(Ordering::Relaxed) => {
                    return Err(Error::new(Kind::Interrupted, "interrupted"));
                }
                None => {}
            }
            let waited = self.spool.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Read for SpoolReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.wait().map_err(io::Error::other)?;
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let Some(file) = self.file.as_ref().filter(|_| most > 0) else { return Ok(0) };
        let n = file.read_at(&mut into[..most], self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
