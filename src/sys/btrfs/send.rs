//! `BTRFS_IOC_SEND`: what one read-only subvolume has that another has not, as a stream of commands.
//!
//! The kernel compares the two trees block by block, and skips what they share: the cost is that of the changes. The
//! stream (fs/btrfs/send.h, protocol version 1) is a list of commands that would make the one out of the other, in an
//! order in which each can be carried out. Names are those that things have at that moment: what would be in the way
//! has a name like `o257-6-0` at the root until its turn comes.
//!
//! Subvolumes nested in the two are not spoken of.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{BtrfsFd, raw};

/// `BTRFS_SEND_STREAM_MAGIC`, its NUL included.
const MAGIC: &[u8; 13] = b"btrfs-stream\0";
const VERSION: u32 = 1;
/// `struct btrfs_cmd_header`: length of what follows, command, checksum; packed.
const HEADER: usize = 10;
/// `BTRFS_SEND_BUF_SIZE_V1`: no command is longer.
const LONGEST: usize = 64 << 10;

/// `enum btrfs_send_cmd`.
mod command {
    pub(super) const SUBVOL: u16 = 1;
    pub(super) const SNAPSHOT: u16 = 2;
    pub(super) const MKFILE: u16 = 3;
    pub(super) const SYMLINK: u16 = 8;
    pub(super) const RENAME: u16 = 9;
    pub(super) const LINK: u16 = 10;
    pub(super) const UNLINK: u16 = 11;
    pub(super) const RMDIR: u16 = 12;
    pub(super) const SET_XATTR: u16 = 13;
    pub(super) const REMOVE_XATTR: u16 = 14;
    pub(super) const WRITE: u16 = 15;
    pub(super) const TRUNCATE: u16 = 17;
    pub(super) const CHMOD: u16 = 18;
    pub(super) const UTIMES: u16 = 20;
    pub(super) const END: u16 = 21;
    pub(super) const UPDATE_EXTENT: u16 = 22;
}

/// `BTRFS_SEND_A_*`.
mod attribute {
    pub(super) const PATH: u16 = 15;
    pub(super) const PATH_TO: u16 = 16;
    pub(super) const PATH_LINK: u16 = 17;
}

/// A command, as far as it says what is touched. Paths are below the subvolume's root, which is the empty path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A file, directory, node or symlink comes into being.
    Make {
        path: Vec<u8>,
    },
    /// `path` becomes a further name of `target`.
    Link {
        path: Vec<u8>,
        target: Vec<u8>,
    },
    Rename {
        from: Vec<u8>,
        to: Vec<u8>,
    },
    /// A name, or an empty directory, goes.
    Remove {
        path: Vec<u8>,
    },
    /// The bytes of a file.
    Data {
        path: Vec<u8>,
    },
    /// Owner, mode, times or xattrs. The times of all that was looked at are set, often to what they were.
    Attributes {
        path: Vec<u8>,
    },
}

/// Write into `to` what `snapshot` has that subvolume `parent` has not, without the bytes of files
/// (`BTRFS_SEND_FLAG_NO_FILE_DATA`). Blocks until all is read. Writes out dirty data of both first.
///
/// # Errors
/// EPERM unless both are read-only; ENAMETOOLONG for a change below a path longer than PATH_MAX; EPIPE if nobody
/// reads any more; EAGAIN while the filesystem is being balanced; ENOMEM.
pub fn send(snapshot: &BtrfsFd, parent: u64, to: BorrowedFd<'_>) -> nix::Result<()> {
    let args = raw::SendArgs {
        send_fd: to.as_raw_fd().into(),
        parent_root: parent,
        flags: raw::SEND_NO_FILE_DATA,
        ..raw::SendArgs::default()
    };
    // SAFETY: args is a whole btrfs_ioctl_send_args; of its clone sources there are none.
    unsafe { raw::send(snapshot.raw(), &raw const args) }?;
    Ok(())
}

/// The commands of a stream, read one by one.
#[derive(Debug)]
pub struct Stream<R> {
    from: R,
    /// The command that is being read.
    buffer: Vec<u8>,
}

impl<R: Read> Stream<R> {
    /// Read the stream's header.
    ///
    /// # Errors
    /// `InvalidData` if it is none that we know; `UnexpectedEof` if the sender gave up.
    pub fn open(mut from: R) -> io::Result<Self> {
        let mut header = [0; MAGIC.len() + 4];
        from.read_exact(&mut header)?;
        let (magic, version) = header.split_at(MAGIC.len());
        if magic != MAGIC || version != VERSION.to_le_bytes() {
            return Err(invalid("it isn't a stream of version 1"));
        }
        Ok(Self { from, buffer: Vec::new() })
    }

    /// The next command; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for a wrong checksum and for what this doesn't know; `UnexpectedEof` if the sender gave up.
    pub fn next_command(&mut self) -> io::Result<Option<Command>> {
        loop {
            let number = self.read()?;
            let body = &self.buffer[HEADER..];
            let path = || attribute_of(body, attribute::PATH);
            let command = match number {
                // The subvolume itself, by its name.
                command::SUBVOL | command::SNAPSHOT => continue,
                command::END => return Ok(None),
                command::MKFILE..=command::SYMLINK => Command::Make { path: path()? },
                command::RENAME => Command::Rename { from: path()?, to: attribute_of(body, attribute::PATH_TO)? },
                command::LINK => Command::Link { path: path()?, target: attribute_of(body, attribute::PATH_LINK)? },
                command::UNLINK | command::RMDIR => Command::Remove { path: path()? },
                command::WRITE..=command::TRUNCATE | command::UPDATE_EXTENT => Command::Data { path: path()? },
                command::SET_XATTR | command::REMOVE_XATTR | command::CHMOD..=command::UTIMES => {
                    Command::Attributes { path: path()? }
                }
                _ => return Err(invalid("it has a command that version 1 has not")),
            };
            return Ok(Some(command));
        }
    }

    /// Read a whole command into the buffer and check it; its number.
    fn read(&mut self) -> io::Result<u16> {
        self.buffer.resize(HEADER, 0);
        self.from.read_exact(&mut self.buffer)?;
        let length = u32::from_le_bytes(array(&self.buffer)) as usize;
        let number = u16::from_le_bytes(array(&self.buffer[4..]));
        let sum = u32::from_le_bytes(array(&self.buffer[6..]));
        if length > LONGEST {
            return Err(invalid("it has a command that is too long"));
        }
        self.buffer.resize(HEADER + length, 0);
        self.from.read_exact(&mut self.buffer[HEADER..])?;
        self.buffer[6..HEADER].fill(0);
        if checksum(&self.buffer) != sum {
            return Err(invalid("a checksum is wrong"));
        }
        Ok(number)
    }
}

/// The kernel's `crc32c(0, ...)`, which doesn't invert at either end.
fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}

/// The value of an attribute (`struct btrfs_tlv_header`: type, length).
fn attribute_of(mut body: &[u8], wanted: u16) -> io::Result<Vec<u8>> {
    while let Some((header, rest)) = body.split_at_checked(4) {
        let (kind, length) = (u16::from_le_bytes(array(header)), u16::from_le_bytes(array(&header[2..])));
        let (value, rest) = rest.split_at_checked(length.into()).ok_or_else(|| invalid("an attribute is torn"))?;
        if kind == wanted {
            return Ok(value.to_vec());
        }
        body = rest;
    }
    Err(invalid("a command has no path"))
}

/// The first `N` bytes of what is known to be as long.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|at| bytes[at])
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(number: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend(kind.to_le_bytes());
            body.extend(u16::try_from(value.len()).expect("short").to_le_bytes());
            body.extend(*value);
        }
        let mut bytes = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
        bytes.extend(number.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        let sum = checksum(&bytes);
        bytes[6..10].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn stream(commands: &[Vec<u8>]) -> Vec<u8> {
        [&MAGIC[..], &1_u32.to_le_bytes(), &commands.concat()].concat()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<Command>> {
        let mut stream = Stream::open(bytes)?;
        let mut commands = Vec::new();
        while let Some(command) = stream.next_command()? {
            commands.push(command);
        }
        Ok(commands)
    }

    #[test]
    fn commands_are_read() {
        let snapshot = command(2, &[(15, b"name"), (1, &[7; 16])]);
        let bytes = stream(&[
            snapshot,
            command(3, &[(3, &[1; 8]), (15, b"o257-6-0")]),
            command(9, &[(15, b"o257-6-0"), (16, b"a/b")]),
            command(10, &[(15, b"c"), (17, b"a/b")]),
            command(11, &[(15, b"d")]),
            command(22, &[(15, b"a/b"), (18, &[0; 8]), (4, &[0; 8])]),
            command(20, &[(11, &[0; 12]), (15, b"")]),
            command(21, &[]),
        ]);
        let path = |text: &str| text.as_bytes().to_vec();
        let expected = [
            Command::Make { path: path("o257-6-0") },
            Command::Rename { from: path("o257-6-0"), to: path("a/b") },
            Command::Link { path: path("c"), target: path("a/b") },
            Command::Remove { path: path("d") },
            Command::Data { path: path("a/b") },
            Command::Attributes { path: path("") },
        ];
        assert_eq!(read(&bytes).expect("whole"), expected);
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end]).expect_err("cut short").kind(), io::ErrorKind::UnexpectedEof, "{end}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let good = stream(&[command(11, &[(15, b"d")]), command(21, &[])]);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(read(&bad).is_err(), "the byte at {at} is wrong");
        }
        for unknown in [0, 23, 26] {
            assert!(read(&stream(&[command(unknown, &[(15, b"d")])])).is_err());
        }
        assert!(read(&stream(&[command(11, &[(16, b"d")])])).is_err(), "no path");
    }
}
