//! The C library's allocator.

/// Give back to the system what is allocated no more: `malloc_trim(3)`. Whether there was any. Elsewhere than with glibc
/// nothing is done.
pub fn give_back() -> bool {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: no arguments but a number; it locks what it looks at.
        #[allow(unsafe_code)]
        let given = unsafe { libc::malloc_trim(0) };
        given == 1
    }
    #[cfg(not(target_env = "gnu"))]
    false
}
