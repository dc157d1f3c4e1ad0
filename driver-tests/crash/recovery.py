"""What is found after a power cut: the filesystem is mounted, the store opened, looked at, cleared up and checked."""

import contextlib
import subprocess

import ground
import promises
from store import QUIET, Damage, Store, shown

def compare(operations, found, done, under_way):
    """What was promised and isn't so; what was removed and is there again."""
    complaints, back = [], []
    workers = promises.by_worker(operations)
    for worker in sorted(workers.keys() | found.keys()):
        mine = workers.get(worker, [])
        pending = [operation for operation in mine if operation.number in under_way]
        said, came = promises.judge([operation for operation in mine if operation.number in done],
                                    pending[0] if pending else None, found.get(worker, {}))
        complaints += said
        back += came
    return complaints, back


def recover(binary, image, name, mnt, operations, done, under_way):
    """Mount what a cut left, compare it with what was promised, clear up, and check the filesystem. What came back.

    Raises `Damage` with the first thing that is wrong."""
    kind, _ = ground.GROUNDS[name]
    back = []
    with ground.loop(image) as device, contextlib.ExitStack() as done_with:
        try:
            done_with.enter_context(ground.mounted(device, mnt))
        except ground.Failed as error:
            raise Damage("mount", str(error)) from None
        store = Store(binary, mnt, kind, QUIET)
        # The first operation is `init`, the second loads the base image.
        if 1 in done or (store.root / "store.json").exists():
            found = store.things()
            complaints, back = compare(operations, found, done, under_way)
            if complaints:
                raise Damage("promise", "\n      ".join(complaints))
            # With the tar of each layer, put together again and held against its digest.
            if damage := store.damage("--deep"):
                raise Damage("check", shown(damage))
            store.nothing_left(found)
            if 2 in done:
                store.usable("s-base:latest")
    command = [*ground.BTRFS, "check", "--readonly", image] if kind == "btrfs" else ["xfs_repair", "-n", "-f", image]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    if checked.returncode:
        raise Damage("fsck", (checked.stdout + checked.stderr).strip()[-1500:])
    return back
