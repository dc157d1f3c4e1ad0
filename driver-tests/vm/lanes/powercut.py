#!/usr/bin/python3 -B
"""Power cuts that a guest's kernel wrote before and recovers after: powercut.py GROUND...

It is a short form of `make crashtest` (driver-tests/crash), with everything in the guest: a load is recorded, its device
is cut at some points, and what this kernel makes of that is held against what was acknowledged. A ground is one of
crashtest's; each is two tests in the words of a libtest, its cuts and its lies.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), *(str(Path(__file__).parents[2] / part) for part in ("crash", "load"))]

import cases  # noqa: E402
import crash  # noqa: E402

# Of each worker; and cuts and lies of each ground. An emulated guest takes some ten seconds for a cut.
EMULATED = "REFLINKD_EMULATED" in os.environ
OPERATIONS, CUTS, LIES = (10, 6, 2) if EMULATED else (30, 40, 5)


class Ground:
    """One filesystem, recorded and cut when the first of its tests is asked."""

    def __init__(self, name):
        self.name, self.outcome = name, None

    def cuts(self):
        work = Path("/scratch/crash")
        (work / "memory").mkdir(parents=True, exist_ok=True)
        options = argparse.Namespace(work=work, binary=Path("/lane/reflinkd"), cuts=CUTS, cut=None, lies=LIES,
                                     operations=OPERATIONS, seed=1, keep=False, again=False)
        self.outcome = crash.run(self.name, options)
        cases.equal(len(self.outcome.seconds), CUTS, "cuts")
        cases.equal([cut.number for cut in self.outcome.failures], [], "cuts that lost or left something (above)")
        cases.expect(max(self.outcome.acknowledged) > OPERATIONS, f"acknowledged before a cut: {self.outcome.acknowledged}")

    def lies(self):
        cases.expect(self.outcome, "there are no cuts")
        cases.equal(self.outcome.lies, LIES, "lies told")
        cases.equal(self.outcome.believed, [], "lies that weren't found")


def main(names):
    listed = []
    for ground in map(Ground, names):
        listed += [(f"{ground.name}::{CUTS}_cuts", ground.cuts), (f"{ground.name}::{LIES}_lies", ground.lies)]
    return cases.run(listed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
