"""What is taken from Debian and never installed: containerd and Docker of two releases, and Go with containerd's own suite."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Which release has which containerd.
CONTAINERDS = {"1.6": ("bookworm", ["containerd"]),
               "1.7": ("trixie", ["containerd"]),
               "2": ("sid", ["containerd", "docker.io", "docker-cli", "docker-buildx"])}

SUITE = ("bookworm", [
    "golang-1.19-go", "golang-1.19-src", "libbtrfs-dev", "golang-github-containerd-btrfs-dev",
    "golang-github-containerd-containerd-dev", "golang-github-containerd-continuity-dev", "golang-github-containerd-ttrpc-dev",
    "golang-github-containerd-typeurl-dev", "golang-github-coreos-bbolt-dev", "golang-github-docker-go-events-dev",
    "golang-github-docker-go-units-dev", "golang-github-gogo-protobuf-dev", "golang-github-golang-protobuf-1-5-dev",
    "golang-github-google-go-cmp-dev", "golang-github-google-shlex-dev", "golang-github-gotestyourself-gotest.tools-dev",
    "golang-github-klauspost-compress-dev", "golang-github-moby-sys-dev", "golang-github-opencontainers-go-digest-dev",
    "golang-github-opencontainers-image-spec-dev", "golang-github-opencontainers-specs-dev", "golang-github-pkg-errors-dev",
    "golang-github-sirupsen-logrus-dev", "golang-golang-x-net-dev", "golang-golang-x-sync-dev", "golang-golang-x-sys-dev",
    "golang-golang-x-text-dev", "golang-golang-x-xerrors-dev", "golang-google-genproto-dev", "golang-google-grpc-dev",
    "golang-google-protobuf-dev"])

# Its client of CRI is a program of ours.
CRI = ("sid", ["golang-1.27-go", "golang-1.27-src", "golang-github-golang-protobuf-1-5-dev", "golang-golang-x-net-dev", "golang-golang-x-sys-dev",
               "golang-golang-x-text-dev", "golang-google-genproto-dev", "golang-google-grpc-dev", "golang-google-protobuf-dev",
               "golang-k8s-cri-api-dev"])

REGISTRY = ("bookworm", ["docker-registry"])


def unpacked(cache, what, packages):
    """The directory of these packages, fetched if need be."""
    suite, names = packages
    command = [sys.executable, "-B", HERE.parent / "graphdriver/fetch.py", cache / what, suite, *names]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


if __name__ == "__main__":
    print(unpacked(Path(sys.argv[1]), sys.argv[2], globals()[sys.argv[2].upper()]))
