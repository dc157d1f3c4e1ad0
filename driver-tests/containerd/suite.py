"""containerd, its clients and its own conformance suite on a snapshotter: one line for each check, and what failed at the end.

The built-in snapshotters are the oracle: what is expected of reflinkd here has been shown to be what they do.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Images, filesystems and daemons are those of the Docker test.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docker"))
import clients  # noqa: E402
import daemonset  # noqa: E402
import debs  # noqa: E402
import dockers  # noqa: E402
import host  # noqa: E402
import kills  # noqa: E402
import left  # noqa: E402
import pods  # noqa: E402
import services  # noqa: E402
from host import Failed, expect, fresh, tail  # noqa: E402


class Report:
    """What each check came to."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def of(self, column, name, check, *arguments):
        """Run one check; whether it passed."""
        started = time.monotonic()
        try:
            said = check(*arguments)
        except (Failed, OSError, LookupError, ValueError, subprocess.SubprocessError) as problem:
            self.add(column, name, f"{type(problem).__name__}: {str(problem)[:1500]}", False)
            return False
        self.add(column, name, f"{said or ''}  ({time.monotonic() - started:.1f} s)", True)
        return True

    def add(self, column, name, said, good):
        print(f"   {'ok  ' if good else 'FAIL'} {column:<18} {name:<24} {said}", flush=True)
        if good:
            self.passed += 1
        else:
            self.failed.append(f"{column}: {name}: {said.splitlines()[0][:200]}")


class Lane:
    """One ground with a snapshotter and a containerd, and what the steps need of it."""

    # The class of pods' runtime; without a name, the default one.
    handler = ""

    def __init__(self, options, fs, server, ctr, work, run):
        self.options, self.fs, self.server, self.ctr, self.work, self.run = options, fs, server, ctr, work, run


def conformance(options, report, ground):
    """containerd's own suite, and more, through its proxy."""
    column = f"suite/{ground}"
    run = Path(tempfile.mkdtemp(prefix="rfc.", dir="/run"))
    log = options.work / f"suite-{ground}.log"
    with services.ground(ground, options.work) as fs:
        (fs.mnt / "tmp").mkdir()
        environment = {**os.environ, "TMPDIR": str(fs.mnt / "tmp"), "PARALLEL_SECONDS": str(options.seconds)}
        server = None
        try:
            if options.snapshotter == "reflinkd":
                server = services.Server(options.binary, fs, run, options.work / f"suite-{ground}-serve.log", run / "none.sock")
                server.__enter__()
                environment["SNAPSHOTTER_SOCKET"] = str(server.socket)
                environment["LIMITS"] = "held" if ground in ("simple", "full") else "refused"
            else:
                (fs.mnt / "own").mkdir()
                environment |= {"BUILTIN": options.snapshotter, "BUILTIN_ROOT": str(fs.mnt / "own"),
                                "BUILTIN_SOCKET": str(run / "own.sock")}
            command = [options.work / "conformance.test", "-test.v", "-test.parallel", "1", "-test.timeout", "10m"]
            if options.quick:
                command += ["-test.run", "TestSuite|TestCodes|TestKeysAgain|TestLabels|TestFilters|TestUsage|TestCleanup|TestMaxSize"]
            with open(log, "wb") as out:
                status = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False).returncode
            results(report, column, log, status)
            if server:
                report.of(column, "nothing left", left.of_store, server)
                server.process.terminate()
                report.of(column, "serve ends", lambda: expect(server.process.wait(25), 0, "the server's exit status"))
        except Failed as problem:
            report.add(column, "lane", str(problem), False)
        finally:
            if server:
                server.__exit__()
            shutil.rmtree(run, ignore_errors=True)


def results(report, column, log, status):
    """One line for each test, and for one that failed what it said."""
    text = log.read_text(errors="replace")
    found = re.findall(r"^ *--- (PASS|FAIL|SKIP): (\S+) \((.*)\)", text, re.MULTILINE)
    parents = {name.split("/")[0] for _, name, _ in found if "/" in name}
    for result, name, took in found:
        if name in parents and result == "PASS":
            continue
        said = f"({took})"
        if result != "PASS":
            words = re.findall(r"^    +\w+(?:_test)?\.go:\d+: (?!unmount|drwx|-rw|/)(.*)", said_of(text, name), re.MULTILINE)
            said = f"{result}: {'; '.join(words)[:600]}"
        report.add(column, name.replace("TestSuite/", ""), said, result == "PASS")
    for line in re.findall(r"64 clients: .*", text):
        print(f"        {line}")
    # Every test of the suite is there, and the program came to its end.
    if len(found) < 20 or status and not any(result == "FAIL" for result, _, _ in found):
        report.add(column, "the whole suite", f"status {status}: {tail(log, 5)}", False)


def said_of(text, name):
    """What a test printed: go runs those that are parallel between others."""
    parts = re.split(r"^=== (?:RUN|CONT|PAUSE|NAME) +(\S+)\n", text, flags=re.MULTILINE)
    return "".join(part for at, part in zip(parts[1::2], parts[2::2]) if at == name)


def containerd(options, report, ground, version, client):
    """One containerd on one ground, with all that one kind of client does."""
    column = f"{client}/{ground}" if client == "docker" else f"{client} {version}/{ground}"
    programs = debs.unpacked(options.work, f"containerd-{version}", debs.CONTAINERDS[version])
    # Sockets have short paths.
    run = Path(tempfile.mkdtemp(prefix="rfc.", dir="/run"))
    # Root of a user namespace has to reach its root through it.
    run.chmod(0o711)
    work = fresh(options.work / "files")
    logs = {what: options.work / f"{what}-{version}-{ground}.log" for what in ("containerd", "serve")}
    for log in logs.values():
        log.unlink(missing_ok=True)
    before = len(report.failed)
    started = []
    try:
        with services.ground(ground, options.work) as fs:
            try:
                server = None
                # Its content isn't what is measured.
                root = fs.mnt / "containerd" if options.snapshotter != "reflinkd" else fresh(options.work / "root")
                ctr = services.Containerd(version, programs, options.snapshotter, root, run, logs["containerd"])
                if options.snapshotter == "reflinkd":
                    server = services.Server(options.binary, fs, run, logs["serve"], ctr.socket)
                    started.append(server)
                    server.__enter__()
                ctr.configure(server)
                started.append(ctr)
                ctr.start()
                lane = Lane(options, fs, server, ctr, work, run)
                {"containerd": ctr_steps, "docker": docker_steps, "cri": cri_steps,
                 "faults": fault_steps}[client](report, column, lane, started)
                report.of(column, "all collected", clients.collected, lane)
                if server:
                    report.of(column, "nothing left", left.of_store, server)
            finally:
                for part in reversed(started):
                    part.__exit__()
                services.unmounted_below(run, fs.mnt, options.work / "root")
    except Failed as problem:
        report.add(column, "lane", str(problem), False)
    finally:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(options.work / "root", ignore_errors=True)
    if len(report.failed) > before:
        for what, log in logs.items():
            if log.exists():
                print(f"\n-- the end of {log}\n{tail(log, 12)}", file=sys.stderr)


def ctr_steps(report, column, lane, _):
    steps = clients.QUICK if lane.options.quick else clients.STEPS
    if lane.ctr.maps_ids:
        steps = [*steps, *clients.FROM_2]
    for name, step in steps:
        if not report.of(column, name, step, lane):
            # What it had begun.
            services.unmounted_below(lane.work)
            for container in ("work", "same", *(f"writer-{number}" for number in range(5))):
                if container in lane.ctr("containers", "ls", "-q").split():
                    clients.removed(lane, container)
            for snapshot in ("looked-at", "work", "done"):
                lane.ctr.client("snapshots", "rm", snapshot)


def cri_steps(report, column, lane, _):
    for name, step in pods.STEPS:
        if not report.of(column, name, step, lane):
            report.of(column, f"{name}, undone", pods.undone, lane)


def fault_steps(report, column, lane, _):
    for name, step in kills.STEPS:
        report.of(column, name, step, lane)


def image(options, report, archive, ground):
    """The DaemonSet on a node of its own. Each step needs those before it."""
    column = f"image/{ground}"
    programs = debs.unpacked(options.work, "containerd-2", debs.CONTAINERDS["2"])
    work, root, log = fresh(options.work / "files"), fresh(options.work / "root"), options.work / f"image-{ground}.log"
    log.unlink(missing_ok=True)
    kind, quotas = daemonset.GROUNDS[ground]
    try:
        with host.Filesystem(kind, options.work, quotas) as fs, daemonset.Node(fs, options.work) as node:
            with daemonset.Containerd(programs, node, root, log) as ctr:
                store = fs.mnt / "store" if quotas else node.path("/var/lib/reflinkd/store")
                lane = Lane(options, fs, daemonset.DaemonSet(node, store), ctr, work, None)
                lane.node, lane.archive, lane.handler = node, archive, lane.server.handler
                if not all(report.of(column, name, step, lane) for name, step in daemonset.STEPS):
                    print(f"\n-- the end of {log}\n{tail(log, 12)}", file=sys.stderr)
    except Failed as problem:
        report.add(column, "lane", str(problem), False)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)


class Plain:
    """What the steps of the Docker test want to know of a storage driver."""

    counts_links = False


def docker_steps(report, column, lane, started):
    root = lane.fs.mnt / "docker" if not lane.server else lane.options.work / "root/docker"
    log = lane.options.work / f"dockerd-{column.split('/')[1]}.log"
    log.unlink(missing_ok=True)
    dockerd = dockers.Dockerd(lane.ctr.bin.parent.parent, lane.ctr, root, lane.run, log)
    started.append(dockerd)
    dockerd.start()
    lane.docker = lane.dockerd = dockerd
    lane.name, lane.driver, lane.plugin, lane.limits, lane.first_id = lane.ctr.snapshotter, Plain, None, None, 0
    for name, step in dockers.STEPS:
        if not report.of(column, name, step, lane):
            print(f"-- the end of {log}\n{tail(log, 6)}", file=sys.stderr)
            if there := dockerd.client("ps", "-aq").stdout.decode().split():
                dockerd.client("rm", "-f", *there)
    dockerd.stop()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory for disks, logs and downloads")
    parser.add_argument("--binary", type=Path, help="reflinkd")
    parser.add_argument("--snapshotter", default="reflinkd", help="reflinkd, or of containerd's own btrfs, overlayfs, native")
    parser.add_argument("--ground", nargs="+", choices=services.GROUNDS, default=[*services.GROUNDS])
    parser.add_argument("--containerd", nargs="+", choices=debs.CONTAINERDS, default=[*debs.CONTAINERDS])
    parser.add_argument("--lane", nargs="+", choices=LANES, default=[*LANES])
    parser.add_argument("--seconds", type=int, default=10, help="how long 64 clients work at once")
    parser.add_argument("--kills", type=int, default=4, help="how many in the lane of faults")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of the lane of faults")
    parser.add_argument("--quick", action="store_true", help="the suite on one ground, and 1.6's images and containers")
    return parser.parse_args()


LANES = ["suite", "containerd", "docker", "cri", "image", "faults"]


def main():
    options = arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    # Ended by others, it takes away what it made, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    report, started = Report(), time.monotonic()
    if options.quick:
        options.ground, options.containerd, options.lane = options.ground[:1], options.containerd[:1], ["suite", "containerd"]
    for ground in options.ground:
        if "suite" in options.lane:
            print(f"\n== containerd's conformance suite, {options.snapshotter} on {ground}", flush=True)
            conformance(options, report, ground)
        for version in options.containerd if "containerd" in options.lane else []:
            print(f"\n== containerd {version}, {options.snapshotter} on {ground}", flush=True)
            containerd(options, report, ground, version, "containerd")
        for version in options.containerd if "faults" in options.lane else []:
            print(f"\n== containerd {version} and the server killed, {options.snapshotter} on {ground}", flush=True)
            containerd(options, report, ground, version, "faults")
        for version in options.containerd if "cri" in options.lane else []:
            print(f"\n== CRI of containerd {version}, {options.snapshotter} on {ground}", flush=True)
            containerd(options, report, ground, version, "cri")
        if "docker" in options.lane:
            print(f"\n== Docker 28 on containerd 2, {options.snapshotter} on {ground}", flush=True)
            containerd(options, report, ground, "2", "docker")
    if "image" in options.lane and options.snapshotter == "reflinkd":
        print("\n== make image, and packaging/kubernetes/daemonset.yaml on a node with containerd 2", flush=True)
        archives = []
        if report.of("image", "built", lambda: archives.append(daemonset.built(options))):
            for ground in daemonset.GROUNDS:
                image(options, report, *archives, ground)
    print(f"\n   {report.passed} checks passed, {len(report.failed)} failed, in {time.monotonic() - started:.0f} s", flush=True)
    for line in report.failed:
        print(f"   FAIL {line}")
    sys.exit(bool(report.failed))


if __name__ == "__main__":
    main()
