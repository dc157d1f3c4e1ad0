//! Tree searches: what the filesystem's own trees say, at the cost of the items found.
//!
//! [`Search`] pages through a range of keys; the functions below it read the items that this crate needs.
//! Keys order by object id, then type, then offset, and a range takes *everything* between its ends, items of
//! other types too. Needs CAP_SYS_ADMIN (EPERM).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::errno::Errno;

use super::{BtrfsFd, raw};

/// Bytes of the first page asked for: a search that finds one thing stays small.
const FIRST_PAGE: usize = 4 << 10;
/// Bytes of the largest page asked for.
const LARGEST_PAGE: usize = 256 << 10;
/// Steps up from a directory to its subvolume's root: more than any path has, so that a tree that is being
/// renamed meanwhile can't keep us forever.
const MOST_LEVELS: usize = 1 << 16;

/// `struct btrfs_key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// An inode, subvolume or quota group, depending on the tree.
    pub objectid: u64,
    /// `BTRFS_*_KEY`.
    pub kind: u8,
    /// What it means depends on the type.
    pub offset: u64,
}

impl Key {
    pub(super) const fn new(objectid: u64, kind: u8, offset: u64) -> Self {
        Self { objectid, kind, offset }
    }

    /// The next key in order; `None` after the last.
    fn next(self) -> Option<Self> {
        if let Some(offset) = self.offset.checked_add(1) {
            Some(Self { offset, ..self })
        } else if let Some(kind) = self.kind.checked_add(1) {
            Some(Self { kind, offset: 0, ..self })
        } else {
            self.objectid.checked_add(1).map(|objectid| Self { objectid, kind: 0, offset: 0 })
        }
    }
}

/// An item of a tree.
#[derive(Debug)]
pub struct Item<'a> {
    pub key: Key,
    pub data: &'a [u8],
}

impl Item<'_> {
    /// A little-endian number; EUCLEAN if the item is too short to hold it.
    pub(super) fn le64(&self, at: usize) -> nix::Result<u64> {
        let bytes = self.data.get(at..at + 8).and_then(|b| b.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or(Errno::EUCLEAN)
    }

    fn le32(&self, at: usize) -> nix::Result<u32> {
        let bytes = self.data.get(at..at + 4).and_then(|b| b.try_into().ok());
        bytes.map(u32::from_le_bytes).ok_or(Errno::EUCLEAN)
    }

    fn le16(&self, at: usize) -> nix::Result<u16> {
        let bytes = self.data.get(at..at + 2).and_then(|b| b.try_into().ok());
        bytes.map(u16::from_le_bytes).ok_or(Errno::EUCLEAN)
    }

    fn byte(&self, at: usize) -> nix::Result<u8> {
        self.data.get(at).copied().ok_or(Errno::EUCLEAN)
    }

    /// A name of `le16(at)` bytes that starts at `from`.
    fn name(&self, at: usize, from: usize) -> nix::Result<OsString> {
        let length = usize::from(self.le16(at)?);
        let name = self.data.get(from..from + length).ok_or(Errno::EUCLEAN)?;
        Ok(OsString::from_vec(name.to_vec()))
    }
}

/// `BTRFS_IOC_TREE_SEARCH_V2` (linux/btrfs.h), page by page, each larger than the one before.
#[derive(Debug)]
pub struct Search<'fd> {
    any: &'fd BtrfsFd,
    tree: u64,
    /// Where the next page starts; `None` at the end.
    from: Option<Key>,
    to: Key,
    min_transid: u64,
    /// The arguments, and the page behind them. Of u64 so that the arguments are aligned.
    page: Vec<u64>,
    /// Items of the page not handed out yet, and where the first of them is.
    left: u32,
    at: usize,
}

/// Where `ctransid` is in `struct btrfs_root_item`.
const ROOT_CTRANSID: usize = 295;

const ARGS_WORDS: usize = size_of::<raw::SearchArgsV2>() / 8;

impl<'fd> Search<'fd> {
    /// All items of `tree`, on the filesystem of `any`, from one key to another.
    pub(super) fn new(any: &'fd BtrfsFd, tree: u64, from: Key, to: Key) -> Self {
        Self { any, tree, from: Some(from), to, min_transid: 0, page: Vec::new(), left: 0, at: 0 }
    }

    /// Only items in blocks written by transaction `transid` or later. Blocks, not items: older items that share
    /// a block with a newer one are found too.
    fn since(mut self, transid: u64) -> Self {
        self.min_transid = transid;
        self
    }

    /// The next item.
    ///
    /// # Errors
    /// ENOENT if there is no such tree; EPERM without CAP_SYS_ADMIN.
    pub fn next_item(&mut self) -> nix::Result<Option<Item<'_>>> {
        if self.left == 0 && !self.next_page()? {
            return Ok(None);
        }
        // struct btrfs_ioctl_search_header, in the machine's byte order and at any alignment.
        let head = self.bytes(self.at, raw::SEARCH_HEADER)?;
        let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| head[at + i]));
        let half = |at: usize| u32::from_ne_bytes(std::array::from_fn(|i| head[at + i]));
        let kind = u8::try_from(half(24)).map_err(|_| Errno::EUCLEAN)?;
        let key = Key::new(word(8), kind, word(16));
        let length = half(28) as usize;
        let start = self.at + raw::SEARCH_HEADER;
        self.at = start + length;
        self.left -= 1;
        self.from = key.next().filter(|next| *next <= self.to);
        Ok(Some(Item { key, data: self.bytes(start, length)? }))
    }

    /// Fetch a page; whether there is anything in it.
    fn next_page(&mut self) -> nix::Result<bool> {
        let Some(from) = self.from else { return Ok(false) };
        let mut room = (self.room() * 4).clamp(FIRST_PAGE, LARGEST_PAGE);
        loop {
            self.page.resize(ARGS_WORDS + room.div_ceil(8), 0);
            let args = raw::SearchArgsV2 {
                key: raw::SearchKey {
                    tree_id: self.tree,
                    min_objectid: from.objectid,
                    max_objectid: self.to.objectid,
                    min_offset: from.offset,
                    max_offset: self.to.offset,
                    min_transid: self.min_transid,
                    max_transid: u64::MAX,
                    min_type: from.kind.into(),
                    max_type: self.to.kind.into(),
                    nr_items: u32::MAX,
                    ..raw::SearchKey::default()
                },
                buf_size: self.room() as u64,
            };
            let place = self.page.as_mut_ptr().cast::<raw::SearchArgsV2>();
            // SAFETY: the vector is aligned for u64, holds the arguments, and buf_size bytes behind them.
            let answer = unsafe {
                place.write(args);
                raw::tree_search_v2(self.any.raw(), place)
            };
            // SAFETY: written above, and again by the kernel.
            let args = unsafe { place.read() };
            match answer {
                Err(Errno::EOVERFLOW) if args.buf_size > self.room() as u64 => {
                    room = usize::try_from(args.buf_size).map_err(|_| Errno::EOVERFLOW)?;
                }
                Err(errno) => return Err(errno),
                Ok(_) => {
                    (self.left, self.at) = (args.key.nr_items, 0);
                    if self.left == 0 {
                        self.from = None;
                    }
                    return Ok(self.left > 0);
                }
            }
        }
    }

    /// Bytes behind the arguments.
    fn room(&self) -> usize {
        self.page.len().saturating_sub(ARGS_WORDS) * 8
    }

    /// A part of the page.
    fn bytes(&self, from: usize, length: usize) -> nix::Result<&[u8]> {
        let page = self.page.get(ARGS_WORDS..).unwrap_or_default();
        // SAFETY: any initialised u64s are initialised bytes, eight times as many.
        let page = unsafe { std::slice::from_raw_parts(page.as_ptr().cast::<u8>(), page.len() * 8) };
        page.get(from..).and_then(|rest| rest.get(..length)).ok_or(Errno::EUCLEAN)
    }
}

/// A subvolume directly inside another (`struct btrfs_root_ref`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Child {
    pub id: u64,
    /// Inode of the directory it is in, in its parent's tree.
    pub directory: u64,
    /// Its name there.
    pub name: OsString,
}

/// Subvolumes directly inside subvolume `id`.
pub fn children(any: &BtrfsFd, id: u64) -> nix::Result<Vec<Child>> {
    let (from, to) = (Key::new(id, raw::ROOT_REF, 0), Key::new(id, raw::ROOT_REF, u64::MAX));
    let mut search = Search::new(any, raw::ROOT_TREE, from, to);
    let mut children = Vec::new();
    while let Some(item) = search.next_item()? {
        // dirid, sequence, name_len, name
        children.push(Child { id: item.key.offset, directory: item.le64(0)?, name: item.name(16, 18)? });
    }
    Ok(children)
}

/// Path of directory `inode` of subvolume `id`, relative to the subvolume's root; of any length.
pub fn directory_path(any: &BtrfsFd, id: u64, mut inode: u64) -> nix::Result<PathBuf> {
    let mut names = Vec::new();
    while inode != raw::FIRST_FREE {
        if names.len() == MOST_LEVELS {
            return Err(Errno::ELOOP);
        }
        let (from, to) = (Key::new(inode, raw::INODE_REF, 0), Key::new(inode, raw::INODE_REF, u64::MAX));
        let mut search = Search::new(any, id, from, to);
        // index, name_len, name; a directory has one link.
        let item = search.next_item()?.ok_or(Errno::ENOENT)?;
        names.push(item.name(8, 10)?);
        inode = item.key.offset;
    }
    Ok(names.iter().rev().collect())
}

/// A name of an inode, and the directory that it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// Its inode, in the same subvolume.
    pub directory: u64,
    pub name: OsString,
}

/// All names of `inode` in subvolume `id`; none if there is no such inode.
pub fn names(any: &BtrfsFd, id: u64, inode: u64) -> nix::Result<Vec<Name>> {
    let (from, to) = (Key::new(inode, raw::INODE_REF, 0), Key::new(inode, raw::INODE_EXTREF, u64::MAX));
    let mut search = Search::new(any, id, from, to);
    let mut names = Vec::new();
    while let Some(item) = search.next_item()? {
        names_in(&item, &mut names)?;
    }
    Ok(names)
}

/// An item has all names in one directory, one behind the other.
fn names_in(item: &Item<'_>, names: &mut Vec<Name>) -> nix::Result<()> {
    let mut at = 0;
    while at < item.data.len() {
        let (directory, length_at) = match item.key.kind {
            // struct btrfs_inode_ref: index, name_len, name; the directory is in the key.
            raw::INODE_REF => (item.key.offset, at + 8),
            // struct btrfs_inode_extref, for what doesn't fit: parent, index, name_len, name.
            _ => (item.le64(at)?, at + 16),
        };
        let name = item.name(length_at, length_at + 2)?;
        at = length_at + 2 + name.len();
        names.push(Name { directory, name });
    }
    Ok(())
}

/// Call `each` for the extents of `inode` of subvolume `id` in blocks written by transaction `since` or later; some are
/// older than that.
pub fn extents(any: &BtrfsFd, id: u64, inode: u64, since: u64, mut each: impl FnMut(Change)) -> nix::Result<()> {
    let (from, to) = (Key::new(inode, raw::EXTENT_DATA, 0), Key::new(inode, raw::EXTENT_DATA, u64::MAX));
    let mut search = Search::new(any, id, from, to).since(since);
    while let Some(item) = search.next_item()? {
        if let Some(extent) = extent(&item)? {
            each(extent);
        }
    }
    Ok(())
}

/// The generation of inode `inode` of subvolume `id`, as handles of it have it. ENOENT without such an inode.
pub fn generation(any: &BtrfsFd, id: u64, inode: u64) -> nix::Result<u32> {
    let key = Key::new(inode, raw::INODE_ITEM, 0);
    let mut search = Search::new(any, id, key, key);
    let generation = search.next_item()?.ok_or(Errno::ENOENT)?.le64(0)?;
    // As much of it as the kernel's inode holds.
    Ok(generation as u32)
}

/// Whether subvolume `id` exists or is deleted but not yet cleaned up.
pub fn has_root(any: &BtrfsFd, id: u64) -> nix::Result<bool> {
    Ok(committed_ctransid(any, id)?.is_some())
}

/// The transaction that last touched an inode of subvolume `id`, as of the last commit. The one that is under way is told by
/// [`subvol::get_subvol_info`](super::subvol::get_subvol_info).
pub fn committed_ctransid(any: &BtrfsFd, id: u64) -> nix::Result<Option<u64>> {
    let (from, to) = (Key::new(id, raw::ROOT_ITEM, 0), Key::new(id, raw::ROOT_ITEM, u64::MAX));
    Search::new(any, raw::ROOT_TREE, from, to).next_item()?.map(|item| item.le64(ROOT_CTRANSID)).transpose()
}

/// Inodes of subvolume `within` that somebody has open and that have no name any more, or none yet; without one deleted
/// subvolumes that the cleaner has not finished with.
pub fn orphans(any: &BtrfsFd, within: Option<u64>) -> nix::Result<BTreeSet<u64>> {
    let (from, to) =
        (Key::new(raw::ORPHANS, raw::ORPHAN_ITEM, 0), Key::new(raw::ORPHANS, raw::ORPHAN_ITEM, u64::MAX));
    let mut search = Search::new(any, within.unwrap_or(raw::ROOT_TREE), from, to);
    let mut orphans = BTreeSet::new();
    while let Some(item) = search.next_item()? {
        orphans.insert(item.key.offset);
    }
    Ok(orphans)
}

/// The subvolume that a mount without `subvol=` shows; it can't be destroyed.
pub fn default_subvolume(any: &BtrfsFd) -> nix::Result<Option<u64>> {
    let directory = raw::ROOT_TREE_DIR;
    let (from, to) = (Key::new(directory, raw::DIR_ITEM, 0), Key::new(directory, raw::DIR_ITEM, u64::MAX));
    // struct btrfs_dir_item begins with the key of what it points to.
    Search::new(any, raw::ROOT_TREE, from, to).next_item()?.map(|item| item.le64(0)).transpose()
}

/// What a subvolume's tree says of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `struct btrfs_inode_item`.
    Inode {
        inode: u64,
        /// The transaction that last touched it, its access time included.
        transid: u64,
        size: u64,
        links: u32,
        /// Type and permissions as in `st_mode`.
        mode: u32,
        /// When it was last changed: seconds since the epoch, and nanoseconds. Reading doesn't move it.
        ctime: (u64, u32),
    },
    /// `struct btrfs_file_extent_item`, regular or preallocated, no hole.
    Extent {
        inode: u64,
        /// The transaction that wrote the data; a reflink keeps it.
        generation: u64,
        /// Where the extent is: the same number for all that share it.
        address: u64,
        /// What the extent takes on disk, compressed if it is.
        bytes: u64,
    },
    /// Data inside the tree itself, and its bytes there.
    Inline { inode: u64, generation: u64, bytes: u64 },
    /// The transaction that made names in a directory, or set attributes of an inode; the last of them
    /// (`struct btrfs_dir_item`).
    Named { inode: u64, transid: u64 },
}

/// Call `each` for the inodes, names, attributes and extents of subvolume `id` in blocks written by transaction `since` or later; some
/// are older than that. An inode comes before what it has. What the next commit writes of inodes that were there before is not seen
/// (docs/kernel.md).
///
/// # Errors
/// ENOENT if there is no such subvolume.
pub fn changes(any: &BtrfsFd, id: u64, since: u64, mut each: impl FnMut(Change)) -> nix::Result<()> {
    let (from, to) = (Key::new(raw::FIRST_FREE, 0, 0), Key::new(-256_i64 as u64, u8::MAX, u64::MAX));
    let mut search = Search::new(any, id, from, to).since(since);
    while let Some(item) = search.next_item()? {
        match item.key.kind {
            raw::INODE_ITEM => each(inode(&item)?),
            raw::EXTENT_DATA => extent(&item)?.into_iter().for_each(&mut each),
            raw::DIR_ITEM | raw::XATTR_ITEM => each(named(&item)?),
            _ => {}
        }
    }
    Ok(())
}

/// The inodes of subvolume `id` that were made by transaction `since` or later, those too that the next commit writes.
///
/// # Errors
/// ENOENT if there is no such subvolume.
pub fn made(any: &BtrfsFd, id: u64, since: u64) -> nix::Result<Vec<u64>> {
    let (from, to) = (Key::new(raw::FIRST_FREE, 0, 0), Key::new(-256_i64 as u64, u8::MAX, u64::MAX));
    let mut search = Search::new(any, id, from, to).since(since);
    let mut inodes = Vec::new();
    while let Some(item) = search.next_item()? {
        // struct btrfs_inode_item begins with the transaction that made it.
        if item.key.kind == raw::INODE_ITEM && item.le64(0)? >= since {
            inodes.push(item.key.objectid);
        }
    }
    Ok(inodes)
}

fn inode(item: &Item<'_>) -> nix::Result<Change> {
    Ok(Change::Inode {
        inode: item.key.objectid,
        transid: item.le64(8)?,
        size: item.le64(16)?,
        links: item.le32(40)?,
        mode: item.le32(52)?,
        ctime: (item.le64(124)?, item.le32(132)?),
    })
}

/// An item has all names, or attributes, of one hash, one behind the other.
fn named(item: &Item<'_>) -> nix::Result<Change> {
    let (mut at, mut last) = (0, 0);
    while at < item.data.len() {
        // location, transid, data_len, name_len, type, then the name and the data
        last = last.max(item.le64(at + 17)?);
        at += 30 + usize::from(item.le16(at + 25)?) + usize::from(item.le16(at + 27)?);
    }
    Ok(Change::Named { inode: item.key.objectid, transid: last })
}

fn extent(item: &Item<'_>) -> nix::Result<Option<Change>> {
    /// Where the type is, and inline data starts behind it.
    const TYPE: usize = 20;
    let (inode, generation) = (item.key.objectid, item.le64(0)?);
    if item.byte(TYPE)? == 0 {
        let bytes = (item.data.len() - TYPE - 1) as u64;
        return Ok(Some(Change::Inline { inode, generation, bytes }));
    }
    let (address, bytes) = (item.le64(21)?, item.le64(29)?);
    // BTRFS_FILE_EXTENT_REG at address 0 is a hole.
    Ok((address != 0).then_some(Change::Extent { inode, generation, address, bytes }))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use linux_raw_sys::btrfs as k;

    use super::*;

    #[test]
    fn the_next_key_carries_over() {
        assert_eq!(Key::new(5, 6, 7).next(), Some(Key::new(5, 6, 8)));
        assert_eq!(Key::new(5, 6, u64::MAX).next(), Some(Key::new(5, 7, 0)));
        assert_eq!(Key::new(5, u8::MAX, u64::MAX).next(), Some(Key::new(6, 0, 0)));
        assert_eq!(Key::new(u64::MAX, u8::MAX, u64::MAX).next(), None);
    }

    #[test]
    fn items_are_read_where_the_kernel_writes_them() {
        assert_eq!(offset_of!(k::btrfs_root_ref, dirid), 0);
        assert_eq!(offset_of!(k::btrfs_root_ref, name_len), 16);
        assert_eq!(size_of::<k::btrfs_root_ref>(), 18);
        assert_eq!(offset_of!(k::btrfs_inode_ref, name_len), 8);
        assert_eq!(size_of::<k::btrfs_inode_ref>(), 10);
        assert_eq!(offset_of!(k::btrfs_inode_extref, parent_objectid), 0);
        assert_eq!(offset_of!(k::btrfs_inode_extref, name_len), 16);
        assert_eq!(offset_of!(k::btrfs_inode_extref, name), 18);
        assert_eq!(offset_of!(k::btrfs_root_item, ctransid), ROOT_CTRANSID);
        assert_eq!(offset_of!(k::btrfs_dir_item, location), 0);
        assert_eq!(offset_of!(k::btrfs_dir_item, transid), 17);
        assert_eq!(offset_of!(k::btrfs_dir_item, data_len), 25);
        assert_eq!(offset_of!(k::btrfs_dir_item, name_len), 27);
        assert_eq!(size_of::<k::btrfs_dir_item>(), 30);
        assert_eq!(offset_of!(k::btrfs_qgroup_status_item, flags), 16);
        assert_eq!(offset_of!(k::btrfs_qgroup_limit_item, flags), 0);
        assert_eq!(offset_of!(k::btrfs_qgroup_info_item, rfer), 8);
        assert_eq!(offset_of!(k::btrfs_qgroup_info_item, excl), 24);
        assert_eq!(offset_of!(k::btrfs_inode_item, transid), 8);
        assert_eq!(offset_of!(k::btrfs_inode_item, size), 16);
        assert_eq!(offset_of!(k::btrfs_inode_item, nlink), 40);
        assert_eq!(offset_of!(k::btrfs_inode_item, mode), 52);
        assert_eq!(offset_of!(k::btrfs_inode_item, ctime), 124);
        assert_eq!(offset_of!(k::btrfs_file_extent_item, type_), 20);
        assert_eq!(offset_of!(k::btrfs_file_extent_item, disk_bytenr), 21);
        assert_eq!(offset_of!(k::btrfs_file_extent_item, disk_num_bytes), 29);
    }

    #[test]
    fn items_that_are_too_short_are_damage_and_no_panic() {
        let key = Key::new(300, raw::EXTENT_DATA, 0);
        for length in [0, 7, 20, 21, 36] {
            let data = vec![1; length];
            assert_eq!(extent(&Item { key, data: &data }), Err(Errno::EUCLEAN), "{length}");
            assert_eq!(inode(&Item { key, data: &data }), Err(Errno::EUCLEAN), "{length}");
        }
        let long_name = Item { key, data: &[0xff; 40] };
        assert_eq!(long_name.name(16, 18), Err(Errno::EUCLEAN));
    }

    #[test]
    fn an_item_holds_several_names() {
        let two = |lead: usize| {
            let mut data = Vec::new();
            for name in ["a", "long name"] {
                data.extend(77_u64.to_le_bytes());
                data.resize(data.len() + lead - 8, 0);
                data.extend(u16::try_from(name.len()).expect("short").to_le_bytes());
                data.extend(name.as_bytes());
            }
            data
        };
        let read = |kind, data: &[u8]| {
            let mut names = Vec::new();
            names_in(&Item { key: Key::new(300, kind, 77), data }, &mut names).map(|()| names)
        };
        let name = |name: &str| Name { directory: 77, name: name.into() };
        for (kind, lead) in [(raw::INODE_REF, 8), (raw::INODE_EXTREF, 16)] {
            let data = two(lead);
            assert_eq!(read(kind, &data), Ok(vec![name("a"), name("long name")]));
            assert_eq!(read(kind, &data[..data.len() - 1]), Err(Errno::EUCLEAN));
        }
    }

    #[test]
    fn the_latest_of_several_names_counts() {
        let key = Key::new(300, raw::DIR_ITEM, 77);
        let mut data = Vec::new();
        for (transid, name) in [(7_u64, "one"), (9, "and another"), (8, "x")] {
            let from = data.len();
            data.resize(from + 30, 0);
            data[from + 17..from + 25].copy_from_slice(&transid.to_le_bytes());
            data[from + 27..from + 29].copy_from_slice(&u16::try_from(name.len()).expect("short").to_le_bytes());
            data.extend(name.as_bytes());
        }
        assert_eq!(named(&Item { key, data: &data }), Ok(Change::Named { inode: 300, transid: 9 }));
        assert_eq!(named(&Item { key, data: &data[..40] }), Err(Errno::EUCLEAN));
    }

    #[test]
    fn inline_data_and_holes() {
        let key = Key::new(300, raw::EXTENT_DATA, 0);
        let inline = [0; 21 + 5];
        let expected = Change::Inline { inode: 300, generation: 0, bytes: 5 };
        assert_eq!(extent(&Item { key, data: &inline }), Ok(Some(expected)));
        let mut hole = [0; 53];
        hole[20] = 1;
        assert_eq!(extent(&Item { key, data: &hole }), Ok(None));
    }
}
