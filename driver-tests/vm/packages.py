"""Debian packages for the guests: resolved, fetched and unpacked privately, never installed.

Each suite has an apt directory of its own below the cache, with an empty dpkg status: what is fetched is signed by
Debian's keyring and has nothing to do with what this machine has installed. `vm-images/packages.lock` has the name,
version and sha256 of each package by set (`kernel-6.12`, `guest`, `qemu`, `root-docker-20`). Debian keeps no old versions:
a set with one that is gone is resolved anew, which is said (docs/decisions/012).
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
        # Sets as they can be had, once asked for.
        self.found = {}
        cache.mkdir(parents=True, exist_ok=True)

    def sets(self):
        """(name of the set, suite, whether its security archive counts, packages to ask for, patterns to keep)."""
        for name, kernel in self.matrix.get("kernel", {}).items():
            yield f"kernel-{name}", kernel["suite"], kernel.get("security", False), [KERNEL_META], kernel["packages"]
        for name in ("guest", "qemu") if "guest" in self.matrix else ():
            part = self.matrix[name]
            yield name, part["suite"], False, part["packages"], ["*"]
        for name, part in self.matrix.get("root", {}).items():
            yield f"root-{name}", part["suite"], False, part["packages"], ["*"]

    # -- resolving

    def lock(self):
        """Resolve every set anew and write the lock file."""
        lines = []
        for name, *_ in self.sets():
            lines += [f"{name} {package} {version} {digest}\n" for package, version, digest in self.resolve(name)]
        head = "# Written by `make vm-lock`: set, package, version, sha256.\n"
        self.lock_file.write_text(head + "".join(lines))

    def resolve(self, name):
        """Package, version and sha256 of what a set has at present: what is asked for, with all that it depends on."""
        _, suite, security, wanted, patterns = self.set(name)
        self.update(suite, security)
        plan = self.apt(suite, "apt-get", "install", "-qq", "-y", "--no-install-recommends", "--simulate", *wanted)
        chosen = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
        shown = self.apt(suite, "apt-cache", "show", *[f"{package}={version}" for package, version in chosen])
        digests = {}
        for record in shown.split("\n\n"):
            fields = dict(re.findall(r"^(Package|Version|SHA256): (.*)$", record, re.MULTILINE))
            if fields:
                digests[fields["Package"], fields["Version"]] = fields["SHA256"]
        kept = [(p, version) for p, version in chosen if any(fnmatch.fnmatch(p, pattern) for pattern in patterns)]
        if not kept:
            raise Unavailable(f"{suite} has nothing for {name} like {' '.join(patterns)}")
        return sorted((package, version, digests[package, version]) for package, version in kept)

    # -- fetching

    def locked(self, name):
        """(package, version, sha256) of a set."""
        lines = [line.split() for line in self.lock_file.read_text().splitlines() if not line.startswith("#")]
        found = [tuple(line[1:]) for line in lines if line[0] == name]
        if not found:
            raise Unavailable(f"{self.lock_file} has no packages for {name}: make vm-lock")
        return found

    def set(self, name):
        return next(found for found in self.sets() if found[0] == name)

    def present(self, name):
        """(package, version, sha256) of a set: what the lock file says, or if Debian has dropped any of that, what it has now."""
        if name not in self.found:
            _, suite, security, *_ = self.set(name)
            locked = self.locked(name)
            missing = [line for line in locked if not self.stored(line[2]).exists()]
            gone = missing and self.gone(suite, security, missing)
            self.found[name] = self.resolve(name) if gone else locked
            if gone:
                dropped = ", ".join(f"{package} {version}" for package, version in gone)
                new = ", ".join(f"{line[0]} {line[1]}" for line in self.found[name] if line not in locked)
                print(f"   Debian {suite} has dropped {dropped} of {name}; this run has {new} in place of what was locked: "
                      "`make vm-lock` writes that down", flush=True)
        return self.found[name]

    def gone(self, suite, security, wanted):
        """Those that the suite doesn't have any more."""
        self.update(suite, security)
        listed = self.apt(suite, "apt-cache", "madison", *[package for package, _, _ in wanted])
        there = {tuple(part.strip() for part in line.split("|")[:2]) for line in listed.splitlines()}
        return [(package, version) for package, version, _ in wanted if (package, version) not in there]

    def files(self, name):
        """The packages of a set, fetched if need be."""
        with self.alone():
            return self.fetch(name)

    def newest(self, name):
        """The packages of a set as Debian has them now, whatever is locked, fetched if need be."""
        self.found[name] = self.resolve(name)
        return self.files(name)

    def unpacked(self, name):
        """The directory that the packages of a set are unpacked in, fetched if need be."""
        with self.alone():
            key = hashlib.sha256(repr(self.present(name)).encode()).hexdigest()[:16]
            done = self.cache / f"{name}-{key}"
            if done.is_dir():
                return done
            files = self.fetch(name)
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

    def stored(self, digest):
        return self.cache / "debs" / f"{digest}.deb"

    def fetch(self, name):
        _, suite, security, *_ = self.set(name)
        wanted = self.present(name)
        missing = [line for line in wanted if not self.stored(line[2]).exists()]
        if missing:
            (self.cache / "debs").mkdir(exist_ok=True)
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
                by_digest[digest].rename(self.stored(digest))
        return [self.stored(digest) for _, _, digest in wanted]

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
    if "not found" in said.stdout + said.stderr:
        raise Unavailable(f"{program} needs a library that none of the packages has:\n{said.stdout}{said.stderr}")
    return {Path(path) for path in re.findall(r"(/\S+) \(0x", said.stdout)}
