//! Compares two trees: all of them, or what somebody knows may differ.
//!
//! What is asked for is a list of directories, each with the names to look at, or all that are in it. Each directory is
//! opened by its path on either side, its names are looked at, and subdirectories of which all is wanted join the
//! list. Whoever leads the comparison needn't be right, only complete: a name that has not changed is dropped.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

use super::entry::{Difference, Entry, Facts, compare};
use super::links::{Inode, Links};
use super::side::{Side, join};
use super::{EntryKind, Remembered, What};
use crate::sys::way::Way;
use crate::{Context, Result};

/// What may differ at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::backend) struct Look {
    /// The bytes of a file, not only what is said of it.
    pub(in crate::backend) content: bool,
    /// Everything below a directory.
    pub(in crate::backend) below: bool,
}

/// All that may differ, by the paths of directories.
pub(in crate::backend) type Plan = BTreeMap<Vec<u8>, Directory>;

/// All names of an inode, as directory and name.
type Names<'a> = dyn Fn(Inode) -> Result<Vec<(Vec<u8>, Vec<u8>)>> + 'a;

/// What may differ in a directory that both trees have.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct Directory {
    /// What is said of the directory itself.
    pub(in crate::backend) itself: bool,
    pub(in crate::backend) names: BTreeMap<Vec<u8>, Look>,
}

/// An entry that isn't as it was.
#[derive(Debug)]
pub(in crate::backend) struct Found {
    pub(in crate::backend) path: Vec<u8>,
    pub(in crate::backend) what: What,
    /// What it is now; of what is gone, what it was.
    pub(in crate::backend) facts: Facts,
}

/// A directory to compare.
struct Job {
    way: Way,
    /// Whether the old tree has it.
    old: bool,
    /// Whether it is compared as such. Else whoever put it here has done that.
    itself: bool,
    /// `None` for all that are in it.
    names: Option<BTreeMap<Vec<u8>, Look>>,
}

/// A comparison of two trees, `old` being `None` for nothing at all.
pub(in crate::backend) struct Comparer<'a> {
    old: Option<&'a Side<'a>>,
    new: &'a Side<'a>,
    found: BTreeMap<Vec<u8>, (What, Facts)>,
    links: Links,
    remembered: Remembered,
    jobs: Vec<Job>,
}

impl<'a> Comparer<'a> {
    pub(in crate::backend) fn new(old: Option<&'a Side<'a>>, new: &'a Side<'a>) -> Self {
        let (links, remembered) = (Links::default(), Remembered::default());
        Self { old, new, found: BTreeMap::new(), links, remembered, jobs: Vec::new() }
    }

    /// Compare everything.
    pub(in crate::backend) fn everything(mut self) -> Result<Vec<Found>> {
        self.jobs.push(Job { way: Way::default(), old: self.old.is_some(), itself: true, names: None });
        self.work()?;
        self.finish()
    }

    /// Compare what is in the plan, with all further names of the inodes that are met; `names` knows those.
    pub(in crate::backend) fn planned(mut self, mut plan: Plan, names: &Names<'_>) -> Result<Vec<Found>> {
        while !plan.is_empty() {
            self.jobs.extend(plan.into_iter().map(|(path, Directory { itself, names })| Job {
                way: Way::default().join(&path),
                old: true,
                itself,
                names: Some(names),
            }));
            self.work()?;
            plan = Plan::new();
            for inode in self.links.unasked() {
                for (directory, name) in names(inode)? {
                    if !self.links.knows(&join(&directory, &name)) {
                        plan.entry(directory).or_default().names.insert(name, Look::default());
                    }
                }
            }
        }
        self.finish()
    }

    /// What was found, in order.
    fn finish(mut self) -> Result<Vec<Found>> {
        self.add_names(self.links.moved().map(<[u8]>::to_vec).collect(), What::Modified)?;
        let made = |path: &[u8]| self.found.get(path).is_some_and(|(what, _)| what.is_made());
        self.add_names(self.links.along(made), What::Linked)?;
        let found = self.found.into_iter().map(|(path, (what, facts))| Found { path, what, facts });
        let mut found: Vec<_> = found.collect();
        found.sort_by(|a, b| components(&a.path).cmp(components(&b.path)));
        Ok(found)
    }

    /// Add names that have not been found to differ by themselves.
    fn add_names(&mut self, paths: Vec<Vec<u8>>, what: What) -> Result<()> {
        for path in paths.into_iter().filter(|path| !self.found.contains_key(path)).collect::<Vec<_>>() {
            let (directory, name) = split(&path);
            let Some(open) = self.new.directory(directory)? else { continue };
            if let Some(facts) = self.new.facts(&open, &path, name)? {
                self.add(path, what, facts)?;
            }
        }
        Ok(())
    }

    fn work(&mut self) -> Result<()> {
        while let Some(job) = self.jobs.pop() {
            self.directory(job)?;
        }
        Ok(())
    }

    fn directory(&mut self, job: Job) -> Result<()> {
        let Job { way, old, itself, names } = job;
        let path = way.path();
        let Some(new) = self.new.directory(&path)? else { return Ok(()) };
        let old = match self.old.filter(|_| old) {
            Some(side) => side.directory(&path)?.map(|directory| (side, directory)),
            None => None,
        };
        if itself {
            let is = self.new.itself(&new, &path)?;
            match &old {
                None => self.add(path.clone(), What::Added, is)?,
                Some((side, directory)) => {
                    let was = side.itself(directory, &path)?;
                    let entry = |directory, facts| Entry { directory, name: b".", facts };
                    self.compare(path.clone(), entry(directory, &was), entry(&new, &is), false)?;
                }
            }
        }
        let names = match names {
            Some(names) => names,
            None => {
                let everything = Look { content: true, below: true };
                let mut names = self.new.names(&new, &path)?;
                if let Some((side, directory)) = &old {
                    names.extend(side.names(directory, &path)?);
                }
                names.into_iter().map(|name| (name, everything)).collect()
            }
        };
        for (name, look) in names {
            let path = join(&path, &name);
            let was = match &old {
                Some((side, directory)) => side.facts(directory, &path, &name)?.map(|facts| (directory, facts)),
                None => None,
            };
            let is = self.new.facts(&new, &path, &name)?;
            self.name((&way, path), &name, was, is.map(|facts| (&new, facts)), look)?;
        }
        Ok(())
    }

    /// A name that is in one of the trees or both, or in none.
    fn name(
        &mut self,
        (above, path): (&Way, Vec<u8>),
        name: &[u8],
        was: Option<(&OwnedFd, Facts)>,
        is: Option<(&OwnedFd, Facts)>,
        look: Look,
    ) -> Result<()> {
        let Some((new_directory, is)) = is else {
            if let Some((_, was)) = was {
                self.add(path, What::Deleted, was)?;
            }
            return Ok(());
        };
        let same_type = was.filter(|(_, was)| was.kind == is.kind);
        let directory = is.kind == EntryKind::Directory;
        let linked = !directory && (is.links > 1 || same_type.is_some_and(|(_, was)| was.links > 1));
        if linked {
            self.remembered.add(&path)?;
            self.links.add(&path, same_type.map(|(_, was)| was.id), is.id);
        }
        if directory && (look.below || same_type.is_none()) {
            self.jobs.push(Job { way: above.join(name), old: same_type.is_some(), itself: false, names: None });
        }
        match (was, same_type) {
            (None, _) => self.add(path, What::Added, is)?,
            (Some((_, was)), None) => self.add(path, What::Replaced { was: was.kind }, is)?,
            (_, Some((old_directory, was))) => {
                let old = Entry { directory: old_directory, name, facts: &was };
                let new = Entry { directory: new_directory, name, facts: &is };
                // Of an inode with several names, what happened to it is told at one of them.
                self.compare(path, old, new, look.content || linked)?;
            }
        }
        Ok(())
    }

    /// An entry that is in both trees, with the same type.
    fn compare(&mut self, path: Vec<u8>, old: Entry<'_>, new: Entry<'_>, content: bool) -> Result<()> {
        let difference = match compare(old, new, content) {
            // In a tree that is written to it may be gone, or have become something else, since we looked.
            Err(Errno::NOENT) => {
                return self.add(path, What::Deleted, *old.facts);
            }
            Err(Errno::INVAL) => Difference::Some,
            other => other.context(|| self.new.call("compare", &path))?,
        };
        match difference {
            Difference::None => Ok(()),
            Difference::Time if new.facts.kind == EntryKind::Directory => self.add(path, What::Touched, *new.facts),
            Difference::Time | Difference::Some => self.add(path, What::Modified, *new.facts),
        }
    }

    fn add(&mut self, path: Vec<u8>, what: What, facts: Facts) -> Result<()> {
        self.remembered.add(&path)?;
        self.found.insert(path, (what, facts));
        Ok(())
    }
}

impl std::fmt::Debug for Comparer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Comparer").field("old", &self.old).field("new", &self.new).finish_non_exhaustive()
    }
}

/// Orders paths by their components: nothing is less than a slash.
fn components(path: &[u8]) -> impl Iterator<Item = u8> {
    path.iter().map(|&byte| if byte == b'/' { 0 } else { byte })
}

/// The directory that a path is in, and its name there.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use super::*;

    #[test]
    fn paths_are_ordered_as_std_orders_them() {
        let mut paths = ["a", "a/b", "a.b", "a-b/c", "b", "", "a/b/c", "a\u{1}", "ab"];
        let mut as_std = paths;
        paths.sort_by(|a, b| components(a.as_bytes()).cmp(components(b.as_bytes())));
        as_std.sort_by_key(|path| Path::new(*path));
        assert_eq!(paths, as_std);
        assert_eq!(split(Path::new("a/b/c").as_os_str().as_bytes()), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(split(b"c"), (&b""[..], &b"c"[..]));
    }
}
