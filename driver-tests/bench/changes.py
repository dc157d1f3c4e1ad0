"""The rows of what goes by what a container has changed: diff, commit, clone and snapshot of one with 50,000 files of
which 10 were changed, on Btrfs and on XFS, beside the walk of both trees and the peers; and the curve of diff over the
number of files and of changes (curve.py draws it).

A diff whose answer has not as many files as were changed is a failure, not a number.
"""

import hashlib
import io
import json
import os
import random
import tarfile

import measure
from measure import Failed, Ran, median, repeat, sync

FILES, CHANGED = 50_000, 10
# Files and changes of the curve.
SIZES, EDITS = (1_000, 10_000, 100_000), (1, 100, 10_000)
# What column the walk has.
WALK = "walk of both trees"
IMAGE = "bench-changes"
# What a diff may open and stat at most.
MOST_CALLS = 200
# Calls that open something, or ask what it is.
CALLS = ("open", "openat", "openat2", "stat", "lstat", "fstat", "newfstatat", "statx")


def path_of(number):
    return f"d{number // 100:04}/f{number:06}"


def content(number, salt=""):
    """Up to 4 KB that don't compress: half of the files are inline on Btrfs, half are not."""
    seed = int.from_bytes(hashlib.sha256(f"{number} {salt}".encode()).digest()[:8])
    return random.Random(seed).randbytes(seed % 4096)


def archive(directory, files):
    """The tar of a root filesystem with so many files, the same bytes each time."""
    path = os.path.join(directory, f"changes-{files}.tar")
    if not os.path.exists(path):
        with tarfile.open(f"{path}.new", "w") as tar:
            for number in range(files):
                if number % 100 == 0:
                    info = tarfile.TarInfo(path_of(number).split("/")[0])
                    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
                    tar.addfile(info)
                data = content(number)
                info = tarfile.TarInfo(path_of(number))
                info.size, info.mtime = len(data), 1_700_000_000
                tar.addfile(info, io.BytesIO(data))
        os.rename(f"{path}.new", path)
    return path


def edits(files, count):
    """COUNT changes of a tree of so many files, spread over it: (what, path). Six of ten rewrite a file, two remove one,
    two make one; where files run out, the rest makes some."""
    step = max(1, files // count)
    for number in range(count):
        target = number * step
        what = "make" if number % 10 in (8, 9) or target >= files else "remove" if number % 10 in (6, 7) else "rewrite"
        yield (what, f"new/n{number:06}" if what == "make" else path_of(target))


def edit(root, files, count, salt=""):
    """Make these changes below ROOT. With another SALT, those that write write something else."""
    os.makedirs(os.path.join(root, "new"), exist_ok=True)
    for number, (what, path) in enumerate(edits(files, count)):
        full = os.path.join(root, path)
        if what == "remove":
            if os.path.lexists(full):
                os.unlink(full)
        else:
            with open(full, "wb") as file:
                file.write(content(number, f"changed {salt}"))


def cold(mount):
    sync(mount)
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def checked(count, ran):
    """RAN, a `diff --format json`, if it lists COUNT files."""
    found = sum(row["kind"] != "directory" for row in json.loads(ran.text))
    if found != count:
        raise Failed(f"diff lists {found} files, and {count} were changed")
    return ran


def calls(command):
    """How often COMMAND, and what it starts, opens something or asks what it is."""
    return measure.traced(command, CALLS)


class Table:
    """Rows of one filesystem in the table, each with what it was measured by. What fails takes its own cell only."""

    def __init__(self, results, kind, mount):
        self.results, self.kind, self.mount = results, kind, mount

    def put(self, who, row, measure_it, unit="ms"):
        name = f"{self.kind}: {row}"
        try:
            self.results.put(name, who, measure_it(), unit)
        except (Failed, OSError, ValueError, KeyError) as error:
            self.results.fail(who, name, error)
            print(f"   {who}: {name} FAILED: {error}", flush=True)

    def value(self, row, who="ours"):
        found = self.results.row(f"{self.kind}: {row}")
        return found["ours"] if who == "ours" else found["peers"].get(who)

    def aim(self, row, **most):
        self.results.aim(f"{self.kind}: {row}", **most)

    def diffs(self, who, diff, slow=False):
        """Warm, and with everything dropped from memory."""
        least, most = (1, 3) if slow else (3, 15)

        def from_disk(_):
            cold(self.mount)
            return diff().ms

        def warm():
            diff()
            return median(repeat(lambda _: diff().ms, most, least=least))

        self.put(who, "diff, warm", warm)
        self.put(who, "diff, cold", lambda: median(repeat(from_disk, min(most, 5), least=least)))

    def commits(self, who, root, commit, files, count):
        """Each of changes of its own: one that is there already would be found."""
        def once(number):
            edit(root(), files, count, salt=str(number))
            sync(self.mount)
            return commit(number).ms

        self.put(who, "commit", lambda: median(repeat(once, 5)))


def program(rows):
    """The one that measures in process, beside the other."""
    return f"{rows}-changes" if rows else None


def ours(table, who, tar, files, count, rows):
    """Our own rows, in a store of their own."""
    name = "edited"
    with who:
        who.ask("import", tar, IMAGE)
        who.without_spares("create", "--image", IMAGE, name)
        root = who.ask("mount", name).text
        edit(root, files, count)
        sync(table.mount)
        command = ("diff", "--format", "json", name)
        table.diffs("ours", lambda: checked(count, who.without_spares(*command)))
        table.put("ours", "diff, opens and stats", lambda: calls(who.command_without_spares(*command)), "calls")
        if table.kind == "btrfs":
            table.aim("diff, opens and stats", most=MOST_CALLS)
        if rows:
            binary, _, store = who.client
            table.put(WALK, "diff, warm", lambda: json.loads(Ran([program(rows), "walk", store, name]).text)["ms"])

            def cold_walk():
                cold(table.mount)
                return json.loads(Ran([program(rows), "walk", store, name, "1"]).text)["ms"]

            table.put(WALK, "diff, cold", lambda: median([cold_walk() for _ in range(3)]))
            walked = table.value("diff, warm", WALK)
            if table.kind == "xfs" and walked:
                table.aim("diff, warm", most=walked / 3)
            if table.kind == "btrfs":
                relatives(table, [program(rows), "relatives", store, name, binary])
        table.commits("ours", lambda: root, lambda n: who.without_spares("commit", name, f"{IMAGE}:{n}"), files, count)


def relatives(table, command):
    """clone and snapshot, in turns with the raw ioctl."""
    def rows():
        for row in json.loads(Ran(command).text):
            name = f"{table.kind}: {row['row']}"
            table.results.put(name, "ours", row["ours_ms"])
            table.results.put(name, "limit", row["limit_ms"])
            table.results.aim(name, most=row["most_ms"], ratio=row["most_ratio"])

    try:
        rows()
    except (Failed, OSError, ValueError, KeyError) as error:
        for row in ("clone", "clone, in process", "snapshot", "snapshot, in process"):
            table.results.fail("ours", f"{table.kind}: {row}", error)
        print(f"   reflinkd: clone and snapshot FAILED: {error}", flush=True)


def peer(table, contender, tar, files, count):
    """diff and commit of a peer. What it can't even start or import fails in its first row."""
    try:
        with contender:
            contender.import_root(tar, IMAGE)
            contender.create_of(IMAGE, "edited")
            edit(contender.root_of("edited"), files, count)
            sync(table.mount)
            table.diffs(contender.name, lambda: contender.diff("edited"), slow=True)
            table.commits(contender.name, lambda: contender.root_of("edited"),
                          lambda number: contender.commit("edited", f"{IMAGE}:{number}"), files, count)
            contender.release("edited")
    except (Failed, OSError) as error:
        table.results.fail(contender.name, f"{table.kind}: diff, warm", error)
        print(f"   {contender.name}: FAILED: {error}", flush=True)


def curve(who, directory, mount, rows, scale=1.0):
    """Points of the curve: {"files", "changes", "ours_ms", "walk_ms"}, for each size and each number of changes."""
    points = []
    with who:
        for files in dict.fromkeys(max(10, int(size * scale)) for size in SIZES):
            image = f"{IMAGE}-{files}"
            who.ask("import", archive(directory, files), image)
            for count in dict.fromkeys(max(1, int(number * scale)) for number in EDITS):
                name = f"c{files}-{count}"
                who.without_spares("create", "--image", image, name)
                edit(who.ask("mount", name).text, files, count)
                sync(mount)
                command = ("diff", "--format", "json", name)
                checked(count, who.without_spares(*command))
                point = {"files": files, "changes": count,
                         "ours_ms": median(repeat(lambda _, c=command: who.without_spares(*c).ms, 7)), "walk_ms": None}
                if rows:
                    walk = Ran([program(rows), "walk", who.client[2], name, "3"])
                    point["walk_ms"] = json.loads(walk.text)["ms"]
                points.append(point)
                who.remove(name)
    return points
