//! Clones of containers: another container that begins as this one is.

use super::snapshot::refuse_view;
use super::{Engine, names, tree_at};
use crate::backend::{Access, Inherited};
use crate::engine::container::Created;
use crate::store::{Container, Content, Draft, NewFork, Owner, Record};
use crate::{Context, Result};

impl Engine {
    /// Make a container that begins as another one, or one of its snapshots (`NAME@LABEL`), is now: running or not, and then
    /// as a power cut would leave it. It has the other's image, labels and limit, and counts what it has from it as its own.
    /// Durable on return.
    pub fn clone_container(&self, source: &str, name: Option<&str>) -> Result<Created> {
        (|| -> Result<_> {
            name.map_or(Ok(()), names::check)?;
            self.tidy()?;
            self.make_room(None)?;
            self.guard_host()?;
            let from = self.find_tree(source)?;
            refuse_view(&from)?;
            let like = self.container_of(&from)?;
            let mut warnings = self.check_limit(like.size_limit)?;
            if like.size_limit.is_some() {
                warnings.extend(self.limit_of_clones());
            }
            let record = self.with_room(|| {
                self.named(name, Container { id: names::random_id()?, inherited: 0, ..like.clone() }, |container| {
                    self.fork_container(&from, container)
                })
            })?;
            Ok(Created { record, warnings })
        })()
        .context(|| format!("cannot clone container {source}"))
    }

    fn fork_container(&self, from: &Record, container: &Container) -> Result<Record> {
        let mut held = self.store.hold(from.uuid)?;
        let content = Content::Container(container.clone());
        let new = NewFork { owner: Owner::cli(), own_group: true, content };
        let mut draft = self.store.begin_fork(&mut held, new)?;
        match self.make_fork(held.record(), &mut draft) {
            Ok(()) => self.store.publish(draft),
            Err(e) => {
                self.discard(draft);
                Err(e)
            }
        }
    }

    fn make_fork(&self, from: &Record, draft: &mut Draft) -> Result<()> {
        let tree = tree_at(draft.place().to_path_buf(), draft.record());
        let Content::Container(container) = draft.record().content.clone() else { return Ok(()) };
        let counts_all = self.backend.quotas().is_none_or(|quotas| quotas.inherited() != Inherited::Origin);
        let Some(limit) = container.size_limit.filter(|_| !counts_all) else {
            return self.backend.fork(&self.tree(from), &tree, Access::Writable, container.size_limit);
        };
        // What it has from the other is charged there, but it is its own all the same.
        self.backend.fork(&self.tree(from), &tree, Access::Writable, Some(limit))?;
        let inherited = self.own_of(draft.record())?.bytes();
        let container = Container { inherited, ..container };
        self.set_limit(&tree, container.own_limit())?;
        draft.set_content(Content::Container(container));
        self.store.confirm(draft)
    }

    /// What the user of a limit should know of clones and snapshots.
    fn limit_of_clones(&self) -> Option<String> {
        match self.backend.quotas().map(crate::backend::Quotas::inherited) {
            Some(Inherited::Nobody) => {
                Some("with full qgroups, what containers and snapshots share is held by nobody's limit".into())
            }
            Some(Inherited::Origin) => Some(
                "what the clone has from its origin counts against its limit, also after the clone has deleted it"
                    .into(),
            ),
            Some(Inherited::Both) | None => None,
        }
    }
}
