"""Steps with `ctr`: images, containers and snapshots as containerd's own client sees them."""

import concurrent.futures
import contextlib
import errno
import gzip
import hashlib
import io
import json
import random
import tarfile
import time
from pathlib import Path

import basics
import debs
import images
import registry
from host import Failed, expect
from services import PATIENCE, Mounted

BASE, ALL, TWO, CHANGED = (f"docker.io/local/{name}:1" for name in ("base", "all", "two", "changed"))
# Two images with one layer in common.
TWO_LAYERS = [images.LAYERS[0], [images.file("srv/two", b"two\n"), images.whiteout("opt/old")]]
IMAGES = {BASE: [images.base_layer()], ALL: images.LAYERS, TWO: TWO_LAYERS}
# runc makes what it mounts on.
OF_RUNC = {b"run"}
# The containers of ctr aren't given more files or processes than their maker may have here.
RUN = ["--null-io"]
# How much more than what was written a filesystem may take for it.
SLACK = 3_000_000


def chain_ids(diff_ids):
    """The names of snapshots that layers are unpacked into."""
    chain = []
    for diff_id in diff_ids:
        text = f"{chain[-1]} {diff_id}" if chain else None
        chain.append("sha256:" + hashlib.sha256(text.encode()).hexdigest() if text else diff_id)
    return chain


def names(lane, namespace="default"):
    """The snapshots by containerd's own list: names with kinds."""
    rows = [line.split() for line in lane.ctr("snapshots", "ls", namespace=namespace).splitlines()[1:]]
    return {row[0]: row[-1] for row in rows}


def load(lane, name, layers, *options, namespace="default"):
    """Import an image; the names of the snapshots it gives."""
    archive = lane.work / "image.tar"
    _, diff_ids = images.archive(archive, name, layers, ["/bin/sh"])
    import_it = ["images", "import", "--snapshotter", lane.ctr.snapshotter, *options, archive]
    # containerd 1.6 holds no lease meanwhile: what is there of a diff already isn't written, and may be collected before it is read.
    for last in (False, False, True):
        done = lane.ctr.client(*import_it, namespace=namespace)
        said = done.stderr.decode(errors="replace")
        if done.returncode == 0 or last or "failed to read content store" not in said:
            break
    if done.returncode:
        raise Failed(f"ctr {' '.join(map(str, import_it))}: {said.strip()[-600:]}")
    archive.unlink()
    return chain_ids(diff_ids)


@contextlib.contextmanager
def viewed(lane, name, namespace="default"):
    """What a committed snapshot has, as a view of it shows it."""
    # The collector, which takes what has no label, may come between the two.
    for last in (False, False, False, True):
        lane.ctr("snapshots", "view", "looked-at", name, namespace=namespace)
        label = ["snapshots", "label", "looked-at", "containerd.io/gc.root=now"]
        if lane.ctr.client(*label, namespace=namespace).returncode == 0:
            break
        if last:
            raise Failed(f"no view of {name} stays")
    try:
        with Mounted(lane.ctr, lane.work / "mnt", "looked-at", namespace) as root:
            yield root
    finally:
        lane.ctr("snapshots", "rm", "looked-at", namespace=namespace)


def same_tree(found, wanted, what):
    if said := images.differences(found, wanted):
        raise Failed(f"{what}:\n  " + "\n  ".join(said[:20]))


def as_layers_say(lane, name, layers, namespace="default"):
    with viewed(lane, name, namespace) as root:
        wanted = images.tree_after(layers)
        if lane.ctr.differ == "walking":
            # containerd's own refuses to set these.
            for _, _, _, _, xattrs, _ in wanted.values():
                xattrs.pop("trusted.note", None)
        same_tree(images.observe(root), wanted, f"the tree of {name} isn't what its layers say")
    return len(wanted)


def running(lane, name, image, namespace="default"):
    """A container that sleeps."""
    lane.ctr("run", "-d", *RUN, "--snapshotter", lane.ctr.snapshotter, image, name, "/bin/sleep", "100000", namespace=namespace)
    return name


def printed(lane, command, namespace="default"):
    """What a command of ctr prints, which has to be something: ctr now and then loses the words of a process that goes at once."""
    for _ in range(5):
        if said := lane.ctr(*command(), namespace=namespace):
            return said
    return ""


def once(lane, image, name, *command, namespace="default"):
    """What a container prints that goes at once."""
    run_ = ["run", "--rm", "--snapshotter", lane.ctr.snapshotter, image, name, *command]
    return printed(lane, lambda: run_, namespace=namespace)


def shown(lane, name, path, namespace="default"):
    """What a file in a running container has, as a process there reads it."""
    def read():
        return ["tasks", "exec", "--exec-id", f"exec-{random.randrange(10**9)}", name, "/bin/cat", path]

    return printed(lane, read, namespace=namespace)


def inside(lane, name, script, namespace="default"):
    """Have a shell in a running container do something."""
    lane.ctr("tasks", "exec", "--exec-id", f"exec-{random.randrange(10**9)}", name, "/bin/sh", "-c", script,
                    namespace=namespace)


def removed(lane, *containers, namespace="default"):
    for name in containers:
        lane.ctr.client("tasks", "kill", "-s", "KILL", name, namespace=namespace)
        done = time.monotonic() + PATIENCE
        while lane.ctr.client("tasks", "rm", "-f", name, namespace=namespace).returncode and time.monotonic() < done:
            if name not in lane.ctr("tasks", "ls", "-q", namespace=namespace).split():
                break
            time.sleep(0.05)
        lane.ctr("containers", "rm", name, namespace=namespace)


def collect(lane):
    """Have containerd take away what was removed, which it may leave for when there is more."""
    lane.ctr("leases", "create", "--id", "collect")
    lane.ctr("leases", "rm", "--sync", "collect")


def usage(lane, key):
    """Bytes and inodes."""
    row = lane.ctr("snapshots", "usage", "-b", key).splitlines()[1].split()
    return int(row[-2]), int(row[-1])


# -- the steps

def plugins(lane):
    """Both are there, and containerd has no complaint."""
    rows = [line.split() for line in lane.ctr("plugins", "ls").splitlines()]
    states = {(row[0].removeprefix("io.containerd."), row[1]): row[-1] for row in rows[1:] if len(row) > 2}
    expect(states.get(("snapshotter.v1", lane.ctr.snapshotter)), "ok", f"the state of the snapshotter, in {sorted(states)}")
    if lane.ctr.differ != "walking":
        expect(states.get(("differ.v1", lane.ctr.differ)), "ok", f"the state of the differ, in {sorted(states)}")
    return f"{lane.ctr.snapshotter} with {lane.ctr.differ}"


def import_(lane):
    chain = [snapshot for name, layers in IMAGES.items() for snapshot in load(lane, name, layers)]
    expect(names(lane), {snapshot: "Committed" for snapshot in chain}, "the snapshots of three images")
    paths = as_layers_say(lane, chain_of(ALL)[-1], images.LAYERS)
    as_layers_say(lane, chain_of(TWO)[-1], TWO_LAYERS)
    for count in (1, 2):
        as_layers_say(lane, chain_of(ALL)[count - 1], images.LAYERS[:count])
    return f"{len(chain)} layers of three images are {len(set(chain))} snapshots; {paths} paths as the layers say"


def chain_of(name):
    return chain_ids([images.digest(images.tar_of(layer)) for layer in IMAGES[name]])


def import_local(lane):
    """In a namespace of its own, by the client alone, which unpacks by other calls than the transfer service."""
    options = [] if lane.ctr.version == "1.6" else ["--local"]
    before = names(lane)
    chain = load(lane, TWO, TWO_LAYERS, *options, namespace="second")
    expect(set(names(lane, "second")), set(chain), "the snapshots of the second namespace")
    expect(names(lane), before, "those of the first one")
    as_layers_say(lane, chain[-1], TWO_LAYERS, "second")
    expect(once(lane, TWO, "here", "/bin/cat", "/srv/two", namespace="second"), "two", "what a container there prints")
    running(lane, "same", TWO, "second")
    running(lane, "same", BASE)
    inside(lane, "same", "echo second >/srv/which", "second")
    inside(lane, "same", "echo first >/srv/which")
    expect([shown(lane, "same", "/srv/which", space) for space in ("default", "second")], ["first", "second"],
           "what two containers of one name have")
    removed(lane, "same", namespace="second")
    expect(shown(lane, "same", "/srv/which"), "first", "what the first one has when the other is gone")
    removed(lane, "same")
    lane.ctr("images", "rm", "--sync", TWO, namespace="second")
    expect(names(lane, "second"), {}, "the snapshots of the second namespace, its image being removed")
    as_layers_say(lane, chain_of(TWO)[-1], TWO_LAYERS)
    return "two namespaces see their own, and lose it alone"


def repacked(archive, change):
    """Put something else in the place of an archive's layers."""
    with tarfile.open(archive) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            content = change(name, content) if name.endswith("layer.tar") else content
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def layers_as_they_come(lane):
    """Compressed ones are unpacked, and of one that isn't what its image says, or ends early, nothing is kept."""
    before = names(lane)
    archive, name = lane.work / "image.tar", "docker.io/local/other:1"
    layers = [images.base_layer(), [images.file("srv/other", random.randbytes(300_000))], [images.file("srv/last", b"x")]]
    _, diff_ids = images.archive(archive, name, layers, ["/bin/sh"])
    top = chain_ids(diff_ids)[-1]
    options = ["images", "import", "--snapshotter", lane.ctr.snapshotter, archive]
    whole = archive.read_bytes()
    other = images.tar_of([images.file("srv/other", b"not this")])
    for what, change in (("another layer", lambda at, content: other if at.startswith("1/") else content),
                         ("a layer that ends early", lambda at, content: content[:200_000] if at.startswith("1/") else content)):
        archive.write_bytes(whole)
        repacked(archive, change)
        if lane.ctr.client(*options).returncode == 0:
            raise Failed(f"an image with {what} was imported")
        if name in lane.ctr("images", "ls", "-q").split():
            lane.ctr("images", "rm", "--sync", name)
        settled(lane, before, f"the snapshots after {what}")
    archive.write_bytes(whole)
    repacked(archive, lambda _, content: gzip.compress(content))
    lane.ctr(*options)
    archive.unlink()
    as_layers_say(lane, top, layers)
    lane.ctr("images", "rm", "--sync", name)
    settled(lane, before, "the snapshots without that image")
    return "gzip is unpacked; two that are wrong are refused, and leave nothing"


def settled(lane, wanted, what):
    """containerd's own leases may keep some for a moment."""
    done = time.monotonic() + 30
    while (found := names(lane)) != wanted:
        if time.monotonic() > done:
            for lease in lane.ctr("leases", "ls", "-q").split():
                lane.ctr("leases", "rm", "--sync", lease)
            expect(names(lane), wanted, what)
            return
        time.sleep(0.3)


def run(lane):
    before = names(lane)
    expect(once(lane, BASE, "once", "/bin/cat", "/etc/motd"), "welcome", "what a container prints")
    done = lane.ctr.client("run", "--rm", "--snapshotter", lane.ctr.snapshotter, BASE, "once", "/bin/sh", "-c", "exit 7")
    expect(done.returncode, 7, "its exit status")
    expect(once(lane, ALL, "once", "/bin/cat", "/opt/old/new"), "the only one", "what a container of three layers prints")
    lane.ctr("run", "--rm", "--snapshotter", lane.ctr.snapshotter, "--read-only", BASE, "once", "/bin/sh", "-c",
             "! touch /srv/x 2>/dev/null")
    expect(names(lane), before, "snapshots after --rm")
    return "output and exit status; --read-only holds; --rm leaves nothing"


def exec_(lane):
    running(lane, "work", BASE)
    inside(lane, "work", "echo written >/srv/file; chmod 640 /srv/file; chown 1000:5 /srv/file; ln /srv/file /srv/again")
    expect(shown(lane, "work", "/srv/again"), "written", "what exec reads of what exec wrote")
    with Mounted(lane.ctr, lane.work / "mnt", "work") as root:
        status = (root / "srv/file").stat()
    expect((status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_nlink), (0o640, 1000, 5, 2),
           "mode, owner and links of the file")
    removed(lane, "work")
    expect("work" in names(lane), False, "whether the container's snapshot is there after it was removed")
    return "mode, owner and links of what it wrote"


def snapshots(lane):
    """What there is to know of one: kind, parent, place, size."""
    running(lane, "work", BASE)
    base = chain_of(BASE)[-1]
    found = json.loads(lane.ctr("snapshots", "info", "work"))
    expect((found["Kind"], found["Name"], found["Parent"]), ("Active", "work", base), "info of a container's snapshot")
    found = json.loads(lane.ctr("snapshots", "info", base))
    expect((found["Kind"], found.get("Parent", "")), ("Committed", ""), "info of an image's snapshot")
    lines = [line.strip() for line in lane.ctr("snapshots", "tree").splitlines()]
    expect(lines[lines.index(base) + 1].endswith("work"), True, f"whether the container is below its image in {lines}")
    lane.ctr("snapshots", "label", "work", "some=label")
    expect(json.loads(lane.ctr("snapshots", "info", "work"))["Labels"].get("some"), "label", "a label that was set")
    size, _ = usage(lane, "work")
    expect(size < SLACK, True, f"whether an untouched container holds little: {size}")
    inside(lane, "work", "dd if=/dev/urandom of=/srv/big bs=1000000 count=10 2>/dev/null; sync")
    size, _ = usage(lane, "work")
    expect(10_000_000 <= size < 10_000_000 + SLACK, True, f"whether usage has the 10,000,000 bytes: {size}")
    of_image, _ = usage(lane, base)
    held = sum(len(entry.content) for entry in images.base_layer())
    expect(held <= of_image < held + SLACK, True, f"whether the image's usage, {of_image}, is its content of {held} bytes")
    removed(lane, "work")
    return f"info, tree, label; 10 MB written are {size} bytes"


# What a tar of the changes has, besides what `docker diff` says of them.
def wanted_of(changed, more=()):
    wanted = set(more)
    for line in changed:
        kind, path = line[0], line[3:]
        before, _, last = path.rpartition("/")
        wanted.add(f"{before}/.wh.{last}" if kind == "D" else path)
    return wanted


def diff(lane):
    """The changes as a layer, and that layer on top of the image as an image."""
    running(lane, "work", BASE)
    inside(lane, "work", basics.CHANGES)
    content = lane.ctr.bytes("snapshots", "diff", "work")
    found = images.entries(content)
    wanted = wanted_of([line.replace(" /", "  ", 1) for line in basics.CHANGED])
    more = set(found) - wanted - {path.decode() for path in OF_RUNC} - {"etc", "dev", "proc", "sys", ".", ""}
    expect((wanted - set(found), more), (set(), set()), "what is missing in the layer, and what is too much")
    again = lane.ctr.bytes("snapshots", "diff", "work")
    expect({path: entry for path, entry in images.entries(again).items()}, found, "the same layer once more")
    lane.ctr("tasks", "kill", "-s", "KILL", "work")
    same_when_applied(lane, "work", [images.base_layer()], content)
    removed(lane, "work")
    return f"{len(found)} entries; on top of the image they give the container's tree"


def diffs_at_once(lane):
    """The same layer is made again and again while the collector takes the one before: each client gets all of its own."""
    running(lane, "work", BASE)
    inside(lane, "work", "echo more >/srv/more")

    def ten(_):
        found = set()
        for _ in range(10):
            entries = images.entries(lane.ctr.bytes("snapshots", "diff", "work"))
            found.add(entries["srv/more"][4])
        return found

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        expect(list(pool.map(ten, range(3))), [{b"more\n"}] * 3, "what thirty diffs of one container have")
    removed(lane, "work")
    return "thirty times the same layer, by three clients"


def same_when_applied(lane, key, layers, changes):
    """An image of these layers and these changes has the tree of a container of that key."""
    class Ready(bytes):
        """A layer that is a tar already."""

    plain = gzip.decompress(changes) if changes[:2] == b"\x1f\x8b" else changes
    tar_of = images.tar_of
    images.tar_of = lambda layer: layer if isinstance(layer, Ready) else tar_of(layer)
    try:
        chain = load(lane, CHANGED, [*layers, Ready(plain)])
    finally:
        images.tar_of = tar_of
    with Mounted(lane.ctr, lane.work / "mnt", key) as root:
        wanted = images.observe(root)
    with viewed(lane, chain[-1]) as root:
        found = images.observe(root)
    if lane.ctr.differ == "walking":
        # containerd's own writes whole seconds.
        found, wanted = ({path: (*what[:2], what[2] and what[2] // 10**9, *what[3:]) for path, what in tree.items()}
                         for tree in (found, wanted))
    same_tree(found, wanted, "the image of a container's changes isn't that container's tree")
    lane.ctr("images", "rm", "--sync", CHANGED)


def commit(lane):
    """By hand: what is written before is in what is prepared afterwards, and writes to that don't reach it."""
    base = chain_of(BASE)[-1]
    lane.ctr("snapshots", "prepare", "work", base)
    with Mounted(lane.ctr, lane.work / "mnt", "work") as root:
        (root / "srv/new").write_bytes(b"new\n" * 100_000)
        (root / "etc/motd").unlink()
    lane.ctr("snapshots", "commit", "done", "work")
    lane.ctr("snapshots", "prepare", "work", "done")
    with Mounted(lane.ctr, lane.work / "mnt", "work") as root:
        expect((root / "srv/new").read_bytes(), b"new\n" * 100_000, "what was written before the commit")
        (root / "srv/new").write_bytes(b"changed")
    with viewed(lane, "done") as root:
        expect(((root / "srv/new").stat().st_size, (root / "etc/motd").exists()), (400_000, False),
               "the committed one after its child was written")
        try:
            (root / "srv/refused").write_bytes(b"")
            raise Failed("a view can be written to")
        except OSError as why:
            expect(why.errno, errno.EROFS, "why a view can't be written to")
    if lane.ctr.client("snapshots", "rm", "done").returncode == 0:
        raise Failed("a snapshot with a child was removed")
    found = images.entries(lane.ctr.bytes("snapshots", "diff", "done"))
    expect({"srv/new", "etc/.wh.motd"} <= set(found), True, f"whether the changes are in {sorted(found)}")
    lane.ctr("snapshots", "rm", "work")
    lane.ctr("snapshots", "rm", "done")
    return "prepare, commit, view, refusals"


def at_once(lane):
    """Ten containers at once, each with something of its own."""
    def one(number):
        name = running(lane, f"one-of-{number}", ALL)
        inside(lane, name, f"echo {number} >/srv/number")
        found = images.entries(lane.ctr.bytes("snapshots", "diff", name))
        said = shown(lane, name, "/srv/number")
        removed(lane, name)
        return said, found["srv/number"][4]

    before = names(lane)
    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        expect(list(pool.map(one, range(10))), [(str(number), b"%d\n" % number) for number in range(10)],
               "contents, and changes, of ten containers at once")
    expect(names(lane), before, "the snapshots afterwards")
    return "ten containers run, written, compared and removed at once"


def sizes(lane):
    """Five containers that write known amounts: what usage says is what the filesystem takes, and it comes back."""
    before = lane.fs.steady()
    for number in range(5):
        running(lane, f"writer-{number}", BASE)
        inside(lane, f"writer-{number}", "dd if=/dev/urandom of=/srv/data bs=1000000 count=30 2>/dev/null; sync")
    taken = lane.fs.steady() - before
    said = [usage(lane, f"writer-{number}")[0] for number in range(5)]
    expect(all(30_000_000 <= size < 30_000_000 + SLACK for size in said), True, f"whether each holds 30 MB: {said}")
    expect(abs(taken - sum(said)) < 5 * SLACK, True, f"whether the filesystem took that: {taken} and {sum(said)}")
    removed(lane, *(f"writer-{number}" for number in range(5)))
    collect(lane)
    back = lane.fs.settles(before + 2 * SLACK, "what comes back") - before
    return f"usage says {sum(said)}, the filesystem took {taken}; {back} after removal"


def state(lane):
    rows = json.loads("[" + ",".join(lane.ctr("snapshots", "info", name) for name in names(lane)) + "]")
    return {row["Name"]: (row["Kind"], row.get("Parent"), row.get("Labels"), row["Created"]) for row in rows}


def restarts(lane):
    """The server is killed, then containerd, under a running container."""
    running(lane, "work", BASE)
    inside(lane, "work", "echo kept >/srv/kept")
    before = state(lane)
    said = []
    if lane.server:
        lane.server.kill()
        if lane.ctr.client("snapshots", "ls").returncode == 0:
            raise Failed("without a server, snapshots are listed")
        expect(shown(lane, "work", "/srv/kept"), "kept", "what a container reads while the server is down")
        lane.server.start()
        answers(lane)
        expect(state(lane), before, "snapshots after the server was killed")
        said.append("server")
    lane.ctr.process.kill()
    lane.ctr.process.wait()
    lane.ctr.start()
    expect(state(lane), before, "snapshots after containerd was killed")
    expect(shown(lane, "work", "/srv/kept"), "kept", "what the container reads afterwards")
    inside(lane, "work", "echo more >/srv/kept")
    found = images.entries(lane.ctr.bytes("snapshots", "diff", "work"))
    expect(found["srv/kept"][4], b"more\n", "its changes")
    removed(lane, "work")
    expect(once(lane, ALL, "once", "/bin/cat", "/opt/old/new"), "the only one", "what a new container prints")
    return f"{' and '.join([*said, 'containerd'])} killed: {len(before)} snapshots as before, and of use"


def answers(lane):
    """containerd waits a while before it comes to a server again that went."""
    done = time.monotonic() + PATIENCE
    while lane.ctr.client("snapshots", "ls").returncode:
        if time.monotonic() > done:
            raise Failed("containerd doesn't find the server again in 30 s")
        time.sleep(0.2)


def mapped_ids(lane):
    """A container with a user namespace: on disk are the ids that it sees itself."""
    maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536", "--remap-labels"]
    lane.ctr("run", "-d", *RUN, *maps, "--snapshotter", lane.ctr.snapshotter, ALL, "mapped", "/bin/sleep", "100000")
    try:
        before = {entry.name: entry.lstat().st_uid for entry in source_of(lane, "mapped").iterdir()}
        inside(lane, "mapped", "echo mine >/mine && chown 5:6 /mine")
        expect(shown(lane, "mapped", "/mine"), "mine", "what the container has written")
        expect(printed(lane, lambda: ["tasks", "exec", "--exec-id", f"exec-{random.randrange(10**9)}", "mapped", "/bin/id", "-u"]),
               "0", "its own id there")
        root = source_of(lane, "mapped")
        mine = (root / "mine").lstat()
        expect((mine.st_uid, mine.st_gid), (5, 6), "the owner of its file, on disk")
        after = {entry.name: entry.lstat().st_uid for entry in root.iterdir() if entry.name != "mine"}
        expect({name: after.get(name) for name in before}, before, "owners that were there")
        pid = next(line.split()[1] for line in lane.ctr("tasks", "ls").splitlines() if line.startswith("mapped "))
        with open(f"/proc/{pid}/status", encoding="utf-8") as status:
            ids = {line.split()[0]: line.split()[1] for line in status if line.startswith(("Uid:", "Gid:"))}
        expect(ids, {"Uid:": "100000", "Gid:": "200000"}, "the ids of its process on the host")
    finally:
        removed(lane, "mapped")
    return "nothing is changed on disk for a user namespace"


def reused(lane):
    """An image that the command line has, too: its layers are shared, and it goes on into other stores as it came."""
    before, server, name = names(lane), lane.server, "docker.io/local/reused:1"
    layers = [[*images.LAYERS[0], images.file("srv/large", random.randbytes(30_000_000))], *images.LAYERS[1:]]
    archive, exported = lane.work / "image.tar", lane.work / "exported.tar"
    _, diff_ids = images.archive(archive, name, layers, ["/bin/sh"])
    chain, import_it = chain_ids(diff_ids), ["images", "import", "--snapshotter", lane.ctr.snapshotter]
    server.reflinkd("load", "-q", "-i", archive)
    taken = lane.fs.steady()
    lane.ctr(*import_it, archive)
    archive.unlink()
    taken = lane.fs.steady() - taken
    expect(taken < SLACK * len(layers), True, f"whether {len(layers)} layers share what there is: {taken} bytes were written")
    paths = [as_layers_say(lane, snapshot, layers[:number + 1]) for number, snapshot in enumerate(chain)][-1]
    sizes_ = [usage(lane, snapshot)[0] for snapshot in chain]
    expect(30_000_000 <= sizes_[0] < 30_000_000 + SLACK, True, f"whether the first layer holds 30 MB: {sizes_}")
    counted = {row["type"]: row["size"] for row in json.loads(server.reflinkd("df", "--format", "json"))}
    expect(counted["shared"] >= 30_000_000, True, f"whether df says that they share it: {counted}")
    expect(once(lane, name, "reused", "/bin/cat", "/etc/motd"), "welcome again", "what a container of it prints")
    expect(diff_ids[0] in lane.ctr("content", "ls", "-q").split(), True, "whether its layer is in the content store")
    lane.ctr("images", "export", exported, name)
    programs = debs.unpacked(lane.options.work, "registry", debs.REGISTRY)
    with registry.registry(programs, lane.work / "registry") as address:
        pushed = f"{address}/local/reused:1"
        lane.ctr("images", "tag", name, pushed)
        lane.ctr("images", "push", "--plain-http", pushed)
        # Its other owner goes, and then it itself.
        server.reflinkd("rmi", name)
        as_layers_say(lane, chain[-1], layers)
        lane.ctr("images", "rm", "--sync", name, pushed)
        settled(lane, before, "the snapshots without that image")
        expect(diff_ids[0] in lane.ctr("content", "ls", "-q").split(), False, "whether its layer is still in the content store")
        lane.ctr("images", "pull", "--plain-http", "--snapshotter", lane.ctr.snapshotter, pushed)
        as_layers_say(lane, chain[-1], layers)
        expect(once(lane, pushed, "reused", "/bin/cat", "/etc/motd"), "welcome again", "what a container of the pulled one prints")
        lane.ctr("images", "rm", "--sync", pushed)
        settled(lane, before, "the snapshots without that image")
    lane.ctr(*import_it, exported)
    exported.unlink()
    as_layers_say(lane, chain[-1], layers)
    expect(once(lane, name, "reused", "/bin/cat", "/etc/motd"), "welcome again", "what a container of the exported one prints")
    lane.ctr("images", "rm", "--sync", name)
    settled(lane, before, "the snapshots without that image")
    return f"{paths} paths of {len(layers)} layers for {taken} bytes more; pushed, pulled and exported whole"


def source_of(lane, key):
    """The directory that a snapshot's mount shows."""
    words = lane.ctr("snapshots", "mounts", "/nowhere", key).split()
    return Path(words[words.index("/nowhere") - 1])


def collected(lane):
    """All images are removed: containerd's collector removes their snapshots."""
    for namespace in ("default", "second", "k8s.io", "moby"):
        for container in lane.ctr("containers", "ls", "-q", namespace=namespace).split():
            removed(lane, container, namespace=namespace)
        if there := lane.ctr("images", "ls", "-q", namespace=namespace).split():
            lane.ctr("images", "rm", "--sync", *there, namespace=namespace)
        # The differ keeps what it made for a while: that lease ends by itself.
        for lease, *said in (line.split() for line in lane.ctr("leases", "ls", namespace=namespace).splitlines()[1:]):
            expect("containerd.io/gc.expire=" in " ".join(said), True, f"lease {lease} ends by itself: {said}")
            lane.ctr("leases", "rm", "--sync", lease, namespace=namespace)
        expect(names(lane, namespace), {}, f"snapshots in {namespace} without images")
        expect(lane.ctr("content", "ls", "-q", namespace=namespace), "", f"content in {namespace} without images")
    return "no snapshots, no content"


STEPS = [("plugins", plugins), ("import", import_), ("import --local", import_local),
         ("layers as they come", layers_as_they_come), ("run", run), ("exec", exec_),
         ("snapshots", snapshots), ("diff", diff), ("thirty diffs", diffs_at_once), ("commit", commit),
         ("ten at once", at_once), ("five writers", sizes),
         ("killed", restarts)]
# What only reflinkd is asked, by containerd from 2 on: before, a snapshotter by proxy isn't asked to map ids, and what `ctr`
# unpacks by itself is not labelled as the layer that it becomes.
FROM_2 = [("mapped ids", mapped_ids), ("reused", reused)]
QUICK = [("plugins", plugins), ("import", import_), ("run", run), ("exec", exec_), ("diff", diff)]
