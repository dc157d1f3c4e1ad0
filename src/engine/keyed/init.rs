//! The layer between a container and its image: how its tree becomes the container's, and how it is told apart from it
//! afterwards. See the module above.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, Timestamps, openat, statx};
use rustix::io::Errno;
use rustix::time::ClockId;

use super::{Found, Keyspace, NewKeyed};
use crate::backend::changes::{Change, Changes, EntryKind, What};
use crate::engine::{delta, tree_at};
use crate::layer::pack::{self, Item};
use crate::layer::sink::Plain;
use crate::layer::{self, IdMaps};
use crate::store::{Content, Init, InitEntry, Keyed, New, NewGroup, Owner, Record, Stage, State, TreeKind};
use crate::sys::rooted;
use crate::{Context, Error, Kind, Result};

/// Past these the tree is committed like any other, so that records stay small. Docker's own have ten entries.
const MOST_ENTRIES: usize = 64;
const MOST_TAR_BYTES: u64 = 256 << 10;
const MOST_LAYER_BYTES: usize = 2048;
/// What is held in memory when the init layer is made again.
const MOST_COPIED: u64 = 64 << 20;
/// Longer than a tick of the coarse clock (CONFIG_HZ=100): no clock that runs is behind for longer.
const MOST_TICKS: u32 = 20;

/// Docker's (`layer/layer_store.go`, `initName`).
const SUFFIX: &str = "-init";

/// Whether a client that makes two trees for a container means these by it.
pub(super) fn is_init_of(init: &str, key: &str) -> bool {
    init.strip_suffix(SUFFIX) == Some(key)
}

/// The limit of a tree while only its client writes to it. An init layer has none yet: a limit that has no room for what dockerd
/// puts into it is the container's, whose making fails where dockerd clears up.
pub(in crate::engine) fn limit_at_first(keyed: &Keyed, owner: &Owner) -> Option<u64> {
    keyed.size_limit.filter(|_| *owner != Owner::docker() || !keyed.key.ends_with(SUFFIX))
}

impl Keyspace<'_> {
    /// Make the active tree of `init` that of `new`. `false` if it has to be cloned.
    ///
    /// The record becomes durable with the filesystem's next commit; the tree is. If a power cut comes before, the key of
    /// `init` stands for both ([`Keyspace::lost`]).
    pub(super) fn take_over(&self, init: &str, new: &NewKeyed<'_>) -> Result<bool> {
        let Some(Found::Tree(record)) = self.find(init)? else { return Ok(false) };
        let mut held = self.engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(false) };
        if keyed.key != init || keyed.stage != Stage::Active || keyed.label.as_deref() != new.label {
            return Ok(false);
        }
        let Some(taken) = self.described(&keyed.key, held.record())? else { return Ok(false) };
        let tree = self.engine.tree(held.record());
        if new.size_limit.is_some() {
            self.engine.set_limit(&tree, new.size_limit)?;
        }
        let becomes = Keyed {
            key: new.key.to_string(),
            size_limit: new.size_limit,
            session: self.session,
            home: self.home,
            init: Some(taken),
            ..keyed.clone()
        };
        let amended = taken_over(held.record(), becomes);
        if let Err(e) = self.engine.store.amend_soon(&mut held, amended) {
            self.engine.set_limit(&tree, None)?;
            return Err(e);
        }
        Ok(true)
    }

    /// A tree that a power cut has kept from becoming this key's, when its client has gone on: it is that of the key's init
    /// layer still.
    pub(super) fn lost(&self, key: &str) -> Result<Option<Record>> {
        let found = self.engine.store.by_key(&self.owner, TreeKind::Keyed, &format!("{key}{SUFFIX}"))?;
        Ok(found.filter(|(_, state)| *state == State::Ready).map(|(record, _)| record).filter(|record| {
            // Made by this run of its client, it is still to become another one's.
            record.keyed().is_some_and(|keyed| keyed.stage == Stage::Active && keyed.session < self.session)
        }))
    }

    /// Make a [lost](Keyspace::lost) tree the key's. What was its init layer's isn't known any more, and counts as its own.
    pub(super) fn found_again(&self, key: &str, record: &Record) -> Result<Record> {
        let mut held = self.engine.store.hold(record.uuid)?;
        if let Some(keyed) = held.record().keyed().cloned().filter(|keyed| is_init_of(&keyed.key, key)) {
            let (init, stands) = (keyed.key.clone(), true);
            let nothing = Init { key: init, stands, begun: 0, taken: 0, entries: Vec::new(), layer: String::new() };
            self.engine.set_limit(&self.engine.tree(held.record()), keyed.size_limit)?;
            let becomes = Keyed { key: key.to_string(), init: Some(nothing), ..keyed };
            let amended = taken_over(held.record(), becomes);
            self.engine.store.amend(&mut held, amended)?;
        }
        Ok(held.record().clone())
    }

    /// What was made in a tree, to be told apart from what is done in it from now on. `None` if it is too much.
    fn described(&self, key: &str, record: &Record) -> Result<Option<Init>> {
        let tree = self.engine.tree(record);
        let made = match self.engine.backend.made(&tree)? {
            Some(mut made) => {
                made.sort();
                made.into_iter().map(|path| (path, What::Added)).collect()
            }
            // All of it: every inode of such a clone has a change time of after it was begun.
            None => all_of(self.engine.changes(record, false)?),
        };
        if made.len() > MOST_ENTRIES {
            return Ok(None);
        }
        let root = open_root(&tree.root())?;
        let (mut entries, mut items) = (Vec::new(), Vec::new());
        for (path, what) in made {
            let removed = what == What::Deleted;
            let Some(name) = path.to_str() else { return Ok(None) };
            let now = facts(&root, path.as_os_str().as_bytes())?;
            if removed != now.is_none() {
                // Somebody else is at work in it.
                return Ok(None);
            }
            let Facts { inode, ctime } = now.unwrap_or_default();
            let bytes = name.as_bytes().to_vec();
            match what {
                What::Added | What::Modified | What::Replaced { .. } => items.push(Item::Make(bytes)),
                What::Deleted => items.push(Item::Hide(bytes)),
                What::Touched | What::Linked => {}
            }
            entries.push(InitEntry { path: name.to_string(), removed, inode, ctime });
        }
        let mut tar = Plain(Vec::new());
        let packed = pack::pack(&tree.root(), &items, &IdMaps::default(), MOST_TAR_BYTES, &mut tar, &|| {
            self.engine.is_cancelled()
        });
        match packed {
            // Too large, or what a layer can't hold.
            Err(e) if matches!(e.kind(), Kind::Invalid | Kind::Unsupported) => return Ok(None),
            packed => packed?,
        };
        let layer = zstd::bulk::compress(&tar.0, 0).context(|| format!("compress what is in {key}"))?;
        if layer.len() > MOST_LAYER_BYTES {
            return Ok(None);
        }
        let layer = layer.iter().map(|byte| format!("{byte:02x}")).collect();
        let begun = i64::try_from(record.created.as_nanosecond()).unwrap_or(0);
        let taken = moment(tree.place())?;
        Ok(Some(Init { key: key.to_string(), stands: true, begun, taken, entries, layer }))
    }

    /// Give a key whose tree has become another one's a tree again, as it was then.
    pub(super) fn split(&self, record: &Record) -> Result<Record> {
        let engine = self.engine;
        let mut held = engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(held.record().clone()) };
        let Some(init) = keyed.init.clone().filter(|init| init.stands) else {
            return Err(Error::new(Kind::InUse, "others are at work on it"));
        };
        let mut draft = engine.store.begin(New {
            owner: self.owner.clone(),
            parent: held.record().parent,
            group: NewGroup::Fresh,
            content: Content::Work,
        })?;
        let tree = tree_at(draft.place().to_path_buf(), draft.record());
        let made = (|| {
            self.make_tree_for(draft.record(), &tree, None)?;
            let limits = &engine.settings.layer_limits;
            for tar in [unpacked_layer(&init)?, self.unchanged_since(&init, held.record())?] {
                layer::unpack(&mut tar.as_slice(), &tree.root(), limits, &|| engine.is_cancelled())?;
            }
            let count = self.count(draft.record())?;
            let stage = self.committed(draft.record(), Some(count))?;
            let own = Keyed { key: init.key.clone(), stage, size_limit: None, init: None, ..keyed.clone() };
            draft.set_content(Content::Keyed(own));
            let without =
                Content::Keyed(Keyed { init: Some(Init { stands: false, ..init.clone() }), ..keyed.clone() });
            let amended = Record { content: without, ..held.record().clone() };
            engine.store.amend(&mut held, amended)?;
            engine.store.confirm(&draft)
        })();
        match made {
            Ok(()) => engine.store.publish(draft),
            Err(e) => {
                engine.discard(draft);
                Err(e)
            }
        }
    }

    /// A layer of what was done to a tree before it became another one's, and is as it was then.
    fn unchanged_since(&self, init: &Init, record: &Record) -> Result<Vec<u8>> {
        let (engine, root) = (self.engine, self.engine.tree(record).root());
        let changes = engine.changes(record, false)?;
        let method = changes.method;
        let before = self.told(init, record, &root, changes)?.before;
        let items = delta::items(&Changes { list: before, method });
        let mut tar = Plain(Vec::new());
        pack::pack(&root, &items, &IdMaps::default(), MOST_COPIED, &mut tar, &|| engine.is_cancelled())?;
        Ok(tar.0)
    }

    /// The key of a tree that has become another one's was removed.
    pub(super) fn forget_init(&self, record: &Record) -> Result<()> {
        let mut held = self.engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(()) };
        let init = keyed.init.clone().map(|init| Init { stands: false, ..init });
        let amended = Record { content: Content::Keyed(Keyed { init, ..keyed }), ..held.record().clone() };
        self.engine.store.amend(&mut held, amended)
    }
}

fn unpacked_layer(init: &Init) -> Result<Vec<u8>> {
    if init.layer.is_empty() {
        return Ok(vec![0; 1024]);
    }
    let damaged = || Error::new(Kind::Damaged, format!("what was in {} is damaged in its record", init.key));
    let digits = init.layer.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    let compressed: Vec<u8> = digits.collect::<Option<_>>().ok_or_else(damaged)?;
    zstd::bulk::decompress(&compressed, MOST_TAR_BYTES as usize).map_err(|_| damaged())
}

/// What tells an inode from what it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Facts {
    inode: u64,
    ctime: i64,
}

fn open_root(root: &Path) -> Result<OwnedFd> {
    openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .context(|| format!("open {}", root.display()))
}

fn facts_of(node: impl AsFd) -> rustix::io::Result<Facts> {
    let now = statx(node, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::CTIME)?;
    let ctime = now.stx_ctime.tv_sec.saturating_mul(1_000_000_000) + i64::from(now.stx_ctime.tv_nsec);
    Ok(Facts { inode: now.stx_ino, ctime })
}

/// The facts of what is at `path`, through no symlink; `None` if there is nothing.
fn facts(root: &OwnedFd, path: &[u8]) -> Result<Option<Facts>> {
    let (parent, name) = match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&b""[..], path),
    };
    let name = if name.is_empty() { b"." } else { name };
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let found = rooted::beneath(root, parent, flags).and_then(|directory| rooted::node(directory, name));
    match found.and_then(facts_of) {
        Ok(now) => Ok(Some(now)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(e) => Err(e).context(|| format!("stat {}", String::from_utf8_lossy(path))),
    }
}

/// A time that whatever was changed until now has a change time of, or an earlier one, and whatever is changed from now on has
/// a later one.
///
/// With multigrain timestamps (Linux 6.13) no inode gets an earlier change time than one that has just been looked at and
/// changed, such as this place's. Else it takes until the clock's next tick.
fn moment(place: &Path) -> Result<i64> {
    let call = || format!("touch {}", place.display());
    let directory = File::open(place).context(call)?;
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let look = || facts_of(&directory).context(call);
    let mut touched = look()?.ctime;
    // The first may get the time that another inode was the last to get; the second is later than all there is.
    for _ in 0..2 {
        rustix::fs::futimens(&directory, &Timestamps { last_access: now, last_modification: now }).context(call)?;
        touched = look()?.ctime;
    }
    if touched > clock(ClockId::RealtimeCoarse) {
        return Ok(touched - 1);
    }
    let moment = clock(ClockId::Realtime);
    for _ in 0..MOST_TICKS {
        if moment < clock(ClockId::RealtimeCoarse) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(moment)
}

fn clock(clock: ClockId) -> i64 {
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec.saturating_mul(1_000_000_000) + now.tv_nsec
}

/// What is changed in a tree, by whether it was changed before it became another one's and not since.
struct Told {
    before: Vec<Change>,
    since: Vec<Change>,
}

impl Keyspace<'_> {
    /// What was changed since a tree became another one's, of all that is changed in it. `root` is that of the record's tree, or
    /// of a fork of it.
    pub(super) fn since(&self, init: &Init, record: &Record, root: &Path, changes: Changes) -> Result<Changes> {
        let method = changes.method;
        Ok(Changes { list: self.told(init, record, root, changes)?.since, method })
    }

    fn told(&self, init: &Init, record: &Record, root: &Path, changes: Changes) -> Result<Told> {
        let base = self.engine.parent_tree(record)?.map(|parent| open_root(&parent.root())).transpose()?;
        told(init, &open_root(root)?, base.as_ref(), changes)
    }
}

fn told(init: &Init, root: &OwnedFd, base: Option<&OwnedFd>, changes: Changes) -> Result<Told> {
    let then: HashMap<&Path, &InitEntry> = init.entries.iter().map(|entry| (Path::new(&entry.path), entry)).collect();
    // What was moved here since has a time of before, if only a directory above it was moved: but it isn't the inode that
    // the tree began with, which clones keep the number of, or else the record has all names that were changed.
    let while_begun = |path: &Path| -> Result<bool> {
        let path = path.as_os_str().as_bytes();
        let Some(now) = facts(root, path)? else { return Ok(false) };
        if now.ctime < init.begun || now.ctime > init.taken {
            return Ok(false);
        }
        let Some(base) = base else { return Ok(true) };
        Ok(facts(base, path)?.is_some_and(|began| began.inode == now.inode))
    };
    let (mut before, mut since) = (Vec::new(), Vec::new());
    let mut there = BTreeSet::new();
    for change in changes.list {
        let gone = change.what == What::Deleted;
        let Some(entry) = then.get(change.path.as_path()) else {
            let told = match change.what {
                // It had no such name then.
                What::Added => false,
                // What is gone has no time, but the directory that it was in has.
                What::Deleted => while_begun(change.path.parent().unwrap_or(&change.path))?,
                _ => while_begun(&change.path)?,
            };
            if told {
                before.push(change);
            } else {
                since.push(change);
            }
            continue;
        };
        there.insert(change.path.clone());
        match (entry.removed, gone) {
            (true, true) => before.push(change),
            (true, false) => since.push(Change { what: What::Added, ..change }),
            (false, _) => {
                let now = facts(root, change.path.as_os_str().as_bytes())?;
                if now == Some(Facts { inode: entry.inode, ctime: entry.ctime }) {
                    before.push(change);
                } else {
                    // It had the name by then; what it was is not known any more.
                    let what = if change.what == What::Added { What::Modified } else { change.what };
                    since.push(Change { what, ..change });
                }
            }
        }
    }
    for entry in init.entries.iter().filter(|entry| !entry.removed) {
        let path = Path::new(&entry.path);
        // Without its directory it is gone with that, which has an entry or a change of its own.
        if !there.contains(path) && facts(root, entry.path.as_bytes())?.is_none() && has_directory(root, path)? {
            since.push(Change { path: path.into(), what: What::Deleted, kind: EntryKind::File, size: None });
        }
    }
    since.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(Told { before, since })
}

/// Whether the directory that a name was in is there, through no symlink.
fn has_directory(root: &OwnedFd, path: &Path) -> Result<bool> {
    let Some(directory) = path.parent() else { return Ok(false) };
    match rooted::beneath(root, directory.as_os_str().as_bytes(), OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
        Err(e) => Err(e).context(|| format!("open {}", directory.display())),
    }
}

fn all_of(changes: Changes) -> Vec<(PathBuf, What)> {
    changes.list.into_iter().map(|change| (change.path, change.what)).collect()
}

/// The record of a tree that becomes another key's.
fn taken_over(record: &Record, becomes: Keyed) -> Record {
    Record { content: Content::Keyed(becomes), created: jiff::Timestamp::now(), ..record.clone() }
}
