"""Debian packages for the guests: resolved, fetched and unpacked privately, never installed.

Each suite has an apt directory of its own below the cache, with an empty dpkg status: what is fetched is signed by
Debian's keyring and has nothing to do with what this machine has installed. `vm-images/packages.lock` has the name,
version and sha256 of each package by set (`kernel-6.12`, `guest`, `qemu`, `root-docker-20`); only `lock` ever asks for newer ones.
"""

import contextlib
import fcntl
import fnmatch
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
# What a kernel's meta package is called in all suites.
KERNEL_META = "linux-image-cloud-amd64"


class Unavailable(Exception):
    """A package that can't be had: what to do is in its text."""


class Packages:
    """The sets of a matrix (parsed TOML), their lock file, and a cache directory below target/."""

    def __init__(self, matrix, lock_file, cache):
        self.matrix = matrix
        self.lock_file = lock_file
        self.cache = cache
        self.updated = set()
        cache.mkdir(parents=True, exist_ok=True)

    def sets(self):
        """(name of the set, suite, whether its security archive counts, packages to ask for, patterns to keep)."""
        for name, kernel in self.matrix["kernel"].items():
            yield f"kernel-{name}", kernel["suite"], kernel.get("security", False), [KERNEL_META], kernel["packages"]
        for name in ("guest", "qemu"):
            part = self.matrix[name]
            yield name, part["suite"], False, part["packages"], ["*"]
        for name, part in self.matrix.get("root", {}).items():
            yield f"root-{name}", part["suite"], False, part["packages"], ["*"]

    # -- resolving

    def lock(self):
        """Resolve every set anew and write the lock file."""
        lines = []
        for name, suite, security, wanted, patterns in self.sets():
            self.update(suite, security)
            found = [line for line in self.resolve(suite, wanted) if any(fnmatch.fnmatch(line[0], p) for p in patterns)]
            if not found:
                raise Unavailable(f"{suite} has nothing for {name} like {' '.join(patterns)}")
            lines += [f"{name} {package} {version} {digest}\n" for package, version, digest in sorted(found)]
        head = "# Written by `make vm-lock`: set, package, version, sha256.\n"
        self.lock_file.write_text(head + "".join(lines))

    def resolve(self, suite, wanted):
        """Package, version and sha256 of these packages with all that they depend on."""
        plan = self.apt(suite, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "--simulate", *wanted)
        chosen = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
        shown = self.apt(suite, "apt-cache", "show", *[f"{package}={version}" for package, version in chosen])
        digests = {}
        for record in shown.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|SHA256): (.*)$", record, re.MULTILINE))
            if fields:
                digests[fields["Package"], fields["Version"]] = fields["SHA256"]
        return [(package, version, digests[package, version]) for package, version in chosen]

    # -- fetching

    def locked(self, name):
        """(package, version, sha256) of a set."""
        lines = [line.split() for line in self.lock_file.read_text().splitlines() if not line.startswith("#")]
        found = [tuple(line[1:]) for line in lines if line[0] == name]
        if not found:
            raise Unavailable(f"{self.lock_file} has no packages for {name}: make vm-lock")
        return found

    def files(self, name):
        """The packages of a set, fetched if need be."""
        suite, security = next((s[1], s[2]) for s in self.sets() if s[0] == name)
        with self.alone():
            return self.fetch(suite, security, self.locked(name))

    def unpacked(self, name):
        """The directory that the packages of a set are unpacked in, fetched if need be."""
        suite, security = next((s[1], s[2]) for s in self.sets() if s[0] == name)
        locked = self.locked(name)
        key = hashlib.sha256(repr(locked).encode()).hexdigest()[:16]
        done = self.cache / f"{name}-{key}"
        with self.alone():
            if done.is_dir():
                return done
            files = self.fetch(suite, security, locked)
            for old in self.cache.glob(f"{name}-*"):
                if re.fullmatch(r"[0-9a-f]{16}(\.new)?", old.name.removeprefix(f"{name}-")):
                    shutil.rmtree(old)
            half = self.cache / f"{done.name}.new"
            for file in files:
                subprocess.run(["dpkg-deb", "-x", file, half], check=True)
            half.rename(done)
        return done

    @contextlib.contextmanager
    def alone(self):
        """Whoever fetches here is the only one."""
        with open(self.cache / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def fetch(self, suite, security, locked):
        store = self.cache / "debs"
        store.mkdir(exist_ok=True)
        missing = [line for line in locked if not (store / f"{line[2]}.deb").exists()]
        if missing:
            print(f"   fetching {len(missing)} packages of Debian {suite}", flush=True)
            self.update(suite, security)
            fresh = self.cache / "fresh"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            self.apt(suite, "apt-get", "download", "-qq", *[f"{p}={v}" for p, v, _ in missing], cwd=fresh)
            by_digest = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in fresh.iterdir()}
            for package, version, digest in missing:
                if digest not in by_digest:
                    raise Unavailable(f"{package} {version} isn't what {self.lock_file} says: its sha256 differs")
                by_digest[digest].rename(store / f"{digest}.deb")
        return [store / f"{digest}.deb" for _, _, digest in locked]

    # -- apt

    def update(self, suite, security):
        if suite in self.updated:
            return
        base = self.cache / "apt" / suite
        for directory in ("state/lists/partial", "cache/archives/partial"):
            (base / directory).mkdir(parents=True, exist_ok=True)
        mirror = debian_mirror()
        sources = [f"deb [signed-by={KEYRING}] {mirror} {suite} main"]
        if security:
            sources.append(f"deb [signed-by={KEYRING}] {mirror}-security {suite}-security main")
        (base / "sources.list").write_text("\n".join(sources) + "\n")
        (base / "state/status").write_text("")
        self.apt(suite, "apt-get", "update", "-qq")
        self.updated.add(suite)

    def apt(self, suite, program, *arguments, cwd=None):
        base = self.cache / "apt" / suite
        options = {
            "Dir::State": base / "state",
            "Dir::State::status": base / "state/status",
            "Dir::Cache": base / "cache",
            "Dir::Etc::sourcelist": base / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "",
        }
        flags = [flag for key, value in options.items() for flag in ("-o", f"{key}={value}")]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run([program, *flags, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-5:]
            hint = "the archive may have a newer version only: make vm-lock" if arguments[0] == "download" else ""
            raise Unavailable("\n".join([f"{program} {arguments[0]} for Debian {suite} failed:", *said, hint]).strip())
        return done.stdout


def debian_mirror():
    """Where this machine's own apt takes Debian from; Debian's usual address on any other machine."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    said = subprocess.run(asked, capture_output=True, text=True).stdout
    for line in said.splitlines():
        origin, _, uri = line.partition(" ")
        if origin == "Debian" and uri.rstrip("/").endswith("/debian"):
            return uri.rstrip("/")
    return "http://deb.debian.org/debian"


def loader(root):
    """The arguments that run a program of the unpacked packages below `root` with their own libraries."""
    libraries = ":".join(str(root / d) for d in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
    return [str(root / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", libraries]


def libraries(root, program):
    """The shared objects that a program below `root` loads, its loader among them; none for a static one."""
    said = subprocess.run([*loader(root), "--list", program], capture_output=True, text=True)
    if "not found" in said.stdout:
        raise Unavailable(f"{program} needs a library that none of its packages has:\n{said.stdout}")
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", said.stdout)}
