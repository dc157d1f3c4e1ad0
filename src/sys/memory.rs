//! The C library's allocator, where it is glibc. By others nothing is done.
#![allow(unsafe_code)]

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
