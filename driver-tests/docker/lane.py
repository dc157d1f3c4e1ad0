"""Docker itself on a storage driver: every step says what it has shown; the first that fails ends the lane.

The built-in drivers are the oracle: what is expected of reflinkd here has been shown to be what they do.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import basics
import builds
import daemons
import host
import peers
import sizes


class Driver:
    """What a storage driver can be asked for. `limits` by filesystem: own, with the image, or none."""

    def __init__(self, name, filesystems, limits, counts_links=False):
        self.name, self.filesystems, self.limits, self.counts_links = name, filesystems, limits, counts_links


DRIVERS = {driver.name: driver for driver in [
    Driver("overlay2", ["btrfs", "xfs"], {}, counts_links=True),
    Driver("btrfs", ["btrfs"], {"btrfs": "with the image"}),
    Driver("reflinkd", ["btrfs", "xfs"], {"btrfs": "own", "xfs": "none"}),
]}


class Lane:
    """One dockerd on one filesystem with one driver, and what the steps need of it."""

    def __init__(self, driver, fs, dockerd, plugin, work):
        self.driver, self.fs, self.dockerd, self.plugin, self.work = driver, fs, dockerd, plugin, work
        self.name, self.docker = dockerd.driver, dockerd
        self.limits = driver.limits.get(fs.kind)
        self.first_id = host.REMAP_FIRST if dockerd.remap else 0

    def layers(self):
        """What dockerd has given the driver to keep, by dockerd's own list."""
        found = []
        for kind in ("sha256", "mounts"):
            below = self.dockerd.home / "image" / self.name / "layerdb" / kind
            found += sorted(path.name for path in below.iterdir()) if below.is_dir() else []
        return found


def steps_of(driver, fs, peer, options, mapped):
    """The steps of a lane in their order: (name, function)."""
    first = [("info", basics.info), ("import", basics.import_), ("load", basics.load)]
    if mapped:
        steps, exporting = MAPPED_STEPS, [("export", basics.export), ("ids", daemons.userns_ids)]
    else:
        steps, exporting = plain_steps(driver, fs, options.quick), [("export", basics.export)]
    last = [("nothing is left", daemons.nothing_left)]
    if peer.keeps_exported:
        return [*first, *steps, *last, *first, *exporting]
    return [*first, *exporting, *steps, *last]


def plain_steps(driver, fs, quick):
    names = [
        ("run", basics.run), ("exec", basics.exec_), ("cp", basics.cp), ("diff", basics.diff), ("ps -s", basics.ps),
        ("inspect", basics.inspect), ("restart, rm", basics.restart), ("side by side", basics.side_by_side),
        ("commit", builds.commit), ("build, history", builds.build), ("save, rmi, load", builds.save), ("rmi", builds.rmi),
        ("system df", builds.df), ("system prune", builds.prune), ("five containers", sizes.table),
    ]
    if driver.limits.get(fs.kind):
        names.append(("--storage-opt size", sizes.limit))
    if driver.limits.get(fs.kind) == "own" and not quick:
        names.append(("dockerd --storage-opt", sizes.default_limit))
    names.append(("restart of dockerd", daemons.restart_dockerd))
    if driver.name == "reflinkd":
        names += [("unknown --storage-opt", sizes.unknown_option), ("kill -9 of the plugin", daemons.kill_plugin)]
    return names


MAPPED_STEPS = [("cp", basics.cp), ("diff", basics.diff), ("commit", builds.commit), ("build, history", builds.build),
                ("save, rmi, load", builds.save)]


def play(lane, steps):
    for name, step in steps:
        started = time.monotonic()
        try:
            said = step(lane)
        except host.Failed as problem:
            raise host.Failed(f"{name}: {problem}") from None
        print(f"   {name:<22} {said}  ({time.monotonic() - started:.1f} s)", flush=True)


def run_lane(options, peer, driver, fs, mapped):
    steps = steps_of(driver, fs, peer, options, mapped)
    words = ", ids mapped" if mapped else ""
    print(f"\n== dockerd {peer.version}, {driver.name} on {fs.kind}{words}", flush=True)
    # Sockets have short paths.
    run = Path(tempfile.mkdtemp(prefix="rfd.", dir="/run"))
    # Where mapped ids can't pass, dockerd makes a directory of its own beside it, and leaves it there.
    run.chmod(0o711)
    part = "mapped" if mapped else "plain"
    logs = {what: options.work / f"{what}-{peer.version}-{driver.name}-{fs.kind}-{part}.log" for what in ("dockerd", "plugin")}
    for log in logs.values():
        log.unlink(missing_ok=True)
    work = host.fresh(options.work / "files")
    plugin = dockerd = None
    try:
        name = driver.name
        if name == "reflinkd":
            # Another name each time: dockerd must not find a plugin that is already here.
            name = f"reflinkd-{os.getpid()}"
            plugin = host.Plugin(options.binary, fs, f"store-{part}", run, logs["plugin"])
            plugin.__enter__()
        dockerd = host.Dockerd(peer, name, fs.mnt / f"docker-{part}", run, logs["dockerd"], plugin, remap=mapped)
        dockerd.start()
        play(Lane(driver, fs, dockerd, plugin, work), steps)
    except host.Failed:
        for what, log in logs.items():
            if what == "dockerd" or plugin:
                print(f"\n-- the end of {log}\n{host.tail(log)}", file=sys.stderr)
        raise
    finally:
        for part in (dockerd, plugin):
            if part:
                part.__exit__()
        shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(work, ignore_errors=True)


def arguments():
    parser = argparse.ArgumentParser(description="Hold Docker on a storage driver to what Docker does on its own.")
    parser.add_argument("--work", type=Path, required=True, help="directory for disks, logs and downloads")
    parser.add_argument("--binary", type=Path, help="reflinkd, for its driver")
    parser.add_argument("--driver", choices=DRIVERS, default="reflinkd")
    parser.add_argument("--docker", choices=peers.VERSIONS, help="one version only")
    parser.add_argument("--fs", choices=["btrfs", "xfs"], help="one filesystem only")
    parser.add_argument("--quick", action="store_true", help="20.10 on Btrfs alone: the part that `make test` has")
    options = parser.parse_args()
    if options.quick:
        options.docker, options.fs = options.docker or peers.VERSIONS[0], options.fs or "btrfs"
    return options


def main():
    options = arguments()
    driver = DRIVERS[options.driver]
    options.work.mkdir(parents=True, exist_ok=True)
    # Ended by others, it takes away what it made, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    started = time.monotonic()
    lanes = 0
    try:
        for version in [options.docker] if options.docker else peers.VERSIONS:
            peer = peers.peer(version, options.work.parent / "peers")
            for kind in [options.fs] if options.fs else driver.filesystems:
                with host.Filesystem(kind, options.work) as fs:
                    for mapped in (False, True):
                        run_lane(options, peer, driver, fs, mapped)
                        lanes += 1
    except (host.Failed, peers.packages.Unavailable) as problem:
        sys.exit(f"\nerror: {problem}")
    print(f"\n   {lanes} lanes in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
