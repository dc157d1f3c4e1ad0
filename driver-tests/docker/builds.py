"""Steps with images: made by commit and build, saved and loaded, removed."""

import json
import os
import tarfile

import images
from basics import RUN, asked, bytes_written, inside, once, removed, running
from host import Failed, expect

DOCKERFILE = """\
FROM {base}
WORKDIR /app
LABEL a=b
ENV X=1
COPY hello.txt .
RUN echo more >>hello.txt
"""


def diff_ids(lane, image):
    return json.loads(asked(lane, "image", "{{json .RootFS.Layers}}", image))


def top_layer(lane, image):
    """The entries of an image's last layer, as `docker save` writes it."""
    path = lane.work / "top.tar"
    lane.docker("save", "-o", path, image)
    saved = images.saved(path)
    expect([digest for digest, _ in saved], diff_ids(lane, image), f"the digests of the layers that save wrote of {image}")
    path.unlink()
    return images.entries(saved[-1][1])


def in_seconds(tree):
    """The tree with times as Docker's own drivers commit them."""
    return {path: (mode, ids, mtime and mtime // 10**9, *rest) for path, (mode, ids, mtime, *rest) in tree.items()}


def commit(lane):
    running(lane, "work", "all:1")
    lane.docker("commit", "work", "same:1")
    # Docker leaves a layer out whose tar is 1024 zeros, and only that.
    expect(diff_ids(lane, "same:1"), diff_ids(lane, "all:1"), "the layers of a commit without changes")
    inside(lane, "work", "echo new >/srv/new; chown 1000:7 /srv/new; chmod 4755 /srv/new; rm /opt/old/new; "
                         "rm /bin/three; echo c >>/etc/zero; mkdir /srv/dir; rm -r /kinds")
    lane.docker("commit", "-m", "changed", "-c", "ENV A=1", "work", "changed:1")
    expect(len(diff_ids(lane, "changed:1")), 4, "the number of layers of a commit")
    found = top_layer(lane, "changed:1")
    # Of a whiteout, only the name counts.
    files = {name: entry[1:] if ".wh." not in name else "gone" for name, entry in found.items() if entry[0] == tarfile.REGTYPE}
    expect(files, {
        "srv/new": (0o4755, 1000, 7, b"new\n"),
        "etc/zero": (0o644, 0, 0, b"c\n"),
        "opt/old/.wh.new": "gone",
        "bin/.wh.three": "gone",
        ".wh.kinds": "gone",
    }, "the files of the committed layer")
    if "srv/dir" not in found:
        raise Failed(f"the committed layer has no srv/dir: {sorted(found)}")
    running(lane, "again", "changed:1")
    said = images.differences(*(in_seconds(images.observe(lane.docker.root_of(name), lane.first_id))
                                for name in ("again", "work")))
    if said:
        raise Failed("a container of the commit has another tree:\n  " + "\n  ".join(said))
    expect(bytes_written(lane, "again")[0], 0, "bytes of a new container of the commit")
    expect(asked(lane, "image", "{{json .Config.Env}}", "changed:1"), '["PATH=/bin","A=1"]', "the environment")
    removed(lane, "work", "again")
    lane.docker("rmi", "same:1", "changed:1")
    return "no layer without changes; else exactly the changes, and a container of it is the same tree"


def build(lane, times=2, base=20):
    # A base that shows in the filesystem's use if it is stored twice.
    layer = [*images.base_layer(), images.file("opt/big", os.urandom(base * 1_000_000))]
    lane.docker("import", "-c", "ENV PATH=/bin", "-", "big:1", input=images.tar_of(layer))
    context = lane.work / "context"
    context.mkdir(exist_ok=True)
    (context / "Dockerfile").write_text(DOCKERFILE.format(base="big:1"))
    before = lane.fs.steady()
    for number in range(1, times + 1):
        (context / "hello.txt").write_text(f"hello {number}\n")
        lane.docker("build", "-q", *RUN, "-t", f"app:{number}", context)
        expect(len(diff_ids(lane, f"app:{number}")), len(diff_ids(lane, "big:1")) + 3, "the number of layers")
        expect(once(lane, f"app:{number}", "sh", "-c", "pwd; cat hello.txt; echo $X"), f"/app\nhello {number}\nmore\n1",
               "what a container of the build prints")
    grown = lane.fs.settles(before + 2_000_000, f"after {times} builds on one base, which is to be stored once") - before
    form = "{{.CreatedBy}}\t{{.Size}}"
    shown = [line.split("\t") for line in lane.docker("history", "--no-trunc", "--format", form, "app:1").splitlines()]
    expect([size for _, size in shown][:-1], ["13B", "8B", "0B", "0B", "0B"], "docker history")
    expect(asked(lane, "image", "{{.Config.Labels.a}}", "app:1"), "b", "the label")
    lane.docker("rmi", "-f", *(f"app:{number}" for number in range(1, times + 1)), "big:1")
    lane.docker("image", "prune", "-f")
    return f"the base's layers + 3, 0B for the rest; {times} images on a base of {base} MB take {grown} bytes"


def save(lane):
    path = lane.work / "saved.tar"
    before = {name: (asked(lane, "image", "{{.Id}}", name), diff_ids(lane, name)) for name in ("all:1", "base:1")}
    for name, (_, wanted) in before.items():
        lane.docker("save", "-o", path, name)
        expect([digest for digest, _ in images.saved(path)], wanted, f"the digests of the layers that save wrote of {name}")
    lane.docker("save", "-o", path, *before)
    lane.docker("rmi", *before)
    expect(lane.docker("images", "-aq"), "", "images after rmi")
    lane.docker("load", "-q", "-i", path)
    path.unlink()
    after = {name: (asked(lane, "image", "{{.Id}}", name), diff_ids(lane, name)) for name in before}
    expect(after, before, "IDs of what was loaded again")
    expect(once(lane, "base:1", "cat", "/etc/motd"), "welcome", "what it runs")
    return "every layer has its diff ID; removed and loaded again with the same IDs"


def rmi(lane):
    running(lane, "work", "base:1")
    lane.docker.fails("rmi", "base:1", saying=["is using", "must force", "being used"])
    expect(inside(lane, "work", "cat /etc/motd"), "welcome", "the container after a refused rmi")
    removed(lane, "work")
    layers = lane.layers()
    lane.docker("commit", lane.docker("create", *RUN, "base:1"), "twig:1")
    removed(lane, lane.docker("ps", "-aq"))
    lane.docker("rmi", "twig:1")
    expect(lane.layers(), layers, "the driver's layers after rmi")
    return "an image in use is kept; the layer of one that goes goes too"


def df(lane):
    running(lane, "work", "base:1")
    inside(lane, "work", "dd if=/dev/zero of=/srv/big bs=1000000 count=7 2>/dev/null")
    lane.docker("create", "--name", "idle", *RUN, "base:1")
    rows = {}
    for line in lane.docker("system", "df", "--format", "{{json .}}").splitlines():
        row = json.loads(line)
        rows[row["Type"]] = row
    expect((rows["Images"]["TotalCount"], rows["Images"]["Active"]), ("2", "1"), "images of system df")
    containers = rows["Containers"]
    expect((containers["TotalCount"], containers["Active"], containers["Size"]), ("2", "1", "7MB"),
           "containers of system df")
    return f"images {rows['Images']['Size']}, containers {containers['Size']}"


def prune(lane):
    """After `df`: one container runs, one doesn't."""
    lane.docker("commit", "work")
    said = lane.docker("system", "prune", "-f")
    expect(lane.docker("ps", "-a", "--format", "{{.Names}}"), "work", "containers after system prune")
    expect(sorted(lane.docker("images", "--format", "{{.Repository}}").splitlines()), ["all", "base"],
           "images after system prune")
    expect(inside(lane, "work", "ls /srv"), "big\nmine", "the container that runs")
    removed(lane, "work")
    return said.splitlines()[-1]
