"""The filesystems, and the devices that they are on."""

import contextlib
import errno
import os
import subprocess
import time

SIZE = 1 << 30
# Behind the filesystem, for marks.
BEHIND = 1 << 20
# What was started, or is to end, has failed if it takes longer.
PATIENCE = 60

# name -> (its mkfs, which quotas `reflinkd quota enable` switches on). Btrfs keeps one copy of its metadata, as in the
# embedded pool.
GROUNDS = {
    "simple": ("btrfs", "--simple"),
    "full": ("btrfs", "--full"),
    "none": ("btrfs", None),
    "xfs": ("xfs", None),
}


# btrfs-progs: of a Debian that is older than simple quotas those that `run.sh` has unpacked.
BTRFS = ["btrfs"]


def use_programs(unpacked):
    """Take btrfs-progs from an unpacked Debian, with the libraries that are there."""
    libraries = unpacked / "usr/lib/x86_64-linux-gnu"
    BTRFS[:] = [libraries / "ld-linux-x86-64.so.2", "--library-path",
                f"{libraries}:/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu", unpacked / "usr/bin/btrfs"]


class Failed(Exception):
    """A command failed."""


def sh(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise Failed(f"{' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


@contextlib.contextmanager
def loop(file, *options):
    device = sh("losetup", "--find", "--show", *options, file)
    try:
        yield device
    finally:
        released(device)
        # Else it is still the device of that UUID when a copy is mounted.
        subprocess.run(["btrfs", "device", "scan", "--forget", device], capture_output=True, check=False)
        sh("losetup", "--detach", device)


def released(device):
    """Wait until no filesystem has a device any more."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise Failed(f"{device} is still in use: {error}") from None
        time.sleep(0.02)


def clean(work):
    """Take away what a run that was killed has left: mounts, loop devices, and the recorder, which ends with its mount."""
    found = mounts_below(work)
    for at in found:
        if not at.endswith("/device"):
            subprocess.run(["umount", at], check=False)
    for line in sh("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE").splitlines():
        device, _, file = line.partition(" ")
        if file.strip().startswith(f"{work}/"):
            subprocess.run(["losetup", "--detach", device], check=False)
    unmount(work)


def mounts_below(path):
    """What is mounted at a path or below it, the last first."""
    with open("/proc/self/mountinfo", encoding="utf-8") as mounts:
        found = [line.split()[4] for line in mounts]
    return [at for at in reversed(found) if at == str(path) or at.startswith(f"{path}/")]


def unmount(path):
    """Unmount what is at a path or below it; who works there in the background is waited for."""
    done = time.monotonic() + PATIENCE
    while below := mounts_below(path):
        said = [subprocess.run(["umount", at], capture_output=True, text=True, check=False) for at in below]
        if any(one.returncode for one in said):
            if time.monotonic() > done:
                raise Failed(f"umount {path}: {'; '.join(one.stderr.strip() for one in said if one.returncode)}")
            time.sleep(0.05)


@contextlib.contextmanager
def mounted(device, at):
    at.mkdir(parents=True, exist_ok=True)
    sh("mount", device, at)
    try:
        yield at
    finally:
        unmount(at)


def make(name, image, mnt, binary, size=SIZE):
    """A new filesystem of that many bytes in a file, with its quotas on."""
    kind, quotas = GROUNDS[name]
    with open(image, "wb") as file:
        file.truncate(size + BEHIND)
    # What an older kernel than the programs are made for can't mount is left out by these.
    options = os.environ.get(f"MKFS_{kind.upper()}", "").split()
    if kind == "btrfs":
        sh("mkfs.btrfs", "-q", *options, "-m", "single", "-b", size, image)
    else:
        sh("mkfs.xfs", "-q", *options, "-d", f"size={size}", image)
    if quotas is not None:
        with loop(image) as device, mounted(device, mnt):
            # In a store that goes again, as making one is part of what is recorded.
            for words in (["init"], ["quota", "enable", quotas, "--yes"], ["destroy", "--yes"]):
                sh(binary, "--root", mnt / "before", *words)


def copy(image, to):
    """Another of a sparse file."""
    sh("cp", "--sparse=always", image, to)
