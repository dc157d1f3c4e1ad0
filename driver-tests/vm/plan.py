"""What is booted and what runs there: the matrix (`vm-images/matrix.toml`), and what of it was asked for."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from packages import Unavailable

TOP = Path(__file__).resolve().parents[2]
IMAGES = TOP / "vm-images"
# A step that hangs is ended by this; a busy machine that emulates may need a third of it.
STEP_SECONDS = 1800


@dataclass(frozen=True)
class Step:
    """One program in a guest, in one cell of the table (or one lane), whose output is a libtest's."""

    cell: str
    # A [[test]] of Cargo.toml, and words of which a test's name has to have one; all tests without any.
    binary: str
    filters: tuple = ()
    # For a kernel that lacks what the cell needs: the text that its failure has to have.
    sign: str | None = None

    @property
    def name(self):
        return f"{self.cell}/{self.binary}"

    @property
    def job(self):
        exact = ["--exact"] if self.sign else []
        return " ".join(["step", self.name, str(STEP_SECONDS), f"/tests/{self.binary}", *exact, *self.filters]) + "\n"


@dataclass(frozen=True)
class Boot:
    """One machine: a kernel of the matrix, and the cells that run there or a lane of its own."""

    name: str
    kernel: str
    steps: tuple
    # The matrix's table of the lane.
    lane: dict | None = field(default=None, compare=False)

    @property
    def cells(self):
        return list(dict.fromkeys(step.cell for step in self.steps))


# What the kernel complained of in the whole boot; the guest's first process looks at the end.
KERNEL_LOG = Step("kernel", "log")


def read():
    """The matrix."""
    return tomllib.loads((IMAGES / "matrix.toml").read_text())


def steps_of(matrix, kernel, cells, quick=False):
    """The steps of these cells on this kernel; `quick`: of those that have some for the quick run, these."""
    steps = []
    for name in cells:
        cell = matrix["cell"][name]
        if kernel in cell.get("lacking", ()):
            steps.append(Step(name, cell["steps"][0][0], (cell["probe"],), cell["sign"]))
        else:
            steps += [Step(name, binary, tuple(words)) for binary, *words in cell["quick" if quick else "steps"]]
    return tuple(steps)


def boots(matrix, kernels="", cells="", lanes=""):
    """The boots asked for, by names as [`choose`] takes them; without any, all there is.

    Who asks for cells gets lanes only if he asks for these, too, and the other way round; who asks for kernels, gets the
    lanes on these.
    """
    chosen_kernels = choose(kernels or "all", matrix["kernel"], "kernel")
    chosen_cells = choose(cells or ("" if lanes else "all"), matrix["cell"], "cell")
    chosen_lanes = choose(lanes or ("" if cells else "all"), matrix.get("lane", {}), "lane")
    found = []
    for kernel in chosen_kernels if chosen_cells else ():
        found.append(Boot(kernel, kernel, steps_of(matrix, kernel, chosen_cells)))
    for name in chosen_lanes:
        lane = matrix["lane"][name]
        if lane["kernel"] in chosen_kernels:
            found.append(Boot(name, lane["kernel"], (Step(name, "lane"),), lane))
    if not found:
        raise Unavailable(f"no lane of {' '.join(chosen_lanes)} is on a kernel of {' '.join(chosen_kernels)}")
    return found


def quick(matrix):
    """The one boot of the quick run."""
    cells = [name for name, cell in matrix["cell"].items() if "quick" in cell]
    return [Boot("quick", matrix["default"], steps_of(matrix, matrix["default"], cells, quick=True))]


def choose(asked, there, what):
    """The names asked for, in the matrix's order; all of them for `all`, and for `btrfs`, which is none, each `btrfs-...`."""
    chosen = set()
    for word in asked.replace(",", " ").split():
        found = {word} if word in there else {name for name in there if word == "all" or name.startswith(f"{word}-")}
        if not found:
            raise Unavailable(f"there is no {what} {word} in {IMAGES / 'matrix.toml'}: {' '.join(there)}")
        chosen |= found
    return [name for name in there if name in chosen]
