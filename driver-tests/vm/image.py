"""A guest's root: an initramfs of the user space, the kernel's modules, the tests and what they are to do.

The kernel unpacks any number of cpio archives one after the other, so the parts are written apart and only joined:
the user space stays the same for all kernels, and a new build of the tests changes the last part alone.
"""

import lzma
import os
import re
import stat
from pathlib import Path

from packages import Unavailable, libraries

PROGRAM_DIRECTORIES = ("usr/bin", "usr/sbin", "bin", "sbin")


class Cpio:
    """An archive in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst of Linux)."""

    def __init__(self, path):
        self.file = open(path, "wb")
        self.inode = 0
        self.directories = {"."}

    def entry(self, name, mode, data=b"", device=(0, 0)):
        self.inode += 1
        name = name.encode() + b"\0"
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
        for part in (head, data):
            self.file.write(part + bytes(-len(part) % 4))

    def parents(self, name):
        for parent in reversed(Path(name).parents):
            self.directory(str(parent))

    def directory(self, name):
        if name not in self.directories:
            self.directories.add(name)
            self.entry(name, stat.S_IFDIR | 0o755)

    def add(self, name, data, mode=0o755):
        self.parents(name)
        self.entry(name, stat.S_IFREG | mode, data)

    def link(self, name, target):
        self.parents(name)
        self.entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name, major, minor):
        self.parents(name)
        self.entry(name, stat.S_IFCHR | 0o600, device=(major, minor))

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self.entry("TRAILER!!!", 0)
        self.file.close()


def write_user_space(path, root, guest, images):
    """The programs of the matrix's [guest], unpacked below `root`, with their libraries; the first process, and scripts
    that come before programs of the same name, from the directory `images`."""
    with Cpio(path) as cpio:
        cpio.character_device("dev/console", 5, 1)
        for name in ("proc", "sys", "tmp", "run", "bin"):
            cpio.directory(name)
        for loader in ("lib64", "lib"):
            cpio.link(loader, f"usr/{loader}")
        needed = set()
        for program in guest["programs"]:
            found = next((root / d / program for d in PROGRAM_DIRECTORIES if (root / d / program).exists()), None)
            if found is None:
                raise Unavailable(f"none of the guest's packages has the program {program}")
            cpio.add(f"usr/bin/{program}", found.read_bytes())
            needed |= libraries(root, found)
        for library in sorted(needed):
            # What the loader calls it is where it is looked for.
            cpio.add(str(library.relative_to(root)), library.read_bytes())
        cpio.add("init", (images / "init").read_bytes())
        for script in guest["scripts"]:
            cpio.add(f"usr/local/bin/{script}", (images / script).read_bytes())


def write_modules(path, root, wanted):
    """Kernel modules with all that they depend on, uncompressed, and the order to load them in."""
    version = next((root / d for d in ("usr/lib/modules", "lib/modules") if (root / d).is_dir())).iterdir()
    directory = next(version)
    files = {}
    for file in directory.rglob("*.ko*"):
        files[module_name(file.name)] = file
    built_in = {module_name(Path(line).name) for line in (directory / "modules.builtin").read_text().splitlines()}
    order = []

    def load(cpio, name):
        if name in built_in or name in order:
            return
        if name not in files:
            raise Unavailable(f"the kernel in {root} has no module {name}")
        file = files[name]
        data = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
        # The .modinfo section holds strings "key=value", each ended by a zero.
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for other in depends.group(1).decode().split(",") if depends else []:
            if other:
                load(cpio, module_name(other))
        order.append(name)
        cpio.add(f"modules/{name}.ko", data, 0o644)

    with Cpio(path) as cpio:
        for name in wanted:
            load(cpio, name)
        cpio.add("modules/order", "".join(f"{name}\n" for name in order).encode(), 0o644)


def module_name(file):
    """`virtio-blk.ko.xz` and `virtio_blk` are one."""
    return file.split(".ko")[0].replace("-", "_")


def write_job(path, files, job):
    """`files`: paths in the guest to files of this machine. `job`: what the first process reads."""
    with Cpio(path) as cpio:
        for name, file in files.items():
            cpio.add(name.lstrip("/"), Path(file).read_bytes())
        cpio.add("job", job.encode(), 0o644)


def join(path, parts):
    """The initramfs of one boot."""
    with open(path, "wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
            # Each archive begins at a multiple of 4.
            whole.write(bytes(-whole.tell() % 4))


def kernel_image(root):
    """The file to boot."""
    found = sorted((root / "boot").glob("vmlinuz-*")) or sorted((root / "usr/lib/modules").glob("*/vmlinuz"))
    if not found:
        raise Unavailable(f"there is no kernel below {root}: {os.listdir(root)}")
    return found[0]
