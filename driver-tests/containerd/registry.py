"""A registry on loopback, Debian's docker-registry, for what is pushed and pulled."""

import contextlib
import shutil
import socket
import subprocess
import time
import urllib.request

from host import Failed

START_SECONDS = 60

CONFIG = """version: 0.1
log: {{level: warn}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "{address}"}}
"""


@contextlib.contextmanager
def registry(programs, directory):
    """Its address, HOST:PORT, without TLS, while the block lasts. What it keeps is below `directory`, and goes with it."""
    directory.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config, log = directory / "config.yml", directory / "log"
    config.write_text(CONFIG.format(root=directory / "blobs", address=address))
    with open(log, "wb") as said:
        process = subprocess.Popen([programs / "usr/bin/docker-registry", "serve", config], stdin=subprocess.DEVNULL,
                                   stdout=said, stderr=said, start_new_session=True)
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{address}/v2/", timeout=5).close()
                break
            if process.poll() is not None or time.monotonic() > until:
                raise Failed(f"the registry doesn't answer: {log.read_text()}")
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        shutil.rmtree(directory)
