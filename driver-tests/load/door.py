"""A client of `reflinkd serve`: what dockerd asks of the storage driver, over its socket."""

import contextlib
import hashlib
import http.client
import json
import shutil
import socket
import subprocess
import tempfile
import time
from urllib.parse import urlencode

# A server that doesn't answer by then has failed; a request takes no longer.
PATIENCE = 120


class Failed(Exception):
    """The server didn't start, or answered an error."""


class Connection(http.client.HTTPConnection):
    """HTTP over the unix socket PATH."""

    def __init__(self, path):
        super().__init__("localhost", timeout=PATIENCE)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self.path)


class Server:
    """`reflinkd serve` with Docker's door, and containerd's if `containerd` says where that one answers; what it says goes to
    the file `log`. A socket's path has to be short, so they are in a directory of their own below /run."""

    def __init__(self, binary, root, environment=None, containerd=None, log=None):
        self.directory = tempfile.mkdtemp(prefix="rfd.", dir="/run")
        self.docker, self.containerd = f"{self.directory}/docker.sock", f"{self.directory}/containerd.sock"
        self.command = [str(word) for word in (binary, "--root", root, "serve", f"--docker={self.docker}")]
        if containerd:
            self.command += [f"--containerd={self.containerd}", f"--containerd-address={containerd}"]
        self.environment, self.log, self.process = environment, log, None

    def start(self):
        with open(self.log, "ab") if self.log else contextlib.nullcontext(subprocess.PIPE) as said:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                            stderr=said, env=self.environment, start_new_session=True)
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), \
                    contextlib.closing(Connection(self.docker)) as trial:
                trial.connect()
                return
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise Failed(f"serve: {self.words()}")
            time.sleep(0.01)

    def words(self, whole=False):
        """The end of what it said, when it has ended; with a log at any time, or all of it."""
        if self.log:
            with open(self.log, encoding="utf-8", errors="replace") as said:
                return said.read()[0 if whole else -1000:].strip()
        return self.process.stderr.read().decode(errors="replace").strip()

    def stop(self):
        """Have it end, by force if it must be; its exit code."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
        return self.process.returncode

    def kill(self):
        self.process.kill()
        self.process.wait()

    def remove(self):
        """Take away its sockets' directory."""
        shutil.rmtree(self.directory, ignore_errors=True)


class Calls:
    """What dockerd asks, on a connection of its own to the socket PATH."""

    def __init__(self, path):
        self.connection = Connection(path)

    def close(self):
        self.connection.close()

    def post(self, path, body):
        """The body of the answer."""
        self.connection.request("POST", path, body)
        answer = self.connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            raise Failed(f"{path}: {answer.status}: {said[:500].decode(errors='replace').strip()}")
        return said

    def ask(self, call, **fields):
        return json.loads(self.post(f"/GraphDriver.{call}", json.dumps(fields)))

    def begin(self):
        """What dockerd says first."""
        self.ask("Init", Home="/nowhere", Opts=None, UIDMaps=None, GIDMaps=None)

    def layer(self, key, parent, tar):
        self.ask("Create", ID=key, Parent=parent)
        self.apply(key, parent, tar)

    def apply(self, key, parent, tar):
        self.post("/GraphDriver.ApplyDiff?" + urlencode({"id": key, "parent": parent}), tar)

    def container(self, key, parent):
        self.ask("CreateReadWrite", ID=key, Parent=parent)

    def root(self, key):
        return self.ask("Get", ID=key)["Dir"]

    def remove(self, key):
        self.ask("Remove", ID=key)

    def tar(self, key, parent):
        """A layer's tar."""
        return self.post("/GraphDriver.Diff", json.dumps({"ID": key, "Parent": parent}))

    def diff(self, key, parent):
        """The digest of a layer's tar."""
        return hashlib.sha256(self.tar(key, parent)).hexdigest()


class Door(Calls):
    """A server with one client, while it is needed."""

    def __init__(self, binary, root, environment=None):
        self.server = Server(binary, root, environment)
        super().__init__(self.server.docker)

    def __enter__(self):
        try:
            self.server.start()
        except BaseException:
            self.server.remove()
            raise
        return self

    def __exit__(self, *_):
        self.close()
        self.server.stop()
        self.server.remove()
