"""What must be so after faults: what was promised is whole, and of the rest nothing stays."""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import tarfile
from pathlib import Path

import images
from host import Failed, expect, sh


def images_whole(lane, promised):
    """Each image there is, promised or not, gives layers with its own diff IDs."""
    found = set(lane.docker("images", "--no-trunc", "-aq").split())
    for name, image in promised.items():
        there = lane.docker("image", "inspect", "-f", "{{.Id}}", name)
        if image:
            expect(there, image, f"the ID of {name}, which was promised")
    path = lane.work / "saved.tar"
    layers = {}
    lane.docker("save", "-o", path, *found)
    with tarfile.open(path) as tar:
        for image in json.load(tar.extractfile("manifest.json")):
            wanted = json.load(tar.extractfile(image["Config"]))["rootfs"]["diff_ids"]
            for name, diff_id in zip(image["Layers"], wanted, strict=True):
                member = tar.getmember(name)
                # Equal layers are links to the first.
                held = name if not member.issym() else os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))
                if held not in layers:
                    layers[held] = images.digest(tar.extractfile(held).read())
                expect(layers[held], diff_id, f"the digest of a layer of {image['Config']}")
    path.unlink()
    print(f"   {len(found)} images, {len(promised)} of them promised: {len(layers)} layers equal their diff IDs", flush=True)


def containers_start(lane, promised):
    """Each container that was promised is there, starts, and has its own files."""
    there = set(lane.docker("ps", "-a", "--format", "{{.Names}}").split())
    missing = promised - there
    if missing:
        raise Failed(f"containers that were promised are missing: {sorted(missing)}")
    for name in sorted(promised):
        expect(lane.docker("start", "-a", name).splitlines()[-1:], [name], f"what container {name} says when it is started")
    print(f"   {len(there)} containers, {len(promised)} of them promised: these start and have their files", flush=True)


def all_removed(lane):
    """Docker removes what it knows."""
    if there := lane.docker("ps", "-aq").split():
        lane.docker("rm", "-f", *there)
    lane.docker("system", "prune", "-af")
    if there := lane.docker("images", "-aq").split():
        lane.docker("rmi", "-f", *there)
    expect(lane.docker("ps", "-aq") + lane.docker("images", "-aq"), "", "containers and images that are left")


def known(lane):
    """The keys in dockerd's layer database, without those that it wanted removed, and couldn't."""
    files = [*lane.database().glob("sha256/*/cache-id"), *lane.database().glob("mounts/*/*-id")]
    return {path.read_text().strip() for path in files if not path.parent.name.endswith("-removing")}


def garbage(lane, *options):
    rows = json.loads(lane.plugin.reflinkd("gc", *options, "--format", "json"))
    return {row["id"] for row in rows if row["type"] == "docker-layer"}, rows


def nothing_left(lane):
    """`gc` clears what dockerd doesn't know; then what dockerd itself lost count of is all there is, and goes with it."""
    print("\n-- nothing is left", flush=True)
    # What the run before didn't write down, no run will.
    lane.dockerd.restart()
    all_removed(lane)
    orphans, _ = garbage(lane, "--dry-run")
    expect(garbage(lane)[0], orphans, "what gc removes, and said before that it would")
    expect(garbage(lane, "--dry-run")[1], [], "what gc would remove after it has")
    kept = known(lane)
    expect(orphans & kept, set(), "layers that dockerd knows and gc removed")
    expect({*keys(lane)} - kept, set(), "trees that dockerd doesn't know, after gc")
    print(f"   gc named and cleared {len(orphans)} layers that dockerd doesn't know", flush=True)
    print(f"   {len(kept)} keys stand in dockerd's layer database that no image or container of its own needs", flush=True)
    lane.dockerd.stop()
    shutil.rmtree(lane.dockerd.data)
    rows = lane.plugin.reflinkd("gc", "--format", "json")
    expect(json.loads(rows), [], "what gc removes without a data root")
    lane.dockerd.start()
    lane.plugin.reflinkd("gc")
    expect([path.name for path in (lane.plugin.root / "snapshots").iterdir()], [], "the directory of places")
    if lane.fs.kind == "btrfs":
        no_subvolumes(lane.fs, lane.plugin.root)
    elif (lane.plugin.root / "trash").is_dir():
        expect(os.listdir(lane.plugin.root / "trash"), [], "the trash")
    lane.dockerd.stop()
    print("   nothing is left", flush=True)


def keys(lane):
    """The keys of all trees."""
    with contextlib.closing(sqlite3.connect(f"file:{lane.plugin.root}/index.db?mode=ro", uri=True)) as index:
        return [key for key, in index.execute("SELECT key FROM snapshots WHERE kind = 'keyed'")]


def no_subvolumes(fs, root):
    """Neither subvolumes below the store nor quota groups, besides those of the filesystem and the store's own."""
    store = root.relative_to(fs.mnt)
    rows = [line.split() for line in sh("btrfs", "subvolume", "list", fs.mnt).splitlines()]
    expect([row[-1] for row in rows if row[-1].startswith(f"{store}/")], [], "subvolumes below the store")
    wanted = {"0/5", *(f"0/{row[1]}" for row in rows)}
    sh("btrfs", "filesystem", "sync", fs.mnt)
    sh("btrfs", "subvolume", "sync", "-s", "1", fs.mnt)
    groups = {line.split()[0] for line in sh("btrfs", "qgroup", "show", fs.mnt).splitlines() if line[:1].isdigit()}
    expect(groups - wanted, set(), "quota groups without a subvolume")


def no_processes(fs, run, plugin):
    """Nobody of ours runs any more, besides the plugin."""
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(entry.name) not in (plugin, os.getpid()) and (str(run).encode() in words or str(fs.mnt).encode() in words):
            left.append(words.replace(b"\0", b" ").decode(errors="replace"))
    expect(left, [], "processes that are left")


def no_mounts(fs, run):
    with open("/proc/mounts", encoding="utf-8") as mounts:
        paths = [line.split()[1] for line in mounts]
    expect([path for path in paths if path.startswith((str(fs.mnt), str(run)))], [], "mounts that are left")
    found = subprocess.run(["losetup", "-j", fs.disk], capture_output=True, text=True, check=False).stdout
    expect(found, "", "loop devices that are left")
