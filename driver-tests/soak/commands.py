"""A worker of the command line: the verbs of the load, and what a power cut has no use for."""

import glob
import json
import os
import tarfile

import images
import load
import store
from soaking import Wrong, emptied

REFUSALS = (load.Failed,)


class Worker(load.Worker):
    """`door` and what follows it is what `soaking` wants of a worker."""

    door = "cli"

    def choices(self):
        return [
            *super().choices(),
            (self.copy_in, 2 if self.containers else 0),
            (self.copy_out, 2 if self.containers else 0),
            (self.copy_between, 1 if len(self.containers) > 1 else 0),
            (self.limit, 1 if self.containers and self.load.limits else 0),
            (self.export, 1 if self.containers else 0),
            (self.import_again, 1 if self.containers and len(self.images) < load.IMAGES else 0),
            (self.save_and_load, 1.5 if self.unused_images() else 0),
            (self.look, 3),
            (self.check, 0.5),
            (self.refused, 2),
        ]

    def things(self):
        """What this worker's things are, in the form of `promises`."""
        found = {}
        for name, container in (*self.containers.items(), *self.views.items()):
            found[f"container {name}"] = container.kept()
            for label, (tree, _) in container.snapshots.items():
                found[f"snapshot {name}@{label}"] = {"tree": tree, "facts": {}}
        for tag, (image, tree) in self.images.items():
            found[f"image {tag}"] = {"tree": tree, "facts": {"id": image}}
        return found

    def revived(self):
        """Each command is a process of its own."""

    def mended(self, operation):
        """Finish, or undo, what was cut short in between."""
        verb, *words = operation.what.split()
        if verb == "rm":
            self.load.reflinkd("rm", words[0])
            return "cut, done"
        if verb == "rollback":
            extra = next(name for outcome in operation.between for name in outcome)
            self.load.reflinkd("rm", extra.removeprefix("snapshot "))
            return "cut, undone"
        if verb == "cp":
            # What was being copied stands beside its place (src/copy/aside.rs).
            for aside in glob.glob(f"{self.containers[words[-1]].root}/**/.reflinkd-*", recursive=True, include_hidden=True):
                os.unlink(aside)
            return "cut, undone"
        raise Wrong(f"{operation.what} (operation {operation.number}) was cut short, and is neither done nor undone")

    def clear(self):
        emptied(self.views, self.remove_view)
        emptied(self.containers, self.remove)
        emptied(self.images, self.remove_image)

    def write(self):
        name, container = self.some_container()
        load.Writes(self, name, container).one()
        # No power is cut here: what was written is there.
        container.keep()

    def some_file(self, container):
        files = [path for path, fact in container.actual.items() if fact[0] == "file"]
        return self.rng.choice(files) if files else None

    def new_file(self, container):
        directory = self.rng.choice([path for path, fact in container.actual.items() if fact[0] == "dir"])
        return f"{directory}/cp{next(self.numbers)}"

    def copied(self, what, source, name, container, path, fact):
        tree = {**container.actual, path: fact}
        self.do(f"cp {what} to {name}", "cp", "-q", source, f"{name}:/{path}", composite=True,
                changes={f"container {name}": {"tree": tree, "facts": container.facts}})
        container.actual = tree
        container.keep()

    def copy_in(self):
        name, container = self.some_container()
        data, source = self.rng.randbytes(self.rng.choice((0, 700, 50_000))), self.load.work / f"{self.name}.file"
        source.write_bytes(data)
        source.chmod(0o644)
        self.copied("a file", source, name, container, self.new_file(container), load.file_fact(0o644, data))

    def copy_between(self):
        (one, source), (other, container) = self.rng.sample(list(self.containers.items()), 2)
        if path := self.some_file(source):
            self.copied(path, f"{one}:/{path}", other, container, self.new_file(container), source.actual[path])

    def copy_out(self):
        name, container = self.some_container()
        if not (path := self.some_file(container)):
            return
        out = self.load.work / f"{self.name}.out"
        self.load.asked(self, "cp out", lambda: self.load.reflinkd("cp", "-q", f"{name}:/{path}", out))
        data = out.read_bytes()
        if [len(data), images.digest(data)] != container.actual[path][2:]:
            raise Wrong(f"{path} of {name} was copied with {len(data)} bytes, expected {container.actual[path]}")
        out.unlink()

    def limit(self):
        name, container = self.some_container()
        limit = self.rng.choice((None, 60_000_000, 80_000_000))
        facts = {**container.facts, "size_limit": limit}
        self.do(f"update {name} to {limit}", "update", f"--size-limit={limit or 'none'}", name,
                changes={f"container {name}": {"tree": dict(container.actual), "facts": facts}})
        container.facts = facts

    def exported(self):
        """A container's tar, which is what the container has."""
        name, container = self.some_container()
        path = self.load.work / f"{self.name}.export.tar"
        self.load.asked(self, "export", lambda: self.load.reflinkd("export", "-o", path, name))
        with tarfile.open(path) as tar:
            found = {member.name.strip("/").removeprefix("./"): fact(tar, member) for member in tar}
        for root in ("", "."):
            found.pop(root, None)
        if found != container.actual:
            different = sorted(path for path in found.keys() | container.actual.keys()
                               if found.get(path) != container.actual.get(path))
            raise Wrong(f"the export of {name} differs in {different[:5]}")
        return path, container

    def export(self):
        self.exported()[0].unlink()

    def import_again(self):
        path, container = self.exported()
        tag, tree = f"{self.fresh('x')}:latest", dict(container.actual)
        image = self.do(f"import {tag}", "import", path, tag, changes={f"image {tag}": {"tree": tree, "facts": {}}})
        self.images[tag] = (image or self.load.image_id(tag), tree)

    def save_and_load(self):
        tag = self.rng.choice(self.unused_images())
        image, tree = self.images[tag]
        path, kind = self.load.work / f"{self.name}.saved", self.rng.choice(("docker-archive", "oci-archive"))
        self.load.asked(self, "save", lambda: self.load.reflinkd("save", "--format", kind, "-o", path, tag))
        thing = f"image {tag}"
        self.do(f"rmi {tag}", "rmi", tag, changes={thing: None}, removes=[thing])
        del self.images[tag]
        self.do(f"load {tag}, saved", "load", "-q", path, changes={thing: {"tree": tree, "facts": {"id": image}}})
        self.images[tag] = (image, tree)

    def look(self):
        """What only looks. Of all that there is, as others work meanwhile, only this worker's own can be held against it."""
        commands = [["ps", "-s"], ["df", "-v"], ["images"], ["layers"], ["snapshots", "-s"], ["info"], ["gc", "-n"]]
        if self.containers:
            name, container = self.some_container()
            commands += [["diff", name], ["inspect", name]]
        words = self.rng.choice(commands)
        format_json = [] if words[0] == "inspect" else ["--format", "json"]
        said = json.loads(self.load.asked(self, words[0], lambda: self.load.reflinkd(*words, *format_json)))
        if words[0] == "ps":
            names = {row["name"] for row in said if row["name"].startswith(f"{self.name}-")}
            if names != {*self.containers, *self.views}:
                raise Wrong(f"ps has {sorted(names)}, expected {sorted({*self.containers, *self.views})}")
        elif words[0] == "diff":
            self.compare_diff(name, container, said)

    def check(self):
        """What is found while others work must be found again, as things are under way."""
        damage = self.load.asked(self, "check", self.load.store.damage)
        for _ in range(2):
            damage = [row for row in damage and self.load.store.damage() if row in damage]
        if damage:
            raise Wrong(f"check found, while others work, {store.shown(damage)}")

    def compare_diff(self, name, container, rows):
        below = next(tree for _, (key, tree) in self.all_images() if key == container.facts["image_id"])
        for kind, one, other in (("added", container.actual, below), ("deleted", below, container.actual)):
            said = {row["path"].strip("/") for row in rows if row["change"] == kind}
            expected = {path for path in one if path not in other}
            if said != expected:
                raise Wrong(f"diff {name} says of {sorted(said ^ expected)[:5]} otherwise than they are {kind}")

    def refused(self):
        tag, _ = self.some_image()
        garbage = self.load.work / f"{self.name}.garbage"
        cut = self.load.work / f"{self.name}.cut.tar"
        layers = [self.load.base, images.some_layer(self.rng, "never", 5)]
        images.archive(cut, layers, f"{self.name}-never:latest", "never")
        # The last layer's data isn't there to its end.
        with open(cut, "r+b") as file:
            file.truncate(cut.stat().st_size * 3 // 4)
        garbage.write_bytes(self.rng.randbytes(3_000))
        kinds = {
            "create of no image": ["create", "--image", "nowhere:none", f"{self.name}-never"],
            "create with a bad name": ["create", "--image", tag, "../never"],
            "rm of nothing": ["rm", f"{self.name}-never"],
            "rmi of nothing": ["rmi", f"{self.name}-never"],
            "load of garbage": ["load", "-q", garbage],
            "load of half an archive": ["load", "-q", cut],
            "import of garbage": ["import", garbage, f"{self.name}-never"],
            "wrong usage": ["create", "--nonsense"],
            "a limit that is none": ["create", "--image", tag, "--size-limit", "much", f"{self.name}-never"],
        }
        if self.containers:
            name, _ = self.some_container()
            kinds |= {
                "create of a name that is taken": ["create", "--image", tag, name],
                "rollback to nothing": ["rollback", name, "never"],
                "rename to a bad name": ["rename", name, "a b"],
                "commit under a bad name": ["commit", name, "UPPER CASE"],
                "cp of nothing": ["cp", "-q", f"{name}:/never/there", garbage],
            }
        kind = self.rng.choice(list(kinds))
        self.load.refused(self, kind, lambda: self.load.reflinkd(*kinds[kind]), REFUSALS)


def fact(tar, member):
    """A tar's member, as facts."""
    if member.isdir():
        return ["dir", member.mode]
    if member.issym():
        return ["link", member.linkname]
    data = tar.extractfile(member).read()
    return ["file", member.mode, len(data), images.digest(data)]
