#!/usr/bin/python3 -B
"""Real Docker on reflinkd's storage driver, on a guest's kernel: docker.py VERSION GROUND...

The steps are those of `make test-docker` (driver-tests/docker), the ones that tell most for their time: a guest that
emulates is twenty times slower. A ground is a filesystem with the quotas that it is to have, such as `btrfs-full`. Each
step is a test, in the words of a libtest; the first that fails ends its ground.
"""

import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "docker"))

import basics  # noqa: E402
import builds  # noqa: E402
import daemons  # noqa: E402
import host  # noqa: E402
import lane  # noqa: E402
import peers  # noqa: E402
import sizes  # noqa: E402

REFLINKD = Path("/lane/reflinkd")
SCRATCH = Path("/scratch")
# What a daemon may need to start, and a filesystem to give back what was removed.
host.START_SECONDS = host.SETTLE_SECONDS = 240
# In the guest the five containers write 30 MB in all, and a limit is 10 MiB.
STEP = 2
# A network namespace takes half of the time that a container needs to start, and says nothing about storage.
basics.RUN[:2] = ["--network", "host"]

# A container takes eight seconds to start and go: the fewest that show it.
STEPS = [
    ("info", basics.info),
    ("import", basics.import_),
    ("load", basics.load),
    ("five_containers", partial(sizes.table, step=STEP)),
    ("diff", basics.diff),
    ("commit", builds.commit),
    ("build", partial(builds.build, times=1, base=6)),
    ("size_limit", partial(sizes.limit, step=STEP, small_image=False)),
    ("nothing_left", daemons.nothing_left),
]


CONTAINERD = """\
version = 2
root = "{run}/containerd/root"
state = "{run}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{run}/containerd.sock"
"""


# In dockerd's mount namespace: containers find their network's there.
START = "containerd -c $0/containerd.toml >$1 2>&1 & shift; while ! [ -S $0/containerd.sock ]; do sleep 0.2; done; exec dockerd $*"


def with_containerd(dockerd, run, log):
    """A containerd as Debian's service is: one that dockerd starts itself has to be up within 15 seconds."""
    (run / "containerd.toml").write_text(CONTAINERD.format(run=run))
    dockerd.program = ["/bin/sh", "-c", START, run, log]


class Tests:
    """Runs what is to be shown, and says it."""

    def __init__(self):
        self.passed = self.failed = 0

    def run(self, name, function):
        """Whether it passed."""
        started = time.monotonic()
        try:
            print(f"   {function()}  ({time.monotonic() - started:.1f} s)", flush=True)
        except Exception as problem:
            known = isinstance(problem, host.Failed)
            print(f"   {problem if known else traceback.format_exc()}  ({time.monotonic() - started:.1f} s)", flush=True)
            self.failed += 1
            print(f"test {name} ... FAILED", flush=True)
            return False
        self.passed += 1
        print(f"test {name} ... ok", flush=True)
        return True


def ground(tests, peer, name):
    """All steps on one filesystem, with daemons of their own."""
    kind, _, quotas = name.partition("-")
    work = host.fresh(SCRATCH / name)
    # Sockets have short paths.
    run = Path(tempfile.mkdtemp(prefix="rfd.", dir="/run"))
    logs = [work / f"{daemon}.log" for daemon in ("plugin", "containerd", "dockerd")]
    driver = lane.Driver("reflinkd", [kind], {kind: "own"})
    with host.Filesystem(kind, work, quotas) as fs:
        plugin = host.Plugin(REFLINKD, fs, "store", run, logs[0])
        options = ["--containerd", run / "containerd.sock"]
        dockerd = host.Dockerd(peer, "reflinkd", fs.mnt / "docker", run, logs[2], plugin, options)
        with_containerd(dockerd, run, logs[1])

        def start():
            plugin.__enter__()
            dockerd.start()
            return f"dockerd {peer.version}, reflinkd on {name}"

        try:
            played = lane.Lane(driver, fs, dockerd, plugin, host.fresh(work / "files"))
            if not tests.run(f"{name}::start", start) or \
                    not all(tests.run(f"{name}::{step}", partial(function, played)) for step, function in STEPS):
                for log in logs:
                    print(f"-- the end of {log.name}\n{host.tail(log)}", flush=True)
        finally:
            dockerd.__exit__()
            plugin.__exit__()


def main():
    version, *grounds = sys.argv[1:]
    peer = peers.Peer(version, None, ["/usr/bin/docker"])
    tests = Tests()
    for name in grounds:
        ground(tests, peer, name)
    verdict = "FAILED" if tests.failed or not tests.passed else "ok"
    print(f"test result: {verdict}. {tests.passed} passed; {tests.failed} failed", flush=True)
    return 0 if verdict == "ok" else 1


sys.exit(main())
