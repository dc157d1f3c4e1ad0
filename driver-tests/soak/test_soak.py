"""What the soak rests on: the judgement of gauges, and what becomes of operations that are cut short."""

import io
import os
import random
import sys
import tarfile
import tempfile
import threading
import unittest

sys.path[:0] = [HERE := os.path.dirname(os.path.abspath(__file__)), os.path.join(HERE, "..", "load")]
import commands  # noqa: E402
import gauges  # noqa: E402
import images  # noqa: E402
import leaks  # noqa: E402
import soaking  # noqa: E402

TOP = os.path.join(HERE, "..", "..")
SCRATCH = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "tmp")


class Flatness(unittest.TestCase):
    def test_thirds(self):
        self.assertEqual(gauges.thirds([1, 1, 2, 2, 3, 3]), (1, 2, 3))
        self.assertEqual(gauges.thirds([9, 0, 9, 2, 2, 3, 3]), (9, 2, 3))

    def test_what_is_flat(self):
        rng = random.Random(1)
        noise = [5_000 + rng.randrange(500) for _ in range(30)]
        # It may take some time until all has been used once, one sample may be anything, and less is no leak.
        warming = [100 * min(number, 12) for number in range(30)]
        odd = [50] * 29 + [9_000]
        for values, slack in ((noise, 600), (warming, 0), (odd, 0), ([9, 8, 7, 6, 5, 4], 0)):
            self.assertFalse(gauges.grows(values, slack), values)

    def test_what_grows(self):
        rng = random.Random(1)
        for values, slack in (([number for number in range(30)], 1), ([number // 4 for number in range(30)], 1),
                              ([200 * number + rng.randrange(500) for number in range(30)], 1_000), ([1, 1, 1, 1, 2, 2], 0)):
            self.assertTrue(gauges.grows(values, slack), values)

    def test_each_gauge_has_a_name_of_its_own(self):
        names = [gauge.name for gauge in gauges.ALL]
        self.assertEqual(len(names), len(set(names)))
        self.assertLessEqual(set(leaks.GAUGES.values()), set(names))

    def test_a_process(self):
        before = gauges.of_process(os.getpid())
        with tempfile.TemporaryFile():
            thread = threading.Thread(target=(go := threading.Event()).wait)
            thread.start()
            after = gauges.of_process(os.getpid())
            go.set()
            thread.join()
        self.assertEqual((after["fds"], after["threads"]), (before["fds"] + 1, before["threads"] + 1))
        self.assertGreater(after["rss"], 1_000)


def thing(**tree):
    return {"tree": tree, "facts": {}}


class Cuts(unittest.TestCase):
    """`there` is what is in the store after each look, `believed` what the worker has."""

    door, name = "cli", "w0"

    def setUp(self):
        os.makedirs(SCRATCH, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(scratch.cleanup)
        self.log = soaking.Log(os.path.join(scratch.name, "log"))
        self.addCleanup(self.log.file.close)
        self.soak = soaking.Soak(self, self.log, False, None, None, None, False, 1, threading.Event())
        self.soak.workers = {"w0": self}
        self.believed, self.mends = {"container a": thing(x="old")}, "cut, undone"

    def things(self, only=None):
        if only is None:
            return self.believed
        found = self.there.pop(0)
        return {"w0": {name: thing for name, thing in found.items() if name in only}}

    def revived(self):
        pass

    def mended(self, _):
        return self.mends

    def cut(self, *there, what="change a", **promise):
        def work():
            raise soaking.Cut

        self.there = list(there)
        self.soak.do("w0", what, work, **promise)

    NEW = {"container a": thing(x="new")}
    OLD = {"container a": thing(x="old")}

    def test_it_is_done_or_not(self):
        self.cut(self.NEW, changes=self.NEW)
        with self.assertRaises(soaking.NotDone):
            self.cut(self.OLD, changes=self.NEW)
        self.assertEqual(dict(self.log.counts), {("cli", "change", "cut, done"): 1, ("cli", "change", "cut, undone"): 1})

    def test_there_is_no_third_outcome(self):
        for half in ({}, {"container a": thing(x="torn")}, {"container a": thing(x="new", y="more")}):
            with self.assertRaises(soaking.Wrong):
                self.cut(half, changes=self.NEW)

    def test_what_is_between_is_mended(self):
        half = {"container a": thing(x="half")}
        with self.assertRaises(soaking.NotDone):
            self.cut(half, self.OLD, changes=self.NEW, between=[half])
        self.mends = "cut, done"
        self.cut(half, self.NEW, changes=self.NEW, between=[half])
        # If it can.
        with self.assertRaises(soaking.Wrong):
            self.cut(half, half, changes=self.NEW, between=[half])

    def test_of_several_calls_some_are_done(self):
        with self.assertRaises(soaking.NotDone):
            self.cut({"container a": thing(x="torn")}, self.OLD, changes=self.NEW, composite=True)

    def test_removing_step_by_step(self):
        self.believed = {"container a": thing(x="old"), "snapshot a@1": thing()}
        gone, self.mends = dict.fromkeys(self.believed), "cut, done"
        self.cut(self.OLD, {}, changes=gone, stepwise=True)
        with self.assertRaises(soaking.Wrong):
            self.cut({"container a": thing(x="torn")}, {}, changes=gone, stepwise=True)

    def test_refusals_are_demanded(self):
        def refuse():
            raise ValueError

        self.soak.refused(self, "nonsense", refuse, (ValueError,))
        self.assertEqual(dict(self.log.refusals), {("cli", "nonsense"): 1})
        with self.assertRaises(soaking.Wrong):
            self.soak.refused(self, "nonsense", lambda: None, (ValueError,))

    def test_a_workers_error_ends_the_round(self):
        def work(_):
            raise KeyError("x")

        with self.assertRaises(soaking.Wrong):
            self.soak.together([self], work)
        self.assertTrue(self.soak.broken.is_set())


class Tars(unittest.TestCase):
    def test_a_tar_gives_the_facts_of_its_layer(self):
        layer = {"d": ("dir", 0o755), "d/f": ("file", 0o640, b"data"), "l": ("link", "d/f")}
        with tarfile.open(fileobj=io.BytesIO(images.tar_of(layer))) as tar:
            self.assertEqual({member.name: commands.fact(tar, member) for member in tar}, images.tree_of([layer]))


if __name__ == "__main__":
    unittest.main()
