"""The mixed load: workers that use one store at once, each with things of its own, and write down what they are promised.

Each command is a process of the real program.
"""

import itertools
import json
import os
import random
import re
import subprocess
import threading
from collections import defaultdict

import door
import images
from promises import LOOSE, Operation

# A command that takes longer hangs.
PATIENCE = 300
CONTAINERS, SNAPSHOTS, IMAGES = 4, 4, 3
BASE = "s-base:latest"

# An older kernel is refused `create --read-only` (`mount_setattr`).
MAKES_VIEWS = tuple(int(number) for number in re.match(r"(\d+)\.(\d+)", os.uname().release).groups()) >= (5, 12)


class Failed(Exception):
    """A command of the load failed."""


class Load:
    """All of it. `limits` says whether the filesystem holds limits; `stop` is an event that ends it early."""

    def __init__(self, binary, root, work, limits, seed, stop):
        self.binary, self.root, self.work, self.limits, self.seed = binary, root, work, limits, seed
        self.stop = stop
        self.numbers, self.lock = itertools.count(1), threading.Lock()
        self.broken = threading.Event()
        rng = random.Random(f"{seed} layers")
        self.base = images.some_layer(rng, "base", 12)
        files = [path for path, entry in self.base.items() if entry[0] == "file"]
        # Layers that images of all workers have in the middle: one removes what another loads.
        self.middle = [images.some_layer(rng, f"middle{n}", 8, rng.sample(files, 3)) for n in range(4)]

    def reflinkd(self, *arguments):
        command = [str(word) for word in (self.binary, "--root", self.root, *arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        if done.returncode:
            raise Failed(f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout.strip()

    def begun(self, operation):
        """An operation begins."""

    def acknowledged(self, operation):
        """It is done, and its promises count."""

    def do(self, worker, what, work, **promise):
        """One operation: begun, worked at, acknowledged. What the work gave; `None` if nobody has heard that."""
        operation = Operation(next(self.numbers), worker, what, **promise)
        self.begun(operation)
        given = work()
        self.acknowledged(operation)
        return given

    def image_id(self, tag):
        """The ID of an image by its name."""
        rows = json.loads(self.reflinkd("images", "--no-trunc", "--format", "json"))
        return next(row["id"] for row in rows if f"{row['repository']}:{row['tag']}" == tag)

    def begin(self):
        """What all workers stand on."""
        self.do("s", "init", lambda: self.reflinkd("init"))
        path = self.work / "base.tar"
        image = images.archive(path, [self.base], BASE, "base")
        self.base_image = (image, images.tree_of([self.base]))
        self.do("s", f"load {BASE}", lambda: self.reflinkd("load", "-q", path),
                changes={f"image {BASE}": {"tree": self.base_image[1], "facts": {"id": image}}})

    def run(self, workers, operations):
        """So many workers, and a client of the server, with so many operations each."""
        errors, running = [], []

        def go(worker):
            try:
                for _ in range(operations):
                    if self.broken.is_set() or self.stop.is_set():
                        return
                    worker.step()
            except BaseException as error:  # noqa: BLE001: a thread's error is raised below
                self.broken.set()
                errors.append(error)

        with door.Door(self.binary, self.root) as server:
            server.begin()
            for worker in (*(Worker(self, f"w{number}") for number in range(workers)), Client(self, "d", server)):
                thread = threading.Thread(target=go, args=[worker])
                thread.start()
                running.append(thread)
            for thread in running:
                thread.join()
        if errors:
            raise errors[0]


def choose(rng, choices):
    """One of the verbs by their weights."""
    rng.choices([verb for verb, _ in choices], [weight for _, weight in choices])[0]()


class Container:
    """`actual` is what it holds now, `promised` what of that is durable. The `kind` of thing is its own name's beginning."""

    def __init__(self, root, facts, actual, kind="container"):
        self.kind = kind
        self.root, self.facts, self.actual, self.promised = root, facts, dict(actual), dict(actual)
        # Label -> what it holds, and what of that is durable.
        self.snapshots = {}

    def thing(self):
        return {"tree": dict(self.promised), "facts": self.facts}

    def kept(self):
        """The same once all of it is durable."""
        return {"tree": dict(self.actual), "facts": self.facts}

    def keep(self):
        self.promised = dict(self.actual)


class Worker:
    def __init__(self, load, name):
        self.load, self.name, self.rng = load, name, random.Random(f"{load.seed} {name}")
        self.containers, self.numbers = {}, itertools.count(1)
        # Tag -> (key that images of the same ID have, tree).
        self.images = {}
        self.views = {}
        # Names that were removed, by their kinds.
        self.free = defaultdict(list)

    def do(self, what, *command, work=None, **promise):
        return self.load.do(self.name, what, work or (lambda: self.load.reflinkd(*command)), **promise)

    def fresh(self, kind):
        """A name that nothing has: often one that was something's before."""
        if self.free.get(kind) and self.rng.random() < 0.4:
            return self.free[kind].pop(0)
        return f"{self.name}-{kind}{next(self.numbers)}"

    def snapshots(self):
        return [(name, label) for name, container in self.containers.items() for label in container.snapshots]

    def unused_images(self):
        used = {container.facts["image_id"] for container in (*self.containers.values(), *self.views.values())}
        return [tag for tag, (key, _) in self.images.items()
                if key not in used or sum(key == other for other, _ in self.images.values()) > 1]

    def step(self):
        """One operation, of those that can be done now."""
        choose(self.rng, self.choices())

    def choices(self):
        """The verbs, each with its weight."""
        room = len(self.containers) < CONTAINERS
        few = len(self.snapshots()) < SNAPSHOTS
        return [
            (self.load_image, 3 if len(self.images) < IMAGES else 0),
            (self.create, 4 if room else 0),
            (self.view, 1 if MAKES_VIEWS and len(self.views) < 2 else 0),
            (self.write, 8 if self.containers else 0),
            (self.commit, 3 if self.containers and len(self.images) < IMAGES else 0),
            (self.clone, 3 if self.containers and room else 0),
            (self.snapshot, 4 if self.containers and few else 0),
            (self.roll_back, 3 if self.snapshots() and few else 0),
            (self.reset, 1 if self.containers else 0),
            (self.rename, 2 if self.containers else 0),
            (self.tag, 1 if self.images and len(self.images) < IMAGES else 0),
            (self.remove, 2 if len(self.containers) > 1 else 0),
            (self.remove_view, 1 if self.views else 0),
            (self.remove_snapshot, 1 if self.snapshots() else 0),
            (self.remove_image, 2 if self.unused_images() else 0),
            (self.gc, 0.5),
        ]

    def load_image(self):
        tag = f"{self.fresh('i')}:latest"
        middle = self.rng.choice(self.load.middle)
        layers = [self.load.base, middle, images.some_layer(self.rng, "top", 6)][:self.rng.choice((2, 3, 3))]
        path = self.load.work / f"{self.name}.tar"
        # The comment makes an image of its own of each.
        image = images.archive(path, layers, tag, tag)
        tree = images.tree_of(layers)
        self.do(f"load {tag}", "load", "-q", path,
                changes={f"image {tag}": {"tree": tree, "facts": {"id": image}}})
        self.images[tag] = (image, tree)

    def all_images(self):
        return [(BASE, self.load.base_image), *self.images.items()]

    def some_image(self):
        return self.rng.choice(self.all_images())

    def create(self):
        name, (tag, (image, tree)) = self.fresh("c"), self.some_image()
        facts = {"image_id": image, "labels": {"of": name}, "read_only": False, "size_limit": None}
        more = []
        if self.load.limits and self.rng.random() < 0.3:
            facts["size_limit"] = 50_000_000
            more = ["--size-limit", "50M"]
        self.do(f"create {name} of {tag}", "create", "--image", tag, "--label", f"of={name}", *more, name,
                changes={f"container {name}": {"tree": tree, "facts": facts}})
        self.containers[name] = Container(self.load.reflinkd("mount", name), facts, tree)

    def view(self):
        name, (tag, (image, tree)) = self.fresh("c"), self.some_image()
        facts = {"image_id": image, "labels": {}, "read_only": True, "size_limit": None}
        self.do(f"create --read-only {name} of {tag}", "create", "--read-only", "--image", tag, name,
                changes={f"container {name}": {"tree": tree, "facts": facts}})
        self.views[name] = Container(None, facts, tree)

    def remove_view(self):
        name = self.rng.choice(list(self.views))
        self.do(f"rm {name}", "rm", name, changes={f"container {name}": None}, removes=[f"container {name}"])
        del self.views[name]
        self.free["c"].append(name)

    def some_container(self):
        return self.rng.choice(list(self.containers.items()))

    def write(self):
        name, container = self.some_container()
        Writes(self, name, container).one()

    def commit(self):
        name, container = self.some_container()
        tag = f"{self.fresh('m')}:latest"
        changes = {f"image {tag}": {"tree": dict(container.actual), "facts": {}}, f"container {name}": container.kept()}
        # Of the two, the container's own part is only that what it held is durable by then.
        image = self.do(f"commit {name} {tag}", "commit", name, tag, changes=changes)
        container.keep()
        self.images[tag] = (image or self.load.image_id(tag), dict(container.actual))

    def clone(self):
        name, container = self.some_container()
        new = self.fresh("c")
        kept = container.kept()
        self.do(f"clone {name} {new}", "clone", name, new, changes={f"container {new}": kept, f"container {name}": kept})
        container.keep()
        self.containers[new] = Container(self.load.reflinkd("mount", new), container.facts, container.actual)

    def snapshot(self):
        name, container = self.some_container()
        label = f"s{next(self.numbers)}"
        kept = container.kept()
        self.do(f"snapshot {name} {label}", "snapshot", name, label,
                changes={f"snapshot {name}@{label}": {"tree": kept["tree"], "facts": {}}, f"container {name}": kept})
        container.keep()
        container.snapshots[label] = (kept["tree"], kept["tree"])

    def roll_back(self):
        name, label = self.rng.choice(self.snapshots())
        container = self.containers[name]
        taken = [int(other.rpartition("-")[2]) for other in container.snapshots if other.startswith("replaced-")]
        kept, (tree, _) = f"replaced-{max(taken, default=0) + 1}", container.snapshots[label]
        replaced = f"snapshot {name}@{kept}"
        # What is replaced is moved, and no more durable by that; the snapshot itself is.
        changes = {f"container {name}": {"tree": tree, "facts": container.facts},
                   f"snapshot {name}@{label}": {"tree": tree, "facts": {}},
                   replaced: {"tree": dict(container.promised), "facts": {}}}
        # Cut short before the exchange it leaves the other copy of the snapshot (src/engine/snapshot.rs).
        self.do(f"rollback {name} {label}", "rollback", name, label, changes=changes,
                between=[{replaced: {"tree": tree, "facts": {}}}])
        container.snapshots[label] = (tree, tree)
        container.snapshots[kept] = (dict(container.actual), dict(container.promised))
        container.actual = dict(tree)
        container.keep()

    def reset(self):
        name, container = self.some_container()
        tree = next(tree for _, (key, tree) in self.all_images() if key == container.facts["image_id"])
        self.do(f"reset {name}", "reset", name,
                changes={f"container {name}": {"tree": tree, "facts": container.facts}})
        container.actual = dict(tree)
        container.keep()

    def rename(self):
        name, container = self.some_container()
        new = self.fresh("c")
        changes = {f"container {name}": None, f"container {new}": container.thing()}
        for label, (_, tree) in container.snapshots.items():
            changes[f"snapshot {name}@{label}"] = None
            changes[f"snapshot {new}@{label}"] = {"tree": tree, "facts": {}}
        self.do(f"rename {name} {new}", "rename", name, new, changes=changes, renames=[name, new])
        self.containers[new] = self.containers.pop(name)

    def tag(self):
        tag = self.rng.choice(list(self.images))
        new = f"{self.fresh('t')}:latest"
        key, tree = self.images[tag]
        facts = {"id": key} if key.startswith("sha256:") else {}
        self.do(f"tag {tag} {new}", "tag", tag, new, changes={f"image {new}": {"tree": tree, "facts": facts}})
        self.images[new] = (key, tree)

    def remove(self):
        name, container = self.some_container()
        removes = [f"container {name}", *(f"snapshot {name}@{label}" for label in container.snapshots)]
        self.do(f"rm {name}", "rm", name, changes=dict.fromkeys(removes), removes=removes, stepwise=True)
        del self.containers[name]
        self.free["c"].append(name)

    def remove_snapshot(self):
        name, label = self.rng.choice(self.snapshots())
        thing = f"snapshot {name}@{label}"
        self.do(f"rm {name}@{label}", "rm", f"{name}@{label}", changes={thing: None}, removes=[thing])
        del self.containers[name].snapshots[label]

    def remove_image(self):
        tag = self.rng.choice(self.unused_images())
        self.do(f"rmi {tag}", "rmi", tag, changes={f"image {tag}": None}, removes=[f"image {tag}"])
        del self.images[tag]

    def gc(self):
        self.do("gc", "gc")


class Client:
    """dockerd's part: layers upon layers, containers on them, by the server's socket."""

    def __init__(self, load, name, server):
        self.load, self.name, self.server = load, name, server
        self.rng, self.numbers, self.free = random.Random(f"{load.seed} {name}"), itertools.count(1), []
        # By key: trees, containers, the digest of each layer's tar, and parents. What others are based on can't be removed.
        self.layers, self.containers, self.digests, self.parents = {}, {}, {}, {}

    def do(self, what, work=None, **promise):
        return self.load.do(self.name, what, work, **promise)

    def step(self):
        choose(self.rng, self.choices())

    def unused(self):
        return [key for key in self.layers if key not in self.parents.values()]

    def choices(self):
        return [
            (self.layer, 3 if len(self.layers) < 6 else 0),
            (self.container, 3 if self.layers and len(self.containers) < 3 else 0),
            (self.write, 4 if self.containers else 0),
            (self.remove_container, 2 if self.containers else 0),
            (self.remove_layer, 2 if self.unused() else 0),
        ]

    def fresh(self):
        if self.free and self.rng.random() < 0.4:
            return self.free.pop(0)
        return f"{self.name}-k{next(self.numbers)}"

    def layer(self):
        key, parent = self.fresh(), self.rng.choice(["", *self.layers])
        below = self.layers.get(parent, {})
        over = [path for path, fact in below.items() if fact[0] == "file"]
        layer = images.some_layer(self.rng, f"in-{next(self.numbers)}", 6, self.rng.sample(over, min(2, len(over))))
        tree, tar = images.tree_over(below, layer), images.tar_of(layer)
        thing = {"tree": tree, "facts": {"kind": "layer", "parent": parent or None, "diff": images.digest(tar)}}
        reserved = {"tree": {}, "facts": {"kind": "reserved", "parent": parent or None}}
        self.do(f"layer {key} on {parent or 'nothing'}", lambda: self.server.layer(key, parent, tar),
                changes={f"key {key}": thing}, between=[{f"key {key}": reserved}])
        self.layers[key], self.digests[key], self.parents[key] = tree, images.digest(tar), parent

    def container(self):
        key, parent = self.fresh(), self.rng.choice(list(self.layers))
        facts = {"kind": "container", "parent": parent}
        self.do(f"container {key} on {parent}", lambda: self.server.container(key, parent),
                changes={f"key {key}": {"tree": self.layers[parent], "facts": facts}})
        self.containers[key] = Container(self.root_of(key), facts, self.layers[parent], "key")
        self.parents[key] = parent

    def root_of(self, key):
        return self.server.root(key)

    def write(self):
        key, container = self.rng.choice(list(self.containers.items()))
        Writes(self, key, container).one()

    def remove_container(self):
        key = self.rng.choice(list(self.containers))
        self.remove(key)
        del self.containers[key]

    def remove_layer(self):
        key = self.rng.choice(self.unused())
        self.remove(key)
        del self.layers[key]

    def remove(self, key):
        self.do(f"remove {key}", lambda: self.server.remove(key), changes={f"key {key}": None}, removes=[f"key {key}"])
        del self.parents[key]
        self.free.append(key)


class Writes:
    """One change of a container's tree, as its processes would make it: synced, and so promised, or not."""

    def __init__(self, worker, name, container):
        self.worker, self.name, self.container, self.rng = worker, name, container, worker.rng

    def one(self):
        kinds = ["new", "new", "quiet"]
        if any(fact != LOOSE and fact[0] == "file" for fact in self.container.promised.values()):
            kinds += ["replace", "overwrite", "append", "unlink", "chmod"]
        getattr(self, self.rng.choice(kinds))()

    def path(self, relative):
        return os.path.join(self.container.root, relative)

    def some(self, kind):
        return self.rng.choice([path for path, fact in self.container.promised.items() if fact != LOOSE and fact[0] == kind])

    def bytes(self):
        return self.rng.randbytes(self.rng.choice((10, 600, 4_096, 30_000, 200_000)))

    def do(self, what, relative, work, fact, loose=(), more=None):
        """`fact` is what the path is afterwards; None if it is gone."""
        container = self.container
        for path, value in {**(more or {}), relative: fact}.items():
            for tree in (container.actual, container.promised):
                if value is None:
                    tree.pop(path, None)
                else:
                    tree[path] = value
        if fact is not None:
            container.actual[relative] = fact
        self.worker.do(f"{what} {relative} in {self.name}", work=work, loose=loose,
                       changes={f"{container.kind} {self.name}": container.thing()})

    def new(self):
        directory, data = self.some("dir"), self.bytes()
        more, new = {}, []
        if self.rng.random() < 0.3:
            directory = f"{directory}/n{next(self.worker.numbers)}"
            more, new = {directory: ["dir", 0o755]}, [directory]
        relative = f"{directory}/w{next(self.worker.numbers)}"

        def work():
            for path in new:
                os.mkdir(self.path(path))
                os.chmod(self.path(path), 0o755)
            write(self.path(relative), data)
            for path in (directory, os.path.dirname(directory)):
                sync(self.path(path))

        self.do("write", relative, work, file_fact(0o644, data), [relative, *new], more)

    def quiet(self):
        """Not synced: nothing is promised until something keeps the container as it is."""
        relative, data = f"{self.some('dir')}/q{next(self.worker.numbers)}", self.bytes()
        self.worker.do(f"write {relative} in {self.name}, not synced", loose=[relative],
                       work=lambda: write(self.path(relative), data, synced=False),
                       changes={f"{self.container.kind} {self.name}": {
                           "tree": {**self.container.promised, relative: LOOSE}, "facts": self.container.facts}})
        self.container.actual[relative] = file_fact(0o644, data)
        self.container.promised[relative] = LOOSE

    def replace(self):
        relative, data = self.some("file"), self.bytes()
        aside = f"{relative}.new"

        def work():
            write(self.path(aside), data)
            os.rename(self.path(aside), self.path(relative))
            sync(os.path.dirname(self.path(relative)))

        self.do("replace", relative, work, file_fact(0o644, data), [aside])

    def overwrite(self):
        relative, data = self.some("file"), self.bytes()
        mode = self.container.promised[relative][1]
        self.do("overwrite", relative, lambda: write(self.path(relative), data, mode=None), file_fact(mode, data), [relative])

    def append(self):
        relative, data = self.some("file"), self.bytes()
        with open(self.path(relative), "rb") as file:
            before = file.read()
        mode = self.container.promised[relative][1]
        self.do("append to", relative, lambda: write(self.path(relative), data, mode=None, how=os.O_APPEND),
                file_fact(mode, before + data), [relative])

    def unlink(self):
        relative = self.some("file")

        def work():
            os.unlink(self.path(relative))
            sync(os.path.dirname(self.path(relative)))

        self.do("unlink", relative, work, None)

    def chmod(self):
        relative, mode = self.some("file"), self.rng.choice((0o600, 0o640, 0o4755))
        fact = list(self.container.promised[relative])
        fact[1] = mode

        def work():
            os.chmod(self.path(relative), mode)
            sync(self.path(relative))

        self.do("chmod", relative, work, fact)


def file_fact(mode, data):
    return images.fact(("file", mode, data))


def write(path, data, synced=True, mode=0o644, how=os.O_TRUNC):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | how, 0o600)
    try:
        os.write(file, data)
        if mode is not None:
            os.fchmod(file, mode)
        if synced:
            os.fsync(file)
    finally:
        os.close(file)


def sync(path):
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
