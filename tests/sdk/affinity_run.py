"""Runs the suites about what was made on one resource: chains, files, containers, and the balancer's restarts."""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import environments
from affinity_check import check_bytes, check_turns, count_statuses, socket_backends
from affinity_stack import AffinityStack
from stack import StackError, wait_for_condition
from suite_process import run_suite_process

HERE = Path(__file__).resolve().parent
SUITE_TIMEOUT = 90.0
REPLACED_TIMEOUT = 30.0


def suites():
    """The command of each suite, by the name of its client."""
    python = environments.python_environment("python", "requirements.txt")
    agents = environments.python_environment("agents", "requirements-agents.txt")
    langchain = environments.python_environment("langchain", "requirements-langchain.txt")
    codex = environments.codex_program()
    node_directory = environments.node_environment()
    return {
        "affinity-python": [python, HERE / "python_affinity.py"],
        "affinity-objects": [python, HERE / "python_objects.py"],
        "sockets": [python, HERE / "python_sockets.py"],
        "affinity-restarts": [python, HERE / "python_restarts.py"],
        "affinity-node": [environments.find_node_and_npm()[0], node_directory / "affinity.mjs"],
        "agents": [agents, HERE / "agents_affinity.py"],
        "langchain": [langchain, HERE / "langchain_affinity.py"],
        "codex": [sys.executable, HERE / "codex_affinity.py", codex],
    }


def run_affinity_suites(binary, report, only=None):
    commands = {name: command for name, command in suites().items() if only is None or name in only}
    with tempfile.TemporaryDirectory(prefix="aoai-lb-affinity-") as directory:
        stack = AffinityStack(binary, Path(directory))
        for name in [*commands, "colleague"]:
            stack.add_client(name)
        failed_before = report.failed
        try:
            with stack:
                totals = Counter()
                for name, command in commands.items():
                    run_suite(stack, report, name, command, totals)
                compared = f"{totals['exchanges']} exchanges with {totals['bytes']} bytes"
                report.add(f"affinity: bodies are unchanged both ways, {compared}", None if totals["exchanges"] else "none were compared")
        except StackError as failure:
            report.add("affinity: the processes under test", str(failure))
        if report.failed > failed_before:
            print(f"\nthe ends of the logs:\n{stack.log()}")


def run_suite(stack, report, name, command, totals):
    variables = {"CLIENT_NAME": name, "CLIENT_KEY": stack.keys[name], "COLLEAGUE_KEY": stack.keys["colleague"]}
    variables |= {"BALANCER_URL": stack.url("alone"), "PAIR_URL": stack.url("pair"), "OWNED_URL": stack.url("owned")}
    # What only other suites use.
    variables |= {"LIMITED_KEY": "", "FAILING": ""}

    def on_result(result):
        problem, period = result["error"], (result["start"], result["end"])
        exchanges, size, difference = check_bytes(stack, *period)
        problem = problem or check_turns(stack, *period, result["turns"]) or difference
        totals.update(exchanges=exchanges, bytes=size)
        backends = socket_backends(stack, *period)
        over_sockets = ", over sockets to " + ", ".join(f"{name} {count}" for name, count in sorted(backends.items())) if backends else ""
        report.add(f"{name}: {result['test']}{over_sockets}", problem, result["end"] - result["start"])

    run_suite_process(report, name, command, variables, SUITE_TIMEOUT, on_result, lambda line: do_action(stack, line))


def do_action(stack, line):
    """Does what a suite asks for between its requests."""
    instance = stack.instances.get(line.get("instance", "alone"))
    match line["action"]:
        case "kill":
            instance.kill()
            instance.start()
        case "save and kill":
            instance.wait_until_saved()
            instance.kill()
            instance.start()
        case "restart":
            instance.stop()
            instance.start()
        case "forget":
            instance.stop()
            instance.forget()
            instance.start()
        case "reload":
            instance.reload()
        case "upgrade":
            instance.upgrade()
        case "upgrade and wait":
            instance.upgrade()
            wait_for_condition(instance.is_replaced, REPLACED_TIMEOUT, "the old process does not exit")
        case "wait for old process":
            wait_for_condition(instance.is_replaced, REPLACED_TIMEOUT, "the old process does not exit")
        case "move home":
            instance.replace_in_file("home: east", "home: west")
            instance.reload()
        case "exhaust":
            stack.exhaust(line["resource"])
        case "count statuses":
            return count_statuses(stack, line["start"], line["end"], line["turns"])
        case "count requests":
            taps = stack.resource_taps
            return {name: len(tap.exchanges_between(line["start"], line["end"])) for name, tap in taps.items()}
        case unknown:
            raise StackError(f"no such action: {unknown}")
    return {}


def main():
    """Runs these suites alone, or only some of them: affinity_run.py BINARY [SUITE…]"""
    from suite_process import TestReport

    report = TestReport()
    run_affinity_suites(Path(sys.argv[1]).resolve(), report, sys.argv[2:] or None)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    return 1 if report.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
