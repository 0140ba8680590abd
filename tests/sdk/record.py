"""The exchange record, read back: one line per request of an SDK, saying what the SDK saw.

A test tells the fields it expects of each of its requests. A field is expected by value, or by one of
    {"contains": TEXT}   a string with that text in it
    {"at_least": N}         a number not smaller
    {"not_null": true}      anything but null
Next to the record's own fields there are `statuses` and `backends`, those of the attempts in order.
"""

import itertools
import json
import time
from datetime import datetime

RECORD_TIMEOUT = 5.0


class RecordFile:
    def __init__(self, path):
        self.path = path

    def read_lines(self):
        """All lines that are whole; each must be an object."""
        if not self.path.exists():
            return []
        complete_lines, _, _ = self.path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in complete_lines.splitlines()]

    def between(self, start, end):
        """The lines of the requests that arrived then."""
        lines = [line for line in self.read_lines() if start <= arrival_time(line) <= end]
        return sorted(lines, key=arrival_time)

    def compare(self, start, end, expected):
        """What differs from the expectation, as text; None when nothing does."""
        deadline = time.monotonic() + RECORD_TIMEOUT
        while True:
            lines = self.between(start, end)
            problem = difference(lines, expected)
            # A line may be a moment late: that of a client that left, or of a WebSocket.
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
    """The fields of a line that are not as expected: what was expected, what is there."""
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
    """Whether an idle connection had ended, and the same backend was asked again at once."""
    return next_attempt is not None and attempt["error"] == "reset" and attempt["backend"] == next_attempt["backend"]


def matches(expected, actual):
    if not isinstance(expected, dict):
        return expected == actual
    if "contains" in expected:
        return isinstance(actual, str) and expected["contains"] in actual
    if "at_least" in expected:
        return isinstance(actual, int) and actual >= expected["at_least"]
    return actual is not None
