#!/usr/bin/env python3
"""Write a three-layer image the size of a real one, the same bytes on every machine.

    make_image.py OUT [--scale 1.0] [--seed 1]

About 52,000 entries (46,000 and more of them files, 1.2 GB) at scale 1: directories, files
with a distribution of sizes like /usr's, symbolic and hard links; the second layer replaces
and deletes some of the first's files. The content is text and binary in the proportion that
lets gzip take off a little more than half. OUT gets

    layer1.tar ... layer3.tar   the plain layers, for the floor
    oci.tar                     the image as an OCI archive, its layers gzip
    docker.tar                  the same in `docker save`'s form, its layers gzip too
    summary.json                counts and bytes

No external program is used and no tar code of this project: tarfile and zlib write it all.
"""

import argparse
import hashlib
import io
import json
import os
import random
import tarfile
import zlib

NAME = "docker.io/library/bench:latest"
EPOCH = 1_700_000_000
FILES = 46_700
# Each layer's part of all files, and what it does to the layers below it.
LAYERS = ((0.62, 0, 0), (0.36, 400, 150), (0.02, 60, 40))


class Content:
    """File contents: slices of a pool of words, and of one of random bytes."""

    def __init__(self, rng):
        words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 11))) for _ in range(6_000)]
        weights = [1 / (rank + 3) for rank in range(len(words))]
        self.text = " ".join(rng.choices(words, weights, k=3_000_000)).encode()
        self.binary = rng.randbytes(8 << 20)
        self.rng = rng

    def make(self, size):
        parts = []
        left = size
        while left > 0:
            # One block in eight doesn't compress, as in machine code and pictures.
            pool = self.binary if self.rng.random() < 0.12 else self.text
            length = min(left, 16_384)
            start = self.rng.randrange(len(pool) - length)
            parts.append(pool[start:start + length])
            left -= length
        return b"".join(parts)


def file_size(rng):
    """Bytes of one file: median about 4 KB, a long tail, one in 40 empty; mean about 26 KB."""
    if rng.random() < 0.025:
        return 0
    return min(int(rng.lognormvariate(8.35, 1.95)), 24 << 20)


class Layer:
    """One layer's tar, written to a plain file and to gzip bytes at once."""

    def __init__(self, path):
        self.plain = open(path, "wb")
        self.gzip_path = path + ".gz"
        self.packed = open(self.gzip_path, "wb")
        self.diff_id = hashlib.sha256()
        self.digest = hashlib.sha256()
        # 31: a gzip header, its time field 0.
        self.deflate = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.size = self.packed_size = self.entries = 0
        self.tar = tarfile.open(fileobj=self, mode="w|", format=tarfile.PAX_FORMAT)

    def write(self, data):
        self.plain.write(data)
        self.diff_id.update(data)
        self.size += len(data)
        self._pack(self.deflate.compress(data))
        return len(data)

    def _pack(self, data):
        self.packed.write(data)
        self.digest.update(data)
        self.packed_size += len(data)

    def add(self, name, kind, mode, data=b"", link=""):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.linkname = kind, mode, link
        info.size = len(data)
        info.mtime = EPOCH + self.entries % 86_400
        info.uname = info.gname = "root"
        self.tar.addfile(info, io.BytesIO(data) if data else None)
        self.entries += 1

    def close(self):
        self.tar.close()
        self._pack(self.deflate.flush())
        self.plain.close()
        self.packed.close()


def directories(rng, count):
    """COUNT directory names below /usr, /etc, /var and /opt, parents first."""
    names = ["usr", "usr/lib", "usr/share", "usr/bin", "usr/lib/python3", "etc", "var", "var/lib", "opt"]
    deep = [name for name in names if name.count("/") == 1]
    while len(names) < count:
        parent = rng.choice(deep if rng.random() < 0.3 else names)
        if parent.count("/") > 8:
            continue
        names.append(f"{parent}/{rng.choice('abcdefghklmnprst')}{len(names):x}")
    return names


def write_layers(out, scale, seed):
    rng = random.Random(seed)
    content = Content(rng)
    files = int(FILES * scale)
    dirs = directories(rng, max(10, int(4_400 * scale)))
    below, layers, counts = [], [], {"files": 0, "bytes": 0, "directories": len(dirs), "links": 0}
    for number, (part, replaced, deleted) in enumerate(LAYERS, 1):
        layer = Layer(os.path.join(out, f"layer{number}.tar"))
        count = max(2, int(files * part))
        replaced, deleted = (min(int(n * scale), len(below) // 4) for n in (replaced, deleted))
        touched = rng.sample(below, replaced + deleted)
        if number == 1:
            for name in dirs:
                layer.add(name, tarfile.DIRTYPE, 0o755)
        new = [f"{rng.choice(dirs)}/f{number}-{index:x}" for index in range(count)]
        # As builders do: in the order of the tree, so that a directory's files stand together.
        for name in sorted(new + touched[:replaced]):
            data = content.make(file_size(rng))
            layer.add(name, tarfile.REGTYPE, 0o755 if rng.random() < 0.1 else 0o644, data)
            counts["files"] += 1
            counts["bytes"] += len(data)
        for name in touched[replaced:]:
            head, tail = os.path.split(name)
            layer.add(f"{head}/.wh.{tail}", tarfile.REGTYPE, 0o644)
        for index in range(count // 60):
            layer.add(f"{rng.choice(dirs)}/s{number}-{index:x}", tarfile.SYMTYPE, 0o777, link=os.path.basename(rng.choice(new)))
            layer.add(f"{rng.choice(dirs)}/h{number}-{index:x}", tarfile.LNKTYPE, 0o644, link=rng.choice(new))
            counts["links"] += 2
        gone = set(touched[replaced:])
        below = [name for name in below if name not in gone] + new
        layer.close()
        layers.append(layer)
    counts["entries"] = sum(layer.entries for layer in layers)
    return layers, counts


def dumps(document):
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def archive(path, members):
    """A tar of MEMBERS: name -> bytes, or the path of a file."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, source in members.items():
            info = tarfile.TarInfo(name)
            info.mtime, info.mode = EPOCH, 0o644
            if isinstance(source, bytes):
                info.size = len(source)
                tar.addfile(info, io.BytesIO(source))
            else:
                info.size = os.path.getsize(source)
                with open(source, "rb") as file:
                    tar.addfile(info, file)


def write_archives(out, layers):
    config = dumps({
        "architecture": "amd64", "os": "linux", "created": "2023-11-14T22:13:20Z",
        "config": {"Cmd": ["/bin/true"], "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + layer.diff_id.hexdigest() for layer in layers]},
        "history": [{"created": "2023-11-14T22:13:20Z", "created_by": f"make_image layer {n}"}
                    for n in range(1, len(layers) + 1)]
        + [{"created": "2023-11-14T22:13:20Z", "created_by": "CMD /bin/true", "empty_layer": True}],
    })
    manifest = dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config), "size": len(config)},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": "sha256:" + layer.digest.hexdigest(), "size": layer.packed_size} for layer in layers],
    })
    index = dumps({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(manifest), "size": len(manifest),
        "annotations": {"org.opencontainers.image.ref.name": NAME, "io.containerd.image.name": NAME},
    }]})

    def blob_path(hexdigest):
        return f"blobs/sha256/{hexdigest}"

    oci = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": index}
    for data in (manifest, config):
        oci[blob_path(hashlib.sha256(data).hexdigest())] = data
    for layer in layers:
        oci[blob_path(layer.digest.hexdigest())] = layer.gzip_path
    archive(os.path.join(out, "oci.tar"), oci)

    # The layers before the manifest, as `docker save` has them: a reader of a pipe can't seek.
    docker = {f"{layer.diff_id.hexdigest()}/layer.tar": layer.gzip_path for layer in layers}
    config_name = hashlib.sha256(config).hexdigest() + ".json"
    paths = list(docker)
    docker[config_name] = config
    docker["manifest.json"] = dumps([{"Config": config_name, "RepoTags": [NAME], "Layers": paths}])
    archive(os.path.join(out, "docker.tar"), docker)
    for layer in layers:
        os.remove(layer.gzip_path)


def make(out, scale=1.0, seed=1):
    """Write the image below OUT and return its summary."""
    os.makedirs(out, exist_ok=True)
    layers, summary = write_layers(out, scale, seed)
    write_archives(out, layers)
    summary.update(name=NAME, scale=scale, seed=seed,
                   plain=sum(layer.size for layer in layers), packed=sum(layer.packed_size for layer in layers))
    with open(os.path.join(out, "summary.json"), "w", encoding="utf-8") as file:
        json.dump(summary, file, indent=2)
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--scale", type=float, default=1.0, help="part of the full number of files")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(json.dumps(make(options.out, options.scale, options.seed), indent=2))


if __name__ == "__main__":
    main()
