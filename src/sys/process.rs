//! What a program started from here gets of ours.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::{Context, Result};

/// Let no program that this process starts from now on have any descriptor of it but the standard three: also of those
/// that we were started with ourselves (a script's lock, say).
///
/// # Errors
/// `Unsupported` before Linux 5.11 (`CLOSE_RANGE_CLOEXEC`).
pub fn keep_descriptors_to_ourselves() -> Result<()> {
    // SAFETY: marks descriptors, and neither closes one nor touches memory.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()).context(|| "close_range") }
}

/// Take over a descriptor that this process was started with, as by socket activation. Once for each, and for none that
/// anything here has opened.
///
/// # Errors
/// `System` if there is none.
pub fn take_inherited(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: asks for flags.
    if number < 3 || unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF)).context(|| format!("descriptor {number}"));
    }
    // SAFETY: it is open, and by what this function asks for nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
