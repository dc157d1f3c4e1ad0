"""What Python's tarfile says of each archive named on standard input: one line of JSON for each.

Bytes are in hexadecimal. Content is left out of files longer than the first argument.
"""

import hashlib
import json
import signal
import sys
import tarfile

TYPES = {
    tarfile.REGTYPE: "file", tarfile.AREGTYPE: "file", tarfile.CONTTYPE: "file", tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hard", tarfile.SYMTYPE: "symlink", tarfile.DIRTYPE: "dir", tarfile.FIFOTYPE: "fifo",
    tarfile.CHRTYPE: "char", tarfile.BLKTYPE: "block",
}


def raw(text):
    return text.encode("utf-8", "surrogateescape").hex()


def entry(tar, info, most):
    kind = TYPES.get(info.type, "unknown")
    numbers = info.size, info.uid, info.gid, info.devmajor, info.devminor, info.mtime
    if not all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        raise ValueError("a number of more than 64 bits")
    content = None
    if kind == "file" and info.size <= most:
        content = hashlib.sha256(tar.extractfile(info).read()).hexdigest()
    return {
        "name": raw(info.name), "type": kind, "size": info.size if kind == "file" else 0, "mode": info.mode & 0o7777,
        "uid": info.uid, "gid": info.gid, "mtime": float(info.mtime),
        "link": raw(info.linkname) if kind in ("hard", "symlink") else "",
        "device": [info.devmajor, info.devminor] if kind in ("char", "block") else [0, 0], "sha256": content,
    }


def too_long(*_):
    raise TimeoutError("it reads on for ever")


def listing(path, most):
    # Negative sizes send it round in circles (CVE-2025-8194).
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            return {"entries": [entry(tar, info, most) for info in tar]}
    # What it raises on damaged input isn't documented, and more than its own errors.
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


signal.signal(signal.SIGALRM, too_long)
most = int(sys.argv[1])
for line in sys.stdin:
    print(json.dumps(listing(line.rstrip("\n"), most)))
