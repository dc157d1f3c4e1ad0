//! What a program started from here gets of ours.
#![allow(unsafe_code)]

use std::io;

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
