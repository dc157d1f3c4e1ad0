"""Sits between dockerd and the plugin, and knows which calls are on their way: whoever is killed can't tell any more.

Bytes are passed on as they come, each way; heads and lengths are only looked at. A connection that breaks on one side is
broken on the other.
"""

import contextlib
import itertools
import socket
import threading

BLOCK = 64 << 10


class Messages:
    """Follows HTTP/1.1 messages in a stream of bytes: says when one begins, and when one has ended."""

    def __init__(self, begun, ended):
        self.begun, self.ended = begun, ended
        self.head, self.left, self.chunked = bytearray(), 0, None

    def feed(self, data):
        data = memoryview(data)
        while data:
            data = self.skip(data) if self.left else self.line(data)

    def skip(self, data):
        """Content: of the whole message, or of one chunk with its line end."""
        taken = min(self.left, len(data))
        self.left -= taken
        if not self.left and not self.chunked:
            self.ended()
        return data[taken:]

    def line(self, data):
        """A byte of a head, or of a chunk's length."""
        self.head += data[:1]
        if self.chunked:
            if self.head.endswith(b"\r\n"):
                self.left = int(self.head.split(b";")[0], 16) + 2
                # The empty chunk is the last; nobody sends trailers.
                self.chunked = self.left > 2
                self.head.clear()
        elif self.head.endswith(b"\r\n\r\n"):
            first, *fields = self.head.decode("latin-1").split("\r\n")
            fields = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            self.chunked = "chunked" in fields.get("transfer-encoding", "")
            self.left = int(fields.get("content-length", 0))
            self.head.clear()
            self.begun(first)
            if not self.left and not self.chunked:
                self.ended()
        return data[1:]


class Proxy:
    """Listens at `at` and passes on to `to`. `in_flight` has the names of the calls that aren't answered."""

    def __init__(self, at, to):
        self.socket, self.to = at, to
        self.lock, self.calls, self.numbers = threading.Lock(), {}, itertools.count()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(at))
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def close(self):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def in_flight(self):
        with self.lock:
            return sorted(self.calls.values())

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.connect, args=[client], daemon=True).start()

    def connect(self, client):
        server, number = socket.socket(socket.AF_UNIX), next(self.numbers)
        try:
            server.connect(str(self.to))
        except OSError:
            client.close()
            return
        requests = Messages(lambda line: self.begin(number, line), lambda: None)
        answers = Messages(lambda _: None, lambda: self.finish(number))
        back = threading.Thread(target=pass_on, args=[server, client, answers], daemon=True)
        back.start()
        pass_on(client, server, requests)
        back.join()
        self.finish(number)
        client.close()
        server.close()

    def begin(self, number, line):
        name = line.split(" ")[1].partition("?")[0].rpartition(".")[2]
        with self.lock:
            self.calls[number] = name

    def finish(self, number):
        with self.lock:
            self.calls.pop(number, None)


def pass_on(source, sink, messages):
    with contextlib.suppress(OSError):
        while data := source.recv(BLOCK):
            messages.feed(data)
            sink.sendall(data)
    # Whichever side it was, the other one hears of it.
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
