"""What SELinux denies, as the kernel says it: records of its audit system, by netlink."""

import contextlib
import re
import select
import socket
import struct
import time

from cases import Failed, expect

# linux/audit.h, linux/netlink.h
NETLINK_AUDIT, NETLINK_ADD_MEMBERSHIP, SOL_NETLINK, AUDIT_NLGRP_READLOG = 9, 1, 270, 1
AUDIT_USER, AUDIT_USER_AVC, AUDIT_AVC, AUDIT_SELINUX_ERR = 1005, 1107, 1400, 1401
NLM_F_REQUEST = 1
HEADER = struct.Struct("=IHHII")
SO_RCVBUFFORCE = 33


class Audit:
    """The denials since the last look. Nothing is missed: each look ends at a record of our own, and an overrun is an error."""

    def __init__(self):
        self.reader = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_AUDIT)
        self.reader.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.reader.bind((0, 0))
        self.reader.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, AUDIT_NLGRP_READLOG)
        self.writer = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_AUDIT)
        self.marks = 0

    def denials(self):
        """What was denied since this was asked for last: texts."""
        self.marks += 1
        mark = f"mark-{self.marks}-{time.monotonic_ns()}".encode()
        text = mark + b"\0"
        self.writer.sendto(HEADER.pack(HEADER.size + len(text), AUDIT_USER, NLM_F_REQUEST, self.marks, 0) + text, (0, 0))
        found = []
        while True:
            expect(select.select([self.reader], [], [], 60)[0], "the kernel says nothing any more")
            record = self.reader.recv(1 << 16)
            kind, text = HEADER.unpack_from(record)[1], record[HEADER.size:].rstrip(b"\0\n")
            if kind == AUDIT_USER and mark in text:
                return found
            if kind in (AUDIT_AVC, AUDIT_USER_AVC) and b"denied" in text or kind == AUDIT_SELINUX_ERR:
                found.append(text.decode(errors="replace"))

    @contextlib.contextmanager
    def denying(self, pattern):
        """What is done in the block is denied, with a record like `pattern`; what it did before isn't."""
        before = self.denials()
        yield
        after = self.denials()
        if before:
            raise Failed("denied before:\n" + "\n".join(before))
        expect(any(re.search(pattern, text) for text in after), f"no record like {pattern}: {after}")

    def watched(self, case):
        """The case, which fails as well if anything was denied in it that it didn't expect."""
        def watching():
            self.denials()
            case()
            found = self.denials()
            if found:
                raise Failed(f"{len(found)} denials:\n" + "\n".join(found))
        return watching
