//! Read-only mounts of one directory at another, and taking them away.
//!
//! A mount is made whole before it has a place: cloned (`open_tree`), cut off from the mounts it came from and made
//! read-only (`mount_setattr`), then put there (`move_mount`). Nobody can write through it at any moment, as one could
//! between a bind mount and its remount. It gets a peer group of its own, which its copies in other mount namespaces
//! show in their mountinfo: by that they are told from copies of another mount of the same directory (`users`).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::{Context, Error, Kind, Result};

/// Mount the directory `source`, without what is mounted below it, read-only at the directory `target`.
///
/// # Errors
/// `Unsupported` before Linux 5.12 (`mount_setattr`); `NotFound` if either is missing.
pub fn mount_read_only(source: &Path, target: &Path) -> Result<()> {
    let what = || format!("mount {} read-only at {}", source.display(), target.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mounted = (|| {
        let mount = rustix::mount::open_tree(CWD, source, flags)?;
        set_attributes(mount.as_fd(), libc::MOUNT_ATTR_RDONLY, libc::MS_PRIVATE)?;
        set_attributes(mount.as_fd(), 0, libc::MS_SHARED)?;
        rustix::mount::move_mount(&mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    })();
    mounted.map_err(|errno| match errno {
        Errno::NOSYS => Error::new(Kind::Unsupported, format!("{}: the kernel is older than Linux 5.12", what())),
        errno => Error::system(what(), &errno.into()),
    })
}

/// `mount_setattr(2)` (linux/mount.h): add attributes and change the propagation of a mount.
fn set_attributes(mount: BorrowedFd<'_>, attributes: u64, propagation: u64) -> Result<(), Errno> {
    let wanted = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation, userns_fd: 0 };
    // SAFETY: the path is a C string and `wanted` a whole `struct mount_attr` of the size given; both are only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// Take the topmost mount at `target` away with all that is mounted in it, whoever uses it: those go on with what they
/// have. Whether there was one.
pub fn detach(target: &Path) -> Result<bool> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        // Not a mount point, or not there.
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno).context(|| format!("unmount {}", target.display())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sys::mount;

    #[test]
    fn a_read_only_mount_refuses_writes_and_goes_with_what_is_mounted_in_it() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("tmpfs");
        let (source, target) = (directory.path().join("source"), directory.path().join("target"));
        for made in [&source, &target, &source.join("inner")] {
            fs::create_dir(made).expect("mkdir");
        }
        assert!(!detach(&target).expect("nothing is mounted"));
        assert_eq!(mount_read_only(&source.join("none"), &target).expect_err("missing").kind(), Kind::NotFound);
        mount_read_only(&source, &target).expect("mount");
        fs::write(source.join("file"), "x").expect("the source can be written");
        assert_eq!(fs::read(target.join("file")).expect("read"), b"x");
        let refused = fs::write(target.join("file"), "y").expect_err("read-only");
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        mount_read_only(&source, &target.join("inner")).expect("mount inside");
        let entry = |target: &Path| {
            let table = mount::table("self").expect("readable");
            table.into_iter().find(|entry| entry.target == target)
        };
        let (outer, inner) = (entry(&target).expect("there"), entry(&target.join("inner")).expect("there"));
        assert!(
            outer.peers.len() == 1 && inner.peers.len() == 1 && outer.peers != inner.peers,
            "{outer:?} {inner:?}"
        );
        assert!(outer.root.ends_with("source"), "{outer:?}");
        assert!(detach(&target).expect("unmount"));
        assert_eq!((entry(&target), entry(&target.join("inner"))), (None, None));
    }
}
