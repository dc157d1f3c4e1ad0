"""The versions of Docker: bookworm's, which is installed, and trixie's, unpacked below target/ and never installed."""

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "vm"))
import packages  # noqa: E402

VERSIONS = ["20.10", "26.1"]


class Peer:
    """`root` has the /usr that dockerd is to see; None for this machine's own. `client` runs the client."""

    def __init__(self, version, root, client):
        self.version, self.root, self.client = version, root, client
        # It never gives the layer of a container back that it exported, with any driver: rm leaves it.
        self.keeps_exported = version == "26.1"


def peer(version, cache):
    if version == "20.10":
        return Peer(version, None, ["/usr/bin/docker"])
    root = unpacked("trixie", ["docker.io", "docker-cli"], cache)
    # Its libraries are newer than this machine's: its own loader runs it.
    return Peer(version, root, [*packages.loader(root), str(root / "usr/bin/docker")])


def unpacked(suite, wanted, cache):
    """Fetch these packages with all that they depend on, signed by Debian, and unpack them; once."""
    done = cache / suite
    if done.is_dir():
        return done
    archive = packages.Packages({"root": {suite: {"suite": suite, "packages": wanted}}}, None, cache / "packages")
    half = cache / f"{suite}.new"
    shutil.rmtree(half, ignore_errors=True)
    for file in archive.newest(f"root-{suite}"):
        subprocess.run(["dpkg-deb", "-x", file, half], check=True)
    half.rename(done)
    return done
