//! Quotas and quota groups.
//!
//! A group's id is its level in the upper 16 bits and a number below; level 0 is the subvolume of that number.
//! The reading side is in [`super::quota_tree`].

use std::path::Path;

use nix::errno::Errno;

use super::{BtrfsFd, quota_tree, raw};
use crate::sys::durable;

/// What the status item of the quota tree says, as of the last commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// Simple quotas (6.7 and later) rather than full ones.
    pub simple: bool,
    /// The numbers are wrong, or not there yet while a rescan runs. Full quotas only.
    pub inconsistent: bool,
}

/// Whether quotas are on, and which.
pub fn status(any: &BtrfsFd) -> nix::Result<Option<Status>> {
    Ok(quota_tree::quota_status(any)?.filter(|flags| flags & raw::STATUS_ON != 0).map(|flags| Status {
        simple: flags & raw::STATUS_SIMPLE_MODE != 0,
        inconsistent: flags & raw::STATUS_INCONSISTENT != 0,
    }))
}

/// What to do to a filesystem's quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuotaCtl {
    /// Full quotas; a rescan starts, see [`quota_rescan_wait`].
    Enable,
    /// Simple quotas. What is there already is charged to nobody.
    EnableSimple,
    /// Drops all groups and limits.
    Disable,
}

/// `BTRFS_IOC_QUOTA_CTL` (linux/btrfs.h). Enabling what is on in the other mode changes nothing.
///
/// # Errors
/// EINVAL or EOPNOTSUPP from a kernel that doesn't know the command; EBUSY; EPERM; EROFS.
pub fn quota_ctl(any: &BtrfsFd, what: QuotaCtl) -> nix::Result<()> {
    durable::step("switch", Path::new("quotas"))?;
    let cmd = match what {
        QuotaCtl::Enable => raw::QUOTA_CTL_ENABLE,
        QuotaCtl::EnableSimple => raw::QUOTA_CTL_ENABLE_SIMPLE_QUOTA,
        QuotaCtl::Disable => raw::QUOTA_CTL_DISABLE,
    };
    let mut args = raw::QuotaCtlArgs { cmd, status: 0 };
    // SAFETY: the kernel reads and writes one btrfs_ioctl_quota_ctl_args.
    unsafe { raw::quota_ctl(any.raw(), &raw mut args) }?;
    Ok(())
}

/// `BTRFS_IOC_QUOTA_RESCAN` (linux/btrfs.h): count everything anew. EINPROGRESS if that is under way.
pub fn quota_rescan(any: &BtrfsFd) -> nix::Result<()> {
    let args = raw::QuotaRescanArgs::default();
    // SAFETY: the kernel reads one btrfs_ioctl_quota_rescan_args.
    unsafe { raw::quota_rescan(any.raw(), &raw const args) }?;
    Ok(())
}

/// `BTRFS_IOC_QUOTA_RESCAN_WAIT` (linux/btrfs.h): wait for the end of a rescan; returns at once if there is none.
pub fn quota_rescan_wait(any: &BtrfsFd) -> nix::Result<()> {
    // SAFETY: the request takes no argument.
    unsafe { raw::quota_rescan_wait(any.raw()) }?;
    Ok(())
}

/// `BTRFS_IOC_QGROUP_CREATE` (linux/btrfs.h): make group `id` of level 1 or higher.
///
/// # Errors
/// EEXIST; ENOTCONN if quotas are off; EINVAL for a group of level 0.
pub fn create(any: &BtrfsFd, id: u64) -> nix::Result<()> {
    durable::step("create", Path::new("group"))?;
    let args = raw::QgroupCreateArgs { create: 1, qgroupid: id };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_create_args.
    unsafe { raw::qgroup_create(any.raw(), &raw const args) }?;
    Ok(())
}

/// `BTRFS_IOC_QGROUP_CREATE` (linux/btrfs.h): remove group `id`.
///
/// # Errors
/// ENOENT; EBUSY if it has members, a subvolume or, with simple quotas, a charge; ENOTCONN if quotas are off.
pub fn remove(any: &BtrfsFd, id: u64) -> nix::Result<()> {
    durable::step("remove", Path::new("group"))?;
    let args = raw::QgroupCreateArgs { create: 0, qgroupid: id };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_create_args.
    unsafe { raw::qgroup_create(any.raw(), &raw const args) }?;
    Ok(())
}

/// Which of a group's two numbers a limit is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitOn {
    /// `max_rfer`: all there is with simple quotas.
    Referenced,
    /// `max_excl`.
    Exclusive,
}

/// `BTRFS_IOC_QGROUP_LIMIT` (linux/btrfs.h): limit `group` to `bytes`, or lift the limit.
///
/// # Errors
/// ENOENT if there is no such group; ENOTCONN if quotas are off.
pub fn limit(any: &BtrfsFd, group: u64, on: LimitOn, bytes: Option<u64>) -> nix::Result<()> {
    durable::step("limit", Path::new("group"))?;
    let mut lim = raw::QgroupLimit::default();
    // u64::MAX clears a limit (CLEAR_VALUE in the kernel's qgroup.c).
    let value = bytes.unwrap_or(u64::MAX);
    match on {
        LimitOn::Referenced => (lim.flags, lim.max_rfer) = (raw::LIMIT_MAX_RFER, value),
        LimitOn::Exclusive => (lim.flags, lim.max_excl) = (raw::LIMIT_MAX_EXCL, value),
    }
    // Group 0 would mean the subvolume of the descriptor.
    if group == 0 {
        return Err(Errno::EINVAL);
    }
    let mut args = raw::QgroupLimitArgs { qgroupid: group, lim };
    // SAFETY: the kernel reads one btrfs_ioctl_qgroup_limit_args, for all that its code says it writes one.
    unsafe { raw::qgroup_limit(any.raw(), &raw mut args) }?;
    Ok(())
}
