"""A Debian system on a disk of its own, for lanes that need more around them than the initramfs has.

    packages = Packages(matrix, lock_file, cache)             # with a table [root.NAME] in the matrix
    disk = root.disk(packages, "docker-20")                   # the ext4 image, made if need be
    image.write_job(job, root.files(TOP, lane, reflinkd), root.job("docker-20", lane))
    machine.boot(..., disks=[disk])                           # /dev/vdb; what the guest writes to it is lost

The set `root-NAME` of packages.lock is unpacked, not installed: no maintainer script runs. What those would have made,
and a lane needs, is in FILES and LINKS here, in policy.py, or made by the lane's program.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import policy
from packages import Unavailable, loader

# Debian's one /usr, which its installer makes.
LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
DIRECTORIES = ["dev", "etc", "lane", "proc", "root", "run", "scratch", "sys", "tmp", "usr", "var/lib", "var/tmp"]
FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/hostname": "guest\n",
}
# What nothing in a guest reads.
LEFT_OUT = ["usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"]
# For what a guest writes to it: its own data goes to the scratch disk.
FREE_BYTES = 64 << 20


def disk(packages, name):
    """The image of [root.NAME]: made anew when its packages, this file or policy.py change."""
    content = packages.present(f"root-{name}")
    makers = b"".join(Path(module).read_bytes() for module in (__file__, policy.__file__))
    key = hashlib.sha256(repr(content).encode() + makers).hexdigest()[:16]
    done = packages.cache / f"root-{name}-{key}.ext4"
    with open(packages.cache / "root.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            return done
        debs = packages.files(f"root-{name}")
        mkfs = packages.unpacked("guest")
        tree, half = (packages.cache / f"root-{name}.{part}" for part in ("tree", "new"))
        shutil.rmtree(tree, ignore_errors=True)
        for old in packages.cache.glob(f"root-{name}-????????????????.ext4"):
            old.unlink()
        fill(tree, debs)
        write(half, tree, mkfs)
        shutil.rmtree(tree)
        half.rename(done)
    return done


def fill(tree, debs):
    for directory in DIRECTORIES:
        (tree / directory).mkdir(parents=True)
    for link, target in LINKS.items():
        (tree / target).mkdir(parents=True)
        (tree / link).symlink_to(target)
    left_out = [f"--exclude=./{path}/*" for path in LEFT_OUT]
    for deb in debs:
        # dpkg-deb -x would put directories in place of the links.
        content = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE)
        command = ["tar", "-x", "-p", "--numeric-owner", "--keep-directory-symlink", *left_out, "-C", tree]
        unpacked = subprocess.run(command, stdin=content.stdout)
        content.stdout.close()
        if content.wait() or unpacked.returncode:
            raise Unavailable(f"{deb} can't be unpacked")
    for name, text in FILES.items():
        (tree / name).write_text(text)
    policy.write(tree)
    (tree / "tmp").chmod(0o1777)


def write(path, tree, mkfs):
    """Make a filesystem of the directory `tree`, by the mke2fs below `mkfs`, without mounting any."""
    size = sum(-(-os.lstat(os.path.join(d, f)).st_size // 4096) * 4096 for d, _, files in os.walk(tree) for f in files)
    with open(path, "wb") as file:
        file.truncate((size + size // 20 + FREE_BYTES) // 4096 * 4096)
    # Whoever runs this, it's all root's.
    command = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    command += [*loader(mkfs), mkfs / "usr/sbin/mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"{path} can't be made: {done.stderr.strip()}")


def files(top, lane, reflinkd):
    """What a lane's guest has in /lane, by its path there: reflinkd, and of the repository the lane's program and files.

    These are in the initramfs, as they change more often than the disk does.
    """
    wanted = [top / "driver-tests/vm/lanes" / lane["program"]]
    for pattern in lane.get("files", ()):
        found = sorted(top.glob(pattern))
        if not found:
            raise Unavailable(f"a lane's files: there is nothing like {pattern}")
        wanted += found
    return {"lane/reflinkd": reflinkd, **{f"lane/{path.relative_to(top)}": path for path in wanted}}


def job(name, lane):
    """What the guest's first process is to do for the lane."""
    arguments = " ".join(lane.get("arguments", ()))
    return f"lane {name} {lane['seconds']} driver-tests/vm/lanes/{lane['program']} {arguments}\n"
