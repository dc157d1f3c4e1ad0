"""A client of containerd's door that does what containerd does: snapshots of all kinds, and layers through the differ."""

import itertools
import os
import random

import grpc

import api
import images
import load
import store
from soaking import Cut, Wrong, emptied

REFUSALS = (grpc.RpcError,)
# A call takes no longer.
PATIENCE = 120
INFO = "services.snapshots.v1.Info"
TAR = "application/vnd.oci.image.layer.v1.tar"
KINDS = {"container": "ACTIVE", "layer": "COMMITTED", "view": "VIEW"}
# How a call ends whose server was killed.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
# Or with another code, and one of these words.
BROKEN_WORDS = ("stream", "socket", "connection", "goaway")
OPTIONS = (("grpc.initial_reconnect_backoff_ms", 20), ("grpc.min_reconnect_backoff_ms", 20),
           ("grpc.max_reconnect_backoff_ms", 200), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))
# Messages are named otherwise than these calls.
NAMES = {"List": "ListSnapshots"} | {
    call: f"{call}Snapshot" for call in ("Prepare", "View", "Commit", "Remove", "Stat", "Update")}
WITHOUT_ANSWER = ("Commit", "Remove", "Cleanup")
CALLER = (("containerd-namespace", "soak"), ("containerd-lease", "soak"))


class Line:
    """A connection to one of the soak's servers. If that is killed, so are the calls under way."""

    def __init__(self, server):
        self.server = server
        self.channel = grpc.insecure_channel(f"unix://{server.containerd}", options=OPTIONS)
        self.calls = {}

    def close(self):
        self.channel.close()

    def call(self, path, request, answer):
        """An answer; of a call that gives a stream all of it, in a list."""
        streams = path.endswith("/List")
        if path not in self.calls:
            make = self.channel.unary_stream if streams else self.channel.unary_unary
            self.calls[path] = make(f"/containerd.services.{path}", response_deserializer=answer,
                                    request_serializer=lambda message: message.SerializeToString())
        try:
            given = self.calls[path](request, timeout=PATIENCE, metadata=CALLER, wait_for_ready=True)
            return list(given) if streams else given
        except grpc.RpcError as error:
            broken = error.code() in BROKEN or any(word in error.details().lower() for word in BROKEN_WORDS)
            if self.server.is_ending() or (broken and self.server.mortal):
                raise Cut from error
            if broken:
                raise Wrong(f"{path}: the server that nobody kills: {error.code()}: {error.details()}") from error
            raise

    def ask(self, call, **fields):
        """A call of the snapshotter."""
        name = f"services.snapshots.v1.{NAMES.get(call, call)}"
        answer = bytes if call in WITHOUT_ANSWER else api.message(f"{name}Response").FromString
        return self.call(f"snapshots.v1.Snapshots/{call}", api.message(f"{name}Request")(**fields), answer)

    def apply(self, digest, size, mounts):
        request = api.message("services.diff.v1.ApplyRequest")(
            diff={"media_type": TAR, "digest": digest, "size": size}, mounts=mounts)
        return self.call("diff.v1.Diff/Apply", request, api.message("services.diff.v1.ApplyResponse").FromString).applied

    def diff(self, left, right):
        request = api.message("services.diff.v1.DiffRequest")(left=left, right=right, media_type=TAR)
        return self.call("diff.v1.Diff/Diff", request, api.message("services.diff.v1.DiffResponse").FromString).diff


class Worker:
    """`door` and what follows it is what `soaking` wants of a worker."""

    door = "containerd"

    def __init__(self, soak, name, server, content):
        self.load, self.name, self.server, self.content = soak, name, Line(server), content
        self.rng, self.numbers, self.free = random.Random(f"{soak.seed} {name}"), itertools.count(1), []
        # By key: trees, containers, views; and the parent of each.
        self.layers, self.containers, self.views, self.parents = {}, {}, set(), {}

    def do(self, what, work=None, **promise):
        return self.load.do(self.name, what, work, **promise)

    def fresh(self):
        if self.free and self.rng.random() < 0.4:
            return self.free.pop(0)
        return f"{self.name}-k{next(self.numbers)}"

    def unused(self):
        return [key for key in self.layers if key not in self.parents.values()]

    def step(self):
        load.choose(self.rng, self.choices())

    def choices(self):
        few = len(self.layers) < 6
        room = len(self.containers) < 4
        return [
            (self.layer, 3 if few else 0),
            (self.shared_layer, 1.5 if few else 0),
            (self.prepare, 4 if room else 0),
            (self.view, 2 if self.layers and len(self.views) < 2 else 0),
            (self.write, 6 if self.containers else 0),
            (self.commit, 2 if self.containers and few else 0),
            (self.diff, 2 if self.containers else 0),
            (self.look, 5 if self.parents else 0),
            (self.update, 1 if self.parents else 0),
            (self.cleanup, 0.5),
            (self.refused, 2),
            (self.remove_container, 2 if self.containers else 0),
            (self.remove_view, 1 if self.views else 0),
            (self.remove_layer, 2 if self.unused() else 0),
        ]

    def things(self):
        """What this worker's things are, in the form of `promises`."""
        found = {f"key {key}": container.kept() for key, container in self.containers.items()}
        for key, tree in self.layers.items():
            found[f"key {key}"] = {"tree": tree, "facts": self.facts("layer", self.parents[key])}
        for key in self.views:
            found[f"key {key}"] = {"tree": {}, "facts": self.facts("view", self.parents[key])}
        return found

    def facts(self, kind, parent):
        return {"kind": kind, "parent": parent or None}

    def revived(self):
        self.server.server.wait()

    def mended(self, operation):
        """As containerd's collector does: what was being made goes, those first that are based on others."""
        for name in reversed(operation.changes):
            self.gone(name.removeprefix("key "))
        return "cut, undone"

    def gone(self, key):
        """Remove what may be there."""
        while True:
            try:
                return self.server.ask("Remove", key=key)
            except Cut:
                self.revived()
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                return None

    def clear(self):
        emptied(self.views, self.remove_view)
        emptied(self.containers, self.remove_container)
        emptied(self.layers, self.remove_layer)

    def layer(self):
        layer = images.some_layer(self.rng, f"in-{next(self.numbers)}", 6)
        parent = self.rng.choice(["", *self.layers])
        self.unpacked(layer, parent, {})

    def shared_layer(self):
        """One that images of the command line have, so that it may be reused."""
        base = images.tar_of(self.load.base)
        chain = f"sha256:{images.digest(base)}"
        self.unpacked(self.load.base, "", {"containerd.io/snapshot.ref": chain})

    def unpacked(self, layer, parent, labels):
        """As containerd unpacks: into an active snapshot, which is then committed."""
        below = self.layers.get(parent, {})
        tree, tar, name = images.tree_over(below, layer), images.tar_of(layer), self.fresh()
        extract = f"{name}-extract"
        digest = self.content.add(tar)

        def work():
            mounts = self.server.ask("Prepare", key=extract, parent=parent, labels=labels).mounts
            applied = self.server.apply(digest, len(tar), mounts)
            if applied.digest != digest:
                raise Wrong(f"of layer {digest} was applied {applied.digest}")
            self.server.ask("Commit", name=name, key=extract)

        try:
            self.do(f"layer {name} on {parent or 'nothing'}", work, composite=True, changes={
                f"key {extract}": None, f"key {name}": {"tree": tree, "facts": self.facts("layer", parent)}})
        finally:
            # That of all workers stays.
            if not labels:
                self.content.drop(digest)
        self.layers[name], self.parents[name] = tree, parent

    def prepare(self):
        key, parent = self.fresh(), self.rng.choice([*self.layers, ""])
        tree, facts = self.layers.get(parent, {}), self.facts("container", parent)
        given = self.do(f"prepare {key} on {parent or 'nothing'}",
                        lambda: self.server.ask("Prepare", key=key, parent=parent).mounts,
                        changes={f"key {key}": {"tree": tree, "facts": facts}})
        self.parents[key] = parent
        self.containers[key] = load.Container(self.source(given or self.mounts(key)), facts, tree, "key")

    def source(self, mounts):
        return mounts[0].source

    def mounts(self, key):
        while True:
            try:
                return self.server.ask("Mounts", key=key).mounts
            except Cut:
                self.revived()

    def view(self):
        key, parent = self.fresh(), self.rng.choice(list(self.layers))
        self.do(f"view {key} of {parent}", lambda: self.server.ask("View", key=key, parent=parent),
                changes={f"key {key}": {"tree": {}, "facts": self.facts("view", parent)}})
        self.views.add(key)
        self.parents[key] = parent

    def some_container(self):
        return self.rng.choice(list(self.containers.items()))

    def write(self):
        key, container = self.some_container()
        if not any(fact[0] == "dir" for fact in container.actual.values()):
            # What was made on nothing has none.
            container.actual["top"] = ["dir", 0o755]
            self.do(f"write top in {key}", lambda: os.mkdir(f"{container.root}/top", 0o755),
                    changes={f"key {key}": container.kept()})
        else:
            load.Writes(self, key, container).one()
        container.keep()

    def commit(self):
        key, container = self.some_container()
        name, tree, parent = self.fresh(), dict(container.actual), self.parents[key]
        self.do(f"commit {key} as {name}", lambda: self.server.ask("Commit", name=name, key=key), changes={
            f"key {key}": None, f"key {name}": {"tree": tree, "facts": self.facts("layer", parent)}})
        del self.containers[key], self.parents[key]
        self.layers[name], self.parents[name] = tree, parent
        self.free.append(key)

    def diff(self):
        """What a container has changed, as a layer; applied to its parent it gives the container."""
        key, container = self.some_container()
        parent, left, again = self.parents[key], self.fresh(), self.fresh()

        def work():
            below = self.server.ask("View", key=left, parent=parent).mounts if parent else []
            made = self.server.diff(below, self.server.ask("Mounts", key=key).mounts)
            mounts = self.server.ask("Prepare", key=again, parent=parent).mounts
            self.server.apply(made.digest, made.size, mounts)
            found = store.tree(self.source(mounts))
            for temporary in [again, *([left] if parent else [])]:
                self.server.ask("Remove", key=temporary)
            return made.digest, found

        changes = dict.fromkeys((f"key {left}", f"key {again}"))
        given = self.do(f"diff {key}", work, composite=True, changes=changes)
        self.free += [left, again]
        if given:
            self.content.drop(given[0])
            if given[1] != container.actual:
                differ = [path for path in given[1].keys() | container.actual.keys()
                          if given[1].get(path) != container.actual.get(path)]
                raise Wrong(f"the layer of {key}, applied to {parent or 'nothing'}, differs in {sorted(differ)[:5]}")

    def look(self):
        verb = self.rng.choice(["Stat", "List", "Usage", *(["Mounts"] if self.containers or self.views else [])])
        key = self.rng.choice([*self.containers, *self.views] if verb == "Mounts" else list(self.parents))
        if verb == "List":
            filters = [f"name~=/^{self.name}-/"]
            answers = self.load.asked(self, verb, lambda: self.server.ask(verb, filters=filters))
            found = {info.name: info.kind for answer in answers for info in answer.info}
            expected = {name.removeprefix("key "): api.value(INFO, "kind", KINDS[thing["facts"]["kind"]])
                        for name, thing in self.things().items()}
            if found != expected:
                raise Wrong(f"List has {found}, expected {expected}")
            return
        said = self.load.asked(self, verb, lambda: self.server.ask(verb, key=key))
        if verb == "Stat" and (said.info.name, said.info.parent) != (key, self.parents[key]):
            raise Wrong(f"Stat of {key} has {said.info}")
        if verb == "Usage" and (said.size < 0 or said.inodes < 0):
            raise Wrong(f"Usage of {key} is {said}")
        if verb == "Mounts" and key in self.containers and self.source(said.mounts) != self.containers[key].root:
            raise Wrong(f"{key} is at {said.mounts}, and was at {self.containers[key].root}")

    def update(self):
        key = self.rng.choice(list(self.parents))
        labels = {"soak": str(next(self.numbers))}
        said = self.load.asked(self, "Update", lambda: self.server.ask("Update", info={"name": key, "labels": labels}))
        if dict(said.info.labels) != labels:
            raise Wrong(f"{key} has the labels {said.info.labels}, expected {labels}")

    def cleanup(self):
        self.do("cleanup", lambda: self.server.ask("Cleanup"))

    def refused(self):
        never, ask = f"{self.name}-never", self.server.ask
        kinds = {
            "a parent that is none": ("NOT_FOUND", lambda: ask("Prepare", key=never, parent=f"{self.name}-nowhere")),
            "Stat of nothing": ("NOT_FOUND", lambda: ask("Stat", key=never)),
            "Remove of nothing": ("NOT_FOUND", lambda: ask("Remove", key=never)),
            "Commit of nothing": ("NOT_FOUND", lambda: ask("Commit", name=f"{never}s", key=never)),
            "no key": ("INVALID_ARGUMENT", lambda: ask("Prepare", key="")),
            "a filter that is none": ("INVALID_ARGUMENT", lambda: ask("List", filters=["name=="])),
            "a label that is too long": ("INVALID_ARGUMENT", lambda: ask("Prepare", key=never, labels={"k": "v" * 5_000})),
        }
        if self.containers:
            key, container = self.some_container()
            mounts = [{"type": "bind", "source": container.root, "options": ["rbind", "rw"]}]
            nowhere = "sha256:" + "0" * 64
            kinds |= {
                "a key that is taken": ("ALREADY_EXISTS", lambda: ask("Prepare", key=key, parent="")),
                "a parent that is active": ("INVALID_ARGUMENT", lambda: ask("View", key=never, parent=key)),
                "content that isn't there": ("NOT_FOUND", lambda: self.server.apply(nowhere, 9, mounts)),
            }
        if parents := [key for key in self.layers if key in self.parents.values()]:
            taken = self.rng.choice(parents)
            kinds["removal of what others are based on"] = ("FAILED_PRECONDITION", lambda: ask("Remove", key=taken))
        kind = self.rng.choice(list(kinds))
        code, call = kinds[kind]

        def work():
            try:
                call()
            except grpc.RpcError as error:
                if error.code().name != code:
                    raise Wrong(f"containerd: {kind} was answered {error.code()}: {error.details()}") from error
                raise

        self.load.refused(self, kind, work, REFUSALS)

    def remove(self, key):
        self.do(f"remove {key}", lambda: self.server.ask("Remove", key=key), changes={f"key {key}": None},
                removes=[f"key {key}"])
        del self.parents[key]
        self.free.append(key)

    def remove_container(self):
        key, _ = self.some_container()
        self.remove(key)
        del self.containers[key]

    def remove_view(self):
        key = self.rng.choice(sorted(self.views))
        self.remove(key)
        self.views.remove(key)

    def remove_layer(self):
        key = self.rng.choice(self.unused())
        self.remove(key)
        del self.layers[key]
