"""Many clients of one dockerd that build, load, run, commit and remove at once, and remember what was promised to them."""

import random
import subprocess
import threading

import images
from basics import RUN

# The longest that one command may take: dockerd repeats what a broken connection lost after 1, 2, 4 and 8 s.
PATIENCE = 120
# A container writes its name once, and says it each time it is started.
SAY = "[ -e /srv/$0 ] || { echo $0 >/srv/.new && mv /srv/.new /srv/$0; }; cat /srv/$0"
DOCKERFILE = "FROM base:1\nCOPY content /srv/content\nRUN cat /srv/content /bin/busybox >/srv/twice && rm /opt/kept/four\n"
# Of each, no more than these are kept: the others are removed.
MOST = 4


class Worker(threading.Thread):
    """One client. `containers` and `images` have what was promised: names, and names with IDs."""

    def __init__(self, docker, work, number, seed, stop):
        super().__init__(daemon=True)
        self.docker, self.number, self.stop = docker, number, stop
        self.work = work / str(number)
        self.work.mkdir(parents=True)
        self.random = random.Random(f"{seed} {number}")
        self.containers, self.images, self.count = {}, {}, 0
        self.done, self.failed, self.problem = 0, 0, None

    def run(self):
        try:
            while not self.stop.is_set():
                self.step()
        except Exception as problem:  # noqa: BLE001: told by who waits for this thread
            self.problem = problem

    def step(self):
        steps = [self.build, self.load, self.create, self.create, self.commit]
        if len(self.containers) > MOST:
            steps = [self.remove_container]
        elif len(self.images) > MOST:
            steps = [self.remove_image]
        self.count += 1
        self.random.choice(steps)(f"w{self.number}-{self.count}")

    def ask(self, *arguments):
        """What a command printed; `None` if it failed, as it may."""
        try:
            done = self.docker.client(*arguments, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"docker {' '.join(map(str, arguments))}: no answer in {PATIENCE} s") from None
        if done.returncode:
            self.failed += 1
            return None
        self.done += 1
        return done.stdout.decode().strip()

    def content(self):
        return self.random.randbytes(self.random.choice([10, 100_000, 3_000_000]))

    def build(self, name):
        (self.work / "Dockerfile").write_text(DOCKERFILE)
        (self.work / "content").write_bytes(self.content())
        if self.ask("build", "-q", "--network", "none", "--force-rm", "--ulimit", "nofile=1024:1024", "--ulimit",
                    "nproc=1000:1000", "-t", name, self.work) is not None:
            self.images[name] = None

    def load(self, name):
        layers = [images.base_layer(), [images.file("srv/content", self.content()), images.whiteout("opt/kept/four")]]
        image, _ = images.archive(self.work / "image.tar", name, layers, ["true"])
        if self.ask("load", "-q", "-i", self.work / "image.tar") is not None:
            self.images[name] = image

    def create(self, name):
        image = self.random.choice(["base:1", *self.images])
        how = self.random.choice([["create"], ["run"]])
        if self.ask(*how, "--name", name, *RUN, image, "sh", "-c", SAY, name) is not None:
            self.containers[name] = how

    def commit(self, name):
        if self.containers and (image := self.ask("commit", self.random.choice([*self.containers]), name)) is not None:
            self.images[name] = image

    def remove_container(self, _):
        name = self.random.choice([*self.containers])
        del self.containers[name]
        self.ask("rm", "-f", name)

    def remove_image(self, _):
        name = self.random.choice([*self.images])
        del self.images[name]
        self.ask("rmi", "-f", name)


class Mix:
    """Workers that work until this is left."""

    def __init__(self, docker, work, workers, seed):
        self.stop = threading.Event()
        self.workers = [Worker(docker, work, number, seed, self.stop) for number in range(workers)]

    def __enter__(self):
        for worker in self.workers:
            worker.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for worker in self.workers:
            worker.join(2 * PATIENCE)

    def check(self):
        """Each one worked until it was told to stop."""
        for worker in self.workers:
            if worker.problem:
                raise worker.problem
            if worker.is_alive():
                raise RuntimeError(f"worker {worker.number} doesn't end")

    def promised(self):
        containers = {name for worker in self.workers for name in worker.containers}
        return containers, {name: image for worker in self.workers for name, image in worker.images.items()}

    def counts(self):
        return sum(worker.done for worker in self.workers), sum(worker.failed for worker in self.workers)
