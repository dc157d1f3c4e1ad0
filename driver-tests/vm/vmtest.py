#!/usr/bin/env python3
"""Boot each kernel asked for, run each cell's tests in it, and say what came out.

    vmtest.py --target target --cargo cargo [--kernels "6.12 newest"] [--cells "xfs btrfs-simple"]
    vmtest.py --target target --lock

`vm-images/matrix.toml` says what there is. The exit status is 0 if every cell is as the matrix expects, with at
least one test passed in each: a guest that dies, a step that runs no test and a cell that turns out not to be
runnable are failures.
"""

import argparse
import re
import signal
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import image
import tests
from machine import Machine
from packages import Packages, Unavailable

TOP = Path(__file__).resolve().parents[2]
IMAGES = TOP / "vm-images"
# A step that hangs is ended by this; a busy machine that emulates may need a third of it.
STEP_SECONDS = 1800
BOOT_SECONDS = 300
DISK_BYTES = 24 << 30
# What the suites take for a large file where it is read twenty times slower.
EMULATED_LARGE_FILE = 128 << 20


@dataclass
class Step:
    """One test binary in one cell, and what it has to do there."""

    cell: str
    # A [[test]] of Cargo.toml, and words of which a test's name has to have one; all tests without any.
    binary: str
    filters: list
    # For a kernel that lacks what the cell needs: the text that its failure has to have.
    sign: str | None = None

    @property
    def name(self):
        return f"{self.cell}/{self.binary}"

    def job(self, paths):
        exact = ["--exact"] if self.sign else []
        return " ".join(["step", self.name, str(STEP_SECONDS), paths[self.binary], *exact, *self.filters]) + "\n"


@dataclass
class Outcome:
    """What a step came to: `shown` in the table, `failed` for the exit status, `said` for whoever looks into it."""

    shown: str
    failed: bool
    said: str


def steps_of(matrix, kernel, cells):
    """The steps of these cells on this kernel."""
    steps = []
    for name in cells:
        cell = matrix["cell"][name]
        if kernel in cell.get("lacking", ()):
            steps.append(Step(name, cell["steps"][0][0], [cell["probe"]], cell["sign"]))
        else:
            steps += [Step(name, binary, filters) for binary, *filters in cell["steps"]]
    return steps


def judge(step, output):
    """The outcome of a step, from what the guest said on its second serial line."""
    _, begun, rest = output.partition(f"@@ begin {step.name}\n")
    said, ended, tail = rest.partition(f"@@ end {step.name} ")
    if not begun:
        return Outcome("not run", True, "the guest ended before")
    if not ended:
        return Outcome("died", True, said)
    status, seconds = (int(number) for number in tail.split(maxsplit=2)[:2])
    counts = re.findall(r"^test result: \w+\. (\d+) passed; (\d+) failed", said, re.MULTILINE)
    passed, failed = (sum(int(count[i]) for count in counts) for i in (0, 1))
    if step.sign is not None:
        lacking = status != 0 and passed == 0 and failed == 1 and step.sign in said
        return Outcome("n/a" if lacking else "not n/a", not lacking, said)
    if status == 0 and passed > 0 and failed == 0:
        return Outcome(f"{passed} in {seconds} s", False, said)
    why = {137: "killed"}.get(status, "no test" if passed + failed == 0 else f"{failed} of {passed + failed} failed")
    return Outcome(f"{why}, {seconds} s", True, said)


def table(kernels, cells, outcomes):
    """Kernels x cells; `outcomes` by (kernel, cell): a list of what its steps came to."""
    rows = [["", *cells]]
    for kernel in kernels:
        shown = (" + ".join(outcome.shown for outcome in outcomes[kernel, cell]) for cell in cells)
        rows.append([kernel, *shown])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("   " + "  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows)


def choose(asked, there, what):
    """The names asked for, in the matrix's order; all of them for `all`."""
    wanted = asked.replace(",", " ").split()
    unknown = [name for name in wanted if name not in there and name != "all"]
    if unknown:
        raise Unavailable(f"there is no {what} {' '.join(unknown)} in {IMAGES / 'matrix.toml'}: {' '.join(there)}")
    return [name for name in there if name in wanted or "all" in wanted]


def boot(machine, accelerator, kernel_file, initramfs, seconds):
    """Boot once; a guest that dies before its first process says a word proves nothing about us, and gets another go."""
    for last in (False, True):
        output, ended = machine.boot(accelerator, kernel_file, initramfs, DISK_BYTES, seconds)
        if last or "@@ up " in output:
            return output, ended
        print(f"   the guest died before its first process ({ended or 'panic or reset'}): once more", flush=True)


def run_kernel(matrix, packages, work, kernel, cells, built):
    """Boot one kernel; the outcomes by cell."""
    guest, facts = matrix["guest"], matrix["kernel"][kernel]
    roots = {name: packages.unpacked(name) for name in (f"kernel-{kernel}", "guest", "qemu")}
    kernel_root = roots[f"kernel-{kernel}"]
    kernel_file = image.kernel_image(kernel_root)
    base, modules, job, initramfs = (work / f"{part}.cpio" for part in ("base", "modules", "job", "initramfs"))
    image.write_user_space(base, roots["guest"], guest, IMAGES)
    image.write_modules(modules, kernel_root, guest["modules"])
    machine = Machine(roots["qemu"], guest, work)

    image.write_job(job, {}, "")
    image.join(initramfs, [base, modules, job])
    accelerator = machine.accelerator(kernel_file, initramfs)

    steps = steps_of(matrix, kernel, cells)
    script = f"export MKFS_XFS='{facts.get('mkfs_xfs', '')}'\ndisk {built.scratch}\n"
    if accelerator == "tcg":
        script += f"export REFLINKD_LARGE_FILE={EMULATED_LARGE_FILE}\n"
    script += "".join(step.job(built.paths) for step in steps)
    image.write_job(job, built.files, script)
    image.join(initramfs, [base, modules, job])
    print(f"   {kernel}: {kernel_file.name} by {accelerator}, {len(steps)} steps", flush=True)
    started = time.monotonic()
    output, ended = boot(machine, accelerator, kernel_file, initramfs, BOOT_SECONDS + STEP_SECONDS * len(steps))
    log = work / f"{kernel}.log"
    log.write_text(output)
    print(f"   {kernel}: {time.monotonic() - started:.0f} s; all that was said: {log}")
    if "@@ done" not in output:
        print(f"   {kernel}: the guest died: {ended or 'panic or reset'}; its console: {work / 'console.log'}")
    found = {cell: [] for cell in cells}
    for step in steps:
        outcome = judge(step, output)
        found[step.cell].append(outcome)
        if outcome.failed:
            print(f"\n== {kernel} {step.name}: {outcome.shown}\n{outcome.said.strip()}")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="cargo's target directory; all that is kept is in vm/")
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--lock", action="store_true", help="resolve the packages anew and write packages.lock")
    parser.add_argument("--kernels", default="", help="names from the matrix, or all; its default without any")
    parser.add_argument("--cells", default="", help="names from the matrix; all without any")
    arguments = parser.parse_args()
    # So that a QEMU that runs is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    matrix = tomllib.loads((IMAGES / "matrix.toml").read_text())
    work = arguments.target.resolve() / "vm"
    packages = Packages(matrix, IMAGES / "packages.lock", work)
    try:
        if arguments.lock:
            packages.lock()
            return 0
        kernels = choose(arguments.kernels or matrix["default"], list(matrix["kernel"]), "kernel")
        cells = choose(arguments.cells or "all", list(matrix["cell"]), "cell")
        names = sorted({step.binary for kernel in kernels for step in steps_of(matrix, kernel, cells)})
        built = tests.build(TOP, arguments.cargo, arguments.target, names, work)
        outcomes = {}
        for kernel in kernels:
            found = run_kernel(matrix, packages, work, kernel, cells, built)
            outcomes |= {(kernel, cell): found[cell] for cell in cells}
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + table(kernels, cells, outcomes))
    return 1 if any(outcome.failed for found in outcomes.values() for outcome in found) else 0


if __name__ == "__main__":
    sys.exit(main())
