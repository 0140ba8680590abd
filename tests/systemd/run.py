"""Tests the Debian package under a real systemd: install, start, reload, upgrade, crash, stop, remove.

    python3 tests/systemd/run.py [target/debug/aoai-lb] [part ...]

Needs root and debootstrap; where it cannot run, it prints why and skips the tests. AOAI_LB_DEBIAN_ROOT is
the directory for the Debian tree (default: the target directory), AOAI_LB_DEBIAN_MIRROR the mirror for it.
Prints one line per check, and the counts in the last line.
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


class TestReport:
    """Prints one line per check. A part ends at its first failure, and the next part starts afresh."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.service = None
        self.start = time.monotonic()

    def pass_check(self, check, note=""):
        self.passed += 1
        seconds = time.monotonic() - self.start
        print(f"ok      {self.part}: {check}" + (f" [{note}]" if note else "") + f" ({seconds:.2f} s)", flush=True)
        self.start = time.monotonic()

    def expect(self, check, is_true, details=""):
        if not is_true:
            raise machine.TestFailure(f"{check}: {details or 'the condition does not hold'}")
        self.pass_check(check)

    def run(self, part, service):
        self.part, self.start = part.__name__.replace("_", " "), time.monotonic()
        missing = [command for command in parts.REQUIRED_COMMANDS.get(part, []) if command not in service.commands]
        if missing:
            self.skipped += 1
            return print(f"-       {self.part}: skipped, this binary has no command `{missing[0]}`", flush=True)
        cursor = service.journal_cursor()
        try:
            part(service, self)
        except (machine.TestFailure, OSError, subprocess.TimeoutExpired, ValueError, KeyError) as problem:
            self.failed += 1
            text = str(problem) if isinstance(problem, machine.TestFailure) else f"{type(problem).__name__}: {problem}"
            print(f"FAILED  {self.part}: " + text.strip().replace("\n", "\n        "), flush=True)
            tail = service.journal_text(cursor).splitlines()[-60:]
            print("        the journal:\n        " + "\n        ".join(tail), flush=True)
            service.systemctl("kill", "--signal=KILL", UNIT, check=False)


def main():
    arguments = sys.argv[1:]
    binary = Path(arguments[0] if arguments else SOURCE / "target/debug/aoai-lb").resolve()
    if not binary.exists():
        raise SystemExit(f"{binary} is missing: build it with `cargo build`, or pass another path")
    cache = Path(os.environ.get("AOAI_LB_DEBIAN_ROOT", SOURCE / "target")).resolve()
    try:
        debian_tree = machine.prepare_debian_tree(cache)
    except machine.UnsupportedHostError as problem:
        print(f"skipped: the tests under systemd cannot run here: {problem}", flush=True)
        return 0
    if not machine.is_inside():
        machine.reexec_in_namespaces(sys.executable, [__file__, binary, *arguments[1:]])
    # On SIGTERM or SIGHUP, exit through the context managers, which stop the machine.
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, lambda *_: sys.exit(143))
    machine.raise_loopback()
    start, report = time.monotonic(), TestReport()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-package-") as directory:
        # A copy, since the binary may be rebuilt during the tests.
        binary_copy = Path(directory) / "aoai-lb"
        shutil.copy(binary, binary_copy)
        with machine.Machine(debian_tree) as debian:
            print(f"systemd is up ({debian.boot_seconds:.2f} s)", flush=True)
            service = Service(debian, binary_copy, Path(directory), commands(binary_copy))
            try:
                service.start_simulator()
                for part in parts.ALL_PARTS:
                    is_selected = part.__name__ in arguments[1:] if arguments[1:] else part not in parts.SLOW_PARTS
                    if is_selected or part in parts.PREREQUISITE_PARTS:
                        report.run(part, service)
            finally:
                service.stop_simulator()
    print(f"{report.passed} passed, {report.failed} failed, {report.skipped} skipped, {time.monotonic() - start:.0f} s", flush=True)
    return 1 if report.failed else 0


def commands(binary):
    """The commands of this binary, from its help."""
    text = subprocess.run([binary, "--help"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line.split()}


if __name__ == "__main__":
    sys.exit(main())
