//! Containers: writable clones of an image's topmost layer, or read-only views of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::image::short;
use super::{Engine, names, tree_at};
use crate::backend::{Access, Guarantee, Tree};
use crate::store::{Container, Content, Draft, Held, New, NewGroup, Owner, Record, TreeKind};
use crate::sys::users;
use crate::{Context, Error, Kind, Result};

/// How long a removal waits for another command of ours that has a file of the tree open, and how soon it looks again.
const PATIENCE_WITH_US: Duration = Duration::from_secs(5);
const GLANCE: Duration = Duration::from_millis(20);

/// What a new container is to be.
#[derive(Debug, Clone, Default)]
pub struct CreateContainer {
    /// Made up if `None`.
    pub name: Option<String>,
    /// Name or ID prefix of the image.
    pub image: String,
    /// Most bytes its writers may add; the image doesn't count.
    pub size_limit: Option<u64>,
    pub labels: BTreeMap<String, String>,
    /// Nothing can be written to it; it has its image's own files, and no tree.
    pub read_only: bool,
}

/// A container that was made, and what its user should know.
#[derive(Debug, Clone)]
pub struct Created {
    pub record: Record,
    pub warnings: Vec<String>,
}

impl Engine {
    /// Make a container: a snapshot of the image's topmost layer, or a spare clone of it. Durable on return.
    pub fn create_container(&self, wanted: CreateContainer) -> Result<Created> {
        let said = wanted.name.clone();
        self.with_room(|| self.create(wanted.clone())).context(|| match said {
            Some(name) => format!("cannot create container {name}"),
            None => "cannot create a container".to_string(),
        })
    }

    fn create(&self, wanted: CreateContainer) -> Result<Created> {
        if let Some(name) = &wanted.name {
            names::check(name)?;
        }
        if wanted.read_only && wanted.size_limit.is_some() {
            return Err(Error::new(Kind::Invalid, "a read-only container writes nothing that a limit could hold"));
        }
        self.tidy()?;
        self.make_room(Some(&wanted.image))?;
        self.guard_host()?;
        // Until the container is begun: then whoever removes images sees that this one is used.
        let images = self.store.keep_images()?;
        let image = self.find_image(&wanted.image)?;
        let warnings = self.check_limit(wanted.size_limit)?;
        let container = Container {
            id: names::random_id()?,
            name: String::new(),
            image_id: image.id.clone(),
            image: self.name_for(&image, &wanted.image),
            size_limit: wanted.size_limit,
            labels: wanted.labels,
            read_only: wanted.read_only,
            inherited: 0,
        };
        let draft = self.begin_container(wanted.name.as_deref(), image.top, container)?;
        drop(images);
        if let Err(e) = self.make_container(&draft, wanted.size_limit) {
            self.discard(draft);
            return Err(e);
        }
        match self.store.publish_or_yield(draft)? {
            Ok(record) => Ok(Created { record, warnings }),
            // The index was made anew while a claimed spare was still one by its record.
            Err(draft) => {
                let name = draft.record().name().unwrap_or_default().to_string();
                self.discard(draft);
                Err(self.name_taken(&name))
            }
        }
    }

    /// Give a draft what makes it a container. Durable on return.
    pub(super) fn make_container(&self, draft: &Draft, limit: Option<u64>) -> Result<()> {
        let tree = tree_at(draft.place().to_path_buf(), draft.record());
        let parent = self.parent_tree(draft.record())?;
        if draft.record().is_view() {
            self.make_view(draft, parent.as_ref())
        } else if draft.is_claimed() {
            // Also if it is to have none: whoever claimed it before and died may have set one.
            self.set_limit(&tree, limit)?;
            self.store.confirm(draft)
        } else if let Some(parent) = parent {
            self.backend.clone_tree(&parent, &tree, Access::Writable, limit)
        } else {
            self.backend.create(&tree, limit).and_then(|()| self.backend.sync())
        }
    }

    /// Reserve a place under the wanted name, or under one that is made up: a spare's, if there is one to be had.
    fn begin_container(&self, name: Option<&str>, parent: Option<uuid::Uuid>, container: Container) -> Result<Draft> {
        self.named(name, container, |container| self.begin_named(parent, container))
    }

    /// Do a step under the wanted name, or under one that is made up.
    pub(super) fn named<T>(
        &self,
        name: Option<&str>,
        mut container: Container,
        mut step: impl FnMut(&Container) -> Result<T>,
    ) -> Result<T> {
        let mut attempt = 0;
        loop {
            container.name = name.map_or_else(|| names::made_up(&container.id, attempt), str::to_string);
            match step(&container) {
                Err(e) if e.kind() == Kind::Exists && name.is_none() && attempt < 8 => {
                    attempt += 1;
                    container.id = names::random_id()?;
                }
                Err(e) if e.kind() == Kind::Exists => return Err(self.name_taken(&container.name)),
                other => return other,
            }
        }
    }

    fn begin_named(&self, parent: Option<uuid::Uuid>, container: &Container) -> Result<Draft> {
        let content = Content::Container(container.clone());
        if let Some(parent) = parent
            && !container.read_only
            && self.keeps_spares()
            && let Some(draft) = self.store.claim_spare(parent, &Owner::cli(), &content)?
        {
            return Ok(draft);
        }
        let group = if container.read_only { NewGroup::None } else { NewGroup::Fresh };
        self.store.begin(New { owner: Owner::cli(), parent, group, content })
    }

    fn name_taken(&self, name: &str) -> Error {
        let holder = match self.store.by_name(&Owner::cli(), name) {
            Ok(Some(record)) => record.container().map(|c| format!(" by container {}", short(&c.id))),
            _ => None,
        };
        Error::new(Kind::Exists, format!("the name {name} is taken{}", holder.unwrap_or_default()))
            .with_hint(format!("choose another name, or remove that one: reflinkd rm {name}"))
    }

    /// Whether a limit can be held here; what its user should know if it can only in part.
    pub(super) fn check_limit(&self, limit: Option<u64>) -> Result<Vec<String>> {
        let Some(limit) = limit else { return Ok(Vec::new()) };
        if limit == 0 {
            return Err(Error::new(Kind::Invalid, "a size limit of 0 bytes leaves nothing to write"));
        }
        let Some(quotas) = self.backend.quotas() else { return Err(self.backend.no_limits()?) };
        Ok(match quotas.guarantee() {
            Guarantee::Holds => Vec::new(),
            Guarantee::CountsTheClone => {
                vec![
                    "project quotas let the container write more once it deletes or overwrites files of its image"
                        .into(),
                ]
            }
            Guarantee::EscapedByNestedSubvolumes => {
                vec!["with full qgroups, subvolumes made inside the container are not held by its limit".into()]
            }
        })
    }

    /// All containers, oldest first.
    pub fn containers(&self) -> Result<Vec<Record>> {
        self.store.list(TreeKind::Container)
    }

    /// A container by name, ID, or unambiguous beginning of an ID.
    pub fn find_container(&self, name: &str) -> Result<Record> {
        if let Some(record) = self.store.by_name(&Owner::cli(), name)? {
            return Ok(record);
        }
        if !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            let mut found = self.store.by_key_prefix(&Owner::cli(), TreeKind::Container, name)?;
            if found.len() > 1 {
                return Err(Error::new(Kind::Invalid, format!("{name} is the beginning of several container IDs"))
                    .with_hint("give more digits; reflinkd ps --no-trunc shows them"));
            }
            if let Some(record) = found.pop() {
                return Ok(record);
            }
        }
        let hint = match name.split_once('@') {
            Some(_) => format!("{name} would be a snapshot; a container can be made of one: reflinkd clone {name}"),
            None => "reflinkd ps lists them".into(),
        };
        Err(Error::new(Kind::NotFound, format!("there is no container {name}")).with_hint(hint))
    }

    /// The root directory of a container. Nothing is mounted, as the tree is there all the time; only of a read-only one
    /// the mount is made again if it is missing (after a reboot, or in another mount namespace).
    ///
    /// Also that of a snapshot (`NAME@LABEL`).
    pub fn container_root(&self, name: &str) -> Result<PathBuf> {
        self.root_of(&self.find_tree(name)?)
    }

    pub(super) fn root_of(&self, record: &Record) -> Result<PathBuf> {
        if record.is_view() {
            self.show_view(record)
                .context(|| format!("cannot show container {}", record.name().unwrap_or_default()))?;
        }
        Ok(self.tree(record).root())
    }

    /// Give a container another name.
    pub fn rename_container(&self, name: &str, new_name: &str) -> Result<Record> {
        (|| {
            names::check(new_name)?;
            self.tidy()?;
            let record = self.find_container(name)?;
            self.store
                .update(record.uuid, |record| {
                    if let Content::Container(container) = &mut record.content {
                        container.name = new_name.to_string();
                    }
                    Ok(())
                })
                .map_err(|e| if e.kind() == Kind::Exists { self.name_taken(new_name) } else { e })
        })()
        .context(|| format!("cannot rename container {name} to {new_name}"))
    }

    /// Set or lift the size limit of a container, running or not.
    pub fn limit_container(&self, name: &str, limit: Option<u64>) -> Result<Vec<String>> {
        (|| -> Result<_> {
            self.tidy()?;
            let record = self.find_container(name)?;
            if record.is_view() {
                return Err(Error::new(
                    Kind::Unsupported,
                    "it is read-only and writes nothing that a limit could hold",
                ));
            }
            let warnings = self.check_limit(limit)?;
            let change = |record: &mut Record| {
                if let Content::Container(container) = &mut record.content {
                    container.size_limit = limit;
                }
                Ok(())
            };
            let also = |record: &Record| self.set_limit(&self.tree(record), own_limit(record));
            self.store.update_with(record.uuid, change, also)?;
            Ok(warnings)
        })()
        .context(|| match limit {
            Some(limit) => format!("cannot limit container {name} to {limit} bytes"),
            None => format!("cannot lift the limit of container {name}"),
        })
    }

    /// Set the limit that a container's record says: who was changing both died, or couldn't even undo it.
    pub(super) fn limit_again(&self, record: &Record) -> Result<()> {
        if record.container().is_none() || !record.has_tree() {
            return Ok(());
        }
        match self.set_limit(&self.tree(record), own_limit(record)) {
            // Quotas were switched since: nothing would hold it.
            Err(e) if e.kind() == Kind::Unsupported => {
                tracing::warn!("cannot limit {} as its record says: {e}", record.uuid);
                Ok(())
            }
            set => set,
        }
    }

    pub(super) fn set_limit(&self, tree: &Tree, limit: Option<u64>) -> Result<()> {
        match self.backend.quotas().map_or(Ok(()), |quotas| quotas.set_limit(tree, limit)) {
            // Quotas are off, or were since it was made: nothing holds what is to be lifted.
            Err(e) if limit.is_none() && e.kind() == Kind::Unsupported => Ok(()),
            set => set,
        }
    }

    /// Make a container anew from its image, at the same path, in O(1). Its writes are lost; name, ID, labels and
    /// limit stay. A read-only one is as it was made, and left alone.
    pub fn reset_container(&self, name: &str, force: bool) -> Result<()> {
        (|| {
            self.tidy()?;
            let record = self.find_container(name)?;
            if record.is_view() {
                return Ok(());
            }
            self.guard_host()?;
            let limit = record.container().and_then(|c| c.size_limit);
            self.check_limit(limit)?;
            if !force {
                self.check_unused(&record)?;
            }
            let parent = self.parent_tree(&record)?;
            let held = self.store.begin_replacement(record.uuid)?;
            let fresh = tree_at(held.place().to_path_buf(), held.record());
            let replaced = match &parent {
                Some(parent) => self.backend.replace(parent, &fresh, limit),
                None => Err(Error::new(Kind::Unsupported, "its image has no layers")),
            };
            self.removed.store(true, Ordering::Relaxed);
            // Whatever happened, the tree that is there now counts, with the group it is charged to.
            if let Err(e) = self.settle(held, replaced.is_ok()) {
                tracing::warn!("what container {name} is charged to is written down by the next command: {e}");
            }
            replaced
        })()
        .context(|| format!("cannot reset container {name}"))
    }

    /// Remove a container with all it wrote, and with its snapshots; or one of these (`NAME@LABEL`). Returns at once; the
    /// space comes back when the filesystem has cleaned up.
    ///
    /// # Errors
    /// `InUse` naming a process that uses it, unless `force`.
    pub fn remove_container(&self, name: &str, force: bool) -> Result<Record> {
        (|| -> Result<_> {
            self.tidy()?;
            let record = self.find_tree(name)?;
            if !force {
                self.check_unused(&record)?;
            }
            // Held first, so that nobody adds a snapshot to those that are found.
            let held = self.store.hold(record.uuid)?;
            for snapshot in self.store.snapshots_of(&Owner::cli(), record.uuid)? {
                self.remove_if_there(&snapshot)?;
            }
            self.remove_held(self.store.begin_removal_of(held)?)?;
            Ok(record)
        })()
        .context(|| format!("cannot remove {} {name}", if name.contains('@') { "snapshot" } else { "container" }))
    }

    /// Remove the tree of a record, and the record. If the tree can't be removed it stays as it was.
    pub(super) fn remove_tree(&self, record: &Record) -> Result<()> {
        self.remove_held(self.store.begin_removal(record.uuid)?)
    }

    /// [`Engine::remove_tree`], and whether it was us: another process may be sooner, or be at it.
    pub(super) fn remove_if_there(&self, record: &Record) -> Result<bool> {
        match self.remove_tree(record) {
            Ok(()) => Ok(true),
            Err(_) if self.store.get(record.uuid)?.is_none() => Ok(false),
            Err(e) => Err(e),
        }
    }

    pub(super) fn remove_held(&self, held: Held) -> Result<()> {
        let uuid = held.record().uuid;
        if let Err(e) = self.destroy_tree(held.record()) {
            if let Err(kept) = self.store.keep(held) {
                tracing::warn!("cannot show {uuid} again: {kept}");
            }
            return Err(e);
        }
        self.diff_sizes.forget(uuid);
        self.usages.forget(uuid);
        if let Err(e) = self.store.finish_removal(held) {
            tracing::warn!("the place of {uuid}, which is removed, stays for the next command to clear up: {e}");
        }
        Ok(())
    }

    /// Nothing in the kernel protects a running container: look for its users. A command of ours that copies or compares is
    /// waited for, for a while.
    pub(super) fn check_unused(&self, record: &Record) -> Result<()> {
        let tree = self.tree(record);
        let until = Instant::now() + PATIENCE_WITH_US;
        loop {
            let user = if record.is_view() {
                self.user_of_view(record)?
            } else {
                users::user_of(&tree.root(), tree.place())?
            };
            match user {
                None => return Ok(()),
                Some(user) if user.is_of_this_program() && Instant::now() < until => {
                    self.check_cancelled()?;
                    std::thread::sleep(GLANCE);
                }
                Some(user) => {
                    return Err(Error::new(Kind::InUse, user.to_string()).with_hint("stop it first, or use --force"));
                }
            }
        }
    }
}

/// The limit on the group of a container.
fn own_limit(record: &Record) -> Option<u64> {
    record.container().and_then(Container::own_limit)
}
