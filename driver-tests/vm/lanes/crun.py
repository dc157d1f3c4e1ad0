#!/usr/bin/env python3
"""What `reflinkd bundle` writes, run by crun where there are cgroups of version 2 only, from stores on Btrfs and XFS."""

import contextlib
import json
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), "/lane/driver-tests/docker"]

import cases
import images
from cases import Store, ask, equal, eventually, expect, fails, ok

CGROUPS = Path("/sys/fs/cgroup")
MIB = 1 << 20


class Ground:
    """A store on a filesystem, with an image that has a busybox."""

    def __init__(self, kind):
        self.kind = kind
        self.mount = Path("/scratch") / kind
        self.bundles = Path("/scratch/bundles")
        self.bundles.mkdir(exist_ok=True)

    def prepare(self):
        cases.filesystem(self.kind, self.mount)
        self.store = Store(self.mount / "store")
        self.store.ok("init")
        if self.kind == "btrfs":
            self.store.ok("quota", "enable", "--simple", "--yes")
        archive = Path("/scratch/app.tar")
        images.archive(archive, "app", [images.base_layer()], ["/bin/sh"])
        self.store.ok("load", "-q", archive)

    def bundle(self, name, script, *options, edit=None):
        """A bundle of a container that runs `script`; `edit` may change its configuration, as an administrator does."""
        directory = self.bundles / f"{self.kind}-{name}-{len(os.listdir(self.bundles))}"
        self.store.ok("bundle", *options, name, directory, "--", "/bin/sh", "-c", script)
        path = directory / "config.json"
        config = json.loads(path.read_text())
        if edit:
            edit(config)
            path.write_text(json.dumps(config))
        return directory

    def run(self, name, script, *options, edit=None):
        """What a script says that is run to its end in a container."""
        directory = self.bundle(name, script, *options, edit=edit)
        return ok("crun", "run", "-b", directory, f"{self.kind}-{name}")

    @contextlib.contextmanager
    def running(self, name, script, *options, edit=None):
        """A container that runs on its own, until the end of the block; what crun calls it."""
        directory = self.bundle(name, script, *options, edit=edit)
        runs = f"{self.kind}-{name}"
        with open(directory / "said", "wb") as said:
            ok("crun", "run", "-d", "-b", directory, runs, stdout=said, stderr=said)
        try:
            yield runs
        finally:
            ok("crun", "delete", "--force", runs)


def state(runs):
    return json.loads(ok("crun", "state", runs))


def cgroup(runs):
    """Where a container's processes are."""
    line, = Path(f"/proc/{state(runs)['pid']}/cgroup").read_text().splitlines()
    expect(line.startswith("0::/"), f"a cgroup of version 2: {line}")
    return CGROUPS / line.removeprefix("0::/")


def only_cgroups_of_version_2_are_there():
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    equal([mount for mount in mounts if mount[1].startswith("cgroup")], [[str(CGROUPS), "cgroup2"]], "mounted")
    version_1 = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if not line.startswith("0::")]
    equal(version_1, [], "hierarchies of version 1")
    controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    expect({"memory", "pids", "cpu"} <= set(controllers), f"controllers: {controllers}")


def an_image_s_configuration_is_what_runs(ground):
    store = ground.store
    store.ok("create", "--image", "app", "made")
    changes = ["USER user", "WORKDIR /srv", "ENV GREETING=hello", "VOLUME /opt/kept", "LABEL tier=web"]
    store.ok("commit", *[word for change in changes for word in ("--change", change)], "made", "configured")
    store.ok("create", "--image", "configured", "user")
    said = ground.run("user", "id -u; id -g; pwd; echo $GREETING $MORE; cat /opt/kept/four; echo; hostname", "-e", "MORE=two")
    equal(said.split("\n")[:-1], ["1000", "1000", "/srv", "hello two", "4"], "what it says")
    ident = json.loads(store.ok("inspect", "user"))[0]["id"]
    equal(said.split("\n")[-1], ident[:12], "its host's name")
    config = json.loads((ground.bundle("user", "true") / "config.json").read_text())
    equal(config["annotations"]["tier"], "web", "the image's label")
    store.ok("rm", "made", "user")
    store.ok("rmi", "configured")


def it_starts_is_entered_killed_and_deleted(ground):
    store = ground.store
    store.ok("create", "--image", "app", "entered")
    tree = store.tree("entered")
    with ground.running("entered", "echo begun > /.new; mv /.new /begun; exec sleep 1000") as runs:
        eventually(lambda: (tree / "begun").exists(), "it begins")
        shown = state(runs)
        equal((shown["status"], shown["rootfs"]), ("running", str(tree)), "its state")
        where = cgroup(runs)
        expect(str(shown["pid"]) in (where / "cgroup.procs").read_text().split(), "its process is in its cgroup")
        said = ok("crun", "exec", runs, "/bin/sh", "-c", "cat /begun; echo > /entered; cat /proc/1/comm")
        equal(said, "begun\nsleep", "exec sees the container's files and processes")
        expect((tree / "entered").exists(), "what exec writes is in the tree")
        expect("cannot remove container entered: process" in store.fails("rm", "entered"), "it is not removed while it runs")
        ok("crun", "kill", runs, "KILL")
        eventually(lambda: state(runs)["status"] == "stopped", "it is stopped")
        ok("crun", "delete", runs)
        expect(fails("crun", "state", runs) and not where.exists(), "its cgroup is gone")
        # For what the block's end deletes.
        ok("crun", "run", "-d", "-b", ground.bundle("entered", "sleep 1000"), runs, stdout=None, stderr=None)
    equal(ok("crun", "list", "-q"), "", "what crun knows")
    store.ok("rm", "entered")
    expect(not tree.exists(), "its tree is gone")


def limits_are_the_cgroups(ground):
    def limit(config):
        config["linux"].setdefault("resources", {}).update(
            memory={"limit": 32 * MIB, "swap": 32 * MIB}, pids={"limit": 7}, cpu={"quota": 50000, "period": 100000})

    store = ground.store
    store.ok("create", "--image", "app", "limited")
    with ground.running("limited", "sleep 1000") as runs:
        found = [(cgroup(runs) / name).read_text().strip() for name in ("memory.max", "pids.max")]
        equal(found, ["max", "max"], "a bundle sets no limits of its own")
    with ground.running("limited", "sleep 1000", edit=limit) as runs:
        found = [(cgroup(runs) / name).read_text().strip() for name in ("memory.max", "pids.max", "cpu.max")]
        equal(found, [str(32 * MIB), "7", "50000 100000"], "an administrator's limits")
        status = ask("crun", "exec", runs, "/bin/sh", "-c", "exec dd if=/dev/zero of=/dev/null bs=64M count=1").returncode
        expect(status != 0, "no 64 MiB")
        killed = dict(line.split() for line in (cgroup(runs) / "memory.events").read_text().splitlines())["oom_kill"]
        expect(int(killed) > 0, f"by the kernel's hand: {status} {killed}")
        said = ask("crun", "exec", runs, "/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 9 & done").stderr
        expect("Resource temporarily unavailable" in said, f"no eighth process: {said}")
    store.ok("rm", "limited")


def devices_are_kept_out(ground):
    """With cgroups of version 2 the runtime has to make a BPF program of what the bundle says of devices."""
    store = ground.store
    store.ok("create", "--image", "app", "devices")
    number = os.lstat("/dev/vda").st_rdev
    node = f"/bin/busybox mknod /disk b {os.major(number)} {os.minor(number)}"
    said = ground.run("devices", f"{node}; dd if=/disk of=/dev/null count=1 2>&1; echo x > /dev/null && echo null")
    expect("can't open '/disk': Operation not permitted" in said and said.endswith("null"), said)
    with open(store.tree("devices") / "disk", "rb") as disk:
        equal(len(disk.read(512)), 512, "outside of it the node is the disk")
    store.ok("rm", "devices")


def what_it_wrote_is_its_diff_size_and_commit(ground):
    store = ground.store
    store.ok("create", "--image", "app", "writes")
    store.ok("ps", "-s")
    ground.run("writes", "dd if=/dev/urandom of=/srv/data bs=1M count=3 2>/dev/null; rm -r /opt/old; echo more >> /etc/motd; sync")
    changes = {row["path"]: row["change"] for row in store.rows("diff", "writes")}
    wanted = {"/etc/motd": "changed", "/opt/old": "deleted", "/srv/data": "added"}
    equal({path: changes.get(path) for path in wanted}, wanted, "diff")
    strangers = [path for path in changes if path.split("/")[1] not in ("etc", "opt", "srv", "dev", "proc", "sys", "run")]
    equal(strangers, [], "nothing else but what a runtime mounts on")
    row, = [row for row in store.rows("ps", "-s") if row["name"] == "writes"]
    # On XFS what it deleted of the image goes off.
    expect(3 * MIB - 65536 <= row["size"] < 4 * MIB, f"SIZE is {row['size']}")
    ok(*store.command("commit", "writes", "written"))
    store.ok("create", "--image", "written", "d")
    said = ground.run("d", "ls -l /srv/data | cat; cat /etc/motd; ls -d /opt/old 2>&1 || true")
    expect(str(3 * MIB) in said and "\nmore\n" in said and "No such file" in said, said)
    store.ok("reset", "writes")
    said = ground.run("writes", "cat /etc/motd; ls /opt/old; ls /srv")
    equal(said, "welcome\none\ntwo\nmine", "after a reset")
    store.ok("rm", "writes", "d")
    store.ok("rmi", "written")


def a_read_only_root_is_read_only(ground):
    store = ground.store
    store.ok("create", "--image", "app", "reads")
    store.ok("create", "--image", "app", "--read-only", "view")
    for name, options in (("reads", ["--read-only"]), ("view", [])):
        said = ground.run(name, "touch /new 2>&1; cat /etc/motd", *options)
        expect("Read-only file system" in said and said.endswith("welcome"), f"{name}: {said}")
    store.ok("rm", "reads", "view")


def the_host_s_network_is_there_if_asked_for(ground):
    store = ground.store
    store.ok("create", "--image", "app", "network")
    script = "readlink /proc/self/ns/net"
    host = os.readlink("/proc/self/ns/net")
    expect(ground.run("network", f"/bin/busybox {script}") != host, "a network of its own")
    equal(ground.run("network", f"/bin/busybox {script}", "--network", "host"), host, "the host's")
    store.ok("rm", "network")


def a_size_limit_holds_for_what_runs(ground):
    store = ground.store
    store.ok("create", "--image", "app", "--size-limit", "4MiB", "small")
    said = ground.run("small", "dd if=/dev/zero of=/srv/data bs=1M count=8 2>&1 || echo refused; sync")
    expect("refused" in said and ("quota" in said.lower() or "No space" in said), said)
    store.ok("rm", "small")


def nothing_is_left(ground):
    """Comes last: every case has removed its containers."""
    store = ground.store
    equal(store.rows("ps"), [], "containers")
    store.ok("rmi", "app")
    store.ok("gc")
    equal(store.ok("gc", "-n"), "nothing to remove", "debris")
    equal(store.rows("layers"), [], "layers")
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    equal([mount for mount in mounts if mount.startswith(f"{ground.mount}/")], [], "mounts")
    equal(ok("crun", "list", "-q"), "", "what crun knows")
    left = [path.name for path in CGROUPS.iterdir() if path.is_dir() and path.name.startswith(ground.kind)]
    equal(left, [], "cgroups")
    ok("umount", ground.mount)


CASES = [
    an_image_s_configuration_is_what_runs,
    it_starts_is_entered_killed_and_deleted,
    limits_are_the_cgroups,
    devices_are_kept_out,
    what_it_wrote_is_its_diff_size_and_commit,
    a_read_only_root_is_read_only,
    the_host_s_network_is_there_if_asked_for,
    a_size_limit_holds_for_what_runs,
    nothing_is_left,
]


def main():
    listed = [("only_cgroups_of_version_2_are_there", only_cgroups_of_version_2_are_there)]
    for kind in ("btrfs", "xfs"):
        ground = Ground(kind)
        listed.append((f"{kind}::a_store_is_made", ground.prepare))
        listed += [(f"{kind}::{case.__name__}", lambda case=case, ground=ground: case(ground)) for case in CASES]
    return cases.run(listed)


if __name__ == "__main__":
    sys.exit(main())
