"""The DaemonSet of packaging/kubernetes on a node: its image as `make image` builds it, its manifest's fields as a kubelet gives
them to CRI, a real containerd configured as docs/kubernetes.md says, and pods of the runtime class on what it provides.

A node is a mount namespace whose mounts are shared, as systemd makes them, with a /run, /etc and /var/lib of its own: what the
manifest names as the host's is there, and not this machine's.
"""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import yaml

import clients
import host
import images
import left
import pods
import services
from host import Failed, expect, sh

TOP = Path(__file__).resolve().parent.parent.parent
MANIFEST = TOP / "packaging/kubernetes/daemonset.yaml"
GUIDE = TOP / "docs/kubernetes.md"
# Where the store goes into a Btrfs that is there, and where into a pool.
GROUNDS = {"simple": ("btrfs", "simple"), "ext4": ("ext4", None)}
CONFIG = """version = 3
root = "{root}"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "overlayfs"
  stats_collect_period = 1
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = "{pause}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
"""
PROPAGATION = {None: "PROPAGATION_PRIVATE", "HostToContainer": "PROPAGATION_HOST_TO_CONTAINER",
               "Bidirectional": "PROPAGATION_BIDIRECTIONAL"}
# Nothing that takes as long comes at all.
PATIENCE = 120


def built(options):
    """`make image`: its archive."""
    sh(TOP / "driver-tests/tools/image.sh")
    return options.work.parent / "image/reflinkd.tar"


def encoded(value):
    """CRI's values of variables are bytes, which JSON has no form of its own for."""
    return base64.b64encode(value.encode()).decode()


def waited(what, found):
    """What FOUND gives, once it gives something."""
    done = time.monotonic() + PATIENCE
    while not (value := found()):
        if time.monotonic() > done:
            raise Failed(f"{what}: not within {PATIENCE} s")
        time.sleep(0.2)
    return value


class Node:
    """The mount namespace; `within` is what a command needs before it to run there."""

    def __init__(self, fs, work):
        self.fs, self.work, self.holder = fs, work, None

    def __enter__(self):
        script = ("mount --make-rshared / && mount -t tmpfs node \"$2\" && cd \"$2\" && mkdir etc etc-work lib && "
                  "mount -t overlay -o lowerdir=/etc,upperdir=$PWD/etc,workdir=$PWD/etc-work node /etc && "
                  "mount --bind lib /var/lib && mkdir /var/lib/reflinkd && mount --bind \"$1\" /var/lib/reflinkd && "
                  "mount -t tmpfs node /run && mkdir /run/containerd && echo ready && exec cat")
        command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-ec", script, "sh", self.fs.mnt,
                   host.fresh(self.work / "node")]
        # It lives as long as somebody could write to it.
        self.holder = subprocess.Popen([str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.holder.stdout.readline() != "ready\n":
            raise Failed("there is no mount namespace like a node's")
        self.within = ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--"]
        return self

    def __exit__(self, *_):
        for process in self.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)
        waited("the end of the node's processes", lambda: not self.processes())
        self.holder.kill()
        self.holder.communicate()
        shutil.rmtree(self.work / "node", ignore_errors=True)

    def processes(self):
        """Those in the namespace and below them, which are containers, but for the one that holds it."""
        ours, parents = set(), {}
        namespace = os.readlink(f"/proc/{self.holder.pid}/ns/mnt")
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if os.readlink(entry / "ns/mnt") == namespace:
                    ours.add(int(entry.name))
        ours.discard(self.holder.pid)
        while below := {process for process, parent in parents.items() if parent in ours} - ours:
            ours |= below
        return ours

    def path(self, path):
        """What has this path there, seen from here."""
        return Path(f"/proc/{self.holder.pid}/root{path}")

    def mounts(self, below):
        with open(f"/proc/{self.holder.pid}/mounts", encoding="utf-8") as mounts:
            rows = [line.split()[:3] for line in mounts]
        return [row for row in rows if row[1].startswith(f"{below}/")]


class Containerd(services.Containerd):
    """The node's own, with two snapshotters: overlayfs for all but the pods of the class."""

    def __init__(self, programs, node, root, log):
        super().__init__("2", programs, "reflinkd", root, Path("/run/containerd"), log)
        self.within, self.differ = node.within, "reflinkd-diff"
        self.config = node.work / "containerd.toml"
        block = re.search(r"^## Pods of a runtime class\n.*?^```toml\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
        self.config.write_text(CONFIG.format(root=root, pause=services.PAUSE) + block.group(1))

    # The node ends what is left.
    def end_what_is_left(self):
        pass


class DaemonSet:
    """Its pod on the node, and what the checks of a store want to know of it."""

    def __init__(self, node, root):
        parts = list(yaml.safe_load_all(MANIFEST.read_text()))
        self.spec = next(part for part in parts if part["kind"] == "DaemonSet")["spec"]["template"]["spec"]
        self.handler = next(part for part in parts if part["kind"] == "RuntimeClass")["handler"]
        self.node, self.fs, self.root = node, node.fs, root
        self.lane, self.pod, self.container, self.count = None, None, None, 0

    def start(self):
        """As a kubelet does: the sandbox and its init containers if there is none, and the container until it is ready."""
        if not self.pod:
            self.begin()
        [spec] = self.spec["containers"]
        self.container = self.created(spec)
        waited(f"readiness of {spec['name']}", lambda: self.probed(spec["readinessProbe"]))
        expect(self.probed(spec["livenessProbe"]), True, "the probe of its life")

    def begin(self):
        self.count += 1
        for volume in self.spec["volumes"]:
            path, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
            if kind == "DirectoryOrCreate":
                sh(*self.node.within, "mkdir", "-p", path)
            expect(self.node.path(path).is_dir(), True, f"whether the node has {path}")
        self.pod = pods.ask(self.lane, "RunPodSandbox", config=self.sandbox())["podSandboxId"]
        for spec in self.spec["initContainers"]:
            container = self.created(spec)
            done = waited(f"the end of {spec['name']}", lambda: self.status(container, "CONTAINER_EXITED"))
            expect(done.get("exitCode", 0), 0, f"the status of {spec['name']}, which said {self.said(spec)}")
            pods.ask(self.lane, "RemoveContainer", container_id=container)

    def kill(self):
        """No time to end in; the pod stays."""
        pods.ask(self.lane, "StopContainer", container_id=self.container, timeout=0)
        pods.ask(self.lane, "RemoveContainer", container_id=self.container)

    def stop(self):
        """With its pod."""
        pods.ask(self.lane, "StopContainer", container_id=self.container, timeout=self.spec["terminationGracePeriodSeconds"])
        expect(self.status(self.container, "CONTAINER_EXITED").get("exitCode", 0), 0, "the exit status of the server")
        pods.ask(self.lane, "RemoveContainer", container_id=self.container)
        pods.gone(self.lane, self.pod)
        self.pod = None

    def sandbox(self):
        name = f"reflinkd-{self.count}"
        linux = {"security_context": {"privileged": True, "namespace_options": self.namespaces()}}
        return {"metadata": {"name": name, "uid": name, "namespace": "kube-system"}, "log_directory": str(pods.logs(self.lane)), "linux": linux}

    def namespaces(self):
        node = {"pid": self.spec.get("hostPID"), "network": self.spec.get("hostNetwork"), "ipc": self.spec.get("hostIPC")}
        # A container has processes of its own where the pod's aren't the node's.
        return {name: "NODE" if of_node else "CONTAINER" if name == "pid" else "POD" for name, of_node in node.items()}

    def created(self, spec):
        volumes = {volume["name"]: volume["hostPath"]["path"] for volume in self.spec["volumes"]}
        mounts = [{"container_path": mount["mountPath"], "host_path": volumes[mount["name"]], "readonly": mount.get("readOnly", False),
                   "propagation": PROPAGATION[mount.get("mountPropagation")]} for mount in spec["volumeMounts"]]
        message = self.lane.work / "termination-log"
        message.touch()
        mounts.append({"container_path": spec["terminationMessagePath"], "host_path": str(message)})
        security = {"privileged": spec["securityContext"]["privileged"], "namespace_options": self.namespaces(),
                    "seccomp": {"profile_type": "Unconfined"}}
        container = pods.ask(self.lane, "CreateContainer", pod_sandbox_id=self.pod, sandbox_config=self.sandbox(), config={
            "metadata": {"name": spec["name"]}, "image": {"image": spec["image"]}, "command": spec.get("command", []),
            "args": spec.get("args", []), "envs": [{"key": row["name"], "value": encoded(row["value"])} for row in spec.get("env", [])],
            "mounts": mounts, "log_path": f"{spec['name']}.log", "linux": {"security_context": security}})["containerId"]
        pods.ask(self.lane, "StartContainer", container_id=container)
        return container

    def status(self, container, wanted):
        """A container's status, if it is in that state."""
        status = pods.ask(self.lane, "ContainerStatus", container_id=container)["status"]
        return status if status["state"] == wanted else None

    def probed(self, probe):
        if not self.status(self.container, "CONTAINER_RUNNING"):
            raise Failed(f"the server has ended: {self.said(self.spec['containers'][0])}")
        reply = pods.ask(self.lane, "ExecSync", container_id=self.container, cmd=probe["exec"]["command"], timeout=probe["timeoutSeconds"])
        return reply.get("exitCode", 0) == 0

    def said(self, spec):
        return host.tail(pods.logs(self.lane) / f"{spec['name']}.log", 5)

    def reflinkd(self, *words):
        """As `kubectl exec` would have it."""
        return pods.exec_(self.lane, self.container, "/usr/bin/reflinkd", *words)


# -- the steps

def deploy(lane):
    """Nothing of reflinkd is on the node before."""
    pause = lane.work / "pause.tar"
    images.archive(pause, services.PAUSE, pods.PAUSE_LAYERS, ["/bin/sleep", "1000000"])
    for archive in (pause, lane.archive):
        lane.ctr("images", "import", "--snapshotter", "overlayfs", archive, namespace=pods.NAMESPACE)
    lane.server.lane = lane
    lane.server.start()
    if lane.fs.quotas:
        lane.server.reflinkd("quota", "enable", f"--{lane.fs.quotas}", "--yes")
    [info] = json.loads(lane.server.reflinkd("info", "--format", "json"))
    pool = lane.fs.kind == "ext4"
    # Mounted in a container, and seen on the node.
    found = [row[1:] for row in lane.node.mounts("/var/lib/reflinkd")]
    expect(found, [["/var/lib/reflinkd/store", "btrfs"]] if pool else [], "the node's mounts below /var/lib/reflinkd")
    expect((lane.fs.mnt / "store.pool").exists(), pool, "whether the node's disk has the file of a pool")
    return f"ready; {'a pool' if pool else 'in place'} of {info['filesystem']}, seen by the node"


def usage(lane):
    """What a container wrote. CRI says 0 of it: containerd 2.1 counts for CRI what its default snapshotter has, and no other, be
    that one of its own."""
    of_pod, container = pods.started(lane, "three")
    pods.said(lane, container, "dd if=/dev/urandom of=/srv/data bs=1000000 count=30 2>/dev/null; sync")
    rows = [line.split() for line in lane.ctr("snapshots", "usage", "-b", container, namespace=pods.NAMESPACE).splitlines()]
    size = int(rows[1][-2])
    expect(30_000_000 <= size < 31_000_000, True, f"whether 30,000,000 bytes that were written are seen: {size}")
    pods.gone(lane, of_pod)
    return f"{size} bytes after 30,000,000 were written"


def update(lane):
    """Another pod of the DaemonSet in the place of one: those of the class run on, and new ones come after."""
    first_pod, first = pods.started(lane, "first")
    pods.said(lane, first, "echo before >/srv/file")
    lane.server.stop()
    pods.said(lane, first, "echo between >>/srv/file")
    try:
        pods.started(lane, "between")
    except Failed as refused:
        expect("/run/reflinkd/containerd.sock" in str(refused), True, f"whether it is said who doesn't answer: {refused}")
    else:
        raise Failed("a pod of the class was made with nobody to make its snapshots")
    forgotten(lane, "between")
    lane.server.start()
    clients.answers(lane)
    expect(pods.said(lane, first, "cat /srv/file"), "before\nbetween", "what a pod has that ran on")
    second_pod, second = after_a_while(lane, "second")
    expect(pods.said(lane, second, "cat /etc/motd"), "welcome", "what a new pod reads")
    pods.gone(lane, second_pod)
    # What had been mounted before this server came.
    pods.gone(lane, first_pod)
    return "a pod ran on, none was made meanwhile, one was after"


def after_a_while(lane, name):
    """Start a pod as a kubelet does, again and again: for some seconds containerd doesn't try whom it couldn't reach before."""
    until = time.monotonic() + services.PATIENCE
    while True:
        try:
            return pods.started(lane, name)
        except Failed as refused:
            if "/run/reflinkd/containerd.sock" not in str(refused) or time.monotonic() > until:
                raise
        forgotten(lane, name)
        time.sleep(0.5)


def forgotten(lane, name):
    """Take away what is left of a pod that couldn't be started."""
    for row in pods.ask(lane, "ListPodSandbox").get("items", []):
        if row["metadata"]["name"] == name:
            pods.gone(lane, row["id"])


def images_gone(lane):
    """The class's; that of the DaemonSet is in use."""
    for name in (clients.BASE, clients.ALL, services.PAUSE):
        pods.ask(lane, "RemoveImage", image={"image": name})
    waited("an end of the class's snapshots", lambda: not clients.names(lane, pods.NAMESPACE))
    return "no snapshots"


def removed(lane):
    """As the guide says."""
    lane.server.stop()
    expect(lane.node.path("/run/reflinkd/containerd.sock").exists(), False, "whether its socket is left")
    if lane.fs.kind == "ext4":
        sh(*lane.node.within, "umount", "/var/lib/reflinkd/store")
        pool = (lane.fs.mnt / "store.pool").stat()
        device = f"{os.major(pool.st_dev)}:{os.minor(pool.st_dev)}"
        loops = ["losetup", "--list", "--noheadings", "--raw", "--output", "BACK-MAJ:MIN,BACK-INO"]
        waited("the end of the pool's loop device", lambda: f"{device} {pool.st_ino}" not in sh(*loops).splitlines())
    expect(lane.node.mounts("/var/lib/reflinkd"), [], "mounts that are left")
    pods.ask(lane, "RemoveImage", image={"image": "reflinkd:latest"})
    expect(lane.ctr("containers", "ls", "-q", namespace=pods.NAMESPACE), "", "containers that are left")
    return "neither mounts nor loop devices nor containers"


STEPS = [("deployed", deploy), ("import", pods.import_), ("pod", pods.pod), ("log", pods.log), ("usage", usage), ("update", update),
         ("ten pods", pods.ten), ("images removed", images_gone), ("nothing left", lambda lane: left.of_store(lane.server)),
         ("removed", removed)]
