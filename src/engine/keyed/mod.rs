//! Trees that the client of a front door makes, writes to and removes by keys of its own: Docker's layers.
//!
//! A key's tree is *reserved* (there is none yet), *active* (somebody writes to it) or *committed*. It is committed when
//! a layer has been unpacked into it, or when something is based on it; then nobody writes to it any more.
//!
//! ```text
//! reserve(L2, on L1)         a record; the tree is made when it is needed
//! apply(L2, tar)             L1 cloned, the tar unpacked, sealed: committed
//! prepare(C-init, on L2)     a clone of L2, which the client writes to at root(C-init)
//! prepare(C, on C-init)      the tree of C-init goes on as C's (see below)
//! changes(C, against C-init) what C has that C-init had not
//! diff(L2, against L1)       the tar that was applied, byte for byte
//! remove(C), remove(C-init)
//! ```
//!
//! # The layer between a container and its image
//!
//! Docker makes two trees for a container: `C-init`, into which it puts empty files to mount on, and `C` on it. Nothing else
//! is ever based on `C-init`, so it isn't cloned: its tree becomes `C`'s, by writing another record ([`take_over`]). The record
//! says when that was, and what had been made or removed by then ([`Init`]). What had its name by then and is as it was then,
//! or has a change time of before, is left out of what `C` changed. Should anybody ask for the tree of `C-init`, it is made
//! again.
//!
//! [`take_over`]: Keyspace::prepare
//! [`Init`]: crate::store::Init
//!
//! # Cut short
//!
//! Each verb has one durable step, and can be repeated: what is there as it should be is left as it is. A layer that couldn't
//! be unpacked is reserved as before.

use std::path::PathBuf;

use super::{Engine, tree_at};
use crate::layer::{self, IdMaps};
use crate::store::{Content, Held, Keyed, New, NewGroup, Owner, Record, Stage, State, TreeKind};
use crate::{Context, Error, Kind, Result};

mod apply;
mod cache;
mod delta;
mod facts;
mod init;
mod label;
mod list;
mod seal;

pub(super) use cache::Counted;
pub use facts::KeyedFacts;
pub(super) use init::limit_at_first;
pub use list::KeyedInfo;

/// How often to look again while others are at work on a key.
const ATTEMPTS: u32 = 16;
/// Longest key in bytes.
const LONGEST_KEY: usize = 1024;

/// The trees of one owner.
#[derive(Debug)]
pub struct Keyspace<'e> {
    engine: &'e Engine,
    owner: Owner,
    /// Which run of its client asks.
    session: u32,
    /// Which of its clients' homes that one has, by number.
    home: u32,
    /// Ids in its layers' tars, and on disk.
    ids: IdMaps,
}

/// What a new tree is to be.
#[derive(Debug, Clone, Default)]
pub struct NewKeyed<'a> {
    pub key: &'a str,
    /// The key of the tree that it is based on.
    pub parent: Option<&'a str>,
    /// Most bytes that may be added.
    pub size_limit: Option<u64>,
    /// SELinux label for all of its files.
    pub label: Option<&'a str>,
}

/// What a key leads to.
enum Found {
    Tree(Record),
    /// No tree of its own: the record of the one that its tree became.
    Init(Record),
    /// The record of the init layer whose tree should be this key's.
    Lost(Record),
}

impl Engine {
    /// The trees of an owner, for the `session`th run of its client, which has these ids.
    #[must_use]
    pub fn keyspace(&self, owner: Owner, session: u32, ids: IdMaps) -> Keyspace<'_> {
        Keyspace { engine: self, owner, session, home: 0, ids }
    }
}

impl Keyspace<'_> {
    /// The same for a client with another home than the first.
    #[must_use]
    pub(super) fn at_home(self, home: u32) -> Self {
        Self { home, ..self }
    }

    /// Make an active tree. Durable on return. If it is there already, as asked for, nothing is done.
    ///
    /// # Errors
    /// `Exists` if the key has a tree on another parent; `NotFound` without such a parent; `Unsupported` for a limit that can't
    /// be held here.
    pub fn prepare(&self, new: &NewKeyed<'_>) -> Result<()> {
        self.make(new, Stage::Active).context(|| format!("cannot make {}", new.key))
    }

    /// Take a key for a tree that is made when it is needed: by [`Keyspace::root`], or [`Keyspace::apply`]. The rest is as for
    /// [`Keyspace::prepare`].
    pub fn reserve(&self, new: &NewKeyed<'_>) -> Result<()> {
        self.make(new, Stage::Reserved).context(|| format!("cannot make {}", new.key))
    }

    fn make(&self, new: &NewKeyed<'_>, stage: Stage) -> Result<()> {
        check_key(new.key)?;
        new.label.map_or(Ok(()), layer::check_label)?;
        self.engine.tidy()?;
        self.engine.make_room(None)?;
        self.engine.guard_host()?;
        for warning in self.engine.check_limit(new.size_limit)? {
            tracing::warn!("{}: {warning}", new.key);
        }
        for _ in 0..ATTEMPTS {
            if let Some(found) = self.find(new.key)? {
                return self.same(&found, new);
            }
            match self.make_once(new, &stage) {
                // Others make or remove it. If they have died, it is debris.
                Err(e) if e.kind() == Kind::Exists => {
                    self.look(new.key)?;
                    self.engine.tidy()?;
                }
                made => return made,
            }
        }
        Err(self.stuck())
    }

    fn make_once(&self, new: &NewKeyed<'_>, stage: &Stage) -> Result<()> {
        if *stage == Stage::Active
            && let Some(parent) = new.parent
            && init::is_init_of(parent, new.key)
            && self.take_over(parent, new)?
        {
            return Ok(());
        }
        let parent = new.parent.map(|parent| self.sealed(parent)).transpose()?;
        let keyed = Keyed {
            size_limit: new.size_limit,
            label: new.label.or(parent.as_ref().and_then(label::of)).map(str::to_string),
            session: self.session,
            home: self.home,
            ..Keyed::new(new.key, stage.clone())
        };
        self.engine.with_room(|| self.make_tree(parent.as_ref(), &keyed)).map(drop)
    }

    /// Make what `keyed` says, on `parent`. Durable on return, unless it is only reserved.
    ///
    /// # Errors
    /// `Exists` if others make or remove what has its key, or have died doing that; `NotFound` if the parent is gone.
    pub(super) fn make_tree(&self, parent: Option<&Record>, keyed: &Keyed) -> Result<Record> {
        let (engine, uuid) = (self.engine, parent.map(|parent| parent.uuid));
        let content = Content::Keyed(keyed.clone());
        let spare = match uuid {
            Some(parent) if keyed.stage == Stage::Active && engine.keeps_spares() => {
                engine.store.claim_spare(parent, &self.owner, &content)?
            }
            _ => None,
        };
        let draft = match spare {
            Some(draft) => draft,
            None => engine.store.begin(New {
                owner: self.owner.clone(),
                parent: uuid,
                group: NewGroup::Fresh,
                content,
            })?,
        };
        let limit = init::limit_at_first(keyed, &self.owner);
        let made = match &keyed.stage {
            Stage::Reserved => Ok(()),
            Stage::View if uuid.is_some() => engine.store.confirm(&draft),
            _ if uuid.is_none() => {
                let tree = tree_at(draft.place().to_path_buf(), draft.record());
                self.make_tree_for(draft.record(), &tree, limit)
            }
            _ => engine.make_container(&draft, limit),
        };
        let has_tree = draft.record().has_tree();
        let made = made.and_then(|()| if has_tree { self.labelled(draft.record(), parent) } else { Ok(()) });
        match made {
            Ok(()) => engine.store.publish(draft),
            Err(e) => {
                engine.discard(draft);
                Err(e)
            }
        }
    }

    /// Whether what is there is what was asked for: a client that lost our answer asks again.
    fn same(&self, found: &Found, new: &NewKeyed<'_>) -> Result<()> {
        let exists = |why: &str| Err(Error::new(Kind::Exists, format!("it is there already{why}")));
        let (Found::Tree(record) | Found::Lost(record)) = found else {
            return exists(", and its tree has become another one's");
        };
        if let Some(other) = self.other_parent(record, new.parent)? {
            return exists(&format!(", {other}"));
        }
        match record.keyed() {
            Some(keyed) if keyed.size_limit != new.size_limit => exists(" with another size limit"),
            Some(keyed) if matches!(keyed.stage, Stage::Committed { .. }) => exists(", and committed"),
            _ => Ok(()),
        }
    }

    /// The key of the tree that one is based on.
    pub(super) fn parent_key(&self, record: &Record) -> Result<Option<String>> {
        if let Some(init) = record.keyed().and_then(|keyed| keyed.init.as_ref()) {
            return Ok(Some(init.key.clone()));
        }
        let Some(parent) = record.parent else { return Ok(None) };
        let parent = self.engine.store.get(parent)?;
        Ok(parent.and_then(|parent| parent.keyed().map(|keyed| keyed.key.clone())))
    }

    /// What a tree is based on in place of this parent, if it isn't on that.
    fn other_parent(&self, record: &Record, parent: Option<&str>) -> Result<Option<String>> {
        let own = self.parent_key(record)?;
        let told = |parent: Option<&str>| parent.unwrap_or("nothing").to_string();
        let (is, asked) = (told(own.as_deref()), told(parent));
        Ok((own.as_deref() != parent).then(|| format!("based on {is} and not on {asked}")))
    }

    /// Whether there is such a key.
    pub fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.find(key)?.is_some())
    }

    /// The root directory of a tree; one that is reserved is made active. `label` is the one that its files should have.
    ///
    /// # Errors
    /// `Unsupported` if they have another label.
    pub fn root(&self, key: &str, label: Option<&str>) -> Result<PathBuf> {
        (|| -> Result<_> {
            let record = self.real_tree_of(key)?;
            label::check(&record, label)?;
            let root = self.engine.tree(&record).root();
            if !root.exists() {
                return Err(Error::new(Kind::Damaged, format!("its tree is missing at {}", root.display())));
            }
            Ok(root)
        })()
        .context(|| format!("cannot show {key}"))
    }

    /// Give a reserved key its tree.
    fn realise(&self, record: &Record) -> Result<Record> {
        self.engine.tidy()?;
        let mut held = self.engine.store.hold(record.uuid)?;
        let Some(keyed) = held.record().keyed().cloned() else { return Ok(held.record().clone()) };
        if keyed.stage != Stage::Reserved {
            return Ok(held.record().clone());
        }
        self.engine.guard_host()?;
        let tree = tree_at(held.place().to_path_buf(), held.record());
        // What a process left that died before the record said so.
        self.engine.backend.destroy(&tree)?;
        self.make_tree_for(held.record(), &tree, init::limit_at_first(&keyed, &self.owner))?;
        let parent = held.record().parent.map(|parent| self.engine.store.get(parent)).transpose()?.flatten();
        self.labelled(held.record(), parent.as_ref())?;
        let amended =
            Record { content: Content::Keyed(Keyed { stage: Stage::Active, ..keyed }), ..held.record().clone() };
        if let Err(e) = self.engine.store.amend(&mut held, amended) {
            self.engine.backend.destroy(&tree)?;
            return Err(e);
        }
        Ok(held.record().clone())
    }

    /// Remove a tree. Succeeds if there is none.
    ///
    /// # Errors
    /// `InUse` if others are based on it.
    pub fn remove(&self, key: &str) -> Result<()> {
        (|| -> Result<_> {
            self.engine.tidy()?;
            for _ in 0..ATTEMPTS {
                let removed = match self.find(key)? {
                    None => Ok(()),
                    Some(Found::Tree(record) | Found::Lost(record)) => self.remove_tree(&record),
                    Some(Found::Init(record)) => self.forget_init(&record),
                };
                match removed {
                    Err(e) if e.kind() == Kind::NotFound => {}
                    removed => return removed,
                }
            }
            Err(self.stuck())
        })()
        .context(|| format!("cannot remove {key}"))
    }

    /// Remove a tree with the spare clones of it, those too that are being made.
    fn remove_tree(&self, record: &Record) -> Result<()> {
        let engine = self.engine;
        for _ in 0..ATTEMPTS {
            match self.remove_if_same(record) {
                Err(e) if e.kind() == Kind::InUse && engine.keeps_spares() => {
                    let begun = engine.store.list_begun(TreeKind::Spare)?;
                    let mut spares = begun.into_iter().filter(|spare| spare.parent == Some(record.uuid)).peekable();
                    if spares.peek().is_none() {
                        return Err(e);
                    }
                    spares.try_for_each(|spare| engine.store.wait_for(spare.uuid))?;
                    engine.drop_spares(|spare| spare.parent == Some(record.uuid))?;
                }
                removed => return removed,
            }
        }
        Err(Error::new(Kind::InUse, "containers are based on it"))
    }

    /// `NotFound` if its key isn't the record's any more: the tree has become another one's since it was found, or is gone.
    fn remove_if_same(&self, record: &Record) -> Result<()> {
        let store = &self.engine.store;
        let look_again = || Error::new(Kind::NotFound, "it is gone");
        let removed = || -> Result<()> {
            let held = self.hold(record)?;
            let key = |record: &Record| record.keyed().map(|keyed| keyed.key.clone());
            if key(held.record()) != key(record) {
                return Err(look_again());
            }
            self.engine.remove_held(store.begin_removal_of(held)?)
        };
        match removed() {
            Err(_) if store.get(record.uuid)?.is_none() => Err(look_again()),
            removed => removed,
        }
    }

    /// Take a tree away from everyone else. Sealing one takes as long as writing out what is in memory of it, so whoever does that
    /// is waited for, but not forever.
    fn hold(&self, record: &Record) -> Result<Held> {
        let store = &self.engine.store;
        let mut held = store.hold(record.uuid);
        for _ in 1..ATTEMPTS {
            match held {
                Err(e) if e.kind() == Kind::InUse => held = store.hold(record.uuid),
                held => return held,
            }
        }
        held
    }

    /// What is there by a key, once whoever makes or removes that has done so.
    pub(super) fn get(&self, key: &str) -> Result<Option<Record>> {
        Ok(self.look(key)?.filter(|(_, state)| state.is_live()).map(|(record, _)| record))
    }

    /// [`Keyspace::make_tree`] of a key that nobody has, whatever dead processes left there.
    pub(super) fn make_new(&self, parent: Option<&Record>, keyed: &Keyed) -> Result<Record> {
        for _ in 0..ATTEMPTS {
            match self.engine.with_room(|| self.make_tree(parent, keyed)) {
                Err(e) if e.kind() == Kind::Exists => {
                    if self.get(&keyed.key)?.is_some() {
                        return Err(e);
                    }
                    self.engine.tidy()?;
                }
                made => return made,
            }
        }
        Err(self.stuck())
    }

    /// All trees, oldest first.
    pub fn list(&self) -> Result<Vec<Record>> {
        let all = self.engine.store.list(TreeKind::Keyed)?;
        Ok(all.into_iter().filter(|record| record.owner == self.owner).collect())
    }

    /// The record of a key's own tree, which is made again if it has become another one's.
    fn tree_of(&self, key: &str) -> Result<Record> {
        match self.find(key)? {
            Some(Found::Tree(record)) => Ok(record),
            Some(Found::Init(record)) => self.split(&record),
            Some(Found::Lost(record)) => self.found_again(key, &record),
            None => Err(Error::new(Kind::NotFound, format!("there is no {key}"))),
        }
    }

    /// The same, with its tree: one that is reserved is made active.
    fn real_tree_of(&self, key: &str) -> Result<Record> {
        let record = self.tree_of(key)?;
        match record.keyed().map(|keyed| &keyed.stage) {
            Some(Stage::Reserved) => self.realise(&record),
            _ => Ok(record),
        }
    }

    fn find(&self, key: &str) -> Result<Option<Found>> {
        let store = &self.engine.store;
        match self.look(key)? {
            Some((record, state)) if state.is_live() => Ok(Some(Found::Tree(record))),
            // What is still neither made nor removed is what a dead process left of it.
            Some(_) => Ok(None),
            None => match store.by_name(&self.owner, key)? {
                Some(record) => Ok(Some(Found::Init(record))),
                None => Ok(self.lost(key)?.map(Found::Lost)),
            },
        }
    }

    /// Who has this key, once whoever makes or removes that has done so.
    fn look(&self, key: &str) -> Result<Option<(Record, State)>> {
        let look = || self.engine.store.by_key(&self.owner, TreeKind::Keyed, key);
        match look()? {
            Some((record, State::Making | State::Removing)) => {
                self.engine.store.wait_for(record.uuid)?;
                look()
            }
            found => Ok(found),
        }
    }

    fn stuck(&self) -> Error {
        Error::new(Kind::InUse, "what a dead process left of it can't be cleared up")
            .with_hint("reflinkd gc says why")
    }
}

pub(super) fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > LONGEST_KEY || key.chars().any(char::is_control) {
        let begins: String = key.chars().take(64).collect();
        return Err(Error::new(Kind::Invalid, format!("{begins:?} is no key of at most {LONGEST_KEY} bytes")));
    }
    Ok(())
}
