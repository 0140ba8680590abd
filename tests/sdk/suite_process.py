"""Runs a suite in its own process and hands on the lines that it prints."""

import json
import subprocess
import tempfile
import threading

import environments


class TestReport:
    def __init__(self):
        self.passed = self.failed = self.requests = 0
        self.unsettled_periods = []

    def add(self, name, problem=None, seconds=None):
        if problem is None:
            self.passed += 1
            print(f"ok      {name}" + (f" ({seconds:.2f} s)" if seconds is not None else ""), flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}\n        " + problem.strip().replace("\n", "\n        "), flush=True)


def run_suite_process(report, name, command, variables, timeout, on_result, on_action):
    """Calls `on_result` with each result of a test, and `on_action` with each other line.

    What `on_action` returns is sent to the suite, which waits for it, unless it is None.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environments.clean_variables() | variables,
            text=True,
        )
        kill_timer = threading.Timer(timeout, process.kill)
        kill_timer.start()
        tests = 0
        try:
            for line in process.stdout:
                result = json.loads(line)
                if "test" in result:
                    tests += 1
                    on_result(result)
                elif (reply := on_action(result)) is not None:
                    process.stdin.write(json.dumps(reply) + "\n")
                    process.stdin.flush()
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            process.stdin.close()
            kill_timer.cancel()
        if process.returncode != 0 or tests == 0:
            errors.seek(0)
            ended = f"exit code {process.returncode} after {tests} tests\n{errors.read()}"
            report.add(f"{name}: the suite as a whole", ended)
