//! Names of entries: into components, and what they mean to a layer.
//!
//! A name that could mean something outside the tree is refused here, before any system call sees it; the
//! kernel's RESOLVE_IN_ROOT is the second wall, not the first.

use super::bad;
use crate::error::Result;
use crate::oci::beyond;

/// What whiteouts start with (OCI image specification, `layer.md`, "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// What AUFS kept its own files under; of these only the opaque marker means anything.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A place in the tree: components without `.`, `..` or empty ones, joined by single slashes; empty for the
/// root itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Name {
    path: Vec<u8>,
}

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'n> {
    /// Make what the entry says.
    Content,
    /// Hide this name in the parent directory.
    Whiteout(&'n [u8]),
    /// Hide all that lower layers have in the parent directory.
    Opaque,
    /// AUFS metadata: nothing.
    Nothing,
}

impl Name {
    /// Read a name of at most `max_depth` components.
    pub(crate) fn parse(raw: &[u8], max_depth: u32) -> Result<Self> {
        if raw.is_empty() || raw.contains(&0) {
            return Err(bad("its name is empty or holds a NUL"));
        }
        let mut path = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for component in raw.split(|&b| b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(bad("name leaves the root")),
                _ => {}
            }
            depth += 1;
            if depth > max_depth {
                let why = format!("name has more components than the limit of {max_depth}");
                return Err(beyond(why, "max_path_depth"));
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &[u8] {
        &self.path
    }

    pub(crate) fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// The parent's path, and the last component.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&self.path[..slash], &self.path[slash + 1..]),
            None => (b"", &self.path),
        }
    }

    pub(crate) fn meaning(&self) -> Result<Meaning<'_>> {
        let (parent, last) = self.split();
        for component in parent.split(|&b| b == b'/') {
            if component.starts_with(AUFS) {
                return Ok(Meaning::Nothing);
            }
            if component.starts_with(WHITEOUT) {
                return Err(bad("a whiteout can't have anything in it"));
            }
        }
        match last.strip_prefix(WHITEOUT) {
            None => Ok(Meaning::Content),
            Some(_) if last == OPAQUE => Ok(Meaning::Opaque),
            Some(b"" | b"." | b"..") => Err(bad("the whiteout names no file")),
            Some(_) if last.starts_with(AUFS) => Ok(Meaning::Nothing),
            Some(hidden) => Ok(Meaning::Whiteout(hidden)),
        }
    }
}

/// A name for a message: quoted, other than plain ASCII escaped, the middle of a long one left out.
pub(crate) fn quoted(name: &[u8]) -> String {
    const HALF: usize = 100;
    if name.len() <= 2 * HALF {
        return format!("\"{}\"", name.escape_ascii());
    }
    let (head, tail) = (&name[..HALF], &name[name.len() - HALF..]);
    format!("\"{}...{}\"", head.escape_ascii(), tail.escape_ascii())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(raw: &[u8]) -> Result<Name> {
        Name::parse(raw, 4)
    }

    #[test]
    fn spellings_of_one_place() {
        for raw in [&b"a/b"[..], b"./a/b", b"/a/b", b"//a//./b/", b"a/b/."] {
            assert_eq!(parse(raw).unwrap().path(), b"a/b");
        }
        for raw in [&b"/"[..], b".", b"./", b"//./"] {
            assert!(parse(raw).unwrap().is_root());
        }
        assert_eq!(parse(b"\xff..\n/...").unwrap().split(), (&b"\xff..\n"[..], &b"..."[..]));
    }

    #[test]
    fn names_that_are_refused() {
        for raw in [&b""[..], b"..", b"a/..", b"a/../b", b"/..", b"./../x", b"a\0b", b"a/b/c/d/e"] {
            assert!(parse(raw).is_err(), "{}", raw.escape_ascii());
        }
    }

    #[test]
    fn what_markers_mean() {
        let meaning = |raw: &[u8]| match parse(raw).unwrap().meaning() {
            Ok(Meaning::Whiteout(name)) => format!("hide {}", name.escape_ascii()),
            Ok(other) => format!("{other:?}"),
            Err(_) => "refused".to_string(),
        };
        for (raw, expected) in [
            (&b"a/.wh.b"[..], "hide b"),
            (b".wh.b/", "hide b"),
            (b".wh..b", "hide .b"),
            (b".wh....", "hide ..."),
            (b"a/.wh..wh..opq", "Opaque"),
            (b".wh..wh.plnk/1.2", "Nothing"),
            (b".wh..wh.aufs", "Nothing"),
            (b".wh", "Content"),
            (b"a/x.wh.b", "Content"),
            (b".wh.", "refused"),
            (b".wh..", "refused"),
            (b"a/.wh...", "refused"),
            (b".wh.a/b", "refused"),
        ] {
            assert_eq!(meaning(raw), expected, "{}", raw.escape_ascii());
        }
    }
}
