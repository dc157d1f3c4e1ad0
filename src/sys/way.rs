//! Where a directory is below a root, for walks that have many of them waiting.
//!
//! Whoever writes a tree can make its paths as long as he likes, and as many directories at the end of one. So a way is a name,
//! and the way to the directory that has it, which is kept once for all that are in it: what waits takes memory by the length of
//! its names, not by that of its paths.
//!
//! ```
//! use reflinkd::sys::way::Way;
//!
//! let etc = Way::default().join(b"etc");
//! assert_eq!(etc.join(b"ssl").path(), b"etc/ssl");
//! ```

use std::fmt;
use std::sync::Arc;

/// From the root, which is the default, down.
#[derive(Clone, Default)]
pub struct Way(Option<Arc<Step>>);

struct Step {
    above: Way,
    name: Box<[u8]>,
    /// Of the whole path, in bytes.
    length: usize,
}

impl Way {
    /// The directory of this name, or path, in this one; this one if it is empty.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Self {
        if name.is_empty() {
            return self.clone();
        }
        let slash = usize::from(self.0.is_some());
        let step = Step { above: self.clone(), name: name.into(), length: self.length() + slash + name.len() };
        Self(Some(Arc::new(step)))
    }

    /// Its path below the root; empty for the root itself.
    #[must_use]
    pub fn path(&self) -> Vec<u8> {
        let mut path = vec![b'/'; self.length()];
        let mut at = &self.0;
        while let Some(step) = at {
            path[step.length - step.name.len()..step.length].copy_from_slice(&step.name);
            at = &step.above.0;
        }
        path
    }

    fn length(&self) -> usize {
        self.0.as_ref().map_or(0, |step| step.length)
    }
}

impl Drop for Way {
    /// One step after the other: each within the other's would take the stack.
    fn drop(&mut self) {
        let mut last = self.0.take();
        while let Some(mut step) = last.and_then(Arc::into_inner) {
            last = step.above.0.take();
        }
    }
}

/// Ways to directories that are named by their paths one after the other, as by a walk: what each has in common with the one
/// before it is kept once.
#[derive(Debug, Default)]
pub struct Ways {
    path: Vec<u8>,
    /// Those on the way to `path`, with the lengths of theirs.
    open: Vec<(usize, Way)>,
}

impl Ways {
    /// The way to `path`.
    pub fn to(&mut self, path: &[u8]) -> Way {
        let same = self.path.iter().zip(path).take_while(|(one, other)| one == other).count();
        let leads_there = |length: usize| length <= same && path.get(length).is_none_or(|&byte| byte == b'/');
        while self.open.pop_if(|(length, _)| !leads_there(*length)).is_some() {}
        let (length, above) = self.open.last().cloned().unwrap_or_default();
        self.path = path.to_vec();
        let rest = path[length..].strip_prefix(b"/").unwrap_or(&path[length..]);
        let way = above.join(rest);
        if !rest.is_empty() {
            self.open.push((path.len(), way.clone()));
        }
        way
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.path().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_at_the_end_of_a_long_path_shares_it() {
        let mut bottom = Way::default();
        for _ in 0..200_000 {
            bottom = bottom.join(b"d");
        }
        // By their paths 40 GB.
        let waiting: Vec<_> = (0..100_000).map(|n: u32| bottom.join(n.to_string().as_bytes())).collect();
        drop(bottom);
        let path = waiting[42].path();
        assert_eq!((path.len(), &path[..4], &path[path.len() - 5..]), (400_002, &b"d/d/"[..], &b"/d/42"[..]));
    }

    #[test]
    fn of_paths_that_a_walk_names_each_part_is_kept_once() {
        let mut ways = Ways::default();
        let paths = ["", "a", "a/b/c", "a/b/cc", "a/b/c/d", "a", "aa/b", "", "x/y", "x/z/1", "x/z"];
        let kept: Vec<_> = paths.iter().map(|path| ways.to(path.as_bytes())).collect();
        assert_eq!(kept.iter().map(Way::path).collect::<Vec<_>>(), paths.map(|path| path.as_bytes().to_vec()));
        let above = |way: &Way| way.0.as_ref().map(|step| step.above.path());
        assert_eq!(above(&kept[2]), Some(b"a".to_vec()));
        assert_eq!(above(&kept[4]), Some(b"a".to_vec()));
        assert_eq!(above(&kept[6]), Some(Vec::new()));
    }

    #[test]
    fn a_path_is_as_it_was_joined() {
        let root = Way::default();
        assert_eq!((root.path(), root.join(b"").path()), (Vec::new(), Vec::new()));
        assert_eq!(root.join(b"a/b").join(b"").join(b"c").path(), b"a/b/c");
        assert_eq!(format!("{:?}", root.join(b"\xff")), r"/\xff");
    }
}
