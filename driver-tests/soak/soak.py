"""A random mix at all front doors for a long time: nothing is lost, and nothing grows.

    soak.py --work DIR --binary reflinkd --api FILE [--fs simple full none xfs] [--minutes 30] [--seed 1]
    soak.py ... --leak connection subvolume     plant leaks, and fail if they aren't found

Workers of each door go on in rounds, with things of their own. After a round all stop: what there is must be what they made,
`check` finds nothing, and after `gc` there is nothing that nobody knows. After every other round all is removed first, so that what
is used then can be compared. At the end even the store goes.
"""

import argparse
import contextlib
import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "load"))
import api  # noqa: E402
import door  # noqa: E402
import gauges  # noqa: E402
import ground  # noqa: E402
import leaks  # noqa: E402
import load  # noqa: E402
import store  # noqa: E402
from promises import differences  # noqa: E402
from soaking import Faults, Log, Soak, Wrong  # noqa: E402

SIZE = 3 << 30
# Seconds between two pauses, and how many pauses there are at the least: half of them remove everything.
ROUND, PAUSES = 30, 2 * gauges.LEAST
# KiB that a filesystem may have more in use after all, for its own books.
BOOKS = 1_024
# How long what goes on in the background may take, and how long nothing may change for a server to be at rest.
PATIENCE, REST = 120, 2.5
STOP = threading.Event()


class Server(door.Server):
    """One that is killed now and then, if it is `mortal`."""

    def __init__(self, mortal, *what, **more):
        super().__init__(*what, **more)
        self.mortal, self.up = mortal, threading.Event()

    def start(self):
        super().start()
        self.up.set()

    def is_ending(self):
        return self.mortal and not self.up.is_set()

    def wait(self):
        """Until it is there."""
        if not self.up.wait(door.PATIENCE):
            raise Wrong("the server that was killed isn't there again")


class Store(store.Store):
    """Docker's door is asked for tars on a connection that stays."""

    line = None

    def diffs(self, layers):
        return {row["key"]: self.line.diff(row["key"], row["parent"] or "") for row in layers}


class Run:
    """One filesystem's."""

    def __init__(self, name, options):
        self.name, self.options = name, options
        self.kind, self.quotas = ground.GROUNDS[name]
        self.directory = options.work / name
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "images").mkdir(parents=True)
        self.mnt = self.directory / "mnt"
        self.samples, self.pauses, self.slowest, self.findings = {gauge.name: [] for gauge in gauges.ALL}, 0, 0, []
        self.seconds, self.empty, self.done = 0, None, False
        self.log = Log(self.directory / "operations.log")

    def say(self, line):
        print(f"   {self.name:<7} {line}", flush=True)

    def run(self):
        """All of it. What went wrong is in `findings`."""
        began = time.monotonic()
        image = self.directory / "disk"
        ground.make(self.name, image, self.mnt, self.options.binary, SIZE)
        try:
            with ground.loop(image) as device, ground.mounted(device, self.mnt), contextlib.ExitStack() as ending:
                self.soak_on(ending)
            self.fsck(image)
        except (Wrong, store.Damage, load.Failed, door.Failed, ground.Failed) as error:
            self.findings.append(str(error))
        except Exception as error:  # noqa: BLE001: the other filesystems go on, and this one has failed
            self.findings.append("".join(traceback.format_exception(error)))
        self.seconds = time.monotonic() - began
        if not self.findings:
            image.unlink()
        return self

    def soak_on(self, ending):
        binary, work = self.options.binary, self.directory / "images"
        self.store = Store(binary, self.mnt, self.kind)
        # What is there without a store.
        self.before = gauges.of_store(self.mnt, self.kind)
        self.soak = Soak(self.store, self.log, not self.options.release, binary, self.store.root, work, self.quotas is not None,
                         self.options.seed, STOP)
        self.soak.begin()
        self.serve(ending)
        planted = leaks.Leaks(self.options.leak, self.mnt, self.steady)
        ending.callback(planted.close)
        # Short ones are mostly pauses, of which there have to be enough.
        seconds = min(ROUND, self.options.minutes * 60 / PAUSES / 2)
        until, last = time.monotonic() + self.options.minutes * 60, False
        while not last:
            self.soak.rounds([*self.workers, self.faults], seconds)
            if STOP.is_set():
                raise Wrong("stopped")
            planted.grow()
            last = self.pauses + 1 >= PAUSES and time.monotonic() >= until
            self.pause(last)
        self.judge()
        if not self.options.leak:
            self.end()
        self.done = True

    def serve(self, ending):
        """Two servers at both doors, and their clients; one of the two is killed now and then."""
        import containerds
        import commands
        import content
        import dockerd
        common = {"environment": {**os.environ, "REFLINKD_CONFIG": str(self.directory / "config.toml")}}
        (self.directory / "config.toml").write_text("[containerd.default]\nreuse = [\"cli\"]\n", encoding="utf-8")
        self.steady, self.mortal = (
            Server(mortal, self.options.binary, self.store.root, log=self.directory / f"{what}.log",
                   containerd=self.directory / "content.sock", **common)
            for mortal, what in ((False, "steady"), (True, "mortal")))
        contents = content.Store(self.directory / "content.sock")
        ending.callback(contents.stop)
        self.servers = [self.steady, self.mortal]
        for server in self.servers:
            ending.callback(server.remove)
            ending.callback(lambda server=server: server.process and server.process.poll() is None and server.stop())
            server.start()
            if server is self.steady:
                self.store.line = dockerd.Line(server)
                # Once, as dockerd says it: the server that comes after it knows.
                self.store.line.begin()
        self.workers = [commands.Worker(self.soak, f"w{number}") for number in range(self.options.workers)]
        for number in range(self.options.workers):
            server = self.servers[number % 2]
            self.workers += [dockerd.Worker(self.soak, f"d{number}", server),
                             containerds.Worker(self.soak, f"c{number}", server, contents)]
        self.soak.workers = {worker.name: worker for worker in self.workers}
        self.faults = Faults(self.soak, self.mortal)

    def pause(self, last):
        began = time.monotonic()
        self.pauses += 1
        self.as_they_made_it()
        if damage := self.store.damage(*(["--deep"] if last else [])):
            raise Wrong(f"check found {store.shown(damage)}")
        for server in self.servers:
            if "panicked" in server.words(whole=True):
                raise Wrong(f"a server panicked: {server.log}")
        # Every other time all is removed.
        low = self.pauses % 2 == 0
        if low:
            self.soak.together(self.workers, lambda worker: worker.clear())
        self.nothing_more()
        self.sample(gauges.SERVER, self.at_rest())
        if low:
            self.sample(gauges.STORE, gauges.of_store(self.mnt, self.kind))
        self.slowest = max(self.slowest, time.monotonic() - began)
        if self.pauses % 10 == 0 or last:
            self.say(f"pause {self.pauses}: {self.log.operations()} operations, "
                     + ", ".join(f"{name} {values[-1]}" for name, values in self.samples.items() if values))

    def sample(self, of, values):
        for gauge in of:
            self.samples[gauge.name].append(values[gauge.name])

    def as_they_made_it(self):
        """Each thing is as its worker has made it, byte for byte, and there is no other."""
        found = self.store.things()
        complaints = []
        for worker in sorted(found.keys() | self.soak.workers.keys()):
            base, (image, tree) = f"image {load.BASE}", self.soak.base_image
            wanted = {base: {"tree": tree, "facts": {"id": image}}}
            if worker in self.soak.workers:
                wanted = self.soak.workers[worker].things()
            for name in sorted(wanted.keys() | found[worker].keys()):
                if words := differences(wanted.get(name), found[worker].get(name)):
                    complaints.append(f"{name}: {'; '.join(words[:4])}")
        if complaints:
            raise Wrong(f"after {self.log.operations()} operations:\n      " + "\n      ".join(complaints[:10]))

    def nothing_more(self):
        """After a collection there is nothing that nobody knows, as soon as nobody works in the background any more."""
        collected, until = -math.inf, time.monotonic() + PATIENCE
        while True:
            # Of its own accord `gc` takes spares away, which then are made anew: that takes its time, too.
            if time.monotonic() > collected + PATIENCE / 4:
                self.store.reflinkd("gc")
                collected = time.monotonic()
            spares = next((row["count"] for row in self.store.rows("df") if row["type"] == "spares"), 0)
            left = self.store.left(self.store.things(), spares)
            if not left:
                return
            if time.monotonic() > until:
                raise Wrong(f"after gc {left}")
            time.sleep(0.5)

    def at_rest(self):
        """The server's gauges, once it has let go of what it doesn't need."""
        until = time.monotonic() + PATIENCE
        now = gauges.of_process(self.steady.process.pid)
        while True:
            time.sleep(REST)
            before, now = now, gauges.of_process(self.steady.process.pid)
            if all(now[name] == before[name] for name in ("fds", "threads")) or time.monotonic() > until:
                return now

    def judge(self):
        """Whatever grows; of planted leaks those that weren't found."""
        expected = {leaks.GAUGES[kind] for kind in self.options.leak}
        self.growing = {gauge.name for gauge in gauges.ALL if gauges.grows(self.samples[gauge.name], gauge.slack)}
        if self.options.leak:
            if missed := expected - self.growing:
                raise Wrong(f"planted, and not found: {', '.join(sorted(missed))}")
        elif self.growing:
            raise Wrong(f"not flat: {', '.join(sorted(self.growing))}")

    def end(self):
        """All goes: images, servers, and the store."""
        self.soak.together(self.workers, lambda worker: worker.clear())
        self.store.reflinkd("rmi", load.BASE)
        self.nothing_more()
        for what in ("ps", "images", "snapshots", "layers"):
            if rows := self.store.rows(what):
                raise Wrong(f"all was removed, and {what} has {rows}")
        if findings := self.store.check("--deep"):
            raise Wrong(f"all was removed, and check found {store.shown(findings)}")
        self.empty = gauges.of_store(self.mnt, self.kind)
        for worker in self.workers:
            if not worker.door.startswith("cli"):
                worker.server.close()
        for server in self.servers:
            if code := server.stop():
                raise Wrong(f"the server ended with {code}: {server.words()}")
        self.store.reflinkd("destroy", "--yes")
        if self.kind == "btrfs":
            # The store was a subvolume, which the kernel clears away when it comes to it.
            ground.sh("btrfs", "subvolume", "sync", "-s", "1", self.mnt)
        after = gauges.of_store(self.mnt, self.kind)
        for name, now in after.items():
            if now > self.before[name] + (BOOKS if name == "used" else 0):
                raise Wrong(f"the store was destroyed, and {name} is {now}; before it was made, {self.before[name]}")

    def fsck(self, image):
        command = [*ground.BTRFS, "check", "--readonly", image] if self.kind == "btrfs" else ["xfs_repair", "-n", "-f", image]
        checked = subprocess.run(command, capture_output=True, text=True, check=False)
        if checked.returncode:
            raise Wrong(f"fsck: {(checked.stdout + checked.stderr).strip()[-1500:]}")


def report(runs, options):
    """The tables; whether all is well."""
    for run in runs:
        counts, refusals = run.log.counts, run.log.refusals
        print(f"\n== {run.name}: {sum(counts.values())} operations and {sum(refusals.values())} refusals in {run.seconds:.0f} s, "
              f"{run.pauses} pauses, the longest {run.slowest:.0f} s; seed {options.seed}")
        print("   door        verb              done   cut, done   cut, undone")
        for of, verb in sorted({(of, verb) for of, verb, _ in counts}):
            numbers = [counts[of, verb, how] for how in ("done", "cut, done", "cut, undone")]
            print(f"   {of:<11} {verb:<14} {numbers[0]:>7} {numbers[1]:>11} {numbers[2]:>13}")
        print("   door        refused                                number")
        for (of, kind), number in sorted(refusals.items()):
            print(f"   {of:<11} {kind:<36} {number:>8}")
        print("   gauge            samples      first  2nd third   last third     last   slack   verdict (medians of the thirds)")
        for gauge in gauges.ALL:
            values = run.samples[gauge.name]
            if len(values) < gauges.LEAST:
                print(f"   {gauge.name:<16} {len(values):>7}   too few to be judged")
                continue
            _, second, third = gauges.thirds(values)
            verdict = "GROWS" if gauges.grows(values, gauge.slack) else "flat"
            print(f"   {gauge.name + (gauge.unit and f' ({gauge.unit})'):<16} {len(values):>7} {values[0]:>10} {second:>10.0f} "
                  f"{third:>12.0f} {values[-1]:>8} {gauge.slack:>7}   {verdict}")
        if run.empty:
            print("   at the end, without anything: " + ", ".join(f"{name} {value}" for name, value in run.empty.items()))
        for finding in run.findings:
            print(f"   FAILED: {finding}\n   what was done, the servers' words and the disk: {run.directory}")
    return all(run.done and not run.findings for run in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--release", action="store_true", help="it is a release build, without failpoints")
    parser.add_argument("--api", type=Path, required=True, help="containerd's messages, by protoc")
    parser.add_argument("--fs", nargs="+", choices=ground.GROUNDS, default=["simple"])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2, help="of each door")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--leak", nargs="+", choices=leaks.GAUGES, default=[], help="plant leaks, which must be found")
    parser.add_argument("--programs", type=Path, help="an unpacked Debian to take btrfs-progs from")
    options = parser.parse_args()
    if "xfs" in options.fs and {"subvolume", "group"} & set(options.leak):
        parser.error("XFS has neither subvolumes nor quota groups to be leaked")
    # Others are started by vfork, of which grpc needn't know.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    if options.programs:
        ground.use_programs(options.programs)
    api.read(options.api)
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, lambda *_: STOP.set())
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    # One at a time: the next one takes away what it finds.
    alone = open(options.work / "lock", "w", encoding="utf-8")
    fcntl.flock(alone, fcntl.LOCK_EX)
    ground.clean(options.work)
    runs = [Run(name, options) for name in options.fs]
    # Side by side, as each waits a lot.
    threads = [threading.Thread(target=run.run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(0 if report(runs, options) else 1)


if __name__ == "__main__":
    main()
