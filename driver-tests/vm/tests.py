"""The test binaries, linked statically so that they run in a guest that has no system around them."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packages import Unavailable

TRIPLE = "x86_64-unknown-linux-musl"


@dataclass
class Tests:
    """Where the tests were built: in the guest they and the program have to be at the same paths."""

    # CARGO_TARGET_TMPDIR, below which they make their filesystems.
    scratch: str
    # The path of each binary, by the name of its [[test]].
    paths: dict
    # Every file that the guest needs: its path there, and here without symbols.
    files: dict


def build(top, cargo, target, names, work):
    """Build these [[test]]s of Cargo.toml, and the program with them."""
    flags = [flag for name in names for flag in ("--test", name)]
    command = [cargo, "test", "--locked", "--no-run", "--target", TRIPLE, "--message-format", "json-render-diagnostics"]
    done = subprocess.run([*command, *flags], cwd=top, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable("the tests don't build (above)")
    built = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        executable = message.get("executable")
        if executable and (message["profile"]["test"] or "bin" in message["target"]["kind"]):
            built[message["target"]["name"]] = executable
    missing = [name for name in names if name not in built]
    if missing:
        raise Unavailable(f"cargo built no {' '.join(missing)}")
    files = {}
    for name, executable in built.items():
        stripped = work / f"{name}.stripped"
        subprocess.run(["strip", "-o", stripped, executable], check=True)
        files[executable] = stripped
    return Tests(str(Path(target) / TRIPLE / "tmp"), {name: built[name] for name in names}, files)
