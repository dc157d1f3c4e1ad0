"""One boot of QEMU, with KVM where a guest really comes up under it and by emulation (TCG) elsewhere."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from packages import Unavailable, loader

# Long enough for a guest under KVM to come up and go down again, and short enough to try.
PROBE_SECONDS = 15
# All that the emulation can, but what makes it slower and shows nothing of a filesystem: copying byte by byte (rep movsb),
# wide registers that are saved at each switch, locks on user memory at each copy.
EMULATED_PROCESSOR = "max,-erms,-fsrm,-xsave,-avx,-avx2,-smap,-smep,-umip,-la57,-pcid,-invpcid,-pku"
COMMAND_LINE = "console=ttyS0 panic=-1 quiet no_timer_check tsc=reliable random.trust_cpu=on log_buf_len=4M"
# The same of the kernel's own: guards against other programs, which there are none of.
EMULATED_COMMAND_LINE = "mitigations=off init_on_alloc=0 apparmor=0 randomize_kstack_offset=off hardened_usercopy=off"


def relay(process):
    """Give standard input to a guest from when its shell is there, which would lose what comes before, and end the shell
    with it; show what the guest says, until it ends."""
    def speak():
        for line in [*sys.stdin.buffer, b"\nexit\n"]:
            # The line takes no more than a few bytes at a time.
            process.stdin.write(line)
            process.stdin.flush()

    ready = False
    for said in process.stdout:
        sys.stdout.buffer.write(said.replace(b"\r", b""))
        sys.stdout.flush()
        if not ready and said.startswith(b"reflinkd ") and b"; the filesystem is at" in said:
            ready = True
            threading.Thread(target=speak, daemon=True).start()


class Machine:
    """QEMU of the unpacked packages below `root`, for a guest of the matrix, with its files in `work`."""

    # Those that run, so that all can be ended; None from then on.
    running = set()
    lock = threading.Lock()

    def __init__(self, root, guest, work):
        self.root = root
        self.guest = guest
        self.work = work
        self.disk = work / "disk"

    def command(self, accelerator, kernel, initramfs, cpus, disks=(), append=""):
        """QEMU's command but for the second serial line. `disks` keep what they have: what a guest writes to them is lost."""
        line = [COMMAND_LINE, append] + ([] if accelerator == "kvm" else [EMULATED_COMMAND_LINE])
        command = [
            *loader(self.root), self.root / "usr/bin/qemu-system-x86_64",
            "-L", self.root / "usr/share/qemu", "-L", self.root / "usr/share/seabios",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else EMULATED_PROCESSOR,
            "-smp", str(cpus), "-m", self.guest["memory"],
            "-kernel", kernel, "-initrd", initramfs, "-append", " ".join(filter(None, line)),
            "-serial", f"file:{self.work / 'console.log'}",
            "-drive", f"file={self.disk},format=raw,if=virtio,cache=unsafe,discard=unmap",
        ]
        for path in disks:
            command += ["-drive", f"file={path},format=raw,if=virtio,cache=unsafe,snapshot=on"]
        return command

    def start(self, command, disk_bytes, **streams):
        """The process. The scratch disk is made for it, empty."""
        with open(self.disk, "wb") as file:
            file.truncate(disk_bytes)
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/", "TMPDIR": str(self.work)}
        with self.lock:
            if Machine.running is None:
                raise Unavailable("told to end")
            process = subprocess.Popen(command, env=environment, **streams)
            Machine.running.add(process)
        return process

    def ended(self, process):
        process.kill()
        process.wait()
        with self.lock:
            if Machine.running is not None:
                Machine.running.discard(process)
        self.disk.unlink(missing_ok=True)

    @classmethod
    def end_all(cls):
        """End all that run, and let no other begin."""
        with cls.lock:
            for process in Machine.running or ():
                process.kill()
            Machine.running = None

    def boot(self, accelerator, kernel, initramfs, disk_bytes, seconds, disks=(), cpus=1, append=""):
        """Boot, wait for the end (at most `seconds`), and return what the second serial line said, and what QEMU did.

        The guest has an empty scratch disk of so many bytes, and after it `disks`.
        """
        console, output = (self.work / name for name in ("console.log", "output.log"))
        for file in (console, output):
            file.unlink(missing_ok=True)
        command = [*self.command(accelerator, kernel, initramfs, cpus, disks, append), "-serial", f"file:{output}"]
        process = self.start(command, disk_bytes, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate(timeout=seconds)
            ended = errors.strip() if process.returncode else ""
        except subprocess.TimeoutExpired:
            ended = f"not done after {seconds} s, killed"
        finally:
            self.ended(process)
        said = output.read_text(errors="replace").replace("\r", "") if output.exists() else ""
        return said, ended

    def talk(self, accelerator, kernel, initramfs, disk_bytes, cpus):
        """Boot with the second serial line on this process's terminal, or its standard streams; QEMU's exit status."""
        terminal = sys.stdin.isatty()
        line = "mon:stdio" if terminal else "stdio"
        command = [*self.command(accelerator, kernel, initramfs, cpus), "-serial", line]
        process = self.start(command, disk_bytes, **({} if terminal else {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}))
        try:
            if not terminal:
                relay(process)
            return process.wait()
        finally:
            self.ended(process)

    def accelerator(self, kernel, initramfs, cache):
        """`kvm` or `tcg`, found by booting; remembered in the directory `cache` until this machine boots anew.

        The device node proves nothing: inside some virtual machines it is there, and no guest gets past its first
        instructions.
        """
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg"
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        found = cache / "accelerator"
        if found.exists() and found.read_text().split()[0] == boot:
            return found.read_text().split()[1]
        said, _ = self.boot("kvm", kernel, initramfs, 1 << 20, PROBE_SECONDS)
        accelerator = "kvm" if "@@ done" in said else "tcg"
        found.write_text(f"{boot} {accelerator}\n")
        return accelerator
