//! Writes a file's content and leaves blocks of zeros out: a layer's tar has no holes, and the file gets them back.
//!
//! Blocks are 64 KiB of the file, where they begin aligned: holes that are worth an extent each. The file has to be new,
//! so that what isn't written is zero, and gets its length in the end.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::refused;
use crate::error::{Error, Result};

const BLOCK: u64 = 64 << 10;
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Takes bytes one after the other.
pub(crate) struct Writer<'a> {
    fd: BorrowedFd<'a>,
    at: u64,
    /// The last so many bytes were zeros from the beginning of a block, and aren't written yet.
    held: u64,
}

impl<'a> Writer<'a> {
    /// Begin at an offset of the file.
    pub(crate) fn new(fd: BorrowedFd<'a>, at: u64) -> Self {
        Self { fd, at, held: 0 }
    }

    pub(crate) fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        // What is before `ready` in `bytes` is to be written, and nothing is held.
        let mut ready = 0;
        while ready < bytes.len() {
            let at = self.at + ready as u64;
            let rest = &bytes[ready..];
            let part = usize::try_from(BLOCK - at % BLOCK).unwrap_or(rest.len()).min(rest.len());
            let whole = at.is_multiple_of(BLOCK) || self.held > 0;
            if whole && rest[..part] == ZEROS[..part] {
                self.put(&bytes[..ready])?;
                self.at += part as u64;
                self.held += part as u64;
                if self.held == BLOCK {
                    self.held = 0;
                }
                (bytes, ready) = (&bytes[ready + part..], 0);
            } else {
                self.release()?;
                ready += part;
            }
        }
        self.put(bytes)
    }

    /// Write what is held: there are no more bytes that could make it a whole block.
    pub(crate) fn end(mut self) -> Result<()> {
        self.release()
    }

    fn release(&mut self) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        self.at -= held;
        self.put(&ZEROS[..held as usize])
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match rustix::io::pwrite(self.fd, bytes, self.at) {
                Ok(0) => return Err(Error::system("write", &std::io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.at += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(refused("write", errno)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    const K: usize = 1 << 10;

    /// Write `content` from `offset` on in pieces of that many bytes; what the file then has, and how many blocks of it.
    fn written(content: &[u8], offset: usize, piece: usize) -> (Vec<u8>, u64) {
        let file = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(file.as_fd(), offset as u64);
        content.chunks(piece).for_each(|bytes| writer.write(bytes).unwrap());
        writer.end().unwrap();
        file.set_len((offset + content.len()) as u64).unwrap();
        (read(&file), file.metadata().unwrap().blocks() * 512)
    }

    fn read(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn bytes_are_the_same_however_they_are_cut() {
        // Data and zeros that begin and end everywhere.
        let lengths = [1, 64 * K, 3, 64 * K - 4, 128 * K, 5000, 200 * K, 1, 70 * K, 64 * K - 1, 9];
        let mut content = Vec::new();
        for (number, length) in lengths.into_iter().enumerate() {
            content.resize(content.len() + length, if number % 2 == 0 { 7 } else { 0 });
        }
        for offset in [0, 1, 512, 64 * K, 100 * K] {
            for piece in [512, 4096, 65_537, 256 * K, content.len()] {
                let (file, _) = written(&content, offset, piece);
                assert!(file[..offset].iter().all(|&byte| byte == 0));
                assert!(file[offset..] == content[..], "offset {offset}, pieces of {piece}");
            }
        }
    }

    #[test]
    fn aligned_blocks_of_zeros_take_nothing() {
        for piece in [512, 65_537, 256 * K] {
            let content = [vec![1; 64 * K], vec![0; 1024 * K], vec![1; 64 * K]].concat();
            let (_, taken) = written(&content, 0, piece);
            assert!(taken < 200 * K as u64, "pieces of {piece}: {taken}");
            // Not whole at either end: 15 blocks are.
            let (_, taken) = written(&content, 512, piece);
            assert!(taken < 300 * K as u64, "pieces of {piece}: {taken}");
            let (_, taken) = written(&vec![0; 64 * K - 1], 0, piece);
            assert!(taken >= 60 * K as u64, "a file too short for a hole is written: {taken}");
        }
    }
}
