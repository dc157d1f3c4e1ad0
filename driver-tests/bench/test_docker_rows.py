"""What the Docker benchmark changes, checks and prints; and how it speaks to a plugin's socket."""

import contextlib
import http.server
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import socketserver
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import docker_rows  # noqa: E402
import make_image  # noqa: E402
import plugin  # noqa: E402
from measure import Failed  # noqa: E402
from test_make_image import SCRATCH  # noqa: E402

FILES = [f"d{number}/e/f{number}" for number in range(20)]


class Said:
    def __init__(self, text):
        self.text = text


class Who:
    def __init__(self, name):
        self.name = name


class Rows(docker_rows.Rows):
    """On no filesystem."""

    def settle(self):
        pass


def rows_of(*names):
    return Rows([Who(name) for name in names], None)


def quietly(call, *arguments, **named):
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments, **named)


class Edit(unittest.TestCase):
    def setUp(self):
        self.edit = docker_rows.Edit(FILES)

    def lines(self):
        return sorted(self.edit.lines()) + ["C /d0", "C /d0/e"]

    def test_ten_changes_of_every_kind(self):
        lines = self.edit.lines()
        self.assertEqual(len(lines), 10)
        self.assertEqual({line[0] for line in lines}, {"A", "C", "D"})

    def test_the_script_makes_what_diff_is_to_say(self):
        os.makedirs(SCRATCH, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as root:
            def content():
                found = {}
                for directory, _, names in os.walk(root):
                    for name in names:
                        path = os.path.join(directory, name)
                        with open(path, encoding="utf-8") as file:
                            found["/" + os.path.relpath(path, root)] = file.read()
                return found

            def run():
                script = self.edit.script().replace("'/", f"'{root}/")
                subprocess.run(["sh", "-c", script], check=True)
                return content()

            for name in FILES:
                os.makedirs(os.path.dirname(os.path.join(root, name)))
                with open(os.path.join(root, name), "w", encoding="utf-8") as file:
                    file.write("old")
            before, after = content(), run()
            kinds = {f"{'A' if path not in before else 'D' if path not in after else 'C'} {path}"
                     for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
            self.assertEqual(kinds, self.edit.lines())
            again = run()
            self.assertEqual(again.keys(), after.keys())
            self.assertTrue(all(again[path] != after[path] for path in again if after[path] != "old"))

    def test_a_right_diff_may_list_directories_above(self):
        said = Said("\n".join(self.lines()))
        self.assertIs(self.edit.checked(said), said)

    def test_a_wrong_diff_is_no_number(self):
        for wrong in (self.lines()[1:], [*self.lines(), "A /other"], [*self.lines(), "C /d19/e"]):
            with self.subTest(wrong=wrong), self.assertRaises(Failed):
                self.edit.checked(Said("\n".join(wrong)))

    def test_too_small_an_image_says_so(self):
        with self.assertRaisesRegex(Failed, "--scale"):
            docker_rows.Edit(FILES[:7])

    def test_files_to_change_have_one_name(self):
        os.makedirs(SCRATCH, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as out:
            make_image.make(out, scale=0.05)
            names = docker_rows.shared(f"{out}/layer1.tar")
            listed = subprocess.run(["tar", "-tvf", f"{out}/layer1.tar"], check=True, capture_output=True, text=True).stdout
        linked = {line.rpartition(" link to ")[2] for line in listed.splitlines() if " link to " in line}
        self.assertTrue(linked)
        self.assertFalse(linked & set(names))
        self.assertGreater(len(names), 1000)
        self.assertFalse([name for name in names if "/.wh." in name])


class Sizes(unittest.TestCase):
    HEAD = "CONTAINER ID   SIZE\n"

    def test_a_size_of_each_container(self):
        said = Said(self.HEAD + "abc   10B (virtual 1.3GB)\nabd   4.1kB (virtual 1.3GB)")
        self.assertIs(docker_rows.sized(said, 2), said)

    def test_none_and_zero_are_no_numbers(self):
        for text in ("", "abc   0B (virtual 1.3GB)", "abc 5B (virtual 1GB)\nabd 5B (virtual 1GB)"):
            with self.subTest(text=text), self.assertRaises(Failed):
                docker_rows.sized(Said(self.HEAD + text), 1)


class Turns(unittest.TestCase):
    def test_each_is_first_as_often(self):
        order, rows = [], rows_of("a", "b", "c")

        def once(who, run):
            order.append((run, who.name))
            yield "row", 1.0

        quietly(rows.turns, ["row", "other"], once, most=3)
        self.assertEqual([name for _, name in order], ["a", "b", "c", "b", "c", "a", "c", "a", "b"])
        self.assertEqual({name: len(values) for name, values in rows.rows["row"]["values"].items()}, {"a": 3, "b": 3, "c": 3})

    def test_who_fails_is_out_and_the_others_go_on(self):
        rows = rows_of("a", "b")

        def once(who, run):
            if who.name == "a" and run == 1:
                raise Failed("broken")
            yield "row", 1.0

        quietly(rows.turns, ["row", "other"], once, most=4)
        self.assertEqual({name: len(values) for name, values in rows.rows["row"]["values"].items()}, {"a": 1, "b": 4})
        self.assertEqual(rows.failures, [{"who": "a", "row": "row; other", "error": "broken"}])
        table = docker_rows.table(rows, ["a", "b"]).splitlines()
        self.assertEqual([[cell.strip() for cell in line.split("|")][4:6] for line in table[2:]],
                         [["failed", "1.00 (1.00 to 1.00)"], ["failed", "-"]])

    def test_no_time_left_ends_after_the_least(self):
        rows = rows_of("a")
        quietly(rows.turns, ["row", "other"], lambda who, run: [("row", 1.0)], most=9, seconds=-1, least=4)
        self.assertEqual(len(rows.rows["row"]["values"]["a"]), 4)

    def test_who_is_not_prepared_is_out_of_all_that_follows(self):
        rows = rows_of("a", "b")

        def once(who):
            if who.name == "b":
                raise Failed("broken")

        quietly(rows.prepare, "title", once)
        self.assertEqual([who.name for who in rows.contenders], ["a"])
        quietly(rows.turns, ["row"], lambda who, run: [("row", 1.0)], most=1)
        self.assertEqual((list(rows.rows["row"]["values"]), rows.failed), (["a"], {("b", "row")}))


class Table(unittest.TestCase):
    def setUp(self):
        self.rows = rows_of()
        for who, values in (("reflinkd", (20, 10, 30)), ("btrfs", (100, 300, 200)), ("overlay2", (10,))):
            for value in values:
                self.rows.put("rm", who, value)

    def lines(self):
        return [[cell.strip() for cell in line.strip("|").split("|")]
                for line in docker_rows.table(self.rows, docker_rows.DRIVERS).splitlines()]

    def test_medians_spread_and_ratios(self):
        self.assertEqual(self.lines()[2], ["rm", "ms", "3/3/1", "20.0 (10.0 to 30.0)", "200 (100 to 300)", "10.0",
                                           "10.00", "0.50"])

    def test_all_lines_are_as_wide(self):
        self.rows.put("memory, idle", "reflinkd", 7.5, "MB")
        self.assertEqual(len({len(line) for line in docker_rows.table(self.rows, docker_rows.DRIVERS).splitlines()}), 1)
        self.assertEqual(self.lines()[3], ["memory, idle", "MB", "1", "7.50", "-", "-", "-", "-"])

    def test_verdicts_of_what_has_numbers(self):
        self.rows.put("memory, 1,000 containers", "reflinkd", 21, "MB")
        self.assertEqual([met for met, _ in docker_rows.verdicts(self.rows)], [False, False, False])
        self.rows.rows["rm"]["values"]["reflinkd"] = [10]
        self.assertEqual([met for met, _ in docker_rows.verdicts(self.rows)], [True, True, False])


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Handler(http.server.BaseHTTPRequestHandler):
    ANSWERS = {"/good": (200, {"Dir": "/x"}), "/err": (200, {"Err": "no such layer"}), "/bad": (500, {"Err": "broken"})}

    def do_POST(self):
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, document = self.ANSWERS[self.path]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Protocol(unittest.TestCase):
    def setUp(self):
        # Not below target/: the path of a socket is at most 108 bytes.
        scratch = tempfile.TemporaryDirectory(prefix="rfb-")
        self.addCleanup(scratch.cleanup)
        self.path = f"{scratch.name}/sock"
        self.server = Server(self.path, Handler)
        self.server.asked = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def test_an_answer_and_both_kinds_of_errors(self):
        with plugin.connected(self.path) as asked:
            self.assertEqual(asked.ask("/good", {"ID": "a"}), {"Dir": "/x"})
        for path, error in (("/err", "no such layer"), ("/bad", "500.*broken")):
            with plugin.connected(self.path) as asked, self.assertRaisesRegex(Failed, error):
                asked.ask(path)
        self.assertEqual(self.server.asked, [{"ID": "a"}, {}, {}])


if __name__ == "__main__":
    unittest.main()
