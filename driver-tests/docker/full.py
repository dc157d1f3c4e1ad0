"""Small pools that run full: who fills them is told so, and everything that makes room again works."""

import json
import os
import time

import host
import images
from basics import RUN
from host import Failed

SIZE = 512
NO_SPACE = ["no space left"]
# What metadata may have grown by.
SLACK = 24 << 20
FILL = "cat /dev/zero >/srv/fill"


class Pool(host.Plugin):
    """A store in a small pool of its own."""

    def __enter__(self):
        self.reflinkd("init", "--pool-fs", self.fs.kind, "--pool-size", f"{SIZE}M")
        self.start()
        return self

    def __exit__(self, *problem):
        super().__exit__(*problem)
        self.reflinkd("destroy", "--yes", "--force")

    def used(self):
        found = os.statvfs(self.root)
        return (found.f_blocks - found.f_bfree) * found.f_frsize


def blocks(megabytes):
    """Bytes that take their place on disk."""
    return os.urandom(1 << 20) * megabytes


def run(lane):
    name = f"{lane.dockerd.driver}-small"
    run = lane.dockerd.run / "small"
    run.mkdir()
    with Pool(lane.options.binary, lane.fs, "small", run, lane.options.work / f"plugin-full-{lane.fs.kind}.log") as plugin, \
            host.Dockerd(lane.dockerd.peer, name, lane.fs.mnt / "docker-small", run,
                         lane.options.work / f"dockerd-full-{lane.fs.kind}.log", plugin) as docker:
        docker("import", "-c", "ENV PATH=/bin", "-", "base:1", input=images.tar_of(images.base_layer()))
        plugin.reflinkd("gc")
        before = plugin.used()
        for fill in (by_container, by_load, by_build):
            fill(lane, plugin, docker)
            back(plugin, before, fill.__name__)
        docker("rmi", "base:1")
        plugin.reflinkd("gc")
        host.expect(os.listdir(plugin.root / "snapshots"), [], "the directory of places")


def by_container(lane, plugin, docker):
    """While it is full nothing can be added, and all that makes room works."""
    images.archive(lane.work / "small.tar", "small:1", [images.base_layer(), [images.file("srv/x", blocks(1))]], ["true"])
    docker("load", "-q", "-i", lane.work / "small.tar")
    docker("run", "--name", "idle", *RUN, "base:1", "true")
    docker.fails("run", "--name", "full", *RUN, "base:1", "sh", "-c", FILL, saying=NO_SPACE)
    images.archive(lane.work / "more.tar", "more:1", [[images.file("srv/x", blocks(40))]], ["true"])
    docker.fails("load", "-q", "-i", lane.work / "more.tar", saying=NO_SPACE)
    context = host.fresh(lane.work / "context")
    (context / "x").write_bytes(blocks(40))
    (context / "Dockerfile").write_text("FROM base:1\nCOPY x /srv/x\n")
    docker.fails("build", "--force-rm", "-t", "more:1", context, saying=NO_SPACE)
    docker("ps", "-as")
    docker("system", "df")
    plugin.reflinkd("df")
    docker("rmi", "small:1")
    docker("rm", "idle")
    plugin.reflinkd("gc")
    docker("rm", "full")


def by_load(lane, plugin, docker):
    images.archive(lane.work / "big.tar", "big:1", [images.base_layer(), [images.file("srv/x", blocks(SIZE))]], ["true"])
    docker.fails("load", "-q", "-i", lane.work / "big.tar", saying=NO_SPACE)
    (lane.work / "big.tar").unlink()
    plugin.reflinkd("df")
    host.expect(docker("images", "-q", "big"), "", "the image that didn't fit")


def by_build(lane, plugin, docker):
    context = host.fresh(lane.work / "context")
    (context / "Dockerfile").write_text(f"FROM base:1\nRUN {FILL}\n")
    limits = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
    docker.fails("build", *limits, "-t", "full:1", context, saying=NO_SPACE)
    # The container of the step that failed is kept, and fills the disk.
    plugin.reflinkd("df")
    docker("container", "prune", "-f")


def back(plugin, before, what):
    """Wait until the space is back."""
    plugin.reflinkd("gc")
    done = time.monotonic() + host.SETTLE_SECONDS
    while plugin.used() > before + SLACK:
        if time.monotonic() > done:
            rows = json.loads(plugin.reflinkd("df", "--format", "json"))
            raise Failed(f"{what}: {plugin.used()} bytes are in use, and were {before} before: {rows}")
        time.sleep(0.3)
    print(f"   {what.replace('_', ' ')}: no space, and {plugin.used() - before} bytes more than before it when all is removed", flush=True)
