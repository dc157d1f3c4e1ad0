#!/usr/bin/env python3
"""Measure Docker's storage drivers beside each other, by whole `docker` commands: this project's plugin, and the built-in
btrfs and overlay2. Three dockerds of one version on one Btrfs filesystem, the same image in each, the commands in turns.

    docker_rows.py --work DIR [--binary REFLINKD] [--scale 1.0] [--only DRIVER,...] [--no-quotas]

Prints a table and writes DIR/docker.json:

    {"machine": {...}, "image": {...},
     "rows": [{"row": "create", "unit": "ms", "values": {"reflinkd": [41.0, ...], "btrfs": [...], "overlay2": [...]}}],
     "failures": [{"who": "btrfs", "row": "commit", "error": "..."}]}

DRIVERs are `reflinkd`, `btrfs` and `overlay2`; without --only, all. Status 1 if one of our own measurements failed; a missed
aim is none.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import measure
import peers
import plugin
from bench import GIB, facts, image_in, number, rendered, say, version
from measure import Failed, Ran, median, sync

DRIVERS = ("reflinkd", "btrfs", "overlay2")
# The bench's image has no program in it: `tools` is that image and busybox.
IMAGE, TOOLS, BUILT, COMMIT = "bench:latest", "tools:latest", "built:latest", "committed:latest"
LIMITS = ["--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"]
DOCKERFILE = f"""FROM {TOOLS}
WORKDIR /app
LABEL a=b
ENV C=d
COPY hello.txt .
RUN echo more >>hello.txt
"""
# Layers that the Dockerfile adds: the classic builder makes one for WORKDIR, too.
STEPS = 3
CONTAINERS, MANY = 10, 1000
DIFF_BYTES = 2 << 30
# The cleaner takes a while for an image's worth of extents.
CLEANER_SECONDS = 120

# Times that the built-in btrfs is to take of ours, and overlay2.
FAR = {"btrfs": 20, "overlay2": 1}
LEVEL = {"btrfs": 1, "overlay2": 1}
AIMS = {"load": LEVEL, "create": LEVEL, "rm": FAR, "rm, 10 changes": FAR, "diff, 10 changes": FAR, "commit, 10 changes": FAR,
        "ps -as, 1 container": FAR, "ps -as, 10 containers": FAR}
MOST = {"memory, 1,000 containers": 20, "memory, peak of a Diff of 2 GB": 40}


class Rows:
    """What was measured so far, by row and driver; and what failed. A failure takes a cell's place; it never ends the run."""

    def __init__(self, contenders, mount):
        self.contenders, self.mount = contenders, mount
        self.rows, self.failures, self.failed, self.out = {}, [], set(), []

    def row(self, name, unit="ms"):
        return self.rows.setdefault(name, {"row": name, "unit": unit, "values": {}})

    def put(self, row, who, value, unit="ms"):
        self.row(row, unit)["values"].setdefault(who, []).append(value)

    def fail(self, who, row, error):
        self.failures.append({"who": who, "row": row, "error": str(error)})
        say(f"{who}: {row} FAILED: {error}")

    def settle(self):
        """Nothing dirty, and no destroyed subvolume on its way out: the next one's time is its own."""
        # Unlike a plain sync this wakes the cleaner, which otherwise comes every 30 seconds.
        Ran(["btrfs", "filesystem", "sync", self.mount])
        end = time.monotonic() + CLEANER_SECONDS
        while Ran(["btrfs", "subvolume", "list", "-d", self.mount]).text:
            if time.monotonic() > end:
                raise Failed(f"destroyed subvolumes are still there after {CLEANER_SECONDS} s")
            time.sleep(0.05)
        sync(self.mount)

    def turns(self, names, once, most, seconds=20.0, least=3):
        """Let the contenders measure the rows NAMES in turns, each MOST times or until SECONDS of its own are over, at LEAST
        so often. ONCE(who, n) yields pairs of a row and its milliseconds. Who fails is out of the rest of them."""
        title = "; ".join(names)
        say(f"{title} ...")
        for name in names:
            self.row(name)
            self.failed.update((who.name, name) for who in self.out)
        going, spent = list(self.contenders), {}
        for run in range(most):
            for who in rotated(going, run):
                start = time.monotonic()
                try:
                    self.settle()
                    start = time.monotonic()
                    for row, value in once(who, run):
                        self.put(row, who.name, value)
                except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
                    self.fail(who.name, title, error)
                    self.failed.update((who.name, name) for name in names)
                    going.remove(who)
                    continue
                spent[who] = spent.get(who, 0) + time.monotonic() - start
                if run + 1 >= least and spent[who] > seconds:
                    going.remove(who)

    def prepare(self, title, once):
        """What rows need and don't measure. Who fails it is out of all that follows."""
        for who in list(self.contenders):
            try:
                once(who)
            except (Failed, OSError, subprocess.SubprocessError) as error:
                self.fail(who.name, title, error)
                self.contenders.remove(who)
                self.out.append(who)

    def median(self, row, who):
        values = self.rows.get(row, {"values": {}})["values"].get(who)
        return median(values) if values else None


def rotated(contenders, run):
    """Each is first as often as the others: what one leaves in memory or to the disk is not always the same one's."""
    start = run % len(contenders) if contenders else 0
    return contenders[start:] + contenders[:start]


def ask(who, *arguments):
    return Ran([*who.client, *arguments])


def shared(archive):
    """Regular files of the plain layer ARCHIVE, each with one name only."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
    linked = {member.linkname for member in members if member.islnk()}
    return sorted(member.name for member in members
                  if member.isreg() and member.name not in linked and "/.wh." not in member.name)


class Edit:
    """Ten changes of a container, spread over its tree, by a program in it: six files rewritten, two removed, two made."""

    def __init__(self, files):
        chosen = files[::max(1, len(files) // 8)][:8]
        if len(chosen) < 8:
            raise Failed(f"the image's last layer has {len(files)} files, and 8 are to be changed: use a larger --scale")
        self.rewritten, self.removed = chosen[:6], chosen[6:]
        self.made = [f"{os.path.dirname(name)}/made" for name in chosen[:2]]

    def script(self):
        """With other content each time that it runs: what is there already would be found."""
        write = " ".join(f"'/{name}'" for name in self.rewritten + self.made)
        remove = " ".join(f"'/{name}'" for name in self.removed)
        return f'for file in {write}; do cat /proc/uptime - >"$file" </proc/sys/kernel/random/uuid; done; rm -f {remove}'

    def lines(self):
        """What `docker diff` says of them."""
        kinds = (("C", self.rewritten), ("D", self.removed), ("A", self.made))
        return {f"{kind} /{name}" for kind, names in kinds for name in names}

    def checked(self, ran):
        """RAN, a `docker diff`, if it lists the ten changes, and beside them only directories above them."""
        lines = set(ran.text.splitlines())
        above = {f"C /{name.rsplit('/', depth)[0]}" for name in self.rewritten + self.removed + self.made
                 for depth in range(1, name.count("/") + 1)}
        wrong = self.lines() ^ (lines - above)
        if wrong:
            raise Failed(f"diff is wrong in {len(wrong)} lines, such as {min(wrong)!r}")
        return ran

    def create(self, who, name):
        """A container with the changes, not running any more."""
        ask(who, "create", *LIMITS, "--name", name, TOOLS, "sh", "-c", self.script())
        ask(who, "start", "-a", name)


def sized(ran, count):
    """RAN, a `docker ps -as`, if it has a size above zero for COUNT containers."""
    sizes = re.findall(r"(\S+) \(virtual", ran.text)
    if len(sizes) != count or "0B" in sizes:
        raise Failed(f"ps -as says sizes {', '.join(sizes) or 'none'} for {count} containers with changes")
    return ran


def loads(rows, archive):
    def once(who, run):
        if run:
            yield "rmi, the image", ask(who, "rmi", IMAGE).ms
            rows.settle()
        measure.warm(archive)
        yield "load", who.load(archive).ms

    rows.turns(["load", "rmi, the image"], once, most=3, seconds=120)


def tools(work):
    """The context of the image with programs: busybox as /bin/sh and /bin/true."""
    context = os.path.join(work, "docker-tools")
    shutil.rmtree(context, ignore_errors=True)
    os.makedirs(f"{context}/bin")
    shutil.copy("/bin/busybox", f"{context}/bin/busybox")
    for name in ("sh", "true", "cat", "rm", "echo"):
        os.symlink("busybox", f"{context}/bin/{name}")
    with open(f"{context}/Dockerfile", "w", encoding="utf-8") as file:
        file.write(f"FROM {IMAGE}\nCOPY bin /bin/\n")
    return context


def everyday(rows):
    def once(who, run):
        name = f"bench{run}"
        yield "create", who.create(name).ms
        yield "rm", who.remove(name).ms
        rows.settle()
        yield "run --rm, of true", ask(who, "run", "--rm", *LIMITS, TOOLS, "/bin/true").ms

    rows.turns(["create", "rm", "run --rm, of true"], once, most=15)


def changed(rows, edit):
    """The rows of one container with ten changes."""
    def sizes(who, _):
        yield "ps -as, 1 container", sized(ask(who, "ps", "-as"), 1).ms

    def diff(who, _):
        yield "diff, 10 changes", edit.checked(ask(who, "diff", "edited0")).ms

    def commit(who, _):
        ask(who, "start", "-a", "edited0")
        rows.settle()
        yield "commit, 10 changes", ask(who, "commit", "edited0", COMMIT).ms
        rows.settle()
        yield "rmi, a commit", ask(who, "rmi", COMMIT).ms

    rows.prepare("a container with ten changes", lambda who: edit.create(who, "edited0"))
    rows.turns(["ps -as, 1 container"], sizes, most=15, seconds=12)
    rows.turns(["diff, 10 changes"], diff, most=15, seconds=12)
    rows.turns(["commit, 10 changes", "rmi, a commit"], commit, most=10, seconds=20)


def build(rows, work):
    context = os.path.join(work, "docker-build")
    os.makedirs(context, exist_ok=True)
    for name, text in (("Dockerfile", DOCKERFILE), ("hello.txt", "hello\n")):
        with open(f"{context}/{name}", "w", encoding="utf-8") as file:
            file.write(text)

    def layers(who, image):
        return int(ask(who, "image", "inspect", "-f", "{{len .RootFS.Layers}}", image).text)

    def once(who, _):
        yield "build, three steps", ask(who, "build", "-q", "--no-cache", *LIMITS, "-t", BUILT, context).ms
        added = layers(who, BUILT) - layers(who, TOOLS)
        if added != STEPS:
            raise Failed(f"build has added {added} layers instead of {STEPS}")
        ask(who, "rmi", BUILT)

    rows.turns(["build, three steps"], once, most=5, seconds=25)


def several(rows, edit):
    """The rows of ten containers with ten changes each."""
    def create(who):
        for extra in range(1, CONTAINERS):
            edit.create(who, f"edited{extra}")

    def sizes(who, _):
        yield "ps -as, 10 containers", sized(ask(who, "ps", "-as"), CONTAINERS).ms

    def disk(who, _):
        yield "system df, 10 containers", ask(who, "system", "df").ms

    def remove(who, run):
        yield "rm, 10 changes", who.remove(f"edited{run}").ms

    rows.prepare("ten containers with ten changes", create)
    rows.turns(["ps -as, 10 containers"], sizes, most=10, seconds=20)
    rows.turns(["system df, 10 containers"], disk, most=10, seconds=20)
    rows.turns(["rm, 10 changes"], remove, most=CONTAINERS, least=CONTAINERS)


def resident(rows, ours, scale):
    """What the plugin's process keeps in memory with many containers, and at most during a large Diff."""
    def put(row, value):
        rows.put(f"memory, {row}", ours.name, value, "MB")

    count = int(MANY * scale)
    many = f"{count:,} containers"
    try:
        put("after the rows above", ours.plugin.memory("VmRSS"))
        put("peak of the rows above", ours.plugin.memory("VmHWM"))
        say(f"{many}, by dockerd's API ...")
        plugin.create_many(f"{ours.run}/sock", TOOLS, count)
        put(many, ours.plugin.memory("VmRSS"))
        say("Diff of 2 GB, by the plugin's socket ...")
        put("peak of a Diff of 2 GB", ours.plugin.diff_peak(DIFF_BYTES))
    except (Failed, OSError, KeyError, ValueError) as error:
        rows.fail(ours.name, "memory", error)


def measure_all(rows, work, image, scale):
    for who in rows.contenders:
        if isinstance(who, plugin.Ours):
            rows.put("memory, idle", who.name, who.plugin.memory("VmRSS"), "MB")
    loads(rows, os.path.join(image, "docker.tar"))
    rows.prepare("an image with programs", lambda who: ask(who, "build", "-q", "-t", TOOLS, tools(work)))
    edit = Edit(shared(os.path.join(image, "layer3.tar")))
    everyday(rows)
    changed(rows, edit)
    build(rows, work)
    several(rows, edit)
    for who in rows.contenders:
        if isinstance(who, plugin.Ours):
            resident(rows, who, scale)


def contenders(chosen, directory):
    found = [plugin.Ours(chosen.binary, directory)] if "reflinkd" in chosen.only else []
    for driver in DRIVERS[1:]:
        if driver in chosen.only:
            who = peers.Docker(driver, directory)
            who.name = driver
            found.append(who)
    return found


def verdicts(rows):
    """What each row is to stay below, and whether it does: (met, text). Rows that lack a number are left out."""
    for row, times in AIMS.items():
        ours = rows.median(row, "reflinkd")
        for who, least in times.items():
            value = rows.median(row, who)
            if ours and value:
                aim = f"{least} times faster than {who}" if least > 1 else f"no slower than {who}"
                yield value >= least * ours, f"{row}: {aim} ({value / ours:.2f})"
    for row, most in MOST.items():
        ours = rows.median(row, "reflinkd")
        if ours:
            yield ours <= most, f"{row}: at most {most} MB ({number(ours)})"


def cell(values):
    """The median, and from where to where the values reach."""
    if not values:
        return "-"
    return number(values[0]) if len(values) == 1 else f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def table(rows, names):
    """One line a row: medians, and how many times ours each of the others is."""
    lines = [["", "unit", "runs", *names, *(f"{name} / reflinkd" for name in names if name != "reflinkd")]]
    for row in rows.rows.values():
        values, ours = row["values"], rows.median(row["row"], "reflinkd")
        runs = [len(values.get(name, [])) for name in names if name in values]
        cells = ["failed" if (name, row["row"]) in rows.failed else cell(values.get(name)) for name in names]
        others = (rows.median(row["row"], name) for name in names if name != "reflinkd")
        ratios = [f"{other / ours:.2f}" if other and ours else "-" for other in others]
        lines.append([row["row"], row["unit"], "/".join(str(count) for count in (runs if len(set(runs)) > 1 else runs[:1])),
                      *cells, *ratios])
    return rendered(lines)


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="directory for image, filesystem and results")
    parser.add_argument("--binary", help="the reflinkd to measure")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the image")
    parser.add_argument("--only", default=",".join(DRIVERS), help=f"some of: {', '.join(DRIVERS)}")
    parser.add_argument("--no-quotas", action="store_true", help="leave simple quotas off")
    chosen = parser.parse_args()
    chosen.only = chosen.only.replace(",", " ").split()
    unknown = sorted(set(chosen.only) - set(DRIVERS))
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} is none of {', '.join(DRIVERS)}")
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
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
               "docker": version("/usr/sbin/dockerd", "--version")}
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        filesystem = stack.enter_context(measure.Filesystem(work, 64 * GIB, simple_quotas=not chosen.no_quotas))
        machine["quotas"] = filesystem.quotas
        say(f"one Btrfs filesystem on {filesystem.device}, quotas: {filesystem.quotas}")
        rows = Rows(contenders(chosen, filesystem.mount), filesystem.mount)
        rows.prepare("start", stack.enter_context)
        measure_all(rows, work, image, chosen.scale)
    machine["seconds"] = round(time.monotonic() - started)
    path = os.path.join(work, "docker.json")
    with open(path, "w", encoding="utf-8") as file:
        document = {"machine": machine, "image": summary, "rows": list(rows.rows.values()), "failures": rows.failures}
        json.dump(document, file, indent=2)
    print(f"\n{table(rows, [name for name in DRIVERS if name in chosen.only])}\n")
    for met, text in verdicts(rows):
        say(f"{'met' if met else 'MISSED'}: {text}")
    for failure in rows.failures:
        print(f"   FAILED {failure['who']}, {failure['row']}: {failure['error']}")
    say(facts(summary, machine))
    say(f"as JSON: {path}")
    return 1 if any(failure["who"] == "reflinkd" for failure in rows.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
