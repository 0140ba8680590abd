"""Tests the status page in a real browser: with made-up states, and with a running balancer.

    python3 tests/page/run.py [-k WORD] [BINARY]

Without BINARY, only the tests with made-up states run. `-k WORD` selects tests by name. Needs the Debian
packages chromium and chromium-driver, Python 3.11 or later and Node's npm. Prints one line per test, and
the counts in the last line.
"""

import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.dont_write_bytecode = True

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "sdk"), str(HERE)]

import environments
from balancer_tests import AdminStack, RunningBalancerTests, TokenTests
from browser import StatusPage, find_program, load_axe_core
from mocked_tests import MockedStateTests
from table_tests import TableTests
from stack import StackError


class TestRunner:
    """Runs the methods of a suite as tests, and prints and counts their results."""

    def __init__(self, name_filter):
        self.name_filter, self.passed, self.failed = name_filter, 0, 0

    def run(self, suite):
        for name in [name for name, value in vars(type(suite)).items() if callable(value) and not name.startswith(("_", "assert_"))]:
            if self.name_filter not in name:
                continue
            start, failure, suite.note = time.monotonic(), None, None
            try:
                getattr(suite, name)()
            except Exception:
                failure = traceback.format_exc(limit=-2)
            self.report(name.replace("_", " "), failure, f"{time.monotonic() - start:.1f} s" + (f"; {suite.note}" if suite.note else ""))

    def report(self, name, failure, details):
        if failure is None:
            self.passed += 1
            print(f"ok      {name} ({details})", flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}\n        " + failure.strip().replace("\n", "\n        "), flush=True)


def main():
    arguments = sys.argv[1:]
    name_filter = ""
    if "-k" in arguments:
        at = arguments.index("-k")
        name_filter = arguments[at + 1].replace(" ", "_")
        del arguments[at : at + 2]
    binary = Path(arguments[0]).resolve() if arguments else None
    if binary and not binary.exists():
        raise SystemExit(f"{binary} is missing: build it with `cargo build`, or pass another path")
    find_program("chromium"), find_program("chromedriver")
    interpreter = environments.python_environment("page", HERE / "requirements.txt")
    if Path(sys.prefix) != interpreter.parents[1]:
        os.execv(interpreter, [interpreter, __file__, *sys.argv[1:]])
    # On SIGTERM, exit through the context managers, which stop the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runner, axe = TestRunner(name_filter), load_axe_core()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-page-", ignore_cleanup_errors=True) as directory:
        directory = Path(directory)
        page = StatusPage(directory / "browser")
        try:
            for suite in (MockedStateTests, TableTests) if not os.environ.get("ONLY_REAL") else ():
                runner.run(suite(page, axe))
            if binary:
                run_with_balancer(runner, page, binary, directory)
        finally:
            page.driver.quit()
    print(f"{runner.passed} passed, {runner.failed} failed", flush=True)
    return 1 if runner.failed else 0


def run_with_balancer(runner, page, binary, directory):
    for suite, token in ((RunningBalancerTests, None), (TokenTests, "t0ken-of-the-page")):
        suite_directory = directory / suite.__name__
        suite_directory.mkdir()
        balancer, failed = AdminStack(binary, suite_directory), runner.failed
        balancer.token = token
        try:
            with balancer:
                runner.run(suite(page, balancer))
        except StackError as failure:
            runner.report("the processes under test", str(failure), "")
        if runner.failed > failed:
            print(f"\nthe end of the balancer's log:\n{balancer.log('balancer.log')}")


if __name__ == "__main__":
    raise SystemExit(main())
