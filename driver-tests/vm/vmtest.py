#!/usr/bin/env python3
"""Boot each kernel asked for, run each cell's tests in it, and say what came out.

    vmtest.py --target target --cargo cargo [--kernels "6.12 newest"] [--cells "xfs btrfs-simple"] [--lanes docker-20]
    vmtest.py --target target --cargo cargo --quick
    vmtest.py --target target --cargo cargo --shell --kernels 6.1 --cells btrfs
    vmtest.py --target target --lock

`vm-images/matrix.toml` says what there is. The exit status is 0 if every cell is as the matrix expects, with at
least one test passed in each: a guest that dies, a step that runs no test and a cell that turns out not to be
runnable are failures.
"""

import argparse
import fcntl
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import image
import plan
import report
import root
import tests
from machine import Machine
from packages import Packages, Unavailable

BOOT_SECONDS = 300
DISK_BYTES = 24 << 30
# What the suites ask: where all is twenty times slower they take smaller files and fewer rounds.
EMULATED = "export REFLINKD_EMULATED=1 CHANGES_SEED=0..2\n"


class Laboratory:
    """What all boots share: packages, user space, tests, and how to run a guest here."""

    def __init__(self, matrix, packages, work, built):
        self.matrix, self.packages, self.work, self.built = matrix, packages, work, built
        self.guest = packages.unpacked("guest")
        self.qemu = packages.unpacked("qemu")
        self.base = work / "base.cpio"
        image.write_user_space(self.base, self.guest, matrix["guest"], plan.IMAGES)
        # Guests that died before they began, and got another go.
        self.retries = 0
        self.accelerator = None

    def parts(self, boot):
        """The kernel to boot, its initramfs so far, and the directory of the boot's own files."""
        work = self.work / "boots" / boot.name
        work.mkdir(parents=True, exist_ok=True)
        kernel_root = self.packages.unpacked(f"kernel-{boot.kernel}")
        modules = work / "modules.cpio"
        wanted = [*self.matrix["guest"]["modules"], *((boot.lane or {}).get("modules", ()))]
        image.write_modules(modules, kernel_root, wanted)
        return image.kernel_image(kernel_root), [self.base, modules], work

    def find_accelerator(self, boot):
        """Whether guests come up under KVM; tried with a boot that has nothing to do."""
        kernel, parts, work = self.parts(boot)
        job, initramfs = work / "job.cpio", work / "initramfs"
        image.write_job(job, {}, "")
        image.join(initramfs, [*parts, job])
        self.accelerator = Machine(self.qemu, self.matrix["guest"], work).accelerator(kernel, initramfs, self.work)

    def prepare(self, boot, script):
        """Kernel, initramfs, machine and disks of a boot that is to do `script` after the common beginning."""
        kernel, parts, work = self.parts(boot)
        files, disks = self.built.files, []
        if boot.lane:
            files = root.files(plan.TOP, boot.lane, self.built.program)
            disks = [root.disk(self.packages, boot.lane["root"])] if "root" in boot.lane else []
        facts = self.matrix["kernel"][boot.kernel]
        head = "".join(f"export MKFS_{name.upper()}='{facts.get(f'mkfs_{name}', '')}'\n" for name in ("btrfs", "xfs"))
        if self.accelerator == "tcg":
            head += EMULATED
        job, initramfs = work / "job.cpio", work / "initramfs"
        image.write_job(job, files, head + script)
        image.join(initramfs, [*parts, job])
        return kernel, initramfs, Machine(self.qemu, self.matrix["guest"], work), disks

    def run(self, boot, cpus):
        """Boot, and judge what comes out: (step, outcome) of each step, and of what the kernel itself complained of."""
        if boot.lane:
            script = root.job(boot.steps[0].name, boot.lane)
            seconds = BOOT_SECONDS + boot.lane["seconds"]
        else:
            script = f"disk {self.built.scratch}\n" + "".join(step.job for step in boot.steps)
            seconds = BOOT_SECONDS + plan.STEP_SECONDS * len(boot.steps)
        kernel, initramfs, machine, disks = self.prepare(boot, script)
        append = (boot.lane or {}).get("append", "")
        started = time.monotonic()
        # A guest that dies before its first process says a word proves nothing about us, and gets another go.
        for last in (False, True):
            output, ended = machine.boot(
                self.accelerator, kernel, initramfs, DISK_BYTES, seconds, disks=disks, cpus=cpus, append=append
            )
            if last or "@@ up " in output:
                break
            self.retries += 1
            print(f"   {boot.name}: the guest died before its first process ({ended or 'panic or reset'}): once more", flush=True)
        log = machine.work / "output.log"
        print(f"   {boot.name}: {kernel.name}, {time.monotonic() - started:.0f} s; all that was said: {log}", flush=True)
        if "@@ done" not in output:
            console = machine.work / "console.log"
            print(f"   {boot.name}: the guest died: {ended or 'panic or reset'}; its console: {console}", flush=True)
        return [(step, report.judge(step, output)) for step in (*boot.steps, plan.KERNEL_LOG)]


def run_all(laboratory, boots):
    """All boots, as many at a time as there are processors; what came out, in the order of `boots`."""
    processors = os.cpu_count() or 1
    workers = min(len(boots), processors)
    # Emulated, the second of 5.10's processors may get no timer interrupts any more on a busy machine, and the guest hangs.
    cpus = 1 if laboratory.accelerator == "tcg" else max(1, processors // workers)
    print(f"   {len(boots)} boots by {laboratory.accelerator}, {workers} at a time, processors each: {cpus}", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        # The longest first, so that none is left to run alone at the end.
        order = sorted(boots, key=lambda boot: -len(boot.steps))
        futures = {boot.name: pool.submit(laboratory.run, boot, cpus) for boot in order}
        try:
            return [(boot, futures[boot.name].result()) for boot in boots]
        except BaseException:
            # Such as being told to end: the machines that run are ended, those that wait never begin.
            pool.shutdown(wait=False, cancel_futures=True)
            Machine.end_all()
            raise


def conclude(matrix, work, results, retries):
    """Print what failed and the table, write the JUnit file; the exit status."""
    found = {}
    for boot, outcomes in results:
        for step, outcome in outcomes:
            found.setdefault((boot.name, step.cell), []).append(outcome)
            if outcome.failed:
                print(f"\n== {boot.name} {step.name}: {outcome.shown}\n{outcome.said.strip()}")
    print()
    for lanes in (False, True):
        rows = [boot for boot, _ in results if bool(boot.lane) == lanes]
        if rows:
            cells = list(dict.fromkeys(cell for boot in rows for cell in [*boot.cells, plan.KERNEL_LOG.cell]))
            print(report.table([boot.name for boot in rows], cells, found))
    file = work / "junit.xml"
    file.write_text(report.junit(results, retries))
    print(f"\n   {retries} guests died before they began and were booted again; JUnit: {file}")
    return 1 if any(outcome.failed for _, outcomes in results for _, outcome in outcomes) else 0


def shell(laboratory, boot, cell):
    """A shell in the guest, on this terminal, with the cell's filesystem at /mnt."""
    setup = laboratory.matrix["cell"][cell]["shell"]
    script = "".join(f"{line}\n" for line in ["mkdir -p /mnt", *setup, "shell"])
    kernel, initramfs, machine, disks = laboratory.prepare(boot, script)
    print(f"   {boot.kernel}: {kernel.name} by {laboratory.accelerator}; `exit` ends it, Ctrl-A X kills it", flush=True)
    return machine.talk(laboratory.accelerator, kernel, initramfs, DISK_BYTES, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=Path, required=True, help="cargo's target directory; all that is kept is in vm/")
    parser.add_argument("--cargo", default="cargo")
    parser.add_argument("--lock", action="store_true", help="resolve the packages anew and write packages.lock")
    parser.add_argument("--quick", action="store_true", help="one boot of what the matrix has for it")
    parser.add_argument("--shell", action="store_true", help="a shell in one kernel, with one cell's filesystem")
    parser.add_argument("--kernels", default="", help="names from the matrix; all without any")
    parser.add_argument("--cells", default="", help="names from the matrix; all without any")
    parser.add_argument("--lanes", default="", help="names from the matrix; all without any")
    arguments = parser.parse_args()
    # So that a QEMU that runs is ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    matrix = plan.read()
    work = arguments.target.resolve() / "vm"
    packages = Packages(matrix, plan.IMAGES / "packages.lock", work)
    # One run at a time: the next would put its files in place of this one's.
    alone = open(work / "run.lock", "w")
    try:
        fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another run has {work}\nhint: wait for its end, or give this one a CARGO_TARGET_DIR", file=sys.stderr)
        return 1
    try:
        if arguments.lock:
            packages.lock()
            return 0
        if arguments.quick:
            boots = plan.quick(matrix)
        elif arguments.shell:
            boots = plan.boots(matrix, arguments.kernels or matrix["default"], arguments.cells or "btrfs")[:1]
        else:
            boots = plan.boots(matrix, arguments.kernels, arguments.cells, arguments.lanes)
        names = {step.binary for boot in boots if not boot.lane for step in boot.steps}
        # What has been built for this machine saves the quick run most of its time.
        guest = packages.unpacked("guest") if arguments.quick else None
        built = tests.build(plan.TOP, arguments.cargo, arguments.target, sorted(names), work, guest)
        laboratory = Laboratory(matrix, packages, work, built)
        laboratory.find_accelerator(boots[0])
        if arguments.shell:
            (boot,) = boots
            there = [cell for cell in boot.cells if boot.kernel not in matrix["cell"][cell].get("lacking", ())]
            return shell(laboratory, boot, there[0])
        results = run_all(laboratory, boots)
    except Unavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return conclude(matrix, work, results, laboratory.retries)


if __name__ == "__main__":
    sys.exit(main())
