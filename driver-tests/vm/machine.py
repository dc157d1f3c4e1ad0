"""One boot of QEMU, with KVM where a guest really comes up under it and by emulation (TCG) elsewhere."""

import os
import subprocess
from pathlib import Path

from packages import loader

# Long enough for a guest under KVM to come up and go down again, and short enough to try.
PROBE_SECONDS = 15
COMMAND_LINE = "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable random.trust_cpu=on"
# All that QEMU can emulate, but for what makes a kernel choose what is slow here: strings copied byte by byte (erms, fsrm),
# page tables of five levels (la57), and protections that end a block of emulated code at each change (smap, pku).
EMULATED_CPU = "max,-erms,-fsrm,-la57,-smap,-pku"


class Machine:
    """QEMU of the unpacked packages below `root`."""

    def __init__(self, root, guest, work):
        self.root = root
        self.guest = guest
        self.work = work

    def boot(self, accelerator, kernel, initramfs, disk_bytes, seconds, disks=()):
        """Boot, wait for the end (at most `seconds`), and return what the second serial line said.

        The guest has an empty scratch disk of so many bytes, and after it `disks`, images that stay as they are: what
        it writes to those goes with it.
        """
        disk, console, output = (self.work / name for name in ("disk", "console.log", "output.log"))
        for file in (disk, console, output):
            file.unlink(missing_ok=True)
        with open(disk, "wb") as file:
            file.truncate(disk_bytes)
        # x86-64's own cmpxchg16b is what older emulations get wrong.
        cpu = "host" if accelerator == "kvm" else EMULATED_CPU
        command = [
            *loader(self.root), self.root / "usr/bin/qemu-system-x86_64",
            "-L", self.root / "usr/share/qemu", "-L", self.root / "usr/share/seabios",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", accelerator, "-cpu", cpu, "-smp", str(self.guest["cpus"]), "-m", self.guest["memory"],
            "-kernel", kernel, "-initrd", initramfs, "-append", COMMAND_LINE,
            "-serial", f"file:{console}", "-serial", f"file:{output}",
            "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe,discard=unmap",
        ]
        for path in disks:
            command += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe,snapshot=on"]
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "TMPDIR": str(self.work)}
        try:
            done = subprocess.run(command, timeout=seconds, env=environment, capture_output=True, text=True)
            ended = done.stderr.strip() if done.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"not done after {seconds} s, killed"
        finally:
            disk.unlink(missing_ok=True)
        said = output.read_text(errors="replace").replace("\r", "") if output.exists() else ""
        return said, ended

    def accelerator(self, kernel, initramfs):
        """`kvm` or `tcg`, found by booting; remembered until this machine boots anew.

        The device node proves nothing: inside some virtual machines it is there, and no guest gets past its first
        instructions.
        """
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found = self.work / "accelerator"
        if found.exists() and found.read_text().split()[0] == boot:
            return found.read_text().split()[1]
        said, _ = self.boot("kvm", kernel, initramfs, 1 << 20, PROBE_SECONDS)
        accelerator = "kvm" if "@@ done" in said else "tcg"
        found.write_text(f"{boot} {accelerator}\n")
        return accelerator
