"""`reflinkd pull` from Debian's docker-registry and `push` to it: what skopeo pushed there is what is here, and the other way round.

One line for each step. The first that fails ends the test, with the end of the registry's log.
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
from pathlib import Path

# Filesystems and processes are those of the Docker test.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "docker"))
import clients as real_clients  # noqa: E402
import pushed as real_pushed  # noqa: E402
from host import Failed, Filesystem, end, expect, sh, tail  # noqa: E402

START_SECONDS = 60
USER, PASSWORD = "me", "pass:word"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
OCI = "application/vnd.oci.image"


def step(what):
    print(f"   {what}", flush=True)


class Layout:
    """An OCI layout with one image, or with one for each of several machines."""

    def __init__(self, directory, architectures, large):
        self.directory, self.ids, self.large = directory, {}, large
        (directory / "blobs/sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        manifests = [self.image(architecture) for architecture in architectures]
        if len(manifests) > 1:
            index = json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}).encode()
            manifests = [self.blob(index, f"{OCI}.index.v1+json")]
        self.top = manifests[0]["digest"]
        manifests[0]["annotations"] = {"org.opencontainers.image.ref.name": "it"}
        (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": manifests}))

    def blob(self, data, media_type):
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs/sha256" / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, architecture):
        layers, diff_ids = [], []
        for files in ({"etc/base": os.urandom(self.large)}, {"etc/middle": b"middle"}, {"etc/machine": architecture.encode()}):
            tar = io.BytesIO()
            with tarfile.open(fileobj=tar, mode="w") as archive:
                for name, data in files.items():
                    entry = tarfile.TarInfo(name)
                    entry.size = len(data)
                    archive.addfile(entry, io.BytesIO(data))
            diff_ids.append(f"sha256:{hashlib.sha256(tar.getvalue()).hexdigest()}")
            layers.append(self.blob(gzip.compress(tar.getvalue(), 1), f"{OCI}.layer.v1.tar+gzip"))
        config = {"architecture": architecture, "os": "linux", "config": {"Cmd": ["/bin/sh"]},
                  "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = self.blob(json.dumps(config).encode(), f"{OCI}.config.v1+json")
        self.ids[architecture] = config["digest"]
        manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": layers}
        described = self.blob(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
        return described | {"platform": {"os": "linux", "architecture": architecture}}


class Authority:
    """Keys and certificates: `ca.crt`, and `server.crt` and `server.key` for loopback."""

    def __init__(self, directory):
        directory.mkdir()
        self.ca, self.cert, self.key = directory / "ca.crt", directory / "server.crt", directory / "server.key"
        extensions = directory / "extensions"
        extensions.write_text("subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        sh("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority", "-keyout",
           directory / "ca.key", "-out", self.ca)
        sh("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1", "-keyout", self.key, "-out",
           directory / "csr")
        sh("openssl", "x509", "-req", "-days", "2", "-CAcreateserial", "-in", directory / "csr", "-out", self.cert, "-CA",
           self.ca, "-CAkey", directory / "ca.key", "-extfile", extensions)


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class TokenServer:
    """Signs for whoever has the password, over TLS; notes what it was asked for."""

    def __init__(self, authority):
        self.authority, self.scopes = authority, []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                good = self.headers.get("Authorization") == wanted
                body = outer.token(query) if good else {"details": "incorrect username or password"}
                body = json.dumps(body).encode()
                self.send_response(200 if good else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.cert, authority.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def token(self, query):
        scopes = query.get("scope", [])
        self.scopes += scopes
        access = [dict(zip(("type", "name", "actions"), scope.split(":"))) for scope in scopes]
        for one in access:
            one["actions"] = one["actions"].split(",")
        der = ssl.PEM_cert_to_DER_cert(self.authority.cert.read_text())
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        claims = {"iss": "the test", "sub": USER, "aud": "the registry", "exp": now + 300, "nbf": now - 10, "iat": now,
                  "jti": os.urandom(8).hex(), "access": access}
        signed = ".".join(base64url(json.dumps(part).encode()) for part in (head, claims))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", self.authority.key], input=signed.encode(),
                                   stdout=subprocess.PIPE, check=True).stdout
        return {"token": f"{signed}.{base64url(signature)}"}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Registry:
    """docker-registry on loopback. It asks for nothing, a password (`htpasswd`), or a token (`token`)."""

    def __init__(self, programs, directory, authority=None, auth=None):
        directory.mkdir()
        self.programs, self.directory, self.log = programs, directory, directory / "log"
        self.address, self.authority = free_address(), authority
        tls = f", tls: {{certificate: {authority.cert}, key: {authority.key}}}" if authority else ""
        self.config = (f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: {{rootdirectory: {directory / 'blobs'}}}}}\n"
                       f"http: {{addr: \"{self.address}\"{tls}}}\n{auth or ''}")

    def __enter__(self):
        file = self.directory / "config.yml"
        file.write_text(self.config)
        with open(self.log, "wb") as said:
            self.process = subprocess.Popen([self.programs / "usr/bin/docker-registry", "serve", file],
                                            stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        until = time.monotonic() + START_SECONDS
        host, port = self.address.split(":")
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=5).close()
                return self
            if self.process.poll() is not None or time.monotonic() > until:
                raise Failed(f"the registry doesn't answer: {tail(self.log)}")
            time.sleep(0.05)

    def __exit__(self, *_):
        end(self.process)


class Lane:
    """A store, a user's home, and a registry."""

    def __init__(self, options, fs, registry, password):
        self.options, self.fs, self.registry, self.password = options, fs, registry, password
        self.root, self.home = fs.mnt / "store", registry.directory / "home"
        # Bytes of the lowest layer of images: enough to come in many pieces.
        self.large = 2 << 20 if options.quick else 20 << 20
        self.home.mkdir()
        certs = self.home / "certs.d"
        self.certs = certs / registry.address
        self.certs.mkdir(parents=True)
        self.config = self.home / "config.toml"
        self.config.write_text(f"registry_certs = [\"{certs}\"]\n")
        kept = {"PATH": os.environ["PATH"], "HOME": str(self.home), "REFLINKD_NO_TEND": "1"}
        self.environment = {**kept, "XDG_RUNTIME_DIR": str(self.home / "run")}

    def believe(self, *addresses):
        """Have the authority's certificate where certificates of registries are."""
        for address in (self.registry.address, *addresses):
            directory = self.certs.with_name(address)
            directory.mkdir(exist_ok=True)
            shutil.copy(self.registry.authority.ca, directory / "ca.crt")

    def name(self, repository):
        return f"{self.registry.address}/{repository}"

    def reflinkd(self, *args):
        return sh(self.options.binary, "--root", self.root, "--config", self.config, *args, env=self.environment)

    def refused(self, *args):
        """What it says when it fails: one error and a hint."""
        try:
            self.reflinkd(*args)
        except Failed as problem:
            return str(problem)[str(problem).index("reflinkd: cannot pull"):]
        raise Failed(f"reflinkd {args} doesn't fail")

    def skopeo(self, command, *args, side=""):
        """skopeo with this registry as its only one, or as its `dest-`."""
        flags = [f"--{side}cert-dir={self.certs}"] if self.registry.authority else [f"--{side}tls-verify=false"]
        if self.password:
            flags.append(f"--{side}creds={USER}:{PASSWORD}")
        return sh("skopeo", "--insecure-policy", command, *flags, *args, env=self.environment)

    def push(self, directory, repository, *flags):
        self.skopeo("copy", *flags, f"oci:{directory}:it", f"docker://{self.name(repository)}", side="dest-")

    def image_id(self, name):
        return json.loads(self.reflinkd("inspect", "--type", "image", name))[0]["id"]

    def remove_images(self):
        # One with several names has as many rows.
        for image in {row["id"] for row in json.loads(self.reflinkd("images", "--format", "json"))}:
            self.reflinkd("rmi", "-f", image)

    def file(self, name, path):
        self.reflinkd("create", "--image", name, "--pull", "never", "looked-at")
        data = (Path(self.reflinkd("mount", "looked-at")) / path).read_bytes()
        self.reflinkd("rm", "looked-at")
        return data


def pulls(lane, work):
    """What is the same of all registries."""
    one, many = work / "one", work / "many"
    layout, index = Layout(one, [ARCHITECTURE], lane.large), Layout(many, ["s390x", ARCHITECTURE, "riscv64"], lane.large)
    lane.push(one, "team/one:v1")
    lane.push(many, "team/many:v1", "--multi-arch=all")
    lane.push(one, "team/docker:v1", "--format=v2s2")
    step("skopeo pushed an image, an index of three machines, and a Docker manifest")
    said = lane.reflinkd("pull", lane.name("team/one:v1"))
    expect(said.splitlines()[0], f"Digest: {layout.top}", "what is said of the image")
    expect(lane.image_id(lane.name("team/one:v1")), layout.ids[ARCHITECTURE], "the image's ID")
    expect(lane.file(lane.name("team/one:v1"), "etc/machine"), ARCHITECTURE.encode(), "a file of it")
    step("an image is pulled")
    expect(lane.reflinkd("pull", "-q", lane.name(f"team/one@{layout.top}")), lane.name(f"team/one@{layout.top}"), "the name")
    expect("Image is up to date" in lane.reflinkd("pull", lane.name("team/one:v1")), True, "that it is here")
    step("again, and by its digest")
    lane.reflinkd("pull", lane.name("team/many:v1"))
    expect(lane.image_id(lane.name("team/many:v1")), index.ids[ARCHITECTURE], "the ID of this machine's image")
    lane.reflinkd("pull", lane.name(f"team/many@{index.top}"))
    expect(lane.file(lane.name(f"team/many@{index.top}"), "etc/machine"), ARCHITECTURE.encode(), "a file of it")
    step("of an index this machine's, by tag and digest")
    lane.reflinkd("create", "--image", lane.name("team/docker:v1"), "web")
    lane.reflinkd("rm", "web")
    step("`create` pulls what is missing")
    unknown = lane.refused("pull", lane.name("team/one:v2"))
    expect("404 Not Found: \"manifest unknown\"" in unknown, True, unknown)
    step(f"of an unknown tag it says {unknown.splitlines()[0].split(': registry ')[-1]}")
    saved = work / "saved"
    lane.reflinkd("save", "--format", "oci-layout", "--compress", "gzip", "-o", saved, lane.name("team/one:v1"))
    lane.skopeo("copy", f"oci:{saved}", f"docker://{lane.name('team/back:v1')}", side="dest-")
    before = lane.image_id(lane.name("team/one:v1"))
    lane.remove_images()
    lane.reflinkd("pull", lane.name("team/back:v1"))
    expect(lane.image_id(lane.name("team/back:v1")), before, "the ID of what was pulled, saved, pushed and pulled")
    step("pulled, saved, pushed by skopeo, and pulled again: the same image")
    lane.remove_images()
    lane.reflinkd("gc")
    expect(sorted(os.listdir(lane.root / "snapshots")), [], "places")
    expect(sorted(os.listdir(lane.root / "blobs/sha256")), [], "blobs")
    lane.reflinkd("destroy", "--yes")
    step("nothing is left")


def pushes(lane, work):
    """What is the same of all registries: what is pushed there is what skopeo finds, and what is pulled again."""
    one, many = work / "push-one", work / "push-many"
    layout, index = Layout(one, [ARCHITECTURE], lane.large), Layout(many, ["s390x", ARCHITECTURE], lane.large)
    blobs = json.loads((one / "blobs/sha256" / layout.top.split(":")[1]).read_text())["layers"]
    lane.push(one, "push/one:v1")
    lane.push(many, "push/many:v1", "--multi-arch=all")
    storage = lane.registry.directory / "blobs/docker/registry/v2/repositories"

    def raw(name):
        return lane.skopeo("inspect", "--raw", f"docker://{lane.name(name)}")

    def digest(name):
        return json.loads(lane.skopeo("inspect", f"docker://{lane.name(name)}"))["Digest"]

    lane.reflinkd("pull", lane.name("push/one:v1"))
    said = lane.reflinkd("push", lane.name("push/one:v1"), lane.name("push/two:v2"))
    expect(said.split()[:3], ["v2:", "digest:", layout.top], "what is said of the push")
    expect(digest("push/two:v2"), layout.top, "the digest that skopeo finds")
    for blob in blobs:
        expect((storage / "push/two/_layers/sha256" / blob["digest"].split(":")[1] / "link").exists(), True, "a mounted layer")
    step("a pulled image is pushed with its digest")
    with Registry(lane.options.programs, work / "second") as second:
        elsewhere = f"{second.address}/other/one:v1"
        said = lane.reflinkd("push", lane.name("push/one:v1"), elsewhere)
        expect(said.split()[2], layout.top, "the digest in another registry")
        sh("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", f"docker://{elsewhere}", f"oci:{work / 'second-out'}:it",
           env=lane.environment)
    step("also to another registry, from where skopeo copies it")
    lane.reflinkd("create", "--image", lane.name("push/one:v1"), "changed")
    (Path(lane.reflinkd("mount", "changed")) / "etc/own").write_text("own")
    lane.reflinkd("commit", "changed", lane.name("push/own:v1"))
    lane.reflinkd("rm", "changed")
    lane.reflinkd("push", lane.name("push/own:v1"))
    own = lane.image_id(lane.name("push/own:v1"))
    pushed = json.loads(raw("push/own:v1"))
    expect([layer["digest"] for layer in pushed["layers"]][:3], [blob["digest"] for blob in blobs], "the base's layers")
    expect((pushed["config"]["digest"], len(pushed["layers"])), (own, 4), "configuration and layers")
    first = digest("push/own:v1")
    expect(lane.reflinkd("push", lane.name("push/own:v1")).split()[2], first, "the digest of another push")
    step("of a committed one the base's layers are what they were")
    lane.reflinkd("push", "--compress", "zstd", lane.name("push/own:v1"), lane.name("push/own:zstd"))
    lane.skopeo("copy", f"docker://{lane.name('push/own:zstd')}", f"oci:{work / 'zstd-out'}:it", side="src-")
    lane.remove_images()
    for tag in ("v1", "zstd"):
        lane.reflinkd("pull", lane.name(f"push/own:{tag}"))
        expect(lane.image_id(lane.name(f"push/own:{tag}")), own, "the ID of what is pulled again")
        expect(lane.file(lane.name(f"push/own:{tag}"), "etc/own"), b"own", "a file of it")
    step("pulled again, gzip and zstd, it is the same image; skopeo copies it")
    lane.reflinkd("pull", lane.name("push/many:v1"))
    lane.reflinkd("push", "--all-platforms", lane.name("push/many:v1"), lane.name("push/all:v1"))
    expect(f"sha256:{hashlib.sha256(raw('push/all:v1').encode()).hexdigest()}", index.top, "the digest of the index")
    lane.skopeo("copy", "--multi-arch=all", f"docker://{lane.name('push/all:v1')}", f"oci:{work / 'all-out'}:it", side="src-")
    step("an index goes with all its machines")
    lane.remove_images()
    lane.reflinkd("gc")
    expect(sorted(os.listdir(lane.root / "blobs/sha256")), [], "blobs")
    left = [path for path in storage.glob("**/_uploads/*")]
    expect(left, [], "uploads that were begun and not ended")
    lane.reflinkd("destroy", "--yes")
    step("nothing is left, here and there")


def plain(options, fs, work):
    with Registry(options.programs, work / "registry") as registry:
        lane = Lane(options, fs, registry, False)
        pulls(lane, work)
        pushes(lane, work)


def tls(options, fs, work):
    authority = Authority(work / "authority")
    with Registry(options.programs, work / "registry", authority) as registry:
        lane = Lane(options, fs, registry, False)
        said = lane.refused("pull", lane.name("team/one:v1"))
        expect("its certificate isn't to be believed" in said, True, said)
        step("a certificate of nobody is refused")
        lane.believe()
        pulls(lane, work)
        pushes(lane, work)


def logged_in(lane, work):
    said = lane.refused("pull", lane.name("team/one:v1"))
    expect("hint: docker login" in said, True, said)
    step(f"without a login: {said.splitlines()[0].split(': registry ')[-1]}")
    file = lane.home / "auth.json"
    lane.environment["REGISTRY_AUTH_FILE"] = str(file)
    file.write_text(json.dumps({"auths": {lane.registry.address: {"auth": base64.b64encode(b"me:wrong").decode()}}}))
    said = lane.refused("pull", lane.name("team/one:v1"))
    expect("401 Unauthorized" in said and "wrong" not in said, True, said)
    step(f"with a wrong one: {said.splitlines()[0].split(': registry ')[-1]}")
    file.unlink()
    sh("skopeo", "login", f"--authfile={file}", f"--cert-dir={lane.certs}", "-u", USER, "-p", PASSWORD, lane.registry.address,
       env=lane.environment)
    step("`skopeo login` wrote a right one")
    pulls(lane, work)
    pushes(lane, work)


def htpasswd(options, fs, work):
    authority = Authority(work / "authority")
    users = work / "htpasswd"
    users.write_text(sh("htpasswd", "-nbB", USER, PASSWORD) + "\n")
    auth = f"auth: {{htpasswd: {{realm: here, path: {users}}}}}\n"
    with Registry(options.programs, work / "registry", authority, auth) as registry:
        lane = Lane(options, fs, registry, True)
        lane.believe()
        logged_in(lane, work)


def token(options, fs, work):
    authority = Authority(work / "authority")
    server = TokenServer(authority)
    auth = (f"auth: {{token: {{realm: \"https://{server.address}/token\", service: the registry, issuer: the test, "
            f"rootcertbundle: {authority.ca}}}}}\n")
    try:
        with Registry(options.programs, work / "registry", authority, auth) as registry:
            lane = Lane(options, fs, registry, True)
            lane.believe(server.address)
            logged_in(lane, work)
            asked = sorted({scope for scope in server.scopes if not scope.endswith(":pull,push")})
            for scope in ("repository:team/one:pull", "repository:team/many:pull"):
                expect(scope in asked, True, f"{scope} among {asked}")
            step("tokens are asked for one repository, to pull")
            for scope in ("repository:push/two:pull,push", "repository:push/one:pull"):
                expect(scope in server.scopes, True, f"{scope} among {server.scopes}")
            step("and for another one to push, with the one to mount from")
    finally:
        server.close()


def clients(options, fs, work):
    def start(name):
        shutil.rmtree(work / name, ignore_errors=True)
        return Registry(options.programs, work / name)

    with start("registry") as registry:
        real_clients.clients(Lane(options, fs, registry, False), work, start, options.work.parent / "peers", options.quick)


def pushed(options, fs, work):
    with Registry(options.programs, work / "registry") as registry:
        real_pushed.pushed(Lane(options, fs, registry, False), work, options.work.parent / "peers", options.quick)


LANES = {lane.__name__: lane for lane in (plain, tls, htpasswd, token, clients, pushed)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--programs", type=Path, required=True)
    parser.add_argument("--lane", choices=LANES, help="one alone")
    parser.add_argument("--quick", action="store_true", help="a part of some lanes: what needs no dockerd")
    options = parser.parse_args()
    lanes = [options.lane] if options.lane else ["plain", "token", "clients", "pushed"] if options.quick else list(LANES)
    failed = []
    for lane in map(LANES.get, lanes):
        print(f"-- {lane.__name__}", flush=True)
        work = options.work / lane.__name__
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        started = time.monotonic()
        try:
            with Filesystem("btrfs", options.work) as fs:
                lane(options, fs, work)
            print(f"   passed in {time.monotonic() - started:.1f} s", flush=True)
        except (Failed, OSError, ValueError, LookupError, subprocess.SubprocessError) as problem:
            print(f"   FAILED: {problem}\n{tail(work / 'registry/log', 5)}", flush=True)
            failed.append(lane.__name__)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    print(f"{len(lanes) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
