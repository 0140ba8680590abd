"""The exchange record, read back: one line per request of an SDK, saying what the SDK saw.

A test tells the fields it expects of each of its requests. A field is expected by value, or by one of
    {"contains": TEXT}   a string with that text in it
    {"least": N}         a number not smaller
    {"known": true}      anything but null
Next to the record's own fields there are `statuses` and `backends`, those of the attempts in order.
"""

import itertools
import json
import time
from datetime import datetime

WAIT = 5.0


class Record:
    def __init__(self, path):
        self.path = path

    def lines(self):
        """All lines that are whole; each must be an object."""
        if not self.path.exists():
            return []
        whole, _, _ = self.path.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def between(self, begun, ended):
        """The lines of the requests that arrived then."""
        lines = [line for line in self.lines() if begun <= arrival(line) <= ended]
        return sorted(lines, key=arrival)

    def compare(self, begun, ended, expected):
        """What differs from the expectation, as text; None when nothing does."""
        deadline = time.monotonic() + WAIT
        while True:
            lines = self.between(begun, ended)
            found = difference(lines, expected)
            # A line may be a moment late: that of a client that left, or of a WebSocket.
            if found is None or len(lines) >= len(expected) or time.monotonic() > deadline:
                return found
            time.sleep(0.02)


def arrival(line):
    return datetime.fromisoformat(line["time"]).timestamp()


def difference(lines, expected):
    left = list(lines)
    for fields in expected:
        match = next((line for line in left if not wrong(line, fields)), None)
        if match is None:
            closest = min(left, key=lambda line: len(wrong(line, fields)), default=None)
            if closest is None:
                return f"no line in the record for {fields}"
            return f"record: {wrong(closest, fields)} in {closest}"
        left.remove(match)
    if left:
        return f"record: {len(left)} more lines than requests, such as {left[0]}"
    return None


def wrong(line, fields):
    """The fields of a line that are not as expected: what was expected, what is there."""
    attempts = line.get("attempts") or []
    pairs = itertools.zip_longest(attempts, attempts[1:])
    line = line | {
        "statuses": [attempt["status"] for attempt in attempts],
        "backends": [attempt["backend"] for attempt, after in pairs if not is_stale(attempt, after)],
    }
    return {
        name: {"expected": value, "seen": line.get(name, "(no such field)")}
        for name, value in fields.items()
        if name not in line or not fits(value, line[name])
    }


def is_stale(attempt, after):
    """Whether an idle connection had ended, and the same backend was asked again at once."""
    return after is not None and attempt["error"] == "reset" and attempt["backend"] == after["backend"]


def fits(expected, seen):
    if not isinstance(expected, dict):
        return expected == seen
    if "contains" in expected:
        return isinstance(seen, str) and expected["contains"] in seen
    if "least" in expected:
        return isinstance(seen, int) and seen >= expected["least"]
    return seen is not None
