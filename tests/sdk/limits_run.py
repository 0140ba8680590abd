"""Runs the suites about the limits of clients, each test with clients of its own, since it uses up their limits."""

import json
import sys
import tempfile
from pathlib import Path

import environments
from affinity_stack import SingleStack
from record import RecordFile
from stack import StackError
from suite_process import TestReport, run_suite_process

HERE = Path(__file__).resolve().parent
SUITE_TIMEOUT = 60.0
# By the first part of the names of the clients.
CLIENT_FIELDS = {
    "in-flight": "limits: { in_flight: 1 }",
    "requests": "limits: { requests_per_minute: 2 }",
    "budget": "limits: { tokens_per_day: 100 }",
    "tokens": "limits: { tokens_per_minute: 1000 }",
    "observed": "limits: { requests_per_minute: 1 }",
    "socket": "limits: { requests_per_minute: 1 }",
    "unlimited": "class: interactive",
}
# The other part is the kind of client of the SDKs that uses it.
KINDS = ["sync", "async", "node"]


class LimitStack(SingleStack):
    """One balancer whose clients have limits; requests choose how the resources respond."""

    resource_yaml = "moods_by_header: true"
    extra_yaml = "limits: { mode: enforce }"


def run_limit_suites(binary, report):
    commands = {
        "limits-python": [environments.python_environment("python", "requirements.txt"), HERE / "python_limits.py"],
        "limits-node": [environments.find_node_and_npm()[0], environments.node_environment() / "limits.mjs"],
    }
    failed_before = report.failed
    with tempfile.TemporaryDirectory(prefix="aoai-lb-limits-") as directory:
        stack = LimitStack(binary, Path(directory))
        for kind in KINDS:
            for name, fields in CLIENT_FIELDS.items():
                stack.add_client(f"{name}-{kind}", f", {fields}")
        try:
            with stack:
                for name, command in commands.items():
                    run_suite(stack, report, name, command)
        except StackError as failure:
            report.add("limits: the processes under test", str(failure))
        if report.failed > failed_before:
            print(f"\nthe end of the log:\n{stack.log()}")


def run_suite(stack, report, name, command):
    variables = {"BALANCER_URL": f"http://127.0.0.1:{stack.instance.port}", "LIMIT_KEYS": json.dumps(stack.keys)}
    # What only other suites use.
    variables |= {"CLIENT_NAME": "", "CLIENT_KEY": "", "LIMITED_KEY": "", "COLLEAGUE_KEY": "", "FAILING": ""}
    record = RecordFile(stack.instance.record)

    def on_result(result):
        problem = result["error"] or record.compare(result["start"], result["end"], result["records"])
        report.add(f"{name}: {result['test']}", problem, result["end"] - result["start"])

    run_suite_process(report, name, command, variables, SUITE_TIMEOUT, on_result, lambda line: change_mode(stack.instance, line))


def change_mode(instance, line):
    """Has the balancer enforce or only observe limits: `{"action": "change mode", "old": …, "new": …}`."""
    instance.replace_in_file(f"mode: {line['old']}", f"mode: {line['new']}")
    instance.reload()
    return {}


def main():
    """Runs these suites alone: limits_run.py BINARY"""
    report = TestReport()
    run_limit_suites(Path(sys.argv[1]).resolve(), report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
