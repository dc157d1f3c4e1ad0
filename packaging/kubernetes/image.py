"""Write the image of packaging/kubernetes/Dockerfile without Docker: python3 image.py PROGRAM NAME:TAG OUTPUT.tar

An archive as `docker save` writes it, which `docker load`, `ctr images import` and `reflinkd load` read. The same program gives the same bytes.
"""

import hashlib
import io
import json
import platform
import sys
import tarfile
from pathlib import Path

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def add(archive, name, content, mode=0o644):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def tar_of(files):
    """The bytes of a tar of (name, content, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted({str(parent) for name, _, _ in files for parent in Path(name).parents} - {"."}):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(directory)
        for name, content, mode in files:
            add(archive, name, content, mode)
    return buffer.getvalue()


def main():
    program, name, output = sys.argv[1:]
    layer = tar_of([("usr/bin/reflinkd", Path(program).read_bytes(), 0o755)])
    config = json.dumps({
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": ["/usr/bin/reflinkd"], "Cmd": ["serve"], "Env": ["PATH=/usr/bin"]},
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
    }).encode()
    named = hashlib.sha256(config).hexdigest() + ".json"
    manifest = json.dumps([{"Config": named, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    with tarfile.open(output, "w", format=tarfile.USTAR_FORMAT) as archive:
        for path, content in [("layer.tar", layer), (named, config), ("manifest.json", manifest)]:
            add(archive, path, content)


main()
