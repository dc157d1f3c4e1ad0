"""What the test of power cuts rests on: the log, the choice of cuts, and the judgement."""

import io
import os
import random
import sys
import tempfile
import unittest

sys.path[:0] = [HERE := os.path.dirname(os.path.abspath(__file__)), os.path.join(HERE, "..", "load")]
import cuts  # noqa: E402
import images  # noqa: E402
import promises  # noqa: E402
import writelog  # noqa: E402
from promises import LOOSE, Operation  # noqa: E402

TOP = os.path.join(HERE, "..", "..")
SCRATCH = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "tmp")
END = 1 << 20


def scratch():
    os.makedirs(SCRATCH, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=SCRATCH)


def recorded(steps):
    """The entries of a log with these steps: a call of `Writer` each, or ("mark", number)."""
    with scratch() as directory:
        path = os.path.join(directory, "log")
        log = writelog.Writer(path)
        for kind, *words in steps:
            if kind == "mark":
                log.write(END, writelog.mark(*words))
            else:
                getattr(log, kind)(*words)
        log.close()
        with open(path, "rb") as file:
            return writelog.read(file, END)


def entries(letters):
    """Entries of one letter each: w, f, and numbers as marks."""
    kinds = {"w": writelog.Entry("write", 0, 8192, 512), "u": writelog.Entry("write", 0, 4096, 512, True),
             "f": writelog.Entry("flush")}
    return [kinds[letter] if letter in kinds else writelog.Entry("mark", number=int(letter)) for letter in letters]


class Log(unittest.TestCase):
    def test_what_was_written_is_read(self):
        found = recorded([("write", 4096, b"a" * 1024), ("flush",), ("mark", 7), ("discard", 8192, 4096),
                          ("write", 0, b"b" * 512)])
        self.assertEqual([entry.kind for entry in found], ["write", "flush", "mark", "write", "write"])
        self.assertEqual((found[0].offset, found[0].length), (4096, 1024))
        self.assertEqual(found[2].number, 7)
        self.assertEqual((found[3].offset, found[3].length, found[3].data), (8192, 4096, None))

    def test_applied_it_is_what_was_written(self):
        with scratch() as directory:
            log, image = os.path.join(directory, "log"), os.path.join(directory, "image")
            writer = writelog.Writer(log)
            writer.write(512, b"x" * 512)
            writer.write(4096, b"y" * 8192)
            writer.discard(8192, 4096)
            writer.close()
            with open(log, "rb") as file, open(image, "w+b") as out:
                out.truncate(16384)
                writelog.apply(out.fileno(), file.fileno(), writelog.read(file, END))
                self.assertEqual(out.read(), bytes(512) + b"x" * 512 + bytes(3072) + b"y" * 4096 + bytes(8192))

    def test_what_is_no_log_is_refused(self):
        for damaged in (b"", bytes(4096), writelog.SUPER.pack(writelog.MAGIC, 1, 3, 512).ljust(512, b"\0")):
            with self.assertRaises(writelog.Damaged):
                writelog.read(io.BytesIO(damaged), END)

    def test_a_strange_write_behind_the_end_is_refused(self):
        with self.assertRaises(writelog.Damaged):
            recorded([("write", END, bytes(512))])


class Cuts(unittest.TestCase):
    def test_the_last_flush(self):
        log = entries("wfwwfw")
        self.assertEqual([cuts.last_flush(log, position) for position in range(7)], [0, 0, 2, 2, 2, 5, 5])

    def test_a_seed_chooses_the_same(self):
        log = entries("2wf3wwwf4wwf5w")
        one = cuts.choose(log, 60, 7)
        self.assertEqual(one, cuts.choose(log, 60, 7))
        self.assertNotEqual(one, cuts.choose(log, 60, 8))
        self.assertEqual(len(one), 60)
        positions = {cut.position for cut in one}
        # Before each flush, and behind each acknowledgement.
        self.assertLessEqual({2, 7, 11} | {4, 13}, positions)
        self.assertEqual({cut.keep for cut in one}, {0, 0.5, 1})

    def test_flushed_writes_are_never_lost(self):
        log = entries("wfwwuw")
        rng = random.Random(1)
        for number in range(50):
            cut = cuts.Cut(number, 6, 2, rng.choice((0, 0.5, 1)))
            kept = list(cuts.survivors(log, cut, 1))
            self.assertIn(log[4], kept, "what was written by FUA")
            self.assertLessEqual(sum(write.length for write in kept), 3 * 8192 + 4096)
        self.assertEqual(list(cuts.survivors(log, cuts.Cut(0, 6, 2, 0), 1)), [log[4]])
        self.assertEqual(list(cuts.survivors(log, cuts.Cut(0, 6, 2, 1), 1)), log[2:])

    def test_writes_are_torn_between_blocks(self):
        write = writelog.Entry("write", 512, 8192, 1000)
        self.assertEqual([(piece.offset, piece.length, piece.data) for piece in cuts.pieces(write)],
                         [(512, 3584, 1000), (4096, 4096, 4584), (8192, 512, 8680)])
        self.assertTrue(all(piece.data is None for piece in cuts.pieces(write._replace(data=None))))

    def test_a_lie_takes_a_flush_back(self):
        # 1 begins behind a flush, and writes and flushes; 2 does nothing.
        log = entries("wf2wf3w45")
        self.assertEqual(cuts.choose_lies(log, {1, 2}, 9, 1), [cuts.Cut(0, 6, 2, 0)])
        self.assertEqual(cuts.choose_lies(log, {2}, 9, 1), [])

    def test_what_was_acknowledged(self):
        log = entries("2w34w")
        self.assertEqual(cuts.known(log, 0), (set(), set()))
        self.assertEqual(cuts.known(log, 2), (set(), {1}))
        self.assertEqual(cuts.known(log, 5), ({1}, {2}))


def thing(**tree):
    return {"tree": tree, "facts": {"id": 1}}


class Judgement(unittest.TestCase):
    made = Operation(1, "w0", "create", {"container a": thing(x="old")})

    def complaints(self, found, under_way=None, done=(made,)):
        return promises.judge(list(done), under_way, found)[0]

    def test_a_promise_kept(self):
        self.assertEqual(self.complaints({"container a": thing(x="old")}), [])

    def test_a_promise_broken(self):
        for found in ({}, {"container a": thing(x="new")}, {"container a": thing()}, {"container a": thing(x="old", y="more")},
                      {"container a": {"tree": {"x": "old"}, "facts": {"id": 2}}},
                      {"container a": thing(x="old"), "container b": thing()}):
            self.assertEqual(len(self.complaints(found)), 1, found)

    def test_what_is_under_way_is_done_or_not(self):
        rename = Operation(2, "w0", "rename", {"container a": None, "container b": thing(x="old")})
        self.assertEqual(self.complaints({"container a": thing(x="old")}, rename), [])
        self.assertEqual(self.complaints({"container b": thing(x="old")}, rename), [])
        for half in ({}, {"container a": thing(x="old"), "container b": thing(x="old")}, {"container b": thing()}):
            self.assertNotEqual(self.complaints(half, rename), [], half)

    def test_a_further_outcome(self):
        kept = {"snapshot a@1": thing(x="kept")}
        back = Operation(2, "w0", "rollback", {"container a": thing(x="new"), "snapshot a@1": thing(x="old")}, between=[kept])
        self.assertEqual(self.complaints({"container a": thing(x="old"), **kept}, back), [])
        self.assertNotEqual(self.complaints({"container a": thing(x="new"), **kept}, back), [])

    def test_removing_step_by_step(self):
        snapshot = Operation(2, "w0", "snapshot", {"snapshot a@1": thing()})
        gone = {"container a": None, "snapshot a@1": None}
        remove = Operation(3, "w0", "rm", gone, removes=gone, stepwise=True)
        self.assertEqual(self.complaints({"container a": thing(x="old")}, remove, (self.made, snapshot)), [])
        self.assertNotEqual(self.complaints({"container a": thing(x="new")}, remove, (self.made, snapshot)), [])

    def test_what_was_removed_may_come_back_whole(self):
        removed = (self.made, Operation(2, "w0", "rm", {"container a": None}, removes=["container a"]))
        self.assertEqual(promises.judge(removed, None, {"container a": thing(x="old")}), ([], ["container a"]))
        self.assertEqual(promises.judge(removed, None, {}), ([], []))
        self.assertEqual(len(self.complaints({"container a": thing()}, None, removed)), 1)
        # A rename is no removal.
        renamed = (self.made, Operation(2, "w0", "rename", {"container a": None, "container b": thing(x="old")}))
        self.assertEqual(len(self.complaints({"container a": thing(x="old"), "container b": thing(x="old")}, None, renamed)), 1)

    def test_a_snapshot_comes_back_under_its_containers_new_name(self):
        rename = Operation(4, "w0", "rename", {"container a": None, "container b": thing(x="old")}, renames=["a", "b"])
        before = (self.made, Operation(2, "w0", "snapshot", {"snapshot a@1": thing(x="old")}),
                  Operation(3, "w0", "rm a@1", {"snapshot a@1": None}, removes=["snapshot a@1"]))
        found = {"container b": thing(x="old"), "snapshot b@1": thing(x="old")}
        self.assertEqual(promises.judge((*before, rename), None, found), ([], ["snapshot b@1"]))
        self.assertEqual(promises.judge(before, rename, found), ([], ["snapshot b@1"]))
        self.assertEqual(len(promises.judge(before, None, found)[0]), 3)

    def test_nothing_is_known_of_what_was_not_synced(self):
        loose = (self.made, Operation(2, "w0", "write", {"container a": thing(x="old", y=LOOSE)}))
        for tree in ({"x": "old"}, {"x": "old", "y": "any"}):
            self.assertEqual(self.complaints({"container a": thing(**tree)}, None, loose), [])
        self.assertEqual(len(self.complaints({"container a": thing(y="any")}, None, loose)), 1)
        write = Operation(2, "w0", "overwrite", {"container a": thing(x="new")}, loose=["x"])
        self.assertEqual(self.complaints({"container a": thing(x="torn")}, write), [])

    def test_a_name_used_again(self):
        again = (self.made, Operation(2, "w0", "rm", {"container a": None}, removes=["container a"]),
                 Operation(3, "w0", "create", {"container a": thing(x="new")}))
        self.assertEqual(self.complaints({"container a": thing(x="new")}, None, again), [])
        self.assertEqual(len(self.complaints({"container a": thing(x="old")}, None, again)), 1)

    def test_what_promises_something(self):
        operations = (self.made, Operation(2, "w0", "write, not synced", {"container a": thing(x="old", y=LOOSE)}),
                      Operation(3, "w0", "snapshot", {"container a": thing(x="old", y="new")}), Operation(4, "w0", "gc"),
                      Operation(5, "w0", "rm", {"container a": None}))
        self.assertEqual(promises.promising(operations), {1, 3})
        self.assertEqual(list(promises.by_worker(operations)), ["w0"])

    def test_the_json_is_the_same(self):
        operation = Operation(2, "w0", "rollback", {"a": thing(x="new")}, ["b"], ["c"], True, [{"d": None}],
                              ["e", "f"])
        self.assertEqual(vars(Operation.from_json(operation.to_json())), vars(operation))


class Images(unittest.TestCase):
    def test_layers_give_a_tree(self):
        one = {"d": ("dir", 0o755), "d/a": ("file", 0o644, b"1"), "d/b": ("file", 0o600, b"2"), "l": ("link", "d/a")}
        two = {"d/a": ("gone",), "d/b": ("file", 0o644, b"22")}
        tree = images.tree_of([one, two])
        self.assertEqual(sorted(tree), ["d", "d/b", "l"])
        self.assertEqual(tree["d/b"], ["file", 0o644, 2, images.digest(b"22")])
        self.assertEqual(images.tree_of([one, {"d": ("gone",)}]), {"l": ["link", "d/a"]})


if __name__ == "__main__":
    unittest.main()
