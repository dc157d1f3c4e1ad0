//! Extended attributes, all of an inode at once.

use std::collections::BTreeMap;

use rustix::fs::{getxattr, lgetxattr, listxattr, llistxattr};
use rustix::io::Errno;

/// linux/limits.h: `XATTR_SIZE_MAX` and `XATTR_LIST_MAX`.
const XATTR_MAX: usize = 65536;

/// What becomes of a symlink at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    /// A descriptor's name in `/proc/self/fd` leads to what is open, and no further.
    Followed,
    Itself,
}

/// All attributes of what `path` leads to. None where the filesystem has no such thing.
pub fn read(path: &[u8], last: Last) -> rustix::io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let list = |buffer: &mut [u8]| match last {
        Last::Followed => listxattr(path, buffer),
        Last::Itself => llistxattr(path, buffer),
    };
    let names = match grown(list) {
        Err(Errno::OPNOTSUPP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let mut found = BTreeMap::new();
    for name in names.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let get = |buffer: &mut [u8]| match last {
            Last::Followed => getxattr(path, name, buffer),
            Last::Itself => lgetxattr(path, name, buffer),
        };
        match grown(get) {
            Err(Errno::NODATA) => {} // removed meanwhile
            value => drop(found.insert(name.to_vec(), value?)),
        }
    }
    Ok(found)
}

/// What a call writes into a buffer that is large enough; as a rule a small one is.
fn grown(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < XATTR_MAX => buffer.resize(XATTR_MAX, 0),
            length => {
                buffer.truncate(length?);
                return Ok(buffer);
            }
        }
    }
}
