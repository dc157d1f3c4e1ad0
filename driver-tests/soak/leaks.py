"""Leaks that are planted to see that they are found: each makes its gauge grow at every pause, and nothing else fails."""

import os
import socket
import sqlite3

import ground

# The gauge that must be found to grow.
GAUGES = {"connection": "fds", "memory": "rss", "database": "database", "space": "used", "subvolume": "subvolumes",
          "group": "groups", "mount": "mounts"}
# Bytes of each request that never ends.
HELD = 1_500_000


class Leaks:
    """`kinds` of GAUGES, on a filesystem of a kind, with a server that is steady."""

    def __init__(self, kinds, mnt, server):
        self.kinds, self.mnt, self.server = kinds, mnt, server
        self.held, self.turns = [], 0

    def grow(self):
        self.turns += 1
        for kind in self.kinds:
            getattr(self, kind)()

    def open(self):
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(self.server.docker)
        self.held.append(connection)
        return connection

    def connection(self):
        """Clients that connect and ask nothing: the server holds a descriptor for each."""
        for _ in range(2):
            self.open()

    def memory(self):
        """Requests of which the end is missing: the server holds what there is of them."""
        head = f"POST /GraphDriver.Exists HTTP/1.1\r\nHost: x\r\nContent-Length: {HELD + 1}\r\n\r\n"
        self.open().sendall(head.encode() + b" " * HELD)

    def database(self):
        """Rows that nobody asks for."""
        with sqlite3.connect(self.mnt / "store/index.db", timeout=60) as database:
            database.execute("CREATE TABLE IF NOT EXISTS leak (data BLOB)")
            database.execute("INSERT INTO leak VALUES (?)", [os.urandom(80_000)])
        database.close()

    def space(self):
        (self.mnt / f"leak{self.turns}").write_bytes(os.urandom(1_500_000))

    def subvolume(self):
        ground.sh("btrfs", "subvolume", "create", self.mnt / f"leak-subvolume{self.turns}")

    def group(self):
        ground.sh("btrfs", "qgroup", "create", f"9/{self.turns}", self.mnt)

    def mount(self):
        at = self.mnt / f"leak-mount{self.turns}"
        at.mkdir()
        ground.sh("mount", "--bind", self.mnt / "store", at)

    def close(self):
        for connection in self.held:
            connection.close()
