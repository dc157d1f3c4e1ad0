//! Unix sockets: making one where nobody listens, only for root.

use std::fmt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::{Context, Error, Kind, Result};

/// A socket file that we made, removed when dropped: but not another one that is there by then.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> std::io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|there| (there.dev(), there.ino()))
}

/// One to listen at.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    /// `None` for one that is another's.
    file: Option<SocketFile>,
}

impl Socket {
    /// Listen at `path`, with its directory made if it is missing. A socket that a dead process left is replaced.
    ///
    /// # Errors
    /// `InUse` if somebody listens there; `Exists` if something else is there.
    pub(super) fn listen(path: &Path) -> Result<Self> {
        bind(path).context(|| format!("cannot listen at {}", path.display()))
    }

    /// One at which somebody else listens for us, and goes on to when we have ended.
    pub(super) fn given(listener: std::os::unix::net::UnixListener) -> Result<Self> {
        let listener = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener));
        Ok(Self { listener: listener.context(|| "take over a socket")?, file: None })
    }

    pub(super) fn into_parts(self) -> (UnixListener, Option<SocketFile>) {
        (self.listener, self.file)
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => file.path.display().fmt(f),
            None => f.write_str("the service manager's socket"),
        }
    }
}

fn bind(path: &Path) -> Result<Socket> {
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
    // Nobody else may connect, not even between bind(2) and chmod(2). No other thread makes files yet: the tender has
    // been woken, but gathers.
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path).context(|| "bind");
    rustix::process::umask(umask);
    let inode = inode(path).context(|| "stat");
    Ok(Socket { listener: listener?, file: Some(SocketFile { path: path.to_path_buf(), inode: inode? }) })
}

/// Until it is said to stop.
pub(super) async fn until(mut stopped: watch::Receiver<bool>) {
    // If nobody is left to say it, it is time, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
