"""Runs the official SDKs and what is built on them, unmodified, against the running balancer in front of simulated resources.

    python3 tests/sdk/run.py [target/debug/aoai-lb]

Needs Python 3.11 or later and Node 20 or later. Prints one line per test, and the counts in the last line.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

import environments
from affinity_run import run_affinity_suites
from documentation_run import run_documentation_snippets
from limits_run import run_limit_suites
from record import RecordFile
from sockets_run import run_socket_suite
from stack import FAILING_MOODS, STOP_TIMEOUT, SUITES, StackError, Stack, wait_for_condition
from suite_process import TestReport, run_suite_process

HERE = Path(__file__).resolve().parent
SUITE_TIMEOUT = 60.0
CURRENT_PYTHON_SUITES = ["python_current", "python_websockets", "python_failures", "python_http2"]


def main():
    binary = Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parents[1] / "target/debug/aoai-lb").resolve()
    if not binary.exists():
        raise SystemExit(f"{binary} is missing: build it with `cargo build`, or pass another path")
    current_python = environments.python_environment("python", "requirements.txt")
    old_python = environments.python_environment("python-028", "requirements-028.txt")
    node_directory = environments.node_environment()
    commands = {
        "python": [[current_python, HERE / f"{name}.py"] for name in CURRENT_PYTHON_SUITES],
        "python-028": [[old_python, HERE / "python_028.py"]],
        "node": [[environments.find_node_and_npm()[0], node_directory / f"{name}.mjs"] for name in ["node", "websockets"]],
    }
    # On SIGTERM, exit through the context managers, which stop the started processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = TestReport()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-sdk-") as directory:
        stack = Stack(binary, Path(directory))
        try:
            with stack:
                for name in SUITES:
                    for command in commands[name]:
                        run_suite(stack, report, name, command)
                code = stack.stop_edge()
                report.add("http/2: the balancer in front exits with 0", None if code == 0 else f"exit code {code}")
                run_shutdown_test(stack, report, [current_python, HERE / "python_stop.py"])
                check_record_file(stack, report)
        except (StackError, subprocess.TimeoutExpired) as failure:
            report.add("the processes under test", str(failure))
        if report.failed:
            print(f"\nthe end of the balancer's log:\n{stack.log('balancer.log')}")
    run_documentation_snippets(binary, report)
    run_traces_check(binary, report)
    run_affinity_suites(binary, report)
    run_socket_suite(binary, report)
    run_limit_suites(binary, report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


def run_traces_check(binary, report):
    """Decodes exported traces with OpenTelemetry's own messages."""
    command = [environments.python_environment("traces", "requirements-traces.txt"), HERE / "traces_check.py", binary]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=SUITE_TIMEOUT)
    report.add("traces: they are what OpenTelemetry's messages describe", completed.stdout + completed.stderr if completed.returncode else None)


def run_suite(stack, report, name, command, on_marker=lambda: None):
    """Runs a suite in its own process; calls `on_marker` when the suite reports a marker."""
    suite_variables = {"CLIENT_NAME": name, "CLIENT_KEY": stack.keys[name], "BALANCER_URL": stack.url}
    suite_variables |= {"TLS_URL": stack.tls_url, "EDGE_URL": stack.edge_url, "EDGE_CA": str(stack.certificate)}
    shared_variables = {
        "LIMITED_KEY": stack.keys["limited"],
        "COLLEAGUE_KEY": stack.keys["colleague"],
        "FAILING": ",".join(FAILING_MOODS),
    }
    on_result = lambda result: check_result(stack, report, name, result)
    variables = suite_variables | shared_variables
    run_suite_process(report, name, command, variables, SUITE_TIMEOUT, on_result, lambda _: on_marker())


def check_result(stack, report, suite, result):
    """A test passes if its assertions hold and its expected records are in the file."""
    problem, record, period = result["error"], RecordFile(stack.record), (result["start"], result["end"])
    if problem is None:
        problem = record.compare(*period, result["records"])
    if problem is None:
        report.requests += len(result["records"])
    else:
        # A failed test may have made fewer requests than it expects, so its records are counted at the end.
        report.unsettled_periods.append(period)
    report.add(f"{suite}: {result['test']}", problem, result["end"] - result["start"])


def run_shutdown_test(stack, report, command):
    """Sends SIGTERM in the middle of a stream: readiness fails, the stream is finished, the exit code is 0."""
    health_while_draining = []

    def send_sigterm_and_probe():
        stack.send_sigterm()
        wait_for_condition(lambda: stack.get_status("/readyz") == 503, STOP_TIMEOUT, "/readyz does not answer 503")
        health_while_draining.append(stack.get_status("/healthz"))

    run_suite(stack, report, SUITES[0], command, on_marker=send_sigterm_and_probe)
    if not health_while_draining:
        stack.send_sigterm()
    report.add("stop: /readyz is 503 and /healthz is 200 while draining", None if health_while_draining == [200] else f"/healthz: {health_while_draining}")
    code = stack.wait_for_exit()
    report.add("stop: the balancer exits with 0", None if code == 0 else f"exit code {code}")
    code = stack.stop_simulator()
    report.add("stop: the simulator exits with 0", None if code == 0 else f"exit code {code}")


def check_record_file(stack, report):
    """After the shutdown: one line per request, unique ids, and no key in the file or the log."""
    record, problem = RecordFile(stack.record), None
    lines = record.read_lines()
    requests = report.requests + sum(len(record.between(*period)) for period in report.unsettled_periods)
    if len(lines) != requests:
        problem = f"{len(lines)} lines for {requests} requests"
    elif len({line["request_id"] for line in lines}) != len(lines):
        problem = "two lines have the same request_id"
    elif not stack.record.read_bytes().endswith(b"\n"):
        problem = "the last line is truncated"
    report.add("record: one line per request of an SDK", problem)
    secrets = [*stack.keys.values(), *stack.resource_keys.values()]
    written_text = stack.record.read_text() + stack.log("balancer.log", None)
    leaked = [secret for secret in secrets if secret in written_text]
    report.add("record: no key in the file or the log", f"{len(leaked)} keys found" if leaked else None)


if __name__ == "__main__":
    raise SystemExit(main())
