//! The reference: a tree in memory, told what to do by logical entries. It knows no tar and no filesystem.
//!
//! It does what the specification says in the order that the specification implies: a layer's markers first,
//! on what lower layers left; then what the layer adds, one after the other.

use std::collections::BTreeMap;

use super::tree::{Seen, Tree, What, Xattrs};

pub(crate) type Path = Vec<Vec<u8>>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Xattrs,
}

impl Meta {
    pub(crate) fn implied() -> Self {
        Self { mode: 0o755, owner: (0, 0), mtime: (0, 0), xattrs: Xattrs::new() }
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Add(Path, What, Meta),
    Link(Path, Path),
    Whiteout(Path),
    Opaque(Path),
}

type Inode = usize;

#[derive(Clone)]
struct Node {
    what: What,
    meta: Meta,
    children: BTreeMap<Vec<u8>, Inode>,
}

/// Inodes are never freed: a case is small.
#[derive(Clone)]
pub(crate) struct Model {
    nodes: Vec<Node>,
}

/// Why an entry can't be applied; the generator leaves such entries out.
#[derive(Debug)]
pub(crate) struct Impossible;

impl Model {
    pub(crate) fn new() -> Self {
        Self { nodes: vec![Node { what: What::Dir, meta: Meta::implied(), children: BTreeMap::new() }] }
    }

    pub(crate) fn mark(&mut self, op: &Op) {
        match op {
            Op::Whiteout(path) => {
                let (last, parent) = path.split_last().expect("not the root");
                if let Ok(dir) = self.directory(parent, false) {
                    self.nodes[dir].children.remove(last);
                }
            }
            Op::Opaque(path) => {
                if let Ok(dir) = self.directory(path, false) {
                    self.nodes[dir].children.clear();
                }
            }
            Op::Add(..) | Op::Link(..) => {}
        }
    }

    pub(crate) fn add(&mut self, op: &Op) -> Result<(), Impossible> {
        match op {
            Op::Add(path, What::Dir, meta) if path.is_empty() => self.nodes[0].meta = meta.clone(),
            Op::Add(path, what, meta) => {
                let (last, parent) = path.split_last().ok_or(Impossible)?;
                let dir = self.directory(parent, true)?;
                let there = self.nodes[dir].children.get(last).copied();
                match there {
                    Some(inode) if *what == What::Dir && self.nodes[inode].what == What::Dir => {
                        self.nodes[inode].meta = meta.clone();
                    }
                    _ => {
                        let node = Node { what: what.clone(), meta: meta.clone(), children: BTreeMap::new() };
                        self.nodes.push(node);
                        let inode = self.nodes.len() - 1;
                        self.nodes[dir].children.insert(last.clone(), inode);
                    }
                }
            }
            Op::Link(path, target) => {
                let (name, target_parent) = target.split_last().ok_or(Impossible)?;
                let target_dir = self.directory(target_parent, false)?;
                let inode = *self.nodes[target_dir].children.get(name).ok_or(Impossible)?;
                if self.nodes[inode].what == What::Dir {
                    return Err(Impossible);
                }
                let (last, parent) = path.split_last().ok_or(Impossible)?;
                // A link in place of a directory that holds its own target loses the target.
                if target.len() > path.len() && target.starts_with(path) {
                    return Err(Impossible);
                }
                let dir = self.directory(parent, true)?;
                if let Some(&there) = self.nodes[dir].children.get(last)
                    && self.holds(there, inode)
                {
                    return Err(Impossible);
                }
                self.nodes[dir].children.insert(last.clone(), inode);
            }
            Op::Whiteout(_) | Op::Opaque(_) => {}
        }
        Ok(())
    }

    /// Whether a directory has a name of `inode` somewhere below.
    fn holds(&self, dir: Inode, inode: Inode) -> bool {
        self.nodes[dir].children.values().any(|&child| child == inode || self.holds(child, inode))
    }

    /// Find a directory, following symlinks inside the root; make what is missing.
    fn directory(&mut self, path: &[Vec<u8>], make: bool) -> Result<Inode, Impossible> {
        let mut stack = vec![0];
        let mut todo: Vec<(Vec<u8>, bool)> = path.iter().rev().map(|c| (c.clone(), make)).collect();
        let mut hops = 0;
        while let Some((component, make)) = todo.pop() {
            let here = *stack.last().expect("the root stays");
            match &component[..] {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() > 1 {
                        stack.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let Some(&inode) = self.nodes[here].children.get(&component) else {
                if !make {
                    return Err(Impossible);
                }
                self.nodes.push(Node { what: What::Dir, meta: Meta::implied(), children: BTreeMap::new() });
                let inode = self.nodes.len() - 1;
                self.nodes[here].children.insert(component, inode);
                stack.push(inode);
                continue;
            };
            match &self.nodes[inode].what {
                What::Dir => stack.push(inode),
                What::Symlink(target) => {
                    hops += 1;
                    if hops > 20 {
                        return Err(Impossible);
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    // Nothing is made inside a symlink's target: a dangling one is an error.
                    todo.extend(target.split(|&b| b == b'/').rev().map(|c| (c.to_vec(), false)));
                }
                _ => return Err(Impossible),
            }
        }
        Ok(*stack.last().expect("the root stays"))
    }

    /// What stands at `path` without following any symlink.
    pub(crate) fn plain(&self, path: &[Vec<u8>]) -> Option<&What> {
        let mut inode = 0;
        for component in path {
            inode = *self.nodes[inode].children.get(component)?;
        }
        Some(&self.nodes[inode].what)
    }

    pub(crate) fn tree(&self) -> Tree {
        let (mut tree, mut names) = (Tree::new(), BTreeMap::new());
        self.list(0, &[], &mut names);
        let mut first: BTreeMap<Inode, Vec<u8>> = BTreeMap::new();
        for (name, inode) in names {
            let node = &self.nodes[inode];
            let first = first.entry(inode).or_insert_with(|| name.clone()).clone();
            let mode = if matches!(node.what, What::Symlink(_)) { 0o777 } else { node.meta.mode };
            let Meta { owner, mtime, xattrs, .. } = node.meta.clone();
            tree.insert(name, Seen { what: node.what.clone(), mode, owner, mtime, xattrs, first });
        }
        tree
    }

    fn list(&self, inode: Inode, name: &[u8], names: &mut BTreeMap<Vec<u8>, Inode>) {
        names.insert(name.to_vec(), inode);
        for (child, &inode) in &self.nodes[inode].children {
            let below = if name.is_empty() { child.clone() } else { [name, b"/", child].concat() };
            self.list(inode, &below, names);
        }
    }
}
