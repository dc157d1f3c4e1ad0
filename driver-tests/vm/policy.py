"""Debian's SELinux policy as a kernel loads it, in a root that has the package selinux-policy-default.

The package has modules only, of which its maintainer script would make the policy, by semodule and as root. The steps here
are semodule's: each module becomes CIL, and all of that one policy with its file contexts.
"""

import bz2
import subprocess

from packages import Unavailable, loader

DIRECTORY = "etc/selinux/default"
# The newest version that all of the matrix's kernels know that have a lane with it (/sys/fs/selinux/policyvers).
VERSION = 33
# What the maintainer script disables as "usually not needed on a debian system".
DISABLED = set(
    "aisexec amtu bugzilla cobbler condor cyphesis git ksmtuned likewise livecd nessus numad oddjob openca rlogin rshd "
    "soundserver telnet publicfile thunderbird updfstab usernetctl".split())
# For the tools that put a home directory in their place.
TEMPLATES = ("HOME_DIR", "HOME_ROOT")


def write(tree):
    """Make it below the directory `tree`; nothing if the package isn't there."""
    modules = [module for module in sorted((tree / "usr/share/selinux/default").glob("*.pp.bz2"))
               if module.name.removesuffix(".pp.bz2") not in DISABLED]
    if not modules:
        return
    work = tree / "var/tmp/policy"
    work.mkdir()
    for module in modules:
        source = bz2.decompress(module.read_bytes())
        cil = tool(tree, "usr/libexec/selinux/hll/pp", input=source)
        (work / module.name.replace(".pp.bz2", ".cil")).write_bytes(cil)
    directory = tree / DIRECTORY
    contexts = directory / "contexts/files/file_contexts"
    # -m: modules may declare again what others have.
    tool(tree, "usr/bin/secilc", "-m", "-M", "true", "-c", str(VERSION), "-f", contexts,
         "-o", directory / f"policy/policy.{VERSION}", *sorted(work.iterdir()))
    lines = contexts.read_text().splitlines(keepends=True)
    contexts.write_text("".join(line for line in lines if not line.startswith(TEMPLATES)))
    (tree / "etc/selinux/config").write_text("SELINUX=permissive\nSELINUXTYPE=default\n")
    for cil in work.iterdir():
        cil.unlink()
    work.rmdir()


def tool(tree, program, *arguments, **options):
    """What a program of the root says on its standard output."""
    done = subprocess.run([*loader(tree), tree / program, *arguments], capture_output=True, **options)
    if done.returncode:
        raise Unavailable(f"{program} can't make the SELinux policy: {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout
