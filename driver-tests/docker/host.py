"""What the lane stands on: a filesystem on a loop device, the plugin, and a dockerd with a client that speaks to it.

Each is a context manager that takes away what it made, also when the lane fails. Processes are ended by their own ids;
what dockerd leaves (containerd, shims) is known by the run directory in its arguments.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

# A daemon that doesn't answer within this time has failed to start.
START_SECONDS = 60
# The longest that a filesystem may take to give back what was removed.
SETTLE_SECONDS = 60
# Ids of a container's root with --userns-remap, and how many there are.
REMAP_USER, REMAP_FIRST, REMAP_COUNT = "rfdremap", 231000, 65536


class Failed(Exception):
    """What was expected, and what came instead."""


def expect(found, wanted, what):
    if found != wanted:
        raise Failed(f"{what}:\n  found    {found!r}\n  expected {wanted!r}")


def sh(*command, **options):
    """Run a command that has to succeed; its output as text."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def tail(path, lines=25):
    if not path.exists():
        return f"(there is no {path})"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def end(process, kind=signal.SIGTERM):
    """End a process that we started, and wait for it."""
    if process.poll() is None:
        process.send_signal(kind)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Filesystem:
    """A Btrfs or an XFS of 6 GiB. Of Btrfs's `quotas` there are `simple` and `full`, of XFS's `prjquota` or none."""

    def __init__(self, kind, work, quotas=None):
        self.kind, self.disk, self.mnt = kind, work / "disk", work / "mnt"
        self.quotas = quotas or ("simple" if kind == "btrfs" else None)

    def __enter__(self):
        self.mnt.mkdir(parents=True, exist_ok=True)
        # A lane that was killed may have left one.
        self.__exit__()
        with open(self.disk, "wb") as disk:
            disk.truncate(6 << 30)
        sh(f"mkfs.{self.kind}", "-q", self.disk)
        sh("mount", "-o", "loop,prjquota" if self.quotas == "prjquota" else "loop", self.disk, self.mnt)
        return self

    def __exit__(self, *_):
        done = time.monotonic() + START_SECONDS
        while os.path.ismount(self.mnt) and time.monotonic() < done:
            with open("/proc/mounts", encoding="utf-8") as mounts:
                below = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{self.mnt}/")]
            for path in [*reversed(below), str(self.mnt)]:
                subprocess.run(["umount", path], capture_output=True, check=False)
            if os.path.ismount(self.mnt):
                time.sleep(0.2)
        self.disk.unlink(missing_ok=True)

    def used(self):
        """Bytes in use, all that was written being on disk, and what was removed being taken apart."""
        sh("sync", "-f", self.mnt)
        if self.kind == "btrfs":
            # This, unlike sync, also wakes the cleaner.
            sh("btrfs", "filesystem", "sync", self.mnt)
            sh("btrfs", "subvolume", "sync", "-s", "1", self.mnt)
            sh("sync", "-f", self.mnt)
        found = os.statvfs(self.mnt)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def steady(self):
        """Bytes in use when they don't change any more: a driver may remove in the background."""
        before, now = -1, self.used()
        while now != before:
            time.sleep(0.5)
            before, now = now, self.used()
        return now

    def settles(self, at_most, what):
        """Wait until no more than so many bytes are in use; how many are."""
        done = time.monotonic() + SETTLE_SECONDS
        while (now := self.used()) > at_most:
            if time.monotonic() > done:
                raise Failed(f"{what}: {now} bytes in use, expected at most {at_most}")
            time.sleep(0.3)
        return now


class Plugin:
    """`reflinkd serve` on a store of its own."""

    def __init__(self, binary, fs, name, run, log):
        self.binary, self.fs, self.root = binary, fs, fs.mnt / name
        self.socket, self.log = run / f"{name}.sock", log
        self.process = None

    def __enter__(self):
        self.reflinkd("init")
        if self.fs.kind == "btrfs":
            self.reflinkd("quota", "enable", f"--{self.fs.quotas}", "--yes")
        self.start()
        return self

    def __exit__(self, *_):
        if self.process:
            end(self.process)

    def reflinkd(self, *arguments):
        return sh(self.binary, "--root", self.root, *arguments)

    def command(self):
        """The one place that knows the flags of `serve`."""
        return [self.binary, "--root", self.root, "serve", "--docker", self.socket]

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(word) for word in self.command()], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, start_new_session=True)
        done = time.monotonic() + START_SECONDS
        while time.monotonic() < done and self.process.poll() is None:
            with contextlib.suppress(OSError):
                if b"GraphDriver" in self.activate():
                    return
            time.sleep(0.1)
        raise Failed(f"the plugin doesn't answer at {self.socket}")

    def activate(self):
        """The first thing that dockerd asks of a plugin."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
            connection.sendall(b"POST /Plugin.Activate HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n"
                               b"Connection: close\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(4096), b""))

    def kill(self):
        end(self.process, signal.SIGKILL)


class Dockerd:
    """A dockerd of one version, in a mount namespace of its own.

    There, `/etc/docker` is a directory of the lane's, so that no specification of a plugin and no key stays on this
    machine, and the account of --userns-remap exists. For a version that isn't installed, `/usr` is that of its
    unpacked packages: dockerd finds containerd, runc and their libraries where it always does.
    """

    def __init__(self, peer, driver, data, run, log, plugin=None, options=(), remap=False):
        self.peer, self.driver, self.data, self.run, self.log = peer, driver, data, run, log
        self.options, self.remap = list(options), remap
        self.program = ["/usr/sbin/dockerd"]
        self.address = f"unix://{run}/docker.sock"
        self.etc = run / "etc"
        self.process = None
        (self.etc / "docker/plugins").mkdir(parents=True)
        Path("/etc/docker").mkdir(exist_ok=True)
        if plugin:
            (self.etc / f"docker/plugins/{driver}.spec").write_text(f"unix://{plugin.socket}\n")
            self.options += ["--experimental"]
        self.binds = [(self.etc / "docker", "/etc/docker")]
        # Docker keeps a root of its own for each mapping.
        self.home = data / f"{REMAP_FIRST}.{REMAP_FIRST}" if remap else data
        if remap:
            self.add_account()

    def add_account(self):
        ids = f"{REMAP_USER}:{REMAP_FIRST}:{REMAP_COUNT}\n"
        more = {
            "passwd": f"{REMAP_USER}:x:{REMAP_FIRST}:{REMAP_FIRST}::/:/usr/sbin/nologin\n",
            "group": f"{REMAP_USER}:x:{REMAP_FIRST}:\n",
            "subuid": ids,
            "subgid": ids,
        }
        for name, line in more.items():
            before = Path("/etc", name)
            before.touch()
            (self.etc / name).write_text(before.read_text() + line)
            self.binds.append((self.etc / name, f"/etc/{name}"))
        self.options += [f"--userns-remap={REMAP_USER}"]

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self.end_what_is_left()

    def start(self, *more):
        # /usr comes last: mount itself is in it.
        binds = [*self.binds, *([(self.peer.root / "usr", "/usr")] if self.peer.root else [])]
        script = "while [ $1 != -- ]; do mount --bind $1 $2; shift 2; done; shift; exec \"$@\""
        command = [
            "unshare", "--mount", "--propagation", "slave", "--", "/bin/sh", "-ec", script, "sh",
            *[path for bind in binds for path in bind], "--",
            *self.program, "--data-root", self.data, "--exec-root", self.run / "exec", "-p", self.run / "pid",
            "-H", self.address, "--storage-driver", self.driver, "--iptables=false", "--ip6tables=false",
            "--bridge=none", "--ip-masq=false", "--shutdown-timeout=1", *self.options, *more,
        ]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        done = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < done:
            if self.client("version").returncode == 0:
                return
            time.sleep(0.1)
        raise Failed(f"dockerd doesn't answer at {self.address}")

    def stop(self):
        if self.process:
            end(self.process)

    def restart(self, *more):
        self.stop()
        self.start(*more)

    def end_what_is_left(self):
        """containerd, shims and the containers below these outlive a dockerd that was killed."""
        marker, ours, parents = str(self.run).encode(), set(), {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                program = (entry / "comm").read_text()
                if program.startswith("containerd") and marker in (entry / "cmdline").read_bytes():
                    ours.add(int(entry.name))
                # The name, in brackets, may have anything in it.
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        for process in [*(process for process, parent in parents.items() if parent in ours - {1}), *ours]:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def client(self, *arguments, **options):
        """Run the version's own client; the completed process."""
        environment = {**os.environ, "DOCKER_CONFIG": str(self.etc / "client"), "DOCKER_BUILDKIT": "0", "LC_ALL": "C"}
        command = [*self.peer.client, "-H", self.address, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, env=environment, check=False, **options)

    def bytes(self, *arguments, **options):
        done = self.client(*arguments, **options)
        if done.returncode:
            raise Failed(f"docker {' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout

    def __call__(self, *arguments, **options):
        """Run a command that has to succeed; what it printed."""
        return self.bytes(*arguments, **options).decode(errors="replace").strip()

    def fails(self, *arguments, saying):
        """Run a command that has to fail, saying these words."""
        done = self.client(*arguments)
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if done.returncode == 0:
            raise Failed(f"docker {' '.join(map(str, arguments))}: succeeded, expected an error with {saying!r}")
        if not any(word.lower() in said.lower() for word in saying):
            raise Failed(f"docker {' '.join(map(str, arguments))}: expected an error with {saying!r}, found: {said}")
        return said

    def root_of(self, container):
        """A running container's root, as its processes see it and this machine's ids show it."""
        return Path("/proc", self("inspect", "-f", "{{.State.Pid}}", container), "root")


def fresh(directory):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory
