//! Tars of tests: with owners, and endless ones made on the fly.

use std::io::{self, Read, Write};

use crate::support::random_bytes;

/// A file or (with a slash at the end) directory of a tar.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) owner: (u64, u64),
    pub(crate) content: &'a [u8],
}

/// A tar of entries with these owners.
pub(crate) fn owned_tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = header(entry.content.len() as u64);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        if entry.name.ends_with('/') {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        builder.append_data(&mut header, entry.name, entry.content).expect("write tar");
    }
    builder.into_inner().expect("write tar")
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mtime(1_700_000_000);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mode(0o644);
    header.set_size(size);
    header
}

/// `(name, uid, gid)` of what a tar has.
pub(crate) fn owners(tar: &[u8]) -> Vec<(String, u64, u64)> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().expect("a tar").map(|entry| {
        let entry = entry.expect("a tar");
        let name = entry.path().expect("a name").display().to_string();
        (name, entry.header().uid().expect("uid"), entry.header().gid().expect("gid"))
    });
    entries.collect()
}

/// A tar of some large files, each block of 4 KiB another one, that is made while it is read.
pub(crate) struct Endless {
    files: u64,
    file: u64,
    size: u64,
    /// Blocks of 512 bytes of the file that are read.
    at: u64,
    noise: Vec<u8>,
    ready: Vec<u8>,
    taken: usize,
}

impl Endless {
    /// `size` is a multiple of 1 MiB.
    pub(crate) fn new(noise: &[u8], files: u64, size: u64) -> Self {
        assert_eq!(size % (1 << 20), 0);
        Self { files, file: 0, size, at: 0, noise: noise.to_vec(), ready: Vec::new(), taken: 0 }
    }

    /// What all of them are made of.
    pub(crate) fn noise() -> Vec<u8> {
        random_bytes(1 << 20)
    }

    fn prepare(&mut self) {
        self.taken = 0;
        self.ready.clear();
        if self.file == self.files {
            return;
        }
        if self.at == 0 {
            let mut header = header(self.size);
            header.set_path(format!("large-{}", self.file)).expect("a name");
            header.set_cksum();
            self.ready.extend_from_slice(header.as_bytes());
        }
        for (block, bytes) in self.noise.chunks_mut(4096).enumerate() {
            let number = (self.file << 40) + self.at + block as u64;
            bytes[..8].copy_from_slice(&number.to_le_bytes());
        }
        self.ready.extend_from_slice(&self.noise);
        self.at += 1 << 20;
        if self.at == self.size {
            (self.file, self.at) = (self.file + 1, 0);
            if self.file == self.files {
                self.ready.resize(self.ready.len() + 1024, 0);
            }
        }
    }
}

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.ready.len() {
            self.prepare();
        }
        let length = buffer.len().min(self.ready.len() - self.taken);
        buffer[..length].copy_from_slice(&self.ready[self.taken..][..length]);
        self.taken += length;
        Ok(length)
    }
}

/// Takes what must be the same as another stream.
pub(crate) struct SameAs<R> {
    other: R,
    buffer: Vec<u8>,
    pub(crate) bytes: u64,
}

impl<R: Read> SameAs<R> {
    pub(crate) fn new(other: R) -> Self {
        Self { other, buffer: Vec::new(), bytes: 0 }
    }

    /// There is no more of the other one, either.
    pub(crate) fn end(mut self) -> u64 {
        assert_eq!(self.other.read(&mut [0]).expect("read"), 0, "{} bytes, and the other is longer", self.bytes);
        self.bytes
    }
}

impl<R: Read> Write for SameAs<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        self.other.read_exact(&mut self.buffer).expect("the other is as long");
        assert!(self.buffer == bytes, "they differ after byte {}", self.bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
