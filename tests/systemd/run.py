"""The Debian package under a real systemd: install, start, reload, upgrade, crash, stop, remove.

    python3 tests/systemd/run.py [target/debug/aoai-lb] [part ...]

Needs root and debootstrap, and says so where it cannot run. AOAI_LB_DEBIAN_ROOT is where the Debian
tree is kept (default: the target directory), AOAI_LB_DEBIAN_MIRROR where it comes from. One line per
check; the last line counts them.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True

import machine
import parts
from service import SOURCE, UNIT, Service


class Tally:
    """One line per check. A part ends with its first failure, the next one begins anew."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.service = None
        self.begun = time.monotonic()

    def ok(self, what, note=""):
        self.passed += 1
        seconds = time.monotonic() - self.begun
        print(f"ok      {self.part}: {what}" + (f" [{note}]" if note else "") + f" ({seconds:.2f} s)", flush=True)
        self.begun = time.monotonic()

    def expect(self, what, holds, otherwise=""):
        if not holds:
            raise machine.Failed(f"{what}: {otherwise or 'it is not so'}")
        self.ok(what)

    def run(self, part, service):
        self.part, self.begun = part.__name__.replace("_", " "), time.monotonic()
        missing = [need for need in parts.NEEDS.get(part, []) if need not in service.features]
        if missing:
            self.skipped += 1
            return print(f"-       {self.part}: this binary has no `{missing[0]}`", flush=True)
        cursor = service.cursor()
        try:
            part(service, self)
        except (machine.Failed, OSError, subprocess.TimeoutExpired, ValueError, KeyError) as problem:
            self.failed += 1
            text = str(problem) if isinstance(problem, machine.Failed) else f"{type(problem).__name__}: {problem}"
            print(f"FAILED  {self.part}: " + text.strip().replace("\n", "\n        "), flush=True)
            tail = service.journal(cursor).splitlines()[-60:]
            print("        the journal:\n        " + "\n        ".join(tail), flush=True)
            service.systemctl("kill", "--signal=KILL", UNIT, check=False)


def main():
    arguments = sys.argv[1:]
    binary = Path(arguments[0] if arguments else SOURCE / "target/debug/aoai-lb").resolve()
    if not binary.exists():
        raise SystemExit(f"{binary} is missing; build it, or name another")
    cache = Path(os.environ.get("AOAI_LB_DEBIAN_ROOT", SOURCE / "target")).resolve()
    try:
        tree = machine.prepare(cache)
    except machine.Unable as problem:
        print(f"skipped: the tests under systemd cannot run here: {problem}", flush=True)
        return 0
    if not machine.is_inside():
        machine.enter(sys.executable, [__file__, binary, *arguments[1:]])
    # So that everything is taken down, too, when somebody stops this.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    machine.raise_loopback()
    begun, tally = time.monotonic(), Tally()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-package-") as folder:
        # A copy: it may be built anew meanwhile.
        copy = Path(folder) / "aoai-lb"
        shutil.copy(binary, copy)
        with machine.Machine(tree) as debian:
            print(f"systemd is up ({debian.boot_seconds:.2f} s)", flush=True)
            service = Service(debian, copy, Path(folder), features(copy))
            try:
                service.start_simulator()
                for part in parts.ALL:
                    wanted = part.__name__ in arguments[1:] if arguments[1:] else part not in parts.SLOW
                    if wanted or part in parts.FIRST:
                        tally.run(part, service)
            finally:
                service.stop_simulator()
    print(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped, {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if tally.failed else 0


def features(binary):
    """The commands that this binary knows."""
    text = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.split()}


if __name__ == "__main__":
    sys.exit(main())
