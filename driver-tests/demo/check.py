#!/usr/bin/env python3
"""The demo's own checks: the image that it builds, and the five-container table.

    check.py name LAYOUT REFERENCE    give the layout's only image that reference
    check.py image LAYOUT             three layers, and steps that only configure
    check.py used PATH                bytes used of PATH's filesystem (after a sync)
    check.py table BEFORE             ps and df (JSON, two documents on stdin) against the
                                      bytes that were written and the filesystem's growth
    check.py back PATH BEFORE         the space has come back (waits for the cleaner)

It believes nothing that reflinkd says about the filesystem: used bytes come from statvfs.
Any disagreement ends with status 1 and one line naming it.
"""

import json
import os
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
    fd = os.open(path, os.O_RDONLY)
    try:
        os.sync()
        stat = os.fstatvfs(fd)
    finally:
        os.close(fd)
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


def check_table(containers, usage, written, images, growth):
    """The five-container table.

    CONTAINERS is `ps -s --format json`; USAGE `df --format json`; WRITTEN maps a name to its
    bytes; IMAGES is df's total before the containers; GROWTH what the filesystem grew by.
    """
    rows = {row["name"]: row for row in containers}
    for name, count in written.items():
        check(name in rows, f"ps doesn't list {name}")
        row = rows[name]
        size = row["size"]
        check(count <= size <= count + METADATA_SLACK,
              f"{name}: SIZE is {size}, not within {METADATA_SLACK} above the {count} bytes written")
        image = row["virtual_size"] - size
        check(image > 0, f"{name}: VIRTUAL {row['virtual_size']} isn't above SIZE {size}")
        images_seen = {r["virtual_size"] - r["size"] for r in rows.values() if r["image"] == row["image"]}
        check(images_seen == {image}, f"VIRTUAL isn't the image plus SIZE: images of {sorted(images_seen)} bytes")
    close("df's total grew by", usage["total"] - images, growth)


def main(arguments):
    verb, *rest = arguments
    if verb == "name":
        name_image(*rest)
    elif verb == "image":
        check_image(*rest)
    elif verb == "used":
        print(settled(*rest))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["help"])
    except Disagreement as wrong:
        sys.exit(f"check: {wrong}")
