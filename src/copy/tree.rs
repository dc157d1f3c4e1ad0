//! What is at one place is copied to another: a file, or a tree entry by entry. The rules are in the head of
//! [`super`].
//!
//! A directory that waits to be copied is a way to it, opened again when its turn comes, on both sides from the top and
//! through no link: descriptors and memory are bounded whatever the shape of the tree. All entries of a directory are made, then it
//! gets its own attributes, which nothing disturbs afterwards.

use std::collections::HashMap;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, IFlags, Mode, OFlags, RawDir, Statx, Uid, linkat, makedev, mkdirat, mknodat, openat,
    readlinkat, symlinkat,
};
use rustix::io::Errno;

use super::aside::Aside;
use super::attributes::{Attributes, disinherit, disinherit_node, hands_down_acl};
use super::facts::{Key, facts_of, kind_of};
use super::open::{LOOK, descriptors, reopen};
use super::place::{Side, Source, Target};
use super::{Copied, content, mounted};
use crate::sys::reflink::{self, Extras};
use crate::sys::rooted;
use crate::sys::way::Way;
use crate::{Context, Error, Kind, Result};

/// Bytes of names read at once.
const LISTING: usize = 32 << 10;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Nobody else gets at what isn't whole yet.
const FRESH_FILE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Copy what `source` is to `target`, which was found on the side `to`, as the table of `docker cp` has it. With `owner`
/// all that is copied belongs to that user and group. `cancelled` is asked at each entry and block.
///
/// # Errors
/// They name the entry below the source. `Exists` where a directory and something else would have to replace each other;
/// `NotFound` for a file that is to go to a directory that isn't there; `Invalid` for a directory to be copied into
/// itself; `InUse` for what is mounted inside a container; `NoSpace`; `Interrupted`.
pub fn copy(
    source: &Source<'_>,
    target: Target,
    to: &Side,
    owner: Option<(u32, u32)>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Copied> {
    let copier = Copier {
        from: source.side,
        to,
        owner: owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid))),
        descriptors: descriptors()?,
        attributes: Attributes::new(None).lenient().without_labels(),
        links: HashMap::new(),
        cancelled,
        copied: Copied::default(),
    };
    copier.run(source, target)
}

struct Copier<'a> {
    from: &'a Side,
    to: &'a Side,
    owner: Option<(Uid, Gid)>,
    descriptors: OwnedFd,
    attributes: Attributes,
    /// Inodes with several names: where the first is, below the copy's top.
    links: HashMap<Key, First>,
    cancelled: &'a dyn Fn() -> bool,
    copied: Copied,
}

/// Where the first name of an inode is: the directory, and the name.
type First = (Way, Box<[u8]>);

/// A directory that things are made in.
struct Into {
    fd: OwnedFd,
    /// Below the copy's top.
    way: Way,
    /// What is made in it inherits ACLs.
    inherits: bool,
}

impl Into {
    fn new(fd: OwnedFd, way: Way) -> Self {
        let inherits = hands_down_acl(&fd);
        Self { fd, way, inherits }
    }
}

/// The two tops of a copied tree.
struct Tops<'a> {
    source: &'a OwnedFd,
    copy: OwnedFd,
    key: Key,
}

impl Copier<'_> {
    fn run(mut self, source: &Source<'_>, target: Target) -> Result<Copied> {
        if kind_of(&source.facts) == FileType::Directory {
            self.directory(source, target)?;
        } else {
            self.single(source, target)?;
        }
        Ok(Copied { unheld: self.attributes.unheld(), ..self.copied })
    }

    /// Anything but a directory.
    fn single(&mut self, source: &Source<'_>, target: Target) -> Result<()> {
        let (fd, name) = match target {
            Target::Directory(directory) => (directory, source.name.clone()),
            Target::Name { exists: false, directory: true, name, .. } => {
                return Err(Error::new(Kind::NotFound, format!("no such directory: {}", name.escape_ascii()))
                    .with_hint("make it first, or leave out the / at its end"));
            }
            Target::Name { exists: true, directory: true, .. } => {
                return Err(Error::new(Kind::Exists, "the destination is not a directory")
                    .with_hint("leave out the / at its end to overwrite it"));
            }
            Target::Name { parent, name, .. } => (parent, name),
        };
        if kind_of(&source.facts) == FileType::Socket {
            return Err(Error::new(Kind::Unsupported, "it is a socket: nobody would listen at a copy"));
        }
        let into = Into::new(fd, Way::default());
        self.make(&source.fd, &source.facts, &into, &name)
    }

    fn directory(&mut self, source: &Source<'_>, target: Target) -> Result<()> {
        let (parent, name) = match target {
            Target::Directory(directory) if source.content => return self.tree(source, directory, false),
            Target::Directory(directory) => (directory, &source.name),
            Target::Name { exists: true, .. } => {
                return Err(Error::new(Kind::Exists, "cannot copy a directory to a file")
                    .with_hint("name a directory, or one that isn't there yet"));
            }
            Target::Name { parent, ref name, .. } => (parent, name),
        };
        if self.to.is_inside(&parent, Key::of(&source.facts))? {
            return Err(into_itself());
        }
        self.make_directory(&parent, name)?;
        let top = rooted::open(&parent, name, DIRECTORY, self.to.here).map_err(in_the_way)?;
        self.tree(source, top, true)
    }

    /// Copy what is in a directory to another; with `itself` its attributes, too.
    fn tree(&mut self, source: &Source<'_>, copy: OwnedFd, itself: bool) -> Result<()> {
        if self.to.is_inside(&copy, Key::of(&source.facts))? {
            return Err(into_itself());
        }
        let key = Key::of(&facts_of(&copy).context(|| "stat")?);
        let tops = Tops { source: &source.fd, copy, key };
        let mut waiting = vec![Way::default()];
        let mut listing = vec![MaybeUninit::uninit(); LISTING];
        while let Some(way) = waiting.pop() {
            self.level(&tops, way, itself, &mut listing, &mut waiting)?;
        }
        Ok(())
    }

    /// One directory: all entries, then its attributes.
    fn level(
        &mut self,
        tops: &Tops<'_>,
        way: Way,
        itself: bool,
        listing: &mut [MaybeUninit<u8>],
        waiting: &mut Vec<Way>,
    ) -> Result<()> {
        let path = &way.path()[..];
        let why = |name: &[u8]| {
            let slash = if path.is_empty() || name.is_empty() { "" } else { "/" };
            format!("/{}{slash}{}", path.escape_ascii(), name.escape_ascii())
        };
        let source = match rooted::beneath_by(tops.source, path, DIRECTORY | OFlags::NOATIME, self.from.here) {
            // It vanished, or became something else.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(Errno::XDEV) => return Err(mounted()).context(|| why(b"")),
            source => source.context(|| "open").context(|| why(b""))?,
        };
        let copy = rooted::beneath_by(&tops.copy, path, DIRECTORY, self.to.here);
        let into = Into::new(copy.map_err(in_the_way).context(|| why(b""))?, way);
        let mut listing = RawDir::new(&source, listing);
        while let Some(entry) = listing.next() {
            let entry = match entry {
                Err(Errno::NOENT) => break, // removed while it was read
                entry => entry.context(|| "list").context(|| why(b""))?,
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." && self.entry(&source, tops, &into, name).context(|| why(name))? {
                waiting.push(into.way.join(name));
            }
        }
        if itself || !path.is_empty() {
            self.describe(&source, &into).context(|| why(b""))?;
        }
        Ok(())
    }

    /// Make an entry; of a directory only the name, and `true`.
    fn entry(&mut self, at: &OwnedFd, tops: &Tops<'_>, into: &Into, name: &[u8]) -> Result<bool> {
        self.check()?;
        let found = match rooted::open(at, name, LOOK, self.from.here) {
            Err(Errno::NOENT) => return Ok(false),
            Err(Errno::XDEV) => return Err(mounted()),
            found => found.context(|| "open")?,
        };
        let facts = facts_of(&found).context(|| "stat")?;
        match kind_of(&facts) {
            FileType::Directory if Key::of(&facts) == tops.key => Err(into_itself()),
            FileType::Directory => self.make_directory(&into.fd, name).map(|()| true),
            FileType::Socket => {
                self.copied.sockets += 1;
                Ok(false)
            }
            _ if facts.stx_nlink > 1 => {
                if !self.link(tops, &facts, into, name)? {
                    self.make(&found, &facts, into, name)?;
                    let place = (into.way.clone(), Box::from(name));
                    self.links.entry(Key::of(&facts)).or_insert(place);
                }
                Ok(false)
            }
            _ => self.make(&found, &facts, into, name).map(|()| false),
        }
    }

    /// Give the copy of an inode a further name. `false` if there is none, or it can't be linked to from here.
    fn link(&self, tops: &Tops<'_>, facts: &Statx, into: &Into, name: &[u8]) -> Result<bool> {
        let Some((directory, first)) = self.links.get(&Key::of(facts)) else {
            return Ok(false);
        };
        let directory = match rooted::beneath_by(&tops.copy, &directory.path(), OFlags::PATH, self.to.here) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
            directory => directory.context(|| "open its directory")?,
        };
        let link = |aside: &str| match linkat(&directory, &**first, &into.fd, aside, AtFlags::empty()) {
            Err(Errno::NOENT | Errno::XDEV | Errno::MLINK | Errno::PERM) => Ok(false),
            linked => linked.map(|()| true),
        };
        let (aside, linked) = Aside::make(into.fd.as_fd(), link)?;
        if linked {
            aside.put(name)?;
        }
        Ok(linked)
    }

    /// Make a file, link, device or FIFO, with its attributes.
    fn make(&mut self, found: &OwnedFd, facts: &Statx, into: &Into, name: &[u8]) -> Result<()> {
        let wanted = self.wanted(facts);
        let kind = kind_of(facts);
        let aside = if kind == FileType::RegularFile {
            self.file(found, &wanted, into)?
        } else {
            self.node(found, &wanted, into)?
        };
        aside.put(name)?;
        self.copied.files += 1;
        Ok(())
    }

    fn file<'i>(&mut self, found: &OwnedFd, wanted: &Statx, into: &'i Into) -> Result<Aside<'i>> {
        let source = File::from(reopen(&self.descriptors, found).context(|| "open")?);
        // Not every filesystem answers; one that doesn't has none.
        let flags = reflink::flags(&source).unwrap_or(IFlags::empty());
        let create = |aside: &str| openat(&into.fd, aside, NEW_FILE, FRESH_FILE).map(File::from);
        let (aside, copy) = Aside::make(into.fd.as_fd(), create)?;
        if flags.contains(IFlags::NOCOW) {
            // On Btrfs only files that are alike in this share. Elsewhere there is no such flag.
            let _ = reflink::set_flags(&copy, IFlags::NOCOW, IFlags::NOCOW);
        }
        if wanted.stx_size > 0 && content::share_or_copy(&source, &copy, self.cancelled).context(|| "copy")? {
            self.copied.shared += 1;
        }
        self.check()?;
        if into.inherits {
            disinherit(&copy).context(|| "remove the ACL it inherited")?;
        }
        self.attributes.set(&source, &copy, wanted, Extras { flags, xattrs: true }, None)?;
        self.copied.bytes += wanted.stx_size;
        Ok(aside)
    }

    fn node<'i>(&mut self, found: &OwnedFd, wanted: &Statx, into: &'i Into) -> Result<Aside<'i>> {
        let kind = kind_of(wanted);
        let aside = if kind == FileType::Symlink {
            let target = readlinkat(found, c"", Vec::new()).context(|| "read the link")?;
            Aside::make(into.fd.as_fd(), |aside| symlinkat(&target, &into.fd, aside))?.0
        } else {
            let device = makedev(wanted.stx_rdev_major, wanted.stx_rdev_minor);
            Aside::make(into.fd.as_fd(), |aside| mknodat(&into.fd, aside, kind, FRESH_FILE, device))?.0
        };
        let copy = rooted::open(&into.fd, aside.name(), LOOK, self.to.here).context(|| "open what was made")?;
        if kind_of(&facts_of(&copy).context(|| "stat")?) != kind {
            return Err(Error::new(Kind::InUse, "somebody exchanged it while it was made"));
        }
        if into.inherits && kind != FileType::Symlink {
            disinherit_node(&copy).context(|| "remove the ACL it inherited")?;
        }
        self.attributes.set_by_descriptor(found, &copy, wanted)?;
        Ok(aside)
    }

    /// A directory gets its own attributes, in place of those it may have.
    fn describe(&mut self, source: &OwnedFd, into: &Into) -> Result<()> {
        let wanted = self.wanted(&facts_of(source).context(|| "stat")?);
        disinherit(&into.fd).context(|| "remove its ACLs")?;
        let extras = Extras { flags: IFlags::empty(), xattrs: true };
        self.attributes.set(source, &into.fd, &wanted, extras, None)?;
        self.copied.directories += 1;
        Ok(())
    }

    /// What the copy's inode is to have.
    fn wanted(&self, facts: &Statx) -> Statx {
        let mut wanted = *facts;
        if let Some((uid, gid)) = self.owner {
            let mut lost = 0;
            if uid.as_raw() != facts.stx_uid {
                lost |= 0o4000;
            }
            if gid.as_raw() != facts.stx_gid {
                lost |= 0o2000;
            }
            if kind_of(facts) != FileType::Directory {
                wanted.stx_mode &= !lost;
            }
            (wanted.stx_uid, wanted.stx_gid) = (uid.as_raw(), gid.as_raw());
        }
        wanted
    }

    /// One may be there already: they merge.
    fn make_directory(&self, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        match mkdirat(parent, name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                rooted::open(parent, name, DIRECTORY | OFlags::PATH, self.to.here).map(drop).map_err(in_the_way)
            }
            made => made.context(|| "mkdir"),
        }
    }

    fn check(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::new(Kind::Interrupted, "interrupted")) } else { Ok(()) }
    }
}

/// Why a directory of the copy can't be opened.
fn in_the_way(errno: Errno) -> Error {
    match errno {
        Errno::NOTDIR | Errno::LOOP => {
            Error::new(Kind::Exists, "cannot overwrite something that is no directory with a directory")
                .with_hint("remove it first, or choose another destination")
        }
        Errno::XDEV => mounted(),
        errno => Error::system("open the directory in the destination", &errno.into()),
    }
}

fn into_itself() -> Error {
    Error::new(Kind::Invalid, "cannot copy a directory into itself").with_hint("choose a destination outside of it")
}
