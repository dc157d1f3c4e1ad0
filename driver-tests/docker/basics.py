"""Steps with containers: what they are made of, what is done in them, and what is said about it."""

import concurrent.futures
import json
import tarfile

import images
from host import Failed, expect

# Without a network, and with limits that a container's own may not exceed here. SIGKILL ends `sleep` at once.
RUN = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]


def running(lane, name, image, *options):
    """A container that sleeps."""
    lane.docker("run", "-d", "--name", name, "--stop-signal", "KILL", *RUN, *options, image, "sleep", "100000")
    return name


def inside(lane, name, script):
    """What a shell in a running container prints."""
    return lane.docker("exec", name, "sh", "-c", script)


def once(lane, image, *command):
    """What a container prints that goes at once."""
    return lane.docker("run", "--rm", *RUN, image, *command)


def removed(lane, *names):
    lane.docker("rm", "-f", *names)


def asked(lane, kind, form, name):
    return lane.docker("inspect", "--type", kind, "-f", form, name)


def bytes_written_by(lane, names):
    """The exact numbers behind `ps -s`, and those with the image, by name."""
    said = lane.docker("inspect", "-s", "--type", "container", "-f", "{{.SizeRw}} {{.SizeRootFs}}", *names)
    return {name: tuple(map(int, line.split())) for name, line in zip(names, said.splitlines(), strict=True)}


def bytes_written(lane, name):
    return bytes_written_by(lane, [name])[name]


def apparent(lane, layers):
    """The size that Docker gives an image of these layers: the bytes in files, with some drivers those in links."""
    size = 0
    for layer in layers:
        size += sum(len(entry.content) for entry in layer)
        if lane.driver.counts_links:
            size += sum(len(entry.target) for entry in layer if entry.kind == tarfile.SYMTYPE)
    return size


# -- the steps

def info(lane):
    rows = json.loads(lane.docker("info", "--format", "{{json .}}"))
    expect(rows["Driver"], lane.name, "the storage driver of `docker info`")
    status = [": ".join(row) for row in rows["DriverStatus"]]
    if lane.plugin and not any(str(lane.plugin.root) in row for row in status):
        raise Failed(f"`docker info` doesn't say where the store is: {status}")
    expect(rows["ServerVersion"].startswith(lane.dockerd.peer.version), True, "the version of `docker info`")
    return f"{rows['ServerVersion']}; {'; '.join(status)}"


def import_(lane):
    layer = images.base_layer()
    tar = images.tar_of(layer)
    lane.docker("import", "-c", 'CMD ["/bin/sh"]', "-c", "ENV PATH=/bin", "-", "base:1", input=tar)
    expect(json.loads(asked(lane, "image", "{{json .RootFS.Layers}}", "base:1")), [images.digest(tar)], "the diff IDs")
    size = int(asked(lane, "image", "{{.Size}}", "base:1"))
    expect(size, apparent(lane, [layer]), "the image's size")
    return f"one layer, {size} bytes"


def load(lane):
    archive = lane.work / "all.tar"
    image, diff_ids = images.archive(archive, "all:1", images.LAYERS, ["/bin/sh"])
    lane.docker("load", "-q", "-i", archive)
    expect(asked(lane, "image", "{{.Id}}", "all:1"), image, "the image's ID")
    expect(json.loads(asked(lane, "image", "{{json .RootFS.Layers}}", "all:1")), diff_ids, "the diff IDs")
    running(lane, "looked-at", "all:1")
    wanted = images.tree_after(images.LAYERS)
    said = images.differences(images.observe(lane.docker.root_of("looked-at"), lane.first_id), wanted)
    if said:
        raise Failed("the container's tree isn't what the layers say:\n  " + "\n  ".join(said))
    removed(lane, "looked-at")
    return f"3 layers, same IDs; {len(wanted)} paths with modes, owners, times, contents, links and xattrs as they should be"


def run(lane):
    expect(once(lane, "base:1", "cat", "/etc/motd"), "welcome", "what a container prints")
    expect(lane.docker("run", "--rm", "--user", "user", *RUN, "base:1", "id", "-u"), "1000", "its user")
    expect(lane.docker.client("run", "--rm", *RUN, "base:1", "sh", "-c", "exit 7").returncode, 7, "its exit status")
    expect(lane.docker("ps", "-aq"), "", "containers that --rm left")
    return "output, user and exit status; --rm leaves nothing"


def exec_(lane):
    running(lane, "work", "base:1")
    inside(lane, "work", "echo written >/srv/file; chmod 640 /srv/file; chown 1000:5 /srv/file; ln /srv/file /srv/again")
    expect(inside(lane, "work", "cat /srv/again"), "written", "what exec reads of what exec wrote")
    status = (lane.docker.root_of("work") / "srv/file").stat()
    expect((status.st_mode & 0o7777, status.st_uid - lane.first_id, status.st_gid - lane.first_id, status.st_nlink),
           (0o640, 1000, 5, 2), "mode, owner and links of the file")
    removed(lane, "work")
    return "mode, owner and links of what it wrote"


def cp(lane):
    running(lane, "work", "base:1")
    source = lane.work / "in"
    (source / "sub").mkdir(parents=True, exist_ok=True)
    (source / "sub/file").write_bytes(b"from outside\n")
    (source / "sub/file").chmod(0o751)
    lane.docker("cp", source, "work:/srv/tree")
    lane.docker("cp", "-", "work:/opt", input=images.tar_of([images.file("sent", b"as a tar", 0o4711, ids=(1000, 7))]))
    expect(inside(lane, "work", "cat /srv/tree/sub/file; ls -ln /srv/tree/sub/file /opt/sent").split()[:6],
           ["from", "outside", "-rws--x--x", "1", "1000", "7"], "what came in")
    root = lane.docker.root_of("work")
    status = (root / "srv/tree/sub/file").stat()
    expect((status.st_mode & 0o7777, status.st_uid, status.st_gid), (0o751, lane.first_id, lane.first_id),
           "mode and owner of the copy")
    lane.docker("cp", "work:/srv/tree/sub/file", lane.work / "out")
    expect((lane.work / "out").read_bytes(), b"from outside\n", "what came out")
    found = images.entries(lane.docker.bytes("cp", "work:/opt", "-"))
    # Here Docker itself doesn't map ids back.
    ids = (lane.first_id + 1000, lane.first_id + 7)
    expect(found["opt/sent"], (tarfile.REGTYPE, 0o4711, *ids, b"as a tar"), "what came out as a tar")
    expect(found["opt/kept/three"][4], b"3" * 3000, "the image's file in that tar")
    lane.docker("stop", "work")
    lane.docker("cp", "work:/opt/sent", lane.work / "out")
    lane.docker("cp", source / "sub/file", "work:/opt/late")
    lane.docker("start", "work")
    expect(inside(lane, "work", "cat /opt/late"), "from outside", "what came into a stopped container")
    removed(lane, "work")
    return "files, directories and tars, in and out, running and stopped"


CHANGES = """
echo more >>/etc/motd; chmod 600 /opt/kept/four; rm /opt/old/two; mv /opt/old/one /opt/old/uno
mkdir -p /srv/a/b; echo c >/srv/a/b/c; ln -s b /srv/a/link; rm /srv/mine; mkdir /srv/mine; echo d >/srv/mine/d
echo 33333 >/opt/kept/new; dd if=/dev/zero of=/opt/kept/three bs=1 count=1 \
conv=notrunc 2>/dev/null; touch /tmp/t
"""
# What `docker diff` says of that, with every driver. (A directory that only had something for a while is one that
# overlay2 lists, and btrfs doesn't; so there is none.)
CHANGED = """
A /opt/kept/new|A /opt/old/uno|A /srv/a|A /srv/a/b|A /srv/a/b/c|A /srv/a/link|A /srv/mine/d|A /tmp/t|C /etc|C /etc/motd
C /opt|C /opt/kept|C /opt/kept/four|C /opt/kept/three|C /opt/old|C /srv|C /srv/mine|C /tmp|D /opt/old/one|D /opt/old/two
""".replace("\n", "|").strip("|").split("|")


def diff(lane):
    running(lane, "work", "base:1")
    expect(lane.docker("diff", "work"), "", "changes of an untouched container")
    inside(lane, "work", CHANGES)
    found = sorted(lane.docker("diff", "work").splitlines())
    expect(found, CHANGED, "docker diff")
    lane.docker("stop", "work")
    expect(sorted(lane.docker("diff", "work").splitlines()), CHANGED, "docker diff of the stopped container")
    removed(lane, "work")
    return f"{len(CHANGED)} lines, exactly; none of an untouched container"


def ps(lane):
    image = int(asked(lane, "image", "{{.Size}}", "base:1"))
    running(lane, "work", "base:1")
    shown = lane.docker("ps", "-s", "--format", "{{.Size}}")
    expect(shown.startswith("0B (virtual "), True, f"SIZE of an untouched container: {shown}")
    expect(bytes_written(lane, "work"), (0, image), "bytes of an untouched container")
    inside(lane, "work", "dd if=/dev/urandom of=/srv/big bs=12345678 count=1 2>/dev/null; echo 12345 >/srv/small; "
                         "mkdir /srv/none; echo x >>/etc/motd; chmod 600 /opt/kept/three; rm /opt/old/one")
    # New files, and the whole of what was changed.
    wanted = 12345678 + 6 + len("welcome\nx\n") + 3000
    expect(bytes_written(lane, "work"), (wanted, image + wanted), "bytes after writes")
    expect(lane.docker("ps", "-s", "--format", "{{.Size}}").split(" (")[0], "12.3MB", "SIZE after writes")
    inside(lane, "work", "rm /srv/big")
    expect(bytes_written(lane, "work")[0], wanted - 12345678, "bytes after removing")
    removed(lane, "work")
    return f"{shown} untouched; {wanted} bytes exactly after writes"


def inspect(lane):
    running(lane, "work", "base:1")
    found = json.loads(lane.docker("inspect", "work"))[0]
    expect(found["Driver"], lane.name, "the container's driver")
    expect(found["GraphDriver"]["Name"], lane.name, "the name in GraphDriver")
    data = found["GraphDriver"]["Data"]
    if lane.plugin:
        expect(bool(data), True, "whether inspect has the driver's rows")
    image = json.loads(lane.docker("image", "inspect", "base:1"))[0]
    expect(image["GraphDriver"]["Name"], lane.name, "the name in the image's GraphDriver")
    removed(lane, "work")
    return f"rows of the driver: {', '.join(sorted(data or [])) or 'none'}"


def export(lane):
    lane.docker("create", "--name", "work", *RUN, "all:1")
    found = images.entries(lane.docker.bytes("export", "work"))
    for path, (mode, ids, _, held, _, group) in images.tree_after(images.LAYERS).items():
        entry = found.get(path.decode("utf-8", "surrogateescape"))
        expect(entry and entry[2:4], ids, f"the owner of {path!r} in the tar of export")
        if len(group) == 1 and entry[0] == tarfile.REGTYPE:
            expect((entry[1], entry[4]), (mode & 0o7777, held), f"mode and content of {path!r} in the tar of export")
    removed(lane, "work")
    return f"{len(found)} entries with the container's ids"


def restart(lane):
    running(lane, "work", "base:1")
    inside(lane, "work", "echo kept >/srv/kept; rm /srv/mine")
    lane.docker("restart", "work")
    expect(inside(lane, "work", "cat /srv/kept; ls /srv"), "kept\nkept", "what a restart kept")
    removed(lane, "work")
    running(lane, "work", "base:1")
    expect(inside(lane, "work", "ls /srv"), "mine", "what a new container of that name has")
    removed(lane, "work")
    return "a restart keeps writes, removal loses them"


def side_by_side(lane):
    """Ten at once: dockerd asks its driver from as many connections."""
    def one(number):
        name = running(lane, f"one-of-many-{number}", "all:1")
        inside(lane, name, f"echo {number} >/srv/number")
        found = lane.docker("diff", name)
        lane.docker("commit", name, f"many:{number}")
        removed(lane, name)
        return found, once(lane, f"many:{number}", "cat", "/srv/number")

    with concurrent.futures.ThreadPoolExecutor(10) as pool:
        expect(list(pool.map(one, range(10))), [("C /srv\nA /srv/number", str(number)) for number in range(10)],
               "changes, and contents of the commit, of ten containers at once")
    lane.docker("rmi", *(f"many:{number}" for number in range(10)))
    return "ten containers run, written, compared, committed and removed at once"


def fails_without_trace(lane, *command, saying):
    """A create that must fail, and leaves neither a container nor a layer."""
    before = lane.layers()
    said = lane.docker.fails(*command, saying=saying)
    expect(lane.docker("ps", "-aq"), "", "containers that a refused create left")
    expect(lane.layers(), before, "layers that a refused create left")
    return said

