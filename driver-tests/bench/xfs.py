"""The rows on XFS, where a tree is cloned file by file: reflinkd's in-place store of reflink trees,
`cp -a --reflink=always` as what everybody has, and the peers that run there.
"""

import json
import os
import shutil
import time

import measure
from measure import Failed, Ran, median, repeat, sync

# How long a spare may take to be made. It takes seconds.
PATIENCE = 120
# What its column is called.
COPIER = "cp -a --reflink"


def copied(results, tree, mount):
    """The clone that coreutils make of the tree that the floor of load left, in milliseconds of CPU and of time."""
    runs = []
    for _ in range(3):
        sync(mount)
        runs.append(Ran(["cp", "-a", "--reflink=always", tree, f"{tree}.copy"]))
        shutil.rmtree(f"{tree}.copy")
    results.put("clone of the tree, CPU", COPIER, median([ran.cpu_ms for ran in runs]))
    results.put("clone of the tree", COPIER, median([ran.ms for ran in runs]))


def ours(results, who, image, mount):
    """Our own rows. Without spares a create is one clone of the whole tree, made durable, and the process around it."""
    row = "load"
    try:
        with who:
            archive = os.path.join(image, who.archive)
            measure.warm(archive)

            def load(number):
                if number:
                    who.unload()
                sync(mount)
                return who.load(archive)

            loads = repeat(load, 3, seconds=120)
            results.put("load", "ours", median([ran.ms for ran in loads]))
            results.put("load, peak memory", "ours", max(ran.peak for ran in loads) / 1e6, "MB")
            row = "clone of the tree"

            def clone(number):
                sync(mount)
                made = who.without_spares("create", "--image", "bench", f"clone{number}")
                who.without_spares("rm", f"clone{number}")
                who.without_spares("gc")
                return made

            clones = [clone(number) for number in range(3)]
            results.put("clone of the tree, CPU", "ours", median([ran.cpu_ms for ran in clones]))
            results.put("clone of the tree", "ours", median([ran.ms for ran in clones]))
            row = "create"
            # The first makes its own clone, and the spares begin.
            who.create("first")

            def create(number):
                spare_ready(who)
                sync(mount)
                return who.create(f"spare{number}").ms

            results.put("create", "ours", median([create(number) for number in range(10)]))
            who.remove("first", *[f"spare{number}" for number in range(10)])
            spare_ready(who)
            who.create("one")
            spare_ready(who)
            row = "ps -s, one container"
            results.put(row, "ours", median(repeat(lambda _: who.sizes("one").ms, 10)))
            row = "rm"

            def remove(number):
                who.create(f"gone{number}")
                spare_ready(who)
                return who.remove(f"gone{number}").ms

            results.put(row, "ours", median([remove(number) for number in range(5)]))
    except (Failed, OSError) as error:
        results.fail("ours", row, error)
        print(f"   reflinkd on XFS: {row} FAILED: {error}", flush=True)
    results.aim("load", ratio=1.3)
    results.aim("create", most=10)
    beside = results.row("clone of the tree, CPU")["peers"].get(COPIER)
    if beside:
        results.aim("clone of the tree, CPU", most=beside / 2)


def spare_ready(who):
    """Wait until a spare is there and nobody makes another."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        rows = {row["type"]: row for row in json.loads(who.ask("df", "--no-sync", "--format", "json").text)}
        if rows["spares"]["count"] and not rows["pending"]["size"]:
            return
        time.sleep(0.2)
    raise Failed(f"no spare was made within {PATIENCE} s")
