"""Steps with the filesystem's use and with limits."""

import os

from basics import RUN, asked, bytes_written, bytes_written_by, fails_without_trace, inside, once, removed, running
from host import Failed, expect
import images


def table(lane, step=10):
    """One image, five containers: the first writes `step` MB, each of the others as much more than the one before."""
    image = int(asked(lane, "image", "{{.Size}}", "base:1"))
    names = [f"web{number}" for number in range(1, 6)]
    for name in names:
        running(lane, name, "base:1")
    before = lane.fs.steady()
    own = {name: number * step * 1_000_000 for number, name in enumerate(names, 1)}
    for name, size in own.items():
        inside(lane, name, f"dd if=/dev/urandom of=/srv/data bs=1000000 count={size // 1_000_000} 2>/dev/null")
    expect(bytes_written_by(lane, names), {name: (size, image + size) for name, size in own.items()}, "bytes written")
    shown = dict(line.split("\t") for line in lane.docker("ps", "-as", "--format", "{{.Names}}\t{{.Size}}").splitlines())
    for name, size in own.items():
        expect(shown[name].split(" (virtual ")[0], f"{size // 1_000_000}MB", f"SIZE of {name}")
        expect(shown[name].split(" (virtual ")[1], f"{(image + size) / 1e6:.3g}MB)", f"virtual size of {name}")
    written = sum(own.values())
    grown = lane.fs.used() - before
    slack = written // 50 + (1 << 20)
    expect(abs(grown - written) <= slack, True, f"whether use grew by {written} bytes, 2 % and 1 MiB aside ({grown})")
    removed(lane, *names)
    # What five containers without a write took was in use before.
    back = lane.fs.settles(before + slack, "after the five containers were removed")
    return f"{'  '.join(shown[name] for name in names)}; use +{grown}, after rm {back - before:+}"


def unknown_option(lane):
    said = fails_without_trace(lane, "create", "--storage-opt", "colour=blue", *RUN, "base:1",
                               saying=["colour"])
    return said.splitlines()[-1]


def fills(lane, name, millions):
    """Whether that many MB can be written into a running container."""
    script = f"dd if=/dev/urandom of=/srv/{millions} bs=1000000 count={millions} conv=fsync"
    done = lane.docker.client("exec", name, "sh", "-c", script)
    said = (done.stdout + done.stderr).decode(errors="replace")
    if done.returncode and "No space left" not in said and "quota exceeded" not in said.lower():
        raise Failed(f"writing {millions} MB failed for another reason: {said}")
    return done.returncode == 0


def holds(lane, name, image, *options, step=10):
    """A container with a limit of 5 x `step` MiB: 2 x fit, 10 x don't, and neither do they later."""
    running(lane, name, image, *options)
    expect(fills(lane, name, 2 * step), True, f"whether {2 * step} MB fit")
    expect(fills(lane, name, 10 * step), False, f"whether {10 * step} MB fit into a limit of {5 * step} MB")
    expect(bytes_written(lane, name)[0] <= 5 * step << 20, True, "whether what was written is within the limit")
    inside(lane, name, f"rm /srv/{10 * step}; sync")
    removed(lane, name)


def limit(lane, step=10, small_image=True):
    """Of an image that is larger than the limit, and of one that isn't, if asked to."""
    size = f"{5 * step}M"
    if lane.limits == "none":
        said = fails_without_trace(lane, "create", "--storage-opt", f"size={size}", *RUN, "base:1", saying=["quota", "limit"])
        return f"none can be held on this filesystem, and it says so: {said.splitlines()[-1]}"
    if small_image:
        holds(lane, "work", "base:1", "--storage-opt", f"size={size}", step=step)
    if lane.limits == "with the image":
        return f"{size}: {2 * step} MB fit, {10 * step} MB don't (this driver counts the image)"
    layer = [*images.base_layer(), images.file("opt/big", os.urandom(6_000_000 * step))]
    lane.docker("import", "-c", "ENV PATH=/bin", "-", "large:1", input=images.tar_of(layer))
    holds(lane, "work", "large:1", "--storage-opt", f"size={size}", step=step)
    if small_image:
        # What isn't limited isn't.
        running(lane, "work", "base:1")
        expect(fills(lane, "work", 10 * step), True, f"whether {10 * step} MB fit into no limit")
        removed(lane, "work")
    lane.docker("rmi", "large:1")
    fails_without_trace(lane, "create", "--storage-opt", "size=much", *RUN, "base:1", saying=["much"])
    on = f"an image of {2 + 6 * step} MB" + (" and one of 2 MB" if small_image else "")
    return f"{size}: {2 * step} MB fit, {10 * step} MB don't, on {on}"


def default_limit(lane):
    """The daemon's own option, for every container that has none."""
    lane.dockerd.restart("--storage-opt", "size=50M")
    holds(lane, "work", "base:1")
    running(lane, "work", "base:1", "--storage-opt", "size=200M")
    expect(fills(lane, "work", 100), True, "whether 100 MB fit into a limit of its own of 200M")
    removed(lane, "work")
    lane.dockerd.restart()
    running(lane, "work", "base:1")
    expect(fills(lane, "work", 100), True, "whether 100 MB fit when the daemon's limit has gone")
    removed(lane, "work")
    expect(once(lane, "base:1", "cat", "/etc/motd"), "welcome", "what runs after that")
    return "dockerd --storage-opt size=50M holds; a container's own counts more; gone with the option"
