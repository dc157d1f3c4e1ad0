"""What the rows of `make bench` are measured with: a loop filesystem, whole processes, and
the raw ioctls that are the limit of create and rm.

Times are milliseconds of wall time, sizes bytes. The ioctl numbers and structures are those
of linux/btrfs.h.
"""

import ctypes
import hashlib
import os
import queue
import resource
import statistics
import struct
import subprocess
import tarfile
import tempfile
import threading
import time
import zlib

SNAP_CREATE_V2 = 0x50009417  # _IOW(0x94, 23, struct btrfs_ioctl_vol_args_v2), 4096 bytes
SNAP_DESTROY = 0x5000940F    # _IOW(0x94, 15, struct btrfs_ioctl_vol_args), 4096 bytes
QUOTA_CTL = 0xC0109428       # _IOWR(0x94, 40, struct btrfs_ioctl_quota_ctl_args), 16 bytes
ENABLE_SIMPLE = 4            # BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA, Linux 6.7

LONGEST = 1200               # seconds that any one command may take


class Failed(Exception):
    """A command that was measured and didn't succeed, with the end of what it said."""


class Ran:
    """One whole process: `ms` of wall time, `cpu_ms` of its own user and system time, what it
    printed, and with `memory` its `peak` resident bytes."""

    def __init__(self, command, memory=False):
        if memory:
            with tempfile.NamedTemporaryFile("r", encoding="utf-8") as report:
                # A child's own rusage starts at this interpreter's size: a small parent measures.
                self._run(["/usr/bin/time", "--format=%M", "--output", report.name, *command])
                self.peak = int(report.read()) * 1024
        else:
            self._run(command)

    def _run(self, command):
        # Files, not pipes: nothing of this process's own reading is in the time.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            start = time.monotonic()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            # Not wait(LONGEST): that polls, at intervals that double, and every time becomes one of theirs.
            late = threading.Timer(LONGEST, process.kill)
            # Who is interrupted here doesn't wait for it.
            late.daemon = True
            late.start()
            process.wait()
            self.ms = (time.monotonic() - start) * 1000
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            self.cpu_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000
            late.cancel()
            if self.ms > LONGEST * 1000:
                raise Failed(f"`{' '.join(command)}` didn't end within {LONGEST} s")
            self.text, errors = (self._all(file) for file in (out, err))
        if process.returncode:
            last = " / ".join((errors or self.text).strip().splitlines()[-3:])
            raise Failed(f"`{' '.join(command)}` ended with status {process.returncode}: {last[-500:]}")

    @staticmethod
    def _all(file):
        file.seek(0)
        return file.read().decode(errors="replace").strip()


def traced(command, calls):
    """How often COMMAND, and what it starts, makes any of CALLS, whether or not they succeed."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        Ran(["strace", "-f", "-qq", "-e", "trace=" + ",".join(f"?{call}" for call in calls), "-o", log.name, *command])
        return counted(log.read(), calls)


def counted(log, calls):
    """How many calls of these names are in LOG, written by strace. A call that another thread interrupts takes two lines:
    it is counted by the first."""
    def called(line):
        _, _, call = line.partition(" ")
        return call.strip().partition("(")[0]

    return sum(called(line) in calls for line in log.splitlines())


def repeat(once, most=20, seconds=30.0, least=3):
    """The results of ONCE(n), MOST times or until SECONDS are over, at LEAST so often."""
    results, end = [], time.monotonic() + seconds
    for number in range(most):
        results.append(once(number))
        if time.monotonic() > end and len(results) >= least:
            break
    return results


def median(values):
    return statistics.median(values)


def sync(path):
    subprocess.run(["sync", "--file-system", path], check=True)


def warm(path):
    """Read PATH into the page cache, so that no contender pays for the disk."""
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


class Filesystem:
    """A filesystem of KIND (btrfs, xfs) in a sparse file, on a loop device, mounted until the block ends."""

    def __init__(self, directory, size, kind="btrfs", simple_quotas=False):
        self.file = os.path.join(directory, f"filesystem.{kind}")
        self.mount = os.path.join(directory, f"mnt.{kind}")
        self.size, self.kind, self.simple_quotas = size, kind, simple_quotas
        self.device, self.quotas = None, "none"

    def __enter__(self):
        os.makedirs(self.mount, exist_ok=True)
        try:
            with open(self.file, "wb") as file:
                file.truncate(self.size)
            subprocess.run([f"mkfs.{self.kind}", "-q", self.file], check=True, capture_output=True)
            self.device = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", self.file], check=True,
                                         capture_output=True, text=True).stdout.strip()
            subprocess.run(["mount", "-t", self.kind, self.device, self.mount], check=True)
            self.quotas = "simple" if self.simple_quotas and self._enable_simple() else "none"
        except BaseException:
            self.__exit__()
            raise
        return self

    def _enable_simple(self):
        fd = os.open(self.mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ioctl(fd, QUOTA_CTL, bytearray(struct.pack("QQ", ENABLE_SIMPLE, 0)))
            return True
        except OSError:
            return False
        finally:
            os.close(fd)

    def __exit__(self, *_):
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            points = [line.split()[4] for line in file]
        # What a contender left mounted, deepest first, then the filesystem itself.
        for point in sorted((p for p in points if p == self.mount or p.startswith(self.mount + "/")), reverse=True):
            for _ in range(50):
                if subprocess.run(["umount", point], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
        if self.device:
            subprocess.run(["losetup", "--detach", self.device], check=False)
        if os.path.exists(self.file):
            os.remove(self.file)


LIBC = ctypes.CDLL(None, use_errno=True)


def ioctl(fd, request, argument):
    """ioctl(2) without the interpreter's lock: fcntl.ioctl keeps it, and threads would queue."""
    if LIBC.ioctl(ctypes.c_int(fd), ctypes.c_ulong(request), (ctypes.c_char * len(argument)).from_buffer(argument)) < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def volume_args(fd, name):
    """struct btrfs_ioctl_vol_args_v2: fd, transid, flags, 4 x u64, name[4040]."""
    return bytearray(struct.pack("<qQQ32x4040s", fd, 0, 0, name.encode()))


def snapshot(source, parent, name):
    """The raw ioctl: SOURCE (a descriptor) as NAME below PARENT (a directory's path)."""
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ioctl(fd, SNAP_CREATE_V2, volume_args(source, name))
    finally:
        os.close(fd)


def destroy(parent, name):
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        ioctl(fd, SNAP_DESTROY, bytearray(struct.pack("<q4088s", 0, name.encode())))
    finally:
        os.close(fd)


def raw_limits(tree, directory, count=30):
    """Medians of the raw ioctls on TREE, a subvolume: {create, rm} in ms."""
    source = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        def timed(call, *arguments):
            start = time.monotonic()
            call(*arguments)
            return (time.monotonic() - start) * 1000

        parents = [os.path.join(directory, str(number)) for number in range(count)]
        for parent in parents:
            os.makedirs(parent)
        sync(directory)
        create = [timed(snapshot, source, parent, "fs") for parent in parents[:count]]
        remove = [timed(destroy, parent, "fs") for parent in parents[:count]]
    finally:
        os.close(source)
    return {"create": median(create), "rm": median(remove)}


def decode(archive):
    """Decompress and hash every gzip layer of ARCHIVE (in any form of an image): both digests of each."""
    digests = []
    with tarfile.open(archive) as tar:
        for member in tar:
            if not member.isfile() or tar.extractfile(member).read(2) != b"\x1f\x8b":
                continue
            packed, plain = hashlib.sha256(), hashlib.sha256()
            chunks = queue.Queue(8)

            def hash_plain(plain=plain, chunks=chunks):
                while (chunk := chunks.get()) is not None:
                    plain.update(chunk)

            hasher = threading.Thread(target=hash_plain)
            hasher.start()
            inflate = zlib.decompressobj(31)
            with tar.extractfile(member) as file:
                while chunk := file.read(1 << 18):
                    packed.update(chunk)
                    chunks.put(inflate.decompress(chunk))
            chunks.put(inflate.flush())
            chunks.put(None)
            hasher.join()
            digests.append((packed.hexdigest(), plain.hexdigest()))
    return digests


def unpacking(layers, tree):
    """The command that unpacks LAYERS, plain tars, into TREE and syncs it."""
    script = " && ".join(f"tar -xpf '{layer}' --numeric-owner -C '{tree}'" for layer in layers)
    return ["sh", "-c", f"{script} && sync --file-system '{tree}'"]


def decoding(archive):
    """The command that does what `decode` says."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import measure; measure.decode(sys.argv[2])"
    return ["python3", "-B", "-c", script, os.path.dirname(os.path.abspath(__file__)), archive]


def together(*commands):
    """Milliseconds until the last of COMMANDS, all begun at once, has ended."""
    start = time.monotonic()
    others = [subprocess.Popen(command, stdin=subprocess.DEVNULL) for command in commands[1:]]
    Ran(commands[0])
    for command, other in zip(commands[1:], others, strict=True):
        if other.wait():
            raise Failed(f"`{command[0]}` ended with status {other.returncode}")
    return (time.monotonic() - start) * 1000


def load_floor(image, tree):
    """The least that a load can be: `tar -x` of the plain layers into TREE, decompression and
    sha256. Each alone, and both at once; the last is the limit (ms)."""
    layers = sorted(os.path.join(image, name) for name in os.listdir(image) if name.startswith("layer"))
    archive = os.path.join(image, "docker.tar")
    for path in [*layers, archive]:
        warm(path)
    unpack, decoder = unpacking(layers, tree), decoding(archive)
    tar_ms = Ran(unpack).ms
    decode_ms = Ran(decoder).ms
    # Into an empty tree again, for the overlapped run.
    subprocess.run(["find", tree, "-mindepth", "1", "-delete"], check=True)
    sync(tree)
    return {"tar_ms": tar_ms, "decode_ms": decode_ms, "overlapped_ms": together(unpack, decoder)}
