#!/usr/bin/env python3
"""The demo's own checks: the image that it builds, and the five-container table.

    check.py name LAYOUT REFERENCE    give the layout's only image that reference
    check.py image LAYOUT             three layers, and steps that only configure
    check.py used PATH                bytes used of PATH's filesystem (after a sync)
    check.py total                    df's total, out of `df --format json` on stdin
    check.py table PS DF BASE GROWTH NAME=BYTES...
                                      `ps -s` and `df` (JSON files) against the bytes that
                                      were written: df's total, less BASE, is what the
                                      filesystem's used bytes grew by
    check.py back PATH BEFORE FULL    used bytes are back at BEFORE (waits for the cleaner)
    check.py free PORT                status 0 if nobody listens there on loopback
    check.py port                     a free port
    check.py status                   the state in `runc state`'s JSON on stdin

It believes nothing that reflinkd says about the filesystem: used bytes come from statvfs.
Any disagreement ends with status 1 and one line naming it.
"""

import json
import os
import socket
import subprocess
import sys
import time

# SIZE may exceed the bytes written by this much metadata, and never fall below them.
METADATA_SLACK = 128 * 1024
# df and the filesystem's own growth agree within this part.
AGREEMENT = 0.02


class Disagreement(Exception):
    """A number that is not what it must be."""


def check(holds, text):
    if not holds:
        raise Disagreement(text)


def load(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def total(usage):
    """The size of the row `total` of `df --format json`."""
    return next(row["size"] for row in usage if row["type"] == "total")


def blob(layout, digest):
    return os.path.join(layout, "blobs", *digest.split(":"))


def name_image(layout, reference):
    """Write REFERENCE into the index, where loaders look for it."""
    path = os.path.join(layout, "index.json")
    index = load(path)
    check(len(index["manifests"]) == 1, f"{path}: expected one image, found {len(index['manifests'])}")
    index["manifests"][0].setdefault("annotations", {}).update({
        "org.opencontainers.image.ref.name": reference,
        "io.containerd.image.name": reference,
    })
    with open(path, "w", encoding="utf-8") as file:
        json.dump(index, file)


def check_image(layout):
    """Three layers, more history than layers, and flags that agree with both."""
    manifest = load(blob(layout, load(os.path.join(layout, "index.json"))["manifests"][0]["digest"]))
    config = load(blob(layout, manifest["config"]["digest"]))
    history = config["history"]
    layers = [step for step in history if not step.get("empty_layer")]
    check(len(manifest["layers"]) == 3, f"expected 3 layers, found {len(manifest['layers'])}")
    check(len(config["rootfs"]["diff_ids"]) == 3, "the config's diff IDs aren't three")
    check(len(layers) == 3, f"the history says {len(layers)} layers, the manifest 3")
    check(len(history) - len(layers) >= 5, "expected five or more steps that only configure")
    check(all(step.get("created_by") for step in history), "a step without created_by")
    check(config["config"]["Cmd"] == ["nginx", "-g", "daemon off;"], f"CMD is {config['config'].get('Cmd')}")


def used(path):
    """Bytes in use on PATH's filesystem, as statvfs has them once everything is written."""
    subprocess.run(["sync", "--file-system", path], check=True)
    stat = os.statvfs(path)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize


def settled(path, seconds=2.0):
    """used(), when two readings in a row agree: the cleaner may still be at work."""
    last = used(path)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        now = used(path)
        if now == last:
            break
        last = now
    return last


def close(what, says, is_, part=AGREEMENT):
    check(abs(says - is_) <= part * is_, f"{what}: {says} bytes, but the filesystem says {is_} (more than {part:.0%} apart)")


def check_table(containers, usage, base, growth, written):
    """The five-container table.

    CONTAINERS is `ps -s --format json`, USAGE `df --format json`; BASE and GROWTH are bytes;
    WRITTEN maps a container's name to the bytes that went into its only new file.
    """
    rows = {row["name"]: row for row in containers}
    images = set()
    for name, count in written.items():
        check(name in rows, f"ps doesn't list {name}")
        size, virtual = rows[name]["size"], rows[name]["virtual_size"]
        check(count <= size <= count + METADATA_SLACK,
              f"{name}: SIZE is {size}, not within {METADATA_SLACK} above the {count} bytes written")
        check(virtual > size, f"{name}: VIRTUAL {virtual} has no image beside SIZE {size}")
        images.add(virtual - size)
    check(len(images) == 1, f"VIRTUAL isn't the image plus SIZE: that makes images of {sorted(images)} bytes")
    close("df's total grew by", total(usage) - base, growth)
    return images.pop()


def wait_for_space(path, before, full, seconds=60):
    """Until the removed containers' bytes are free again: the kernel's cleaner works behind."""
    slack = AGREEMENT * (full - before)
    end = time.monotonic() + seconds
    while (now := used(path)) > before + slack:
        check(time.monotonic() < end,
              f"{now - before} of {full - before} bytes are still used {seconds} s after the removal")
        time.sleep(0.2)
    return now


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def megabytes(count):
    return f"{count / 1e6:.2f} MB"


def main(arguments):
    verb, *rest = arguments
    if verb == "name":
        name_image(*rest)
    elif verb == "image":
        check_image(*rest)
    elif verb == "used":
        print(settled(*rest))
    elif verb == "total":
        print(total(json.load(sys.stdin)))
    elif verb == "table":
        ps, df, base, growth, *written = rest
        pairs = {name: int(count) for name, count in (item.split("=") for item in written)}
        usage = load(df)
        image = check_table(load(ps), usage, int(base), int(growth), pairs)
        print(f"   checked: each SIZE is within 128 KiB of what was written; VIRTUAL is {megabytes(image)} more")
        print(f"   checked: df grew by {megabytes(total(usage) - int(base))}, the filesystem by {megabytes(int(growth))}")
    elif verb == "back":
        path, before, full = rest[0], int(rest[1]), int(rest[2])
        now = wait_for_space(path, before, full)
        print(f"   checked: used bytes were {megabytes(full)}, are {megabytes(now)}; before the five {megabytes(before)}")
    elif verb == "free":
        sys.exit(1 if listening(int(rest[0])) else 0)
    elif verb == "port":
        print(free_port())
    elif verb == "status":
        print(json.load(sys.stdin)["status"])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["help"])
    except Disagreement as wrong:
        sys.exit(f"check: {wrong}")
