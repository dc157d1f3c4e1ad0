"""Docker on reflinkd while things go wrong: both daemons killed again and again under load, disks that run full, layers that
break off. What was promised is there afterwards, and of the rest nothing.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import checks
import full
import host
import images
import mix
import peers
import truncated
from host import Failed
from proxy import Proxy

# How long to wait for a call to be under way, in seconds, before killing whoever answers it.
UNDER_WAY = 10


class Behind:
    """The plugin, as dockerd finds it: behind a proxy."""

    def __init__(self, proxy):
        self.socket = proxy.socket


class Containerd:
    """One that goes on while dockerd is killed, as it does where both are services."""

    def __init__(self, run, log):
        self.run, self.log, self.socket, self.process = run / "containerd", log, run / "containerd.sock", None

    def __enter__(self):
        self.run.mkdir()
        config = self.run / "config.toml"
        config.write_text(f'version = 2\nroot = "{self.run}/root"\nstate = "{self.run}/state"\n'
                          'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
                          f'[grpc]\n  address = "{self.socket}"\n')
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(["containerd", "--config", config], stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, start_new_session=True)
        done = time.monotonic() + host.START_SECONDS
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > done:
                raise Failed(f"containerd doesn't start: {host.tail(self.log)}")
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        host.end(self.process)


class Lane:
    def __init__(self, fs, plugin, proxy, dockerd, work, options):
        self.fs, self.plugin, self.proxy, self.dockerd, self.docker = fs, plugin, proxy, dockerd, dockerd
        self.work, self.options, self.random = work, options, random.Random(options.seed)

    def database(self):
        return self.dockerd.data / "image" / self.dockerd.driver / "layerdb"


def moment(lane):
    """Wait until a random moment, at which something is asked of the plugin if anything is; what that is."""
    time.sleep(lane.random.uniform(0, 0.7))
    done = time.monotonic() + UNDER_WAY
    while time.monotonic() < done:
        if lane.proxy.in_flight():
            # Not always at its beginning.
            time.sleep(lane.random.choice([0, 0, 0.002, 0.01]))
            if found := lane.proxy.in_flight():
                return found
        time.sleep(0.001)
    return []


def kill_again_and_again(lane, who, kill):
    """Kill somebody under load; what was under way each time."""
    hits, longest = [], 0
    with mix.Mix(lane.docker, host.fresh(lane.work / "mix"), lane.options.workers, f"{lane.options.seed} {who}") as load:
        for number in range(1, lane.options.kills + 1):
            found = moment(lane)
            started = time.monotonic()
            kill(lane)
            longest = max(longest, time.monotonic() - started)
            hits.append(found)
            print(f"     {who} killed, {number:>2}: {' '.join(found) or '-'}", flush=True)
    load.check()
    return load, hits, longest


def kill_plugin(lane):
    lane.plugin.kill()
    lane.plugin.start()


def kill_dockerd(lane):
    host.end(lane.dockerd.process, signal.SIGKILL)
    # Its number may be another process's by now.
    (lane.dockerd.run / "pid").unlink(missing_ok=True)
    lane.dockerd.start()


def phase(lane, who, kill):
    lane.docker("import", "-c", "ENV PATH=/bin", "-", "base:1", input=images.tar_of(images.base_layer()))
    load, hits, longest = kill_again_and_again(lane, who, kill)
    hit = sum(bool(found) for found in hits)
    calls = Counter(name for found in hits for name in found)
    done, failed = load.counts()
    print(f"   {who} killed {len(hits)} times, {hit} times under way: "
          f"{', '.join(f'{name} {count}' for name, count in calls.most_common())}; back within {longest:.1f} s; "
          f"{done} commands done, {failed} failed", flush=True)
    # Four of five.
    if hit * 5 < len(hits) * 4:
        raise Failed(f"only {hit} of {len(hits)} kills hit a call")
    containers, promised = load.promised()
    checks.images_whole(lane, promised)
    checks.containers_start(lane, containers)
    checks.all_removed(lane)


def plugin_killed(lane):
    phase(lane, "reflinkd", kill_plugin)


def dockerd_killed(lane):
    phase(lane, "dockerd", kill_dockerd)


STEPS = {"truncated": truncated.run, "full": full.run, "reflinkd": plugin_killed, "dockerd": dockerd_killed}


def run_lane(options, kind):
    run = Path(tempfile.mkdtemp(prefix="rfd.", dir="/run"))
    work = host.fresh(options.work / "files")
    logs = {what: options.work / f"{what}-{kind}.log" for what in ("dockerd", "plugin")}
    for log in logs.values():
        log.unlink(missing_ok=True)
    name = f"reflinkd-{os.getpid()}"
    try:
        with host.Filesystem(kind, options.work) as fs, \
                host.Plugin(options.binary, fs, "store", run, logs["plugin"]) as plugin:
            proxy = Proxy(run / "proxy.sock", plugin.socket)
            peer = peers.peer("20.10", options.work.parent / "peers")
            with Containerd(run, options.work / f"containerd-{kind}.log") as containerd, \
                    host.Dockerd(peer, name, fs.mnt / "docker", run, logs["dockerd"], Behind(proxy),
                                 options=[f"--containerd={containerd.socket}"]) as dockerd:
                lane = Lane(fs, plugin, proxy, dockerd, work, options)
                for step in options.step or STEPS:
                    started = time.monotonic()
                    print(f"\n-- {step}, on {kind}", flush=True)
                    STEPS[step](lane)
                    print(f"   {step}: {time.monotonic() - started:.0f} s", flush=True)
                checks.nothing_left(lane)
            proxy.close()
            checks.no_processes(fs, run, plugin.process.pid)
        checks.no_mounts(fs, run)
    except (Failed, subprocess.TimeoutExpired):
        for what, log in logs.items():
            print(f"\n-- the end of {log}\n{host.tail(log)}", file=sys.stderr)
        raise
    finally:
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="directory for disks and logs")
    parser.add_argument("--binary", type=Path, required=True, help="reflinkd")
    parser.add_argument("--fs", choices=["btrfs", "xfs"], default="btrfs")
    parser.add_argument("--kills", type=int, default=50, help="of each daemon")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--step", choices=STEPS, action="append", help="only this; may be given several times")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    print(f"\n== faults, seed {options.seed}")
    try:
        run_lane(options, options.fs)
    except Failed as problem:
        sys.exit(f"\nerror: {problem}")
    print(f"\n   all of it in {time.monotonic() - started:.0f} s")


main()
