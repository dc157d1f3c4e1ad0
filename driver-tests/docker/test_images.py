"""What the lane compares with: the rules of layers, and that a difference is one."""

import io
import os
import tarfile
import tempfile
import unittest

import images


class Trees(unittest.TestCase):
    def test_later_layers_hide_what_earlier_ones_have(self):
        tree = images.tree_after(images.LAYERS)
        for path in (b"opt/old/one", b"opt/old/two", b"usr/share/two", b"opt/kept/three", b"gone/inside",
                     b"kinds/to-file/inside"):
            self.assertNotIn(path, tree)
        for path in (b"opt/old/new", b"gone/back", b"kinds/to-directory/inside", b"odd/a.wh.b"):
            self.assertIn(path, tree)
        self.assertFalse([path for path in tree if b"/.wh." in path or path.startswith(b".wh.")])
        self.assertEqual(tree[b"bin/three"][-1], [b"bin/three", b"usr/share/one"])
        self.assertEqual(tree[b"etc/zero"][-1], [b"etc/zero"])

    def test_a_tree_that_another_program_unpacks_is_observed_as_described(self):
        # As anybody may: no owners, devices or attributes.
        layer = [images.directory("srv"), images.file("srv/f", b"content"), images.symlink("srv/l", "f"),
                 images.hardlink("srv/g", "srv/f", (0, 0))]
        with tempfile.TemporaryDirectory() as root:
            with tarfile.open(fileobj=io.BytesIO(images.tar_of(layer))) as tar:
                tar.extractall(root)
            found = images.observe(root)
            wanted = images.tree_after([layer])
            for tree in (found, wanted):
                for path, (mode, _, _, held, xattrs, group) in tree.items():
                    tree[path] = (mode, held, xattrs, group)
            self.assertEqual(images.differences(found, wanted), [])
            os.chmod(os.path.join(root, "srv/f"), 0o600)
            os.unlink(os.path.join(root, "srv/l"))
            os.mkdir(os.path.join(root, "srv/d"))
            again = {path: (what[0], *what[3:]) for path, what in images.observe(root).items()}
            said = images.differences(again, wanted)
            self.assertEqual(len(said), 4, said)

    def test_what_is_saved_is_read_again(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "archive.tar")
            _, diff_ids = images.archive(path, "name:1", images.LAYERS, ["true"])
            saved = images.saved(path)
        self.assertEqual([digest for digest, _ in saved], diff_ids)
        found = images.entries(saved[0][1])
        self.assertEqual(found["var/mail"], (tarfile.DIRTYPE, 0o2775, 0, 8, b""))
        self.assertEqual(found["odd/l\udce4tin-1"][4], b"l\xe4tin-1")


if __name__ == "__main__":
    unittest.main()
