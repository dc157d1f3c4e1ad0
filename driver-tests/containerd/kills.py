"""containerd and the server killed again and again under load: what was promised is there afterwards, and of the rest nothing."""

import random
import subprocess
import threading
import time

import clients
import images
from host import Failed, expect, fresh

WORKERS = 4
# Of each worker's, no more images than these are kept: the others are removed.
MOST = 3
NAMESPACES = ("default", "second")


class Worker(threading.Thread):
    """One client. `promised` has the images that it was told are there, with their layers."""

    def __init__(self, lane, number, seed, stop):
        super().__init__(daemon=True)
        self.lane, self.number, self.stop = lane, number, stop
        self.namespace = NAMESPACES[number % len(NAMESPACES)]
        self.random = random.Random(f"{seed} {number}")
        self.work = fresh(lane.work / f"worker-{number}")
        self.promised, self.count, self.done, self.failed, self.problem = {}, 0, 0, 0, None

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
        except Exception as problem:  # noqa: BLE001: told by who waits for this thread
            self.problem = problem

    def ask(self, *arguments):
        """Whether a command succeeded: it may fail, but not hang."""
        try:
            done = self.lane.ctr.client(*arguments, namespace=self.namespace).returncode == 0
        except subprocess.TimeoutExpired:
            raise Failed(f"no answer to ctr {' '.join(map(str, arguments))}") from None
        self.done += done
        self.failed += not done
        if not done:
            # Most likely nobody is there for the moment.
            time.sleep(0.2)
        return done

    def step(self):
        self.count += 1
        name = f"w{self.number}-{self.count}"
        if len(self.promised) > MOST:
            return self.remove()
        return self.random.choice([self.load, self.once, self.container, self.container])(name)

    def load(self, name):
        content = self.random.randbytes(self.random.choice([10, 100_000, 3_000_000]))
        layers = [images.base_layer(), [images.file("srv/content", content), images.file("srv/name", name.encode()),
                                        images.whiteout("opt/kept/four")]]
        image = f"docker.io/local/{name}:1"
        images.archive(self.work / "image.tar", image, layers, ["/bin/sh"])
        if self.ask("images", "import", "--snapshotter", self.lane.ctr.snapshotter, self.work / "image.tar"):
            self.promised[image] = (name, layers)

    def once(self, name):
        if self.promised:
            image = self.random.choice([*self.promised])
            self.ask("run", "--rm", "--snapshotter", self.lane.ctr.snapshotter, image, name, "/bin/cat", "/srv/name")

    def container(self, name):
        """Run, written to, committed as a layer, and removed."""
        if not self.promised:
            return
        image = self.random.choice([*self.promised])
        if self.ask("run", "-d", "--null-io", "--snapshotter", self.lane.ctr.snapshotter, image, name, "/bin/sleep", "1000"):
            self.ask("tasks", "exec", "--exec-id", "e", name, "/bin/sh", "-c", "cat /bin/busybox >/srv/more; rm /etc/motd")
            self.ask("snapshots", "diff", "--keep", name)
        if self.random.random() < 0.8:
            self.ask("tasks", "rm", "-f", name)
            self.ask("containers", "rm", name)

    def remove(self):
        image = self.random.choice([*self.promised])
        del self.promised[image]
        self.ask("images", "rm", *self.random.choice([["--sync"], []]), image)


def kill_server(lane):
    lane.server.kill()
    time.sleep(random.choice([0, 0.3]))
    lane.server.start()


def kill_containerd(lane):
    lane.ctr.process.kill()
    lane.ctr.process.wait()
    lane.ctr.start()


def killed(lane):
    """Both by turns, at random moments."""
    stop = threading.Event()
    seed = lane.options.seed
    moments = random.Random(seed)
    workers = [Worker(lane, number, seed, stop) for number in range(WORKERS)]
    kinds = [kill_server, kill_containerd] if lane.server else [kill_containerd]
    for worker in workers:
        worker.start()
    try:
        # There is something to lose.
        done = time.monotonic() + 60
        while not all(worker.promised for worker in workers) and time.monotonic() < done:
            time.sleep(0.2)
        for number in range(lane.options.kills):
            time.sleep(moments.uniform(0.3, 4))
            kinds[number % len(kinds)](lane)
            if problem := next((worker.problem for worker in workers if worker.problem), None):
                raise problem
    finally:
        stop.set()
        for worker in workers:
            worker.join(300)
    for worker in workers:
        if worker.problem or worker.is_alive():
            raise Failed(f"worker {worker.number}: {worker.problem or 'does not end'}")
    clients.answers(lane)
    lane.promised = {(worker.namespace, image): what for worker in workers for image, what in worker.promised.items()}
    done, failed = sum(worker.done for worker in workers), sum(worker.failed for worker in workers)
    # It was under load, and the kills were felt.
    if done < lane.options.kills or not failed or not lane.promised:
        raise Failed(f"that was no load: {done} commands done, {failed} failed, {len(lane.promised)} promises")
    return f"seed {seed}: {lane.options.kills} kills; {done} commands done, {failed} failed; {len(lane.promised)} images promised"


def kept(lane):
    """Every image that was promised has its tree, and runs."""
    for (namespace, image), (name, layers) in lane.promised.items():
        expect(clients.once(lane, image, "last-of-all", "/bin/cat", "/srv/name", namespace=namespace), name,
               f"what a container of {image} prints")
        chain = clients.chain_ids([images.digest(images.tar_of(layer)) for layer in layers])
        clients.as_layers_say(lane, chain[-1], layers, namespace)
    return f"{len(lane.promised)} images run, and have their trees"


def removed(lane):
    """All goes that containerd knows; its collector finds the rest when it next looks."""
    for namespace in NAMESPACES:
        for name in lane.ctr("tasks", "ls", "-q", namespace=namespace).split():
            lane.ctr.client("tasks", "rm", "-f", name, namespace=namespace)
        for name in lane.ctr("containers", "ls", "-q", namespace=namespace).split():
            lane.ctr("containers", "rm", name, namespace=namespace)
        for lease in lane.ctr("leases", "ls", "-q", namespace=namespace).split():
            lane.ctr("leases", "rm", lease, namespace=namespace)
        if there := lane.ctr("images", "ls", "-q", namespace=namespace).split():
            lane.ctr("images", "rm", *there, namespace=namespace)
        # The layers that were to be kept.
        if there := lane.ctr("content", "ls", "-q", namespace=namespace).split():
            lane.ctr("content", "rm", *there, namespace=namespace)
    # It looks at a snapshotter of which it has lost something since it started.
    for namespace in NAMESPACES:
        clients.load(lane, clients.BASE, [images.base_layer(), [images.file("srv/last", namespace.encode())]], namespace=namespace)
        lane.ctr("images", "rm", "--sync", clients.BASE, namespace=namespace)
        expect(clients.names(lane, namespace), {}, f"the snapshots in {namespace}")
    return "containerd has no snapshot"


STEPS = [("killed", killed), ("kept", kept), ("removed", removed)]
