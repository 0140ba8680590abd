"""Compares the records of the balancer with what the tests expect: one line per request of an SDK.

A test reports the fields it expects for each of its requests. A field is expected by value, or by one of
    {"contains": TEXT}   a string that contains the text
    {"at_least": N}         a number of at least N
    {"not_null": true}      any value but null
Next to the record's own fields there are `statuses` and `backends`, those of the attempts in order.
"""

import itertools
import json
import time
from datetime import datetime

RECORD_TIMEOUT = 15


class RecordFile:
    def __init__(self, path):
        self.path = path

    def read_lines(self):
        """All complete lines, parsed."""
        if not self.path.exists():
            return []
        complete_lines, _, _ = self.path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in complete_lines.splitlines()]

    def between(self, start, end):
        """The lines of the requests that arrived in this period."""
        lines = [line for line in self.read_lines() if start <= arrival_time(line) <= end]
        return sorted(lines, key=arrival_time)

    def compare(self, start, end, expected):
        """A description of the first difference; None if there is none."""
        deadline = time.monotonic() + RECORD_TIMEOUT
        while True:
            lines = self.between(start, end)
            problem = difference(lines, expected)
            # The line of a disconnected client or of a WebSocket may be written a moment later.
            if problem is None or len(lines) >= len(expected) or time.monotonic() > deadline:
                return problem
            time.sleep(0.02)


def arrival_time(line):
    return datetime.fromisoformat(line["time"]).timestamp()


def difference(lines, expected):
    remaining = list(lines)
    for fields in expected:
        match = next((line for line in remaining if not mismatches(line, fields)), None)
        if match is None:
            closest = min(remaining, key=lambda line: len(mismatches(line, fields)), default=None)
            if closest is None:
                return f"no line in the record for {fields}"
            return f"record: {mismatches(closest, fields)} in {closest}"
        remaining.remove(match)
    if remaining:
        return f"record: {len(remaining)} more lines than requests, such as {remaining[0]}"
    return None


def mismatches(line, fields):
    """The fields of a line that differ: expected and actual value."""
    attempts = line.get("attempts") or []
    pairs = itertools.zip_longest(attempts, attempts[1:])
    line = line | {
        "statuses": [attempt["status"] for attempt in attempts],
        "backends": [attempt["backend"] for attempt, next_attempt in pairs if not is_stale(attempt, next_attempt)],
    }
    return {
        name: {"expected": value, "seen": line.get(name, "(no such field)")}
        for name, value in fields.items()
        if name not in line or not matches(value, line[name])
    }


def is_stale(attempt, next_attempt):
    """Whether an attempt failed on a stale connection and was repeated at once on the same backend."""
    return next_attempt is not None and attempt["error"] == "reset" and attempt["backend"] == next_attempt["backend"]


def matches(expected, actual):
    if not isinstance(expected, dict):
        return expected == actual
    if "contains" in expected:
        return isinstance(actual, str) and expected["contains"] in actual
    if "at_least" in expected:
        return isinstance(actual, int) and actual >= expected["at_least"]
    return actual is not None
