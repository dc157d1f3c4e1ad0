//! Project quotas: whether they are on, what a project holds, and its limit.
//!
//! Numbers and structures are those of `linux/quota.h` and `linux/dqblk_xfs.h`, blocks are "basic blocks" of 512 bytes.
//! A dquot is the kernel's account of one project; it comes to be with the project's first file or limit.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;

use super::XfsFd;
use crate::sys::{durable, mount};

/// `PRJQUOTA`.
const PROJECT: libc::c_int = 2;
/// `XQM_CMD(3)`, `(4)`, `(8)`, `(9)` of linux/dqblk_xfs.h.
const Q_XGETQUOTA: libc::c_int = XQM + 3;
const Q_XSETQLIM: libc::c_int = XQM + 4;
const Q_XGETQSTATV: libc::c_int = XQM + 8;
const Q_XGETNEXTQUOTA: libc::c_int = XQM + 9;
const XQM: libc::c_int = (b'X' as libc::c_int) << 8;

/// `FS_QSTATV_VERSION1`, `FS_DQUOT_VERSION`, `FS_PROJ_QUOTA`.
const STATV_VERSION: i8 = 1;
const DQUOT_VERSION: i8 = 1;
const DQUOT_PROJECT: i8 = 1 << 1;
/// `FS_QUOTA_PDQ_ACCT` and `FS_QUOTA_PDQ_ENFD`.
const ACCOUNTED: u16 = 1 << 4;
const ENFORCED: u16 = 1 << 5;
/// `FS_DQ_BSOFT` and `FS_DQ_BHARD`.
const BLOCK_LIMITS: u16 = 1 << 2 | 1 << 3;

const BASIC_BLOCK: u64 = 512;

/// `struct fs_quota_statv`.
#[repr(C)]
#[derive(Default)]
struct StatV {
    version: i8,
    pad1: u8,
    flags: u16,
    incore: u32,
    /// User, group, project: inode, blocks, and extents with padding.
    files: [[u64; 3]; 3],
    timelimits: [i32; 3],
    warnlimits: [u16; 3],
    pad3: u16,
    pad4: u32,
    pad2: [u64; 7],
}
const _: () = assert!(size_of::<StatV>() == 160);

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fieldmask: u16,
    id: u32,
    blk_hardlimit: u64,
    blk_softlimit: u64,
    ino_hardlimit: u64,
    ino_softlimit: u64,
    bcount: u64,
    icount: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 3],
    padding2: i8,
    realtime: [u64; 3],
    rtb_timer: i32,
    rtb_warnings: u16,
    padding3: i16,
    padding4: [u8; 8],
}
const _: () = assert!(size_of::<DiskQuota>() == 112);

/// What a mount does with projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Counts what each holds.
    pub accounted: bool,
    /// Holds them to their limits.
    pub enforced: bool,
}

/// What one project holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dquot {
    /// Bytes: data, and the blocks of directories, extended attributes and extent maps. Blocks reserved for what isn't
    /// written back yet, and preallocated behind the end of a growing file, count too.
    pub bytes: u64,
    pub inodes: u64,
    /// Most bytes; `None` without a limit.
    pub limit: Option<u64>,
}

impl From<&DiskQuota> for Dquot {
    fn from(raw: &DiskQuota) -> Self {
        let limit = (raw.blk_hardlimit > 0).then_some(raw.blk_hardlimit * BASIC_BLOCK);
        Self { bytes: raw.bcount * BASIC_BLOCK, inodes: raw.icount, limit }
    }
}

/// The quotas of one mounted XFS.
#[derive(Debug)]
pub struct ProjectQuotas {
    fd: XfsFd,
    /// For quotactl(2): the mounted device. `None` where quotactl_fd(2) works.
    device: Option<CString>,
}

impl ProjectQuotas {
    /// By quotactl_fd(2), or where the kernel (before 5.14) has none, by quotactl(2).
    ///
    /// # Errors
    /// What [`ProjectQuotas::by_device`] says.
    pub fn open(fd: XfsFd) -> io::Result<Self> {
        let quotas = Self { fd, device: None };
        match quotas.get_statv() {
            Err(Errno::ENOSYS) => Self::by_device(quotas.fd),
            // Whatever it says, it is there to ask.
            _ => Ok(quotas),
        }
    }

    /// By quotactl(2), which wants the path of the block device.
    ///
    /// # Errors
    /// ENODEV if the mount table of this process doesn't have the filesystem.
    pub fn by_device(fd: XfsFd) -> io::Result<Self> {
        let path = format!("/proc/self/fd/{}", fd.raw());
        let id = mount::mount_id(Path::new(&path));
        let table = mount::table("self").map_err(io::Error::other)?;
        let entry = table.into_iter().find(|entry| Some(entry.id) == id);
        let source = entry.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?.source;
        Ok(Self { fd, device: Some(CString::new(source.as_os_str().as_bytes())?) })
    }

    /// Whether projects are accounted and held to limits on this mount. A kernel without XFS quotas does neither.
    pub fn state(&self) -> nix::Result<State> {
        match self.get_statv() {
            Ok(statv) => {
                let accounted = statv.flags & ACCOUNTED != 0;
                Ok(State { accounted, enforced: accounted && statv.flags & ENFORCED != 0 })
            }
            // ENOSYS: not built into the kernel. EINVAL, ESRCH: no quotas of this kind on this mount.
            Err(Errno::ENOSYS | Errno::EINVAL | Errno::ESRCH) => Ok(State::default()),
            Err(errno) => Err(errno),
        }
    }

    /// What a project holds; nothing if there is no such dquot (ENOENT).
    ///
    /// # Errors
    /// ESRCH or ENOSYS if projects aren't accounted on this mount.
    pub fn get(&self, project: u32) -> nix::Result<Dquot> {
        match self.get_dquot(Q_XGETQUOTA, project) {
            Ok(raw) => Ok(Dquot::from(&raw)),
            Err(Errno::ENOENT) => Ok(Dquot::default()),
            Err(errno) => Err(errno),
        }
    }

    /// The first project from this number on that holds something or has a limit (Linux 4.6).
    ///
    /// # Errors
    /// As [`ProjectQuotas::get`].
    pub fn next(&self, from: u32) -> nix::Result<Option<(u32, Dquot)>> {
        match self.get_dquot(Q_XGETNEXTQUOTA, from) {
            Ok(raw) => Ok(Some((raw.id, Dquot::from(&raw)))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Set a project's limit to so many bytes, rounded up to whole blocks of 512, or lift it.
    ///
    /// # Errors
    /// As [`ProjectQuotas::get`]; EPERM without CAP_SYS_ADMIN in the initial namespace; EROFS.
    pub fn set_limit(&self, project: u32, limit: Option<u64>) -> nix::Result<()> {
        durable::step("limit", Path::new("project"))?;
        // 0 stands for none: the smallest limit is one block.
        let blocks = limit.map_or(0, |bytes| bytes.div_ceil(BASIC_BLOCK).max(1));
        let mut raw = DiskQuota {
            version: DQUOT_VERSION,
            flags: DQUOT_PROJECT,
            fieldmask: BLOCK_LIMITS,
            id: project,
            blk_hardlimit: blocks,
            blk_softlimit: blocks,
            ..DiskQuota::default()
        };
        // SAFETY: Q_XSETQLIM reads one fs_disk_quota.
        unsafe { self.call(Q_XSETQLIM, project, (&raw mut raw).cast()) }
    }

    fn get_statv(&self) -> nix::Result<StatV> {
        let mut statv = StatV { version: STATV_VERSION, ..StatV::default() };
        // SAFETY: Q_XGETQSTATV reads the version and writes one fs_quota_statv of it.
        unsafe { self.call(Q_XGETQSTATV, 0, (&raw mut statv).cast()) }?;
        Ok(statv)
    }

    fn get_dquot(&self, command: libc::c_int, project: u32) -> nix::Result<DiskQuota> {
        let mut raw = DiskQuota::default();
        // SAFETY: Q_XGETQUOTA and Q_XGETNEXTQUOTA write one fs_disk_quota.
        unsafe { self.call(command, project, (&raw mut raw).cast()) }?;
        Ok(raw)
    }

    /// # Safety
    /// `argument` points to what `command` reads and writes.
    unsafe fn call(&self, command: libc::c_int, project: u32, argument: *mut libc::c_void) -> nix::Result<()> {
        // QCMD of linux/quota.h.
        let command = command << 8 | PROJECT;
        // Ids are unsigned in the kernel, and the C library's wrapper takes an int: the bits are the same.
        let id = project as libc::c_int;
        let result = match &self.device {
            // SAFETY: the descriptor is open, and the caller vouches for the argument.
            None => unsafe { libc::syscall(libc::SYS_quotactl_fd, self.fd.raw(), command, id, argument) },
            // SAFETY: the path ends with a zero, and the caller vouches for the argument.
            Some(device) => unsafe { libc::quotactl(command, device.as_ptr(), id, argument.cast()) }.into(),
        };
        Errno::result(result).map(drop)
    }
}
