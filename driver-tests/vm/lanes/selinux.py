#!/usr/bin/env python3
"""reflinkd where SELinux enforces Debian's policy: nothing is denied to it, and containers are kept apart.

The first run loads the policy and labels what is on disk, then runs this again as an administrator's shell would
(unconfined_t), enforcing. `reflinkd serve` is in the domain that a systemd unit without a module of its own has (initrc_t).
"""

import contextlib
import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import urllib.parse
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), "/lane/driver-tests/docker"]

import cases
import images
from audit import Audit
from cases import Store, ask, equal, eventually, expect, ok

ADMINISTRATOR = ["-u", "unconfined_u", "-r", "unconfined_r", "-t", "unconfined_t", "-l", "s0-s0:c0.c1023"]
SERVICE = "system_u:system_r:initrc_t:s0-s0:c0.c1023"
# What dockerd chooses for two containers: label of the process, label of its files.
PROCESS = "system_u:system_r:container_t:s0:{}"
FILES = "system_u:object_r:container_file_t:s0:{}"
ONE, OTHER = "c1,c2", "c3,c4"
LAYER = "system_u:object_r:container_ro_file_t:s0"
PROGRAM = "/usr/bin/reflinkd"
ENFORCE = Path("/sys/fs/selinux/enforce")
KINDS = ("btrfs", "xfs")


def place(kind):
    return Path(f"/var/lib/reflinkd-{kind}")


def prepare():
    """Load the policy and label all there is; then this program again, as an administrator."""
    ok("load_policy", "-i")
    shutil.copy("/lane/reflinkd", PROGRAM)
    for kind in KINDS:
        cases.filesystem(kind, place(kind))
    contexts = "/etc/selinux/default/contexts/files/file_contexts"
    ok("setfiles", "-F", contexts, "/", "/dev", "/run", "/tmp", "/scratch", *map(place, KINDS))
    os.execvp("runcon", ["runcon", *ADMINISTRATOR, sys.executable, __file__, "enforced"])


def label(path):
    return os.getxattr(path, "security.selinux", follow_symlinks=False).rstrip(b"\0").decode()


def labels(root):
    """The labels that are on a tree's inodes."""
    found = {label(root)}
    for directory, directories, files in os.walk(root):
        found |= {label(os.path.join(directory, name)) for name in directories + files}
    return found


class Socket(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("plugin")
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


class Docker:
    """`reflinkd serve` as a service, and what dockerd says to it."""

    def __init__(self, store):
        self.store = store
        self.socket = Path("/run") / f"{store.root.name}.sock"
        self.log = Path("/run") / f"{store.root.name}.log"

    def __enter__(self):
        with open(self.log, "ab") as log:
            command = ["runcon", SERVICE, *self.store.command("serve", "--docker", self.socket)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        eventually(self.listens, "it listens")
        domain = Path(f"/proc/{self.process.pid}/attr/current").read_text().rstrip("\0\n")
        equal(domain, SERVICE, "the domain of reflinkd serve")
        self.ok("Init", Home="/var/lib/docker/plugins", Opts=[])
        return self

    def listens(self):
        expect(self.process.poll() is None, self.log.read_text())
        with contextlib.suppress(OSError):
            connection = Socket(self.socket)
            connection.connect()
            connection.close()
            return True

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)

    def call(self, name, body, query=""):
        connection = Socket(self.socket)
        connection.request("POST", f"/GraphDriver.{name}{query}", body)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return content

    def ask(self, name, **request):
        return json.loads(self.call(name, json.dumps(request)))

    def ok(self, name, **request):
        answer = self.ask(name, **request)
        expect(not answer.get("Err"), f"{name} {request}: {answer.get('Err')}")
        return answer

    def layer(self, key, parent, tar):
        """As dockerd makes a layer: it asks for no label."""
        self.ok("Create", ID=key, Parent=parent)
        query = urllib.parse.urlencode({"id": key, "parent": parent})
        answer = json.loads(self.call("ApplyDiff", tar, f"?{query}"))
        expect(not answer.get("Err"), f"ApplyDiff {key}: {answer.get('Err')}")

    def container(self, key, parent, files):
        """As dockerd makes a container: an init layer, into which it writes, and the container's own on it."""
        self.ok("CreateReadWrite", ID=f"{key}-init", Parent=parent, MountLabel=files)
        init = self.root(f"{key}-init", files)
        (init / ".dockerenv").touch()
        self.ok("CreateReadWrite", ID=key, Parent=f"{key}-init", MountLabel=files)
        return self.root(key, files)

    def root(self, key, files=""):
        return Path(self.ok("Get", ID=key, MountLabel=files)["Dir"])


def confined(tree, categories, script, *mounts):
    """Run a script in a container of this tree, confined as Docker does it. Its status, and what it says."""
    bundle = Path("/run/bundle")
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir()
    ok("crun", "spec", "-b", bundle)
    config = json.loads((bundle / "config.json").read_text())
    config["root"] = {"path": str(tree), "readonly": False}
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", script],
                          "selinuxLabel": PROCESS.format(categories)}
    config["linux"]["mountLabel"] = FILES.format(categories)
    config["mounts"] += [{"destination": to, "source": str(path), "type": "bind", "options": ["bind", "rw"]}
                         for path, to in mounts]
    (bundle / "config.json").write_text(json.dumps(config))
    # A pipe of ours would be denied to it.
    said = bundle / "said"
    said.touch()
    ok("chcon", FILES.format(categories), said)
    with open(said, "r+") as output:
        done = ask("crun", "run", "-b", bundle, f"confined-{categories.replace(',', '-')}", stdout=output, stderr=output)
    return done.returncode, said.read_text().rstrip("\n\0")


def says(*run):
    """What a confined script says, which has to succeed."""
    status, said = confined(*run)
    expect(status == 0, f"status {status}: {said}")
    return said


def kind(text):
    """Of a label: all but the user, whom a new file has from who makes it."""
    return text.split(":", 2)[2]


def attributes_of(tar):
    """The names of the extended attributes in a tar."""
    with tarfile.open(fileobj=io.BytesIO(tar), encoding="utf-8", errors="surrogateescape") as opened:
        return {name for member in opened for name in member.pax_headers if "xattr" in name or "selinux" in name}


class Lane:
    def __init__(self, audit):
        self.audit = audit

    def it_enforces(self):
        equal(ENFORCE.read_text(), "1", "enforce")
        equal(Path("/proc/self/attr/current").read_text().rstrip("\0\n"),
              "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023", "this domain")
        equal(label(PROGRAM), "system_u:object_r:bin_t:s0", "the program's label")

    def what_is_denied_is_counted(self):
        """Without this, to find no denial would mean nothing."""
        directory = Path("/scratch/control")
        directory.mkdir()
        shutil.copy("/usr/bin/busybox", directory)
        (directory / "said").touch()
        (directory / "other").touch()
        ok("chcon", "-R", FILES.format(ONE), directory)
        ok("chcon", FILES.format(OTHER), directory / "other")
        command = ["runcon", PROCESS.format(ONE), directory / "busybox", "cat", "other"]
        with self.audit.denying(r"denied  { read } .*container_t:s0:c1,c2 .*container_file_t:s0:c3,c4"):
            with open(directory / "said", "w") as said:
                status = ask(*command, cwd=directory, stdout=said, stderr=said).returncode
        expect(status != 0 and "Permission denied" in (directory / "said").read_text(), "it is denied")
        # A case in which something is denied fails.
        def denied():
            with open(directory / "said", "w") as said:
                ask(*command, cwd=directory, stdout=said, stderr=said)
        try:
            self.audit.watched(denied)()
        except cases.Failed as error:
            expect("1 denials" in str(error), str(error))
        else:
            raise cases.Failed("a case passes in which something is denied")


class Ground:
    """The cases on one filesystem."""

    def __init__(self, kind, audit):
        self.kind, self.audit = kind, audit
        self.store = Store(place(kind) / "store", PROGRAM)

    def the_command_line_s_verbs(self):
        store = self.store
        store.ok("init")
        archive = Path("/scratch/app.tar")
        images.archive(archive, "app", images.LAYERS, ["/bin/sh"])
        store.ok("load", "-q", archive)
        store.ok("create", "--image", "app", "c")
        tree = store.tree("c")
        equal({kind(text) for text in labels(store.root)}, {"var_lib_t:s0"}, "labels, which are the directory's")
        (tree / "etc/new").write_text("new\n")
        (tree / "etc/motd").unlink()
        equal({row["path"]: row["change"] for row in store.rows("diff", "c") if row["change"] != "changed"},
              {"/etc/new": "added", "/etc/motd": "deleted"}, "diff")
        store.ok("ps", "-s")
        store.ok("df", "-v")
        store.ok("snapshot", "c", "one")
        store.ok("clone", "c", "d")
        equal((store.tree("d") / "etc/new").read_text(), "new\n", "in the clone")
        store.ok("commit", "c", "written")
        store.ok("create", "--image", "written", "e")
        equal(images.differences(images.observe(store.tree("e")), images.observe(tree)), [], "what was committed")
        store.ok("create", "--image", "app", "--read-only", "view")
        equal((store.tree("view") / "etc/motd").read_text(), "welcome again\n", "in the view")
        (tree / "etc/new").write_text("newer\n")
        store.ok("rollback", "c", "one")
        equal((store.tree("c") / "etc/new").read_text(), "new\n", "after the rollback")
        store.ok("reset", "d")
        store.ok("bundle", "c", f"/run/bundle-{self.kind}", "--", "/bin/sh")
        for verb in ("export", "save"):
            out = Path(f"/scratch/{verb}.tar")
            store.ok(verb, "-o", out, {"export": "c", "save": "written"}[verb])
        equal(store.ok("inspect", "c")[:1], "[", "inspect")

    def labels_are_in_no_layer(self):
        store = self.store
        names = attributes_of(Path("/scratch/export.tar").read_bytes())
        expect("SCHILY.xattr.user.note" in names, f"attributes are: {names}")
        equal([name for name in names if "selinux" in name.lower()], [], "in an export")
        for _, content in images.saved("/scratch/save.tar"):
            equal([name for name in attributes_of(content) if "selinux" in name.lower()], [], "in a layer")
        # Nor is another label a change.
        store.ok("create", "--image", "app", "relabelled")
        ok("chcon", "-R", FILES.format(ONE), store.tree("relabelled"))
        equal(store.rows("diff", "relabelled"), [], "the changes of a tree that has another label only")
        store.ok("commit", "relabelled", "same")
        store.ok("clone", "relabelled", "copy")
        equal(labels(store.tree("copy")), {FILES.format(ONE)}, "a clone's labels")
        store.ok("snapshot", "relabelled", "s")
        store.ok("rollback", "relabelled", "s")
        equal(labels(store.tree("relabelled")), {FILES.format(ONE)}, "labels after a rollback")

    def cp_takes_no_label_along(self):
        """As docker cp and podman cp: what is copied has the label of where it is."""
        store = self.store
        outside = Path(f"/scratch/cp-{self.kind}")
        (outside / "d").mkdir(parents=True)
        (outside / "d/f").write_text("x")
        (outside / "d/l").symlink_to("f")
        ok("chcon", "-R", "-h", "system_u:object_r:etc_t:s0", outside)
        tree = store.tree("relabelled")
        store.ok("cp", outside / "d", "relabelled:/srv/")
        found = {kind(text) for text in labels(tree / "srv/d")}
        equal(found, {"container_file_t:s0"}, "labels of what was copied in")
        store.ok("cp", "relabelled:/bin", outside / "out")
        equal({kind(text) for text in labels(outside / "out")}, {"etc_t:s0"}, "labels of what was copied out")
        said = says(tree, ONE, "cat /srv/d/l; echo more >> /srv/d/f; cat /srv/d/f")
        equal(said, "xxmore", "what a confined container reads and writes of it")

    def nothing_is_left(self):
        store = self.store
        store.ok("rm", *[row["name"] for row in store.rows("ps")])
        store.ok("rmi", *{row["repository"] for row in store.rows("images")})
        store.ok("gc")
        equal(store.ok("gc", "-n"), "nothing to remove", "debris")
        equal(store.rows("layers"), [], "layers")

    def dockers_containers_have_the_label_that_is_asked_for(self):
        base, second = (images.tar_of(layer) for layer in images.LAYERS[:2])
        with Docker(self.store) as docker:
            docker.layer("base", "", base)
            docker.layer("second", "base", second)
            for key in ("base", "second"):
                equal(labels(docker.root(key)), {LAYER}, f"labels of the layer {key}")
            self.one = docker.container("one", "second", FILES.format(ONE))
            self.other = docker.container("other", "second", FILES.format(OTHER))
            equal({kind(text) for text in labels(self.other)}, {f"container_file_t:s0:{OTHER}", "container_file_t:s0"}, "labels")
            equal(kind(label(self.other / ".dockerenv")), "container_file_t:s0", "the label of what dockerd wrote")
            for key in ("base", "second"):
                equal(labels(docker.root(key)), {LAYER}, f"labels of the layer {key}, once it has containers")
            for key in ("one", "other"):
                equal(docker.ok("Changes", ID=key, Parent=f"{key}-init").get("Changes") or [], [], f"changes of {key}")
            (self.one / "srv/written").write_text("by the administrator\n")
            # A label that doesn't fit, and none, as with --security-opt label=disable.
            said = docker.ask("Get", ID="one", MountLabel=FILES.format(OTHER))["Err"]
            expect("and not" in said and FILES.format(ONE) in said, said)
            docker.root("one")
            docker.ok("CreateReadWrite", ID="unlabelled", Parent="second")
            equal(labels(docker.root("unlabelled")), {LAYER}, "labels where none was asked for")
            docker.ok("Remove", ID="unlabelled")

    def containers_read_and_write_their_own(self):
        said = says(self.one, ONE, "cat /opt/old/new; echo mine > /srv/own; mkdir /opt/d; echo deep > /opt/d/f; mv /opt/d /opt/e;"
                                   "ln -s e /opt/l; cat /opt/l/f; rm /etc/zero; chmod 600 /srv/own; echo more >> /.dockerenv;"
                                   "cat /.dockerenv /srv/written /proc/self/attr/current")
        equal(said.split("\n"), ["the only one", "deep", "more", "by the administrator", PROCESS.format(ONE)], "what it says")
        equal(kind(label(self.one / "opt/e/f")), f"container_file_t:s0:{ONE}", "the label of what it wrote")
        equal(says(self.other, OTHER, "cat /opt/old/new"), "the only one", "what the other says")

    def containers_are_denied_anothers(self):
        given = self.one / "srv/own"
        for script in ("cat /given", "echo x > /given"):
            with self.audit.denying(r"denied .*container_t:s0:c3,c4 .*container_file_t:s0:c1,c2"):
                self._denied(self.other, OTHER, script, (given, "/given"))
        equal(given.read_text(), "mine\n", "the file of the one")
        # Of directories that are mounted the policy says nothing.
        self._denied(self.other, OTHER, "ls /mnt", (self.one, "/mnt"))
        # By the same way it reaches its own: it is the label that keeps the other out.
        equal(says(self.one, ONE, "cat /given; ls /mnt/opt/e", (given, "/given"), (self.one, "/mnt")), "mine\nf", "by the same way")

    def containers_are_denied_the_store(self):
        with self.audit.denying(r"denied .*container_t:s0:c1,c2 .*var_lib_t"):
            self._denied(self.one, ONE, "cat /given", (self.store.root / "store.json", "/given"))
        self._denied(self.one, ONE, "ls /mnt", (self.store.root, "/mnt"))

    def _denied(self, *run):
        status, said = confined(*run)
        expect(status != 0 and "Permission denied" in said, f"{run}: {status} {said}")

    def containers_only_read_layers(self):
        with Docker(self.store) as docker:
            layer = docker.root("base")
        equal(says(self.one, ONE, "cat /mnt/etc/motd", (layer, "/mnt")), "welcome", "a layer's file")
        script = "echo x > /mnt/etc/motd"
        if self.kind == "btrfs":
            # A read-only subvolume: the kernel doesn't ask the policy.
            status, said = confined(self.one, ONE, script, (layer, "/mnt"))
            expect(status != 0 and "Read-only file system" in said, f"{status} {said}")
        else:
            with self.audit.denying(r"denied .*container_t:s0:c1,c2 .*container_ro_file_t:s0"):
                self._denied(self.one, ONE, script, (layer, "/mnt"))

    def restorecon_leaves_containers_alone_if_told_to(self):
        """As docs/docker.md has it: the rule is what semanage writes."""
        command = ["restorecon", "-R", "-n", "-v", self.one]
        expect("Would relabel" in ok(*command), "without the rule it labels a container's files anew")
        rules = Path("/etc/selinux/default/contexts/files/file_contexts.local")
        rules.write_text(f"{self.store.root}/.*    <<none>>\n")
        try:
            equal(ok(*command), "", "what restorecon would do")
        finally:
            rules.unlink()

    def a_commit_has_the_label_of_layers(self):
        with Docker(self.store) as docker:
            changed = {change["Path"] for change in docker.ok("Changes", ID="one", Parent="one-init")["Changes"]}
            wanted = {"/srv", "/srv/own", "/srv/written", "/opt", "/opt/e", "/opt/e/f", "/opt/l", "/etc", "/etc/zero",
                      "/.dockerenv"}
            # What was mounted on was made by the runtime.
            equal(changed - {"/given", "/mnt"}, wanted, "changes")
            tar = docker.call("Diff", json.dumps({"ID": "one", "Parent": "one-init"}))
            equal([name for name in attributes_of(tar) if "selinux" in name.lower()], [], "attributes in the diff")
            docker.layer("third", "second", tar)
            equal(labels(docker.root("third")), {LAYER}, "labels of the new layer")
            # Written by a container, committed, and another's to read.
            tree = docker.container("third-container", "third", FILES.format(OTHER))
            equal(says(tree, OTHER, "cat /srv/own"), "mine", "what the third says")
            equal(kind(label(self.one / "srv/own")), f"container_file_t:s0:{ONE}", "the label of what was committed")
            for key in ("third-container", "third-container-init", "one", "one-init", "other", "other-init", "third",
                        "second", "base"):
                docker.ok("Remove", ID=key)
        self.nothing_is_left_of_docker()

    def nothing_is_left_of_docker(self):
        self.store.ok("gc")
        equal(self.store.rows("layers"), [], "layers")


def a_pool_has_the_label_of_where_it_is():
    directory = Path("/scratch/lib")
    directory.mkdir()
    ok("chcon", "system_u:object_r:var_lib_t:s0", directory)
    store = Store(directory / "pool", PROGRAM)
    store.ok("init", "--pool-fs", "btrfs", "--pool-size", "300MB")
    store.ok("load", "-q", "/scratch/app.tar")
    store.ok("create", "--image", "app", "c")
    equal({kind(text) for text in labels(store.root)}, {"var_lib_t:s0"}, "labels")
    store.ok("destroy", "--yes")


def main():
    if sys.argv[1:] != ["enforced"]:
        prepare()
    audit = Audit()
    ENFORCE.write_text("1")
    lane = Lane(audit)
    listed = [("it_enforces", lane.it_enforces), ("what_is_denied_is_counted", lane.what_is_denied_is_counted)]
    for kind in KINDS:
        ground = Ground(kind, audit)
        names = [name for name in vars(Ground) if not name.startswith("_") and name != "nothing_is_left_of_docker"]
        listed += [(f"{kind}::{name}", getattr(ground, name)) for name in names]
    listed.append(("a_pool_has_the_label_of_where_it_is", a_pool_has_the_label_of_where_it_is))
    return cases.run([(name, audit.watched(case)) for name, case in listed])


if __name__ == "__main__":
    sys.exit(main())
