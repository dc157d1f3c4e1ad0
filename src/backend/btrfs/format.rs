//! Makes an empty Btrfs filesystem without a program: `mkfs.btrfs` from a template of a thousand bytes.
//!
//! `template/empty.zst` holds the live blocks of what Debian 12's `mkfs.btrfs` makes (single metadata and
//! data, features that Linux 5.10 mounts; `template/regenerate.sh` makes it again): the superblock and nine
//! tree nodes. [`format`] writes them with identities, sizes, times and checksums of this filesystem:
//!
//! | in the template        | where it stands                                                       |
//! |------------------------|-----------------------------------------------------------------------|
//! | filesystem uuid        | superblock, its device item, every node's header, the device item     |
//! | device uuid            | superblock's device item and system chunk, device item, every chunk   |
//! | chunk-tree uuid        | every node's header, every device extent                              |
//! | uuid of subvolume 5    | its root item, and as the key of its uuid-tree item                   |
//! | time of making         | root directories, subvolume 5                                         |
//! | size of the device     | superblock, its device item, the chunk tree's device item             |
//!
//! Two filesystems with one uuid can't be mounted at the same time, so nothing of the template's may stay.
//! Offsets are those of `linux/btrfs_tree.h`; all numbers are little-endian.
//!
//! It never looks at what the file holds: whoever calls it has just made the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use uuid::Uuid;

use crate::{Context, Error, Kind, Result};

/// The template's superblock and nodes, in zstd.
static TEMPLATE: &[u8] = include_bytes!("template/empty.zst");

/// `BTRFS_SUPER_INFO_SIZE`.
const SUPER_LEN: usize = 4096;
/// The node size that the template was made with, mkfs's default.
const NODE_LEN: usize = 16384;
/// What device sizes are multiples of (the sector size).
pub const SECTOR: u64 = 4096;
/// The smallest filesystem that mkfs accepts with these profiles, rounded up: below it the kernel finds no
/// room for a second metadata chunk.
pub const SMALLEST: u64 = 128 << 20;
/// `BTRFS_SUPER_INFO_OFFSET` and the mirrors (`btrfs_sb_offset`), of which those that fit are written.
const SUPER_AT: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];

/// `struct btrfs_super_block`.
mod superblock {
    pub(super) const FSID: usize = 0x20;
    pub(super) const BYTENR: usize = 0x30;
    pub(super) const MAGIC: usize = 0x40;
    pub(super) const TOTAL_BYTES: usize = 0x70;
    pub(super) const DEV_ITEM: usize = 0xc9;
    pub(super) const LABEL: usize = 0x12b;
    pub(super) const BACKUPS: std::ops::Range<usize> = 0xb2b..0xdcb;
    pub(super) const MAGIC_BYTES: &[u8; 8] = b"_BHRfS_M";
}

/// `struct btrfs_header`, `struct btrfs_item`.
mod node {
    pub(super) const BYTENR: usize = 0x30;
    pub(super) const CHUNK_TREE_UUID: usize = 0x40;
    pub(super) const OWNER: usize = 0x58;
    pub(super) const HEADER_LEN: usize = 0x65;
    /// From an item's key to the offset of its data, which counts from the end of the header.
    pub(super) const ITEM_OFFSET: usize = 17;
    pub(super) const CHUNK_TREE: u64 = 3;
    pub(super) const FS_TREE: u64 = 5;
    pub(super) const UUID_TREE: u64 = 9;
}

/// `struct btrfs_dev_item`.
mod dev_item {
    pub(super) const TOTAL_BYTES: usize = 8;
    pub(super) const UUID: usize = 66;
}

/// `struct btrfs_inode_item`: its access time, 8 bytes of seconds; mkfs leaves the nanoseconds 0.
const INODE_ATIME: usize = 112;
/// `BTRFS_UUID_KEY_SUBVOL`: a uuid is a key's objectid and offset, with this type between them.
const UUID_KEY_SUBVOL: u8 = 251;

/// Make `file` a Btrfs filesystem of `size` bytes (a multiple of [`SECTOR`], [`SMALLEST`] or more): sets its
/// length, leaves it sparse, and gives it new uuids. Returns the filesystem's. Not durable before an fsync.
///
/// # Errors
/// `Invalid` for a size it can't have; `NoSpace`; `System` (EFBIG) where the filesystem below can't hold a
/// file of that length.
///
/// ```
/// # fn main() -> reflinkd::Result<()> {
/// use reflinkd::backend::btrfs::format;
/// let file = tempfile::tempfile().expect("a scratch file");
/// let fsid = format::format(&file, 1 << 30)?;
/// assert_eq!(format::identify(&file)?, Some(fsid));
/// # Ok(())
/// # }
/// ```
pub fn format(file: &File, size: u64) -> Result<Uuid> {
    if size < SMALLEST || !size.is_multiple_of(SECTOR) {
        return Err(Error::new(
            Kind::Invalid,
            format!("a filesystem of {size} bytes: it has at least {SMALLEST}, in multiples of {SECTOR}"),
        ));
    }
    let template = zstd::decode_all(TEMPLATE).context(|| "unpack the filesystem template")?;
    let template = Template::read(&template)?;
    let fsid = Uuid::new_v4();
    let (superblock, nodes) = template.instance(fsid, size);

    file.set_len(size).context(|| format!("set the length of the file to {size} bytes"))?;
    for mut block in nodes {
        let at = number(&block, node::BYTENR);
        write_sealed(file, &mut block, at)?;
    }
    for at in SUPER_AT.into_iter().filter(|at| at + SUPER_LEN as u64 <= size) {
        let mut copy = superblock.clone();
        copy[superblock::BYTENR..][..8].copy_from_slice(&at.to_le_bytes());
        write_sealed(file, &mut copy, at)?;
    }
    Ok(fsid)
}

/// The uuid of the Btrfs filesystem in `file`, `None` if there is none: the first superblock, its checksum
/// ignored (a filesystem with a damaged one is still not to be overwritten).
pub fn identify(file: &File) -> Result<Option<Uuid>> {
    let mut block = [0; SUPER_LEN];
    match file.read_exact_at(&mut block, SUPER_AT[0]) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error).context(|| "read the superblock"),
    }
    let ours = &block[superblock::MAGIC..][..8] == superblock::MAGIC_BYTES;
    Ok(ours.then(|| Uuid::from_bytes(array(&block, superblock::FSID))))
}

/// The blocks as mkfs made them, and what to replace in them.
#[derive(Debug)]
struct Template<'a> {
    superblock: &'a [u8],
    nodes: Vec<&'a [u8]>,
    fsid: [u8; 16],
    device: [u8; 16],
    chunk_tree: [u8; 16],
    subvolume: [u8; 16],
    time: [u8; 8],
}

impl<'a> Template<'a> {
    fn read(blocks: &'a [u8]) -> Result<Self> {
        let (superblock, nodes) = blocks.split_at_checked(SUPER_LEN).ok_or_else(torn)?;
        let nodes: Vec<&[u8]> = nodes.chunks(NODE_LEN).collect();
        if nodes.iter().any(|block| block.len() != NODE_LEN) {
            return Err(torn());
        }
        let of_tree =
            |owner| nodes.iter().copied().find(|block| number(block, node::OWNER) == owner).ok_or_else(torn);
        let fs_tree = of_tree(node::FS_TREE)?;
        let uuid_key = &of_tree(node::UUID_TREE)?[node::HEADER_LEN..][..17];
        let mut subvolume = [0; 16];
        subvolume[..8].copy_from_slice(&uuid_key[..8]);
        subvolume[8..].copy_from_slice(&uuid_key[9..]);
        Ok(Self {
            superblock,
            fsid: array(superblock, superblock::FSID),
            device: array(superblock, superblock::DEV_ITEM + dev_item::UUID),
            chunk_tree: array(fs_tree, node::CHUNK_TREE_UUID),
            subvolume,
            time: array(fs_tree, first_item(fs_tree) + INODE_ATIME),
            nodes,
        })
    }

    /// Superblock and nodes of a filesystem of its own; checksums and the superblock's address are still the
    /// template's.
    fn instance(&self, fsid: Uuid, size: u64) -> (Vec<u8>, Vec<Vec<u8>>) {
        let subvolume = Uuid::new_v4().into_bytes();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let replacements: [(Vec<u8>, Vec<u8>); 6] = [
            (self.fsid.into(), fsid.into_bytes().into()),
            (self.device.into(), Uuid::new_v4().into_bytes().into()),
            (self.chunk_tree.into(), Uuid::new_v4().into_bytes().into()),
            (self.subvolume.into(), subvolume.into()),
            (uuid_key(self.subvolume), uuid_key(subvolume)),
            (self.time.into(), now.to_le_bytes().into()),
        ];
        let personal = |block: &[u8]| {
            let mut block = block.to_vec();
            for (old, new) in &replacements {
                replace_all(&mut block, old, new);
            }
            block
        };

        let mut superblock = personal(self.superblock);
        let size = size.to_le_bytes();
        superblock[superblock::TOTAL_BYTES..][..8].copy_from_slice(&size);
        superblock[superblock::DEV_ITEM + dev_item::TOTAL_BYTES..][..8].copy_from_slice(&size);
        superblock[superblock::LABEL..][..8].copy_from_slice(b"reflinkd");
        // They point to nodes of older generations, which the template leaves out.
        superblock[superblock::BACKUPS].fill(0);

        let mut nodes: Vec<Vec<u8>> = self.nodes.iter().map(|block| personal(block)).collect();
        for block in nodes.iter_mut().filter(|block| number(block, node::OWNER) == node::CHUNK_TREE) {
            // The device item has the lowest key of its tree.
            let item = first_item(block);
            block[item + dev_item::TOTAL_BYTES..][..8].copy_from_slice(&size);
        }
        (superblock, nodes)
    }
}

/// Where a leaf's first item has its data.
fn first_item(block: &[u8]) -> usize {
    let offset = u32::from_le_bytes(array(block, node::HEADER_LEN + node::ITEM_OFFSET));
    node::HEADER_LEN + offset as usize
}

/// The key of a subvolume's item in the uuid tree, as it stands on disk.
fn uuid_key(uuid: [u8; 16]) -> Vec<u8> {
    [&uuid[..8], &[UUID_KEY_SUBVOL], &uuid[8..]].concat()
}

fn replace_all(block: &mut [u8], old: &[u8], new: &[u8]) {
    let mut at = 0;
    while at + old.len() <= block.len() {
        if block[at..].starts_with(old) {
            block[at..][..old.len()].copy_from_slice(new);
            at += old.len();
        } else {
            at += 1;
        }
    }
}

fn write_sealed(file: &File, block: &mut [u8], at: u64) -> Result<()> {
    seal(block);
    file.write_all_at(block, at).context(|| format!("write {} bytes at {at}", block.len()))
}

/// The checksum (crc32c) is over everything behind its own 32 bytes, superblock and node alike.
fn seal(block: &mut [u8]) {
    let sum = crc32c::crc32c(&block[32..]);
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

fn number(block: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(block, at))
}

/// `N` bytes at a fixed place of a block whose length was checked.
fn array<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at..][..N]);
    bytes
}

fn torn() -> Error {
    Error::new(Kind::Damaged, "the filesystem template in this program is torn")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template() -> Vec<u8> {
        zstd::decode_all(TEMPLATE).expect("the template is zstd")
    }

    /// A file without a name below the build directory.
    fn scratch() -> File {
        let program = std::env::current_exe().expect("this test");
        tempfile::tempfile_in(program.parent().expect("its directory")).expect("a scratch file")
    }

    fn contains(block: &[u8], bytes: &[u8]) -> bool {
        block.windows(bytes.len()).any(|window| window == bytes)
    }

    #[test]
    fn template_holds_valid_blocks_of_nine_trees() {
        let blocks = template();
        let template = Template::read(&blocks).expect("readable");
        let mut owners: Vec<u64> = template.nodes.iter().map(|block| number(block, node::OWNER)).collect();
        owners.sort_unstable();
        // root, extent, chunk, dev, fs, csum, uuid, free space, data relocation
        assert_eq!(owners, [1, 2, 3, 4, 5, 7, 9, 10, -9_i64 as u64]);
        for block in template.nodes.iter().chain([&template.superblock]) {
            let mut again = block.to_vec();
            seal(&mut again);
            assert_eq!(&again, block, "the checksum of the block at {}", number(block, node::BYTENR));
        }
        assert_eq!(&template.superblock[superblock::MAGIC..][..8], superblock::MAGIC_BYTES);
    }

    #[test]
    fn nothing_of_the_templates_identity_stays() {
        let blocks = template();
        let template = Template::read(&blocks).expect("readable");
        let (superblock, nodes) = template.instance(Uuid::new_v4(), 1 << 30);
        let identities = [template.fsid, template.device, template.chunk_tree, template.subvolume];
        for block in nodes.iter().chain([&superblock]) {
            for old in identities {
                assert!(!contains(block, &old), "a uuid of the template at {}", number(block, node::BYTENR));
            }
            assert!(!contains(block, &uuid_key(template.subvolume)));
            assert!(!contains(block, &template.time));
        }
        // And they were there to begin with, each in more than one block but for the subvolume's two forms.
        let before = |bytes: &[u8]| {
            template.nodes.iter().chain([&template.superblock]).filter(|block| contains(block, bytes)).count()
        };
        assert_eq!(before(&template.fsid), 10);
        assert_eq!(before(&template.device), 2);
        assert_eq!(before(&template.chunk_tree), 9);
        assert_eq!(before(&template.subvolume), 1);
        assert_eq!(before(&uuid_key(template.subvolume)), 1);
        assert_eq!(before(&template.time), 3);
    }

    #[test]
    fn two_filesystems_share_no_identity() {
        let blocks = template();
        let template = Template::read(&blocks).expect("readable");
        let (one, _) = template.instance(Uuid::new_v4(), 1 << 30);
        let (two, _) = template.instance(Uuid::new_v4(), 1 << 30);
        let device = superblock::DEV_ITEM + dev_item::UUID;
        assert_ne!(one[superblock::FSID..][..16], two[superblock::FSID..][..16]);
        assert_ne!(one[device..][..16], two[device..][..16]);
        assert_eq!(number(&one, superblock::TOTAL_BYTES), 1 << 30);
    }

    #[test]
    fn a_file_is_recognised_by_its_superblock_only() {
        let file = scratch();
        assert_eq!(identify(&file).expect("an empty file"), None);
        file.set_len(1 << 20).expect("longer");
        assert_eq!(identify(&file).expect("a file of zeros"), None);
        let fsid = format(&file, SMALLEST).expect("formatted");
        assert_eq!(identify(&file).expect("formatted"), Some(fsid));
        assert_eq!(file.metadata().expect("its length").len(), SMALLEST);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let file = scratch();
        for size in [0, SMALLEST - SECTOR, SMALLEST + 512] {
            assert_eq!(format(&file, size).expect_err("no filesystem").kind(), Kind::Invalid, "{size}");
        }
        assert_eq!(file.metadata().expect("its length").len(), 0);
    }
}
