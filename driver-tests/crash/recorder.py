"""A disk that writes down what reaches it: a file served by FUSE, one request after the other, for a loop device to stand on.

    recorder.py DISK LOG SHOWN      shows DISK as the file SHOWN until that is unmounted, and writes LOG

What is answered is in the log, in the form of `writelog`. QEMU's driver blklogwrites does the same; but with several requests
under way the FUSE export of QEMU 10.0 mixes up the data of writes: what it recorded of four workers was no filesystem.
"""

import ctypes
import errno
import os
import stat
import struct
import sys

import writelog

# linux/fuse.h, version 7.31
IN, OUT = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
FORGET, GETATTR, SETATTR, OPEN, READ, WRITE, STATFS, RELEASE, FSYNC = 2, 3, 4, 14, 15, 16, 17, 18, 20
FLUSH, INIT, INTERRUPT, DESTROY, BATCH_FORGET, FALLOCATE = 25, 26, 36, 38, 42, 43
BIG_WRITES, MAX_PAGES = 1 << 5, 1 << 22
DIRECT_IO = 1
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
ATTR_OUT = struct.Struct("<QII QQQ QQQ III IIIIIII")
LARGEST = 1 << 20


class Disk:
    def __init__(self, disk, log):
        self.disk, self.log = os.open(disk, os.O_RDWR), writelog.Writer(log)
        self.size = os.fstat(self.disk).st_size

    def answer(self, opcode, body):
        """What a request is answered with; bytes."""
        if opcode == WRITE:
            _, offset, size, *_ = struct.unpack_from("<QQII", body)
            data = body[40:40 + size]
            os.pwrite(self.disk, data, offset)
            self.log.write(offset, data)
            return struct.pack("<II", size, 0)
        if opcode == READ:
            _, offset, size, *_ = struct.unpack_from("<QQII", body)
            return os.pread(self.disk, size, offset)
        if opcode == FSYNC:
            self.log.flush()
            return b""
        if opcode == FALLOCATE:
            _, offset, length, mode, _ = struct.unpack_from("<QQQII", body)
            if not mode & (writelog.ZERO_RANGE | writelog.PUNCH_HOLE):
                raise OSError(errno.EOPNOTSUPP, "fallocate")
            # After either the blocks read as zeros: it is a write of them.
            self.log.discard(offset, length)
            writelog.punch(self.disk, offset, length)
            return b""
        if opcode == INIT:
            return INIT_OUT.pack(7, 31, 0, BIG_WRITES | MAX_PAGES, 64, 48, LARGEST, 1, LARGEST // 4096, 0, 0, 0)
        if opcode in (GETATTR, SETATTR):
            mode = stat.S_IFREG | 0o600
            return ATTR_OUT.pack(60, 0, 0, 1, self.size, self.size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        if opcode == OPEN:
            return struct.pack("<QII", 0, DIRECT_IO, 0)
        if opcode in (RELEASE, FLUSH, DESTROY):
            return b""
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII24x", 0, 0, 0, 0, 0, 4096, 255, 4096, 0)
        raise OSError(errno.ENOSYS, f"request {opcode}")

    def serve(self, device):
        while True:
            try:
                request = os.read(device, LARGEST + 8192)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    # Unmounted.
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            _, opcode, unique, *_ = IN.unpack_from(request)
            if opcode in (FORGET, BATCH_FORGET, INTERRUPT):
                continue
            try:
                said, failed = self.answer(opcode, memoryview(request)[IN.size:]), 0
            except OSError as error:
                said, failed = b"", error.errno
            os.writev(device, [OUT.pack(OUT.size + len(said), -failed, unique), said])


def main(disk, log, shown):
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,max_read={LARGEST}"
    if writelog.LIBC.mount(b"crashtest", shown.encode(), b"fuse", 0, options.encode()):
        sys.exit(f"error: cannot mount {shown}: {os.strerror(ctypes.get_errno())}")
    served = Disk(disk, log)
    try:
        served.serve(device)
    finally:
        served.log.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
