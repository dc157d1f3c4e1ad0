//! The SQLite index of the records: answers questions, keeps names unique, hands out group numbers.
//!
//! The records beside the trees are the truth; the index can be thrown away at any time and is made again
//! from them, and is after each reboot. So nothing here needs to survive a power cut: no fsync. Many processes use it
//! at once: each change is one `BEGIN IMMEDIATE` transaction, in its [turn](super::turn). No WAL: its shared memory is a
//! mapped file, and on a full Btrfs writing to a mapped page is a SIGBUS (docs/decisions/005).
//!
//! On a full or read-only filesystem the index can't be written. Removals go on all the same, with an index
//! in memory made from the records ([`Index::in_memory`]).

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::files::Lock;
use super::record::{Content, Owner, Record};
use super::turn::Turns;
use crate::sys::{durable, sqlite};
use crate::{Context, Error, Kind, Result};

/// Of the index's own tables; an index of another version is made anew.
const VERSION: i64 = 1;
/// For SQLite's own locks, which are waited for only where there are no turns.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "
CREATE TABLE snapshots (
    uuid    TEXT PRIMARY KEY,
    owner   TEXT NOT NULL,
    kind    TEXT NOT NULL,
    key     TEXT,
    name    TEXT,
    parent  TEXT,
    state   TEXT NOT NULL,
    record  TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX snapshots_key  ON snapshots (owner, kind, key) WHERE key IS NOT NULL;
CREATE UNIQUE INDEX snapshots_name ON snapshots (owner, name) WHERE name IS NOT NULL;
CREATE INDEX snapshots_parent ON snapshots (parent);
CREATE INDEX snapshots_unsettled ON snapshots (state) WHERE state <> 'ready';
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
";

/// How far a tree has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its maker is at work; without one, debris.
    Making,
    /// Whole and durable.
    Ready,
    /// On its way out.
    Removing,
    /// There, but about to be exchanged for a fresh clone.
    Replacing,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Removing => "removing",
            Self::Replacing => "replacing",
        }
    }

    /// Whether a user may see it.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(self, Self::Ready | Self::Replacing)
    }
}

/// The UUIDs in all facts of [`changing`].
const CHANGING: &str = "SELECT substr(name, 10) FROM facts WHERE name GLOB 'changing *'";

/// One connection.
#[derive(Debug)]
pub(super) struct Index {
    db: Connection,
    turns: Turns,
    /// Why it is in memory, if it is: nobody else sees it, so it can't keep names unique.
    private: Option<Error>,
    /// Whether others can say that they couldn't write to it, by removing its marker.
    marked: bool,
}

/// Whether the index on disk can be used, or why not.
pub(super) enum Opened {
    Usable(Index),
    /// Missing, of another version, or damaged.
    Unusable,
    /// The filesystem takes no writes (full or read-only), and says why.
    Unwritable(Error),
}

/// What a look at an index found.
pub(super) enum Looked {
    Missing,
    Torn(String),
    Whole { instance: Option<String>, next_group: Option<u32>, rows: Vec<(Record, State)>, changing: Vec<Uuid> },
}

impl Index {
    pub(super) fn open(path: &Path) -> Result<Opened> {
        if !path.exists() {
            return Ok(Opened::Unusable);
        }
        let turns = Self::turns(path);
        let turn = turns.take(Lock::Shared)?;
        let opened = Self::connect(path).and_then(|db| {
            let version: i64 = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            Ok((db, version))
        });
        drop(turn);
        match opened {
            Ok((db, VERSION)) => Ok(Opened::Usable(Self { db, turns, private: None, marked: true })),
            Ok(_) => Ok(Opened::Unusable),
            Err(e) => match e.sqlite_error_code() {
                Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Ok(Opened::Unusable),
                Some(code) if is_unwritable(code) => Ok(Opened::Unwritable(failed(&e))),
                _ => Err(failed(&e)),
            },
        }
    }

    /// A new, empty index file, or why the filesystem takes none.
    pub(super) fn create(path: &Path) -> Result<Result<Self, Error>> {
        for suffix in ["", "-journal"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            match durable::unlink(Path::new(&name)) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    let error = Error::system(format!("unlink {}", name.display()), &e);
                    let unwritable = is_unwritten(error.kind()) || e.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
                    return if unwritable { Ok(Err(error)) } else { Err(error) };
                }
                Ok(()) => {}
            }
        }
        let turns = Self::turns(path);
        let turn = turns.take(Lock::Exclusive)?;
        let made = Self::connect(path).and_then(|db| {
            db.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            Ok(db)
        });
        drop(turn);
        match made {
            Ok(db) => Ok(Ok(Self { db, turns, private: None, marked: true })),
            Err(e) if e.sqlite_error_code().is_some_and(is_unwritable) => Ok(Err(failed(&e))),
            Err(e) => Err(failed(&e)),
        }
    }

    /// What is in the index at `path`, of which a copy is opened elsewhere: looking must not change it, and SQLite would
    /// finish or undo what somebody who was killed left in the journal.
    pub(super) fn look(path: &Path) -> Result<Looked> {
        let copies = tempfile::tempdir().context(|| "make a directory for a copy of the index")?;
        let copy = copies.path().join("index.db");
        {
            let turns = Turns::existing(&path.with_extension("turn"));
            let _turn = turns.take(Lock::Shared)?;
            for suffix in ["", "-journal"] {
                let name = |path: &Path| {
                    let mut name = path.as_os_str().to_owned();
                    name.push(suffix);
                    std::path::PathBuf::from(name)
                };
                match std::fs::copy(name(path), name(&copy)) {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound && suffix.is_empty() => {
                        return Ok(Looked::Missing);
                    }
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).context(|| format!("copy {}", path.display()));
                    }
                    _ => {}
                }
            }
        }
        let index = match Self::open(&copy) {
            Ok(Opened::Usable(index)) => index,
            Ok(_) => return Ok(Looked::Torn("it is no index".into())),
            Err(e) => return Ok(Looked::Torn(e.to_string())),
        };
        let sound: String = match index.db.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)) {
            Ok(sound) => sound,
            Err(e) => return Ok(Looked::Torn(e.to_string())),
        };
        if sound != "ok" {
            return Ok(Looked::Torn(sound.lines().collect::<Vec<_>>().join(" ")));
        }
        let whole = || -> Result<Looked> {
            let (instance, next_group) = (index.fact("instance")?, index.fact("next_group")?);
            let (rows, changing) = (index.many("TRUE", params![])?, index.changing()?);
            Ok(Looked::Whole { instance, next_group, rows, changing })
        };
        whole().or_else(|e| Ok(Looked::Torn(e.to_string())))
    }

    /// An index for this process alone, and why.
    pub(super) fn in_memory(why: Error) -> Result<Self> {
        let db = Connection::open_in_memory().map_err(|e| failed(&e))?;
        db.execute_batch(TABLES).map_err(|e| failed(&e))?;
        Ok(Self { db, turns: Turns::none(), private: Some(why), marked: false })
    }

    fn turns(index: &Path) -> Turns {
        Turns::at(&index.with_extension("turn"))
    }

    pub(super) fn private(&self) -> Option<&Error> {
        self.private.as_ref()
    }

    /// There was no room for its marker.
    pub(super) fn set_unmarked(&mut self) {
        self.marked = false;
    }

    pub(super) fn is_marked(&self) -> bool {
        self.marked
    }

    fn connect(path: &Path) -> rusqlite::Result<Connection> {
        sqlite::leave_owners();
        let db = Connection::open(path)?;
        db.busy_timeout(PATIENCE)?;
        // PERSIST: the journal is overwritten in place. Truncating it is a transaction of Btrfs, which waits for commits.
        db.execute_batch("PRAGMA journal_mode = PERSIST; PRAGMA synchronous = OFF;")?;
        Ok(db)
    }

    /// Do several changes as one.
    pub(super) fn change<T>(&mut self, steps: impl FnOnce(&Change<'_>) -> Result<T>) -> Result<T> {
        let _turn = self.turns.take(Lock::Exclusive)?;
        let (answer, committed) = {
            let transaction =
                self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(|e| failed(&e))?;
            let change = Change { transaction };
            let answer = steps(&change)?;
            if self.private.is_none() {
                durable::step("commit", Path::new("index.db")).map_err(|e| unwritten(&e.into()))?;
            }
            (answer, change.transaction.commit())
        };
        committed.map_err(|e| failed_in(&self.db, &e))?;
        Ok(answer)
    }

    pub(super) fn get(&self, uuid: Uuid) -> Result<Option<(Record, State)>> {
        self.one("uuid = ?1", params![uuid.to_string()])
    }

    /// All that a user may see, oldest first; of one kind if one is given.
    pub(super) fn list(&self, kind: Option<&str>) -> Result<Vec<Record>> {
        let found = self.many("state IN ('ready', 'replacing') AND (?1 IS NULL OR kind = ?1)", params![kind])?;
        Ok(found.into_iter().map(|(record, _)| record).collect())
    }

    /// The numbers of all groups that rows name.
    pub(super) fn groups(&self) -> Result<Vec<u32>> {
        let all = self.many("TRUE", params![])?;
        Ok(all.iter().flat_map(|(record, _)| record.groups()).collect())
    }

    /// Those that are not ready, or whose record is being written. Asked before each change, while others are at work: so
    /// without their records.
    pub(super) fn unsettled(&self) -> Result<Vec<Uuid>> {
        let states = "SELECT uuid FROM snapshots WHERE state <> 'ready'";
        self.uuids(&format!("{states} UNION {CHANGING}"), params![])
    }

    /// Those whose record is being written: see [`Change::set_changing`].
    pub(super) fn changing(&self) -> Result<Vec<Uuid>> {
        self.uuids(CHANGING, params![])
    }

    pub(super) fn is_changing(&self, uuid: Uuid) -> Result<bool> {
        Ok(self.fact::<bool>(&changing(uuid))?.is_some())
    }

    pub(super) fn by_key(&self, owner: &Owner, kind: &str, key: &str) -> Result<Option<(Record, State)>> {
        self.one("owner = ?1 AND kind = ?2 AND key = ?3", params![owner.as_str(), kind, key])
    }

    pub(super) fn by_name(&self, owner: &Owner, name: &str) -> Result<Option<(Record, State)>> {
        self.one("owner = ?1 AND name = ?2", params![owner.as_str(), name])
    }

    /// Those that a user may see and whose key begins with `prefix` (hexadecimal digits only), at most two.
    pub(super) fn by_key_prefix(&self, owner: &Owner, kind: &str, prefix: &str) -> Result<Vec<Record>> {
        let condition = "owner = ?1 AND kind = ?2 AND key GLOB ?3 AND state IN ('ready', 'replacing') LIMIT 2";
        let found = self.many(condition, params![owner.as_str(), kind, format!("{prefix}*")])?;
        Ok(found.into_iter().map(|(record, _)| record).collect())
    }

    /// The snapshots of a container that a user may see, oldest first.
    pub(super) fn snapshots_of(&self, owner: &Owner, container: Uuid) -> Result<Vec<Record>> {
        let condition =
            "owner = ?1 AND kind = 'snapshot' AND key >= ?2 AND key < ?3 AND state IN ('ready', 'replacing')";
        // All keys that begin with the container's: `0` is what comes after `/`.
        let (first, end) = (format!("{container}/"), format!("{container}0"));
        let found = self.many(condition, params![owner.as_str(), first, end])?;
        Ok(found.into_iter().map(|(record, _)| record).collect())
    }

    /// Whether any tree, ready or not, was cloned from this one.
    pub(super) fn has_children(&self, uuid: Uuid) -> Result<bool> {
        Ok(!self.uuids("SELECT uuid FROM snapshots WHERE parent = ?1 LIMIT 1", params![uuid.to_string()])?.is_empty())
    }

    /// The spares of a tree that are whole.
    pub(super) fn spares_of(&self, parent: Uuid) -> Result<Vec<Uuid>> {
        self.uuids(
            "SELECT uuid FROM snapshots WHERE parent = ?1 AND kind = 'spare' AND state = 'ready'",
            params![parent.to_string()],
        )
    }

    /// The trees that containers are clones of and that have fewer spares than `wanted`, those being made included.
    pub(super) fn short_of_spares(&self, wanted: usize) -> Result<Vec<Uuid>> {
        self.uuids(
            "SELECT parent FROM snapshots
             WHERE parent IS NOT NULL AND state <> 'removing' AND kind IN ('container', 'keyed', 'spare')
             GROUP BY parent
             HAVING max(kind = 'container' AND json_extract(record, '$.content.container.read_only') IS NOT 1
                     OR kind = 'keyed' AND json_extract(record, '$.content.keyed.stage') = 'active')
                AND sum(kind = 'spare') < ?1",
            params![wanted as i64],
        )
    }

    /// All of a kind that are there or being made.
    pub(super) fn list_begun(&self, kind: &str) -> Result<Vec<Record>> {
        let found = self.many("kind = ?1 AND state <> 'removing'", params![kind])?;
        Ok(found.into_iter().map(|(record, _)| record).collect())
    }

    pub(super) fn fact<T: rusqlite::types::FromSql>(&self, name: &str) -> Result<Option<T>> {
        let _turn = self.turns.take(Lock::Shared)?;
        self.db
            .query_row("SELECT value FROM facts WHERE name = ?1", [name], |row| row.get(0))
            .optional()
            .map_err(|e| failed_in(&self.db, &e))
    }

    /// The only column of all rows found.
    fn uuids(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<Uuid>> {
        let _turn = self.turns.take(Lock::Shared)?;
        let found = self.db.prepare_cached(sql).and_then(|mut found| {
            let uuids = found.query_map(values, |row| row.get::<_, String>(0))?;
            uuids.collect::<rusqlite::Result<Vec<_>>>()
        });
        let parse = |text: &String| {
            Uuid::try_parse(text).map_err(|e| Error::new(Kind::Damaged, format!("index holds a bad UUID: {e}")))
        };
        found.map_err(|e| failed_in(&self.db, &e))?.iter().map(parse).collect()
    }

    fn one(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Option<(Record, State)>> {
        Ok(self.many(condition, values)?.into_iter().next())
    }

    fn many(&self, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<(Record, State)>> {
        let _turn = self.turns.take(Lock::Shared)?;
        select(&self.db, condition, values)
    }
}

/// Changes of one transaction.
#[derive(Debug)]
pub(super) struct Change<'a> {
    transaction: Transaction<'a>,
}

impl Change<'_> {
    /// Add or overwrite the row of a record.
    ///
    /// # Errors
    /// `Exists` if its key or name is another's.
    pub(super) fn put(&self, record: &Record, state: State) -> Result<()> {
        self.put_as(record, state, record.key().as_deref(), record.name())
    }

    /// Add the row of a record found on disk. If damage gave two trees one name, the one that comes later stays
    /// reachable all the same: a container by another name, another tree by those that are based on it.
    pub(super) fn adopt(&self, record: Record, state: State) -> Result<()> {
        let (uuid, name) = (record.uuid, record.name().map(str::to_string));
        if self.adopt_quietly(record, state)? {
            tracing::warn!(%uuid, name, "another tree has its name");
        }
        Ok(())
    }

    /// [`Change::adopt`], and whether another tree has its name.
    pub(super) fn adopt_quietly(&self, mut record: Record, state: State) -> Result<bool> {
        match self.put(&record, state) {
            Err(e) if e.kind() == Kind::Exists => {}
            other => return other.map(|()| false),
        }
        if let Content::Container(container) = &mut record.content {
            container.name = format!("{}-{}", container.name, record.uuid.simple());
        }
        match self.put(&record, state) {
            Err(e) if e.kind() == Kind::Exists => self.put_as(&record, state, None, None),
            other => other,
        }
        .map(|()| true)
    }

    /// Overwrite the row of a tree that is no more what its record says: nobody finds it by a name.
    pub(super) fn put_nameless(&self, record: &Record, state: State) -> Result<()> {
        self.put_as(record, state, None, None)
    }

    fn put_as(&self, record: &Record, state: State, key: Option<&str>, name: Option<&str>) -> Result<()> {
        let json = serde_json::to_string(record)
            .map_err(|e| Error::new(Kind::Invalid, format!("cannot write record of {}: {e}", record.uuid)))?;
        self.transaction
            .prepare_cached(
                "INSERT INTO snapshots (uuid, owner, kind, key, name, parent, state, record)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (uuid) DO UPDATE
                 SET owner = ?2, kind = ?3, key = ?4, name = ?5, parent = ?6, state = ?7, record = ?8",
            )
            .and_then(|mut statement| {
                statement.execute(params![
                    record.uuid.to_string(),
                    record.owner.as_str(),
                    record.content.kind().as_str(),
                    key,
                    name,
                    record.parent.map(|p| p.to_string()),
                    state.as_str(),
                    json,
                ])
            })
            .map(|_| ())
            .map_err(|e| failed_in(&self.transaction, &e))
    }

    /// Nothing happens without a row.
    pub(super) fn set_state(&self, uuid: Uuid, state: State) -> Result<()> {
        self.execute("UPDATE snapshots SET state = ?2 WHERE uuid = ?1", params![uuid.to_string(), state.as_str()])
    }

    /// [`Change::put`] of a record that its row has already: a state alone touches half the pages.
    pub(super) fn put_state(&self, record: &Record, state: State) -> Result<()> {
        let values = params![record.uuid.to_string(), state.as_str()];
        match self.change_rows("UPDATE snapshots SET state = ?2 WHERE uuid = ?1", values)? {
            0 => self.put(record, state),
            _ => Ok(()),
        }
    }

    /// Say whether the record beside a tree is being written, and so may be another than its row's until the change is done
    /// that writes both. Who dies in between leaves it said.
    pub(super) fn set_changing(&self, uuid: Uuid, is: bool) -> Result<()> {
        if is {
            return self.set_fact(&changing(uuid), &true);
        }
        self.execute("DELETE FROM facts WHERE name = ?1", params![changing(uuid)])
    }

    pub(super) fn delete(&self, uuid: Uuid) -> Result<()> {
        self.set_changing(uuid, false)?;
        self.execute("DELETE FROM snapshots WHERE uuid = ?1", params![uuid.to_string()])
    }

    pub(super) fn clear(&self) -> Result<()> {
        self.execute("DELETE FROM facts WHERE name GLOB 'changing *'", params![])?;
        self.execute("DELETE FROM snapshots", params![])
    }

    pub(super) fn get(&self, uuid: Uuid) -> Result<Option<(Record, State)>> {
        Ok(select(&self.transaction, "uuid = ?1", params![uuid.to_string()])?.into_iter().next())
    }

    /// Whether any tree, ready or not, was cloned from this one.
    pub(super) fn has_children(&self, uuid: Uuid) -> Result<bool> {
        self.transaction
            .query_row("SELECT EXISTS (SELECT 1 FROM snapshots WHERE parent = ?1)", [uuid.to_string()], |row| {
                row.get(0)
            })
            .map_err(|e| failed_in(&self.transaction, &e))
    }

    pub(super) fn set_fact(&self, name: &str, value: &dyn rusqlite::ToSql) -> Result<()> {
        self.execute("INSERT OR REPLACE INTO facts (name, value) VALUES (?1, ?2)", params![name, value])
    }

    pub(super) fn fact<T: rusqlite::types::FromSql>(&self, name: &str) -> Result<Option<T>> {
        self.transaction
            .prepare_cached("SELECT value FROM facts WHERE name = ?1")
            .and_then(|mut fact| fact.query_row([name], |row| row.get(0)))
            .optional()
            .map_err(|e| failed_in(&self.transaction, &e))
    }

    fn execute(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<()> {
        self.change_rows(sql, values).map(|_| ())
    }

    /// How many rows a statement changed.
    fn change_rows(&self, sql: &str, values: &[&dyn rusqlite::ToSql]) -> Result<usize> {
        self.transaction
            .prepare_cached(sql)
            .and_then(|mut statement| statement.execute(values))
            .map_err(|e| failed_in(&self.transaction, &e))
    }
}

/// The fact that says that a record is being written.
fn changing(uuid: Uuid) -> String {
    format!("changing {uuid}")
}

fn select(db: &Connection, condition: &str, values: &[&dyn rusqlite::ToSql]) -> Result<Vec<(Record, State)>> {
    let sql = format!("SELECT record, state FROM snapshots WHERE {condition}");
    let mut statement = db.prepare_cached(&sql).map_err(|e| failed_in(db, &e))?;
    let mut rows = statement.query(values).map_err(|e| failed_in(db, &e))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(|e| failed_in(db, &e))? {
        found.push(from_row(row)?);
    }
    found.sort_by_key(|(record, _)| (record.created, record.uuid));
    Ok(found)
}

fn from_row(row: &Row<'_>) -> Result<(Record, State)> {
    let json = row.get_ref(0).and_then(|v| Ok(v.as_str()?)).map_err(|e| failed(&e))?;
    let record = serde_json::from_str(json)
        .map_err(|e| Error::new(Kind::Damaged, format!("index holds a bad record: {e}")))?;
    let state = match row.get_ref(1).and_then(|v| Ok(v.as_str()?)).map_err(|e| failed(&e))? {
        "ready" => State::Ready,
        "removing" => State::Removing,
        "replacing" => State::Replacing,
        _ => State::Making,
    };
    Ok((record, state))
}

fn is_unwritable(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly | ErrorCode::CannotOpen)
}

/// Whether an error says that nothing can be written, or not to this file: what the index is not needed for goes on without it.
pub(super) fn is_unwritten(kind: Kind) -> bool {
    matches!(kind, Kind::NoSpace | Kind::System)
}

/// [`failed`], with what the system said.
fn failed_in(db: &Connection, error: &rusqlite::Error) -> Error {
    match (error.sqlite_error_code(), sqlite::system_error(db)) {
        (Some(ErrorCode::SystemIoFailure), Some(why)) => unwritten(&why),
        _ => failed(error),
    }
}

fn unwritten(why: &std::io::Error) -> Error {
    Error::system("write the index", why)
}

/// The error of a statement. A full or read-only filesystem is [`Kind::NoSpace`] or [`Kind::Denied`].
fn failed(error: &rusqlite::Error) -> Error {
    if error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_READONLY_DBMOVED) {
        return Error::new(Kind::InUse, "another reflinkd has made the index anew since we opened it")
            .with_hint("try again");
    }
    let kind = match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation) => Kind::Exists,
        Some(ErrorCode::DiskFull) => return unwritten(&std::io::Error::from_raw_os_error(libc::ENOSPC)),
        Some(ErrorCode::ReadOnly) => return Error::new(Kind::Denied, "write the index: Read-only file system"),
        Some(ErrorCode::CannotOpen) => Kind::Denied,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Kind::Damaged,
        Some(ErrorCode::DatabaseBusy) => Kind::InUse,
        _ => Kind::System,
    };
    let error = Error::new(kind, format!("index: {error}"));
    match kind {
        Kind::Damaged => error.with_hint("remove index.db in the store: it is made anew from the records"),
        _ => error,
    }
}
