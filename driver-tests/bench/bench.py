#!/usr/bin/env python3
"""Measure this project, the limits and the peers in one run: on one Btrfs filesystem, on one XFS filesystem, and what
containers that read the same keep in memory.

    bench.py --work DIR [--binary REFLINKD] [--rows REFLINKD-BENCH] [--scale 1.0] [--only PART,...]

Prints a table and writes DIR/results.json:

    {"machine": {...}, "image": {...}, "floor": {...},
     "btrfs": {"rows": [{"row": "create", "unit": "ms", "limit": 3.2, "ours": 9.8, "peers": {"docker btrfs": 107.0},
                         "aim": "2.5 x the limit", "missed": false}],
               "failures": [{"who": "podman btrfs", "row": "load", "error": "..."}]},
     "xfs": {"rows": [...], "failures": [...]}, "memory": {"rows": [...], "failures": [...]},
     "changes": {"rows": [...], "failures": [...]},
     "curve": {"btrfs": [{"files": 1000, "changes": 1, "ours_ms": 9.1, "walk_ms": 20.4}, ...], "xfs": [...]}}

What fails is in `failures`, and its cell of the table says so. Without --binary only limits and
peers are measured. REFLINKD-BENCH (reflinkd-bench.rs says what it prints) measures in the store
that the rows of REFLINKD have filled. PARTs are `limits`, `ours` and the peers' programs; without
--only, all. --tables says which of the four tables. The curve of diff is
drawn into the file of --curve, or DIR/diff-curve.svg. Status 1 if one of our own measurements failed; a missed aim is none.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys

import changes
import curve
import make_image
import measure
import memory
import peers
import xfs
from measure import Failed, Ran, median, repeat, sync

GIB = 1 << 30
PARTS = ("limits", "ours", "docker", "podman", "containerd")
TABLES = ("btrfs", "xfs", "memory", "changes")
ORDER = ("load", "load, peak memory", "clone of the tree, CPU", "clone of the tree", "create", "create, in process", "create, in turns with it", "rm", "rm, in process",
         "rm, this image", "rm, an empty image", "ps -s, one container", "ps -s, 1,000 containers",
         "ps -s, 1,000, in process", "1,000 creates, 32 threads", "1,000 creates, 32 processes",
         "1,000 x --version, 32 processes", "--version: the start of a process")
# The rows that every contender has: what failed before one of them leaves it failed too.
COMMON = ("load", "create", "rm", "ps -s, one container")


class Results:
    """The rows so far. A failure takes a cell's place; it never ends the run."""

    def __init__(self):
        self.rows, self.failures = {}, []

    def row(self, name, unit="ms"):
        return self.rows.setdefault(name, {"row": name, "unit": unit, "limit": None, "ours": None, "peers": {}})

    def put(self, name, who, value, unit="ms"):
        row = self.row(name, unit)
        if who in ("ours", "limit"):
            row[who] = value
        else:
            row["peers"][who] = value

    def fail(self, who, name, error):
        self.failures.append({"who": who, "row": name, "error": str(error)})

    def aim(self, name, most=None, ratio=None):
        """What a row is to stay below: MOST of its unit, or RATIO times its limit."""
        row = self.row(name)
        most = most if most is not None else ratio * row["limit"] if ratio and row["limit"] else None
        if most is not None and row["ours"] is not None:
            row["aim"] = f"{ratio:g} x the limit" if ratio else f"{number(most)} {row['unit']}"
            row["missed"] = row["ours"] > most

    def failed(self, who, row, value):
        """Whether the empty cell of WHO in ROW is empty because something failed."""
        rows = [failure["row"] for failure in self.failures if failure["who"] == who]
        return value is None and (row in rows or bool(rows) and row in COMMON)

    def ordered(self):
        return sorted(self.rows.values(), key=lambda r: ORDER.index(r["row"]) if r["row"] in ORDER else len(ORDER))


def say(text):
    print(f"   {text}", flush=True)


class Ours:
    """The command line of this project, with a root of its own on the filesystem."""

    name = "ours"
    archive = "docker.tar"

    def __init__(self, binary, root):
        self.client = [binary, "--root", root]
        self.config = f"{root}.config.toml"

    def __enter__(self):
        Ran([*self.client, "init"])
        return self

    def __exit__(self, *_):
        pass

    def load(self, archive):
        return Ran([*self.client, "load", "-i", archive], memory=True)

    def unload(self):
        Ran([*self.client, "rmi", "bench"])
        Ran([*self.client, "gc"])

    def ask(self, *arguments):
        return Ran([*self.client, *arguments])

    def without_spares(self, *arguments):
        """A command that neither uses clones made ahead nor has any made."""
        return Ran(self.command_without_spares(*arguments))

    def command_without_spares(self, *arguments):
        with open(self.config, "w", encoding="utf-8") as file:
            file.write("spares = 0\ntend = false\n")
        return [*self.client, "--config", self.config, *arguments]

    def create(self, name):
        return Ran([*self.client, "create", "--image", "bench", name])

    def remove(self, *names):
        return Ran([*self.client, "rm", *names])

    def sizes(self, _name=None):
        return Ran([*self.client, "ps", "-s"])


def everyday(results, who, mount, most):
    """create, ps -s with one container, rm: the rows that each contender has."""
    def pair(number):
        name = f"bench{number}"
        sync(mount)
        made = who.create(name).ms
        return made, who.remove(name).ms

    times = repeat(pair, most)
    results.put("create", who.name, median([made for made, _ in times]))
    results.put("rm", who.name, median([gone for _, gone in times]))
    who.create("one")
    sync(mount)
    results.put("ps -s, one container", who.name, median(repeat(lambda _: who.sizes("one").ms, 10)))
    who.remove("one")


def measure_peer(results, peer, image, mount):
    say(f"{peer.name} ...")
    row = "start"
    try:
        with peer:
            row = "load"
            archive = os.path.join(image, peer.archive)
            measure.warm(archive)
            sync(mount)
            results.put("load", peer.name, peer.load(archive).ms)
            row = "create"
            everyday(results, peer, mount, most=10)
    except (Failed, OSError, subprocess.SubprocessError) as error:
        results.fail(peer.name, row, error)
        say(f"{peer.name}: {row} FAILED: {error}")


def measure_ours(results, ours, image, mount):
    say("reflinkd ...")
    row = "load"
    try:
        with ours:
            archive = os.path.join(image, ours.archive)
            measure.warm(archive)

            def load(number):
                if number:
                    ours.unload()
                sync(mount)
                return ours.load(archive)

            loads = repeat(load, 3, seconds=120)
            results.put("load", "ours", median([ran.ms for ran in loads]))
            results.aim("load", ratio=1.3)
            results.put("load, peak memory", "ours", max(ran.peak for ran in loads) / 1e6, "MB")
            results.aim("load, peak memory", most=64)
            row = "create"
            everyday(results, ours, mount, most=30)
    except (Failed, OSError) as error:
        results.fail("ours", row, error)
        say(f"reflinkd: {row} FAILED: {error}")


def measure_limits(results, image, mount):
    say("the limits: tar -x, decompression and sha256; raw ioctls ...")
    directory = os.path.join(mount, "limits")
    os.mkdir(directory)
    tree = os.path.join(directory, "tree")
    subprocess.run(["btrfs", "-q", "subvolume", "create", tree], check=True)
    floor = measure.load_floor(image, tree)
    raw = measure.raw_limits(tree, os.path.join(directory, "raw"))
    results.put("load", "limit", floor["overlapped_ms"])
    results.put("create", "limit", raw["create"])
    results.put("rm", "limit", raw["rm"])
    return floor


def measure_rows(results, program, ours):
    """The rows of the Rust bench, which measures in process, in the store that `ours` has filled."""
    say("in process ...")
    try:
        binary, _, root = ours.client
        for row in json.loads(Ran([program, root, "bench", binary]).text):
            results.put(row["row"], "ours", row["ours_ms"])
            results.put(row["row"], "limit", row["limit_ms"])
            results.aim(row["row"], most=row["most_ms"], ratio=row["most_ratio"])
    except (Failed, OSError, ValueError, KeyError) as error:
        results.fail("ours", "in process", error)
        say(f"reflinkd: in process FAILED: {error}")


def number(value):
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(results, names):
    """The table, one line a row: a value, and in brackets how many times ours it is."""
    head = ["", "unit", "reflinkd", "limit", "x limit", *names]
    lines = [head]
    for row in results.ordered():
        ours, limit = row["ours"], row["limit"]
        cells = [row["row"], row["unit"], "failed" if results.failed("ours", row["row"], ours) else number(ours), number(limit),
                 f"{ours / limit:.2f}" if ours and limit else "-"]
        for name in names:
            value = row["peers"].get(name)
            ratio = f" ({value / ours:.1f}x)" if value and ours else ""
            cells.append("failed" if results.failed(name, row["row"], value) else number(value) + ratio)
        lines.append(cells)
    return rendered(lines)


def rendered(lines):
    """LINES of cells as a table, the first of them its head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = []
    for line in lines:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        rows.append("| " + " | ".join(cells) + " |")
    rows.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rows)


def image_in(work, scale):
    """The bench image, made once per scale."""
    directory = os.path.join(work, f"image-{scale:g}")
    summary = os.path.join(directory, "summary.json")
    if not os.path.exists(summary):
        say(f"writing the image (about a minute at scale 1): {directory}")
        shutil.rmtree(directory, ignore_errors=True)
        make_image.make(directory, scale)
    with open(summary, encoding="utf-8") as file:
        return directory, json.load(file)


def version(*command):
    """The first line that COMMAND says of itself, or why it doesn't."""
    try:
        return Ran(list(command)).text.splitlines()[0]
    except (Failed, OSError, IndexError) as error:
        return f"unknown ({error})"


def facts(summary, machine):
    """The line about image and machine below the tables."""
    return (f"image: {summary['entries']:,} entries, {summary['files']:,} files, {summary['plain'] / 1e9:.2f} GB; "
            + ", ".join(f"{key} {value}" for key, value in machine.items()))


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="directory for image, filesystem and results")
    parser.add_argument("--binary", help="the reflinkd to measure")
    parser.add_argument("--rows", help="a program that prints rows measured in process")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the image")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--tables", default=",".join(TABLES), help=f"some of: {', '.join(TABLES)}")
    parser.add_argument("--curve", metavar="FILE", help="where the curve of diff is drawn")
    parser.add_argument("--no-quotas", action="store_true", help="leave simple quotas off")
    chosen = parser.parse_args()
    for option, known in (("only", PARTS), ("tables", TABLES)):
        words = getattr(chosen, option).replace(",", " ").split()
        unknown = sorted(set(words) - set(known))
        if unknown:
            parser.error(f"--{option}: {', '.join(unknown)} is none of {', '.join(known)}")
        setattr(chosen, option, words)
    return chosen


def btrfs_table(results, chosen, work, image):
    """The rows on Btrfs; the names of the peers, the floor of a load, and what quotas the filesystem had."""
    with measure.Filesystem(work, 64 * GIB, simple_quotas=not chosen.no_quotas) as filesystem:
        say(f"one Btrfs filesystem on {filesystem.device}, quotas: {filesystem.quotas}")
        floor = measure_limits(results, image, filesystem.mount) if "limits" in chosen.only else {}
        if chosen.binary and "ours" in chosen.only:
            ours = Ours(chosen.binary, os.path.join(filesystem.mount, "ours"))
            measure_ours(results, ours, image, filesystem.mount)
            if chosen.rows:
                measure_rows(results, chosen.rows, ours)
        contenders = [peer for peer in peers.all_peers(filesystem.mount) if peer.program in chosen.only]
        for peer in contenders:
            measure_peer(results, peer, image, filesystem.mount)
        return [peer.name for peer in contenders], floor, filesystem.quotas


def xfs_table(results, chosen, work, image):
    """The rows on XFS; the names of the columns beside ours."""
    with measure.Filesystem(work, 64 * GIB, "xfs") as filesystem:
        say(f"one XFS filesystem on {filesystem.device}")
        names = []
        if "limits" in chosen.only:
            say("the limits: tar -x, decompression and sha256; cp -a --reflink=always ...")
            tree = os.path.join(filesystem.mount, "limits")
            os.mkdir(tree)
            results.put("load", "limit", measure.load_floor(image, tree)["overlapped_ms"])
            xfs.copied(results, tree, filesystem.mount)
            names.append(xfs.COPIER)
        if chosen.binary and "ours" in chosen.only:
            say("reflinkd ...")
            xfs.ours(results, Ours(chosen.binary, os.path.join(filesystem.mount, "ours")), image, filesystem.mount)
        contenders = [peer for peer in peers.xfs_peers(filesystem.mount) if peer.program in chosen.only]
        for peer in contenders:
            measure_peer(results, peer, image, filesystem.mount)
        return names + [peer.name for peer in contenders]


def memory_table(results, chosen, work):
    """Growth of the page cache on both filesystems; the names of the columns beside ours."""
    tar = memory.archive(work)
    for kind in ("btrfs", "xfs"):
        with measure.Filesystem(work, 8 * GIB, kind) as filesystem:
            say(f"ten containers that read the same 100 MB, on {kind} ...")
            if chosen.binary and "ours" in chosen.only:
                client = Ours(chosen.binary, os.path.join(filesystem.mount, "ours")).client
                for read_only in (True, False):
                    row = f"{kind}, {'read-only' if read_only else 'writable'}"
                    try:
                        results.put(row, "ours", memory.ours(client, tar, filesystem.mount, read_only), "MB")
                    except (Failed, OSError) as error:
                        results.fail("ours", row, error)
            grown = memory.overlay(os.path.join(filesystem.mount, "overlay"), tar, filesystem.mount)
            for access in ("read-only", "writable"):
                results.put(f"{kind}, {access}", "overlay", grown, "MB")
    return ["overlay"]


def changes_table(results, chosen, work):
    """The rows of what goes by the changes, on both filesystems; the names of the columns beside ours, and the curve."""
    files, count = max(100, int(changes.FILES * chosen.scale)), changes.CHANGED
    tar = changes.archive(work, files)
    names, points = [changes.WALK], {}
    for kind in ("btrfs", "xfs"):
        with measure.Filesystem(work, 64 * GIB, kind, simple_quotas=not chosen.no_quotas and kind == "btrfs") as filesystem:
            say(f"{count} changes of {files:,} files, on {kind} ...")
            rows = changes.Table(results, kind, filesystem.mount)
            if chosen.binary and "ours" in chosen.only:
                ours = Ours(chosen.binary, os.path.join(filesystem.mount, "ours"))
                try:
                    changes.ours(rows, ours, tar, files, count, chosen.rows)
                    say(f"the curve of diff, on {kind} ...")
                    points[kind] = changes.curve(ours, work, filesystem.mount, chosen.rows, chosen.scale)
                except (Failed, OSError) as error:
                    results.fail("ours", f"{kind}: the rest", error)
                    say(f"reflinkd: changes on {kind} FAILED: {error}")
            for peer in peers.changes_peers(kind, filesystem.mount):
                if peer.program in chosen.only:
                    say(f"{peer.name} ...")
                    changes.peer(rows, peer, tar, files, count)
                    names += [peer.name] if peer.name not in names else []
    if points:
        path = chosen.curve or os.path.join(work, "diff-curve.svg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(curve.drawn({f"diff on {kind}": line for kind, line in points.items()}))
        say(f"the curve of diff: {path}")
    return names, points


def main():
    chosen = options()
    # A signal ends the run through the context managers, which stop daemons and unmount.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(130))
    work = os.path.abspath(chosen.work)
    os.makedirs(work, exist_ok=True)
    image, summary = image_in(work, chosen.scale)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    floor, done, points = {}, {}, {}
    for table_name in chosen.tables:
        results = Results()
        if table_name == "btrfs":
            names, floor, machine["quotas"] = btrfs_table(results, chosen, work, image)
        elif table_name == "xfs":
            names = xfs_table(results, chosen, work, image)
        elif table_name == "changes":
            names, points = changes_table(results, chosen, work)
        else:
            names = memory_table(results, chosen, work)
        done[table_name] = (results, names)
    for program in sorted(set(chosen.only) - {"limits", "ours"}):
        machine[program] = version(f"/usr/bin/{program}", "--version")
    path = os.path.join(work, "results.json")
    with open(path, "w", encoding="utf-8") as file:
        tables = {name: {"rows": results.ordered(), "failures": results.failures} for name, (results, _) in done.items()}
        json.dump({"machine": machine, "image": summary, "floor": floor, "curve": points, **tables}, file, indent=2)
    for name, (results, names) in done.items():
        print(f"\n{name}\n\n{table(results, names)}\n")
        for row in results.ordered():
            if "aim" in row:
                say(f"{'MISSED' if row['missed'] else 'met'}: {row['row']}: at most {row['aim']}")
        for failure in results.failures:
            print(f"   FAILED {failure['who']}, {failure['row']}: {failure['error']}")
    say(facts(summary, machine))
    if floor:
        say("floor of a load: " + ", ".join(f"{key[:-3]} {number(value)} ms" for key, value in floor.items()))
    say(f"as JSON: {path}")
    failed = [failure for results, _ in done.values() for failure in results.failures]
    return 1 if any(failure["who"] == "ours" for failure in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
