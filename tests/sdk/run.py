"""The official SDKs, unmodified, through the running balancer in front of simulated resources.

    python3 tests/sdk/run.py [target/debug/aoai-lb]

Needs Python 3.11 or later and Node 20 or later. One line per test; the last line counts them.
"""

import json
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

sys.dont_write_bytecode = True

import environments
from record import Record
from stack import FAILING, STOP, SUITES, Failed, Stack, await_condition

HERE = Path(__file__).resolve().parent
SUITE_LIMIT = 60.0


class Tally:
    def __init__(self):
        self.passed = self.failed = self.requests = 0
        self.unsure = []

    def note(self, name, problem=None, seconds=None):
        if problem is None:
            self.passed += 1
            print(f"ok      {name}" + (f" ({seconds:.2f} s)" if seconds is not None else ""), flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}\n        " + problem.strip().replace("\n", "\n        "), flush=True)


def main():
    binary = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "target/debug/aoai-lb").resolve()
    if not binary.exists():
        raise SystemExit(f"{binary} is missing; build it, or name another")
    current = environments.python("python", "requirements.txt")
    old = environments.python("python-028", "requirements-028.txt")
    node = environments.node()
    commands = {
        "python": [[current, HERE / "python_current.py"], [current, HERE / "python_failures.py"], [current, HERE / "python_http2.py"]],
        "python-028": [[old, HERE / "python_028.py"]],
        "node": [[environments.node_tools()[0], node / "node.mjs"]],
    }
    # So that what was started is stopped, too, when somebody stops this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-sdk-") as folder:
        stack = Stack(binary, Path(folder))
        try:
            with stack:
                for name in SUITES:
                    for command in commands[name]:
                        run_suite(stack, tally, name, command)
                code = stack.stop_edge()
                tally.note("http/2: the balancer in front exits with 0", None if code == 0 else f"exit code {code}")
                run_stop(stack, tally, [current, HERE / "python_stop.py"])
                check_whole_record(stack, tally)
        except (Failed, subprocess.TimeoutExpired) as failure:
            tally.note("processes", str(failure))
        if tally.failed:
            print(f"\nthe balancer's log ends with\n{stack.log('balancer.log')}")
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed else 0


def run_suite(stack, tally, name, command, reached=lambda: None):
    """Runs a suite as a process of its own; `reached` is called where the suite says so."""
    named = {"CLIENT_NAME": name, "CLIENT_KEY": stack.keys[name], "BALANCER_URL": stack.url}
    named |= {"EDGE_URL": stack.edge_url, "EDGE_CA": str(stack.certificate)}
    others = {
        "LIMITED_KEY": stack.keys["limited"],
        "COLLEAGUE_KEY": stack.keys["colleague"],
        "FAILING": ",".join(FAILING),
    }
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environments.clean() | named | others,
            text=True,
        )
        too_late = threading.Timer(SUITE_LIMIT, process.kill)
        too_late.start()
        tests = 0
        try:
            for line in process.stdout:
                told = json.loads(line)
                if "test" in told:
                    tests += 1
                    judge(stack, tally, name, told)
                else:
                    reached()
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            too_late.cancel()
        if process.returncode != 0 or tests == 0:
            errors.seek(0)
            ended = f"exit code {process.returncode} after {tests} tests\n{errors.read()}"
            tally.note(f"{name}: the whole suite", ended)


def judge(stack, tally, suite, told):
    """A test holds when its own assertions do and the record says the same."""
    problem, record, when = told["error"], Record(stack.record), (told["begun"], told["ended"])
    if problem is None:
        problem = record.compare(*when, told["records"])
    if problem is None:
        tally.requests += len(told["records"])
    else:
        # Nobody knows how many requests a test made that ended early.
        tally.unsure.append(when)
    tally.note(f"{suite}: {told['test']}", problem, told["ended"] - told["begun"])


def run_stop(stack, tally, command):
    """SIGTERM in the middle of a stream: readiness fails first, the stream is finished, the exit is clean."""
    unready = []

    def stop():
        stack.ask_to_stop()
        await_condition(lambda: stack.probe("/readyz") == 503, STOP, "/readyz does not answer 503")
        unready.append(stack.probe("/healthz"))

    run_suite(stack, tally, SUITES[0], command, reached=stop)
    if not unready:
        stack.ask_to_stop()
    tally.note("stop: not ready but alive while draining", None if unready == [200] else f"/healthz: {unready}")
    code = stack.await_stop()
    tally.note("stop: the balancer exits with 0", None if code == 0 else f"exit code {code}")
    code = stack.stop_simulator()
    tally.note("stop: the simulator exits with 0", None if code == 0 else f"exit code {code}")


def check_whole_record(stack, tally):
    """After the stop: one line per request, each with an id of its own, and no text of a key."""
    record, problem = Record(stack.record), None
    lines = record.lines()
    requests = tally.requests + sum(len(record.between(*when)) for when in tally.unsure)
    if len(lines) != requests:
        problem = f"{len(lines)} lines for {requests} requests"
    elif len({line["request_id"] for line in lines}) != len(lines):
        problem = "two lines with one request_id"
    elif not stack.record.read_bytes().endswith(b"\n"):
        problem = "the last line is cut off"
    tally.note("record: one line per request of an SDK", problem)
    secrets = [*stack.keys.values(), *stack.resource_keys.values()]
    kept = stack.record.read_text() + stack.log("balancer.log", None)
    told = [secret for secret in secrets if secret in kept]
    tally.note("record: no key in it, nor in the log", f"{len(told)} keys are" if told else None)


if __name__ == "__main__":
    raise SystemExit(main())
