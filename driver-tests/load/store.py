"""A store, asked by the program itself: what there is, what `check` finds, and what is left that nobody knows."""

import hashlib
import json
import os
import re
import stat
import subprocess
from collections import defaultdict

import door
import ground

# A command that takes longer hangs.
PATIENCE = 300
# Nothing goes on in the background while a store is looked at.
QUIET = {**os.environ, "REFLINKD_NO_TEND": "1", "REFLINKD_PULL": "never"}

# What `check` calls damage and operations under way leave, or removals that come back: the next command that writes, or gc,
# clears it up. Two layers have one name where a commit was cut short that made one which was there already.
UNDER_WAY = ("place-half-made", "place-half-replaced", "name-taken")


class Damage(Exception):
    """What is wrong, and what found it: "mount", "store", "promise", "check", "left" or "fsck"."""

    def __init__(self, by, words):
        super().__init__(f"{by}: {words}")
        self.by = by


def fact(path):
    found = os.lstat(path)
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return ["dir", mode]
    if stat.S_ISLNK(found.st_mode):
        return ["link", os.readlink(path)]
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return ["file", mode, f"unreadable: {error}"]
    return ["file", mode, len(data), hashlib.sha256(data).hexdigest()]


def tree(root):
    """All of a tree below its root, as facts."""
    facts = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = os.path.join(directory, name)
            facts[os.path.relpath(path, root)] = fact(path)
    return facts


def shown(findings):
    return "; ".join(f"{row['code']} {row['object']}: {row['reason']}" for row in findings)


class Store:
    """The store below a mounted filesystem of a kind, "btrfs" or "xfs"."""

    def __init__(self, binary, mnt, kind, environment=None):
        self.binary, self.mnt, self.root, self.kind, self.environment = binary, mnt, mnt / "store", kind, environment

    def reflinkd(self, *arguments, by="store", may=0):
        command = [str(word) for word in (self.binary, "--root", self.root, *arguments)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=self.environment, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Damage(by, f"{' '.join(map(str, arguments))}: not done after {PATIENCE} s") from None
        if done.returncode not in (0, may):
            raise Damage(by, f"{' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def rows(self, *arguments, by="store"):
        return json.loads(self.reflinkd(*arguments, "--format", "json", by=by))

    def things(self, only=None):
        """Containers, snapshots, images and trees of clients, by their workers, in the form of `promises`: all of them, or
        those that `only` names."""
        found = defaultdict(dict)

        def wanted(kind, name):
            return only is None or f"{kind} {name}" in only

        def add(kind, name, thing):
            found[name.split("-")[0]][f"{kind} {name}"] = thing

        rows_of_layers = self.rows("layers")
        layers = {row["chain_id"]: row["directory"] for row in rows_of_layers if "chain_id" in row}
        containers = [row for row in self.rows("ps") if wanted("container", row["name"])]
        rows = [(f"{row['repository']}:{row['tag']}", row["id"]) for row in self.rows("images")]
        rows = [(name, image) for name, image in rows if wanted("image", name)]
        details = self.inspect([*(row["name"] for row in containers), *sorted({image for _, image in rows})])
        images = {row["id"]: row for row in details if row["type"] == "image"}
        roots = {row["name"]: row["root"] for row in details if row["type"] == "container"}
        for name, image in rows:
            chain = images[image]["layers"][-1]["chain_id"]
            found_tree = tree(layers[chain]) if chain in layers else {"": f"there is no layer {chain}"}
            add("image", name, {"tree": found_tree, "facts": {"id": image}})
        for row in containers:
            facts = {key: row[key] for key in ("image_id", "labels", "size_limit", "read_only")}
            root = self.reflinkd("mount", row["name"]).strip() if row["read_only"] else roots[row["name"]]
            add("container", row["name"], {"tree": tree(root), "facts": facts})
        for row in self.rows("snapshots"):
            if wanted("snapshot", row["name"]):
                add("snapshot", row["name"], {"tree": tree(row["directory"]), "facts": {}})
        keyed = [row for row in rows_of_layers if "key" in row and wanted("key", row["key"])]
        diffs = self.diffs([row for row in keyed if row["kind"] == "layer" and row["owner"] == "docker"])
        for row in keyed:
            facts = {"kind": row["kind"], "parent": row["parent"], "diff": diffs.get(row["key"])}
            # Those that have none of their own: views, reserved keys, and init layers.
            add("key", row["key"], {"tree": tree(row["directory"]) if row["directory"] else {}, "facts": facts})
        return found

    def diffs(self, layers):
        """The digests of the tars of Docker's layers (rows of `layers`), as the server gives them; by key."""
        if not layers:
            return {}
        try:
            with door.Door(self.binary, self.root, self.environment) as server:
                return {row["key"]: server.diff(row["key"], row["parent"] or "") for row in layers}
        except (door.Failed, OSError) as error:
            raise Damage("store", str(error)) from None

    def inspect(self, names):
        return json.loads(self.reflinkd("inspect", *names)) if names else []

    def check(self, *words):
        """What `reflinkd check` finds."""
        return json.loads(self.reflinkd("check", "--quiet", *words, "--format", "json", by="check", may=3))["findings"]

    def damage(self, *words):
        """What of it is damage that no operation under way leaves."""
        return [row for row in self.check(*words) if row["severity"] == "damage" and row["code"] not in UNDER_WAY]

    def left(self, found, spares=0):
        """In words, what there is that nobody knows, of all things found and so many spares; after a collection it is nothing."""
        # What others still hold stays charged to what was removed.
        if left := [row for row in self.check() if row["code"] != "charge-dead"]:
            return f"there still is {shown(left)}"
        # An init layer has neither place nor tree: its tree became the container's.
        kept = [thing for things in found.values() for name, thing in things.items()
                if not name.startswith("image ") and thing["facts"].get("kind") != "init"]
        known = len(kept) + sum("chain_id" in row for row in self.rows("layers")) + spares
        places = os.listdir(self.root / "snapshots")
        if len(places) != known:
            return f"{len(places)} places, but {known} containers, snapshots, layers, spares and trees of clients"
        treeless = [thing for thing in kept
                    if thing["facts"].get("read_only") or thing["facts"].get("kind") in ("reserved", "view")]
        trees = known - len(treeless)
        if self.kind == "btrfs":
            listed = ground.sh("btrfs", "subvolume", "list", self.mnt).splitlines()
            subvolumes = [path for line in listed if re.match(r"store/snapshots/", path := line.split(" path ")[1])]
            if len(subvolumes) != trees:
                return f"{len(subvolumes)} subvolumes, but {trees} trees: {subvolumes}"
        elif trash := os.listdir(self.root / "trash"):
            return f"the trash has {trash}"
        return None

    def nothing_left(self, found):
        """After a collection there is nothing that nobody knows, and all the containers and snapshots that were found."""
        self.reflinkd("gc", by="left")
        if left := self.left(found):
            raise Damage("left", f"after gc {left}")

    def usable(self, image):
        """What was recovered is a store like any other."""
        self.reflinkd("create", "--image", image, "after")
        self.reflinkd("rm", "after")
