"""The bench image: the same bytes each time, and digests that agree with the content."""

import gzip
import hashlib
import json
import os
import sys
import tarfile
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import make_image  # noqa: E402

# Below target/, as all that the tests write.
TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
SCRATCH = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(TOP, "target")), "tmp")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        os.makedirs(SCRATCH, exist_ok=True)
        cls.dir = tempfile.TemporaryDirectory(dir=SCRATCH)
        cls.addClassCleanup(cls.dir.cleanup)
        cls.summary = make_image.make(cls.path("a"), scale=0.01)

    @classmethod
    def path(cls, *parts):
        return os.path.join(cls.dir.name, *parts)

    def test_same_seed_same_bytes(self):
        make_image.make(self.path("b"), scale=0.01)
        for name in ("oci.tar", "docker.tar", "layer1.tar", "layer2.tar", "layer3.tar"):
            with open(self.path("a", name), "rb") as one, open(self.path("b", name), "rb") as two:
                self.assertEqual(sha256(one.read()), sha256(two.read()), name)

    def test_another_seed_other_bytes(self):
        make_image.make(self.path("c"), scale=0.01, seed=2)
        with open(self.path("a", "oci.tar"), "rb") as one, open(self.path("c", "oci.tar"), "rb") as two:
            self.assertNotEqual(sha256(one.read()), sha256(two.read()))

    def test_oci_digests(self):
        with tarfile.open(self.path("a", "oci.tar")) as tar:
            blobs = {name: tar.extractfile(name).read() for name in tar.getnames()}
        for name, data in blobs.items():
            if name.startswith("blobs/"):
                self.assertEqual(os.path.basename(name), sha256(data))
        index = json.loads(blobs["index.json"])
        manifest = json.loads(blobs["blobs/sha256/" + index["manifests"][0]["digest"][7:]])
        config = json.loads(blobs["blobs/sha256/" + manifest["config"]["digest"][7:]])
        self.assertEqual(len(manifest["layers"]), 3)
        for number, (layer, diff_id) in enumerate(zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True), 1):
            packed = blobs["blobs/sha256/" + layer["digest"][7:]]
            self.assertEqual(len(packed), layer["size"])
            plain = gzip.decompress(packed)
            self.assertEqual(sha256(plain), diff_id[7:])
            with open(self.path("a", f"layer{number}.tar"), "rb") as file:
                self.assertEqual(file.read(), plain)
        self.assertEqual(sum(1 for step in config["history"] if not step.get("empty_layer")), 3)

    def test_docker_archive_has_the_same_layers(self):
        with tarfile.open(self.path("a", "docker.tar")) as tar:
            entry = json.load(tar.extractfile("manifest.json"))[0]
            config = json.load(tar.extractfile(entry["Config"]))
            for path, diff_id in zip(entry["Layers"], config["rootfs"]["diff_ids"], strict=True):
                self.assertEqual(sha256(gzip.decompress(tar.extractfile(path).read())), diff_id[7:])

    def test_layers_apply_in_order(self):
        """Every hard link, replacement and whiteout names something that is there by then."""
        tree = set()
        for number in (1, 2, 3):
            with tarfile.open(self.path("a", f"layer{number}.tar")) as tar:
                gone = set()
                for member in tar:
                    head, tail = os.path.split(member.name)
                    if tail.startswith(".wh."):
                        victim = f"{head}/{tail[4:]}"
                        self.assertIn(victim, tree)
                        gone.add(victim)
                        continue
                    if head:
                        self.assertIn(head, tree)
                    if member.islnk():
                        self.assertIn(member.linkname, tree)
                    tree.add(member.name)
                tree -= gone
        self.assertGreater(len(tree), 400)


if __name__ == "__main__":
    unittest.main()
