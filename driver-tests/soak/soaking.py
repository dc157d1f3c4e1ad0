"""The soak's load: operations that may be cut short, after which is seen whether they are done, and what must be refused."""

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter

import load
from promises import Operation, differences

# One command of the command line in so many is killed.
ONE_KILLED_OF = 12
# A debug build ends itself before one of so many steps, instead of being killed after some time.
STEPS = 24
# The exit code of a server that had to break something off.
INTERRUPTED = 130


class NotDone(Exception):
    """An operation was cut short and isn't done; all is as it was before."""


class Cut(Exception):
    """Whoever worked at it was killed."""


class Wrong(Exception):
    """What must never be."""


class Log:
    """What each worker did, a line when it begins and one when it has ended; and how often it did so."""

    def __init__(self, path):
        self.file, self.lock = open(path, "w", encoding="utf-8"), threading.Lock()
        self.began = time.monotonic()
        # By door, verb, and how it ended; and refusals by door and kind.
        self.counts, self.refusals = Counter(), Counter()

    def note(self, worker, *words):
        with self.lock:
            print(f"{time.monotonic() - self.began:9.3f} {worker}", *words, file=self.file, flush=True)

    def count(self, door, verb, how="done"):
        with self.lock:
            self.counts[door, verb, how] += 1

    def refused(self, door, kind):
        with self.lock:
            self.refusals[door, kind] += 1

    def operations(self):
        return sum(self.counts.values())


class Soak(load.Load):
    """`store` is looked at after a cut; `debug` says whether the program is a debug build, which has failpoints."""

    def __init__(self, store, log, debug, *what):
        super().__init__(*what)
        self.store, self.log, self.debug = store, log, debug
        # By their names; `begin` has none.
        self.workers, self.local, self.typical = {}, threading.local(), {}
        self.chance = random.Random(f"{self.seed} kills")

    def do(self, worker, what, work, composite=False, **promise):
        """One operation. It may be cut short: then it is done, or not (`NotDone`), or its worker makes it either. `composite`
        says that it has several calls, so that anything of them may be done by then."""
        mine = self.workers.get(worker)
        operation = Operation(next(self.numbers), worker, what, **promise)
        self.log.note(worker, operation.number, what)
        given, how = None, "done"
        self.local.may_be_cut = mine is not None
        try:
            given = work()
        except Cut:
            self.local.may_be_cut = False
            how = self.settled(mine, operation, composite)
        finally:
            self.local.may_be_cut = False
        self.log.note(worker, operation.number, how)
        self.log.count(mine.door if mine else "cli", what.split()[0], how)
        if how == "cut, undone":
            raise NotDone
        return given

    def look(self, names):
        return {name: thing for things in self.store.things(names).values() for name, thing in things.items()}

    def settled(self, worker, operation, composite):
        """What became of an operation that was cut short; no third outcome is left behind."""
        worker.revived()
        names, before = set(operation.changes), worker.things()
        found = self.look(names)

        def wrong(outcome):
            words = {name: differences(outcome.get(name, before.get(name)), found.get(name)) for name in names}
            return {name: said for name, said in words.items() if said}

        if not wrong(operation.changes):
            return "cut, done"
        if not wrong({}):
            return "cut, undone"
        # Each change by itself is either done or not.
        by_step = operation.stepwise and not wrong(operation.changes).keys() & wrong({}).keys()
        if not (composite or by_step or any(not wrong(outcome) for outcome in operation.between)):
            raise Wrong(f"{operation.what} (operation {operation.number}) was cut short, and is neither done nor undone: "
                        f"{wrong(operation.changes)}; or {wrong({})}")
        how = worker.mended(operation)
        found = self.look(names)
        if said := wrong(operation.changes if how == "cut, done" else {}):
            raise Wrong(f"{operation.what} (operation {operation.number}) was cut short, and can't be {how[5:]}: {said}")
        return how

    def reflinkd(self, *arguments):
        """Run a command. If it is the one of an operation, it may be killed, or end itself before a step (debug builds)."""
        command = [str(word) for word in (self.binary, "--root", self.root, *arguments)]
        verb, environment, patience = str(arguments[0]), None, load.PATIENCE
        cut = getattr(self.local, "may_be_cut", False) and self.chance.randrange(ONE_KILLED_OF) == 0
        if cut and self.debug and self.chance.random() < 0.5:
            environment = {**os.environ, "REFLINKD_STOP_BEFORE": str(self.chance.randint(1, STEPS))}
        elif cut:
            patience = self.chance.uniform(0, self.typical.get(verb, 0.1))
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=environment)
        try:
            said, complaint = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            said, complaint = process.communicate()
            if not cut:
                raise Wrong(f"{' '.join(command[3:])}: not done after {patience} s") from None
        if cut and process.returncode in (-signal.SIGKILL, -signal.SIGABRT):
            raise Cut
        # A panic is no refusal.
        if process.returncode not in (0, 1, 2):
            raise Wrong(f"{' '.join(command[3:])}: ended with {process.returncode}: {complaint.strip()}")
        if process.returncode:
            raise load.Failed(f"{' '.join(command[3:])}: {process.returncode}: {complaint.strip()}")
        if not cut:
            self.typical[verb] = 0.7 * self.typical.get(verb, 0) + 0.3 * (time.monotonic() - began)
        return said.strip()

    def asked(self, worker, what, work):
        """What changes nothing, and what it gave."""
        given = work()
        self.log.count(worker.door, what)
        return given

    def refused(self, worker, kind, work, errors):
        """What must be refused."""
        self.log.note(worker.name, "is to be refused:", kind)
        try:
            work()
        except errors:
            self.log.refused(worker.door, kind)
        else:
            raise Wrong(f"{worker.door}: {kind} was not refused")

    def rounds(self, workers, seconds):
        """Have all work for so long."""
        self.together(workers, lambda worker: go_on(self, worker, time.monotonic() + seconds))

    def together(self, workers, work):
        """Each in a thread of its own; the first error of any is raised."""
        errors, running = [], []

        def run(worker):
            try:
                work(worker)
            except BaseException as error:  # noqa: BLE001: a thread's error is raised below
                self.broken.set()
                errors.append((worker, error))

        for worker in workers:
            running.append(threading.Thread(target=run, args=[worker]))
            running[-1].start()
        for thread in running:
            thread.join()
        if errors:
            worker, error = errors[0]
            raise Wrong(f"worker {worker.name}: {type(error).__name__}: {error}") from error


def go_on(soak, worker, until):
    while time.monotonic() < until and not soak.broken.is_set() and not soak.stop.is_set():
        with contextlib.suppress(NotDone, Cut):
            worker.step()


def emptied(collection, remove):
    """Remove what there is, however often it is cut short."""
    while collection:
        with contextlib.suppress(NotDone, Cut):
            remove()


class Faults:
    """Who kills a server, and starts it again."""

    door, name = "faults", "k"

    def __init__(self, soak, server):
        self.soak, self.server = soak, server
        self.rng = random.Random(f"{soak.seed} faults")

    def step(self):
        self.soak.stop.wait(self.rng.uniform(1, 6))
        kind = self.rng.choice(("killed", "killed", "stopped"))
        self.soak.log.note(self.name, "server", kind)
        self.server.up.clear()
        if kind == "killed":
            self.server.kill()
        # Slow requests may be broken off after ten seconds, which isn't a failure of theirs.
        elif (code := self.server.stop()) not in (0, INTERRUPTED):
            raise Wrong(f"the server ended with {code} when it was to stop: {self.server.words()}")
        self.server.start()
        self.server.up.set()
        self.soak.log.note(self.name, "server started")
        self.soak.log.count(self.door, f"server {kind}")

    def clear(self):
        pass
