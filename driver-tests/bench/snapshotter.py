"""A containerd with one snapshotter, for `make bench-containerd`: its own, or `reflinkd serve` with its differ.

It is asked by a client that stays connected to containerd's socket, so that every snapshotter is reached in the same way and no
start of a process is in a time. `ctr` is used where the whole command is what is measured.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import measure
from measure import Failed, Ran

sys.path[1:1] = [str(Path(__file__).resolve().parent.parent / name) for name in ("containerd", "docker")]
import host  # noqa: E402
import services  # noqa: E402

IMAGE = "docker.io/library/bench:latest"
# CRI would ask its own snapshots' usage in between.
NO_CRI = "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']\n"


class Ground:
    """The filesystem as the containerd test's classes take it."""

    def __init__(self, filesystem):
        self.mnt, self.quotas, self.kind = Path(filesystem.mount), filesystem.quotas, filesystem.kind


class Snapshotter:
    """A containerd on FILESYSTEM whose snapshotter is NAME; PROGRAMS is where containerd is unpacked."""

    def __init__(self, name, programs, client, filesystem, binary, logs):
        self.name, self.programs, self.client_program, self.binary = name, programs, client, binary
        self.ground, self.logs = Ground(filesystem), Path(logs)
        self.server = self.ctr = self.client = None

    def __enter__(self):
        self.run = Path(tempfile.mkdtemp(prefix="rfb-", dir="/run"))
        try:
            self.start()
        except BaseException as error:
            self.__exit__()
            if isinstance(error, host.Failed):
                raise Failed(str(error)) from error
            raise
        return self

    def start(self):
        log = self.logs / f"containerd-{self.name}.log"
        log.unlink(missing_ok=True)
        self.ctr = services.Containerd("2", self.programs, self.name, self.ground.mnt / self.name, self.run, log)
        if self.name == "reflinkd":
            served = self.logs / "containerd-serve.log"
            served.unlink(missing_ok=True)
            self.server = services.Server(self.binary, self.ground, self.run, served, self.ctr.socket)
            self.server.__enter__()
        self.ctr.configure(self.server)
        text = self.ctr.config.read_text()
        self.ctr.config.write_text(text.replace("version = 3\n", NO_CRI, 1))
        self.ctr.start()
        self.client = subprocess.Popen([self.client_program, self.ctr.socket, self.name], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True)

    def __exit__(self, *_):
        if self.client:
            self.client.stdin.close()
            host.end(self.client)
        services.unmounted_below(self.mounts)
        if self.ctr:
            self.ctr.__exit__()
        if self.server:
            self.server.__exit__()
        shutil.rmtree(self.run, ignore_errors=True)

    @property
    def mounts(self):
        return self.ground.mnt / f"mounts-{self.name}"

    def ask(self, do, **fields):
        """What the client answers."""
        late = threading.Timer(measure.LONGEST, self.client.kill)
        late.start()
        try:
            print(json.dumps({"do": do, **fields}), file=self.client.stdin, flush=True)
            line = self.client.stdout.readline()
        finally:
            late.cancel()
        answer = json.loads(line or '{"error": "the client has ended"}')
        if answer.get("error"):
            raise Failed(f"{do} {fields}: {answer['error']}")
        return answer

    def command(self, *arguments):
        return Ran([str(self.programs / "usr/bin/ctr"), "--address", str(self.ctr.socket), *arguments])

    def load(self, archive):
        return self.command("images", "import", "--snapshotter", self.name, archive)

    def unload(self):
        """Remove the image, until containerd's collector has taken its layers."""
        return self.command("images", "rm", "--sync", IMAGE)

    def top(self):
        """The snapshot of the image's last layer: the committed one that is nobody's parent."""
        rows = [line.split() for line in self.command("snapshots", "--snapshotter", self.name, "ls").text.splitlines()[1:]]
        parents = {row[1] for row in rows if len(row) == 3}
        tops = [row[0] for row in rows if row[-1] == "Committed" and row[0] not in parents]
        if len(tops) != 1:
            raise Failed(f"ctr snapshots ls: expected one top layer, found {tops}")
        return tops[0]

    def made(self, key, parent):
        """A container's snapshot, mounted as containerd says: where."""
        at = self.mounts / key
        at.mkdir(parents=True)
        for mount in self.ask("prepare", key=key, parent=parent)["mounts"]:
            options = ",".join(mount.get("options", []))
            Ran(["mount", "-t", mount["type"], mount["source"], str(at), *(["-o", options] if options else [])])
        return str(at)

    def unmade(self, key):
        Ran(["umount", str(self.mounts / key)])
        (self.mounts / key).rmdir()
        self.ask("remove", key=key)

    def cpu_ms(self):
        """What the snapshotter's process has used so far, and it and containerd together."""
        own = cpu_ms(self.ctr.process.pid)
        served = cpu_ms(self.server.process.pid) if self.server else own
        return served, own + served if self.server else own


def cpu_ms(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return ticks(file.read()) * 1000 / os.sysconf("SC_CLK_TCK")


def ticks(stat):
    """User and system time in a line of /proc/PID/stat. The name, in brackets, may have anything in it."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
