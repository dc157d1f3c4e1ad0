#!/usr/bin/env python3
"""Unpack Debian packages of a suite, never installed, and print the directory: fetch.py CACHE SUITE PACKAGE...

Signed by Debian's keyring, through the private apt directories of the virtual machines' tests. What has once been unpacked for
the same names is kept.
"""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "vm"))
from packages import Packages, Unavailable  # noqa: E402


def main(cache, suite, names):
    done = cache / f"{suite}-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:16]}"
    if not done.is_dir():
        for old in cache.glob(f"{suite}-*"):
            shutil.rmtree(old)
        half = cache / f"{suite}-new"
        debs = half / "debs"
        packages = Packages({}, None, cache)
        debs.mkdir(parents=True)
        packages.update(suite, False)
        packages.apt(suite, "apt-get", "download", "-qq", *names, cwd=debs)
        for deb in sorted(debs.iterdir()):
            subprocess.run(["dpkg-deb", "-x", deb, half], check=True)
        shutil.rmtree(debs)
        half.rename(done)
    print(done)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
    except Unavailable as why:
        sys.exit(f"error: {why}")
