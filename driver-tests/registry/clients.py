"""Real clients at the same registry: what Docker, podman, buildah and skopeo push is pulled here.

An image with all that a layer may hold (driver-tests/docker/images.py) is loaded into each client, built upon and committed there,
and pushed in every form that the client has. Pulled here, it must have the ID that its manifest says, and the tree that the client
itself has of it: names, modes, owners, times to the second, content, devices, attributes, hard links.
"""

import contextlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import unittest.mock
import urllib.request
from pathlib import Path

import images
import peers
from basics import RUN
from host import Dockerd, Failed, expect, sh

# What a client may not have on this machine and in its container, removed and made anew in all ways that a layer can say.
DOCKERFILE = """\
FROM all:1
RUN rm -r /opt/kept && mkdir /opt/kept && echo opaque >/opt/kept/new && rm /usr/share/one /gone/back
RUN echo more >>/bin/three && ln /srv/mine /srv/also && chown 1000:7 /srv/mine && chmod 2750 /srv && rm -r /kinds/to-directory && echo x >/kinds/to-directory && rm /kinds/to-file && mkdir -m 700 /kinds/to-file && echo y >/kinds/to-file/z
ENV MADE=here
LABEL org.example.step=last
"""


def step(what):
    print(f"   {what}", flush=True)


def in_seconds(tree):
    """The tree with times as clients' own drivers keep them in layers."""
    return {path: (mode, ids, mtime and mtime // 10**9, *rest) for path, (mode, ids, mtime, *rest) in tree.items()}


def config_of(lane, name):
    """The digest of the configuration that a manifest in the registry names: the image's ID."""
    return json.loads(lane.skopeo("inspect", "--raw", f"docker://{name}"))["config"]["digest"]


def forms_of(lane, name):
    """What its layers are in, by their media types and annotations."""
    layers = json.loads(lane.skopeo("inspect", "--raw", f"docker://{name}"))["layers"]
    chunked = any("zstd-chunked" in key for layer in layers for key in layer.get("annotations", {}))
    return sorted({layer["mediaType"].removeprefix("application/vnd.").partition(".layer.v1.")[2] or "docker" for layer in layers}), chunked


@contextlib.contextmanager
def tree_here(lane, name):
    """The root of a container made of an image of ours, while the block lasts."""
    lane.reflinkd("create", "--image", name, "--pull", "never", "looked-at")
    try:
        yield lane.reflinkd("mount", "looked-at")
    finally:
        lane.reflinkd("rm", "-f", "looked-at")


def same_tree(found, wanted, what):
    said = images.differences(in_seconds(found), in_seconds(wanted))
    if said:
        raise Failed(f"{what}: {len(said)} differences: {'; '.join(said[:5])}")


def pulled_here(lane, name, wanted_id, wanted_tree):
    """Pull one, and compare it. Nothing of it is here before: each form is fetched and unpacked as it is."""
    lane.remove_images()
    lane.reflinkd("gc")
    lane.reflinkd("pull", "-q", name)
    expect(lane.image_id(name), wanted_id, f"the ID of {name}")
    with tree_here(lane, name) as root:
        same_tree(images.observe(root), wanted_tree, f"the tree of {name}")


class Docker:
    """dockerd on overlay2, on the lane's filesystem: a driver that knows opaque directories."""

    def __init__(self, version, lane, cache):
        self.lane, self.peer = lane, peers.peer(version, cache)
        self.run = Path(tempfile.mkdtemp(prefix="rfd.", dir="/run"))
        # Loopback needs no --insecure-registry.
        self.dockerd = Dockerd(self.peer, "overlay2", lane.fs.mnt / f"docker-{version}", self.run, lane.home / f"dockerd-{version}.log")

    def __enter__(self):
        self.dockerd.__enter__()
        return self

    def __exit__(self, *_):
        self.dockerd.__exit__()
        shutil.rmtree(self.run, ignore_errors=True)

    def __call__(self, *arguments, **options):
        return self.dockerd(*arguments, **options)

    def id(self, name):
        return self("image", "inspect", "-f", "{{.Id}}", name)

    def layers(self, name):
        """Its diff IDs."""
        return json.loads(self("image", "inspect", "-f", "{{json .RootFS.Layers}}", name))

    @contextlib.contextmanager
    def tree(self, name):
        """What the client has of an image: its layers, as the driver puts them one over the other."""
        data = json.loads(self("image", "inspect", "-f", "{{json .GraphDriver.Data}}", name))
        layers = [data["UpperDir"], *filter(None, data.get("LowerDir", "").split(":"))]
        at = self.run / "looked-at"
        at.mkdir()
        if len(layers) > 1:
            sh("mount", "-t", "overlay", "-o", f"ro,lowerdir={':'.join(layers)}", "none", at)
        else:
            sh("mount", "--bind", layers[0], at)
        try:
            yield at
        finally:
            sh("umount", at)
            at.rmdir()


class Podman:
    """podman and buildah, with a store of their own on the lane's filesystem."""

    def __init__(self, lane):
        self.lane = lane
        # It refuses a run root of more than 50 characters.
        self.run = Path(tempfile.mkdtemp(prefix="rfd.", dir="/run"))
        self.storage = ["--root", str(lane.fs.mnt / "podman"), "--runroot", str(self.run / "r"), "--storage-driver", "overlay"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Both hold their overlay's directory mounted.
        with open("/proc/mounts", encoding="utf-8") as mounts:
            below = [line.split()[1] for line in mounts if line.split()[1].startswith((f"{self.run}/", f"{self.lane.fs.mnt}/podman/"))]
        for path in reversed(below):
            subprocess.run(["umount", path], capture_output=True, check=False)
        shutil.rmtree(self.run, ignore_errors=True)

    def __call__(self, *arguments):
        return sh("/usr/bin/podman", *self.storage, "--tmpdir", self.run / "t", "--cgroup-manager", "cgroupfs", "--runtime", "runc",
                  "--events-backend", "none", *arguments)

    def buildah(self, *arguments):
        return sh("/usr/bin/buildah", *self.storage, *arguments)

    def id(self, name):
        return f"sha256:{self('image', 'inspect', '--format', '{{.Id}}', name)}"

    @contextlib.contextmanager
    def tree(self, name):
        path = self("image", "mount", name)
        try:
            yield path
        finally:
            self("image", "unmount", name)


def observed(client, name):
    with client.tree(name) as root:
        return images.observe(root)


def built(client, context, *flags):
    """What is loaded, built upon, and committed, as `all:1`, `built:1` and `committed:1`."""
    client("load", "-q", "-i", context / "all.tar")
    client("build", "-q", *flags, "-t", "built:1", context)
    client("create", "--name", "work", *RUN, "built:1", "true")
    client("cp", context / "Dockerfile", "work:/srv/copied")
    client("commit", "work", "committed:1")
    client("rm", "work")


def context_of(work):
    """A directory for builds, and the archive with the image that they begin with."""
    context = work / "context"
    context.mkdir()
    # Python's tars are padded to 10 KiB. In zstd:chunked, podman 4 and skopeo 1.9 leave what is behind a tar's end out: such layers
    # aren't those of the configuration any more, and are refused, here as by Docker.
    with unittest.mock.patch.object(tarfile, "RECORDSIZE", tarfile.BLOCKSIZE):
        images.archive(context / "all.tar", "all:1", images.LAYERS, ["/bin/sh"])
    (context / "Dockerfile").write_text(DOCKERFILE)
    (context / ".dockerignore").write_text("*.tar\n")
    return context


def docker_pushes(lane, docker, context):
    built(docker, context, *RUN)
    saved = context.parent / "saved.tar"
    docker("save", "-o", saved, "built:1")
    names = {name for _, content in images.saved(saved) for name in images.entries(content)}
    saved.unlink()
    expect({"opt/kept/.wh..wh..opq", "gone/.wh.back"} - names, set(), "what tells opaque directories and whiteouts in what Docker built")
    for image in ("all:1", "built:1", "committed:1"):
        name = lane.name(f"docker/{image}")
        docker("tag", image, name)
        docker("push", name)
        pulled_here(lane, name, docker.id(image), observed(docker, image))
        step(f"Docker pushed {image}: the same image here")
    # The same under another name, its blobs mounted from the first.
    again = lane.name("docker/elsewhere:2")
    docker("tag", "built:1", again)
    said = docker("push", again)
    expect(said.count("Mounted from docker/"), len(docker.layers("built:1")), said)
    lane.reflinkd("pull", "-q", again)
    expect(lane.image_id(again), docker.id("built:1"), "the ID of one with another name")
    step("and once more under another name")


# A name of the form, the flags that ask for it, and what the layers must be in then.
FORMS = [("oci", ["--format", "oci"], (["tar+gzip"], False)),
         ("v2s2", ["--format", "v2s2"], (["docker"], False)),
         ("zstd", ["--format", "oci", "--compression-format", "zstd"], (["tar+zstd"], False)),
         ("zstd-chunked", ["--format", "oci", "--compression-format", "zstd:chunked"], (["tar+zstd"], True))]


def each_form(lane, pushes, start):
    """Each with a registry of its own: podman and skopeo push no blob anew of which they know another form in the same registry."""
    for form, flags, layers in pushes:
        with start(f"registry-{form}") as registry:
            yield form, flags, registry.address
            for name in json.loads(urllib.request.urlopen(f"http://{registry.address}/v2/_catalog", timeout=60).read())["repositories"]:
                expect(forms_of(lane, f"{registry.address}/{name}:1"), layers, f"what was pushed as {form} to {name}")


def podman_pushes(lane, podman, context, start, forms, which):
    # It has no way to give limits to what a build runs in a container, and more than here no container may have.
    built(podman, context, "--isolation", "chroot")
    wanted = {image: observed(podman, f"localhost/{image}:1") for image in which}
    for image in wanted:
        # When nobody says how, the image stays what it is there.
        name = lane.name(f"podman/{image}:1")
        podman("push", "-q", "--tls-verify=false", f"localhost/{image}:1", name)
        pulled_here(lane, name, podman.id(f"localhost/{image}:1"), wanted[image])
    step(f"podman pushed {', '.join(which)}: the same here")
    for form, flags, address in each_form(lane, forms, start):
        for image in wanted:
            name = f"{address}/podman/{image}:1"
            podman("push", "-q", "--tls-verify=false", *flags, f"localhost/{image}:1", name)
            pulled_here(lane, name, config_of(lane, name), wanted[image])
        step(f"and as {form}")
    for form, flags, address in each_form(lane, forms, start):
        name = f"{address}/buildah/committed:1"
        podman.buildah("push", "-q", "--tls-verify=false", *flags, "localhost/committed:1", f"docker://{name}")
        pulled_here(lane, name, config_of(lane, name), wanted["committed"])
        step(f"buildah pushed one as {form}")


def skopeo_copies(lane, archive, wanted, start, forms):
    """An archive as `docker save` writes it, into registries."""
    for form, flags, address in each_form(lane, forms, start):
        name = f"{address}/skopeo/all:1"
        flags = [flag.replace("--compression-format", "--dest-compress-format") for flag in flags]
        lane.skopeo("copy", "-q", *flags, f"docker-archive:{archive}", f"docker://{name}", side="dest-")
        pulled_here(lane, name, config_of(lane, name), wanted)
        step(f"skopeo copied one as {form}")


def clients(lane, work, start, cache, quick=False):
    """All of them; if it is to be quick in one form, and without daemons. `start` starts one more registry, in the directory of that name."""
    os.environ.setdefault("LC_ALL", "C")
    context = context_of(work)
    with Podman(lane) as podman:
        forms, which = (FORMS[-1:], ["committed"]) if quick else (FORMS, ["all", "built", "committed"])
        podman_pushes(lane, podman, context, start, forms, which)
        skopeo_copies(lane, context / "all.tar", observed(podman, "localhost/all:1"), start, forms)
        podman("rmi", "-af")
    if not quick:
        with Docker("20.10", lane, cache) as docker:
            step(f"Docker {docker('version', '--format', '{{.Server.Version}}')}")
            docker_pushes(lane, docker, context)
    lane.remove_images()
    lane.reflinkd("gc")
    expect(sorted(os.listdir(lane.root / "blobs/sha256")), [], "blobs")
