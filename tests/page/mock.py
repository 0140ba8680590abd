"""A mock of the admin API with made-up states, for the tests of the status page and for work on it.

    python3 tests/page/mock.py [STATE [PORT]]

STATE is one of healthy, problems, stopping, hundred_backends, hostile_names, null_values, missing_values.
"""

import base64
import hashlib
import json
import math
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

PAGE_FILE = Path(__file__).resolve().parents[2] / "src/admin/page.html"
TIMELINE_STEPS = 180
HOSTILE_MARKUP = "<img src=x onerror=alert(1)>"


def content_security_policy(page):
    """The Content-Security-Policy of the page, computed as the balancer does."""

    def hash_of(element):
        inside = page.split(f"<{element}>", 1)[1].split(f"</{element}>", 1)[0]
        return base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{hash_of('script')}'; style-src 'sha256-{hash_of('style')}'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class MockAdminApi:
    """The admin API on its own port. Its behaviour can be changed at any time."""

    def __init__(self, state, token=None, interval=2.0, port=0):
        self.state, self.token, self.interval = state, token, interval
        self.posts, self.streams, self.ticks = [], 0, 0
        # When each request for events arrived.
        self.event_request_times = []
        # The behaviour for requests for events: live, silent (keeps the connection open without events),
        # away (closes the connection).
        self.mode = "live"
        # A status and a message with which every POST is refused, or None.
        self.refusal = None
        self.drained = set()
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), AdminApiHandler)
        self.server.daemon_threads = True
        self.server.mock = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.update(mode="away")
        self.server.shutdown()
        self.server.server_close()

    def update(self, **changes):
        """Changes attributes and sends an event at once."""
        with self.changed:
            for name, value in changes.items():
                setattr(self, name, value)
            self.ticks += 1
            self.changed.notify_all()

    def current_status(self):
        document = self.state(self.ticks) if callable(self.state) else self.state
        for backend in document.get("backends") or []:
            if backend.get("name") in self.drained:
                backend |= {"state": "drained", "reason": "drained by the operator", "since": seconds_ago(0), "until_ms": None}
        return document


class AdminApiHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    @property
    def mock(self):
        return self.server.mock

    def reply(self, status, kind, body, **headers):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("cache-control", "no-store")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def json(self, status, value):
        self.reply(status, "application/json", json.dumps(value).encode())

    def refuse(self, status, message):
        self.json(status, {"error": {"message": message, "type": "error", "param": None, "code": "refused"}})

    def has_valid_token(self):
        return self.mock.token is None or self.headers["authorization"] == f"Bearer {self.mock.token}"

    def do_GET(self):
        if self.path == "/api/events":
            self.mock.event_request_times.append(time.monotonic())
        if self.path == "/":
            page = PAGE_FILE.read_text()
            self.reply(200, "text/html; charset=utf-8", page.encode(), content_security_policy=content_security_policy(page))
        elif not self.has_valid_token():
            self.refuse(401, "the admin API requires its token: Authorization: Bearer TOKEN")
        elif self.path == "/api/status":
            self.json(200, self.mock.current_status())
        elif self.path == "/api/events" and self.mock.mode != "away":
            self.send_events()
        elif self.path == "/api/events":
            self.close_connection = True
        else:
            self.refuse(404, "there is no such path")

    def do_POST(self):
        mock, name = self.mock, unquote(self.path.removeprefix("/api/backends/").rpartition("/")[0])
        mock.posts.append((self.path, dict(self.headers)))
        if self.headers["x-aoai-lb-admin"] != "1" or not self.has_valid_token():
            self.refuse(403, "a POST needs the header x-aoai-lb-admin: 1")
        elif mock.refusal:
            self.refuse(*mock.refusal)
        elif self.path == "/api/reload":
            self.json(200, {"result": "success", "version": 4, "needs_upgrade": [], "warnings": ["a made-up warning"]})
        else:
            is_drain = self.path.endswith("/drain")
            (mock.drained.add if is_drain else mock.drained.discard)(name)
            self.json(200, {"backend": name, "drained": is_drain, "changed": True, "in_flight": 3})
            mock.update()

    def send_events(self):
        mock = self.mock
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.close_connection = True
        self.end_headers()
        with mock.changed:
            mock.streams += 1
        try:
            self.wfile.write(b": hello\n\n")
            while mock.mode != "away":
                with mock.changed:
                    seen = mock.ticks
                    if mock.mode == "live":
                        event = f"event: status\ndata: {json.dumps(mock.current_status())}\n\n".encode()
                        # In two writes, since a network may split an event anywhere.
                        self.wfile.write(event[: len(event) // 2])
                        self.wfile.flush()
                        self.wfile.write(event[len(event) // 2 :])
                    mock.changed.wait_for(lambda: mock.ticks != seen, mock.interval)
                    if mock.ticks == seen:
                        mock.ticks += 1
        except OSError:
            pass
        finally:
            with mock.changed:
                mock.streams -= 1
                mock.changed.notify_all()


# States


def seconds_ago(seconds):
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def backend(name, tick=0, share=0.2, tier=1, **more):
    oscillation = math.sin(tick / 7 + len(name))
    document = {
        "name": name,
        "endpoint": f"contoso-{name}.openai.azure.com",
        "tier": tier,
        "weight": 1,
        "state": "healthy",
        "reason": None,
        "since": None,
        "until": None,
        "until_ms": None,
        "in_flight": 3 + round(2 * oscillation),
        "attempts": 12034 + 7 * tick,
        "counters": {"answered": 11890 + 7 * tick, "throttled": 120, "failed": 4, "refused": 18, "client_gone": 2},
        "last_minute": {
            "attempts": round(600 * share),
            "throttled": 2,
            "failed": 0,
            "share": share,
            "p50_ms": 830 + round(90 * oscillation),
            "p95_ms": 2400 + round(300 * oscillation),
        },
        "resting": [],
        "deployments": [deployment("gpt-4o", 0.5 + 0.3 * oscillation)],
    }
    return document | more


def deployment(name, remaining=0.7, **more):
    document = {"name": name, "state": "healthy", "reason": None, "since": None, "until": None, "until_ms": None}
    document |= {"remaining_tokens": round(240000 * remaining), "limit_tokens": 240000}
    document |= {"remaining_requests": round(1440 * remaining), "limit_requests": 1440, "utilization": None}
    return document | more


def unavailability(state, seconds, remaining=None, reason=None):
    until = None if remaining is None else seconds_ago(-remaining)
    document = {"state": state, "since": seconds_ago(seconds), "until": until, "until_ms": None if remaining is None else remaining * 1000}
    return document | {"reason": reason}


def pool(name, *tiers, kind="deployment"):
    def member(fields):
        return {"backend": fields[0], "upstream": fields[1], "weight": fields[2], "state": fields[3], "until_ms": fields[4]}

    listed = [{"tier": index + 1, "members": [member(fields) for fields in members]} for index, members in enumerate(tiers)]
    return {"kind": kind, "deployment": name, "tiers": listed}


def client(name, divisor):
    recent = {"requests": 88 // divisor, "input_tokens": 91000 // divisor, "output_tokens": 40200 // divisor}
    return {"name": name, "requests": 9182 // divisor, "input_tokens": 12000000 // divisor, "output_tokens": 3100000 // divisor} | {
        "last_minute": recent
    }


def timeline(tick, has_problems=False, first_known_step=TIMELINE_STEPS):
    """The last 15 minutes. The process was started `first_known_step` steps ago; before that, values are unknown."""

    def samples(value):
        return [value(index + tick / 3) if index >= TIMELINE_STEPS - first_known_step else None for index in range(TIMELINE_STEPS)]

    load_factor = lambda index: 1 + 0.5 * math.sin(index / 23) + 0.16 * math.sin(index * 2.1) + 0.1 * math.sin(index * 5.3)
    has_problem = lambda index: has_problems and index % TIMELINE_STEPS > 130
    series = {
        "requests": samples(lambda index: round(110 * load_factor(index))),
        "throttled": samples(lambda index: round(18 * load_factor(index)) if has_problem(index) else 0),
        "failed": samples(lambda index: round(9 * load_factor(index)) if has_problem(index) else int(int(index) % 61 == 7)),
        "failovers": samples(lambda index: round(30 * load_factor(index)) if has_problem(index) else int(int(index) % 17 == 3)),
        "retries_429": samples(lambda index: round(24 * load_factor(index)) if has_problem(index) else int(int(index) % 23 == 5)),
        "input_tokens": samples(lambda index: round(52000 * load_factor(index))),
        "output_tokens": samples(lambda index: round(14000 * load_factor(index + 4))),
        "p50_ms": samples(lambda index: round(640 * load_factor(index)) if int(index) % 50 > 3 else None),
        "p95_ms": samples(lambda index: round((4100 if has_problem(index) else 1900) * load_factor(index + 2)) if int(index) % 50 > 3 else None),
        "in_flight": samples(lambda index: round(14 * load_factor(index))),
    }
    return {"step_seconds": 5, "until": seconds_ago(0), **series}


def status_document(tick, backends, pools, clients, configuration=None, process=None, has_problems=False, first_known_step=TIMELINE_STEPS):
    return {
        "build": {"version": "0.1.0"},
        "process": {"pid": 4711, "started": seconds_ago(4211), "uptime_seconds": 4211 + tick, "ready": True, "stopping": False}
        | (process or {}),
        "configuration": {
            "file": "/etc/aoai-lb/aoai-lb.yaml",
            "version": 3,
            "sha256": hashlib.sha256(b"a configuration").hexdigest(),
            "loaded": seconds_ago(4000),
            "problem": None,
            "needs_upgrade": [],
        }
        | (configuration or {}),
        "in_flight": 12,
        "settled": 123456 + 31 * tick,
        "pools": pools,
        "backends": backends,
        "clients": clients,
        "timeline": timeline(tick, has_problems, first_known_step),
        "something_new": {"that": "the page does not know"},
    }


def healthy(tick=0):
    provisioned = deployment("gpt-4o-ptu", remaining_tokens=None, remaining_requests=None, utilization=0.83)
    backends = [
        backend("eastus-ptu", tick, 0.41, weight=2, deployments=[provisioned]),
        backend("westus", tick, 0.33, tier=2, deployments=[deployment("gpt-4o"), deployment("gpt-4o-mini", 0.2)]),
        backend("sweden", tick, 0.26, tier=2),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "healthy", None)], [(name, "gpt-4o", 1, "healthy", None) for name in ("westus", "sweden")]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "healthy", None)]),
        pool(None, [("westus", None, 1, "healthy", None)], kind="home"),
    ]
    return status_document(tick, backends, pools, [client(name, index + 1) for index, name in enumerate(["team-a", "team-b", "batch-jobs"])])


def problems(tick=0):
    cooldown_reason = "asked to wait (429, or retry-after)"
    cooling = deployment("gpt-4o", 0.0, **unavailability("cooling", 4, 47, cooldown_reason))
    cooldown = {"deployment": "gpt-4o", "operation": None, "until": None, "until_ms": 47000, "reason": "cooling", "since": seconds_ago(4)}
    images = {"deployment": None, "operation": "images", "until": None, "until_ms": 3000, "reason": "permission", "since": seconds_ago(9)}
    backends = [
        backend("eastus-ptu", tick, 0.0, **unavailability("breaker_open", 12, 18, "failed too often"), weight=2),
        backend("westus", tick, 0.62, tier=2, resting=[cooldown], deployments=[deployment(f"gpt-{index}", index / 9) for index in range(1, 8)] + [cooling]),
        backend("sweden", tick, 0.38, tier=2, resting=[images]),
        backend("france", tick, 0.0, tier=2, **unavailability("credential", 900, None, "has no credential yet: the vault refuses")),
        backend("japan", tick, 0.0, tier=3, **unavailability("drained", 7200, None, "drained by the operator")),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "breaker_open", 18000)], [("westus", "gpt-4o", 1, "cooling", 47000), ("sweden", "gpt-4o", 1, "healthy", None)]),
        pool("o3", [("eastus-ptu", "o3", 1, "breaker_open", 18000)], [("france", "o3", 1, "credential", None)]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "healthy", None)]),
    ]
    problem = "backends[2].weight: must be at least 1"
    configuration = {"problem": problem, "needs_upgrade": ["listeners[0].address", "server.threads"]}
    return status_document(tick, backends, pools, [client("team-a", 1), client("team-b", 3)], configuration, has_problems=True)


def stopping(tick=0):
    document = healthy(tick)
    document["process"] |= {"ready": False, "stopping": True}
    return document


def hundred_backends(tick=0):
    names = [f"region-{index:03}" for index in range(100)]
    kinds = {7: ("cooling", 3, 12), 40: ("breaker_open", 5, 25), 77: ("absent", 50, 30), 90: ("drained", 500, None)}
    backends = [
        backend(name, tick, 0.01, tier=1 + index % 3, deployments=[deployment(f"gpt-4o-{deployment_index}", (index + deployment_index + tick) % 10 / 10) for deployment_index in range(3)])
        | (unavailability(*kinds[index]) if index in kinds else {})
        for index, name in enumerate(names)
    ]
    states = {document["name"]: (document["state"], document["until_ms"]) for document in backends}
    pools = [
        pool(f"deployment-{index:02}", *[[(name, None, 1, *states[name]) for name in names[(2 * index + 4 * tier_index) % 96 :][:4]] for tier_index in range(3)])
        for index in range(50)
    ]
    return status_document(tick, backends, pools, [client(f"client-{index:03}", index + 1) for index in range(60)])


def hostile_names(tick=0):
    """The state `problems` with markup in every text, and with names that are special in JavaScript or URLs."""

    def add_markup(value, key=None):
        if isinstance(value, dict):
            return {name: add_markup(value_inside, name) for name, value_inside in value.items()}
        if isinstance(value, list):
            return [add_markup(value_inside, key) for value_inside in value]
        unchanged_keys = ("since", "until", "started", "loaded", "kind")
        return f"{HOSTILE_MARKUP}{value}" if isinstance(value, str) and key not in unchanged_keys else value

    document = add_markup(problems(tick))
    document["clients"] += [client(name, 5) for name in ("__proto__", "constructor", HOSTILE_MARKUP, HOSTILE_MARKUP, "‮evil", "x" * 200)]
    document["backends"].append(backend("</script><script>alert(2)</script>", tick, state="__proto__", since="not a date"))
    document["backends"].append(backend("a/../b?c#d", tick, endpoint="'\"><b>", reason="javascript:alert(3)"))
    return document


def null_values(tick=0):
    """All fields exist, and every value is null."""

    def nullify(value):
        if isinstance(value, dict):
            return {name: nullify(value_inside) for name, value_inside in value.items()}
        return [nullify(value_inside) for value_inside in value] if isinstance(value, list) else None

    return nullify(healthy(tick))


def missing_values(_=0):
    """Almost all fields are missing or have the wrong type."""
    return {"backends": None, "pools": [None, 7, {}], "clients": [{}], "timeline": None, "process": None, "build": None}


STATES = {make_state.__name__: make_state for make_state in (healthy, problems, stopping, hundred_backends, hostile_names, null_values, missing_values)}

if __name__ == "__main__":
    name, port = [*sys.argv[1:], *["healthy", "0"][len(sys.argv) - 1 :]]
    with MockAdminApi(STATES[name], port=int(port)) as mock:
        print(f"{mock.url} shows the state {name}; press Ctrl-C to stop", flush=True)
        mock.thread.join()
