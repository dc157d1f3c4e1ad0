//! Where files have data (lseek(2), SEEK_DATA).

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Where the next data begins, at `at` or behind it; `end` if there is only a hole before that.
pub fn next_data(file: impl AsFd, at: u64, end: u64) -> rustix::io::Result<u64> {
    if at == end {
        return Ok(end);
    }
    match seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => Ok(end),
        found => Ok(found?.min(end)),
    }
}
