//! Unix sockets: making one where nobody listens, only for root.

use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;

use rustix::fs::Mode;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::{Context, Error, Kind, Result};

/// Listen at `path`, with its directory made if it is missing. A socket that a dead process left is replaced.
///
/// # Errors
/// `InUse` if somebody listens there; `Exists` if something else is there.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    (|| -> Result<_> {
        if let Some(directory) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .context(|| format!("mkdir {}", directory.display()))?;
        }
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Ok(there) if there.file_type().is_socket() => {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(Error::new(Kind::InUse, "another process answers there")
                        .with_hint("stop that one, or name another path"));
                }
                std::fs::remove_file(path).context(|| "remove the socket that a dead process left")?;
            }
            Ok(_) => return Err(Error::new(Kind::Exists, "something else than a socket is there")),
            Err(e) => return Err(e).context(|| "stat"),
        }
        // Nobody else may connect, not even between bind(2) and chmod(2). No other thread makes files yet.
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path).context(|| "bind");
        rustix::process::umask(umask);
        listener
    })()
    .context(|| format!("cannot listen at {}", path.display()))
}

/// Until it is said to stop.
pub(super) async fn until(mut stopped: watch::Receiver<bool>) {
    // If nobody is left to say it, it is time, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
