"""Layers that break off while they are unpacked, by calls made by hand."""

import contextlib
import io
import json
import os
import socket
import tarfile

import images
from host import Failed, expect

POINTS = 20
BLOCK = 512
CHUNK = 64 << 10


class Connection:
    """One connection to the plugin, as dockerd has it."""

    def __init__(self, lane):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(lane.plugin.socket))

    def head(self, path, *fields):
        lines = [f"POST /GraphDriver.{path} HTTP/1.1", "Host: ", *fields, "Connection: close", "", ""]
        self.socket.sendall("\r\n".join(lines).encode())

    def chunks(self, content):
        for start in range(0, len(content), CHUNK):
            part = content[start:start + CHUNK]
            self.socket.sendall(b"%x\r\n" % len(part) + part + b"\r\n")

    def answer(self):
        """Status and body."""
        with contextlib.closing(self.socket):
            said = b"".join(iter(lambda: self.socket.recv(CHUNK), b""))
        head, _, body = said.partition(b"\r\n\r\n")
        if b"chunked" in head:
            body = joined(body)
        return int(head.split(b" ")[1]), body


def joined(chunks):
    content = b""
    while chunks:
        length, _, chunks = chunks.partition(b"\r\n")
        size = int(length, 16)
        content, chunks = content + chunks[:size], chunks[size + 2:]
    return content


def call(lane, name, **fields):
    body = json.dumps(fields).encode()
    connection = Connection(lane)
    connection.head(name, f"Content-Length: {len(body)}")
    connection.socket.sendall(body)
    status, said = connection.answer()
    if status != 200:
        raise Failed(f"{name} {fields}: {status} {said!r}")
    return said


def apply(lane, key, content, ends):
    """What the plugin answers; `None` if the connection is closed before it can."""
    connection = Connection(lane)
    connection.head(f"ApplyDiff?id={key}&parent=", "Transfer-Encoding: chunked")
    connection.chunks(content)
    if not ends:
        connection.socket.close()
        return None
    connection.socket.sendall(b"0\r\n\r\n")
    return connection.answer()


def layer():
    """A tar, and where it could end without an entry being cut."""
    content = images.tar_of([*images.LAYERS[0], *[images.file(f"opt/file{n}", os.urandom(50_000)) for n in range(40)]])
    with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8", errors="surrogateescape") as tar:
        members = tar.getmembers()
    last = members[-1].offset_data + -(-members[-1].size // BLOCK) * BLOCK
    return content, sorted({*(member.offset for member in members), *range(last, len(content), BLOCK)})


def points(lane, content, whole):
    """Cut points: (where, whether the stream ends there as if that were all)."""
    for number in range(POINTS):
        if number % 5 == 0:
            yield lane.random.choice(whole), True
        elif number % 2:
            yield lane.random.randrange(len(content)) // BLOCK * BLOCK, True
        else:
            yield lane.random.randrange(len(content)), False


def run(lane):
    content, whole = layer()
    lane.plugin.reflinkd("gc")
    refused = taken = 0
    for number, (cut, ends) in enumerate(points(lane, content, whole)):
        key = f"{number:064x}"
        call(lane, "Create", ID=key, Parent="")
        answer = apply(lane, key, content[:cut], ends)
        if answer and answer[0] == 200:
            if cut not in whole:
                raise Failed(f"a layer of {len(content)} bytes that ends after {cut} was taken: {answer[1]!r}")
            expect(call(lane, "Diff", ID=key, Parent=""), content[:cut], f"the tar of a layer that ends after {cut}")
            taken += 1
        else:
            if not answer:
                # dockerd would go on with what it hasn't sent yet.
                expect(apply(lane, key, content[cut:], True)[0], 500, f"the status of the rest of a layer that broke off at {cut}")
                call(lane, "Remove", ID=key)
                call(lane, "Create", ID=key, Parent="")
            expect(apply(lane, key, content, True)[0], 200, f"the status of the layer that broke off at {cut}, sent anew")
            expect(call(lane, "Diff", ID=key, Parent=""), content, f"the tar of the layer that broke off at {cut}")
            refused += 1
        call(lane, "Remove", ID=key)
    rows = json.loads(lane.plugin.reflinkd("gc", "--dry-run", "--format", "json"))
    # What was removed is still being taken apart.
    expect([row for row in rows if row["reason"] != "its tree was removed"], [], "what gc would remove")
    expect([path.name for path in (lane.plugin.root / "snapshots").iterdir()], [], "the directory of places")
    print(f"   {refused} layers that broke off were refused, and taken when sent anew; {taken} were whole by themselves", flush=True)
