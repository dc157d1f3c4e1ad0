//! A layer unpacked with its recipe, and its tar written again: the same to the bit, or the test fails.

use std::io::{Read, Write};
use std::path::Path;

use reflinkd::Result;
use reflinkd::layer::recipe::{plain_size, restore};
use reflinkd::layer::{IdMaps, Limits, Summary, record};
use reflinkd::oci::Hasher;

/// Digests what is read of a stream.
struct Tee<'a>(&'a mut dyn Read, Hasher);

impl Read for Tee<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(into)?;
        self.1.update(&into[..count]);
        Ok(count)
    }
}

/// Digests what is written.
struct Digested(Hasher);

impl Write for Digested {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// As [`reflinkd::layer::unpack`]. What unpacks must come back; what doesn't must leave no recipe.
pub(crate) fn unpack(
    tar: &mut dyn Read,
    root: &Path,
    limits: &Limits,
    cancelled: &dyn Fn() -> bool,
) -> Result<Summary> {
    unpack_mapped(tar, root, limits, &IdMaps::default(), cancelled)
}

/// The same with the host's ids for those of the tar.
pub(crate) fn unpack_mapped(
    tar: &mut dyn Read,
    root: &Path,
    limits: &Limits,
    ids: &IdMaps,
    cancelled: &dyn Fn() -> bool,
) -> Result<Summary> {
    let place = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let recipe = place.path().join("recipe");
    let mut tar = Tee(tar, Hasher::new());
    let unpacked = record(&mut tar, root, &recipe, limits, ids, cancelled);
    let left = std::fs::read_dir(place.path()).expect("list").count();
    assert_eq!(left, usize::from(unpacked.is_ok()), "{unpacked:?}");
    if unpacked.is_ok() {
        let mut out = Digested(Hasher::new());
        restore(&recipe, root, &mut out, &|| false).expect("restore");
        assert_eq!(out.0.bytes(), tar.1.bytes());
        assert_eq!(plain_size(&recipe).expect("a recipe"), tar.1.bytes());
        assert_eq!(out.0.finish(), tar.1.finish(), "another tar came back");
    }
    unpacked
}
