//! Getting blobs to one destination, several at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::blob::{Checked, Fault};
use super::{Known, Leaving, Progress};
use crate::engine::Engine;
use crate::engine::room::MAKE_ROOM;
use crate::oci::{Compression, Descriptor, Digest, Reference, Remote, Spooled, layer_type};
use crate::registry::{Destination, Repository};
use crate::{Error, Kind, Result};

/// Blobs on their way at the same time, as with Docker's fetching.
const AT_ONCE: usize = 3;
/// Repositories that are asked for one blob, to mount or to fetch it.
const SOURCES: usize = 3;

/// What is sent to one repository.
pub(super) struct Transfer<'a> {
    engine: &'a Engine,
    to: &'a Reference,
    destination: Destination,
    progress: &'a dyn Progress,
    /// Those that blobs are fetched from, by name.
    sources: Mutex<BTreeMap<String, Arc<Repository>>>,
    /// Those of them that didn't answer: they aren't waited for again.
    lost: Mutex<BTreeSet<String>>,
    /// Something failed: nothing else is worth it.
    stopped: AtomicBool,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(engine: &'a Engine, to: &'a Reference, progress: &'a dyn Progress) -> Result<Self> {
        let destination = Destination::new(to, &engine.settings.registries, engine.cancellation())?;
        let (sources, lost, stopped) = (Mutex::default(), Mutex::default(), AtomicBool::new(false));
        Ok(Self { engine, to, destination, progress, sources, lost, stopped })
    }

    /// Do something for each item, several at a time. The first failure ends all.
    pub(super) fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<usize, R>> = Mutex::default();
        let failure: Mutex<Option<Error>> = Mutex::default();
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(items.len()) {
                scope.spawn(|| {
                    while !self.stopped.load(Ordering::Relaxed) {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(at) else { return };
                        match work(item) {
                            Ok(result) => {
                                done.lock().unwrap_or_else(PoisonError::into_inner).insert(at, result);
                            }
                            Err(e) => {
                                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                                self.stop();
                            }
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()),
        }
    }

    /// End what others are at.
    fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.destination.stop();
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|source| source.stop());
    }

    /// Have a layer at the destination: what it is there.
    pub(super) fn layer(&self, layer: &Leaving, compression: Compression, image: &str) -> Result<Descriptor> {
        let label = layer.diff_id.0.short();
        if let Some(blob) = self.known(&label, &layer.known)? {
            return Ok(blob);
        }
        // A plain tar that a registry had is what comes out of the tree.
        let plain = layer.known.iter().find(|known| known.blob.digest == layer.diff_id.0);
        let saved = self.engine.layer_to_save(layer.diff_id, &layer.tree, image)?;
        let (how, media_type) = match plain {
            Some(known) => (Compression::Plain, known.blob.media_type.clone()),
            None => (compression, layer_type(compression)),
        };
        let directory = self.engine.spool_directory();
        let packed = Spooled::compress(how, &directory, &mut |out| {
            self.engine.restore_layer(layer.diff_id, &saved, true, &mut Stoppable { out, stopped: &self.stopped })
        });
        let packed = packed.map_err(|e| if e.kind() == Kind::NoSpace { e.with_hint(MAKE_ROOM) } else { e })?;
        let blob = packed.descriptor(&media_type);
        if self.destination.has_blob(&blob)? {
            self.progress.exists(&label);
        } else {
            self.send(&label, &blob, &|| Ok(packed.reader()), &Fault::default())?;
        }
        Ok(blob)
    }

    /// Have one of some blobs at the destination, the first that it or another repository has.
    pub(super) fn known(&self, label: &str, known: &[Known]) -> Result<Option<Descriptor>> {
        let here = self.to.repository();
        for Known { blob, repositories } in known {
            if self.destination.has_blob(blob)? {
                self.progress.exists(label);
                return Ok(Some(blob.clone()));
            }
            let names = repositories.iter().filter_map(|name| name.parse::<Reference>().ok());
            let near = names.filter(|name| name.domain() == self.to.domain() && name.path() != self.to.path());
            for name in near.take(SOURCES) {
                if self.destination.mount(blob.digest, name.path())? {
                    self.progress.mounted(label, name.path());
                    return Ok(Some(blob.clone()));
                }
            }
            for name in repositories.iter().filter(|name| **name != here).take(SOURCES) {
                if self.lost.lock().unwrap_or_else(PoisonError::into_inner).contains(name) {
                    continue;
                }
                match self.copy(label, blob, name)? {
                    None => return Ok(Some(blob.clone())),
                    Some(fault) => tracing::warn!("{name} doesn't give layer {label} any more: {fault}"),
                }
            }
        }
        Ok(None)
    }

    /// Fetch a blob and send it on; why it couldn't be fetched, if that is it.
    fn copy(&self, label: &str, blob: &Descriptor, from: &str) -> Result<Option<Error>> {
        let fetch = || self.source(from)?.blob(blob);
        // Before the destination is told of it.
        let first = match fetch() {
            Err(e) if e.kind() == Kind::Interrupted => return Err(e),
            Err(e) => {
                // That it hasn't this one says nothing of others.
                if !matches!(e.kind(), Kind::NotFound | Kind::BadInput) {
                    self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(from.to_string());
                }
                return Ok(Some(e));
            }
            Ok(first) => Mutex::new(Some(first)),
        };
        let fault = Fault::default();
        let open = || {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            first.map_or_else(fetch, Ok).map_err(|e| fault.note(e))
        };
        match (self.send(label, blob, &open, &fault), fault.take()) {
            (Ok(()), _) => Ok(None),
            (Err(_), Some(fault)) if fault.kind() != Kind::Interrupted => Ok(Some(fault)),
            (Err(e), _) => Err(e),
        }
    }

    /// A repository that blobs and manifests are fetched from.
    pub(super) fn source(&self, name: &str) -> Result<Arc<Repository>> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(name) {
            return Ok(Arc::clone(source));
        }
        // Whoever stops them holds the lock, too.
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        let engine = self.engine;
        let source = Repository::new(&name.parse()?, &engine.settings.registries, engine.cancellation())?;
        Ok(Arc::clone(sources.entry(name.to_string()).or_insert(Arc::new(source))))
    }

    fn send(
        &self,
        label: &str,
        blob: &Descriptor,
        open: &dyn Fn() -> Result<Box<dyn Read + Send>>,
        fault: &Fault,
    ) -> Result<()> {
        let sent = Arc::new(AtomicU64::new(0));
        self.progress.pushing(label, blob.size, &sent);
        let open = || Ok(Box::new(Checked::new(open()?, blob, &sent, fault)) as Box<dyn Read + Send>);
        self.destination.put_blob(blob, &open)?;
        self.progress.pushed(label);
        Ok(())
    }

    /// Have a small blob at the destination that is here.
    pub(super) fn document_blob(&self, bytes: &[u8]) -> Result<()> {
        let blob = Descriptor::new("", Digest::of(bytes), bytes.len() as u64);
        if self.destination.has_blob(&blob)? {
            return Ok(());
        }
        self.destination.put_blob(&blob, &|| Ok(Box::new(io::Cursor::new(bytes.to_vec()))))
    }

    pub(super) fn progress(&self) -> &dyn Progress {
        self.progress
    }

    pub(super) fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Give a manifest or index the name.
    pub(super) fn tag(&self, media_type: &str, bytes: &[u8]) -> Result<()> {
        self.destination.put_manifest(self.to.tag(), media_type, bytes)
    }
}

/// Ends what is being packed when something else has failed.
struct Stoppable<'a> {
    out: &'a mut dyn Write,
    stopped: &'a AtomicBool,
}

impl Write for Stoppable<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(io::Error::other(Error::new(Kind::Interrupted, "interrupted")));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
