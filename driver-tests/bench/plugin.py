"""`reflinkd serve` as the storage driver of a dockerd of its own, and what the process keeps in memory.

Beside dockerd's own calls the plugin is asked directly, over its socket, where Docker would put work of its own between.
"""

import contextlib
import http.client
import json
import os
import socket

import peers
from measure import Failed, Ran

MIB = 1 << 20
SPECS = "/etc/docker/plugins"


def serve(binary, root, at):
    """The command that answers Docker's graph-driver protocol on the socket AT."""
    return [binary, "--root", root, "serve", "--docker", at]


class Connection(http.client.HTTPConnection):
    """HTTP over the unix socket PATH."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)

    def post(self, path, document=None):
        """The response to a POST of DOCUMENT, not read yet."""
        self.request("POST", path, json.dumps(document or {}), {"Content-Type": "application/json"})
        response = self.getresponse()
        if response.status >= 300:
            raise Failed(f"POST {path}: {response.status}: {response.read(500).decode(errors='replace').strip()}")
        return response

    def ask(self, path, document=None):
        """What a POST answers, decoded."""
        answer = json.loads(self.post(path, document).read() or b"{}")
        if answer.get("Err"):
            raise Failed(f"POST {path}: {answer['Err']}")
        return answer


def connected(path):
    return contextlib.closing(Connection(path))


class Plugin(peers.Peer):
    """The process of this project, with a root of its own on the filesystem."""

    program = "reflinkd"

    def __init__(self, binary, directory):
        super().__init__("plugin", directory)
        self.binary, self.root = binary, os.path.join(self.directory, "root")

    def start(self):
        self.socket = f"{self.run}/plugin.sock"
        Ran([self.binary, "--root", self.root, "init"])
        self.spawn(serve(self.binary, self.root, self.socket), ["test", "-S", self.socket])

    def memory(self, field):
        """FIELD of the process in MB: VmRSS is what is resident now, VmHWM the most since `forget_peak`."""
        with open(f"/proc/{self.daemon.pid}/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields[field].split()[0]) * 1024 / 1e6

    def forget_peak(self):
        with open(f"/proc/{self.daemon.pid}/clear_refs", "w", encoding="ascii") as file:
            file.write("5")

    def diff_peak(self, size):
        """The most MB resident while Diff answers with a layer of one file of SIZE bytes."""
        below, layer = "bench-diff-parent", "bench-diff"
        with connected(self.socket) as plugin:
            plugin.ask("/GraphDriver.Create", {"ID": below})
            plugin.ask("/GraphDriver.CreateReadWrite", {"ID": layer, "Parent": below})
            tree = plugin.ask("/GraphDriver.Get", {"ID": layer})["Dir"]
            block = os.urandom(MIB)
            with open(os.path.join(tree, "data"), "wb", buffering=0) as file:
                for _ in range(size // MIB):
                    file.write(block)
            plugin.ask("/GraphDriver.Put", {"ID": layer})
            self.forget_peak()
            response, length = plugin.post("/GraphDriver.Diff", {"ID": layer, "Parent": below}), 0
            while chunk := response.read(MIB):
                length += len(chunk)
        if length < size:
            raise Failed(f"Diff of a file of {size} bytes answered {length} bytes")
        return self.memory("VmHWM")


class Ours(peers.Docker):
    """dockerd, with this project's plugin as its storage driver."""

    def __init__(self, binary, directory):
        # Another plugin of the machine may have the plain name.
        super().__init__(f"reflinkd{os.getpid()}", directory)
        self.name, self.plugin = "reflinkd", Plugin(binary, directory)
        self.spec = f"{SPECS}/{self.driver}.spec"
        self.flags = ("--experimental",)

    def start(self):
        self.plugin.__enter__()
        os.makedirs(SPECS, exist_ok=True)
        with open(self.spec, "w", encoding="utf-8") as file:
            file.write(f"unix://{self.plugin.socket}\n")
        super().start()

    def __exit__(self, *_):
        super().__exit__()
        # A plugin that didn't start has ended itself.
        if os.path.exists(self.spec):
            self.plugin.__exit__()
            os.remove(self.spec)


def create_many(daemon, image, count):
    """Containers made by dockerd's own API, without a process of the client for each."""
    with connected(daemon) as api:
        for number in range(count):
            api.ask(f"/v1.40/containers/create?name=many{number}", {"Image": image, "HostConfig": {"NetworkMode": "none"}})
