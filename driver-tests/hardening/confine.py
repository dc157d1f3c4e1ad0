#!/usr/bin/env python3
"""What a service manager has confined a process to, written down, and put on another program.

    confine.py record PID FILE            write down what holds for a process
    confine.py run FILE PROGRAM ARGS...   become PROGRAM, confined likewise

What is recorded is what the kernel has, not what a unit says: the very seccomp filters (PTRACE_SECCOMP_GET_FILTER), and of
/proc the capabilities that can be had, limits, and whether privileges can be gained. The namespace of the host's name is
joined, as long as the process lives. Root only.
"""

import base64
import ctypes
import json
import os
import re
import resource
import signal
import sys

LIBC = ctypes.CDLL(None, use_errno=True)

# linux/ptrace.h, linux/prctl.h, linux/seccomp.h, linux/sched.h
PTRACE_ATTACH = 16
PTRACE_DETACH = 17
PTRACE_SECCOMP_GET_FILTER = 0x420C
PR_SET_SECCOMP = 22
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
CLONE_NEWUTS = 0x04000000
# Bytes of a `struct sock_filter`.
INSTRUCTION = 8

LIBC.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
LIBC.ptrace.restype = ctypes.c_long
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Program(ctypes.Structure):
    """`struct sock_fprog` (linux/filter.h)."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def checked(what, result):
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")
    return result


def status(pid, name):
    with open(f"/proc/{pid}/status", encoding="utf-8") as lines:
        return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def filters(pid):
    """Oldest first; the kernel counts from the newest."""
    checked("attach", LIBC.ptrace(PTRACE_ATTACH, pid, None, None))
    try:
        # One thread is enough: systemd sets them before there are others.
        os.waitpid(pid, 0x40000000)
        found = []
        for number in range(int(status(pid, "Seccomp_filters"))):
            length = checked("read a filter", LIBC.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, number, None))
            code = ctypes.create_string_buffer(length * INSTRUCTION)
            checked("read a filter", LIBC.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, number, ctypes.addressof(code)))
            found.append(base64.b64encode(code.raw).decode())
        return found[::-1]
    finally:
        LIBC.ptrace(PTRACE_DETACH, pid, None, None)


def record(pid):
    with open(f"/proc/{pid}/limits", encoding="utf-8") as limits:
        files = re.search(r"^Max open files +(\d+) +(\d+)", limits.read(), re.MULTILINE)
    return {
        "pid": pid,
        "filters": filters(pid),
        "bounding": int(status(pid, "CapBnd"), 16),
        "no_new_privileges": status(pid, "NoNewPrivs") == "1",
        "open_files": [int(number) for number in files.groups()],
    }


def confine(confined):
    """Hold this process, and what it becomes, to it."""
    namespace = os.open(f"/proc/{confined['pid']}/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
    checked("join the namespace of the host's name", LIBC.setns(namespace, CLONE_NEWUTS))
    resource.setrlimit(resource.RLIMIT_NOFILE, confined["open_files"])
    capability = 0
    while LIBC.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0:
        if not confined["bounding"] >> capability & 1:
            checked("drop a capability", LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
        capability += 1
    if confined["no_new_privileges"]:
        checked("gain nothing", LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    for code in confined["filters"]:
        code = base64.b64decode(code)
        held = ctypes.create_string_buffer(code, len(code))
        program = Program(len(code) // INSTRUCTION, ctypes.addressof(held))
        result = LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)
        checked("set a filter", result)
    # As is recorded, or whoever relies on it is deceived.
    now = (int(status("self", "CapBnd"), 16), int(status("self", "Seccomp_filters")))
    if now != (confined["bounding"], len(confined["filters"])):
        sys.exit(f"confine.py: capabilities and filters are {now}, and should be those of {confined['pid']}")


def main(argv):
    match argv:
        case ["record", pid, path]:
            with open(path, "w", encoding="utf-8") as file:
                json.dump(record(int(pid)), file)
        case ["run", path, program, *_]:
            with open(path, encoding="utf-8") as file:
                confined = json.load(file)
            # Python has changed it for itself.
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            confine(confined)
            os.execv(program, argv[2:])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
