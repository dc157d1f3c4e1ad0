#!/usr/bin/env python3
"""Measure containerd's snapshotters beside each other: this project's, with its differ, and the built-in btrfs and overlayfs.
Three containerds of one version on one Btrfs filesystem, the same image in each, in turns, asked over containerd's own socket.

    containerd_rows.py --work DIR --cache DIR [--binary REFLINKD] [--scale 1.3] [--only SNAPSHOTTER,...]

Prints a table and writes DIR/containerd.json, in docker_rows.py's form. CACHE is where bench.client and containerd are, or will be.
Status 1 if one of our own measurements failed; a missed aim is none.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tarfile
import time
from pathlib import Path

import docker_rows
import measure
import snapshotter
from bench import GIB, facts, image_in, number, say, version
from docker_rows import shared, table
from measure import Failed

import debs

SNAPSHOTTERS = ("reflinkd", "btrfs", "overlayfs")
CLIENTS, POLLED, PASSES = 32, 1000, 3
# What a file that is written anew gets: more than a filesystem keeps beside its inode.
BYTES = 5000
BLOCKS = 8192
# What directories and the filesystem's own structures may add to a usage.
SLACK = 1 << 20

AGAIN, AFTER, DIFF, VIEWED = "usage, 20 changes", "usage, right after a change", "diff, 20 changes", "view and diff, 20 changes"
IMPORT, UNLOAD = "import", "images rm --sync"
PREPARE, REMOVE, BOTH = "prepare", "remove", "prepare + remove, collected"
MANY, MANY_LEFT = f"{CLIENTS} clients: prepare + remove, collected", f"{CLIENTS} clients: prepare + remove"
# A pass over all containers begins each ten seconds. Of a core is what it takes of these.
INTERVAL_MS = 10_000
IDLE, CHANGING = "polling, nothing changed", "polling, 1 % changed"


def of_polling(kind):
    """The rows of one kind: a pass, the CPU of the snapshotter's process, and that of both daemons."""
    return f"{kind}: time of a pass", f"{kind}: the snapshotter, of a core", f"{kind}: with containerd, of a core"



# How many times as long the other is to take.
FAR = {"btrfs": 50, "overlayfs": 1}
LEVEL = {"btrfs": 1, "overlayfs": 1}
SHORT = {"btrfs": 1 / 0.6, "overlayfs": 1 / 0.6}
AIMS = {AGAIN: FAR, AFTER: FAR, DIFF: FAR, IMPORT: SHORT, BOTH: LEVEL, MANY: {"btrfs": 4}}
# Percent of a core.
MOST = {of_polling(kind)[1]: 1 for kind in (IDLE, CHANGING)}


class Changes:
    """Twenty changed files, spread over the tree: twelve rewritten, four removed, four made."""

    def __init__(self, files):
        chosen = files[::max(1, len(files) // 16)][:16]
        if len(chosen) < 16:
            raise Failed(f"the image's last layer has {len(files)} files, and 16 are to be changed: use a larger --scale")
        self.rewritten, self.removed = chosen[:12], chosen[12:]
        self.new = [f"{os.path.dirname(name)}/made" for name in chosen[:4]]
        self.written = {}

    def make(self, root, who):
        """In the container's tree at ROOT; WHO is what `checked` is asked with."""
        content = self.written.setdefault(who, {})
        for name in self.rewritten + self.new:
            content[name] = written(os.path.join(root, name))
        for name in self.removed:
            os.remove(os.path.join(root, name))

    def again(self, root, who):
        """One of them gets another content."""
        name = self.rewritten[0]
        self.written[who][name] = written(os.path.join(root, name))

    def usage(self, answer):
        """ANSWER if it says what these take, and little more."""
        least = BYTES * len(self.rewritten + self.new)
        most = BLOCKS * len(self.rewritten + self.new) + SLACK
        if not least <= answer["size"] <= most or answer["inodes"] < len(self.rewritten):
            raise Failed(f"usage is {answer['size']} bytes in {answer['inodes']} inodes, expected {least} to {most} bytes")
        return answer

    def checked(self, layer, who):
        """LAYER, a tar, if it has these changes with their content, and beside them only directories."""
        found, gone = {}, set()
        with tarfile.open(layer) as tar:
            for member in tar:
                head, tail = os.path.split(member.name.removeprefix("./"))
                if tail.startswith(".wh."):
                    gone.add(os.path.join(head, tail.removeprefix(".wh.")))
                elif not member.isdir():
                    found[os.path.join(head, tail)] = tar.extractfile(member).read() if member.isreg() else None
        wrong = {name for name in found.keys() | self.written[who].keys() if found.get(name) != self.written[who].get(name)}
        wrong |= gone ^ set(self.removed)
        if wrong:
            raise Failed(f"the diff is wrong in {len(wrong)} files, such as {min(wrong)!r}")


def written(path):
    content = os.urandom(BYTES)
    with open(path, "wb") as file:
        file.write(content)
    return content


def files_of(image):
    """How many files a container of IMAGE, a directory of plain layers, has: any but directories."""
    names = set()
    for layer in sorted(Path(image).glob("layer*.tar")):
        new = set()
        with tarfile.open(layer) as tar:
            for member in tar:
                head, tail = os.path.split(member.name)
                if tail.startswith(".wh."):
                    names.discard(os.path.join(head, tail.removeprefix(".wh.")))
                elif not member.isdir():
                    new.add(member.name)
        names |= new
    return len(names)


def imports(rows, archive, seconds):
    def once(who, run):
        if run:
            yield UNLOAD, who.unload().ms
            rows.settle()
        measure.warm(archive)
        yield IMPORT, who.load(archive).ms

    rows.turns([IMPORT, UNLOAD], once, most=3, seconds=4 * seconds, least=1)


def container(rows, changes, count):
    """A container of the image with changes in it, and a look whether all the image is there."""
    def once(who):
        who.parent = who.top()
        # Not in the container that is measured: the times at which its directories are read would be changes.
        root = who.made("looked-at", who.parent)
        found = 0
        for top, directories, names in os.walk(root):
            # Links to directories are listed with these.
            found += len(names) + sum(os.path.islink(os.path.join(top, name)) for name in directories)
        who.unmade("looked-at")
        who.root = who.made("changed", who.parent)
        if found != count:
            raise Failed(f"a container of the image has {found} files instead of {count}")
        changes.make(who.root, who.name)
        rows.settle()
        changes.usage(who.ask("usage", key="changed"))

    rows.prepare("a container with twenty changes", once)


def usages(rows, changes, seconds):
    def again(who, _):
        answer = changes.usage(who.ask("usage", key="changed", times=10, seconds=2))
        for value in answer["ms"]:
            yield AGAIN, value

    def after(who, _):
        changes.again(who.root, who.name)
        yield AFTER, changes.usage(who.ask("usage", key="changed"))["ms"][0]

    rows.turns([AGAIN], again, most=8, seconds=seconds, least=2)
    rows.turns([AFTER], after, most=15, seconds=seconds, least=2)


def diffs(rows, changes, work, seconds):
    out = os.path.join(work, "containerd-diff.tar")

    def once(who, _):
        changes.again(who.root, who.name)
        rows.settle()
        diff, whole = who.ask("diff", key="changed", parent=who.parent, out=out)["ms"]
        changes.checked(out, who.name)
        yield DIFF, diff
        yield VIEWED, whole

    rows.turns([DIFF, VIEWED], once, most=12, seconds=1.5 * seconds, least=2)
    Path(out).unlink(missing_ok=True)


def everyday(rows, seconds):
    def once(who, run):
        prepared = who.ask("prepare", key=f"one{run}", parent=who.parent)["ms"][0]
        removed, collected = who.ask("remove", key=f"one{run}")["ms"]
        yield PREPARE, prepared
        yield REMOVE, removed
        yield BOTH, prepared + collected

    rows.turns([PREPARE, REMOVE, BOTH], once, most=15, seconds=seconds)


def many(rows, seconds):
    def once(who, run):
        # Of those that take a second and more to remove one, each client makes one: else all would wait for minutes.
        times = 1 if (rows.median(BOTH, who.name) or 0) > 1000 else 1_000_000
        answer = who.ask("many", key=f"many{run}", parent=who.parent, clients=CLIENTS, seconds=seconds, times=times)
        if not answer["count"]:
            raise Failed("no client has prepared and removed anything")
        working, collected = answer["ms"]
        yield MANY_LEFT, working / answer["count"]
        yield MANY, collected / answer["count"]

    rows.turns([MANY_LEFT, MANY], once, most=3, seconds=20, least=1)


def whole(value, asked, count):
    """What VALUE, of ASKED snapshots, would be of COUNT."""
    return value * count / asked


def polling(rows, count):
    """Ask for the usage of each of COUNT containers, one after the other: of those of which none has changed since the last pass,
    and of those of which one in a hundred has."""
    changing = max(1, count // 100)

    def create(who):
        who.polled = [who.made(f"polled{index}", who.parent) for index in range(changing)]
        for index in range(changing, count):
            who.ask("prepare", key=f"polled{index}", parent=who.parent)
        change(who)
        # What a later pass finds unchanged has been counted once: all of it, but for whom that takes minutes.
        one_pass(who, seconds=60)

    def change(who):
        for root in who.polled:
            written(os.path.join(root, "written"))

    def one_pass(who, seconds=4):
        # As many as there is time for.
        answer = who.ask("poll", key="polled", times=count, seconds=seconds)
        if answer["size"] < BYTES * min(answer["count"], changing):
            raise Failed(f"{answer['count']} usages come to {answer['size']} bytes, with changes in {changing} of {count} containers")
        return answer

    def once(who, kind):
        before, answers = who.cpu_ms(), []
        for _ in range(PASSES):
            if kind == CHANGING:
                change(who)
            answers.append(one_pass(who))
        own, both = (after - first for after, first in zip(who.cpu_ms(), before, strict=True))
        asked, spent = sum(answer["count"] for answer in answers), sum(answer["ms"][0] for answer in answers)
        for row, value in zip(of_polling(kind), (spent, own * 100 / INTERVAL_MS, both * 100 / INTERVAL_MS), strict=True):
            yield row, whole(value, asked, count)

    rows.prepare(f"{count:,} containers", create)
    for kind in (IDLE, CHANGING):
        for row, unit in zip(of_polling(kind), ("ms", "%", "%"), strict=True):
            rows.row(row, unit)
        rows.turns(of_polling(kind), lambda who, _, kind=kind: once(who, kind), most=3, seconds=20, least=1)


def verdicts(rows):
    """What each row is to stay below, and whether it does: (met, text). Rows that lack a number are left out."""
    for row, times in AIMS.items():
        ours = rows.median(row, "reflinkd")
        for who, least in times.items():
            value = rows.median(row, who)
            if ours and value:
                aim = f"at most {1 / least:.3g} of the time of {who}" if least != 1 else f"no slower than {who}"
                yield value >= least * ours, f"{row}: {aim} ({ours / value:.3f})"
    for row, most in MOST.items():
        ours = rows.median(row, "reflinkd")
        if ours is not None:
            yield ours <= most, f"{row}: at most {most} % ({number(ours)})"


def measure_all(rows, work, image, scale, seconds):
    imports(rows, os.path.join(image, "docker.tar"), seconds)
    changes = Changes(shared(os.path.join(image, "layer3.tar")))
    container(rows, changes, files_of(image))
    usages(rows, changes, seconds)
    diffs(rows, changes, work, seconds)
    everyday(rows, seconds)
    many(rows, seconds=2)
    polling(rows, max(10, int(POLLED * min(1, scale))))


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="directory for image, filesystem and results")
    parser.add_argument("--cache", required=True, type=Path, help="directory of bench.client and the unpacked containerd")
    parser.add_argument("--binary", help="the reflinkd to measure")
    parser.add_argument("--scale", type=float, default=1.3, help="size of the image: 1.3 are 60,000 files")
    parser.add_argument("--seconds", type=float, default=20, help="about how long a snapshotter may take for a row; four times that to import")
    parser.add_argument("--only", default=",".join(SNAPSHOTTERS), help=f"some of: {', '.join(SNAPSHOTTERS)}")
    chosen = parser.parse_args()
    chosen.only = chosen.only.replace(",", " ").split()
    unknown = sorted(set(chosen.only) - set(SNAPSHOTTERS))
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(SNAPSHOTTERS)}")
    if "reflinkd" in chosen.only and not chosen.binary:
        parser.error("--binary is needed to measure reflinkd")
    return chosen


def main():
    chosen = options()
    # A signal ends the run through the context managers, which stop daemons and unmount.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(130))
    work = os.path.abspath(chosen.work)
    os.makedirs(work, exist_ok=True)
    image, summary = image_in(work, chosen.scale)
    programs = debs.unpacked(chosen.cache, "containerd-2", debs.CONTAINERDS["2"])
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
               "containerd": version(str(programs / "usr/bin/containerd"), "--version")}
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        filesystem = stack.enter_context(measure.Filesystem(work, 64 * GIB, simple_quotas=True))
        machine["quotas"] = filesystem.quotas
        say(f"one Btrfs filesystem on {filesystem.device}, quotas: {filesystem.quotas}")
        client = str(chosen.cache / "bench.client")
        rows = docker_rows.Rows([snapshotter.Snapshotter(name, programs, client, filesystem, chosen.binary, work)
                     for name in SNAPSHOTTERS if name in chosen.only], filesystem.mount)
        rows.prepare("start", stack.enter_context)
        try:
            measure_all(rows, work, image, chosen.scale, chosen.seconds)
        except (KeyboardInterrupt, SystemExit):
            # What was measured so far is no less true.
            rows.fail("all", "what comes next", "interrupted")
    machine["seconds"] = round(time.monotonic() - started)
    path = os.path.join(work, "containerd.json")
    with open(path, "w", encoding="utf-8") as file:
        document = {"machine": machine, "image": summary, "rows": list(rows.rows.values()), "failures": rows.failures}
        json.dump(document, file, indent=2)
    print(f"\n{table(rows, [name for name in SNAPSHOTTERS if name in chosen.only])}\n")
    for met, text in verdicts(rows):
        say(f"{'met' if met else 'MISSED'}: {text}")
    for failure in rows.failures:
        print(f"   FAILED {failure['who']}, {failure['row']}: {failure['error']}")
    say(facts(summary, machine))
    say(f"as JSON: {path}")
    return 1 if any(failure["who"] in ("reflinkd", "all") for failure in rows.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
