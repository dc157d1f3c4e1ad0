"""What the benchmark of pulls reads of an image, asks for, and makes of the numbers."""

import hashlib
import os
import sys
import tempfile
import unittest
from unittest import mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_image  # noqa: E402
import measure  # noqa: E402
import pull_rows  # noqa: E402
from measure import Failed  # noqa: E402
from test_docker_rows import quietly, rows_of  # noqa: E402
from test_make_image import SCRATCH  # noqa: E402


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.TemporaryDirectory(dir=SCRATCH)
        cls.addClassCleanup(cls.directory.cleanup)
        cls.source = os.path.join(cls.directory.name, "image")
        cls.summary = make_image.make(cls.source, 0.002)
        with mock.patch.object(pull_rows, "skopeo") as cls.skopeo:
            cls.image = pull_rows.Image("small", f"{cls.source}/oci.tar", cls.directory.name, "127.0.0.1:5000")

    def test_what_an_archive_says_of_itself(self):
        self.assertEqual(self.image.facts(), {"image": "small", "layers": 3, "packed": self.summary["packed"]})
        self.assertEqual(self.image.reference, "127.0.0.1:5000/small:latest")
        self.assertEqual([url[:49] for url in self.image.urls()], ["http://127.0.0.1:5000/v2/small/blobs/sha256:" + digest[7:12]
                                                                   for digest in self.image.digests])

    def test_the_plain_layers_are_those_of_the_image(self):
        for number, path in enumerate(self.image.layers, 1):
            with open(path, "rb") as found, open(f"{self.source}/layer{number}.tar", "rb") as wanted:
                self.assertEqual(found.read(), wanted.read(), number)

    def test_one_archive_is_pushed_as_it_is_and_one_written_plain(self):
        said = [call.args for call in self.skopeo.call_args_list]
        self.assertEqual([(words[0], words[-2], words[-1].partition(":")[0]) for words in said],
                         [("copy", f"oci-archive:{self.source}/oci.tar", to) for to in ("docker-archive", "docker")])

    def test_another_image_is_no_pull(self):
        pull_rows.checked(self.image.id, self.image)
        pull_rows.checked(self.image.id.removeprefix("sha256:"), self.image)
        with self.assertRaisesRegex(Failed, "small:latest became sha256:0"):
            pull_rows.checked("sha256:" + "0" * 64, self.image)

    def test_both_forms_are_decompressed_for_the_limit(self):
        plain = []
        for path in self.image.layers:
            with open(path, "rb") as file:
                plain.append(hashlib.sha256(file.read()).hexdigest())
        for form in ("oci", "docker"):
            found = measure.decode(f"{self.source}/{form}.tar")
            self.assertEqual(sorted(digest for _, digest in found), sorted(plain), form)
            self.assertEqual(sorted(digest for digest, _ in found), sorted(name[7:] for name in self.image.digests), form)


class Verdicts(unittest.TestCase):
    def said(self, **pulls):
        image = mock.Mock()
        image.name = "nginx"
        rows = rows_of()
        for who, value in pulls.items():
            rows.put("nginx: pull", who, value)
        rows.put("nginx: load, OCI archive", "reflinkd", 100)
        rows.put("nginx: pull, peak memory", "reflinkd", 65.0)
        rows.put("ps, one container", "reflinkd", 7.9)
        return [(met, text.partition(" (")[0]) for met, text in pull_rows.verdicts(rows, list(pulls), [image])]

    def test_the_load_every_peer_memory_and_ps(self):
        said = self.said(reflinkd=110, limit=90, podman=220, docker=219)
        self.assertEqual(said, [(True, "nginx: pull: at most 1.1 x load, OCI archive"), (True, "nginx: pull: at most 0.5 x that of podman"),
                                (False, "nginx: pull: at most 0.5 x that of docker"), (False, "nginx: pull, peak memory: at most 64 MB"),
                                (True, "ps, one container: at most 8 ms")])

    def test_nothing_is_said_of_what_there_is_no_number_for(self):
        self.assertEqual([text for _, text in self.said(limit=90)],
                         ["nginx: pull, peak memory: at most 64 MB", "ps, one container: at most 8 ms"])


class Together(unittest.TestCase):
    def test_the_slowest_counts_and_each_has_to_succeed(self):
        self.assertGreaterEqual(measure.together(["true"], ["sleep", "0.2"]), 200)
        with self.assertRaisesRegex(Failed, "`false` ended with status 1"):
            quietly(measure.together, ["true"], ["false"])


if __name__ == "__main__":
    unittest.main()
