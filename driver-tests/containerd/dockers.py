"""Steps with Docker 28 on containerd's snapshotters: those of the storage driver's test, as far as Docker keeps to them here."""

import json
import os
import tarfile
import time

import basics
import builds
import host
import images
from basics import RUN, inside, once, removed, running
from host import Failed, expect

# An image here is an index or a manifest; its ID isn't its configuration's any more.
BYTES_EACH = 30_000_000
# How long what was removed may be in SIZE.
SETTLE_SECONDS = 120


class Dockerd(host.Dockerd):
    """Docker 28 with the containerd that is there, in place of one of its own."""

    def __init__(self, programs, containerd, data, run, log):
        self.programs = programs
        super().__init__(Peer(programs), containerd.snapshotter, data, run, log,
                         options=[f"--containerd={containerd.socket}", "--containerd-namespace=moby"])
        # It mounts what containerd is to find: so back to where that is.
        self.program = ["nsenter", f"--mount=/proc/{os.getpid()}/ns/mnt", "--", programs / "usr/sbin/dockerd",
                        "--config-file", self.etc / "docker/daemon.json"]
        (self.etc / "docker/daemon.json").write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
        plugins = self.etc / "client/cli-plugins"
        plugins.mkdir(parents=True)
        (plugins / "docker-buildx").symlink_to(programs / "usr/libexec/docker/cli-plugins/docker-buildx")


class Peer:
    def __init__(self, programs):
        self.version, self.root, self.client = "28", None, [str(programs / "usr/bin/docker")]


# -- the steps

def info(lane):
    rows = json.loads(lane.docker("info", "--format", "{{json .}}"))
    expect((rows["Driver"], ["driver-type", "io.containerd.snapshotter.v1"] in rows["DriverStatus"]), (lane.name, True),
           f"the storage driver of `docker info`: {rows['DriverStatus']}")
    return f"{rows['ServerVersion']} on {rows['Driver']}"


def load(lane):
    for name, layers in (("base:1", [images.base_layer()]), ("all:1", images.LAYERS)):
        archive = lane.work / "image.tar"
        _, diff_ids = images.archive(archive, name, layers, ["/bin/sh"])
        lane.docker("load", "-q", "-i", archive)
        archive.unlink()
        expect(builds.diff_ids(lane, name), diff_ids, f"the diff IDs of {name}")
    running(lane, "looked-at", "all:1")
    wanted = images.tree_after(images.LAYERS)
    if lane.ctr.differ == "walking":
        for _, _, _, _, xattrs, _ in wanted.values():
            xattrs.pop("trusted.note", None)
    if said := images.differences(images.observe(lane.docker.root_of("looked-at")), wanted):
        raise Failed("the container's tree isn't what the layers say:\n  " + "\n  ".join(said[:20]))
    removed(lane, "looked-at")
    return f"3 layers, same diff IDs; {len(wanted)} paths as they should be"


def ps(lane):
    """SIZE is what a container wrote, in blocks."""
    running(lane, "work", "base:1")
    before = written(lane, "work")
    expect(before < 100_000, True, f"whether an untouched container has little: {before}")
    inside(lane, "work", "dd if=/dev/urandom of=/srv/big bs=12345678 count=1 2>/dev/null; sync")
    after = written(lane, "work")
    expect(12_345_678 <= after < 12_345_678 + 1_000_000, True, f"whether SIZE has what was written: {after}")
    inside(lane, "work", "rm /srv/big; sync")
    began = time.monotonic()
    # A filesystem's own account has it when the file has been taken apart.
    while (last := written(lane, "work")) >= before + 100_000:
        if time.monotonic() > began + SETTLE_SECONDS:
            raise Failed(f"SIZE is {last} bytes still, {SETTLE_SECONDS} s after the file was removed")
        time.sleep(0.3)
    removed(lane, "work")
    return f"{before} untouched, {after} after 12,345,678 bytes, {last} {time.monotonic() - began:.1f} s after removing"


def written(lane, name):
    return int(lane.docker("inspect", "-s", "--type", "container", "-f", "{{.SizeRw}}", name))


def commit(lane):
    running(lane, "work", "all:1")
    inside(lane, "work", "echo new >/srv/new; chown 1000:7 /srv/new; chmod 4755 /srv/new; rm /opt/old/new; "
                         "rm /bin/three; echo c >>/etc/zero; mkdir /srv/dir; rm -r /kinds")
    lane.docker("commit", "-m", "changed", "-c", "ENV A=1", "work", "changed:1")
    expect(len(builds.diff_ids(lane, "changed:1")), 4, "the number of layers of a commit")
    found = saved(lane, "changed:1")[-1]
    files = {name: entry[1:] if ".wh." not in name else "gone" for name, entry in found.items() if entry[0] == tarfile.REGTYPE}
    expect(files, {"srv/new": (0o4755, 1000, 7, b"new\n"), "etc/zero": (0o644, 0, 0, b"c\n"), "opt/old/.wh.new": "gone",
                   "bin/.wh.three": "gone", ".wh.kinds": "gone"}, "the files of the committed layer")
    expect("srv/dir" in found, True, f"whether the new directory is in {sorted(found)}")
    running(lane, "again", "changed:1")
    said = images.differences(*(builds.in_seconds(images.observe(lane.docker.root_of(name))) for name in ("again", "work")))
    if said:
        raise Failed("a container of the commit has another tree:\n  " + "\n  ".join(said[:20]))
    removed(lane, "work", "again")
    lane.docker("rmi", "changed:1")
    return "exactly the changes; a container of it is the same tree"


def saved(lane, name):
    """The layers of an image as save writes it, each having its own digest."""
    path = lane.work / "saved.tar"
    lane.docker("save", "-o", path, name)
    try:
        with tarfile.open(path) as tar:
            manifest = json.load(tar.extractfile("manifest.json"))[0]
            contents = [tar.extractfile(member).read() for member in manifest["Layers"]]
        for member, content in zip(manifest["Layers"], contents):
            expect(images.digest(content)[7:], member.rsplit("/", 1)[-1], "the digest of a saved layer")
    finally:
        path.unlink()
    return [images.entries(content) for content in contents]


def save(lane):
    path = lane.work / "saved.tar"
    before = {name: builds.diff_ids(lane, name) for name in ("all:1", "base:1")}
    for name in before:
        saved(lane, name)
    lane.docker("save", "-o", path, *before)
    lane.docker("rmi", *before)
    expect(lane.docker("images", "-aq"), "", "images after rmi")
    lane.docker("load", "-q", "-i", path)
    path.unlink()
    expect({name: builds.diff_ids(lane, name) for name in before}, before, "diff IDs of what was loaded again")
    expect(once(lane, "base:1", "cat", "/etc/motd"), "welcome", "what it runs")
    return "removed and loaded again with the same diff IDs"


def build(lane):
    """As before BuildKit."""
    context = context_of(lane, "classic")
    lane.docker("build", "-q", *RUN, "-t", "app:1", context)
    return as_built(lane, "app:1", "classic")


def buildkit(lane):
    context = context_of(lane, "buildkit")
    # It gives RUN no more than this machine may.
    lane.docker("buildx", "build", "-q", "--network", "none", "--ulimit", "nofile=1024:1024", "--load", "-t", "app:2", context)
    said = as_built(lane, "app:2", "buildkit")
    lane.docker("buildx", "prune", "-af")
    return said


def context_of(lane, words):
    context = lane.work / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(builds.DOCKERFILE.format(base="base:1"))
    (context / "hello.txt").write_text(f"hello {words}\n")
    return context


def as_built(lane, name, words):
    expect(once(lane, name, "sh", "-c", "pwd; cat hello.txt; echo $X"), f"/app\nhello {words}\nmore\n1",
           "what a container of the build prints")
    layers = saved(lane, name)
    expect(layers[-1]["app/hello.txt"][4], f"hello {words}\nmore\n".encode(), "the file in the last layer")
    expect(set(layers[-1]) <= {"app", "app/hello.txt", "etc", "etc/hosts", "etc/resolv.conf", "proc", "sys", "dev"}, True,
           f"whether the last layer has only what RUN wrote: {sorted(layers[-1])}")
    lane.docker("rmi", name)
    return f"{len(layers)} layers; the last has what RUN wrote alone"


def writers(lane):
    """Five containers, 30 MB each: `ps -s` and the filesystem agree, and it comes back."""
    names = [f"web{number}" for number in range(1, 6)]
    for name in names:
        running(lane, name, "base:1")
    before = lane.fs.steady()
    for name in names:
        inside(lane, name, f"dd if=/dev/urandom of=/srv/data bs=1000000 count={BYTES_EACH // 1_000_000} 2>/dev/null; sync")
    sizes = {name: written(lane, name) for name in names}
    expect(all(BYTES_EACH <= size < BYTES_EACH + 1_000_000 for size in sizes.values()), True, f"whether each has 30 MB: {sizes}")
    shown = lane.docker("ps", "-as", "--format", "{{.Size}}").splitlines()
    expect(all(row.startswith("30") and "MB (virtual" in row for row in shown), True, f"SIZE of each: {shown}")
    grown = lane.fs.steady() - before
    slack = 5 * BYTES_EACH // 50 + (1 << 20)
    expect(abs(grown - 5 * BYTES_EACH) <= slack, True, f"whether use grew by {5 * BYTES_EACH} bytes, 2 % and 1 MiB aside: {grown}")
    removed(lane, *names)
    back = lane.fs.settles(before + slack, "after the five were removed") - before
    return f"SIZE {sum(sizes.values())}, use +{grown}, after rm {back:+}"


def prune(lane):
    running(lane, "work", "base:1")
    lane.docker("create", "--name", "idle", *RUN, "base:1", "true")
    lane.docker("commit", "work")
    lane.docker("system", "prune", "-f")
    expect(lane.docker("ps", "-a", "--format", "{{.Names}}"), "work", "containers after system prune")
    expect(sorted(lane.docker("images", "--format", "{{.Repository}}").splitlines()), ["all", "base"], "images after it")
    expect(once(lane, "base:1", "cat", "/etc/motd"), "welcome", "what runs")
    removed(lane, "work")
    return "what is in use stays"


def restarts(lane):
    """dockerd goes, then the server; a container goes on."""
    running(lane, "work", "base:1")
    inside(lane, "work", "echo kept >/srv/kept")
    lane.docker.process.kill()
    lane.docker.process.wait()
    lane.docker.start()
    lane.docker("start", "work")
    if lane.server:
        lane.server.kill()
        lane.server.start()
    expect(inside(lane, "work", "cat /srv/kept"), "kept", "what the container has")
    # containerd comes to it again by and by.
    for _ in range(30):
        if lane.docker.client("diff", "work").returncode == 0:
            break
    expect(sorted(lane.docker("diff", "work").splitlines()), ["A /srv/kept", "C /srv"], "its changes")
    removed(lane, "work")
    return "the container and its changes as before"


def all_removed(lane):
    if there := lane.docker("ps", "-aq").split():
        lane.docker("rm", "-f", *there)
    if there := lane.docker("images", "-aq").split():
        lane.docker("rmi", "-f", *there)
    lane.docker("system", "prune", "-af")
    expect(lane.docker("ps", "-aq") + lane.docker("images", "-aq"), "", "containers and images that are left")
    return "no containers, no images"


STEPS = [("info", info), ("load", load), ("run", basics.run), ("exec", basics.exec_), ("cp", basics.cp), ("diff", basics.diff),
         ("ps -s", ps), ("restart, rm", basics.restart), ("commit", commit), ("save, rmi, load", save), ("build", build),
         ("buildx build", buildkit), ("five writers", writers), ("system prune", prune), ("killed", restarts),
         ("all removed", all_removed)]
