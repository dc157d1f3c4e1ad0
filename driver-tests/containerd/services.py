"""What the steps stand on: a ground, the server under test, and a containerd with a client that speaks to it."""

import os
import socket
import subprocess
import time

import host
from host import Failed

# Filesystem and quotas by the name of a ground.
GROUNDS = {"simple": ("btrfs", "simple"), "full": ("btrfs", "full"), "none": ("btrfs", "none"), "xfs": ("xfs", None)}
# The longest that one command of a client may take.
PATIENCE = 120


def ground(name, work):
    kind, quotas = GROUNDS[name]
    return host.Filesystem(kind, work, quotas)


class Server(host.Plugin):
    """`reflinkd serve --containerd` on a store of its own."""

    def __init__(self, binary, fs, run, log, containerd_socket):
        super().__init__(binary, fs, "store", run, log)
        self.containerd_socket = containerd_socket

    def __enter__(self):
        self.reflinkd("init")
        if self.fs.quotas in ("simple", "full"):
            self.reflinkd("quota", "enable", f"--{self.fs.quotas}", "--yes")
        self.start()
        return self

    def command(self):
        config = self.socket.with_name("reflinkd.toml")
        config.write_text("[containerd.default]\nremap_ids = true\nreuse = [\"cli\"]\n")
        return [self.binary, "--root", self.root, "--config", config, "serve", f"--containerd={self.socket}",
                f"--containerd-address={self.containerd_socket}"]

    def activate(self):
        """It listens: what it answers, the conformance suite asks."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(self.socket))
        return b"GraphDriver"


# The differ alone where there is one: behind it, another would hide its mistakes.
WITH_SERVER = """
[proxy_plugins.reflinkd]
  type = "snapshot"
  address = "{server}"
"""
MAPS_IDS = """  capabilities = ["remap-ids"]
"""
WITH_DIFFER = """  [proxy_plugins.reflinkd.exports]
    root = "{store}"
[proxy_plugins.reflinkd-diff]
  type = "diff"
  address = "{server}"
[plugins.'io.containerd.service.v1.diff-service']
  default = ["reflinkd-diff"]
"""
BEFORE_2 = """version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  stats_collect_period = 1
  sandbox_image = "{pause}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
"""
CONFIG = {"1.6": BEFORE_2 + "    disable_snapshot_annotations = true\n", "1.7": BEFORE_2, "2": """version = 3
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "{snapshotter}"
  stats_collect_period = 1
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
  platform = "linux/amd64"
  snapshotter = "{snapshotter}"
  differ = "{differ}"
"""}
PAUSE = "docker.io/local/pause:1"


class Containerd:
    """A containerd of one version with one snapshotter: `reflinkd`, or one of its own."""

    # What a command needs before it to run where this one does.
    within = ()

    def __init__(self, version, programs, snapshotter, root, run, log):
        self.version, self.snapshotter, self.root, self.run, self.log = version, snapshotter, root, run, log
        self.bin = programs / "usr/bin"
        self.socket, self.config = run / "containerd.sock", run / "containerd.toml"
        self.differ, self.maps_ids = "walking", False
        self.process = None

    def configure(self, server=None):
        if server and self.version != "1.6":
            self.differ = "reflinkd-diff"
            # 1.7 knows the capability, and mounts what it asked for without mapping anything.
            self.maps_ids = self.version != "1.7"
        text = CONFIG[self.version]
        if server:
            text += WITH_SERVER + (MAPS_IDS if self.maps_ids else "") + (WITH_DIFFER if self.differ != "walking" else "")
        self.config.write_text(text.format(
            root=self.root, state=self.run / "state", socket=self.socket, snapshotter=self.snapshotter, differ=self.differ,
            server=server and server.socket, store=server and server.root, pause=PAUSE))
        return self

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()
        self.end_what_is_left()

    # It outlives a containerd that was killed, as it does one of dockerd's.
    end_what_is_left = host.Dockerd.end_what_is_left

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*self.within, str(self.bin / "containerd"), "--config", str(self.config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"})
        done = time.monotonic() + host.START_SECONDS
        while self.process.poll() is None and time.monotonic() < done:
            if self.client("version").returncode == 0:
                return
            time.sleep(0.1)
        raise Failed(f"containerd doesn't answer at {self.socket}: {host.tail(self.log, 5)}")

    def stop(self):
        if self.process:
            host.end(self.process)

    def client(self, *arguments, namespace="default", **options):
        """Run `ctr`; the completed process."""
        environment = {**os.environ, "CONTAINERD_ADDRESS": str(self.socket), "CONTAINERD_NAMESPACE": namespace,
                       "CONTAINERD_SNAPSHOTTER": self.snapshotter, "LC_ALL": "C"}
        return subprocess.run([*self.within, str(self.bin / "ctr"), *map(str, arguments)], capture_output=True, env=environment, check=False,
                              timeout=PATIENCE, stdin=subprocess.DEVNULL, **options)

    def bytes(self, *arguments, **options):
        done = self.client(*arguments, **options)
        if done.returncode:
            raise Failed(f"ctr {' '.join(map(str, arguments))}: {done.stderr.decode(errors='replace').strip()[-600:]}")
        return done.stdout

    def __call__(self, *arguments, **options):
        """Run a command that has to succeed; what it printed."""
        return self.bytes(*arguments, **options).decode(errors="replace").strip()


class Mounted:
    """What a snapshot's mounts give, below a directory of ours; the root, in a `with`."""

    def __init__(self, ctr, at, key, namespace="default"):
        self.ctr, self.at, self.key, self.namespace = ctr, at, key, namespace

    def __enter__(self):
        self.at.mkdir(parents=True, exist_ok=True)
        host.sh("sh", "-ec", self.ctr("snapshots", "mounts", self.at, self.key, namespace=self.namespace))
        return self.at

    def __exit__(self, *_):
        subprocess.run(["umount", self.at], capture_output=True, check=True)
        self.at.rmdir()


def unmounted_below(*directories):
    """Take away the mounts below these, the innermost first."""
    with open("/proc/mounts", encoding="utf-8") as mounts:
        paths = [line.split()[1] for line in mounts]
    for path in reversed(paths):
        if any(path.startswith(f"{directory}/") for directory in directories):
            subprocess.run(["umount", path], capture_output=True, check=False)
