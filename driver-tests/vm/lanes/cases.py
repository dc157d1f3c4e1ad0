"""What the lanes' programs have in common: cases that say what came of them as libtest does, commands, and stores."""

import json
import subprocess
import time
import traceback
from pathlib import Path

class Failed(Exception):
    """What was expected isn't so."""


def expect(so, what):
    if not so:
        raise Failed(what)


def equal(found, wanted, what):
    if found != wanted:
        raise Failed(f"{what}: {found!r} instead of {wanted!r}")


def eventually(so, what, seconds=60):
    """Wait until `so()` is something, and return it."""
    end = time.monotonic() + seconds
    while not (found := so()):
        expect(time.monotonic() < end, f"{what}: not after {seconds} s")
        time.sleep(0.05)
    return found


def ask(*command, **options):
    """Run a command; what it came to, with its output as text."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
               "errors": "backslashreplace"} | options
    return subprocess.run([str(word) for word in command], timeout=120, **options)


def ok(*command, **options):
    """What a command says, which has to succeed."""
    done = ask(*command, **options)
    expect(done.returncode == 0, f"{' '.join(map(str, command))}: status {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout.rstrip("\n") if done.stdout else ""


def fails(*command, **options):
    """The error of a command, which has to fail."""
    done = ask(*command, **options)
    expect(done.returncode != 0, f"{' '.join(map(str, command))} succeeds: {done.stdout}")
    return done.stderr + done.stdout


def run(cases):
    """Run (name, function) one after the other, all of them. Returns the exit status."""
    failed = 0
    for name, case in cases:
        print(f"test {name} ... ", end="", flush=True)
        try:
            case()
            print("ok", flush=True)
        except Exception as error:
            failed += 1
            said = str(error) if isinstance(error, Failed) else traceback.format_exc().rstrip()
            print(f"FAILED\n{said}", flush=True)
    outcome = "FAILED" if failed else "ok"
    print(f"\ntest result: {outcome}. {len(cases) - failed} passed; {failed} failed", flush=True)
    return 1 if failed or not cases else 0


def filesystem(kind, directory, bytes_=4 << 30):
    """A new filesystem in a file on the scratch disk, mounted at `directory`."""
    image = Path("/scratch") / f"{kind}.img"
    with open(image, "wb") as file:
        file.truncate(bytes_)
    ok(f"mkfs.{kind}", "-q", image)
    directory.mkdir(parents=True, exist_ok=True)
    ok("mount", "-t", kind, "-o", "loop,prjquota" if kind == "xfs" else "loop", image, directory)


class Store:
    """A store of reflinkd."""

    def __init__(self, root, program="/lane/reflinkd"):
        self.root = root
        self.program = program

    def command(self, *words):
        return [self.program, "--root", self.root, *words]

    def ok(self, *words, **options):
        return ok(*self.command(*words), **options)

    def fails(self, *words):
        return fails(*self.command(*words))

    def rows(self, *words):
        return json.loads(self.ok(*words, "--format", "json"))

    def tree(self, name):
        return Path(self.ok("mount", name))
