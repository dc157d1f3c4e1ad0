//! Which names this layer made, so that its markers hide only what lower layers have.
//!
//! A name is a directory's inode and a component: the same however the directory was reached. It is kept
//! as a 64-bit hash under a random key, nine bytes in the set, so that a million entries take some 20 MB. A
//! collision would keep one file that a marker hides: with four million names, once in 4 * 10^12 markers,
//! and nobody can aim for it without the key.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use super::dirs::Id;

#[derive(Debug, Default)]
pub(crate) struct Made {
    key: RandomState,
    names: Hashes,
    /// Directories that a marker has cleared of all that lower layers had in them.
    cleared: Hashes,
}

type Hashes = HashSet<u64, BuildHasherDefault<AsIs>>;

impl Made {
    pub(crate) fn insert(&mut self, directory: Id, name: &[u8]) {
        self.names.insert(self.key.hash_one((directory, name)));
    }

    pub(crate) fn contains(&self, directory: Id, name: &[u8]) -> bool {
        self.names.contains(&self.key.hash_one((directory, name)))
    }

    /// From now on all that is in the directory is this layer's: no marker needs to look into it again, or a
    /// layer of nothing but markers could cost the square of its length.
    pub(crate) fn clear(&mut self, directory: Id) {
        self.cleared.insert(self.key.hash_one(directory));
    }

    pub(crate) fn is_cleared(&self, directory: Id) -> bool {
        self.cleared.contains(&self.key.hash_one(directory))
    }
}

/// Hands a number that is a hash already through.
#[derive(Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `write_u64` is called for u64 keys; anything else would still be a hash, if a poor one.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_belong_to_their_directory() {
        let (one, two) = (Id { device: 1, inode: 1 }, Id { device: 1, inode: 2 });
        let mut made = Made::default();
        made.insert(one, b"a");
        assert!(made.contains(one, b"a"));
        assert!(!made.contains(two, b"a"));
        assert!(!made.contains(one, b"b"));
    }

    #[test]
    fn a_million_names_fit_in_20_mb() {
        let mut made = Made::default();
        for inode in 0..1_000_000 {
            made.insert(Id { device: 1, inode }, b"name");
        }
        assert_eq!(made.names.len(), 1_000_000);
        // hashbrown: eight bytes and one of control a slot, at most 7/8 of the slots used.
        assert!(made.names.capacity() * 8 / 7 * 9 < 20_000_000, "{}", made.names.capacity());
    }
}
