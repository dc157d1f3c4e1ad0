"""A client of Docker's door that does what dockerd does: layers, containers with their init layers, commits."""

import http.client
import json

import door
import images
import load
from soaking import Cut, Wrong, emptied

REFUSALS = (door.Failed,)
# What dockerd puts into each container, as far as it matters here.
INIT = {".dockerenv": ("file", 0o755, b"")}


class Line(door.Calls):
    """A connection to one of the soak's servers. If that is killed, so are the calls under way."""

    def __init__(self, server):
        super().__init__(server.docker)
        self.server = server

    def post(self, path, body):
        self.server.wait()
        try:
            return super().post(path, body)
        except door.Failed as error:
            # Another server than made the tree takes no tar for it (src/daemon/docker/awaited.rs).
            if self.server.is_ending() or self.server.mortal and "an earlier stream into it broke off" in str(error):
                raise Cut from error
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not self.server.mortal:
                raise Wrong(f"{path}: the server that nobody kills broke the connection: {error!r}") from error
            raise Cut from error


class Worker(load.Client):
    """`door` and what follows it is what `soaking` wants of a worker."""

    door = "docker"

    def __init__(self, soak, name, server):
        super().__init__(soak, name, Line(server))

    def choices(self):
        room = len(self.containers) < 3
        return [
            *super().choices(),
            (self.container_with_init, 4 if self.layers and room else 0),
            (self.commit, 2 if self.containers and len(self.layers) < 6 else 0),
            (self.again, 1 if self.containers else 0),
            (self.look, 4 if self.layers else 0),
            (self.refused, 2),
        ]

    def things(self):
        """What this worker's things are, in the form of `promises`."""
        found = {f"key {key}": container.kept() for key, container in self.containers.items()}
        for key, tree in self.layers.items():
            facts = {"kind": "layer", "parent": self.parents[key] or None, "diff": self.digests[key]}
            found[f"key {key}"] = {"tree": tree, "facts": facts}
        for key in self.containers:
            if (init := self.parents[key]).endswith("-init"):
                found[f"key {init}"] = {"tree": {}, "facts": {"kind": "init", "parent": self.parents[init]}}
        return found

    def revived(self):
        self.server.server.wait()

    def mended(self, operation):
        """As dockerd clears up: what was being made or removed goes, those first that are based on others."""
        gone = all(thing is None for thing in operation.changes.values())
        for name in reversed(operation.changes):
            self.persistently(lambda key=name.removeprefix("key "): self.server.remove(key))
        return "cut, done" if gone else "cut, undone"

    def persistently(self, call):
        """Make a call that can be repeated, until it is answered."""
        while True:
            try:
                return call()
            except Cut:
                self.revived()

    def clear(self):
        emptied(self.containers, self.remove_container)
        emptied(self.layers, self.remove_layer)

    def write(self):
        key, container = self.rng.choice(list(self.containers.items()))
        load.Writes(self, key, container).one()
        container.keep()

    def root_of(self, key):
        return self.persistently(lambda: self.server.root(key))

    def container_with_init(self):
        key, parent = self.fresh(), self.rng.choice(list(self.layers))
        init, tree = f"{key}-init", images.tree_over(self.layers[parent], INIT)
        facts = {"kind": "container", "parent": init}

        def work():
            self.server.container(init, parent)
            root = self.server.root(init)
            load.write(f"{root}/.dockerenv", b"", mode=0o755)
            self.server.ask("Put", ID=init)
            self.server.container(key, init)

        self.do(f"start {key} on {parent}", work, composite=True, changes={
            f"key {init}": {"tree": {}, "facts": {"kind": "init", "parent": parent}},
            f"key {key}": {"tree": tree, "facts": facts}})
        self.parents[key], self.parents[init] = init, parent
        self.containers[key] = load.Container(self.root_of(key), facts, tree, "key")

    def remove_container(self):
        key = self.rng.choice(list(self.containers))
        init = self.parents[key] if self.parents[key].endswith("-init") else None
        # In the order in which they are made: what is based on another goes first.
        names = [f"key {name}" for name in (init, key) if name]

        def work():
            for name in (key, init):
                if name:
                    self.server.remove(name)

        self.do(f"remove {key}", work, composite=True, changes=dict.fromkeys(names), removes=names)
        for name in (key, init):
            self.parents.pop(name, None)
        del self.containers[key]
        self.free.append(key)

    def commit(self):
        """What a container has written becomes a layer, as `docker commit` makes one: what dockerd put into it isn't in it."""
        key, container = self.rng.choice(list(self.containers.items()))
        parent = self.parents[key]
        init = parent.endswith("-init")
        below = self.parents[parent] if init else parent
        new = self.fresh()
        tar = self.load.asked(self, "Diff", lambda: self.server.tar(key, parent))
        put = images.fact(INIT[".dockerenv"])
        tree = dict(container.actual)
        if init and tree.get(".dockerenv") == put:
            # What the layer below has of that name, if anything, is there as before.
            del tree[".dockerenv"]
            if fact := self.layers[below].get(".dockerenv"):
                tree[".dockerenv"] = fact
        facts = {"kind": "layer", "parent": below, "diff": images.digest(tar)}
        self.do(f"commit {key} as {new}", lambda: self.server.layer(new, below, tar), composite=True,
                changes={f"key {new}": {"tree": tree, "facts": facts}})
        self.layers[new], self.digests[new], self.parents[new] = tree, images.digest(tar), below

    def again(self):
        """A call is repeated, as after a broken connection: it changes nothing."""
        key, container = self.rng.choice(list(self.containers.items()))
        self.do(f"create {key} again", lambda: self.server.container(key, self.parents[key]),
                changes={f"key {key}": container.kept()})

    def look(self):
        verbs = ["Exists", "Status", "Diff", "GetMetadata"] + (["DiffSize", "Changes", "Get"] if self.containers else [])
        verb = self.rng.choice(verbs)
        key = self.rng.choice(list(self.layers))
        if verb in ("DiffSize", "Changes", "Get"):
            key = self.rng.choice(list(self.containers))
        if verb == "Diff":
            digest = self.load.asked(self, verb, lambda: self.server.diff(key, self.parents[key]))
            if digest != self.digests[key]:
                raise Wrong(f"the tar of layer {key} is {digest}, expected {self.digests[key]}")
            return
        said = self.load.asked(self, verb, lambda: self.server.ask(verb, ID=key, Parent=self.parents[key]))
        if verb == "Exists" and said["Exists"] is not True:
            raise Wrong(f"{key} is said not to exist")
        if verb == "Get" and said["Dir"] != self.containers[key].root:
            raise Wrong(f"{key} is at {said['Dir']}, and was at {self.containers[key].root}")
        if verb == "Changes":
            self.compare_changes(key, said["Changes"])

    def compare_changes(self, key, changes):
        container, parent = self.containers[key], self.parents[key]
        init = parent.endswith("-init")
        below = self.layers[self.parents[parent] if init else parent]
        if init:
            below = images.tree_over(below, INIT)
        for kind, word, one, other in ((1, "added", container.actual, below), (2, "deleted", below, container.actual)):
            said = {change["Path"].strip("/") for change in changes if change["Kind"] == kind}
            expected = {path for path in one if path not in other}
            if said != expected:
                raise Wrong(f"Changes of {key} say of {sorted(said ^ expected)[:5]} otherwise than they are {word}")

    def refused(self):
        never, ask = f"{self.name}-never", self.server.ask
        kinds = {
            "a layer on nothing known": lambda: ask("CreateReadWrite", ID=never, Parent=f"{self.name}-nowhere"),
            "Get of nothing": lambda: ask("Get", ID=never),
            "Diff of nothing": lambda: self.server.tar(never, ""),
            "no JSON": lambda: self.server.post("/GraphDriver.Create", "{nonsense"),
            "an empty request": lambda: self.server.post("/GraphDriver.Remove", ""),
            "an unknown call": lambda: ask("Nonsense", ID=never),
            "an unknown storage option": lambda: ask("CreateReadWrite", ID=never, Parent="", StorageOpt={"nonsense": "1"}),
            "a key that is too long": lambda: ask("Create", ID=f"{self.name}-" + "x" * 2_000, Parent=""),
            "a list": lambda: self.server.post("/GraphDriver.Get", json.dumps([never])),
        }
        if parents := [key for key in self.layers if key in self.parents.values()]:
            taken = self.rng.choice(parents)
            kinds["removal of what others are based on"] = lambda: self.server.remove(taken)
        kind = self.rng.choice([*kinds, "half a layer"])
        if kind != "half a layer":
            return self.load.refused(self, kind, kinds[kind], REFUSALS)
        key = self.fresh()
        data = self.rng.randbytes(40_000)
        tar = images.tar_of({**images.some_layer(self.rng, "half", 8), "half/last": ("file", 0o644, data)})
        tar = tar[:tar.index(data) + self.rng.randrange(len(data))]

        def work():
            self.load.refused(self, kind, lambda: self.server.layer(key, "", tar), REFUSALS)
            self.server.remove(key)

        self.do(f"broken layer {key}", work, composite=True, changes={f"key {key}": None})
        self.free.append(key)
