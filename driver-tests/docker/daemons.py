"""Steps that end daemons, one with ids mapped, and what is left at the end."""

import json
import re

import images
from basics import RUN, bytes_written, inside, once, removed, running
from builds import diff_ids, top_layer
from host import REMAP_FIRST, expect, sh


def state(lane):
    """What must be the same before and after: images with their layers, containers with their changes."""
    found = {name: diff_ids(lane, name) for name in lane.docker("images", "-q").split()}
    for name in lane.docker("ps", "-a", "--format", "{{.Names}}").split():
        found[name] = (bytes_written(lane, name), sorted(lane.docker("diff", name).splitlines()))
    return found


def used_as_before(lane, name):
    """A container that was there before is read, written, committed and compared."""
    expect(inside(lane, name, "cat /srv/kept; echo more >>/srv/kept; ls /srv"), "kept\nkept\nmine", "the container's files")
    expect(lane.docker("diff", name).splitlines(), ["C /srv", "A /srv/kept"], "its changes")
    lane.docker("commit", name, "kept:1")
    expect(once(lane, "kept:1", "cat", "/srv/kept"), "kept\nmore", "what a commit of it has")
    lane.docker("rmi", "kept:1")
    removed(lane, name)


def kept(lane):
    running(lane, "work", "base:1")
    inside(lane, "work", "echo kept >/srv/kept")
    lane.docker("create", "--name", "idle", *RUN, "all:1", "true")


def restart_dockerd(lane):
    kept(lane)
    before = state(lane)
    lane.dockerd.restart()
    expect(state(lane), before, "images and containers after the restart")
    lane.docker("start", "work")
    used_as_before(lane, "work")
    lane.docker("start", "-a", "idle")
    removed(lane, "idle")
    return f"{len(before)} images and containers as before, and of use"


def kill_plugin(lane):
    kept(lane)
    before = state(lane)
    lane.plugin.kill()
    lane.plugin.start()
    expect(state(lane), before, "images and containers after the plugin was killed")
    used_as_before(lane, "work")
    running(lane, "work", "base:1")
    removed(lane, "work", "idle")
    # And with nothing of it running while dockerd starts a container's root anew.
    kept(lane)
    lane.docker("stop", "work")
    lane.plugin.kill()
    lane.plugin.start()
    lane.docker("start", "work")
    used_as_before(lane, "work")
    removed(lane, "idle")
    return "killed twice under a running dockerd: images and containers as before, and of use"


# -- with ids mapped

def userns_ids(lane):
    """The disk has this machine's ids, whatever makes the file; tars have the container's."""
    running(lane, "work", "base:1")
    root = lane.docker.root_of("work")
    (lane.work / "plain").write_text("from outside\n")
    lane.docker("cp", lane.work / "plain", "work:/srv/copied")
    inside(lane, "work", "echo x >/srv/root; echo y >/srv/user; chown 1000:5 /srv/user")
    wanted = {"srv/root": (0, 0), "srv/user": (1000, 5), "srv/mine": (1000, 1000), "srv/copied": (0, 0), "etc/motd": (0, 0)}
    for path, (uid, gid) in wanted.items():
        status = (root / path).stat()
        expect((status.st_uid, status.st_gid), (REMAP_FIRST + uid, REMAP_FIRST + gid), f"ids on disk of {path}")
    found = images.entries(lane.docker.bytes("export", "work"))
    for path, ids in wanted.items():
        expect(found[path][2:4], ids, f"ids of {path} in the tar of export")
    lane.docker("commit", "work", "mapped:1")
    found = top_layer(lane, "mapped:1")
    # 26.1 commits /etc/hosts and the like here, with any driver, after a cp into the container.
    expect({path: entry[2:4] for path, entry in found.items() if path.startswith("srv/")},
           {path: wanted[path] for path in ("srv/root", "srv/user", "srv/copied")}, "ids in the committed layer")
    expect(found["srv"][2:4], (0, 0), "ids of the changed directory in the committed layer")
    removed(lane, "work")
    running(lane, "work", "mapped:1")
    expect(inside(lane, "work", "ls -ln /srv/user").split()[2:4], ["1000", "5"], "ids in a container of the commit")
    removed(lane, "work")
    lane.docker("rmi", "mapped:1")
    return f"the container's 0 is {REMAP_FIRST} on disk, written, copied, loaded or committed; tars have the container's ids"


# -- the end

def nothing_left(lane):
    """Everything is removed by Docker; then nobody holds anything."""
    expect(lane.docker("ps", "-aq"), "", "containers that the steps left")
    lane.docker("rmi", *lane.docker("images", "-q").split())
    expect(lane.docker("system", "df", "--format", "{{.TotalCount}}").split()[:2], ["0", "0"], "images and containers of system df")
    expect(lane.layers(), [], "the driver's layers")
    if not lane.plugin:
        return "no layers"
    lane.plugin.reflinkd("gc")
    expect(json.loads(lane.plugin.reflinkd("layers", "--format", "json")), [], "reflinkd layers")
    expect([path.name for path in (lane.plugin.root / "snapshots").iterdir()], [], "the directory of places")
    if lane.fs.kind == "btrfs":
        store = lane.plugin.root.relative_to(lane.fs.mnt)
        paths = [line.split(" path ")[1] for line in sh("btrfs", "subvolume", "list", lane.fs.mnt).splitlines()]
        expect([path for path in paths if path.startswith(f"{store}/")], [], "subvolumes below the store")
        # Of a group's number, the bits above 32 are its store's.
        ours = json.loads((lane.plugin.root / "store.json").read_text())["group_prefix"]
        groups = re.findall(r"^1/([0-9]+)", sh("btrfs", "qgroup", "show", "--raw", lane.fs.mnt), re.MULTILINE)
        expect([group for group in groups if int(group) >> 32 == ours], [], "quota groups of the store")
        return "no layers, no places, no subvolumes, no quota groups"
    return "no layers, no places"


