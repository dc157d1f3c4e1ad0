"""What `reflinkd push` pushes is pulled by skopeo, podman and Docker: the same image, the same tree, and it runs."""

import json

import images
from basics import RUN
from clients import Docker, Podman, config_of, context_of, forms_of, observed, same_tree, step, tree_here
from host import expect, sh

DOCKERS = ["20.10", "26.1"]
MOTD = "welcome again"


def manifest_of(lane, name):
    return json.loads(lane.skopeo("inspect", "--raw", f"docker://{name}"))


def ours(lane, name):
    """The ID and the tree of an image here."""
    with tree_here(lane, name) as root:
        return lane.image_id(name), images.observe(root)


def runs(client, name):
    said = client("run", "--rm", *RUN, name, "cat", "/etc/motd")
    expect(said, MOTD, f"what a container of {name} says")


def pulled_there(client, name, image_id, tree):
    client("pull", "-q", name)
    expect(client.id(name), image_id, f"the ID of {name}")
    same_tree(observed(client, name), tree, f"the tree of {name}")
    runs(client, name)
    client("rmi", "-f", name)


def pushes(lane, context):
    """An archive with all that a layer may hold, in both compressions; the names."""
    lane.reflinkd("load", "-q", "-i", context / "all.tar")
    names = []
    for compression in ("gzip", "zstd"):
        name = lane.name(f"ours/{compression}:1")
        lane.reflinkd("tag", "all:1", name)
        lane.reflinkd("push", "-q", "--compress", compression, name)
        expect(config_of(lane, name), lane.image_id(name), "the ID in the manifest")
        names.append(name)
        step(f"pushed as {compression} ({', '.join(forms_of(lane, name)[0])})")
    # Whatever its own name is.
    elsewhere = lane.name("ours/elsewhere:2")
    lane.reflinkd("push", "-q", "all:1", elsewhere)
    expect(manifest_of(lane, elsewhere), manifest_of(lane, names[0]), "the manifest under a name that is said beside")
    return names


def skopeo_takes(lane, work, names):
    for name in names:
        copied = work / "copied"
        sh("skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"oci:{copied}:it",
           env=lane.environment)
        inspected = json.loads(sh("skopeo", "inspect", "--config", "--raw", f"oci:{copied}:it", env=lane.environment))
        wanted = json.loads(lane.reflinkd("inspect", "--type", "image", name))[0]
        expect(len(inspected["rootfs"]["diff_ids"]), len(images.LAYERS), f"the layers of {name}")
        expect(config_of(lane, name), wanted["id"], "the ID")
        sh("rm", "-r", copied)
    step("skopeo copied both, and verified them")


def commits(lane, docker, context):
    """Docker's image is pulled here, changed, committed, and pushed beside it: Docker fetches what was changed alone."""
    docker("load", "-q", "-i", context / "all.tar")
    base, mine = lane.name("shared/base:1"), lane.name("shared/mine:1")
    docker("tag", "all:1", base)
    docker("push", base)
    lane.remove_images()
    lane.reflinkd("gc")
    lane.reflinkd("pull", "-q", base)
    lane.reflinkd("create", "--image", base, "work")
    root = lane.reflinkd("mount", "work")
    sh("sh", "-ec", "echo mine >srv/ours; rm opt/kept/four; rm -r odd; mkdir odd; chown 7:8 etc/labelled; ln srv/ours srv/again", cwd=root)
    lane.reflinkd("commit", "-m", "changed", "work", mine)
    lane.reflinkd("rm", "work")
    lane.reflinkd("push", "-q", mine)
    below = [layer["digest"] for layer in manifest_of(lane, base)["layers"]]
    expect([layer["digest"] for layer in manifest_of(lane, mine)["layers"]][:-1], below, "blobs of the base in what was pushed")
    said = docker("pull", mine)
    expect((said.count("Already exists"), said.count("Pull complete")), (len(below), 1), said)
    image_id, tree = ours(lane, mine)
    expect(docker.id(mine), image_id, "the ID of the commit")
    same_tree(observed(docker, mine), tree, "the tree of the commit")
    expect(docker("run", "--rm", *RUN, mine, "cat", "/srv/again"), "mine", "what a container of it has")
    step(f"a commit on what Docker pushed: Docker pulls one layer, and has {len(below)}")
    # And back: on what was pushed from here, Docker builds.
    back = lane.name("shared/back:1")
    docker("build", "-q", *RUN, "-t", back, "-", input=f"FROM {mine}\nRUN echo built >/srv/built\n".encode())
    docker("push", back)
    lane.reflinkd("pull", "-q", back)
    expect(lane.image_id(back), docker.id(back), "the ID of what was built on it")
    same_tree(ours(lane, back)[1], observed(docker, back), "the tree of what was built on it")
    step("Docker built on it and pushed that: pulled here")


def pushed(lane, work, cache, quick=False):
    context = context_of(work)
    names = pushes(lane, context)
    image_id, tree = ours(lane, "all:1")
    skopeo_takes(lane, work, names)
    with Podman(lane) as podman:
        for name in names:
            podman("pull", "-q", "--tls-verify=false", name)
            expect(podman.id(name), image_id, f"podman's ID of {name}")
            same_tree(observed(podman, name), tree, f"podman's tree of {name}")
            runs(podman, name)
        podman("rmi", "-af")
    step("podman pulled both and ran them")
    if not quick:
        for version in DOCKERS:
            with Docker(version, lane, cache) as docker:
                # 20.10 knows no zstd.
                for name in names[:1] if version == "20.10" else names:
                    pulled_there(docker, name, image_id, tree)
                step(f"Docker {docker('version', '--format', '{{.Server.Version}}')} pulled it and ran it")
                if version == DOCKERS[0]:
                    commits(lane, docker, context)
                    lane.reflinkd("load", "-q", "-i", context / "all.tar")
    lane.remove_images()
    lane.reflinkd("gc")
