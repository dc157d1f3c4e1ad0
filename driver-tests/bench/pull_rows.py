#!/usr/bin/env python3
"""Measure `reflinkd pull` from a registry on loopback beside `reflinkd load` of the same image, and beside the pulls of podman
and Docker from the same registry: on one Btrfs and on one XFS filesystem, whole commands, in turns.

    pull_rows.py --work DIR --cache DIR --nginx ARCHIVE [--binary REFLINKD] [--scale 1.0] [--only PART,...] [--on btrfs,xfs]

Prints a table for each filesystem and writes DIR/pull.json:

    {"machine": {...}, "images": [{"image": "nginx", "layers": 3, "packed": 48636599}, ...],
     "btrfs": {"rows": [{"row": "nginx: pull", "unit": "ms", "values": {"reflinkd": [950.1, ...], "limit": [...], ...}}],
               "failures": [{"who": "podman btrfs", "row": "nginx: pull", "error": "..."}]}, "xfs": {...}}

There are two images: ARCHIVE, an OCI archive, and the one of `make bench` in the size of --scale. skopeo pushes them into
Debian's docker-registry, layers as they are: `load` and `pull` take in the same compressed bytes. CACHE is where the registry
is unpacked, or will be. PARTs are `limits`, `reflinkd`, `docker` and `podman`. Status 1 if one of our own measurements failed;
a missed aim is none.
"""

import argparse
import contextlib
import gzip
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import measure
import peers
from bench import GIB, Ours, image_in, number, say, version
from docker_rows import Rows, table
from measure import Failed, Ran, sync

# The registry is that of the containerd test.
sys.path[1:1] = [str(Path(__file__).resolve().parent.parent / name) for name in ("containerd", "docker")]
import debs  # noqa: E402
import registry  # noqa: E402

PARTS = ("limits", "reflinkd", "docker", "podman")
FILESYSTEMS = ("btrfs", "xfs")
# Layers that are fetched at the same time, by all of them.
AT_ONCE = 3
LOAD, LOAD_PLAIN, PULL, PEAK = "load, OCI archive", "load, plain docker-archive", "pull", "pull, peak memory"
PS = "ps, one container"

# What a pull may take of a load's time and of a peer's; bytes in memory; and milliseconds of a `ps`.
OF_LOAD, OF_PEER, MOST_MB, MOST_PS = 1.1, 0.5, 64, 8


class Image:
    """An image in all the forms in which it is taken in. `reference` is its name in the registry at ADDRESS."""

    def __init__(self, name, archive, work, address):
        self.name, self.archive = name, archive
        self.reference, self.plain = f"{address}/{name}:latest", os.path.join(work, f"pull-{name}.tar")
        with tarfile.open(archive) as tar:
            # umoci's archives have `./` in front.
            self.blobs = {os.path.basename(member.name): member for member in tar if "/sha256/" in member.name}
            index = next(member for member in tar if os.path.basename(member.name) == "index.json")
            described = json.load(tar.extractfile(index))["manifests"][0]
            manifest = json.load(tar.extractfile(self.blob(described)))
            self.id = manifest["config"]["digest"]
            self.digests = [layer["digest"] for layer in manifest["layers"]]
            self.packed = sum(layer["size"] for layer in manifest["layers"])
            # For the limit.
            self.layers = [os.path.join(work, f"pull-{name}-layer{at}.tar") for at in range(len(self.digests))]
            for layer, path in zip(manifest["layers"], self.layers, strict=True):
                with gzip.open(tar.extractfile(self.blob(layer))) as packed, open(path, "wb") as plain:
                    shutil.copyfileobj(packed, plain, 1 << 20)
        for path in [self.plain, f"{self.plain}.new"]:
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
        skopeo("copy", "-q", f"oci-archive:{archive}", f"docker-archive:{self.plain}:{name}:latest")
        skopeo("copy", "-q", "--dest-tls-verify=false", f"oci-archive:{archive}", f"docker://{self.reference}")

    def blob(self, descriptor):
        return self.blobs[descriptor["digest"].removeprefix("sha256:")]

    def urls(self):
        """Where the registry has the layers."""
        address, _, rest = self.reference.partition("/")
        return [f"http://{address}/v2/{rest.partition(':')[0]}/blobs/{digest}" for digest in self.digests]

    def facts(self):
        return {"image": self.name, "layers": len(self.digests), "packed": self.packed}


def skopeo(*arguments):
    Ran(["skopeo", "--insecure-policy", *arguments])


class Reflinkd(Ours):
    name = "reflinkd"

    def turns(self, rows, image, run):
        """Both loads and the pull, each of them first as often as the others."""
        ways = [(LOAD, image.name, lambda: self.load(image.archive)), (LOAD_PLAIN, image.name, lambda: self.load(image.plain)),
                (PULL, image.reference, lambda: Ran([*self.client, "pull", "-q", image.reference], memory=True))]
        start = run % len(ways)
        for row, name, act in ways[start:] + ways[:start]:
            rows.settle()
            ran = act()
            checked(json.loads(self.ask("inspect", "--type", "image", name).text)[0]["id"], image)
            yield row, ran.ms
            if row == PULL:
                yield PEAK, ran.peak / 1e6
            self.ask("rmi", name)
            self.ask("gc")


class Limit:
    """The least that a pull can be: `tar -x` of the plain layers, decompression and both digests, as for a load, and the blobs
    fetched by curl to nowhere; all at once."""

    name = "limit"

    def __init__(self, directory):
        self.tree = os.path.join(directory, "limit")

    def __enter__(self):
        os.makedirs(self.tree)
        return self

    def __exit__(self, *_):
        pass

    def turns(self, rows, image, _run):
        fetch = ["curl", "--fail", "--no-progress-meter", "--parallel", "--parallel-max", str(AT_ONCE)]
        for url in image.urls():
            fetch += ["--output", "/dev/null", url]
        yield PULL, measure.together(measure.unpacking(image.layers, self.tree), measure.decoding(image.archive), fetch)
        subprocess.run(["find", self.tree, "-mindepth", "1", "-delete"], check=True)


def peer_turns(who, _rows, image, _run):
    """A peer's pull."""
    ran = who.pull(image.reference)
    checked(who.image_id(image.reference), image)
    yield PULL, ran.ms
    who.unload(image.reference)


def checked(found, image):
    """Whoever has something else hasn't pulled."""
    if found.removeprefix("sha256:") != image.id.removeprefix("sha256:"):
        raise Failed(f"{image.reference} became {found}, expected {image.id}")


class PullRows(Rows):
    """Rows on a filesystem of any kind."""

    def __init__(self, contenders, filesystem):
        super().__init__(contenders, filesystem.mount)
        self.kind = filesystem.kind

    def settle(self):
        if self.kind == "btrfs":
            super().settle()
        else:
            sync(self.mount)


def of(image, row):
    return f"{image.name}: {row}"


def pulls(rows, image, most, seconds):
    rows.row(of(image, PEAK), "MB")

    def once(who, run):
        for path in (image.archive, image.plain, *image.layers):
            measure.warm(path)
        turns = getattr(who, "turns", None) or (lambda *arguments: peer_turns(who, *arguments))
        for row, value in turns(rows, image, run):
            yield of(image, row), value

    rows.turns([of(image, row) for row in (LOAD, LOAD_PLAIN, PULL)], once, most=most, seconds=seconds, least=1)
    # Last in the table.
    rows.rows[of(image, PEAK)] = rows.rows.pop(of(image, PEAK))


def listing(rows, image):
    """A `ps` in the store that has pulled."""
    def once(who, run):
        if not run:
            who.ask("pull", "-q", image.reference)
            who.ask("create", "--image", image.reference, "one")
            rows.settle()
        yield PS, who.ask("ps").ms

    everybody, rows.contenders = rows.contenders, [who for who in rows.contenders if isinstance(who, Reflinkd)]
    rows.turns([PS], once, most=30)
    rows.contenders = everybody


def contenders(chosen, kind, directory):
    found = []
    if "reflinkd" in chosen.only:
        found.append(Reflinkd(chosen.binary, os.path.join(directory, "ours")))
    if "limits" in chosen.only:
        found.append(Limit(directory))
    native = [peers.Docker("btrfs", directory), peers.Podman("btrfs", directory)] if kind == "btrfs" else []
    others = [*native, peers.Docker("overlay2", directory), peers.Podman("overlay", directory)]
    return found + [peer for peer in others if peer.program in chosen.only]


def verdicts(rows, names, images):
    """What each row is to stay below, and whether it does: (met, text). Rows that lack a number are left out."""
    def most(row, limit, what):
        ours = rows.median(row, "reflinkd")
        if ours and limit:
            yield ours <= limit, f"{row}: at most {what} ({number(ours)})"

    for image in images:
        pull, load = of(image, PULL), rows.median(of(image, LOAD), "reflinkd")
        ours = rows.median(pull, "reflinkd")
        if ours and load:
            yield ours <= OF_LOAD * load, f"{pull}: at most {OF_LOAD} x {LOAD} ({ours / load:.2f})"
        for who in names:
            value = rows.median(pull, who)
            if ours and value and who not in ("reflinkd", "limit"):
                yield ours <= OF_PEER * value, f"{pull}: at most {OF_PEER} x that of {who} ({ours / value:.2f})"
        yield from most(of(image, PEAK), MOST_MB, f"{MOST_MB} MB")
    yield from most(PS, MOST_PS, f"{MOST_PS} ms")


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="directory for images, registry, filesystems and results")
    parser.add_argument("--cache", required=True, type=Path, help="directory of the unpacked registry")
    parser.add_argument("--nginx", required=True, metavar="ARCHIVE", help="an OCI archive, its layers gzip")
    parser.add_argument("--binary", help="the reflinkd to measure")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the other image")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of: {', '.join(PARTS)}")
    parser.add_argument("--on", default=",".join(FILESYSTEMS), help=f"some of: {', '.join(FILESYSTEMS)}")
    parser.add_argument("--seconds", type=float, default=60, help="about how long each may take for an image")
    chosen = parser.parse_args()
    for option, known in (("only", PARTS), ("on", FILESYSTEMS)):
        words = getattr(chosen, option).replace(",", " ").split()
        unknown = sorted(set(words) - set(known))
        if unknown:
            parser.error(f"--{option}: {', '.join(unknown)} is none of {', '.join(known)}")
        setattr(chosen, option, words)
    if "reflinkd" in chosen.only and not chosen.binary:
        parser.error("--binary is needed to measure reflinkd")
    return chosen


def measured(chosen, kind, work, images):
    """The rows on a filesystem of that kind, and the names of its columns."""
    with contextlib.ExitStack() as stack:
        filesystem = stack.enter_context(measure.Filesystem(work, 64 * GIB, kind, simple_quotas=kind == "btrfs"))
        say(f"one filesystem of {kind} on {filesystem.device}, quotas: {filesystem.quotas}")
        rows = PullRows(contenders(chosen, kind, filesystem.mount), filesystem)
        names = [who.name for who in rows.contenders]
        rows.prepare("start", stack.enter_context)
        small, large = images
        try:
            pulls(rows, small, most=9, seconds=chosen.seconds)
            listing(rows, small)
            pulls(rows, large, most=3, seconds=chosen.seconds)
        except (KeyboardInterrupt, SystemExit):
            # What was measured so far is no less true.
            rows.fail("all", "what comes next", "interrupted")
        return rows, names


def main():
    chosen = options()
    # A signal ends the run through the context managers, which stop daemons and unmount.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda *_: sys.exit(130))
    work = os.path.abspath(chosen.work)
    os.makedirs(work, exist_ok=True)
    directory, _ = image_in(work, chosen.scale)
    programs = debs.unpacked(chosen.cache, "registry", debs.REGISTRY)
    machine = {"kernel": platform.release(), "cpus": os.cpu_count(), "load": os.getloadavg()[0],
               **{program: version(f"/usr/bin/{program}", "--version") for program in ("docker", "podman") if program in chosen.only},
               "registry": version(str(programs / "usr/bin/docker-registry"), "--version").split()[-1]}
    started, done = time.monotonic(), {}
    place = Path(work, "pull-registry")
    shutil.rmtree(place, ignore_errors=True)
    with registry.registry(programs, place) as address:
        say(f"skopeo pushes to {address} ...")
        images = [Image("nginx", chosen.nginx, work, address), Image("bench", os.path.join(directory, "oci.tar"), work, address)]
        for kind in chosen.on:
            done[kind] = measured(chosen, kind, work, images)
            if any(failure["who"] == "all" for failure in done[kind][0].failures):
                break
    machine["seconds"] = round(time.monotonic() - started)
    path = os.path.join(work, "pull.json")
    with open(path, "w", encoding="utf-8") as file:
        tables = {kind: {"rows": list(rows.rows.values()), "failures": rows.failures} for kind, (rows, _) in done.items()}
        json.dump({"machine": machine, "images": [image.facts() for image in images], **tables}, file, indent=2)
    for kind, (rows, names) in done.items():
        print(f"\npull, {kind}\n\n{table(rows, names)}\n")
        for met, text in verdicts(rows, names, images):
            say(f"{'met' if met else 'MISSED'}: {text}")
        for failure in rows.failures:
            print(f"   FAILED {failure['who']}, {failure['row']}: {failure['error']}")
    for image in images:
        say(f"{image.name}: {len(image.digests)} layers, {image.packed / 1e6:.1f} MB compressed")
    say(", ".join(f"{key} {value}" for key, value in machine.items()))
    say(f"as JSON: {path}")
    return 1 if any(failure["who"] in ("reflinkd", "all") for rows, _ in done.values() for failure in rows.failures) else 0


if __name__ == "__main__":
    sys.exit(main())
