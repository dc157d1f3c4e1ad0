"""Steps with CRI, as a kubelet takes them: pods, containers, their sizes, and what the images' filesystem is said to be."""

import base64
import json
import os
import subprocess
import time

import clients
import images
from host import Failed, expect
from services import PATIENCE, PAUSE

NAMESPACE = "k8s.io"
# Without a network of their own: no CNI is here.
HOST_NETWORK = {"security_context": {"namespace_options": {"network": "NODE"}}}
PAUSE_LAYERS = [images.base_layer(), [images.file("pause", b"")]]


def ask(lane, method, **request):
    """What a call of CRI gives."""
    command = [*lane.ctr.within, lane.options.work / "cri.client", lane.ctr.socket, method, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise Failed(f"{method}: {done.stderr.strip()[:600]}")
    return json.loads(done.stdout)


def logs(lane):
    directory = lane.work / "logs"
    directory.mkdir(exist_ok=True)
    return directory


def sandbox_config(lane, name):
    return {"metadata": {"name": name, "uid": name, "namespace": "default"}, "log_directory": str(logs(lane)), "linux": HOST_NETWORK}


def started(lane, name, image=clients.BASE, command=("/bin/sleep", "100000")):
    """A pod of one container: both ids."""
    config = sandbox_config(lane, name)
    pod = ask(lane, "RunPodSandbox", config=config, runtime_handler=lane.handler)["podSandboxId"]
    container = ask(lane, "CreateContainer", pod_sandbox_id=pod, sandbox_config=config, config={
        "metadata": {"name": name}, "image": {"image": image}, "command": list(command), "log_path": f"{name}.log",
        "linux": HOST_NETWORK})["containerId"]
    ask(lane, "StartContainer", container_id=container)
    return pod, container


def gone(lane, pod):
    try:
        ask(lane, "StopPodSandbox", pod_sandbox_id=pod)
    except Failed:
        # containerd loses a shim that ends while it is asked ("ttrpc: closed"); a kubelet asks again.
        ask(lane, "StopPodSandbox", pod_sandbox_id=pod)
    ask(lane, "RemovePodSandbox", pod_sandbox_id=pod)


def exec_(lane, container, *command):
    """What a command in a container prints."""
    reply = ask(lane, "ExecSync", container_id=container, cmd=command, timeout=60)
    out, problems = (base64.b64decode(reply.get(stream, "")).decode().strip() for stream in ("stdout", "stderr"))
    expect(reply.get("exitCode", 0), 0, f"the status of {' '.join(command)}: {problems or out}")
    return out


def said(lane, container, script):
    return exec_(lane, container, "/bin/sh", "-c", script)


# -- the steps

def version(lane):
    reply = ask(lane, "Version")
    conditions = {row["type"]: row.get("status", False) for row in ask(lane, "Status")["status"]["conditions"]}
    expect(conditions.get("RuntimeReady"), True, f"whether the runtime is ready: {conditions}")
    return f"{reply['runtimeName']} {reply['runtimeVersion']}, CRI {reply['runtimeApiVersion']}"


def import_(lane):
    for name, layers in ((PAUSE, PAUSE_LAYERS), (clients.BASE, [images.base_layer()]),
                         (clients.ALL, images.LAYERS)):
        archive = lane.work / "image.tar"
        images.archive(archive, name, layers, ["/bin/sleep", "1000000"])
        lane.ctr("images", "import", "--snapshotter", lane.ctr.snapshotter, archive, namespace=NAMESPACE)
        archive.unlink()
    done = time.monotonic() + PATIENCE
    wanted = {PAUSE, clients.BASE, clients.ALL}
    while not (found := {tag for row in ask(lane, "ListImages").get("images", []) for tag in row.get("repoTags", [])}) >= wanted:
        if time.monotonic() > done:
            raise Failed(f"the images that CRI knows: {found}, expected {wanted}")
        time.sleep(0.2)
    return f"{len(wanted)} images known to CRI"


def pod(lane):
    before = clients.names(lane, NAMESPACE)
    of_pod, container = started(lane, "one", clients.ALL)
    expect(said(lane, container, "cat /opt/old/new"), "the only one", "what a container reads of its image")
    expect(said(lane, container, "echo x >/srv/new; cat /srv/new"), "x", "what it reads of its own")
    states = [row["state"] for row in ask(lane, "ListContainers", filter={"pod_sandbox_id": of_pod})["containers"]]
    expect(states, ["CONTAINER_RUNNING"], "the states of the pod's containers")
    expect(len(clients.names(lane, NAMESPACE)), len(before) + 2, "the number of snapshots with a pod of one container")
    ask(lane, "StopContainer", container_id=container, timeout=0)
    ask(lane, "RemoveContainer", container_id=container)
    expect(len(clients.names(lane, NAMESPACE)), len(before) + 1, "the number of snapshots without the container")
    gone(lane, of_pod)
    expect(clients.names(lane, NAMESPACE), before, "the snapshots without the pod")
    return "runs, reads, writes, goes"


def log(lane):
    of_pod, _ = started(lane, "two", clients.BASE, ("/bin/cat", "/etc/motd"))
    done = time.monotonic() + PATIENCE
    while "welcome" not in (text := (lane.work / "logs/two.log").read_text()):
        if time.monotonic() > done:
            raise Failed(f"the container's log: {text!r}")
        time.sleep(0.1)
    gone(lane, of_pod)
    return "a container's words"


def stats(lane):
    """What a container wrote, in time."""
    of_pod, container = started(lane, "three")
    said(lane, container, "dd if=/dev/urandom of=/srv/data bs=1000000 count=30 2>/dev/null; sync")
    done = time.monotonic() + PATIENCE
    while True:
        found = ask(lane, "ContainerStats", container_id=container)["stats"].get("writableLayer", {})
        size = int(found.get("usedBytes", {}).get("value", 0))
        if 30_000_000 <= size < 31_000_000:
            break
        if time.monotonic() > done:
            raise Failed(f"the writable layer of 30,000,000 bytes is said to be {found}")
        time.sleep(0.5)
    gone(lane, of_pod)
    return f"{size} bytes after 30,000,000 were written"


def filesystem(lane):
    """kubelet asks statfs of the path it is told, and sums nothing itself."""
    done = time.monotonic() + PATIENCE
    while True:
        found = ask(lane, "ImageFsInfo")["imageFilesystems"][0]
        size = int(found.get("usedBytes", {}).get("value", 0))
        if size > 1_000_000:
            break
        if time.monotonic() > done:
            raise Failed(f"the images' filesystem with three images: {found}")
        time.sleep(0.5)
    path = found["fsId"]["mountpoint"]
    if lane.ctr.version != "1.6" or not lane.server:
        expect(os.path.isdir(path), True, f"whether {path} exists")
        expect(os.stat(path).st_dev, os.stat(lane.server.root if lane.server else lane.fs.mnt).st_dev,
               f"whether {path} is on the filesystem of the images")
    return f"{size} bytes, {found.get('inodesUsed', {}).get('value')} inodes at {path}"


def ten(lane):
    """Ten pods, one after the other taken down."""
    before = clients.names(lane, NAMESPACE)
    pods = [started(lane, f"pod-{number}") for number in range(10)]
    for number, (_, container) in enumerate(pods):
        said(lane, container, f"echo {number} >/srv/number")
    expect([said(lane, container, "cat /srv/number") for _, container in pods], [str(number) for number in range(10)],
           "what ten pods have")
    if lane.server:
        lane.server.kill()
        lane.server.start()
        clients.answers(lane)
        expect([said(lane, container, "cat /srv/number") for _, container in pods], [str(number) for number in range(10)],
               "what they have when the server was killed")
    for of_pod, _ in pods:
        gone(lane, of_pod)
    expect(clients.names(lane, NAMESPACE), before, "the snapshots afterwards")
    return "ten pods"


def images_gone(lane):
    for row in ask(lane, "ListImages").get("images", []):
        ask(lane, "RemoveImage", image={"image": row["id"]})
    expect(ask(lane, "ListImages").get("images", []), [], "images after their removal")
    # The collector comes by itself.
    done = time.monotonic() + PATIENCE
    while found := clients.names(lane, NAMESPACE):
        if time.monotonic() > done:
            raise Failed(f"snapshots that are left 30 s after all images: {found}")
        time.sleep(0.3)
    return "removed by CRI: no snapshots"


def undone(lane):
    """What a step that failed has left."""
    for row in ask(lane, "ListPodSandbox").get("items", []):
        gone(lane, row["id"])


STEPS = [("version", version), ("import", import_), ("pod", pod), ("log", log), ("stats", stats), ("ImageFsInfo", filesystem),
         ("ten pods", ten), ("images removed", images_gone)]
