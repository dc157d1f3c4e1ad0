//! Files and trees from one place to another, faithfully: `cp`, and the pieces that a clone of a tree is made of, too.
//!
//! ```text
//! place        where a path leads, on the host or inside a container's root
//! tree         what is there is copied: a file, or a tree entry by entry
//! aside        names that appear when they are whole
//! open         opening what somebody may be exchanging
//! content      the bytes of a regular file: shared, or copied with its holes
//! attributes   owner, mode, xattrs, times, flags
//! facts        what is known of an inode before it is copied
//! ```
//!
//! # What is believed
//!
//! A container may run while it is copied from or to, and may be hostile. Its paths are resolved inside its root, links
//! in them too (`openat2(RESOLVE_IN_ROOT)`). From there on only descriptors count: while a tree is copied no link is
//! followed and no mount crossed, on either side; nothing is opened but directories and regular files, the latter by
//! the descriptor that showed what they are. So whoever exchanges names meanwhile changes what is copied of the
//! container, or where in the container it goes, and reaches nothing outside. On the host's side mounts are crossed, as
//! `cp -r` does, and a path means what it always does.
//!
//! # What is kept
//!
//! Types, modes, times to the ns, xattrs with ACLs and capabilities, holes, and hard links within what is copied. Owners
//! are kept, or all the same; in the second case set-user-ID and set-group-ID bits of files go with the owner that they
//! spoke of. Blocks are shared where both sides can. Sockets are left out: nobody listens at a copy. So are labels of
//! SELinux: a copy has the one that is given to what is made where it is.
//!
//! Files, links and devices are made under another name and renamed when they are whole: what stood there stays until
//! then. Directories merge. A copy of a tree that fails leaves what was done so far.

pub(crate) mod aside;
pub(crate) mod attributes;
pub(crate) mod content;
pub(crate) mod facts;
pub(crate) mod open;
pub mod place;
pub mod tree;

use crate::{Error, Kind};

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Everything but directories and further names of an inode.
    pub files: u64,
    /// Regular files among them that share their blocks with the source.
    pub shared: u64,
    pub directories: u64,
    /// Lengths of the regular files, holes included.
    pub bytes: u64,
    /// Sockets that were left out.
    pub sockets: u64,
    /// Xattrs that the destination's filesystem has no place for.
    pub unheld: u64,
}

fn mounted() -> Error {
    Error::new(Kind::InUse, "something is mounted there")
        .with_hint("unmount it first, or copy from where it comes from")
}
