//! Makes the entries of directories, one directory after the other.

use std::collections::hash_map;
use std::ffi::CStr;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{
    AtFlags, FileType, IFlags, Mode, OFlags, RawDir, Statx, StatxAttributes, linkat, makedev, mkdirat, mknodat,
    openat, openat2, readlinkat, symlinkat,
};
use rustix::io::Errno;

use super::links::Linked;
use super::queue::{Made, Queue, Route};
use super::{Content, Counts, Entry, FRESH_DIRECTORY, OPEN_DIRECTORY, Origin, Shared};
use crate::copy::attributes::{Attributes, LOCKING, set_flags};
use crate::copy::content;
use crate::copy::facts::{Key, device_of, facts, kind_of};
use crate::copy::open::{HERE, OPEN_FILE, reopen};
use crate::sys::{reflink, rooted};
use crate::{Context, Error, Kind, Result};

/// Bytes of names read at once.
const LISTING: usize = 32 << 10;
/// How often a name may turn out to be something else than it was a moment ago.
const RETRIES: usize = 100;

const CREATE_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// One thread's work.
#[derive(Debug)]
pub(super) struct Worker<'a> {
    shared: &'a Shared,
    number: usize,
    attributes: Attributes,
    counts: Counts,
    entries: Vec<Entry>,
}

/// A directory, open on both sides.
#[derive(Debug)]
struct Pair {
    number: u32,
    source: OwnedFd,
    clone: OwnedFd,
}

impl Pair {
    /// The directory some steps up, on both sides; `None` if it isn't the one that it was.
    fn climb(&self, steps: u32, (key, there): (Key, Made)) -> Option<(OwnedFd, OwnedFd)> {
        let source = rooted::above(&self.source, steps).ok()?;
        let clone = rooted::above(&self.clone, steps).ok()?;
        let same = Key::of(&facts(&source, c"", AtFlags::EMPTY_PATH).ok()?) == key
            && Made::of(&clone, c"", AtFlags::EMPTY_PATH, None).ok()?.inode == there.inode;
        same.then_some((source, clone))
    }
}

/// How making an entry ended.
enum Outcome {
    /// It is made, or it vanished.
    Done,
    /// It isn't what it was made as; look again.
    Is(FileType),
}

/// Whoever leaves stops the others: there is nothing left to do, or there was an error or a panic.
struct Leave<'a>(&'a Queue);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<'a> Worker<'a> {
    pub(super) fn new(shared: &'a Shared, number: usize) -> Self {
        let attributes = Attributes::new(Some(shared.me));
        Self { shared, number, attributes, counts: Counts::default(), entries: Vec::new() }
    }

    /// Take directories until all are done: what was made, but for directories and inodes with several names.
    pub(super) fn run(mut self) -> Result<(Counts, Vec<Entry>)> {
        let _leave = Leave(&self.shared.queue);
        // With an umask of this thread's own, what is made has its mode at once.
        unshare(CloneFlags::CLONE_FS).context(|| "unshare the umask")?;
        rustix::process::umask(Mode::empty());
        let mut listing = vec![MaybeUninit::uninit(); LISTING];
        let (mut here, mut below) = (None, Vec::new());
        while let Some(number) = self.shared.queue.next(self.number) {
            here = self.open(number, here.as_ref())?;
            let made = match &here {
                Some(pair) => self.directory(pair, &mut listing, &mut below)?,
                None => None,
            };
            self.shared.queue.done(self.number, number, made, &mut below);
        }
        Ok((self.counts, self.entries))
    }

    /// Open a directory, from the one that is open still if that is near. `None` if it vanished from the source.
    fn open(&self, number: u32, here: Option<&Pair>) -> Result<Option<Pair>> {
        let Shared { source, clone, queue, .. } = self.shared;
        if let Some(here) = here
            && let Some(Route { steps, reached, down }) = queue.route(here.number, number)
        {
            if steps == 0 {
                return self.open_below(number, &here.source, &here.clone, &down);
            }
            if let Some((source, clone)) = here.climb(steps, reached) {
                return self.open_below(number, &source, &clone, &down);
            }
        }
        self.open_below(number, source, clone, &queue.path(number))
    }

    fn open_below(&self, number: u32, source: &OwnedFd, clone: &OwnedFd, path: &[u8]) -> Result<Option<Pair>> {
        let shown = || format!("/{}", self.shared.queue.path(number).escape_ascii());
        let source = match rooted::beneath(source, path, OPEN_DIRECTORY | OFlags::NOATIME) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(Errno::XDEV) => return Err(mounted()).context(shown),
            source => source.context(|| "open").context(shown)?,
        };
        let clone = rooted::beneath(clone, path, OPEN_DIRECTORY).context(|| "open in the clone").context(shown)?;
        Ok(Some(Pair { number, source, clone }))
    }

    /// Make what is in a directory, then give it its attributes. `None` if it isn't done because somebody stopped.
    fn directory(
        &mut self,
        pair: &Pair,
        listing: &mut [MaybeUninit<u8>],
        below: &mut Vec<Box<[u8]>>,
    ) -> Result<Option<(Key, Made)>> {
        let why = |name: &[u8]| {
            let path = self.shared.queue.path(pair.number);
            let slash = if path.is_empty() || name.is_empty() { "" } else { "/" };
            format!("/{}{slash}{}", path.escape_ascii(), name.escape_ascii())
        };
        let mut listing = RawDir::new(&pair.source, listing);
        loop {
            if listing.is_buffer_empty() && self.shared.queue.stopped() {
                return Ok(None);
            }
            let entry = match listing.next() {
                // Removed while it was read: what is in the clone stays.
                None | Some(Err(Errno::NOENT)) => break,
                Some(entry) => entry.context(|| "list").context(|| why(b""))?,
            };
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(pair, name, entry.file_type(), below).context(|| why(name.to_bytes()))?;
            }
        }
        self.describe(pair).context(|| why(b"")).map(Some)
    }

    fn describe(&mut self, pair: &Pair) -> Result<(Key, Made)> {
        let facts = facts(&pair.source, c"", AtFlags::EMPTY_PATH).context(|| "stat")?;
        let extras = reflink::extras(&pair.source, self.shared.on_xfs).context(|| "get its flags")?;
        self.attributes.set(&pair.source, &pair.clone, &facts, extras, Some(FRESH_DIRECTORY))?;
        // The root has still to be moved into its place.
        set_flags(&pair.clone, extras.flags, pair.number != 0)?;
        self.counts.directories += 1;
        let origin = self.origin(&pair.source, c"", AtFlags::EMPTY_PATH, &facts)?;
        let made = Made::of(&pair.clone, c"", AtFlags::EMPTY_PATH, origin).context(|| "stat the clone")?;
        Ok((Key::of(&facts), made))
    }

    fn entry(&mut self, at: &Pair, name: &CStr, listed: FileType, below: &mut Vec<Box<[u8]>>) -> Result<()> {
        let mut kind = listed;
        for _ in 0..RETRIES {
            let outcome = match kind {
                FileType::Directory => match mkdirat(&at.clone, name, FRESH_DIRECTORY) {
                    Err(Errno::EXIST) => Outcome::Done,
                    made => {
                        made.context(|| "mkdir")?;
                        below.push(name.to_bytes().into());
                        Outcome::Done
                    }
                },
                FileType::RegularFile => self.file(at, name)?,
                _ => self.node(at, name)?,
            };
            match outcome {
                Outcome::Done => return Ok(()),
                Outcome::Is(another) => kind = another,
            }
        }
        Err(Error::new(Kind::InUse, "it becomes something else again and again"))
    }

    fn file(&mut self, at: &Pair, name: &CStr) -> Result<Outcome> {
        let flags = if self.shared.descriptors.is_some() {
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
        } else {
            OPEN_FILE
        };
        let found = match openat2(&at.source, name, flags, Mode::empty(), HERE) {
            Err(Errno::NOENT) => return Ok(Outcome::Done),
            Err(Errno::LOOP | Errno::NXIO) => return Ok(Outcome::Is(FileType::Unknown)),
            Err(Errno::XDEV) => return Err(mounted()),
            found => found.context(|| "open")?,
        };
        let facts = facts(&found, c"", AtFlags::EMPTY_PATH).context(|| "stat")?;
        if kind_of(&facts) != FileType::RegularFile {
            return Ok(Outcome::Is(FileType::Unknown));
        }
        let source = File::from(match &self.shared.descriptors {
            None => found,
            Some(descriptors) => reopen(descriptors, &found).context(|| "open")?,
        });
        let extras = reflink::extras(&source, self.shared.on_xfs).context(|| "get its flags")?;
        self.inode(at, name, &facts, extras.flags, |worker| {
            let mode = Mode::from_raw_mode(u32::from(facts.stx_mode) & 0o777);
            let clone = match openat(&at.clone, name, CREATE_FILE, mode) {
                Err(Errno::EXIST) => return Ok(None),
                clone => File::from(clone.context(|| "create")?),
            };
            worker.fill(&source, &clone, facts.stx_size, extras.flags)?;
            worker.attributes.set(&source, &clone, &facts, extras, Some(mode))?;
            set_flags(&clone, extras.flags, facts.stx_nlink < 2)?;
            let origin = worker.origin(&source, c"", AtFlags::EMPTY_PATH, &facts)?;
            Made::of(&clone, c"", AtFlags::EMPTY_PATH, origin).context(|| "stat the clone").map(Some)
        })
    }

    fn fill(&mut self, source: &File, clone: &File, size: u64, flags: IFlags) -> Result<()> {
        if size == 0 {
            self.counts.empty += 1;
            return Ok(());
        }
        match self.shared.content {
            Content::Reflink => {
                if flags.contains(IFlags::NOCOW) {
                    // On Btrfs only files that are alike in this share, and only an empty one can change.
                    reflink::set_flags(clone, IFlags::NOCOW, IFlags::NOCOW).context(|| "set +C")?;
                }
                content::share(source, clone)?;
                self.counts.cloned += 1;
            }
            Content::Copy => {
                content::copy(source, clone, &|| false).context(|| "copy")?;
                self.counts.copied += 1;
            }
        }
        Ok(())
    }

    /// A symlink, device, FIFO or socket, or something of which only its name is known.
    fn node(&mut self, at: &Pair, name: &CStr) -> Result<Outcome> {
        let facts = match facts(&at.source, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Outcome::Done),
            facts => facts.context(|| "stat")?,
        };
        let kind = kind_of(&facts);
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            return Ok(Outcome::Is(kind));
        }
        if facts.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Err(mounted());
        }
        self.inode(at, name, &facts, IFlags::empty(), |worker| {
            let made = if kind == FileType::Symlink {
                match readlinkat(&at.source, name, Vec::new()) {
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                    target => symlinkat(target.context(|| "read the link")?, &at.clone, name),
                }
            } else {
                let mode = Mode::from_raw_mode(facts.stx_mode.into());
                mknodat(&at.clone, name, kind, mode, makedev(facts.stx_rdev_major, facts.stx_rdev_minor))
            };
            match made {
                Err(Errno::EXIST) => return Ok(None),
                made => made.context(|| "create")?,
            }
            worker.attributes.set_by_name(&at.source, &at.clone, name, &facts)?;
            if kind == FileType::Symlink {
                worker.counts.symlinks += 1;
            } else {
                worker.counts.nodes += 1;
            }
            let origin = worker.origin(&at.source, name, AtFlags::SYMLINK_NOFOLLOW, &facts)?;
            let made = Made::of(&at.clone, name, AtFlags::SYMLINK_NOFOLLOW, origin);
            made.context(|| "stat the clone").map(Some)
        })
    }

    /// Make an inode with `make`, or give the one that its source has become already a further name. Nothing is made if
    /// the name is there already: a directory that is being changed may be listed with one name twice.
    fn inode(
        &mut self,
        at: &Pair,
        name: &CStr,
        facts: &Statx,
        flags: IFlags,
        make: impl FnOnce(&mut Self) -> Result<Option<Made>>,
    ) -> Result<Outcome> {
        let kind = kind_of(facts);
        let place = || (at.number, Box::from(name.to_bytes()));
        if facts.stx_nlink < 2 {
            if let Some(made) = make(self)? {
                self.entries.push(Entry::new(place(), kind, made, None));
            }
            return Ok(Outcome::Done);
        }
        match self.shared.links.lock().entry(Key::of(facts)) {
            hash_map::Entry::Vacant(new) => {
                if let Some(made) = make(self)? {
                    new.insert(Linked { kind, made, names: vec![place()], flags: flags & LOCKING });
                }
            }
            hash_map::Entry::Occupied(mut known) => {
                let linked = known.get_mut();
                match self.link(&linked.names[0], at, name) {
                    Err(Errno::EXIST) => return Ok(Outcome::Done),
                    result => result.context(|| "link")?,
                }
                let made = Made::of(&at.clone, name, AtFlags::SYMLINK_NOFOLLOW, linked.made.origin);
                linked.made = made.context(|| "stat the clone")?;
                linked.names.push(place());
                self.counts.links += 1;
            }
        }
        Ok(Outcome::Done)
    }

    /// What the source's inode is when all has been taken from it; see [`Origin`].
    fn origin(&self, at: impl AsFd, name: &CStr, flags: AtFlags, facts: &Statx) -> Result<Option<Origin>> {
        if device_of(facts) != self.shared.device {
            return Ok(None);
        }
        if self.shared.descriptors.is_none() {
            // Nobody changes it.
            return Ok(Some(Origin::of(facts)));
        }
        Origin::now(at, name, flags, facts).context(|| "stat again")
    }

    fn link(&self, (directory, first): &(u32, Box<[u8]>), at: &Pair, name: &CStr) -> rustix::io::Result<()> {
        let link = |from: BorrowedFd<'_>| linkat(from, &**first, &at.clone, name, AtFlags::empty());
        if *directory == at.number {
            return link(at.clone.as_fd());
        }
        let path = self.shared.queue.path(*directory);
        link(rooted::beneath(&self.shared.clone, &path, OFlags::PATH)?.as_fd())
    }
}

fn mounted() -> Error {
    Error::new(Kind::InUse, "something is mounted there").with_hint("unmount it first")
}
