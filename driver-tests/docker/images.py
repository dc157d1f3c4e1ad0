"""Images made by hand: no registry is asked for any.

`base` is a root with busybox in it. `LAYERS` are those of an image with all that a layer may hold; `tree_after` says
what they give, by rules so simple that they can be read here, and `observe` what a container sees of it.
"""

import hashlib
import io
import json
import os
import stat
import tarfile

BUSYBOX = "/bin/busybox"
APPLETS = ["sh", "cat", "chmod", "chown", "dd", "echo", "id", "ln", "ls", "mkdir", "mv", "rm", "rmdir", "sleep", "sync",
           "touch", "true"]
# cap_net_raw+ep, as the kernel keeps it (struct vfs_cap_data, version 2).
CAPABILITY = bytes.fromhex("0100000200200000" "0000000000000000" "00000000")
# A time with a part that seconds can't hold.
MTIME = "1234567890.123456789"
# What dockerd puts into each container's root itself.
OF_DOCKERD = {b"dev", b"proc", b"sys", b"etc/hostname", b"etc/hosts", b"etc/resolv.conf", b"etc/mtab", b".dockerenv"}


class Entry:
    """One entry of a layer. `name` is a text whose surrogates are bytes that aren't UTF-8."""

    def __init__(self, kind, name, mode=None, content=b"", ids=(0, 0), target="", xattrs=None, device=(0, 0)):
        self.kind, self.name, self.content, self.target, self.device = kind, name, content, target, device
        self.mode = mode if mode is not None else {tarfile.DIRTYPE: 0o755, tarfile.SYMTYPE: 0o777}.get(kind, 0o644)
        self.ids, self.xattrs = ids, xattrs or {}

    def header(self):
        info = tarfile.TarInfo(self.name)
        info.type, info.mode, info.size, info.linkname = self.kind, self.mode, len(self.content), self.target
        info.uid, info.gid = self.ids
        info.devmajor, info.devminor = self.device
        info.pax_headers = {"mtime": MTIME}
        for name, value in self.xattrs.items():
            info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
        return info


def directory(name, mode=0o755, **more):
    return Entry(tarfile.DIRTYPE, name, mode, **more)


def file(name, content=b"", mode=0o644, **more):
    return Entry(tarfile.REGTYPE, name, mode, content, **more)


def symlink(name, target):
    return Entry(tarfile.SYMTYPE, name, target=target)


def hardlink(name, target, ids):
    """Tars repeat the owner, and Docker sets it again."""
    return Entry(tarfile.LNKTYPE, name, target=target, ids=ids)


def whiteout(name):
    before, slash, last = name.rpartition("/")
    return file(f"{before}{slash}.wh.{last}")


def opaque(name):
    return file(f"{name}/.wh..wh..opq")


def busybox():
    with open(BUSYBOX, "rb") as program:
        yield file("bin/busybox", program.read(), 0o755)
    for applet in APPLETS:
        yield symlink(f"bin/{applet}", "busybox")


def base_layer():
    names = ["bin", "etc", "dev", "proc", "sys", "root", "srv", "opt", "opt/old", "opt/kept"]
    return [
        *[directory(name) for name in names],
        directory("tmp", 0o1777),
        *busybox(),
        file("etc/motd", b"welcome\n"),
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/srv:/bin/sh\n"),
        file("etc/group", b"root:x:0:\nuser:x:1000:\n"),
        file("opt/old/one", b"1" * 1000),
        file("opt/old/two", b"2"),
        file("opt/kept/three", b"3" * 3000),
        file("opt/kept/four", b"4"),
        file("srv/mine", b"mine\n", ids=(1000, 1000)),
    ]


ODD_NAMES = ["with space", "new\nline", "tab\there", "back\\slash", "-dash", "*star?", "\u00fcn\u00ef", "l\udce4tin-1",
             "n" * 255, "a.wh.b", "..x", "x" * 120]

LAYERS = [
    [
        *base_layer(),
        directory("var"),
        directory("var/mail", 0o2775, ids=(0, 8)),
        Entry(tarfile.FIFOTYPE, "var/fifo", 0o620, ids=(3, 4)),
        Entry(tarfile.CHRTYPE, "var/null", 0o666, device=(1, 3)),
        file("bin/su", b"not really\n", 0o4755),
        file("bin/wall", b"nor this\n", 0o2755, ids=(0, 5)),
        file("bin/ping", b"ping\n", 0o755, xattrs={"security.capability": CAPABILITY}),
        file("etc/zero", b""),
        file("etc/none", b"", 0o000),
        file("etc/labelled", b"x", xattrs={"user.note": b"hello world", "trusted.note": b"t"}),
        directory("usr"),
        directory("usr/share"),
        directory("usr/local", xattrs={"user.dir": b"d"}),
        file("usr/share/one", b"linked\n", ids=(1000, 1000)),
        hardlink("usr/share/two", "usr/share/one", (1000, 1000)),
        hardlink("bin/three", "usr/share/one", (1000, 1000)),
        symlink("usr/share/up", "../../etc/motd"),
        symlink("usr/share/nowhere", "/does/not/exist"),
        directory("odd"),
        *[file(f"odd/{name}", name.encode("utf-8", "surrogateescape")) for name in ODD_NAMES],
        directory("odd/deep"),
        directory("odd/deep/" + "d" * 200),
        file("odd/deep/" + "d" * 200 + "/" + "f" * 200, b"deep"),
        directory("kinds"),
        file("kinds/to-directory", b"a file"),
        directory("kinds/to-file"),
        file("kinds/to-file/inside", b"goes"),
        symlink("kinds/to-plain", "to-directory"),
        directory("gone"),
        file("gone/inside", b"goes"),
    ],
    [
        directory("opt"),
        directory("opt/old", 0o700),
        opaque("opt/old"),
        file("opt/old/new", b"the only one\n"),
        whiteout("gone"),
        directory("kinds"),
        directory("kinds/to-directory"),
        file("kinds/to-directory/inside", b"came"),
        file("kinds/to-file", b"a file now"),
        file("kinds/to-plain", b"no link any more"),
        directory("etc", 0o755),
        file("etc/motd", b"welcome again\n", 0o600, ids=(1000, 1000)),
    ],
    [
        directory("usr"),
        directory("usr/share", 0o750, ids=(1000, 8)),
        whiteout("usr/share/two"),
        directory("gone"),
        file("gone/back", b"again"),
        directory("opt"),
        directory("opt/kept"),
        whiteout("opt/kept/three"),
    ],
]


def tar_of(layer):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8",
                      errors="surrogateescape") as tar:
        for entry in layer:
            tar.addfile(entry.header(), io.BytesIO(entry.content))
    return out.getvalue()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def archive(path, name, layers, command):
    """What `docker save` would write; the image's ID and its diff IDs."""
    tars = [tar_of(layer) for layer in layers]
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(tar) for tar in tars]},
        "history": [{"created_by": f"layer {n}"} for n in range(len(tars))],
    }).encode()
    image = digest(config)
    files = {f"{n}/layer.tar": tar for n, tar in enumerate(tars)}
    files[f"{image[7:]}.json"] = config
    manifest = [{"Config": f"{image[7:]}.json", "RepoTags": [name], "Layers": [f"{n}/layer.tar" for n in range(len(tars))]}]
    files["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for member, content in files.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return image, [digest(tar) for tar in tars]


def saved(path):
    """The layers of the one image in what `docker save` wrote: a list of (digest, bytes)."""
    with tarfile.open(path) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))
        contents = [tar.extractfile(name).read() for name in manifest[0]["Layers"]]
    return [(digest(content), content) for content in contents]


def entries(content):
    """What a tar has: names to (type, mode, uid, gid, content or target)."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8", errors="surrogateescape") as tar:
        for info in tar:
            held = tar.extractfile(info).read() if info.isreg() else info.linkname.encode("utf-8", "surrogateescape")
            found[info.name.rstrip("/")] = (info.type, info.mode & 0o7777, info.uid, info.gid, held)
    return found


def tree_after(layers):
    """What a container of these layers sees: bytes of paths to what `seen` gives; names of one file are a group."""
    tree, groups = {}, {}

    def remove(path, itself=True):
        for known in [known for known in tree if known.startswith(path + b"/") or itself and known == path]:
            del tree[known]

    for layer in layers:
        for entry in layer:
            path = os.fsencode(entry.name)
            before, _, last = path.rpartition(b"/")
            if last == b".wh..wh..opq":
                # Only what lower layers have: here, it comes before the layer's own.
                remove(before, itself=False)
            elif last.startswith(b".wh."):
                remove((before + b"/" if before else b"") + last[4:])
            else:
                if entry.kind != tarfile.DIRTYPE or path in tree and not stat.S_ISDIR(tree[path][0]):
                    remove(path)
                if entry.kind == tarfile.LNKTYPE:
                    target = os.fsencode(entry.target)
                    tree[path] = tree[target]
                    groups[path] = groups.setdefault(target, target)
                else:
                    tree[path] = entry_as_seen(entry)
    return {path: (*what, sorted(p for p in tree if groups.get(p) == groups.get(path, 0)) or [path])
            for path, what in tree.items() if path not in OF_DOCKERD}


KINDS = {tarfile.DIRTYPE: stat.S_IFDIR, tarfile.REGTYPE: stat.S_IFREG, tarfile.SYMTYPE: stat.S_IFLNK,
         tarfile.FIFOTYPE: stat.S_IFIFO, tarfile.CHRTYPE: stat.S_IFCHR}


def entry_as_seen(entry):
    seconds, _, fraction = MTIME.partition(".")
    mtime = None if entry.kind == tarfile.DIRTYPE else int(seconds) * 10**9 + int(fraction)
    held = {tarfile.SYMTYPE: os.fsencode(entry.target), tarfile.REGTYPE: entry.content,
            tarfile.CHRTYPE: b"%d:%d" % entry.device}.get(entry.kind, b"")
    return (KINDS[entry.kind] | entry.mode, entry.ids, mtime, held, dict(entry.xattrs))


def observe(root, first_id=0):
    """The same of the tree at `root`, whose ids begin at `first_id`, without what dockerd made in it."""
    root = os.fsencode(root)
    found, names = {}, {}
    pending = [b""]
    while pending:
        below = pending.pop()
        for name in os.listdir(os.path.join(root, below)):
            path = os.path.join(below, name)
            status = os.lstat(os.path.join(root, path))
            if stat.S_ISDIR(status.st_mode):
                pending.append(path)
            if path in OF_DOCKERD:
                if stat.S_ISDIR(status.st_mode):
                    pending.remove(path)
                continue
            found[path] = seen(os.path.join(root, path), status, first_id)
            names.setdefault((status.st_dev, status.st_ino), []).append(path)
    groups = {path: sorted(paths) for paths in names.values() for path in paths}
    return {path: (*what, groups[path]) for path, what in found.items()}


def seen(path, status, first_id):
    mode, held = status.st_mode, b""
    if stat.S_ISLNK(mode):
        held = os.readlink(path)
    elif stat.S_ISREG(mode):
        with open(path, "rb") as content:
            held = content.read()
    elif stat.S_ISCHR(mode):
        held = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
    xattrs = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
              if not name.startswith("trusted.overlay.")}
    ids = (status.st_uid - first_id, status.st_gid - first_id)
    return (mode, ids, None if stat.S_ISDIR(mode) else status.st_mtime_ns, held, xattrs)


def differences(found, wanted):
    """Words for what differs between two trees; empty if nothing does."""
    said = [f"missing: {path!r}" for path in wanted if path not in found]
    said += [f"too many: {path!r}" for path in found if path not in wanted]
    for path in wanted:
        if path in found and found[path] != wanted[path]:
            pairs = zip(found[path], wanted[path])
            said += [f"{path!r}: {str(a)[:80]} instead of {str(b)[:80]}" for a, b in pairs if a != b]
    return said
