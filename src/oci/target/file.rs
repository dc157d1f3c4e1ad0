//! A file that is there whole, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use crate::{Context, Error, Kind, Result};

/// Put what `fill` writes at `path`: beside it first, then in its place. What isn't a regular file (a FIFO, `/dev/null`)
/// is written to as it is.
pub(super) fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let shown = path.display();
    let place = match fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            return Err(Error::new(Kind::Invalid, format!("{shown} is a directory"))
                .with_hint("name a file in it, or use --format oci-layout"));
        }
        Ok(there) if !there.is_file() => {
            let mut file = OpenOptions::new().write(true).open(path).context(|| format!("open {shown}"))?;
            return fill(&mut file);
        }
        // Through a symlink, so that the link stays.
        Ok(_) => path.canonicalize().context(|| format!("find {shown}"))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => path.to_path_buf(),
        Err(e) => return Err(e).context(|| format!("stat {shown}")),
    };
    let directory = match place.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let beside = directory.join(format!(".reflinkd-save-{}", uuid::Uuid::new_v4()));
    let file = OpenOptions::new().write(true).create_new(true).open(&beside);
    let mut file = file.context(|| format!("create a file in {}", directory.display()))?;
    let put = fill(&mut file).and_then(|()| {
        file.sync_all().context(|| format!("fsync {shown}"))?;
        fs::rename(&beside, &place).context(|| format!("rename to {shown}"))
    });
    if put.is_err() {
        let _ = fs::remove_file(&beside);
    }
    put?;
    File::open(directory).and_then(|d| d.sync_all()).context(|| format!("fsync {}", directory.display()))
}
