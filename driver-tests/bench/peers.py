"""The peers that `make bench` measures: Docker, podman and containerd, each driver with a data
root of its own on the bench's filesystem, and run state in a short directory below /run
(podman refuses a run root of more than 50 characters).

They are called by the paths of Debian's packages: another client of the same name earlier in
PATH would be measured in its place.

A peer is a context manager that has its daemon running inside the block and ended after it,
by its own process id. Methods return the whole command's run (measure.Ran).
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time

from measure import Failed, Ran


# A daemon that doesn't answer within this time has failed to start.
START_SECONDS = 60


class Peer:
    """What the rows ask of each; `archive` names the form of image that it loads."""

    archive = "docker.tar"
    program = None

    def __init__(self, driver, directory):
        self.driver = driver
        self.directory = os.path.join(directory, f"{self.program}-{driver}")
        self.name = f"{self.program} {driver}"

    def __enter__(self):
        os.makedirs(self.directory, exist_ok=True)
        self.run = tempfile.mkdtemp(prefix="rfb-", dir="/run")
        self.daemon = None
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.daemon:
            self.daemon.terminate()
            try:
                self.daemon.wait(30)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait()
        # What the daemon started may end after it, and write its last until then.
        for _ in range(50):
            shutil.rmtree(self.run, ignore_errors=True)
            if not os.path.exists(self.run):
                break
            time.sleep(0.1)

    def start(self):
        """Nothing to start, unless the peer is a daemon."""

    def spawn(self, command, ready):
        """Start COMMAND and wait until READY succeeds."""
        log_path = os.path.join(self.directory, "log")
        with open(log_path, "wb") as log:
            self.daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while self.daemon.poll() is None and time.monotonic() < end:
            # A daemon that never finishes its start may take the connection and not answer.
            with contextlib.suppress(subprocess.TimeoutExpired):
                if subprocess.run(ready, capture_output=True, check=False, timeout=5).returncode == 0:
                    return
            time.sleep(0.1)
        with open(log_path, encoding="utf-8", errors="replace") as log:
            raise Failed(f"{command[0]} didn't start: {log.read()[-400:].strip()}")


class Pulling:
    """What Docker and podman have in common once they have pulled."""

    def image_id(self, reference):
        return Ran([*self.client, "image", "inspect", "-f", "{{.Id}}", reference]).text

    def unload(self, reference):
        Ran([*self.client, "rmi", reference])


class Editable:
    """What Docker and podman have in common for the table `changes`."""

    def import_root(self, tar, image):
        return Ran([*self.client, "import", tar, f"{image}:latest"])

    def create_of(self, image, name):
        # It is never started: any command will do.
        return Ran([*self.client, "create", "--network", "none", "--name", name, f"{image}:latest", "/none"])

    def diff(self, name):
        return Ran([*self.client, "diff", name])

    def commit(self, name, image):
        return Ran([*self.client, "commit", name, image])

    def release(self, name):
        """Give back what `root_of` needed."""


class Docker(Editable, Pulling, Peer):
    program = "docker"
    # More arguments of the daemon.
    flags = ()

    def start(self):
        socket = f"unix://{self.run}/sock"
        self.client = ["/usr/bin/docker", "-H", socket]
        # No bridge and no firewall rules: nothing here has a network.
        self.spawn(["/usr/sbin/dockerd", "--data-root", f"{self.directory}/data", "--exec-root", f"{self.run}/exec",
                    "--pidfile", f"{self.run}/pid", "-H", socket, "--storage-driver", self.driver,
                    "--iptables=false", "--ip-masq=false", "--bridge=none", *self.flags], [*self.client, "info"])

    def load(self, archive):
        return Ran([*self.client, "load", "-q", "-i", archive])

    def pull(self, reference):
        # On loopback it asks without TLS by itself.
        return Ran([*self.client, "pull", "-q", reference])

    def create(self, name):
        return Ran([*self.client, "create", "--network", "none", "--name", name, "bench:latest"])

    def remove(self, name):
        return Ran([*self.client, "rm", name])

    def sizes(self, _name):
        return Ran([*self.client, "ps", "-as"])

    def root_of(self, name):
        """Where the btrfs driver has the container's tree, running or not."""
        container = Ran([*self.client, "inspect", "-f", "{{.Id}}", name]).text
        data = f"{self.directory}/data"
        with open(f"{data}/image/{self.driver}/layerdb/mounts/{container}/mount-id", encoding="ascii") as file:
            return f"{data}/{self.driver}/subvolumes/{file.read()}"


class Podman(Editable, Pulling, Peer):
    program = "podman"
    archive = "oci.tar"

    def start(self):
        self.client = ["/usr/bin/podman", "--root", f"{self.directory}/root", "--runroot", f"{self.run}/run", "--tmpdir",
                       f"{self.run}/tmp", "--storage-driver", self.driver, "--cgroup-manager=cgroupfs",
                       "--events-backend=none"]

    def load(self, archive):
        return Ran([*self.client, "load", "-q", "-i", archive])

    def pull(self, reference):
        return Ran([*self.client, "pull", "-q", "--tls-verify=false", reference])

    def create(self, name):
        return Ran([*self.client, "create", "--network", "none", "--name", name, "docker.io/library/bench:latest"])

    def remove(self, name):
        return Ran([*self.client, "rm", name])

    def sizes(self, _name):
        return Ran([*self.client, "ps", "-as"])

    def root_of(self, name):
        return Ran([*self.client, "mount", name]).text

    def release(self, name):
        Ran([*self.client, "umount", "--force", name])


class Containerd(Peer):
    """Its snapshotter alone: prepare and rm of a snapshot, without a container's record."""

    program = "containerd"
    archive = "oci.tar"

    def start(self):
        config = f"{self.run}/config.toml"
        with open(config, "w", encoding="utf-8") as file:
            file.write(f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.run}/state"\n'
                       'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                       f'[grpc]\naddress = "{self.run}/sock"\n')
        self.client = ["/usr/bin/ctr", "--address", f"{self.run}/sock"]
        self.spawn(["/usr/bin/containerd", "--config", config], [*self.client, "version"])

    def snapshots(self, *arguments):
        return Ran([*self.client, "snapshots", "--snapshotter", self.driver, *arguments])

    def load(self, archive):
        ran = Ran([*self.client, "images", "import", "--snapshotter", self.driver, archive])
        # The image's top layer: the committed snapshot that is nobody's parent.
        rows = [line.split() for line in self.snapshots("ls").text.splitlines()[1:]]
        parents = {row[1] for row in rows if len(row) == 3}
        tops = [row[0] for row in rows if row[-1] == "Committed" and row[0] not in parents]
        if len(tops) != 1:
            raise Failed(f"ctr snapshots ls: expected one top layer, found {tops}")
        self.top = tops[0]
        return ran

    def create(self, name):
        return self.snapshots("prepare", name, self.top)

    def remove(self, name):
        return self.snapshots("rm", name)

    def sizes(self, name):
        return self.snapshots("usage", name)


def xfs_peers(directory):
    """Where layers are directories: overlay, and podman's vfs, which clones each file of a layer."""
    return [Docker("overlay2", directory), Podman("overlay", directory), Podman("vfs", directory)]


def changes_peers(kind, directory):
    """Those whose containers' trees can be changed without running anything in them."""
    btrfs = [Docker("btrfs", directory), Podman("btrfs", directory)] if kind == "btrfs" else []
    return [*btrfs, Podman("overlay", directory)]


def all_peers(directory):
    return [Docker("btrfs", directory), Docker("overlay2", directory), Podman("btrfs", directory),
            Podman("overlay", directory), Containerd("btrfs", directory), Containerd("overlayfs", directory)]
