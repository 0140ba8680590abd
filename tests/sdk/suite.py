"""What the Python suites share: tests are functions, and each reports one line of JSON.

Standard library only, for Python 3.11 and later: it runs within the SDKs' environments.
"""

import asyncio
import inspect
import json
import os
import time
import traceback

URL = os.environ["BALANCER_URL"]
KEY = os.environ["CLIENT_KEY"]
CLIENT = os.environ["CLIENT_NAME"]
LIMITED_KEY = os.environ["LIMITED_KEY"]
COLLEAGUE_KEY = os.environ["COLLEAGUE_KEY"]

FAILING = os.environ["FAILING"].split(",")

KNOWN = {"known": True}

_tests = []
_expected = []


def test(name):
    """Registers a function, or a coroutine function, as a test."""

    def register(function):
        _tests.append((name, function))
        return function

    return register


def expect(**fields):
    """One line of the record, see record.py."""
    fields.setdefault("client", CLIENT)
    _expected.append(fields)


def contains(text):
    return {"contains": text}


def least(number):
    return {"least": number}


def mine(mood):
    """This suite's deployment in that mood."""
    return f"{mood}-{CLIENT}"


def raises(kind, function, *arguments, **named):
    """The exception of that kind which a call must end in."""
    try:
        function(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def say(**line):
    print(json.dumps(line), flush=True)


def run():
    for name, function in _tests:
        _expected.clear()
        begun, error = time.time(), None
        try:
            if inspect.iscoroutinefunction(function):
                asyncio.run(function())
            else:
                function()
        except Exception:
            error = traceback.format_exc(limit=-2)
        say(test=name, begun=begun, ended=time.time(), error=error, records=_expected)
