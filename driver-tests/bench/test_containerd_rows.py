"""What the containerd benchmark changes, checks and counts."""

import io
import os
import sys
import tarfile
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import containerd_rows  # noqa: E402
import docker_rows  # noqa: E402
import make_image  # noqa: E402
import snapshotter  # noqa: E402
from measure import Failed  # noqa: E402
from test_make_image import SCRATCH  # noqa: E402

POLLING = containerd_rows.of_polling(containerd_rows.IDLE)[1]
FILES = [f"d{number}/e/f{number}" for number in range(40)]


def layer(path, files, more=()):
    """A tar of FILES, name -> content, and of MORE names with nothing in them."""
    with tarfile.open(path, "w") as tar:
        for name, content in [*files.items(), *((name, b"") for name in more)]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        directory = tarfile.TarInfo("d0")
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
    return path


class Changes(unittest.TestCase):
    def setUp(self):
        os.makedirs(SCRATCH, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(scratch.cleanup)
        self.root = scratch.name
        self.changes = containerd_rows.Changes(FILES)
        for name in FILES:
            os.makedirs(os.path.dirname(os.path.join(self.root, name)))
            with open(os.path.join(self.root, name), "wb") as file:
                file.write(b"old")
        self.changes.make(self.root, "a")
        self.files = {}
        for name in self.changes.rewritten + self.changes.new:
            with open(os.path.join(self.root, name), "rb") as file:
                self.files[name] = file.read()
        self.gone = [os.path.join(os.path.dirname(name), ".wh." + os.path.basename(name)) for name in self.changes.removed]

    def made(self, files, more):
        return layer(os.path.join(self.root, "layer.tar"), files, more)

    def test_twenty_of_every_kind(self):
        kinds = self.changes.rewritten, self.changes.removed, self.changes.new
        self.assertEqual([len(kind) for kind in kinds], [12, 4, 4])
        self.assertEqual(len(set().union(*kinds)), 20)
        self.assertFalse([name for name in self.changes.removed if os.path.exists(os.path.join(self.root, name))])

    def test_a_right_layer_may_have_directories(self):
        self.changes.checked(self.made(self.files, self.gone), "a")

    def test_a_wrong_layer_is_no_number(self):
        first = self.changes.rewritten[0]
        for files, more in (({**self.files, first: b"old"}, self.gone), (self.files, self.gone[1:]),
                            (self.files, [*self.gone, "d9/other"]), (self.files, [*self.gone, "d9/.wh.other"]),
                            ({name: data for name, data in self.files.items() if name != first}, self.gone)):
            with self.subTest(more=more), self.assertRaises(Failed):
                self.changes.checked(self.made(files, more), "a")

    def test_another_content_each_time(self):
        before = dict(self.changes.written["a"])
        self.changes.again(self.root, "a")
        differing = [name for name, data in self.changes.written["a"].items() if data != before[name]]
        self.assertEqual(differing, [self.changes.rewritten[0]])
        with self.assertRaises(Failed):
            self.changes.checked(self.made(self.files, self.gone), "a")

    def test_a_usage_of_nothing_or_of_all_is_no_number(self):
        right = {"size": 16 * containerd_rows.BLOCKS, "inodes": 16}
        self.assertIs(self.changes.usage(right), right)
        for wrong in ({"size": 0}, {"size": 1 << 30}, {"inodes": 0}):
            with self.subTest(wrong=wrong), self.assertRaises(Failed):
                self.changes.usage({**right, **wrong})

    def test_too_small_an_image_says_so(self):
        with self.assertRaisesRegex(Failed, "--scale"):
            containerd_rows.Changes(FILES[:15])


class Arithmetic(unittest.TestCase):
    def test_files_of_all_layers(self):
        os.makedirs(SCRATCH, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as image:
            layer(f"{image}/layer1.tar", {"d0/a": b"1", "d0/b": b"1"})
            layer(f"{image}/layer2.tar", {"d0/a": b"2", "d0/c": b"2"}, ["d0/.wh.b"])
            self.assertEqual(containerd_rows.files_of(image), 2)
            make_image.make(image, scale=0.01)
            self.assertGreater(containerd_rows.files_of(image), 400)

    def test_a_part_of_a_pass_stands_for_all(self):
        self.assertEqual(containerd_rows.whole(30, asked=20, count=1000), 1500)
        self.assertEqual(containerd_rows.whole(30, asked=5000, count=1000), 6)

    def test_ticks_of_a_process_with_an_odd_name(self):
        self.assertEqual(snapshotter.ticks("7 (a) 1 2) S " + " ".join(str(field) for field in range(4, 30))), 14 + 15)

    def verdicts(self, values):
        rows = docker_rows.Rows([], None)
        for (row, who), value in values.items():
            rows.put(row, who, value)
        return dict((text, met) for met, text in containerd_rows.verdicts(rows))

    def test_verdicts_of_what_has_numbers(self):
        found = self.verdicts({(containerd_rows.IMPORT, "reflinkd"): 60, (containerd_rows.IMPORT, "btrfs"): 100,
                               (containerd_rows.IMPORT, "overlayfs"): 99, (POLLING, "reflinkd"): 1.01})
        self.assertEqual(found, {"import: at most 0.6 of the time of btrfs (0.600)": True,
                                 "import: at most 0.6 of the time of overlayfs (0.606)": False,
                                 "polling, nothing changed: the snapshotter, of a core: at most 1 % (1.01)": False})

    def test_no_cpu_is_within_the_aim(self):
        self.assertEqual(list(self.verdicts({(POLLING, "reflinkd"): 0}).values()), [True])


if __name__ == "__main__":
    unittest.main()
