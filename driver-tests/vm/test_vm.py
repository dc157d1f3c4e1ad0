"""The judge of what a guest said, the archives that a guest is made of, and the matrix itself."""

import contextlib
import fnmatch
import io
import os
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent))
import image  # noqa: E402
import plan  # noqa: E402
import report  # noqa: E402
from packages import Packages, Unavailable  # noqa: E402

# Below target/, as all that the tests write.
SCRATCH = Path(os.environ.get("CARGO_TARGET_DIR", plan.TOP / "target")) / "tmp"
MATRIX = plan.read()


def said(text, status, done=True):
    end = f"@@ end cell/suite {status} 7\n" if status is not None else ""
    return f"@@ up 6.12\n@@ begin cell/suite\n{text}{end}" + ("@@ done\n" if done else "")


def result(passed, failed):
    word = "FAILED" if failed else "ok"
    return f"test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 9 filtered out\n"


class Judge(unittest.TestCase):
    step = plan.Step("cell", "suite", ("word",))
    probe = plan.Step("cell", "suite", ("one::test",), sign="Invalid argument")

    def check(self, step, output, shown, failed):
        outcome = report.judge(step, output)
        self.assertEqual((outcome.shown, outcome.failed), (shown, failed))

    def test_a_step_passes_with_tests_that_passed(self):
        self.check(self.step, said(result(5, 0), 0), "5 in 7 s", False)

    def test_a_step_without_a_test_fails(self):
        self.check(self.step, said(result(0, 0), 0), "no test, 7 s", True)
        self.check(self.step, said("", 0), "no test, 7 s", True)

    def test_a_failure_fails_whatever_the_status(self):
        self.check(self.step, said(result(4, 1), 101), "1 of 5 failed, 7 s", True)
        self.check(self.step, said(result(4, 1), 0), "1 of 5 failed, 7 s", True)
        self.check(self.step, said(result(5, 0), 1), "0 of 5 failed, 7 s", True)

    def test_what_was_killed_died_or_never_began_fails(self):
        self.check(self.step, said("test a ... ok\n", 137), "killed, 7 s", True)
        self.check(self.step, said("test a ... ok\n", None, done=False), "died", True)
        self.check(self.step, "@@ up 6.12\n", "not run", True)
        self.check(self.step, "", "not run", True)

    def test_a_kernel_lacks_what_it_is_said_to_lack(self):
        self.check(self.probe, said("mkfs: Invalid argument\n" + result(0, 1), 101), "n/a", False)
        # It has it, fails for another reason, or the test isn't there.
        self.check(self.probe, said(result(1, 0), 0), "not n/a", True)
        self.check(self.probe, said("No space left\n" + result(0, 1), 101), "not n/a", True)
        self.check(self.probe, said("Invalid argument\n" + result(0, 0), 0), "not n/a", True)

    def test_one_step_is_not_taken_for_another(self):
        other = said(result(5, 0), 0).replace("cell/suite", "cell/suite-two")
        self.check(self.step, other, "not run", True)

    def test_tests_are_known_by_name(self):
        text = "test a::b ... ok\ntest c has been running for over 60 seconds\ntest c ... FAILED\n" + result(1, 1)
        self.assertEqual(report.judge(self.step, said(text, 101)).tests, [("a::b", True), ("c", False)])


class Report(unittest.TestCase):
    fine = report.Outcome("5 in 7 s", False, "", 7, 5, [("a", True), ("b", True)])
    bad = report.Outcome("died", True, "\x1b[1mOops", 0, 0, [("a", True)])
    lacking = report.Outcome("n/a", False, "", 1, 0, [("probe", False)], lacking=True)

    def test_the_table_has_a_row_for_each_kernel(self):
        found = {("6.1", "xfs"): [self.fine, self.fine], ("6.12", "xfs"): [self.fine, self.bad],
                 ("6.1", "ext4"): [self.lacking], ("6.12", "ext4"): [self.fine]}
        table = report.table(["6.1", "6.12"], ["xfs", "ext4"], found)
        self.assertEqual(table.split("\n"), ["         xfs         ext4", "   6.1   10 in 14 s  n/a", "   6.12  DIED        5 in 7 s"])

    def test_junit_has_a_case_for_each_test_and_what_is_not_one(self):
        step = plan.Step("xfs", "suite")
        boot = plan.Boot("6.1", "6.1", (step,))
        probe = plan.Step("simple", "suite", ("probe",), "Invalid argument")
        xml = report.junit([(boot, [(step, self.fine), (step, self.bad), (probe, self.lacking)])], 2)
        root = ElementTree.fromstring(xml)
        facts = [(s.get("name"), s.get("tests"), s.get("failures"), s.get("skipped")) for s in root]
        self.assertEqual(facts, [
            ("6.1.xfs.suite", "2", "0", "0"), ("6.1.xfs.suite", "2", "1", "0"), ("6.1.simple.suite", "1", "0", "1"),
        ])
        self.assertEqual(root.get("retries"), "2")
        self.assertEqual([case.get("name") for case in root[1]][:2], ["a", "died"])
        self.assertEqual(root[1].find("system-out").text, "\ufffd[1mOops")


class Matrix(unittest.TestCase):
    def test_names_are_known(self):
        cargo = tomllib.loads((plan.TOP / "Cargo.toml").read_text())
        there = {test["name"] for test in cargo["test"]}
        self.assertIn(MATRIX["default"], MATRIX["kernel"])
        for name, cell in MATRIX["cell"].items():
            self.assertLessEqual({binary for binary, *_ in cell["steps"]}, there, name)
            self.assertLessEqual(set(cell.get("lacking", [])), set(MATRIX["kernel"]), name)

    def test_every_set_is_locked(self):
        SCRATCH.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as cache:
            packages = Packages(MATRIX, plan.IMAGES / "packages.lock", Path(cache))
            for name, _, _, _, patterns in packages.sets():
                for package, _, digest in packages.locked(name):
                    self.assertTrue(any(fnmatch.fnmatch(package, pattern) for pattern in patterns), package)
                    self.assertRegex(digest, "^[0-9a-f]{64}$")

    def test_what_debian_has_dropped_is_replaced_and_said(self):
        class Mirror(Packages):
            """With a newer kernel than the lock file's."""

            def update(self, suite, security):
                pass

            def apt(self, suite, program, *arguments, cwd=None):
                new = "linux-image-6.12.999+deb13-cloud-amd64"
                return {
                    ("apt-cache", "madison"): f" {new} | 6.12.999-1 | mirror\n",
                    ("apt-get", "install"): f"Inst {new} (6.12.999-1 Debian)\nInst kmod (34 Debian)\n",
                    ("apt-cache", "show"): f"Package: {new}\nVersion: 6.12.999-1\nSHA256: 00ff\n\n"
                                           "Package: kmod\nVersion: 34\nSHA256: 11\n",
                }[program, arguments[0]]

        SCRATCH.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as cache, io.StringIO() as said:
            packages = Mirror(MATRIX, plan.IMAGES / "packages.lock", Path(cache))
            with contextlib.redirect_stdout(said):
                found = packages.present("kernel-6.12")
            self.assertEqual(found, [("linux-image-6.12.999+deb13-cloud-amd64", "6.12.999-1", "00ff")])
            ((name, version, _),) = packages.locked("kernel-6.12")
            self.assertIn(f"has dropped {name} {version} of kernel-6.12; this run has {found[0][0]} 6.12.999-1", said.getvalue())

    def test_a_cell_that_a_kernel_lacks_runs_its_probe_alone(self):
        (step,) = plan.steps_of(MATRIX, "6.1", ["btrfs-simple"])
        self.assertIn("Invalid argument", step.sign)
        self.assertIn("/tests/conformance --exact btrfs_simple::", step.job)
        self.assertGreater(len(plan.steps_of(MATRIX, "6.12", ["btrfs-simple"])), 1)

    def test_each_kernel_is_booted_once_and_each_lane(self):
        boots = plan.boots(MATRIX)
        self.assertEqual([boot.name for boot in boots], [*MATRIX["kernel"], *MATRIX["lane"]])
        self.assertEqual(boots[0].cells, list(MATRIX["cell"]))
        names = [[boot.name for boot in plan.boots(MATRIX, *asked)] for asked in (("6.1",), ("6.1", "xfs"), ("", "", "docker"))]
        self.assertEqual(names[0], ["6.1", *(name for name, lane in MATRIX["lane"].items() if lane["kernel"] == "6.1")])
        self.assertEqual(names[1], ["6.1"])
        self.assertEqual(names[2], [name for name in MATRIX["lane"] if name.startswith("docker-")])
        with self.assertRaisesRegex(Unavailable, "no lane of selinux is on a kernel of 5.10"):
            plan.boots(MATRIX, "5.10", "", "selinux")

    def test_the_quick_run_is_one_boot(self):
        (boot,) = plan.quick(MATRIX)
        self.assertEqual(boot.kernel, MATRIX["default"])
        self.assertTrue(boot.steps)

    def test_lanes_are_whole(self):
        for name, lane in MATRIX["lane"].items():
            self.assertIn(lane["kernel"], MATRIX["kernel"], name)
            self.assertIn(lane["root"], MATRIX["root"], name)
            program = plan.TOP / "driver-tests/vm/lanes" / lane["program"]
            self.assertTrue(os.access(program, os.X_OK), program)

    def test_who_asks_for_what_is_not_there_is_told(self):
        self.assertEqual(plan.choose("b, a", ["a", "b", "c"], "cell"), ["a", "b"])
        self.assertEqual(plan.choose("all", ["a", "b"], "cell"), ["a", "b"])
        self.assertEqual(plan.choose("btrfs", ["btrfs-none", "btrfs-full", "xfs"], "cell"), ["btrfs-none", "btrfs-full"])
        self.assertEqual(plan.choose("xfs", ["xfs-prjquota", "xfs"], "cell"), ["xfs"])
        with self.assertRaisesRegex(Unavailable, "no cell d in .*: a b"):
            plan.choose("a d", ["a", "b"], "cell")


def unpack(data):
    """Names, modes and contents of "newc" archives one after the other."""
    at, found = 0, []
    while at < len(data):
        fields = [int(data[at + 6 + 8 * n:at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = at + 110
        content_at = -(-(name_at + name_size) // 4) * 4
        name = data[name_at:name_at + name_size - 1].decode()
        found.append((name, mode, data[content_at:content_at + size]))
        at = -(-(content_at + size) // 4) * 4
    return found


class Archives(unittest.TestCase):
    def setUp(self):
        SCRATCH.mkdir(parents=True, exist_ok=True)
        directory = tempfile.TemporaryDirectory(dir=SCRATCH)
        self.addCleanup(directory.cleanup)
        self.work = Path(directory.name)

    def test_parts_are_read_one_after_the_other(self):
        (self.work / "program").write_bytes(b"12345")
        image.write_job(self.work / "one", {"/tests/program": self.work / "program"}, "step a\n")
        image.write_job(self.work / "two", {}, "")
        image.join(self.work / "both", [self.work / "one", self.work / "two"])
        self.assertEqual(unpack((self.work / "both").read_bytes()), [
            ("tests", 0o40755, b""), ("tests/program", 0o100755, b"12345"), ("job", 0o100644, b"step a\n"),
            ("TRAILER!!!", 0, b""), ("job", 0o100644, b""), ("TRAILER!!!", 0, b""),
        ])

    def test_modules_come_after_what_they_depend_on(self):
        kernel = self.work / "lib/modules/6.12/kernel"
        kernel.mkdir(parents=True)
        (kernel.parent / "modules.builtin").write_text("kernel/drivers/virtio/virtio-pci.ko\n")
        for name, depends in (("xfs", "crc-one,sum"), ("crc-one", "sum"), ("sum", "")):
            (kernel / f"{name}.ko").write_bytes(b"ELF\0license=GPL\0depends=" + depends.encode() + b"\0rest")
        image.write_modules(self.work / "modules", self.work, ["virtio_pci", "xfs"])
        found = {name: data for name, _, data in unpack((self.work / "modules").read_bytes())}
        self.assertEqual(found["modules/order"], b"sum\ncrc_one\nxfs\n")
        self.assertIn("modules/crc_one.ko", found)
        with self.assertRaisesRegex(Unavailable, "no module btrfs"):
            image.write_modules(self.work / "more", self.work, ["btrfs"])


if __name__ == "__main__":
    unittest.main()
