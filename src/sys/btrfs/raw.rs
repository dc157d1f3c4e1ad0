//! The kernel's structures, numbers and request codes, as `linux/btrfs.h` and `linux/btrfs_tree.h` have them.
//!
//! Sizes are asserted at compile time here; the tests compare sizes, offsets and request codes with
//! `linux-raw-sys`, which is generated from the kernel's own headers.

/// `BTRFS_IOCTL_MAGIC`.
const MAGIC: u8 = 0x94;
/// `BTRFS_SUBVOL_NAME_MAX + 1`.
const SUBVOL_NAME_BUFFER: usize = 4040;

/// `BTRFS_SUBVOL_RDONLY`.
pub(super) const SUBVOL_RDONLY: u64 = 1 << 1;
/// `BTRFS_SUBVOL_QGROUP_INHERIT`.
pub(super) const SUBVOL_QGROUP_INHERIT: u64 = 1 << 2;
/// `BTRFS_SUBVOL_SPEC_BY_ID`.
pub(super) const SUBVOL_SPEC_BY_ID: u64 = 1 << 4;

/// `BTRFS_QGROUP_LIMIT_MAX_RFER`.
pub(super) const LIMIT_MAX_RFER: u64 = 1 << 0;
/// `BTRFS_QGROUP_LIMIT_MAX_EXCL`.
pub(super) const LIMIT_MAX_EXCL: u64 = 1 << 1;

/// `BTRFS_QUOTA_CTL_ENABLE`.
pub(super) const QUOTA_CTL_ENABLE: u64 = 1;
/// `BTRFS_QUOTA_CTL_DISABLE`.
pub(super) const QUOTA_CTL_DISABLE: u64 = 2;
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`, since 6.7.
pub(super) const QUOTA_CTL_ENABLE_SIMPLE_QUOTA: u64 = 4;

/// `BTRFS_QGROUP_STATUS_FLAG_ON`.
pub(super) const STATUS_ON: u64 = 1 << 0;
/// `BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT`.
pub(super) const STATUS_INCONSISTENT: u64 = 1 << 2;
/// `BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE`, since 6.7.
pub(super) const STATUS_SIMPLE_MODE: u64 = 1 << 3;

/// `BTRFS_BLOCK_GROUP_DATA | _SYSTEM | _METADATA`: space that block groups hold.
pub(super) const BLOCK_GROUP_TYPES: u64 = 0b111;
/// `BTRFS_BLOCK_GROUP_DATA`.
pub(super) const BLOCK_GROUP_DATA: u64 = 1;
/// `BTRFS_SPACE_INFO_GLOBAL_RSV`: the pseudo type of the global reserve.
pub(super) const SPACE_INFO_GLOBAL_RSV: u64 = 1 << 49;

/// `BTRFS_SEND_FLAG_NO_FILE_DATA`.
pub(super) const SEND_NO_FILE_DATA: u64 = 1;

/// `FILEID_BTRFS_WITHOUT_PARENT` (linux/exportfs.h): a file handle of inode and subvolume.
pub(super) const FILEID_BTRFS_WITHOUT_PARENT: i32 = 0x4d;

/// Trees, by `BTRFS_*_TREE_OBJECTID`.
pub(super) const ROOT_TREE: u64 = 1;
pub(super) const QUOTA_TREE: u64 = 8;

/// Object ids: `BTRFS_EMPTY_SUBVOL_DIR_OBJECTID`, `BTRFS_ROOT_TREE_DIR_OBJECTID`, `BTRFS_ORPHAN_OBJECTID`,
/// `BTRFS_FIRST_FREE_OBJECTID`.
pub(super) const EMPTY_SUBVOLUME_DIRECTORY: u64 = 2;
pub(super) const ROOT_TREE_DIR: u64 = 6;
pub(super) const ORPHANS: u64 = -5_i64 as u64;
pub(super) const FIRST_FREE: u64 = 256;

/// Item types, by `BTRFS_*_KEY`.
pub(super) const INODE_ITEM: u8 = 1;
pub(super) const INODE_REF: u8 = 12;
pub(super) const INODE_EXTREF: u8 = 13;
pub(super) const XATTR_ITEM: u8 = 24;
pub(super) const ORPHAN_ITEM: u8 = 48;
pub(super) const DIR_ITEM: u8 = 84;
pub(super) const EXTENT_DATA: u8 = 108;
pub(super) const ROOT_ITEM: u8 = 132;
pub(super) const ROOT_REF: u8 = 156;
pub(super) const QGROUP_STATUS: u8 = 240;
pub(super) const QGROUP_INFO: u8 = 242;
pub(super) const QGROUP_LIMIT: u8 = 244;
pub(super) const QGROUP_RELATION: u8 = 246;

/// `struct btrfs_ioctl_vol_args`, for RESIZE.
#[repr(C)]
pub(super) struct VolArgs {
    pub(super) fd: i64,
    pub(super) name: [u8; 4088],
}

/// `struct btrfs_ioctl_vol_args_v2`; a subvolume id by `SPEC_BY_ID` is the first eight bytes of `name`.
#[repr(C)]
pub(super) struct VolArgsV2 {
    pub(super) fd: i64,
    pub(super) transid: u64,
    pub(super) flags: u64,
    /// Length of what `qgroup_inherit` points to.
    pub(super) size: u64,
    pub(super) qgroup_inherit: u64,
    pub(super) unused: [u64; 2],
    pub(super) name: [u8; SUBVOL_NAME_BUFFER],
}

/// `struct btrfs_qgroup_limit`.
#[repr(C)]
#[derive(Default)]
pub(super) struct QgroupLimit {
    pub(super) flags: u64,
    pub(super) max_rfer: u64,
    pub(super) max_excl: u64,
    pub(super) rsv_rfer: u64,
    pub(super) rsv_excl: u64,
}

/// `struct btrfs_qgroup_inherit` with one group.
#[repr(C)]
#[derive(Default)]
pub(super) struct QgroupInherit {
    pub(super) flags: u64,
    pub(super) num_qgroups: u64,
    pub(super) num_ref_copies: u64,
    pub(super) num_excl_copies: u64,
    pub(super) lim: QgroupLimit,
    pub(super) qgroups: [u64; 1],
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
pub(super) struct QgroupLimitArgs {
    pub(super) qgroupid: u64,
    pub(super) lim: QgroupLimit,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
pub(super) struct QgroupCreateArgs {
    pub(super) create: u64,
    pub(super) qgroupid: u64,
}

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
pub(super) struct QuotaCtlArgs {
    pub(super) cmd: u64,
    pub(super) status: u64,
}

/// `struct btrfs_ioctl_quota_rescan_args`.
#[repr(C)]
#[derive(Default)]
pub(super) struct QuotaRescanArgs {
    pub(super) flags: u64,
    pub(super) progress: u64,
    pub(super) reserved: [u64; 6],
}

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct SearchKey {
    pub(super) tree_id: u64,
    pub(super) min_objectid: u64,
    pub(super) max_objectid: u64,
    pub(super) min_offset: u64,
    pub(super) max_offset: u64,
    pub(super) min_transid: u64,
    pub(super) max_transid: u64,
    pub(super) min_type: u32,
    pub(super) max_type: u32,
    pub(super) nr_items: u32,
    pub(super) unused: u32,
    pub(super) unused1: [u64; 4],
}

/// `struct btrfs_ioctl_search_args_v2` without its flexible array.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct SearchArgsV2 {
    pub(super) key: SearchKey,
    /// In: length of the buffer behind. Out, with EOVERFLOW: what the next item needs.
    pub(super) buf_size: u64,
}

/// `sizeof(struct btrfs_ioctl_search_header)`.
pub(super) const SEARCH_HEADER: usize = 32;

/// `struct btrfs_ioctl_timespec`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Timespec {
    pub(super) sec: u64,
    pub(super) nsec: u32,
}

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
pub(super) struct SubvolInfoArgs {
    pub(super) treeid: u64,
    pub(super) name: [u8; 256],
    pub(super) parent_id: u64,
    pub(super) dirid: u64,
    pub(super) generation: u64,
    pub(super) flags: u64,
    pub(super) uuid: [u8; 16],
    pub(super) parent_uuid: [u8; 16],
    pub(super) received_uuid: [u8; 16],
    pub(super) ctransid: u64,
    pub(super) otransid: u64,
    pub(super) stransid: u64,
    pub(super) rtransid: u64,
    pub(super) ctime: Timespec,
    pub(super) otime: Timespec,
    pub(super) stime: Timespec,
    pub(super) rtime: Timespec,
    pub(super) reserved: [u64; 8],
}

/// `struct btrfs_ioctl_space_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct SpaceInfo {
    pub(super) flags: u64,
    pub(super) total_bytes: u64,
    pub(super) used_bytes: u64,
}

/// How many kinds of space one SPACE_INFO call has room for. The kernel knows fewer than ten.
pub(super) const SPACE_SLOTS: usize = 32;

/// `struct btrfs_ioctl_space_args` with a fixed number of slots behind it.
#[repr(C)]
pub(super) struct SpaceArgs {
    pub(super) space_slots: u64,
    pub(super) total_spaces: u64,
    pub(super) spaces: [SpaceInfo; SPACE_SLOTS],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
pub(super) struct FsInfoArgs {
    pub(super) max_id: u64,
    pub(super) num_devices: u64,
    pub(super) fsid: [u8; 16],
    pub(super) nodesize: u32,
    pub(super) sectorsize: u32,
    pub(super) clone_alignment: u32,
    pub(super) csum_type: u16,
    pub(super) csum_size: u16,
    pub(super) flags: u64,
    pub(super) generation: u64,
    pub(super) metadata_uuid: [u8; 16],
    pub(super) reserved: [u8; 944],
}

/// `struct btrfs_balance_args`, packed in the kernel; 8-byte fields throughout here, so that nothing pads.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct BalanceArgs {
    pub(super) profiles: u64,
    pub(super) usage: u64,
    pub(super) devid: u64,
    pub(super) pstart: u64,
    pub(super) pend: u64,
    pub(super) vstart: u64,
    pub(super) vend: u64,
    pub(super) target: u64,
    pub(super) flags: u64,
    pub(super) limit: u64,
    pub(super) stripes: u64,
    pub(super) unused: [u64; 6],
}

/// `struct btrfs_ioctl_balance_args`.
#[repr(C)]
pub(super) struct BalanceIoctlArgs {
    pub(super) flags: u64,
    pub(super) state: u64,
    pub(super) data: BalanceArgs,
    pub(super) meta: BalanceArgs,
    pub(super) sys: BalanceArgs,
    pub(super) stat: [u64; 3],
    pub(super) unused: [u64; 72],
}

/// `struct btrfs_ioctl_send_args`; `clone_sources` is a pointer, null here.
#[repr(C)]
#[derive(Default)]
pub(super) struct SendArgs {
    pub(super) send_fd: i64,
    pub(super) clone_sources_count: u64,
    pub(super) clone_sources: u64,
    pub(super) parent_root: u64,
    pub(super) flags: u64,
    pub(super) version: u32,
    pub(super) reserved: [u8; 28],
}

/// `BTRFS_BALANCE_DATA`.
pub(super) const BALANCE_DATA: u64 = 1;
/// `BTRFS_BALANCE_METADATA`.
pub(super) const BALANCE_METADATA: u64 = 4;
/// `BTRFS_BALANCE_ARGS_USAGE`.
pub(super) const BALANCE_ARGS_USAGE: u64 = 2;

const _: () = {
    assert!(size_of::<VolArgs>() == 4096);
    assert!(size_of::<VolArgsV2>() == 4096);
    assert!(size_of::<QgroupLimit>() == 40);
    assert!(size_of::<QgroupInherit>() == 72 + 8);
    assert!(size_of::<QgroupLimitArgs>() == 48);
    assert!(size_of::<QgroupCreateArgs>() == 16);
    assert!(size_of::<QuotaCtlArgs>() == 16);
    assert!(size_of::<QuotaRescanArgs>() == 64);
    assert!(size_of::<SearchKey>() == 104);
    assert!(size_of::<SearchArgsV2>() == 112);
    assert!(size_of::<SubvolInfoArgs>() == 504);
    assert!(size_of::<SpaceArgs>() == 16 + 24 * SPACE_SLOTS);
    assert!(size_of::<FsInfoArgs>() == 1024);
    assert!(size_of::<BalanceArgs>() == 136);
    assert!(size_of::<BalanceIoctlArgs>() == 1024);
    assert!(size_of::<SendArgs>() == 72);
};

/// `BTRFS_IOC_TREE_SEARCH_V2`: coded with the structure's size without the buffer behind it.
pub(super) const TREE_SEARCH_V2: libc::Ioctl =
    nix::request_code_readwrite!(MAGIC, 17, size_of::<SearchArgsV2>()) as libc::Ioctl;
/// `BTRFS_IOC_SPACE_INFO`: the same.
pub(super) const SPACE_INFO: libc::Ioctl = nix::request_code_readwrite!(MAGIC, 20, 16) as libc::Ioctl;

nix::ioctl_write_ptr!(resize, MAGIC, 3, VolArgs);
nix::ioctl_none!(sync, MAGIC, 8);
nix::ioctl_readwrite_bad!(tree_search_v2, TREE_SEARCH_V2, SearchArgsV2);
nix::ioctl_readwrite_bad!(space_info, SPACE_INFO, SpaceArgs);
nix::ioctl_write_ptr!(wait_sync, MAGIC, 22, u64);
nix::ioctl_write_ptr!(snap_create_v2, MAGIC, 23, VolArgsV2);
nix::ioctl_write_ptr!(subvol_create_v2, MAGIC, 24, VolArgsV2);
nix::ioctl_read!(start_sync, MAGIC, 24, u64);
nix::ioctl_read!(subvol_getflags, MAGIC, 25, u64);
nix::ioctl_write_ptr!(subvol_setflags, MAGIC, 26, u64);
nix::ioctl_read!(fs_info, MAGIC, 31, FsInfoArgs);
nix::ioctl_readwrite!(balance_v2, MAGIC, 32, BalanceIoctlArgs);
nix::ioctl_write_ptr!(send, MAGIC, 38, SendArgs);
nix::ioctl_readwrite!(quota_ctl, MAGIC, 40, QuotaCtlArgs);
nix::ioctl_write_ptr!(qgroup_create, MAGIC, 42, QgroupCreateArgs);
nix::ioctl_read!(qgroup_limit, MAGIC, 43, QgroupLimitArgs);
nix::ioctl_write_ptr!(quota_rescan, MAGIC, 44, QuotaRescanArgs);
nix::ioctl_none!(quota_rescan_wait, MAGIC, 46);
nix::ioctl_read!(get_subvol_info, MAGIC, 60, SubvolInfoArgs);
nix::ioctl_write_ptr!(snap_destroy_v2, MAGIC, 63, VolArgsV2);

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use linux_raw_sys::{btrfs as k, ioctl as op};
    use nix::{request_code_none, request_code_read, request_code_readwrite, request_code_write};

    use super::*;

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<VolArgs>(), size_of::<k::btrfs_ioctl_vol_args>());
        assert_eq!(size_of::<VolArgsV2>(), size_of::<k::btrfs_ioctl_vol_args_v2>());
        assert_eq!(size_of::<QgroupLimit>(), size_of::<k::btrfs_qgroup_limit>());
        assert_eq!(size_of::<QgroupInherit>(), size_of::<k::btrfs_qgroup_inherit>() + 8);
        assert_eq!(size_of::<QgroupLimitArgs>(), size_of::<k::btrfs_ioctl_qgroup_limit_args>());
        assert_eq!(size_of::<QgroupCreateArgs>(), size_of::<k::btrfs_ioctl_qgroup_create_args>());
        assert_eq!(size_of::<QuotaCtlArgs>(), size_of::<k::btrfs_ioctl_quota_ctl_args>());
        assert_eq!(size_of::<QuotaRescanArgs>(), size_of::<k::btrfs_ioctl_quota_rescan_args>());
        assert_eq!(size_of::<SearchKey>(), size_of::<k::btrfs_ioctl_search_key>());
        assert_eq!(SEARCH_HEADER, size_of::<k::btrfs_ioctl_search_header>());
        assert_eq!(size_of::<SubvolInfoArgs>(), size_of::<k::btrfs_ioctl_get_subvol_info_args>());
        assert_eq!(size_of::<SpaceInfo>(), size_of::<k::btrfs_ioctl_space_info>());
        assert_eq!(size_of::<FsInfoArgs>(), size_of::<k::btrfs_ioctl_fs_info_args>());
        assert_eq!(size_of::<BalanceArgs>(), size_of::<k::btrfs_balance_args>());
        assert_eq!(size_of::<BalanceIoctlArgs>(), size_of::<k::btrfs_ioctl_balance_args>());
        assert_eq!(size_of::<SendArgs>(), size_of::<k::btrfs_ioctl_send_args>());
    }

    #[test]
    fn fields_are_where_the_kernel_has_them() {
        type V2 = k::btrfs_ioctl_vol_args_v2;
        assert_eq!(offset_of!(VolArgsV2, flags), offset_of!(V2, flags));
        assert_eq!(offset_of!(VolArgsV2, size), offset_of!(V2, __bindgen_anon_1));
        assert_eq!(offset_of!(VolArgsV2, name), offset_of!(V2, __bindgen_anon_2));
        assert_eq!(offset_of!(QgroupInherit, lim), offset_of!(k::btrfs_qgroup_inherit, lim));
        assert_eq!(offset_of!(QgroupInherit, qgroups), offset_of!(k::btrfs_qgroup_inherit, qgroups));
        assert_eq!(offset_of!(SearchKey, min_type), offset_of!(k::btrfs_ioctl_search_key, min_type));
        assert_eq!(offset_of!(SearchKey, nr_items), offset_of!(k::btrfs_ioctl_search_key, nr_items));
        assert_eq!(offset_of!(SearchArgsV2, buf_size), offset_of!(k::btrfs_ioctl_search_args_v2, buf_size));
        type Info = k::btrfs_ioctl_get_subvol_info_args;
        assert_eq!(offset_of!(SubvolInfoArgs, parent_uuid), offset_of!(Info, parent_uuid));
        assert_eq!(offset_of!(SubvolInfoArgs, otransid), offset_of!(Info, otransid));
        assert_eq!(offset_of!(SubvolInfoArgs, otime), offset_of!(Info, otime));
        assert_eq!(offset_of!(SubvolInfoArgs, uuid), offset_of!(Info, uuid));
        assert_eq!(offset_of!(SubvolInfoArgs, ctransid), offset_of!(Info, ctransid));
        assert_eq!(offset_of!(SendArgs, parent_root), offset_of!(k::btrfs_ioctl_send_args, parent_root));
        assert_eq!(offset_of!(SendArgs, flags), offset_of!(k::btrfs_ioctl_send_args, flags));
        assert_eq!(offset_of!(FsInfoArgs, nodesize), offset_of!(k::btrfs_ioctl_fs_info_args, nodesize));
        assert_eq!(offset_of!(SpaceArgs, spaces), offset_of!(k::btrfs_ioctl_space_args, spaces));
    }

    #[test]
    fn request_codes_are_the_kernels() {
        let pairs: &[(u64, u32)] = &[
            (request_code_write!(MAGIC, 3, size_of::<VolArgs>()), op::BTRFS_IOC_RESIZE),
            (request_code_none!(MAGIC, 8), op::BTRFS_IOC_SYNC),
            (TREE_SEARCH_V2, op::BTRFS_IOC_TREE_SEARCH_V2),
            (SPACE_INFO, op::BTRFS_IOC_SPACE_INFO),
            (request_code_write!(MAGIC, 22, 8), op::BTRFS_IOC_WAIT_SYNC),
            (request_code_write!(MAGIC, 23, size_of::<VolArgsV2>()), op::BTRFS_IOC_SNAP_CREATE_V2),
            (request_code_write!(MAGIC, 24, size_of::<VolArgsV2>()), op::BTRFS_IOC_SUBVOL_CREATE_V2),
            (request_code_read!(MAGIC, 24, 8), op::BTRFS_IOC_START_SYNC),
            (request_code_read!(MAGIC, 25, 8), op::BTRFS_IOC_SUBVOL_GETFLAGS),
            (request_code_write!(MAGIC, 26, 8), op::BTRFS_IOC_SUBVOL_SETFLAGS),
            (request_code_read!(MAGIC, 31, size_of::<FsInfoArgs>()), op::BTRFS_IOC_FS_INFO),
            (request_code_write!(MAGIC, 38, size_of::<SendArgs>()), op::BTRFS_IOC_SEND),
            (request_code_readwrite!(MAGIC, 40, size_of::<QuotaCtlArgs>()), op::BTRFS_IOC_QUOTA_CTL),
            (request_code_write!(MAGIC, 42, size_of::<QgroupCreateArgs>()), op::BTRFS_IOC_QGROUP_CREATE),
            (request_code_read!(MAGIC, 43, size_of::<QgroupLimitArgs>()), op::BTRFS_IOC_QGROUP_LIMIT),
            (request_code_write!(MAGIC, 44, size_of::<QuotaRescanArgs>()), op::BTRFS_IOC_QUOTA_RESCAN),
            (request_code_none!(MAGIC, 46), op::BTRFS_IOC_QUOTA_RESCAN_WAIT),
            (request_code_read!(MAGIC, 60, size_of::<SubvolInfoArgs>()), op::BTRFS_IOC_GET_SUBVOL_INFO),
            (request_code_write!(MAGIC, 63, size_of::<VolArgsV2>()), op::BTRFS_IOC_SNAP_DESTROY_V2),
            (request_code_readwrite!(MAGIC, 32, size_of::<BalanceIoctlArgs>()), op::BTRFS_IOC_BALANCE_V2),
        ];
        for (ours, kernels) in pairs {
            assert_eq!(*ours, u64::from(*kernels), "{kernels:#x}");
        }
    }

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(SUBVOL_RDONLY, u64::from(k::BTRFS_SUBVOL_RDONLY));
        assert_eq!(SUBVOL_QGROUP_INHERIT, u64::from(k::BTRFS_SUBVOL_QGROUP_INHERIT));
        assert_eq!(SUBVOL_SPEC_BY_ID, u64::from(k::BTRFS_SUBVOL_SPEC_BY_ID));
        assert_eq!(SEND_NO_FILE_DATA, u64::from(k::BTRFS_SEND_FLAG_NO_FILE_DATA));
        assert_eq!(SUBVOL_NAME_BUFFER, k::BTRFS_SUBVOL_NAME_MAX as usize + 1);
        assert_eq!(LIMIT_MAX_RFER, u64::from(k::BTRFS_QGROUP_LIMIT_MAX_RFER));
        assert_eq!(LIMIT_MAX_EXCL, u64::from(k::BTRFS_QGROUP_LIMIT_MAX_EXCL));
        assert_eq!(QUOTA_CTL_ENABLE, u64::from(k::BTRFS_QUOTA_CTL_ENABLE));
        assert_eq!(QUOTA_CTL_DISABLE, u64::from(k::BTRFS_QUOTA_CTL_DISABLE));
        assert_eq!(QUOTA_CTL_ENABLE_SIMPLE_QUOTA, u64::from(k::BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA));
        assert_eq!(STATUS_ON, u64::from(k::BTRFS_QGROUP_STATUS_FLAG_ON));
        assert_eq!(STATUS_INCONSISTENT, u64::from(k::BTRFS_QGROUP_STATUS_FLAG_INCONSISTENT));
        assert_eq!(STATUS_SIMPLE_MODE, u64::from(k::BTRFS_QGROUP_STATUS_FLAG_SIMPLE_MODE));
        assert_eq!(BALANCE_DATA, u64::from(k::BTRFS_BALANCE_DATA));
        assert_eq!(BALANCE_METADATA, u64::from(k::BTRFS_BALANCE_METADATA));
        assert_eq!(BALANCE_ARGS_USAGE, u64::from(k::BTRFS_BALANCE_ARGS_USAGE));
        assert_eq!(ORPHANS as i64, i64::from(k::BTRFS_ORPHAN_OBJECTID));
        let trees = [
            (ROOT_TREE, k::BTRFS_ROOT_TREE_OBJECTID),
            (QUOTA_TREE, k::BTRFS_QUOTA_TREE_OBJECTID),
            (EMPTY_SUBVOLUME_DIRECTORY, k::BTRFS_EMPTY_SUBVOL_DIR_OBJECTID),
            (ROOT_TREE_DIR, k::BTRFS_ROOT_TREE_DIR_OBJECTID),
            (FIRST_FREE, k::BTRFS_FIRST_FREE_OBJECTID),
        ];
        for (ours, kernels) in trees {
            assert_eq!(ours, u64::from(kernels));
        }
        let keys = [
            (INODE_ITEM, k::BTRFS_INODE_ITEM_KEY),
            (INODE_REF, k::BTRFS_INODE_REF_KEY),
            (INODE_EXTREF, k::BTRFS_INODE_EXTREF_KEY),
            (ORPHAN_ITEM, k::BTRFS_ORPHAN_ITEM_KEY),
            (DIR_ITEM, k::BTRFS_DIR_ITEM_KEY),
            (EXTENT_DATA, k::BTRFS_EXTENT_DATA_KEY),
            (ROOT_ITEM, k::BTRFS_ROOT_ITEM_KEY),
            (ROOT_REF, k::BTRFS_ROOT_REF_KEY),
            (QGROUP_STATUS, k::BTRFS_QGROUP_STATUS_KEY),
            (QGROUP_INFO, k::BTRFS_QGROUP_INFO_KEY),
            (QGROUP_LIMIT, k::BTRFS_QGROUP_LIMIT_KEY),
            (QGROUP_RELATION, k::BTRFS_QGROUP_RELATION_KEY),
        ];
        for (ours, kernels) in keys {
            assert_eq!(u32::from(ours), kernels);
        }
    }
}
