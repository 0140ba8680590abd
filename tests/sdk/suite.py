"""Shared by the Python suites: tests are functions, and each reports one line of JSON to the runner.

Uses only the standard library, since it runs in the virtual environments of the SDKs.
"""

import asyncio
import inspect
import json
import os
import sys
import time
import traceback

URL = os.environ["BALANCER_URL"]
KEY = os.environ["CLIENT_KEY"]
CLIENT = os.environ["CLIENT_NAME"]
LIMITED_KEY = os.environ["LIMITED_KEY"]
COLLEAGUE_KEY = os.environ["COLLEAGUE_KEY"]

FAILING_MOODS = os.environ["FAILING"].split(",")

NOT_NULL = {"not_null": True}

_tests = []
_expected = []
_expected_turns = {}


def test(name):
    """Registers a function, or a coroutine function, as a test."""

    def register(function):
        _tests.append((name, function))
        return function

    return register


def expect(**fields):
    """Expects one record with these fields, see record.py."""
    fields.setdefault("client", CLIENT)
    _expected.append(fields)


def expect_turns(**counts):
    """Expects so many requests of each kind, see affinity_check.py; adds to what was expected before."""
    for kind, count in counts.items():
        _expected_turns[kind] = _expected_turns.get(kind, 0) + count


def ask_runner(action, **arguments):
    """Has the runner do something to the processes under test, and returns its reply."""
    report(action=action, **arguments)
    return json.loads(sys.stdin.readline())


def contains(text):
    return {"contains": text}


def at_least(number):
    return {"at_least": number}


def own_deployment(mood):
    """The deployment of this suite with that mood."""
    return f"{mood}-{CLIENT}"


def raises(error_type, function, *arguments, **named):
    """Calls a function, which must raise an error of this type, and returns the error."""
    try:
        function(*arguments, **named)
    except error_type as error:
        return error
    raise AssertionError(f"no {error_type.__name__} was raised")


def report(**line):
    print(json.dumps(line), flush=True)


def run_tests():
    for name, function in _tests:
        _expected.clear()
        _expected_turns.clear()
        start, error = time.time(), None
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(function())
            else:
                function()
        except Exception:
            error = traceback.format_exc(limit=-2)
        report(test=name, start=start, end=time.time(), error=error, records=_expected, turns=_expected_turns)
