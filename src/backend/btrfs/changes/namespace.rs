//! What the names of a tree become while a stream of SEND is carried out.
//!
//! A stream tells of changes by the names that things have at that moment, temporary ones among them. So each command
//! is carried out here, on a picture of the tree that holds only what the stream speaks of: where each thing was in
//! the parent, and where it is now. What is at its old place in the end is compared there, alone; what is new or came
//! from elsewhere, with all below it; and a name that went, as a name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use crate::backend::changes::{Directory, Look, Plan, join};
use crate::sys::btrfs::send::Command;
use crate::{Error, Kind, Result};

/// A file or directory.
#[derive(Debug)]
struct Node {
    /// Where it was in the parent; `None` for what the stream made.
    origin: Option<Vec<u8>>,
    touched: bool,
    /// Its bytes were.
    data: bool,
    /// Names in it that the stream spoke of.
    names: BTreeMap<Vec<u8>, Name>,
}

/// A name in a directory.
#[derive(Debug)]
struct Name {
    /// `None` if it is gone.
    node: Option<Node>,
    /// Whether the parent had it. A stream makes nothing in the place of another thing, so what it makes without having
    /// spoken of the name before is new.
    in_parent: bool,
}

impl Node {
    fn new(origin: Option<Vec<u8>>) -> Self {
        Self { origin, touched: false, data: false, names: BTreeMap::new() }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Namespace {
    root: Node,
}

impl Namespace {
    /// The parent's tree, as it is.
    pub(super) fn new() -> Self {
        Self { root: Node::new(Some(Vec::new())) }
    }

    /// Carry out a command.
    ///
    /// # Errors
    /// `Damaged` if it speaks of what isn't there: then this picture of the tree is wrong.
    pub(super) fn apply(&mut self, command: &Command) -> Result<()> {
        match command {
            Command::Make { path } => self.make(path),
            Command::Link { path, target } => {
                self.node(target)?.touched = true;
                self.put(path, Node::new(None))
            }
            Command::Rename { from, to } => {
                let node = self.take(from)?;
                self.put(to, node)
            }
            Command::Remove { path } => self.take(path).map(drop),
            Command::Data { path } => {
                let node = self.node(path)?;
                (node.touched, node.data) = (true, true);
                Ok(())
            }
            Command::Attributes { path } => {
                self.node(path)?.touched = true;
                Ok(())
            }
        }
    }

    /// Put something new at `path`.
    pub(super) fn make(&mut self, path: &[u8]) -> Result<()> {
        self.put(path, Node::new(None))
    }

    /// All that may differ between the parent and what the stream made of it.
    pub(super) fn into_plan(self) -> Plan {
        let mut plan = Plan::new();
        plan_below(self.root, &[], &mut plan);
        plan
    }

    fn node(&mut self, path: &[u8]) -> Result<&mut Node> {
        let mut node = &mut self.root;
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            node = node.name(name).ok_or_else(|| unknown(path))?;
        }
        Ok(node)
    }

    /// Take what `path` names; the name is gone.
    fn take(&mut self, path: &[u8]) -> Result<Node> {
        let (directory, name) = split(path);
        let directory = self.node(directory)?;
        directory.name(name).ok_or_else(|| unknown(path))?;
        let Entry::Occupied(mut known) = directory.names.entry(name.to_vec()) else { return Err(unknown(path)) };
        let node = if known.get().in_parent { known.get_mut().node.take() } else { known.remove().node };
        node.ok_or_else(|| unknown(path))
    }

    fn put(&mut self, path: &[u8], node: Node) -> Result<()> {
        let (directory, name) = split(path);
        let names = &mut self.node(directory)?.names;
        names.entry(name.to_vec()).or_insert(Name { node: None, in_parent: false }).node = Some(node);
        Ok(())
    }
}

impl Node {
    /// What a name in this directory leads to; what the stream didn't speak of yet is where it was in the parent.
    fn name(&mut self, name: &[u8]) -> Option<&mut Self> {
        match self.names.entry(name.to_vec()) {
            Entry::Occupied(known) => known.into_mut().node.as_mut(),
            Entry::Vacant(unknown) => {
                let origin = join(self.origin.as_ref()?, name);
                unknown.insert(Name { node: Some(Self::new(Some(origin))), in_parent: true }).node.as_mut()
            }
        }
    }
}

/// Add what may differ in and below a directory that is where it was.
fn plan_below(directory: Node, path: &[u8], plan: &mut Plan) {
    let mut planned = Directory { itself: directory.touched, names: BTreeMap::new() };
    for (name, state) in directory.names {
        let at = join(path, &name);
        let look = match state.node {
            None => Look::default(),
            Some(node) if node.origin.as_ref() != Some(&at) => Look { content: true, below: true },
            Some(node) if !node.names.is_empty() => {
                plan_below(node, &at, plan);
                continue;
            }
            Some(node) if node.touched => Look { content: node.data, below: false },
            Some(_) => continue,
        };
        planned.names.insert(name, look);
    }
    if planned.itself || !planned.names.is_empty() {
        plan.insert(path.to_vec(), planned);
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn unknown(path: &[u8]) -> Error {
    Error::new(Kind::Damaged, format!("the stream speaks of /{}, which isn't there", path.escape_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Look = Look { content: false, below: false };
    const DATA: Look = Look { content: true, below: false };
    const ALL: Look = Look { content: true, below: true };

    fn path(text: &str) -> Vec<u8> {
        text.as_bytes().to_vec()
    }

    fn make(at: &str) -> Command {
        Command::Make { path: path(at) }
    }

    fn rename(from: &str, to: &str) -> Command {
        Command::Rename { from: path(from), to: path(to) }
    }

    fn remove(at: &str) -> Command {
        Command::Remove { path: path(at) }
    }

    fn data(at: &str) -> Command {
        Command::Data { path: path(at) }
    }

    fn attributes(at: &str) -> Command {
        Command::Attributes { path: path(at) }
    }

    /// What the commands lead to: directories, those with a `!` to be compared themselves, and names in them.
    #[track_caller]
    fn plan(commands: &[Command], expected: &[(&str, &[(&str, Look)])]) {
        let mut namespace = Namespace::new();
        for command in commands {
            namespace.apply(command).unwrap_or_else(|e| panic!("{command:?}: {e}"));
        }
        let directory = |(at, names): &(&str, &[(&str, Look)])| {
            let names = names.iter().map(|(name, look)| (path(name), *look)).collect();
            let planned = Directory { itself: at.starts_with('!'), names };
            (path(at.trim_start_matches('!')), planned)
        };
        assert_eq!(namespace.into_plan(), expected.iter().map(directory).collect::<Plan>());
    }

    #[test]
    fn what_is_touched_is_looked_at_where_it_is() {
        plan(
            &[data("a/b/f"), attributes("a/b/g"), attributes("")],
            &[("!", &[]), ("a/b", &[("f", DATA), ("g", HERE)])],
        );
    }

    #[test]
    fn what_is_made_gets_its_name_later() {
        plan(
            &[make("o260-7-0"), rename("o260-7-0", "a/new"), data("a/new"), attributes("a")],
            &[("!a", &[("new", ALL)])],
        );
    }

    #[test]
    fn a_renamed_directory_is_compared_with_what_was_there() {
        plan(
            &[rename("a/d", "a/e"), attributes("a/e/f"), remove("a/e/gone"), attributes("a")],
            &[("!a", &[("d", HERE), ("e", ALL)])],
        );
    }

    #[test]
    fn what_only_stood_aside_is_where_it_was() {
        plan(
            &[rename("a", "o257-6-0"), data("o257-6-0/f"), rename("o257-6-0", "a"), remove("a/g")],
            &[("a", &[("f", DATA), ("g", HERE)])],
        );
    }

    #[test]
    fn a_name_given_to_something_else_is_compared_wholly() {
        plan(&[remove("d/f"), remove("d"), make("d"), make("d/f")], &[("", &[("d", ALL)])]);
        plan(&[rename("a", "o1-1-0"), rename("b", "a"), rename("o1-1-0", "b")], &[("", &[("a", ALL), ("b", ALL)])]);
    }

    #[test]
    fn a_link_touches_what_it_leads_to() {
        plan(
            &[Command::Link { path: path("d/new"), target: path("old") }],
            &[("", &[("old", HERE)]), ("d", &[("new", ALL)])],
        );
    }

    #[test]
    fn commands_on_what_is_not_there_are_refused() {
        for commands in [
            vec![remove("a"), attributes("a")],
            vec![remove("a"), make("a/b")],
            vec![remove("a"), remove("a")],
            vec![make("d"), data("d/f")],
            vec![rename("a", "b"), attributes("a")],
        ] {
            let mut namespace = Namespace::new();
            let failed = commands.iter().map(|command| namespace.apply(command)).find_map(Result::err);
            assert_eq!(failed.map(|e| e.kind()), Some(Kind::Damaged), "{commands:?}");
        }
    }
}
