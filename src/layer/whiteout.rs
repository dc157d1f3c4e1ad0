//! What whiteouts and opaque markers hide: what the tree had before this layer, whatever this layer has made
//! since (OCI image specification, `layer.md`: markers "only apply to resources in lower/parent layers").

use rustix::fs::{AtFlags, FileType, statat, unlinkat};
use rustix::io::Errno;

use super::dirs::{Dir, Dirs, Id};
use super::made::Made;
use super::refused;
use super::remove::{self, Fate, Keep};
use crate::error::{Context, Result};

/// Hide `name` in `dir`; a directory that stays becomes `owner`'s, root's. What isn't there needs no hiding.
pub(crate) fn hide(
    dir: &Dir,
    name: &[u8],
    dirs: &mut Dirs,
    made: &mut Made,
    owner: (u32, u32),
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let stat = match statat(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(refused("stat", errno)),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if made.contains(dir.id, name) && made.is_cleared(Id::of(&stat)) => {}
        FileType::Directory => {
            dir.touch();
            remove::subtree(dir, name, Fate::Keep(Keep { made, dirs, owner }), check)?;
            dirs.forget_paths();
        }
        _ if made.contains(dir.id, name) => {}
        kind => {
            dir.touch();
            unlinkat(&dir.fd, name, AtFlags::empty()).context(|| "remove what it hides")?;
            if kind == FileType::Symlink {
                dirs.forget_linked();
            }
        }
    }
    Ok(())
}

/// Hide all in `dir`.
pub(crate) fn hide_children(
    dir: &Dir,
    dirs: &mut Dirs,
    made: &mut Made,
    owner: (u32, u32),
    check: &dyn Fn() -> Result<()>,
) -> Result<()> {
    if made.is_cleared(dir.id) {
        return Ok(());
    }
    dir.touch();
    remove::children(dir, Keep { made, dirs, owner }, check)?;
    dirs.forget_paths();
    Ok(())
}
