"""Checks after a test of affinity: how each request found its resource, and that no byte was changed.

A test expects so many requests of each kind:
    new        refers to nothing
    learned    its resource was known: one attempt, nobody was asked
    waited     its resource was known and asked again until the object could be read
    found      its resource was not known
    learned_or_found   one of these two
    default    names neither a deployment nor an object
    refused    was answered with an error, by the balancer or by the resources
    socket     is a WebSocket itself
and `asked` is how many resources may have denied an object, over all requests, and `over_sockets` how many of them
are turns of a WebSocket. With `over_sockets_at_least` WebSockets and their turns are of no kind.
"""

import time
from collections import Counter

from record import RECORD_TIMEOUT, RecordFile, is_stale
from stack import wait_for_condition

KINDS = ["new", "learned", "waited", "found", "default", "refused", "socket"]


def check_turns(stack, start, end, expected):
    """A description of the first difference; None if there is none."""
    if not expected:
        return "the test expects nothing"
    deadline = time.monotonic() + RECORD_TIMEOUT
    # The line of a client that has left is written a moment later.
    while (problem := find_difference(stack, start, end, expected)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return problem


def find_difference(stack, start, end, expected):
    lines = lines_between(stack, start, end)
    counted = lines if "over_sockets_at_least" not in expected else [line for line in lines if not is_of_socket(line)]
    expected_counts = Counter({kind: expected.get(kind, 0) for kind in KINDS})
    counts = Counter({kind: 0 for kind in KINDS} | Counter(map(kind_of, counted)))
    if "learned_or_found" in expected:
        expected_counts |= Counter({"learned": expected["learned_or_found"] - counts["found"], "found": counts["found"]})
    if counts != expected_counts:
        seen = "\n".join(map(summary, lines))
        return f"expected {dict(expected_counts)}, seen {dict(counts)}:\n{seen}"
    asked = sum((line["affinity"] or {}).get("asked", 0) for line in lines if kind_of(line) != "waited")
    if asked > expected.get("asked", 0):
        return f"{asked} resources were asked in vain:\n" + "\n".join(summary(line) for line in lines if line["affinity"])
    return check_socket_turns(lines, expected) or check_attempts(stack, start, end, lines)


def lines_between(stack, start, end):
    return [line for instance in stack.instances.values() for line in RecordFile(instance.record).between(start, end)]


def is_of_socket(line):
    """Whether it is a WebSocket or a turn of one."""
    return line["status"] == 101 or line["method"] == "WEBSOCKET"


def check_socket_turns(lines, expected):
    """Each turn of a WebSocket has a record of its own, with its tokens, and so has each WebSocket."""
    sockets = {line["request_id"] for line in lines if line["status"] == 101}
    turns = [line for line in lines if line["method"] == "WEBSOCKET"]
    at_least = expected.get("over_sockets_at_least", 0)
    if len(turns) < at_least or (not at_least and len(turns) != expected.get("over_sockets", 0)):
        return f"{len(turns)} turns over WebSockets:\n" + "\n".join(map(summary, lines))
    for line in turns:
        if line["socket_id"] not in sockets:
            return f"no record of the WebSocket of {line}"
        if line["status"] == 200 and not line["total_tokens"]:
            return f"no tokens in {line}"
    return None


def socket_backends(stack, start, end):
    """How many turns over WebSockets each resource has answered."""
    return Counter(line["backend"] for line in socket_turns(stack, start, end) if line["status"] == 200)


def count_statuses(stack, start, end, turns):
    """How often each resource has answered an attempt of these turns over WebSockets with which status."""
    wait_for_condition(lambda: len(socket_turns(stack, start, end)) >= turns, RECORD_TIMEOUT, "there are no records of all turns")
    attempts = [attempt for line in socket_turns(stack, start, end) for attempt in line["attempts"]]
    return Counter(f"{attempt['backend']} {attempt['status']}" for attempt in attempts)


def socket_turns(stack, start, end):
    return [line for line in lines_between(stack, start, end) if line["method"] == "WEBSOCKET"]


def kind_of(line):
    affinity = line["affinity"]
    if line["status"] == 101:
        return "socket"
    if line["status"] is None or line["status"] >= 400:
        return "refused"
    if affinity is None:
        return "new"
    if affinity["how"] == "learned":
        return "learned" if affinity["asked"] == 0 and len(own_attempts(line)) == 1 else "waited"
    return {"asked": "found", "default": "default"}[affinity["how"]]


def own_attempts(line):
    """The attempts, without those that failed on a stale connection and were repeated at once."""
    attempts = line["attempts"]
    return [attempt for attempt, following in zip(attempts, [*attempts[1:], None]) if not is_stale(attempt, following)]


def summary(line):
    attempts = ", ".join(f"{attempt['backend']} {attempt['status'] or attempt['error']}" for attempt in line["attempts"])
    return f"  {line['method']} {line['path']}: {line['status']}, {line['affinity']}, attempts: {attempts}"


def check_attempts(stack, start, end, lines):
    """The resources have seen as many requests as the records tell of, and no others."""
    recorded = Counter(attempt["backend"] for line in lines for attempt in line["attempts"])
    seen = Counter({name: len(tap.exchanges_between(start, end)) for name, tap in stack.resource_taps.items()})
    stale = sum(len(line["attempts"]) - len(own_attempts(line)) for line in lines)
    if sum((recorded - seen).values()) > stale or seen - recorded:
        return f"recorded attempts: {dict(recorded)}; requests at the resources: {dict(seen)}"
    return None


def check_bytes(stack, start, end):
    """Bodies are the same on both sides of the balancers: how many were compared, and a difference if there is one."""
    at_resources = {}
    for tap in stack.resource_taps.values():
        for exchange in tap.exchanges_between(start, end):
            if request_id := exchange.response_headers.get("apim-request-id"):
                at_resources[request_id] = exchange
    compared, compared_bytes = 0, 0
    for tap in stack.client_taps.values():
        for exchange in tap.exchanges_between(start, end):
            at_resource = at_resources.get(exchange.response_headers.get("apim-request-id"))
            # An answer of the balancer itself, or a client that left in the middle.
            if at_resource is None or exchange.status is None or at_resource.status is None:
                continue
            for name in ["target", "request_sha256", "status", "response_sha256"]:
                here, there = getattr(exchange, name), getattr(at_resource, name)
                if here != there and not (name == "target" and is_mapped(here)):
                    return compared, compared_bytes, f"{exchange.method} {exchange.target}: {name} is {here} for the client, {there} for the resource"
            compared, compared_bytes = compared + 1, compared_bytes + exchange.response_bytes
    return compared, compared_bytes, None


def is_mapped(target):
    """Paths of OpenAI itself become those of Azure."""
    return target.startswith("/v1/")
