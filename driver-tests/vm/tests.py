"""The test binaries: linked statically so that they run in a guest that has no system around them, or as the host's own tests
are, which then have been compiled already, with the guest's libraries beside them."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from packages import Unavailable, libraries

TRIPLE = "x86_64-unknown-linux-musl"


@dataclass
class Tests:
    """What was built: in a guest the tests are /tests/NAME, the program is where they look for it."""

    # CARGO_TARGET_TMPDIR, below which they make their filesystems.
    scratch: str
    # The program, without symbols.
    program: Path
    # Every file that a guest needs: its path there, and here without symbols.
    files: dict


def build(top, cargo, target, names, work, guest=None):
    """Build the program, and with it these [[test]]s of Cargo.toml; statically, or for the system unpacked at `guest`, whose
    C library has to be as new as this machine's."""
    flags = ["--bin", "reflinkd", *(flag for name in names for flag in ("--test", name))]
    command = [cargo, "build", "--locked", "--message-format", "json-render-diagnostics"]
    if not guest:
        command += ["--target", TRIPLE]
    done = subprocess.run([*command, *flags], cwd=top, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Unavailable("the program or its tests don't build (above)")
    built = {}
    for line in done.stdout.splitlines():
        message = json.loads(line)
        executable = message.get("executable")
        if executable:
            built[message["target"]["name"]] = executable
    missing = [name for name in names if name not in built]
    if missing:
        raise Unavailable(f"cargo built no {' '.join(missing)}")
    files, program = {}, None
    for name, executable in built.items():
        stripped = work / f"{name}.stripped"
        subprocess.run(["strip", "-o", stripped, executable], check=True)
        if name in names:
            files[f"/tests/{name}"] = stripped
        else:
            program = files[executable] = files["/usr/bin/reflinkd"] = stripped
    if not guest:
        return Tests(str(Path(target) / TRIPLE / "tmp"), program, files)
    for library in {library for file in set(files.values()) for library in libraries(guest, file)}:
        files[f"/{library.relative_to(guest)}"] = library
    return Tests(str(Path(target) / "tmp"), program, files)
