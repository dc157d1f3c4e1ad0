"""What containerd has for a differ: a content store in memory, and leases that hold nothing."""

import concurrent.futures
import hashlib
import threading
from collections import Counter

import grpc

import api

# As containerd sends them.
BLOCK = 32 << 10
WRITE = "services.content.v1.WriteContentRequest"


class Store(grpc.GenericRpcHandler):
    """Blobs by digest, and what is being written by its reference."""

    def __init__(self, socket):
        # How many users each blob has: two clients may have made the same.
        self.blobs, self.users, self.ingests, self.lock = {}, Counter(), {}, threading.Lock()
        self.calls = {path(call): handler for call, handler in (
            ("content.v1.Content/Info", unary(self.info, "content.v1.InfoRequest")),
            ("content.v1.Content/Update", unary(self.update, "content.v1.UpdateRequest")),
            ("content.v1.Content/Abort", unary(self.abort, "content.v1.AbortRequest")),
            ("content.v1.Content/Read", grpc.unary_stream_rpc_method_handler(
                self.read, of("content.v1.ReadContentRequest").FromString, bytes_of)),
            ("content.v1.Content/Write", grpc.stream_stream_rpc_method_handler(
                self.write, of("content.v1.WriteContentRequest").FromString, bytes_of)),
            ("leases.v1.Leases/Create", unary(self.lease, "leases.v1.CreateRequest")),
        )}
        self.server = grpc.server(concurrent.futures.ThreadPoolExecutor(16), handlers=[self])
        self.server.add_insecure_port(f"unix://{socket}")
        self.server.start()

    def service(self, details):
        return self.calls.get(details.method)

    def stop(self):
        self.server.stop(None).wait()

    def add(self, blob):
        digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        with self.lock:
            self.kept(digest, blob, {})
        return digest

    def kept(self, digest, blob, labels):
        """Whether it was there already."""
        there = digest in self.blobs
        self.blobs.setdefault(digest, (blob, labels))
        self.users[digest] += 1
        return there

    def drop(self, digest):
        """A blob has one user less; without any it goes."""
        with self.lock:
            self.users[digest] -= 1
            if not self.users[digest]:
                del self.users[digest], self.blobs[digest]

    def blob(self, digest, context):
        with self.lock:
            if digest in self.blobs:
                return self.blobs[digest]
        context.abort(grpc.StatusCode.NOT_FOUND, f"no content {digest}")

    def info(self, request, context):
        blob, labels = self.blob(request.digest, context)
        return of("content.v1.InfoResponse")(info={"digest": request.digest, "size": len(blob), "labels": labels})

    def update(self, request, context):
        _, labels = self.blob(request.info.digest, context)
        labels.update(request.info.labels)
        return of("content.v1.UpdateResponse")(info=request.info)

    def abort(self, request, context):
        with self.lock:
            if self.ingests.pop(request.ref, None) is not None:
                return None
        context.abort(grpc.StatusCode.NOT_FOUND, f"nothing is being written as {request.ref}")

    def read(self, request, context):
        blob, _ = self.blob(request.digest, context)
        for offset in range(0, len(blob), BLOCK):
            yield of("content.v1.ReadContentResponse")(offset=offset, data=blob[offset:offset + BLOCK])

    def lease(self, _request, _context):
        return of("leases.v1.CreateResponse")(lease={"id": "soak"})

    def write(self, requests, context):
        reference, stat, commit = "", *(api.value(WRITE, "action", word) for word in ("STAT", "COMMIT"))
        for request in requests:
            reference = reference or request.ref
            with self.lock:
                ingest = self.ingests.setdefault(reference, bytearray())
                if request.action != stat:
                    if request.offset == 0:
                        ingest.clear()
                    if request.offset != len(ingest):
                        context.abort(grpc.StatusCode.OUT_OF_RANGE, f"write at {request.offset} of {len(ingest)}")
                    ingest += request.data
                answer = of("content.v1.WriteContentResponse")(action=request.action, offset=len(ingest))
                if request.action == commit:
                    del self.ingests[reference]
                    answer.digest = f"sha256:{hashlib.sha256(ingest).hexdigest()}"
                    there = self.kept(answer.digest, bytes(ingest), dict(request.labels))
            if request.action == commit and there:
                context.abort(grpc.StatusCode.ALREADY_EXISTS, answer.digest)
            yield answer
            if request.action == commit:
                return


def of(name):
    return api.message(f"services.{name}")


def path(call):
    return f"/containerd.services.{call}"


def unary(answer, request):
    """The handler of a call that gives one message for one."""
    return grpc.unary_unary_rpc_method_handler(answer, of(request).FromString, bytes_of)


def bytes_of(message):
    """What goes over the wire; nothing of an empty message."""
    return b"" if message is None else message.SerializeToString()
