"""What must not grow: gauges that are read at each pause, and the judgement of what they say."""

import os
import re
import statistics
import subprocess
from collections import namedtuple
from pathlib import Path

import ground

# So much more may the last third of the samples have than the second third, in their medians.
Gauge = namedtuple("Gauge", "name unit slack what")
SERVER = (
    Gauge("rss", "KiB", 2_048, "resident memory of the server that is never killed"),
    Gauge("fds", "", 1, "its descriptors"),
    Gauge("threads", "", 2, "its threads"),
)
STORE = (
    Gauge("database", "KiB", 64, "index.db, -wal and -shm"),
    Gauge("used", "KiB", 1_024, "what is used of the filesystem"),
    Gauge("files", "", 2, "files and directories of the store outside of trees"),
    Gauge("mounts", "", 0, "mounts below the filesystem's own"),
    Gauge("subvolumes", "", 0, "all of the filesystem"),
    Gauge("groups", "", 0, "quota groups of the filesystem"),
)
ALL = SERVER + STORE
# Fewer samples tell nothing.
LEAST = 6


def thirds(values):
    """The medians of the three thirds; what doesn't divide belongs to the first."""
    part = len(values) // 3
    first = len(values) - 2 * part
    return tuple(statistics.median(piece) for piece in (values[:first], values[first:first + part], values[first + part:]))


def grows(values, slack):
    """Whether the last third has more than the second one and the slack."""
    _, second, last = thirds(values)
    return last > second + slack


def of_process(pid):
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    number = {name: int(re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE)[1]) for name in ("VmRSS", "Threads")}
    return {"rss": number["VmRSS"], "threads": number["Threads"], "fds": len(os.listdir(f"/proc/{pid}/fd"))}


def used(mnt, kind):
    """KiB in use; of Btrfs data and metadata, as whole chunks aren't what is used."""
    ground.sh("sync", "--file-system", mnt)
    if kind == "btrfs":
        said = ground.sh("btrfs", "filesystem", "df", "--raw", mnt)
        return sum(map(int, re.findall(r"^(?!Global).*used=(\d+)", said, re.MULTILINE))) // 1024
    found = os.statvfs(mnt)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


def subvolumes(mnt):
    return len(ground.sh("btrfs", "subvolume", "list", mnt).splitlines())


def groups(mnt):
    """Quota groups; none where there are no quotas."""
    done = subprocess.run(["btrfs", "qgroup", "show", "--raw", mnt], capture_output=True, text=True, check=False)
    return len(re.findall(r"^\d+/\d+", done.stdout, re.MULTILINE))


def of_store(mnt, kind):
    root = mnt / "store"
    database = sum(path.stat().st_blocks for path in root.glob("index.db*")) // 2
    found = 0
    for directory, names, files in os.walk(root):
        found += len(names) + len(files)
        if os.path.dirname(directory) == str(root / "snapshots") and "fs" in names:
            names.remove("fs")
    return {
        "database": database,
        "used": used(mnt, kind),
        "files": found,
        "mounts": len(ground.mounts_below(mnt)),
        "subvolumes": subvolumes(mnt) if kind == "btrfs" else 0,
        "groups": groups(mnt) if kind == "btrfs" else 0,
    }
