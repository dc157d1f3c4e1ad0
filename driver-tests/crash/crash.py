"""Power cuts under load: all that reached a device is recorded, and then the power is cut at many points of the record.

    crash.py --work DIR --binary reflinkd [--fs simple full none xfs] [--cuts 500] [--seed 1]
    crash.py ... --fs xfs --again --cut 17      the same cut of a record that was kept (--keep, or after a failure)

A cut fails if the filesystem isn't mounted, if anything acknowledged isn't there as it was promised, if anything is left that
nobody knows, or if the filesystem's own check finds anything. The lies are the test's own test: of writes that were flushed
nothing is there, and each of them must be found by comparison with what was promised.
"""

import argparse
import concurrent.futures
import fcntl
import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "load"))
import cuts  # noqa: E402
import ground  # noqa: E402
import load  # noqa: E402
import promises  # noqa: E402
import recording  # noqa: E402
import recovery  # noqa: E402
import writelog  # noqa: E402
from promises import Operation  # noqa: E402
from store import Damage  # noqa: E402

WORKERS = 4
# In the middle of the load as many must have been acknowledged before a cut.
MEDIAN = 20


# Somebody wants it to end.
STOP = threading.Event()


class Stopped(Exception):
    pass


def go_on():
    if STOP.is_set():
        raise Stopped


class Recorded(load.Load):
    """The load, with marks in the log where an operation begins and where it is acknowledged, by `mark(number)`."""

    def __init__(self, mark, *what):
        super().__init__(*what)
        self.mark, self.operations = mark, []

    def begun(self, operation):
        with self.lock:
            self.operations.append(operation)
        self.mark(cuts.beginning(operation.number))

    def acknowledged(self, operation):
        self.mark(cuts.acknowledgement(operation.number))


class Record:
    """One filesystem's: `base` is the device before the load, `log` what was written, `promises` what was said."""

    def __init__(self, directory, name):
        self.directory, self.name = directory, name
        self.base, self.log, self.promises = directory / "base", directory / "log", directory / "promises.json"

    def make(self, binary, operations, seed, count):
        """Record a load, to be cut at `count` points."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        disk, mnt = self.directory / "disk", self.directory / "mnt"
        ground.make(self.name, self.base, mnt, binary)
        ground.copy(self.base, disk)
        kind, quotas = ground.GROUNDS[self.name]
        work = self.directory / "images"
        work.mkdir()
        with recording.Recorder(disk, self.log, self.directory / "device") as recorder:
            with ground.mounted(recorder.device, mnt):
                running = Recorded(recorder.mark, binary, mnt / "store", work, quotas is not None, seed, STOP)
                running.begin()
                running.run(WORKERS, operations)
        go_on()
        said = [operation.to_json() for operation in running.operations]
        self.promises.write_text(json.dumps({"seed": seed, "cuts": count, "operations": said}), encoding="utf-8")
        disk.unlink()
        shutil.rmtree(work)

    def read(self):
        if not self.promises.exists():
            raise ground.Failed(f"no record of {self.name} was kept in {self.directory}")
        said = json.loads(self.promises.read_text(encoding="utf-8"))
        # Which cut is which depends on these.
        self.seed, self.count = said["seed"], said["cuts"]
        self.operations = [Operation.from_json(fields) for fields in said["operations"]]
        with open(self.log, "rb") as log:
            self.entries = writelog.read(log, ground.SIZE)

    def remove(self):
        shutil.rmtree(self.directory, ignore_errors=True)


class Replay:
    """The device as it was at a moment of the record, going forwards only."""

    def __init__(self, record, memory):
        self.record, self.memory = record, memory
        self.safe, self.position = memory / "safe", 0
        ground.copy(record.base, self.safe)
        self.log = os.open(record.log, os.O_RDONLY)

    def close(self):
        os.close(self.log)
        for name in ("safe", "cut"):
            (self.memory / name).unlink(missing_ok=True)

    def at(self, cut):
        """The image of a device after a cut."""
        self.write(self.safe, (entry for entry in self.record.entries[self.position:cut.safe] if entry.kind == "write"))
        self.position = cut.safe
        image = self.memory / "cut"
        ground.copy(self.safe, image)
        self.write(image, cuts.survivors(self.record.entries, cut, self.record.seed))
        return image

    def write(self, image, writes):
        file = os.open(image, os.O_WRONLY)
        try:
            writelog.apply(file, self.log, writes)
        finally:
            os.close(file)


class Outcome:
    """Of all cuts of one filesystem."""

    def __init__(self, name):
        self.name, self.failures, self.acknowledged, self.seconds, self.came_back = name, [], [], [], 0
        self.lies, self.believed = 0, []

    def say(self, line):
        print(f"   {self.name:<7} {line}", flush=True)


def cut_all(record, chosen, binary, memory, each):
    """Cut at all these points; `each(cut, done, under_way, seconds, back, damage)` hears what came of it."""
    replay = Replay(record, memory)
    # Cuts in the order of what is durable.
    try:
        for cut in sorted(chosen, key=lambda cut: (cut.safe, cut.position)):
            go_on()
            started = time.monotonic()
            done, under_way = cuts.known(record.entries, cut.position)
            image, back, damage = replay.at(cut), [], None
            try:
                back = recovery.recover(binary, image, record.name, memory / "mnt", record.operations, done, under_way)
            except Damage as found:
                damage = found
            each(cut, done, under_way, time.monotonic() - started, back, damage)
    finally:
        replay.close()


def run(name, options):
    """Record and cut one filesystem."""
    record = Record(options.work / name, name)
    try:
        return run_of(record, name, options)
    except Stopped:
        if not options.keep and not options.again:
            record.remove()
        raise


def run_of(record, name, options):
    outcome = Outcome(name)
    memory = options.work / "memory" / name
    memory.mkdir()
    if not options.again:
        started = time.monotonic()
        record.make(options.binary, options.operations, options.seed, options.cuts)
        record.read()
        outcome.say(f"recorded {len(record.operations)} operations in {time.monotonic() - started:.0f} s: "
                    f"{sum(entry.kind == 'write' for entry in record.entries)} writes, "
                    f"{sum(entry.kind == 'flush' for entry in record.entries)} flushes")
    else:
        record.read()

    def judge(cut, done, under_way, seconds, back, damage):
        outcome.acknowledged.append(len(done))
        outcome.seconds.append(seconds)
        outcome.came_back += len(back)
        if damage:
            outcome.failures.append(cut)
            outcome.say(f"cut {cut.number} FAILED (seed {record.seed}, entry {cut.position} of {len(record.entries)}, "
                        f"flushed up to {cut.safe}, {cut.keep:.0%} of the rest kept, {len(done)} operations acknowledged)\n"
                        f"      {damage}\n      again: make crashtest FS={name} CUT={cut.number}")

    def control(cut, done, under_way, seconds, back, damage):
        outcome.lies += 1
        if damage is None or damage.by != "promise":
            outcome.believed.append(cut)
            outcome.say(f"lie {cut.number} was NOT found by comparison (entry {cut.position}, nothing kept from {cut.safe} "
                        f"on): {damage or 'all seemed well'}")

    chosen = cuts.choose(record.entries, record.count, record.seed)
    if options.cut is not None:
        chosen = [cut for cut in chosen if cut.number == options.cut]
        if not chosen:
            raise ground.Failed(f"the record of {name} has {record.count} cuts, and none is {options.cut}")
    cut_all(record, chosen, options.binary, memory, judge)
    if options.cut is None:
        promising = set().union(*(promises.promising(mine) for mine in promises.by_worker(record.operations).values()))
        lies = cuts.choose_lies(record.entries, promising, options.lies, record.seed)
        cut_all(record, lies, options.binary, memory, control)
    if not options.keep and not outcome.failures and not outcome.believed and not options.again:
        record.remove()
    return outcome


def report(outcomes, options):
    """The figures; whether all is well."""
    well = True
    print("\n   filesystem   cuts  failed  acknowledged before a cut (median)  came back  seconds a cut  lies found",
          flush=True)
    for outcome in outcomes:
        median = statistics.median(outcome.acknowledged) if outcome.acknowledged else 0
        each = statistics.mean(outcome.seconds) if outcome.seconds else 0
        print(f"   {outcome.name:<12} {len(outcome.seconds):>4}  {len(outcome.failures):>6}  {median:>35.0f}"
              f"  {outcome.came_back:>9}  {each:>13.2f}  {outcome.lies - len(outcome.believed):>4} of {outcome.lies}")
        well &= not outcome.failures and not outcome.believed
        if options.cut is None:
            if median < MEDIAN:
                print(f"   {outcome.name}: fewer than {MEDIAN} acknowledged operations before a cut")
            if outcome.lies < options.lies:
                print(f"   {outcome.name}: the record has only {outcome.lies} places for a lie, of {options.lies}")
            well &= median >= MEDIAN and outcome.lies == options.lies
    return well


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--fs", nargs="+", choices=ground.GROUNDS, default=list(ground.GROUNDS))
    parser.add_argument("--cuts", type=int, default=500, help="for each filesystem")
    parser.add_argument("--cut", type=int, help="this one alone")
    parser.add_argument("--lies", type=int, default=20, help="how many cuts of a disk that lies")
    parser.add_argument("--operations", type=int, default=60, help="of each worker")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep the records")
    parser.add_argument("--again", action="store_true", help="cut the records that were kept")
    parser.add_argument("--programs", type=Path, help="an unpacked Debian to take btrfs-progs from")
    options = parser.parse_args()
    if options.programs:
        ground.use_programs(options.programs)
    for kind in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(kind, lambda *_: STOP.set())
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    # One at a time: the next one takes away what it finds.
    alone = open(options.work / "lock", "w", encoding="utf-8")
    fcntl.flock(alone, fcntl.LOCK_EX)
    ground.clean(options.work)
    memory = options.work / "memory"
    memory.mkdir(exist_ok=True)
    # The images are copied once for each cut.
    ground.sh("mount", "-t", "tmpfs", "-o", "size=8G", "crashtest", memory)
    try:
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(lambda name: run(name, options), options.fs))
    except Stopped:
        sys.exit("stopped")
    except (ground.Failed, load.Failed, load.door.Failed) as error:
        sys.exit(f"error: {error}")
    finally:
        STOP.set()
        ground.unmount(memory)
        memory.rmdir()
    sys.exit(0 if report(outcomes, options) else 1)


if __name__ == "__main__":
    main()
