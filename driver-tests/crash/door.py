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


class Door:
    """The server, while it is needed. A socket's path has to be short, so it is in a directory of its own below /run."""

    def __init__(self, binary, root, environment=None):
        self.command = [str(word) for word in (binary, "--root", root, "serve")]
        self.environment = environment

    def __enter__(self):
        with contextlib.ExitStack() as done:
            directory = tempfile.mkdtemp(prefix="rfd.", dir="/run")
            done.callback(shutil.rmtree, directory)
            path = f"{directory}/docker.sock"
            self.process = subprocess.Popen([*self.command, f"--docker={path}"], stdin=subprocess.DEVNULL,
                                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=self.environment,
                                            start_new_session=True)
            done.callback(self.end)
            self.connection = Connection(path)
            until = time.monotonic() + PATIENCE
            while True:
                with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                    self.connection.connect()
                    break
                if self.process.poll() is not None or time.monotonic() > until:
                    self.process.kill()
                    raise Failed(f"serve: {self.process.stderr.read().decode(errors='replace').strip()}")
                time.sleep(0.01)
            done.callback(self.connection.close)
            self.done = done.pop_all()
        return self

    def __exit__(self, *_):
        self.done.close()

    def end(self):
        self.process.terminate()
        try:
            self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

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
        self.post("/GraphDriver.ApplyDiff?" + urlencode({"id": key, "parent": parent}), tar)

    def container(self, key, parent):
        self.ask("CreateReadWrite", ID=key, Parent=parent)

    def root(self, key):
        return self.ask("Get", ID=key)["Dir"]

    def remove(self, key):
        self.ask("Remove", ID=key)

    def diff(self, key, parent):
        """The digest of a layer's tar."""
        return hashlib.sha256(self.post("/GraphDriver.Diff", json.dumps({"ID": key, "Parent": parent}))).hexdigest()
