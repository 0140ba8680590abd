"""Runs the suite about what happens to many Responses WebSockets when the balancer is replaced, stopped or killed."""

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import environments
from affinity_stack import SingleStack
from record import RECORD_TIMEOUT, RecordFile
from stack import STOP_TIMEOUT, StackError, wait_for_condition
from suite_process import TestReport, run_suite_process

HERE = Path(__file__).resolve().parent
SUITE_TIMEOUT = 90.0
EVENT_INTERVAL = "150ms"
CLIENT = "sockets"


class SocketStack(SingleStack):
    """One balancer in front of three resources whose responses take a while."""

    resource_yaml = f"between_events: {EVENT_INTERVAL}"


def run_socket_suite(binary, report):
    python = environments.python_environment("python", "requirements.txt")
    failed_before = report.failed
    with tempfile.TemporaryDirectory(prefix="aoai-lb-sockets-") as directory:
        stack = SocketStack(binary, Path(directory))
        stack.add_client(CLIENT)
        try:
            with stack:
                url = f"http://127.0.0.1:{stack.instance.port}"
                variables = {"CLIENT_NAME": CLIENT, "CLIENT_KEY": stack.keys[CLIENT], "BALANCER_URL": url}
                # What only other suites use.
                variables |= {"LIMITED_KEY": "", "COLLEAGUE_KEY": "", "FAILING": ""}
                on_result = lambda result: report.add(f"{CLIENT}: {result['test']}", result["error"], result["end"] - result["start"])
                on_action = lambda line: do_action(stack.instance, line)
                run_suite_process(report, CLIENT, [python, HERE / "python_socket_ends.py"], variables, SUITE_TIMEOUT, on_result, on_action)
        except StackError as failure:
            report.add("sockets: the processes under test", str(failure))
        if report.failed > failed_before:
            print(f"\nthe end of the log:\n{stack.log()}")


def do_action(instance, line):
    """Does what the suite asks for."""
    match line["action"]:
        case "upgrade":
            instance.upgrade()
        case "await exit of the old process":
            wait_for_condition(instance.is_replaced, STOP_TIMEOUT, "the old process does not exit")
        case "restart":
            instance.stop()
            instance.start()
        case "kill":
            instance.kill()
            instance.start()
        case "find problem in records":
            return {"problem": find_problem(RecordFile(instance.record), line)}
        case unknown:
            raise StackError(f"no such action: {unknown}")
    return {}


def find_problem(record, line):
    """What is wrong with the records of this period: each of these turns has one, each socket has one, and unless
    `others` there are no others."""
    names, sockets, problem = Counter(line["turns"]), line["sockets"], None
    is_complete = lambda: problem_of_records(record.between(line["start"], line["end"]), names, sockets, line["others"]) is None
    try:
        wait_for_condition(is_complete, RECORD_TIMEOUT, "")
    except StackError:
        problem = problem_of_records(record.between(line["start"], line["end"]), names, sockets, line["others"])
    return problem


def problem_of_records(lines, names, sockets, has_others):
    turns = [line for line in lines if line["method"] == "WEBSOCKET"]
    answered = Counter(name_of(line) for line in turns if line["outcome"] == "answered" and line["total_tokens"])
    if missing := names - answered:
        return f"{missing.total()} of {names.total()} turns without a record, such as {next(iter(missing))}"
    if repeated := answered - names if not has_others else Counter({name: count for name, count in answered.items() if count > 1}):
        return f"{repeated.total()} records too many, such as {next(iter(repeated))}"
    if not has_others and len(turns) != names.total():
        return f"{len(turns)} records of {names.total()} turns: {Counter(line['outcome'] for line in turns)}"
    opened = [line for line in lines if line["status"] == 101]
    if sockets is not None and len(opened) != sockets:
        return f"{len(opened)} records of {sockets} sockets"
    if sockets is not None and {line["socket_id"] for line in turns} - {line["request_id"] for line in opened}:
        return "turns of sockets that have no record"
    return None


def name_of(line):
    return re.search(r"turn-\d+-\d+", line["prompt"])[0]


def main():
    """Runs this suite alone: sockets_run.py BINARY"""
    report = TestReport()
    run_socket_suite(Path(sys.argv[1]).resolve(), report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
