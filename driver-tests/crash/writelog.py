"""The log of all that reached a device, in the form of dm-log-writes.

    sector 0           magic, version, number of entries, size of the log's sectors
    then, each at the beginning of a sector: sector, number of sectors, flags, length of data; and after it the data

`recorder` takes one request after the other, so what stands before a flush was done before it. The mark of an operation is a
write beyond the end of the filesystem.
"""

import ctypes
import os
import struct
from collections import namedtuple

MAGIC = 0x6A736677736872
SUPER, ENTRY, MARK = struct.Struct("<QQQI"), struct.Struct("<QQQQ"), struct.Struct("<8sQ")
FLUSH, FUA, DISCARD = 1, 2, 4
SECTOR = 512
LIBC = ctypes.CDLL(None, use_errno=True)
# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
MARK_MAGIC = b"rfdcrash"
MARK_BYTES = SECTOR

# What happened, in order: `kind` is "write", "flush" or "mark". A write has its place and length on the device in bytes, where
# its data is in the log (None: zeros), and whether it was durable by itself. A mark has its number.
Entry = namedtuple("Entry", "kind offset length data fua number", defaults=(0, 0, None, False, None))


class Writer:
    """Of a new log."""

    def __init__(self, path):
        self.file, self.count = open(path, "wb"), 0
        self.file.write(bytes(SECTOR))

    def entry(self, offset, length, flags, data=b""):
        self.file.write(ENTRY.pack(offset // SECTOR, length // SECTOR, flags, len(data)).ljust(SECTOR, b"\0"))
        self.file.write(data)
        self.count += 1

    def write(self, offset, data):
        self.entry(offset, len(data), 0, data)

    def flush(self):
        self.entry(0, 0, FLUSH)

    def discard(self, offset, length):
        self.entry(offset, length, DISCARD)

    def close(self):
        self.file.seek(0)
        self.file.write(SUPER.pack(MAGIC, 1, self.count, SECTOR))
        self.file.close()


class Damaged(Exception):
    """It isn't such a log."""


def mark(number):
    """The sector that stands for a number."""
    return MARK.pack(MARK_MAGIC, number).ljust(MARK_BYTES, b"\0")


def read(log, end):
    """The entries of a log, an open file. What is written at `end` bytes or behind is a mark."""
    head = log.read(SUPER.size)
    if len(head) < SUPER.size:
        raise Damaged("it has no beginning")
    magic, version, count, sector = SUPER.unpack(head)
    if magic != MAGIC or version != 1:
        raise Damaged(f"magic {magic:#x}, version {version}: no log of writes")
    entries, at = [], sector
    for number in range(count):
        log.seek(at)
        head = log.read(ENTRY.size)
        if len(head) < ENTRY.size:
            raise Damaged(f"it ends in entry {number} of {count}")
        first, sectors, flags, _ = ENTRY.unpack(head)
        at += sector
        offset, length, data = first * sector, sectors * sector, at
        if flags & DISCARD:
            data = None
        else:
            at += length
        if flags & FLUSH:
            entries.append(Entry("flush"))
        if not length:
            continue
        if offset >= end:
            log.seek(data)
            said, value = MARK.unpack(log.read(MARK.size))
            if said != MARK_MAGIC:
                raise Damaged(f"entry {number} is a write of something else beyond the end")
            entries.append(Entry("mark", number=value))
        else:
            entries.append(Entry("write", offset, length, data, bool(flags & FUA)))
    return entries


def apply(image, log, writes):
    """Write to an image (a descriptor) what the log (another) has of some writes."""
    for write in writes:
        if write.data is None:
            punch(image, write.offset, write.length)
        else:
            os.pwrite(image, os.pread(log, write.length, write.data), write.offset)


def punch(file, offset, length):
    """Make a hole in a file (a descriptor), which reads as zeros."""
    how = KEEP_SIZE | PUNCH_HOLE
    if LIBC.fallocate(file, how, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
