//! Fetching an image's layers ahead of their unpacking: three at a time, as Docker does.
//!
//! Unpacking takes the layers one by one from the lowest up. Those ahead of it go into files without names, on the store's
//! filesystem, and don't wait for it, so that the connections are used all the time, at the price of as much space as they have
//! compressed. The one that is being unpacked is in no file beyond what was fetched before: its reader reads up to there, then
//! gets the connection itself. What went by that way was never written, nor is it among what the layer's commit syncs; if it
//! is wanted again (the disk was full, and something could be removed), it is fetched again.

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
    /// The lowest layer: its reader comes before there is anything to be ahead of.
    first: Option<usize>,
    /// For what is fetched.
    directory: PathBuf,
    progress: &'a dyn Progress,
    /// Whether there is room for more.
    room: &'a (dyn Fn() -> Result<()> + Sync),
    cancelled: Arc<AtomicBool>,
    /// Whoever holds it may look into spools; who holds a spool takes no other lock.
    queue: Mutex<Queue>,
    /// All is over. Set while the queue is locked.
    closed: AtomicBool,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Layers to be fetched, by their numbers.
    waiting: VecDeque<usize>,
    spools: BTreeMap<usize, Arc<Spool>>,
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
            first: wanted.first().copied(),
            directory,
            progress,
            room,
            cancelled,
            queue: Mutex::new(queue),
            closed: AtomicBool::new(false),
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
                if self.closed.load(Ordering::Relaxed) {
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

    /// Fetch a layer into a file for as long as nobody reads it; its reader does the rest.
    fn fetch(&self, at: usize, spool: &Spool) -> Result<()> {
        let layer = &self.image.layers[at];
        let label = layer.diff_id.0.short();
        let mut blob = self.source.layer_reader(layer)?;
        self.progress.fetching(&label, layer.size(), &spool.fetched);
        let mut file = None;
        let mut buffer = vec![0; BUFFER];
        while Some(at) != self.first && spool.is_ahead() {
            let n = match blob.read(&mut buffer) {
                Ok(0) => {
                    self.progress.fetched(&label);
                    return Ok(());
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).context(|| "read its blob"),
            };
            let written = spool.fetched.load(Ordering::Relaxed);
            if written / ROOM_EVERY != (written + n as u64) / ROOM_EVERY {
                (self.room)()?;
            }
            let write = || format!("write to a file in {}", self.directory.display());
            let file = match &mut file {
                Some(file) => file,
                none => none.insert(spool.begin(tempfile::tempfile_in(&self.directory).context(write)?)),
            };
            file.write_all_at(&buffer[..n], written).context(write)?;
            spool.grow(n as u64);
        }
        // Not before the reader is done with it is there to be another connection.
        if spool.hand_over(blob, &self.closed) {
            self.progress.fetched(&label);
        }
        Ok(())
    }

    /// The bytes of a layer's blob from the front, as they come. Layers below it aren't kept any longer.
    fn reader(&self, at: usize) -> Result<Box<dyn Read + Send>> {
        let mut queue = self.queue();
        let wanted = queue.spools.split_off(&at);
        for below in std::mem::replace(&mut queue.spools, wanted).into_values() {
            below.give_up();
        }
        let known = queue.spools.get(&at).filter(|spool| spool.begin_read()).map(Arc::clone);
        let spool = known.unwrap_or_else(|| {
            let spool = Arc::<Spool>::default();
            spool.begin_read();
            queue.spools.insert(at, Arc::clone(&spool));
            queue.waiting.retain(|waiting| *waiting != at);
            queue.waiting.push_front(at);
            self.changed.notify_one();
            spool
        });
        Ok(Box::new(SpoolReader { spool, rest: None, at: 0, cancelled: Arc::clone(&self.cancelled) }))
    }
}

/// Ends the fetching when it is dropped.
struct Closing<'f, 'a>(&'f Fetch<'a>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        let queue = self.0.queue();
        self.0.closed.store(true, Ordering::Relaxed);
        drop(queue);
        self.0.source.stop();
        self.0.changed.notify_all();
    }
}

/// What is there of a blob.
#[derive(Default)]
struct Spool {
    /// Bytes that were fetched. Until the blob is handed over they can be read from the file.
    fetched: Arc<AtomicU64>,
    state: Mutex<SpoolState>,
    changed: Condvar,
}

#[derive(Default)]
struct SpoolState {
    file: Option<Arc<File>>,
    /// Whether there is, or was, a reader.
    is_read: bool,
    /// What the file lacks, from when it is handed over until the reader takes it.
    blob: Option<Box<dyn Read + Send>>,
    /// Whether it was handed over: the file has only the beginning.
    is_handed_over: bool,
    /// Whether the reader has had all of that.
    is_read_out: bool,
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

    /// Whether it goes into the file.
    fn is_ahead(&self) -> bool {
        let state = self.state();
        !state.is_read && state.end.is_none()
    }

    /// Nobody reads it any more.
    fn give_up(&self) {
        self.end(Err(Error::new(Kind::Interrupted, "it isn't wanted any more")));
    }

    /// Leave the rest to the reader, and wait for it; whether it came to the end. It goes on when that is told.
    fn hand_over(&self, blob: Box<dyn Read + Send>, closed: &AtomicBool) -> bool {
        let mut state = self.state();
        state.blob = Some(blob);
        state.is_handed_over = true;
        self.changed.notify_all();
        while !state.is_read_out && state.end.is_none() && !closed.load(Ordering::Relaxed) {
            let waited = self.changed.wait_timeout(state, PATIENCE);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.is_read_out
    }

    fn read_out(&self) {
        self.state().is_read_out = true;
        self.changed.notify_all();
    }

    /// How it ended; who says so first knows best.
    fn end(&self, how: Result<()>) {
        self.state().end.get_or_insert(how);
        self.changed.notify_all();
    }

    /// Whether whoever comes now can read it from the beginning. A connection has one reader, a whole file any number.
    fn begin_read(&self) -> bool {
        let mut state = self.state();
        let is_whole = !state.is_handed_over && matches!(state.end, Some(Ok(())));
        let is_fresh = !state.is_read && !matches!(state.end, Some(Err(_)));
        state.is_read = true;
        is_whole || is_fresh
    }
}

struct SpoolReader {
    spool: Arc<Spool>,
    /// `None` until it has been waited for.
    rest: Option<Rest>,
    at: u64,
    cancelled: Arc<AtomicBool>,
}

/// What is left to be read, as far as it is known.
enum Rest {
    /// So many bytes of the file.
    File(Arc<File>, u64),
    Blob(Box<dyn Read + Send>),
    End,
}

impl SpoolReader {
    /// Wait for what is behind the bytes that were read from the file.
    fn next(&self) -> Result<Rest> {
        let mut state = self.spool.state();
        loop {
            let fetched = self.spool.fetched.load(Ordering::Acquire);
            match &state.file {
                Some(file) if fetched > self.at => return Ok(Rest::File(Arc::clone(file), fetched - self.at)),
                _ => {}
            }
            if let Some(blob) = state.blob.take() {
                return Ok(Rest::Blob(blob));
            }
            match &state.end {
                Some(end) => return end.clone().map(|()| Rest::End),
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
        if into.is_empty() {
            return Ok(0);
        }
        if matches!(self.rest, None | Some(Rest::File(_, 0))) {
            self.rest = Some(self.next().map_err(io::Error::other)?);
        }
        match &mut self.rest {
            Some(Rest::File(file, left)) => {
                let most = into.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let n = file.read_at(&mut into[..most], self.at)?;
                *left -= n as u64;
                self.at += n as u64;
                Ok(n)
            }
            Some(Rest::Blob(blob)) => {
                let n = blob.read(into)?;
                self.spool.fetched.fetch_add(n as u64, Ordering::Relaxed);
                self.at += n as u64;
                if n == 0 {
                    self.spool.read_out();
                    self.rest = Some(self.next().map_err(io::Error::other)?);
                }
                Ok(n)
            }
            Some(Rest::End) | None => Ok(0),
        }
    }
}

/// Whoever fetches for it needn't any longer.
impl Drop for SpoolReader {
    fn drop(&mut self) {
        self.spool.give_up();
    }
}

#[cfg(test)]
mod tests;
