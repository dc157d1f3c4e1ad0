//! The label that SELinux goes by, on all of a tree: Docker's MountLabel.
//!
//! It is the host's, so layers have none: see `attributes::is_layers`. Each inode is reached by a descriptor that opens
//! nothing, and labelled by that: no symlink is followed, no mount crossed, whatever others do to the tree meanwhile. Needs
//! memory for the names of the directories it is in, and three descriptors, whatever the depth.

use std::path::Path;

use rustix::fs::{FileType, XattrFlags, getxattr, setxattr};
use rustix::io::Errno;

use super::name::quoted;
use super::pack::tree::{Node, Source, Walk};
use crate::error::{Context, Error, Kind, Result};
use crate::sys::selinux::LABEL;

/// Bytes of a label at most, without its NUL.
const LONGEST: usize = 255;
/// User, role, type and level; a level may have colons of its own.
const PARTS: usize = 4;

/// Give everything in the tree at `root` a label, the root first. Returns how many inodes didn't have it; the others stay
/// untouched. What vanishes meanwhile is left out. `cancelled` is asked at every entry.
///
/// # Errors
/// [`Kind::Invalid`] for what is no label; messages name the entry, but for the root: [`Kind::Unsupported`] on filesystems
/// without labels, [`Kind::InUse`] if something is mounted below the root; [`Kind::Interrupted`] when `cancelled` says so.
pub fn relabel(root: &Path, label: &str, cancelled: &dyn Fn() -> bool) -> Result<u64> {
    let value = value_of(label)?;
    let mut source = Source::open(root)?;
    let (mut changed, mut walk) = (0, Walk::default());
    let mut set = |source: &mut Source, path: &[u8]| -> Result<bool> {
        if cancelled() {
            return Err(Error::new(Kind::Interrupted, "interrupted"));
        }
        let Some(node) = source.node(path)? else { return Ok(false) };
        changed += u64::from(set_label(&node, &value)?);
        Ok(node.kind == FileType::Directory)
    };
    let what = |path: &[u8]| format!("label {}", quoted(if path.is_empty() { b"./" } else { path }));
    let mut path: &[u8] = b"";
    loop {
        if set(&mut source, path).context(|| what(path))? {
            let names = source.names(path)?;
            walk.enter(names);
        }
        match walk.next() {
            Some(next) => path = next,
            None => return Ok(changed),
        }
    }
}

/// Whether it is a label.
///
/// # Errors
/// [`Kind::Invalid`].
pub fn check_label(label: &str) -> Result<()> {
    value_of(label).map(drop)
}

/// The label of a tree's root, if it has one.
///
/// # Errors
/// Those of opening it and of reading an attribute.
pub fn label_of(root: &Path) -> Result<Option<String>> {
    let what = || format!("read the label of {}", root.display());
    let Some(node) = Source::open(root)?.node(b"").context(what)? else { return Ok(None) };
    let label = read(&node).context(what)?;
    Ok(label.map(|label| String::from_utf8_lossy(&label).into_owned()))
}

/// Whether it was another.
fn set_label(node: &Node, value: &[u8]) -> Result<bool> {
    if read(node)?.as_deref() == value.strip_suffix(b"\0") {
        return Ok(false);
    }
    setxattr(node.proc_path(), LABEL, value, XattrFlags::empty()).context(|| format!("setxattr {LABEL}"))?;
    Ok(true)
}

/// The label of what is there, without its NUL. None for one that is longer than any.
fn read(node: &Node) -> Result<Option<Vec<u8>>> {
    let mut label = [0; LONGEST + 1];
    match getxattr(node.proc_path(), LABEL, &mut label[..]) {
        Ok(length) => {
            let label = &label[..length];
            Ok(Some(label.strip_suffix(b"\0").unwrap_or(label).to_vec()))
        }
        Err(Errno::NODATA | Errno::RANGE) => Ok(None),
        Err(errno) => Err(errno).context(|| format!("getxattr {LABEL}")),
    }
}

/// The attribute's value, as libselinux writes it.
fn value_of(label: &str) -> Result<Vec<u8>> {
    let bad = |why: String| Err(Error::new(Kind::Invalid, format!("{label:?} is no label: {why}")));
    if label.len() > LONGEST {
        return bad(format!("it has {} bytes, and not {LONGEST} at most", label.len()));
    }
    if let Some(odd) = label.chars().find(|c| !c.is_ascii_graphic()) {
        return bad(format!("it has the character {odd:?}"));
    }
    if label.split(':').count() < PARTS || label.split(':').any(str::is_empty) {
        return bad("it isn't of the form USER:ROLE:TYPE:LEVEL".to_string());
    }
    Ok([label.as_bytes(), b"\0"].concat())
}
