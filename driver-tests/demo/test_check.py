"""The demo's checks must fail on numbers that are off: a check that can't fail shows nothing."""

import os
import sys
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import check  # noqa: E402

MB = 1_000_000
WRITTEN = {f"web{n}": n * 10 * MB for n in range(1, 6)}
IMAGE = 200 * MB


def table(extra=81_920, image=IMAGE):
    return [{"name": name, "image": "nginx", "size": count + extra, "virtual_size": image + count + extra}
            for name, count in WRITTEN.items()]


class Table(unittest.TestCase):
    def test_agreement(self):
        self.assertEqual(check.check_table(table(), [{"type": "total", "size": 350 * MB}], IMAGE, 151 * MB, WRITTEN), IMAGE)

    def refuses(self, containers, part, total=350 * MB, growth=150 * MB):
        with self.assertRaisesRegex(check.Disagreement, part):
            check.check_table(containers, [{"type": "total", "size": total}], IMAGE, growth, WRITTEN)

    def test_size_below_what_was_written(self):
        self.refuses(table(extra=-1), "web1: SIZE is 9999999")

    def test_size_too_far_above(self):
        self.refuses(table(extra=128 * 1024 + 1), "web1: SIZE")

    def test_missing_container(self):
        self.refuses(table()[:4], "doesn't list web5")

    def test_virtual_without_its_image(self):
        self.refuses(table(image=0), "no image beside")

    def test_virtual_that_is_not_the_sum(self):
        rows = table()
        rows[2]["virtual_size"] += 4096
        self.refuses(rows, "VIRTUAL isn't the image plus SIZE")

    def test_df_that_counts_the_image_per_container(self):
        self.refuses(table(), "df's total", total=5 * IMAGE + 150 * MB)

    def test_df_three_per_cent_off(self):
        self.refuses(table(), "df's total", growth=int(150 * MB * 1.03))


class Space(unittest.TestCase):
    def test_space_that_does_not_come_back(self):
        here = os.path.dirname(os.path.abspath(__file__))
        with self.assertRaisesRegex(check.Disagreement, "still used"):
            check.wait_for_space(here, before=0, full=1, seconds=0)


class Ports(unittest.TestCase):
    def test_a_listener_is_seen(self):
        with check.socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.assertTrue(check.listening(listener.getsockname()[1]))
        self.assertFalse(check.listening(check.free_port()))


if __name__ == "__main__":
    unittest.main()
