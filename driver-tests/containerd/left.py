"""What must be so at the end: of everything that was removed, nothing is left."""

import json
import os
import time

import checks
from host import Failed, expect, sh

# containerd's collector, and what clears up behind a removal, may take so long.
SETTLE_SECONDS = 120


def settles(what, find, wanted=()):
    """Wait until `find` gives what is wanted."""
    done = time.monotonic() + SETTLE_SECONDS
    while (found := find()) != type(found)(wanted):
        if time.monotonic() > done:
            raise Failed(f"{what}:\n  found    {str(found)[:1500]}\n  expected {wanted!r}")
        time.sleep(0.3)


def of_store(server):
    """Neither trees nor records nor garbage, and what is asked of the store says so."""
    # The directory of places, by itself: no command of reflinkd has cleared up before.
    settles("trees that are left", lambda: sorted(path.name for path in (server.root / "snapshots").iterdir()))
    settles("what gc would clear", lambda: json.loads(server.reflinkd("gc", "--dry-run", "--format", "json")))
    expect(json.loads(server.reflinkd("layers", "--format", "json")), [], "reflinkd layers")
    expect(json.loads(server.reflinkd("ps", "--format", "json")), [], "reflinkd ps")
    expect(json.loads(server.reflinkd("images", "--format", "json")), [], "reflinkd images")
    if (server.root / "trash").is_dir():
        settles("the trash", lambda: os.listdir(server.root / "trash"))
    if server.fs.kind == "btrfs":
        if server.fs.quotas == "none":
            store = server.root.relative_to(server.fs.mnt)
            rows = [line.split()[-1] for line in sh("btrfs", "subvolume", "list", server.fs.mnt).splitlines()]
            expect([row for row in rows if row.startswith(f"{store}/")], [], "subvolumes below the store")
        else:
            checks.no_subvolumes(server.fs, server.root)
