//! Whether somebody serves, asked from outside: a kubelet's probe can run a program, but not speak to a unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{Doors, closed};
use crate::{Context, Error, Kind, Result};

/// The longest that a door may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Ask at each open door. Any answer will do, as only a process that works gives one: a kernel lets in whoever connects to a
/// process that hangs. What is asked is `GET /metrics`, which makes that door read the index, and the others say that
/// they have no such thing.
///
/// # Errors
/// `NotFound` for a door at which nobody answers; `Invalid` if all are closed.
pub fn probe(doors: &Doors) -> Result<()> {
    let mut open = doors.all().filter_map(|(door, path)| Some((door, path?))).peekable();
    if open.peek().is_none() {
        return Err(closed());
    }
    open.try_for_each(|(door, path)| ask(path).context(|| format!("{door} at {}", path.display())))
}

fn ask(path: &Path) -> Result<()> {
    let mut start = [0; b"HTTP/1.1 ".len()];
    let answer = UnixStream::connect(path).and_then(|mut door| {
        door.set_read_timeout(Some(PATIENCE))?;
        door.set_write_timeout(Some(PATIENCE))?;
        door.write_all(b"GET /metrics HTTP/1.1\r\nHost: reflinkd\r\nConnection: close\r\n\r\n")?;
        door.read_exact(&mut start)
    });
    match answer {
        Ok(()) if start == *b"HTTP/1.1 " => Ok(()),
        Ok(()) => Err(Error::new(Kind::NotFound, "somebody answers there, but not reflinkd")),
        Err(e) => Err(Error::new(Kind::NotFound, format!("nobody answers: {e}"))),
    }
}
