#!/usr/bin/env python3
"""Try what the unit forbids, and what it has to allow: a line for each, `NAME yes` if it could be done."""

import ctypes
import mmap
import os
import socket
import sys
import tempfile

LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
PERSONALITY_32 = 0x0008
SYSCALLS = {"bpf": 321, "chroot": 161, "init_module": 175, "keyctl": 250, "perf_event_open": 298, "quotactl": 179, "reboot": 169}
EPERM = 1


def syscall(name, *arguments):
    """Whether it gets so far as to look at what it is given, which is nonsense here."""
    ctypes.set_errno(0)
    return LIBC.syscall(SYSCALLS[name], *arguments) >= 0 or ctypes.get_errno() != EPERM


def done(result):
    return result == 0


def connect(family, kind=socket.SOCK_STREAM):
    try:
        socket.socket(family, kind).close()
        return True
    except OSError:
        return False


def writable_code():
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
        return True
    except OSError:
        return False


def attempt(call):
    try:
        call()
        return True
    except OSError:
        return False


def in_a_child(call):
    """What would change this process."""
    child = os.fork()
    if child == 0:
        os._exit(0 if call() else 1)
    return os.waitpid(child, 0)[1] == 0


def bind_mount():
    with tempfile.TemporaryDirectory() as directory:
        mounted = LIBC.mount(directory.encode(), directory.encode(), None, MS_BIND, None) == 0
        if mounted:
            LIBC.umount2(directory.encode(), 0)
        return mounted


def device_node():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        return attempt(lambda: os.mknod(f"{directory}/null", 0o020600, os.makedev(1, 3)))


def others_file():
    with tempfile.TemporaryDirectory() as directory:
        return attempt(lambda: (os.chown(directory, 1000, 1000), os.chmod(directory, 0o6755)))


PROBES = {
    # Each is forbidden by the setting of the unit that run.sh names.
    "internet-socket": lambda: connect(socket.AF_INET),
    "netlink-socket": lambda: connect(socket.AF_NETLINK, socket.SOCK_RAW),
    "new-namespace": lambda: in_a_child(lambda: done(LIBC.unshare(CLONE_NEWNS))),
    "personality": lambda: in_a_child(lambda: LIBC.personality(PERSONALITY_32) >= 0),
    "writable-code": writable_code,
    "realtime": lambda: in_a_child(lambda: attempt(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)))),
    "hostname": lambda: attempt(lambda: socket.sethostname(socket.gethostname())),
    "other-user": lambda: in_a_child(lambda: attempt(lambda: os.setuid(65534))),
    "load-module": lambda: syscall("init_module", None, 0, None),
    "load-bpf": lambda: syscall("bpf", -1, None, 0),
    "affinity": lambda: in_a_child(lambda: attempt(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)))),
    "chroot": lambda: in_a_child(lambda: syscall("chroot", b"/")),
    "reboot": lambda: syscall("reboot", 0, 0, 0, None),
    "perf": lambda: syscall("perf_event_open", None, 0, 0, 0, 0),
    # Each is needed.
    "unix-socket": lambda: connect(socket.AF_UNIX),
    "bind-mount": bind_mount,
    "device-node": device_node,
    "others-file": others_file,
    "quota": lambda: syscall("quotactl", -1, None, 0, None),
    "nice": lambda: in_a_child(lambda: attempt(lambda: os.nice(5))),
}


if __name__ == "__main__":
    for name, probe in PROBES.items():
        print(name, "yes" if probe() else "no")
    sys.stdout.flush()
