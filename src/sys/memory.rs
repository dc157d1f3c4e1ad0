//! The C library's allocator, where it is glibc (by others nothing is done), and what the kernel has in memory.
#![allow(unsafe_code)]

use crate::{Context, Error, Kind, Result};

/// Let all threads have two heaps together instead of up to eight for each processor: what is freed in one is of no use to
/// the others. Before there are other threads.
pub fn few_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number that is read when a thread allocates for the first time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Give back to the system what is allocated no more.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and locks the heaps that it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that were written to files of whatever filesystem and aren't on disk yet: `Dirty` and `Writeback` of proc(5).
pub fn dirty() -> Result<u64> {
    const MEMINFO: &str = "/proc/meminfo";
    let text = std::fs::read_to_string(MEMINFO).context(|| format!("read {MEMINFO}"))?;
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .ok_or_else(|| Error::new(Kind::Unsupported, format!("{MEMINFO} doesn't say what is {name}")))
    };
    Ok((kib("Dirty")? + kib("Writeback")?) * 1024)
}
