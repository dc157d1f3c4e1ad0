//! What SQLite asks the system for, by its `sqlite3_vfs::xSetSystemCall`, and what that answered.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::sync::Once;

use rusqlite::{Connection, ffi};

type Chown = unsafe extern "C" fn(c_int, libc::uid_t, libc::gid_t) -> c_int;

/// Have SQLite leave the owner of its journal as it is. Run by root it gives it to the owner of the database each time that it
/// opens it, so also before it reads (`robustFchown` in os_unix.c): on Btrfs each is a transaction, which waits for a commit under
/// way. Ours are root's, both of them. Before the first connection.
pub fn leave_owners() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the default VFS lives as long as the process, and its calls take what they were declared with.
        // os_unix.c calls what it is given as `fchown` by this type.
        unsafe {
            let vfs = ffi::sqlite3_vfs_find(std::ptr::null());
            if let Some(set) = vfs.as_ref().and_then(|vfs| vfs.xSetSystemCall) {
                let stay = std::mem::transmute::<Chown, unsafe extern "C" fn()>(stay);
                set(vfs, c"fchown".as_ptr(), Some(stay));
            }
        }
    });
}

/// Why the system refused the call that made the last statement of a connection fail with `SQLITE_IOERR` or `SQLITE_CANTOPEN`;
/// `None` if SQLite doesn't know.
pub fn system_error(db: &Connection) -> Option<io::Error> {
    // SAFETY: the handle is used while the connection that it is of is borrowed.
    let errno = unsafe { ffi::sqlite3_system_errno(db.handle()) };
    (errno > 0).then(|| io::Error::from_raw_os_error(errno))
}

unsafe extern "C" fn stay(_: c_int, _: libc::uid_t, _: libc::gid_t) -> c_int {
    0
}
