"""What ten containers that read the same 100 MB of their image keep in memory: the growth of the page cache.

Snapshots and clones have inodes of their own, and the page cache is kept by inode: ten writable containers hold ten
copies. Read-only ones are the image's own tree, and overlay's containers share its lower inodes.
"""

import os
import subprocess
import tarfile

from measure import Ran, sync

MIB = 1 << 20
CONTAINERS = 10


def archive(directory):
    """The tar of a root filesystem with 100 MB that don't compress."""
    path = os.path.join(directory, "memory.tar")
    if not os.path.exists(path):
        data = os.path.join(directory, "memory.data")
        with open(data, "wb") as file:
            for _ in range(100):
                file.write(os.urandom(1_000_000))
        with tarfile.open(path, "w") as tar:
            tar.add(data, "data")
        os.remove(data)
    return path


def cached():
    """Bytes in the page cache of files."""
    with open("/proc/meminfo", encoding="ascii") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["Cached"].split()[0]) * 1024


def growth(roots, filesystem):
    """How much the page cache grows when the `data` of each of ROOTS is read."""
    sync(filesystem)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")
    before = cached()
    for root in roots:
        with open(os.path.join(root, "data"), "rb", buffering=0) as file:
            while file.read(MIB):
                pass
    return (cached() - before) / 1e6


def ours(client, tar, filesystem, read_only):
    """Ten of our containers of an image of their own."""
    image = f"memory-{'ro' if read_only else 'rw'}"
    Ran([*client, "import", tar, image])
    names = [f"{image}{number}" for number in range(CONTAINERS)]
    for name in names:
        Ran([*client, "create", "--image", image, *(["--read-only"] if read_only else []), name])
    roots = [Ran([*client, "mount", name]).text for name in names]
    grown = growth(roots, filesystem)
    Ran([*client, "rm", *names])
    Ran([*client, "rmi", image])
    return grown


def overlay(directory, tar, filesystem):
    """Ten overlay mounts over one directory, as Docker and podman make them."""
    lower = os.path.join(directory, "lower")
    os.makedirs(lower)
    subprocess.run(["tar", "-xf", tar, "-C", lower], check=True)
    roots = []
    try:
        for number in range(CONTAINERS):
            base = os.path.join(directory, str(number))
            for name in ("upper", "work", "merged"):
                os.makedirs(os.path.join(base, name))
            options = f"lowerdir={lower},upperdir={base}/upper,workdir={base}/work"
            merged = os.path.join(base, "merged")
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, merged], check=True)
            roots.append(merged)
        return growth(roots, filesystem)
    finally:
        for root in roots:
            subprocess.run(["umount", root], check=True)
