//! The bytes of a regular file.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use crate::sys::reflink;
use crate::{Error, Kind, Result};

const BUFFER: usize = 1 << 20;

/// Let the empty file `to` share all blocks of `from`.
pub(crate) fn share(from: &File, to: &File) -> Result<()> {
    reflink::ficlone(to, from).map_err(|errno| match errno {
        Errno::TXTBSY => Error::new(Kind::Unsupported, "it is an active swapfile")
            .with_hint("switch it off first, by swapoff in the container"),
        Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL => {
            let why = Error::system("FICLONE", &errno.into());
            Error::new(Kind::Unsupported, format!("its blocks can't be shared on this filesystem: {why}"))
        }
        _ => Error::system("FICLONE", &errno.into()),
    })
}

/// Let the empty file `to` share all blocks of `from` if the two can, else copy. Whether they share them.
pub(crate) fn share_or_copy(from: &File, to: &File, cancelled: &dyn Fn() -> bool) -> std::io::Result<bool> {
    match reflink::ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) => Err(errno.into()),
        Err(_) => copy(from, to, cancelled).map(|()| false),
    }
}

/// Copy the data, and make holes by leaving them out. `cancelled` is asked at every block, and ends it early.
pub(crate) fn copy(from: &File, to: &File, cancelled: &dyn Fn() -> bool) -> std::io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buffer = vec![0; BUFFER];
    for range in data_ranges(from, size)? {
        let mut at = range.start;
        while at < range.end && !cancelled() {
            let want = usize::try_from(range.end - at).unwrap_or(BUFFER).min(BUFFER);
            let got = from.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                break; // somebody made it shorter meanwhile
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

/// The parts of a file of `length` bytes that are not holes, in order.
pub(crate) fn data_ranges(file: &File, length: u64) -> std::io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < length {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start?,
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(length);
        if end <= start {
            break; // somebody made it shorter meanwhile
        }
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}
