"""The changes that the bench makes, what it counts, and the curve that it draws."""

import os
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import bench  # noqa: E402
import changes  # noqa: E402
import curve  # noqa: E402
import measure  # noqa: E402
from test_make_image import SCRATCH  # noqa: E402


def files_in(root):
    """The content of each regular file, by path."""
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found[os.path.relpath(path, root)] = file.read()
    return found


class Scratch(unittest.TestCase):
    def setUp(self):
        os.makedirs(SCRATCH, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(scratch.cleanup)
        self.dir = scratch.name


class Changes(Scratch):
    def tree(self, files):
        root = os.path.join(self.dir, "root")
        os.mkdir(root)
        subprocess.run(["tar", "-xf", changes.archive(self.dir, files), "-C", root], check=True)
        return root

    def test_the_archive_has_its_files_and_is_the_same_each_time(self):
        path = changes.archive(self.dir, 250)
        with open(path, "rb") as file:
            first = file.read()
        os.remove(path)
        changes.archive(self.dir, 250)
        with open(path, "rb") as file:
            self.assertEqual(file.read(), first)
        self.assertEqual(len(files_in(self.tree(250))), 250)

    def test_as_many_files_differ_as_were_changed(self):
        for files, count in ((250, 1), (250, 10), (250, 100), (30, 100), (1, 1)):
            with self.subTest(files=files, count=count):
                root = self.tree(files)
                before = files_in(root)
                changes.edit(root, files, count)
                after = files_in(root)
                differ = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
                self.assertEqual(len(differ), count)
                changes.edit(root, files, count, salt="again")
                self.assertEqual(after.keys(), files_in(root).keys())
                self.assertNotEqual(after, files_in(root))
                subprocess.run(["rm", "-r", root], check=True)

    def test_ten_changes_are_of_every_kind(self):
        self.assertEqual({what for what, _ in changes.edits(50_000, 10)}, {"rewrite", "remove", "make"})

    def test_a_wrong_answer_is_no_number(self):
        class Said:
            text = '[{"kind": "directory"}, {"kind": "file"}, {"kind": "symlink"}]'

        self.assertIs(changes.checked(2, Said), Said)
        with self.assertRaises(measure.Failed):
            changes.checked(3, Said)

    def test_a_failure_takes_its_own_cell_only(self):
        results = bench.Results()
        table = changes.Table(results, "xfs", self.dir)

        def fails():
            raise measure.Failed("no such command")

        table.put("ours", "commit", fails)
        table.put("ours", "diff, warm", lambda: 6.0)
        table.put(changes.WALK, "diff, warm", lambda: 12.0)
        table.aim("diff, warm", most=table.value("diff, warm", changes.WALK) / 3)
        self.assertEqual([f["row"] for f in results.failures], ["xfs: commit"])
        row = results.row("xfs: diff, warm")
        self.assertEqual((row["ours"], row["peers"], row["missed"]), (6.0, {changes.WALK: 12.0}, True))
        shown = bench.table(results, [changes.WALK])
        self.assertIn("12.0 (2.0x)", shown)


class Calls(Scratch):
    def test_each_call_is_counted_once(self):
        log = "\n".join([
            '12 openat(AT_FDCWD, "/x", O_RDONLY) = 3',
            "12 fstat(3, {st_mode=S_IFREG|0644, ...}) = 0",
            '13 statx(3, "y", 0, STATX_ALL <unfinished ...>',
            "12 close(3) = 0",
            "13 <... statx resumed>, {...}) = -1 ENOENT (No such file or directory)",
            "13 +++ exited with 0 +++",
        ])
        self.assertEqual(measure.counted(log, changes.CALLS), 3)

    def test_a_program_is_counted(self):
        for number in range(20):
            with open(os.path.join(self.dir, str(number)), "w", encoding="ascii"):
                pass
        script = 'for file in "$0"/*; do : <"$file"; done'
        more = changes.calls(["sh", "-c", script, self.dir]) - changes.calls(["sh", "-c", ":", self.dir])
        self.assertGreaterEqual(more, 20)


class Curve(unittest.TestCase):
    POINTS = [{"files": files, "changes": count, "ours_ms": 5 + count / 10, "walk_ms": files / 50}
              for files in changes.SIZES for count in changes.EDITS]

    def drawing(self, panels):
        return xml.fromstring(curve.drawn(panels))

    def test_every_series_is_a_line_inside_the_picture(self):
        svg = self.drawing({"a < b": self.POINTS, "c": self.POINTS})
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        lines = svg.findall(".//{*}polyline")
        self.assertEqual(len(lines), 2 * 2 * len(changes.EDITS))
        for line in lines:
            places = [tuple(map(float, place.split(","))) for place in line.attrib["points"].split()]
            self.assertEqual(len(places), len(changes.SIZES))
            self.assertEqual(places, sorted(places))
            self.assertTrue(all(0 < x < width and 0 < y < height for x, y in places), places)
        self.assertIn("a < b", [text.text for text in svg.findall(".//{*}text")])

    def test_more_milliseconds_are_further_up(self):
        svg = self.drawing({"one": self.POINTS})
        walk = svg.findall(".//{*}polyline")[1].attrib["points"].split()
        heights = [float(place.split(",")[1]) for place in walk]
        self.assertEqual(heights, sorted(heights, reverse=True))

    def test_without_the_walk_there_are_only_ours(self):
        points = [{**point, "walk_ms": None} for point in self.POINTS]
        self.assertEqual(len(self.drawing({"one": points}).findall(".//{*}polyline")), len(changes.EDITS))

    def test_values_within_one_decade_have_axes(self):
        points = [{"files": 1000, "changes": 1, "ours_ms": 5.0, "walk_ms": 7.0}]
        self.assertEqual(len(self.drawing({"one": points}).findall(".//{*}polyline")), 2)
        self.assertEqual(curve.decades([1000, 1000]), [1000.0, 10000.0])


if __name__ == "__main__":
    unittest.main()
