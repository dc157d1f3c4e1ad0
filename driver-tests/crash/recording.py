"""A device whose writes and flushes are recorded."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import ground
import writelog


class Recorder:
    """A device whose writes and flushes go into `log`, on `disk`: a loop device on the file that `recorder.py` shows."""

    def __init__(self, disk, log, shown):
        self.disk, self.log, self.shown = disk, log, shown

    def __enter__(self):
        with contextlib.ExitStack() as done:
            self.shown.touch()
            self.server = subprocess.Popen([sys.executable, "-B", Path(__file__).with_name("recorder.py"),
                                            self.disk, self.log, self.shown],
                                           stdin=subprocess.DEVNULL, start_new_session=True)
            done.callback(self.end)
            until = time.monotonic() + ground.PATIENCE
            while not os.path.ismount(self.shown):
                if self.server.poll() is not None or time.monotonic() > until:
                    raise ground.Failed(f"nothing is shown at {self.shown}")
                time.sleep(0.02)
            self.device = done.enter_context(ground.loop(self.shown, "--direct-io=on"))
            self.marks = os.open(self.shown, os.O_WRONLY)
            done.callback(os.close, self.marks)
            self.done = done.pop_all()
        return self

    def __exit__(self, *_):
        self.done.close()

    def end(self):
        if os.path.ismount(self.shown):
            ground.unmount(self.shown)
        try:
            self.server.wait(ground.PATIENCE)
        except subprocess.TimeoutExpired:
            self.server.kill()
            self.server.wait()

    def mark(self, number):
        os.pwrite(self.marks, writelog.mark(number), ground.SIZE)
