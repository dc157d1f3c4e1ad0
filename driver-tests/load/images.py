"""Small images, made here, and the trees that their layers give.

A layer is `{path: entry}`: an entry is `("dir", mode)`, `("file", mode, bytes)`, `("link", target)` or `("gone",)`, a whiteout.
"""

import hashlib
import io
import json
import tarfile

EPOCH = 1_700_000_000


def digest(data):
    return hashlib.sha256(data).hexdigest()


def fact(entry):
    """What is promised of a path: kind, mode, and length and digest of its content."""
    if entry[0] == "dir":
        return ["dir", entry[1]]
    if entry[0] == "link":
        return ["link", entry[1]]
    return ["file", entry[1], len(entry[2]), digest(entry[2])]


def tree_of(layers):
    """The tree that layers give, as facts."""
    tree = {}
    for layer in layers:
        tree = tree_over(tree, layer)
    return tree


def tree_over(below, layer):
    """The tree that a layer gives on another tree."""
    tree = dict(below)
    for path, entry in layer.items():
        if entry[0] == "gone":
            for gone in [other for other in tree if other == path or other.startswith(f"{path}/")]:
                del tree[gone]
        else:
            tree[path] = fact(entry)
    return tree


def some_layer(rng, prefix, files, over=()):
    """Directories and files of up to 40 KB below `prefix`; some of the files in `over` are replaced or removed."""
    layer = {prefix: ("dir", 0o755)}
    directories = [prefix]
    for number in range(files // 4):
        name = f"{rng.choice(directories)}/d{number}"
        directories.append(name)
        layer[name] = ("dir", rng.choice((0o755, 0o700, 0o1777)))
    for number in range(files):
        # Small ones are inline on Btrfs.
        size = rng.choice((0, 30, 900, 5_000, 40_000))
        layer[f"{rng.choice(directories)}/f{number}"] = ("file", rng.choice((0o644, 0o755, 0o600)), rng.randbytes(size))
    layer[f"{prefix}/link"] = ("link", "d0/f0")
    for path in over:
        layer[path] = rng.choice((("gone",), ("file", 0o644, rng.randbytes(2_000))))
    return layer


def tar_of(layer):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, entry in layer.items():
            head, _, name = path.rpartition("/")
            info = tarfile.TarInfo(path if entry[0] != "gone" else f"{head}/.wh.{name}" if head else f".wh.{name}")
            info.mtime = EPOCH
            data = b""
            if entry[0] == "dir":
                info.type, info.mode = tarfile.DIRTYPE, entry[1]
            elif entry[0] == "link":
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry[1], 0o777
            elif entry[0] == "file":
                info.mode, data = entry[1], entry[2]
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def archive(path, layers, name, comment):
    """Write an image as `docker save` does; its ID."""
    tars = [tar_of(layer) for layer in layers]
    config = json.dumps({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest(tar)}" for tar in tars]},
        "history": [{"created_by": comment} for _ in tars],
    }, sort_keys=True).encode()
    members = {f"{digest(tar)}/layer.tar": tar for tar in tars}
    paths = [f"{digest(tar)}/layer.tar" for tar in tars]
    members[f"{digest(config)}.json"] = config
    members["manifest.json"] = json.dumps(
        [{"Config": f"{digest(config)}.json", "RepoTags": [name], "Layers": paths}]).encode()
    with tarfile.open(path, "w") as out:
        for member, data in members.items():
            info = tarfile.TarInfo(member)
            info.size, info.mtime = len(data), EPOCH
            out.addfile(info, io.BytesIO(data))
    return f"sha256:{digest(config)}"
