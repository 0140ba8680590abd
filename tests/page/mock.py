"""The admin API with made-up states, for the status page's test and for whoever works on the page.

    python3 tests/page/mock.py [STATE [PORT]]

STATE is one of calm, trouble, nulls, hostile, many, unknown.
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

PAGE = Path(__file__).resolve().parents[2] / "src/admin/page.html"
STEPS = 180
HOSTILE = "<img src=x onerror=alert(1)>"


def policy(page):
    """The page's Content-Security-Policy, as the balancer makes it."""

    def hashed(element):
        inside = page.split(f"<{element}>", 1)[1].split(f"</{element}>", 1)[0]
        return base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{hashed('script')}'; style-src 'sha256-{hashed('style')}'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Mock:
    """The admin API on a port of its own. What it tells may be changed at any time."""

    def __init__(self, state, token=None, interval=2.0, port=0):
        self.state, self.token, self.interval = state, token, interval
        self.posts, self.streams, self.ticks = [], 0, 0
        # When events were asked for.
        self.asked = []
        # How it treats whoever asks for events: live, silent (holds the connection), away (closes it).
        self.mode = "live"
        # What a POST is answered with instead: a status and a message.
        self.refusal = None
        self.drained = set()
        self.changed = threading.Condition()
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.server.mock = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.change(mode="away")
        self.server.shutdown()
        self.server.server_close()

    def change(self, **what):
        """Changes what it tells, and tells it at once."""
        with self.changed:
            for name, value in what.items():
                setattr(self, name, value)
            self.ticks += 1
            self.changed.notify_all()

    def told(self):
        state = self.state(self.ticks) if callable(self.state) else self.state
        for backend in state.get("backends") or []:
            if backend.get("name") in self.drained:
                backend |= {"state": "drained", "reason": "drained by the operator", "since": ago(0), "until_ms": None}
        return state


class Handler(BaseHTTPRequestHandler):
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

    def is_known(self):
        return self.mock.token is None or self.headers["authorization"] == f"Bearer {self.mock.token}"

    def do_GET(self):
        if self.path == "/api/events":
            self.mock.asked.append(time.monotonic())
        if self.path == "/":
            page = PAGE.read_text()
            self.reply(200, "text/html; charset=utf-8", page.encode(), content_security_policy=policy(page))
        elif not self.is_known():
            self.refuse(401, "the admin API wants its token: Authorization: Bearer TOKEN")
        elif self.path == "/api/status":
            self.json(200, self.mock.told())
        elif self.path == "/api/events" and self.mock.mode != "away":
            self.events()
        elif self.path == "/api/events":
            self.close_connection = True
        else:
            self.refuse(404, "there is no such path")

    def do_POST(self):
        mock, name = self.mock, unquote(self.path.removeprefix("/api/backends/").rpartition("/")[0])
        mock.posts.append((self.path, dict(self.headers)))
        if self.headers["x-aoai-lb-admin"] != "1" or not self.is_known():
            self.refuse(403, "a POST needs the header x-aoai-lb-admin: 1")
        elif mock.refusal:
            self.refuse(*mock.refusal)
        elif self.path == "/api/reload":
            self.json(200, {"result": "success", "version": 4, "needs_upgrade": [], "warnings": ["a made-up warning"]})
        else:
            drains = self.path.endswith("/drain")
            (mock.drained.add if drains else mock.drained.discard)(name)
            self.json(200, {"backend": name, "drained": drains, "changed": True, "in_flight": 3})
            mock.change()

    def events(self):
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
                        event = f"event: status\ndata: {json.dumps(mock.told())}\n\n".encode()
                        # In two parts, as a network may cut it.
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


def ago(seconds):
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def backend(name, tick=0, share=0.2, tier=1, **more):
    wave = math.sin(tick / 7 + len(name))
    told = {
        "name": name,
        "endpoint": f"contoso-{name}.openai.azure.com",
        "tier": tier,
        "weight": 1,
        "state": "ok",
        "reason": None,
        "since": None,
        "until": None,
        "until_ms": None,
        "in_flight": 3 + round(2 * wave),
        "attempts": 12034 + 7 * tick,
        "counters": {"answered": 11890 + 7 * tick, "throttled": 120, "failed": 4, "refused": 18, "client_gone": 2},
        "last_minute": {
            "attempts": round(600 * share),
            "throttled": 2,
            "failed": 0,
            "share": share,
            "p50_ms": 830 + round(90 * wave),
            "p95_ms": 2400 + round(300 * wave),
        },
        "resting": [],
        "deployments": [deployment("gpt-4o", 0.5 + 0.3 * wave)],
    }
    return told | more


def deployment(name, left=0.7, **more):
    told = {"name": name, "state": "ok", "reason": None, "since": None, "until": None, "until_ms": None}
    told |= {"remaining_tokens": round(240000 * left), "limit_tokens": 240000}
    told |= {"remaining_requests": round(1440 * left), "limit_requests": 1440, "utilization": None}
    return told | more


def resting(state, seconds, left=None, reason=None):
    until = None if left is None else ago(-left)
    told = {"state": state, "since": ago(seconds), "until": until, "until_ms": None if left is None else left * 1000}
    return told | {"reason": reason}


def pool(name, *tiers, kind="deployment"):
    def member(of):
        return {"backend": of[0], "upstream": of[1], "weight": of[2], "state": of[3], "until_ms": of[4]}

    listed = [{"tier": n + 1, "members": [member(of) for of in members]} for n, members in enumerate(tiers)]
    return {"kind": kind, "deployment": name, "tiers": listed}


def client(name, n):
    recent = {"requests": 88 // n, "input_tokens": 91000 // n, "output_tokens": 40200 // n}
    return {"name": name, "requests": 9182 // n, "input_tokens": 12000000 // n, "output_tokens": 3100000 // n} | {
        "last_minute": recent
    }


def timeline(tick, trouble=False, begun=STEPS):
    """The last quarter of an hour; `begun` steps ago the process started."""

    def row(value):
        return [value(n + tick / 3) if n >= STEPS - begun else None for n in range(STEPS)]

    load = lambda n: 1 + 0.5 * math.sin(n / 23) + 0.16 * math.sin(n * 2.1) + 0.1 * math.sin(n * 5.3)
    bad = lambda n: trouble and n % STEPS > 130
    lines = {
        "requests": row(lambda n: round(110 * load(n))),
        "throttled": row(lambda n: round(18 * load(n)) if bad(n) else 0),
        "failed": row(lambda n: round(9 * load(n)) if bad(n) else int(int(n) % 61 == 7)),
        "failovers": row(lambda n: round(30 * load(n)) if bad(n) else int(int(n) % 17 == 3)),
        "retries_429": row(lambda n: round(24 * load(n)) if bad(n) else int(int(n) % 23 == 5)),
        "input_tokens": row(lambda n: round(52000 * load(n))),
        "output_tokens": row(lambda n: round(14000 * load(n + 4))),
        "p50_ms": row(lambda n: round(640 * load(n)) if int(n) % 50 > 3 else None),
        "p95_ms": row(lambda n: round((4100 if bad(n) else 1900) * load(n + 2)) if int(n) % 50 > 3 else None),
        "in_flight": row(lambda n: round(14 * load(n))),
    }
    return {"step_seconds": 5, "until": ago(0), **lines}


def state(tick, backends, pools, clients, configuration=None, process=None, trouble=False, begun=STEPS):
    return {
        "build": {"version": "0.1.0"},
        "process": {"pid": 4711, "started": ago(4211), "uptime_seconds": 4211 + tick, "ready": True, "stopping": False}
        | (process or {}),
        "configuration": {
            "file": "/etc/aoai-lb/aoai-lb.yaml",
            "version": 3,
            "sha256": hashlib.sha256(b"a configuration").hexdigest(),
            "loaded": ago(4000),
            "problem": None,
            "needs_upgrade": [],
        }
        | (configuration or {}),
        "in_flight": 12,
        "settled": 123456 + 31 * tick,
        "pools": pools,
        "backends": backends,
        "clients": clients,
        "timeline": timeline(tick, trouble, begun),
        "something_new": {"that": "the page does not know"},
    }


def calm(tick=0):
    provisioned = deployment("gpt-4o-ptu", remaining_tokens=None, remaining_requests=None, utilization=0.83)
    backends = [
        backend("eastus-ptu", tick, 0.41, weight=2, deployments=[provisioned]),
        backend("westus", tick, 0.33, tier=2, deployments=[deployment("gpt-4o"), deployment("gpt-4o-mini", 0.2)]),
        backend("sweden", tick, 0.26, tier=2),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "ok", None)], [(name, "gpt-4o", 1, "ok", None) for name in ("westus", "sweden")]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "ok", None)]),
        pool(None, [("westus", None, 1, "ok", None)], kind="home"),
    ]
    return state(tick, backends, pools, [client(name, n + 1) for n, name in enumerate(["team-a", "team-b", "batch-jobs"])])


def trouble(tick=0):
    asked = "asked to wait (429, or retry-after)"
    cooling = deployment("gpt-4o", 0.0, **resting("cooling", 4, 47, asked))
    part = {"deployment": "gpt-4o", "operation": None, "until": None, "until_ms": 47000, "reason": "cooling", "since": ago(4)}
    images = {"deployment": None, "operation": "images", "until": None, "until_ms": 3000, "reason": "permission", "since": ago(9)}
    backends = [
        backend("eastus-ptu", tick, 0.0, **resting("breaker_open", 12, 18, "failed too often"), weight=2),
        backend("westus", tick, 0.62, tier=2, resting=[part], deployments=[deployment(f"gpt-{n}", n / 9) for n in range(1, 8)] + [cooling]),
        backend("sweden", tick, 0.38, tier=2, resting=[images]),
        backend("france", tick, 0.0, tier=2, **resting("credential", 900, None, "has no credential yet: the vault refuses")),
        backend("japan", tick, 0.0, tier=3, **resting("drained", 7200, None, "drained by the operator")),
    ]
    pools = [
        pool("gpt-4o", [("eastus-ptu", "gpt-4o-ptu", 2, "breaker_open", 18000)], [("westus", "gpt-4o", 1, "cooling", 47000), ("sweden", "gpt-4o", 1, "ok", None)]),
        pool("o3", [("eastus-ptu", "o3", 1, "breaker_open", 18000)], [("france", "o3", 1, "credential", None)]),
        pool("gpt-4o-mini", [("westus", "gpt-4o-mini", 1, "ok", None)]),
    ]
    problem = "backends[2].weight: must be at least 1"
    configuration = {"problem": problem, "needs_upgrade": ["listeners[0].address", "server.threads"]}
    return state(tick, backends, pools, [client("team-a", 1), client("team-b", 3)], configuration, trouble=True)


def stopping(tick=0):
    told = calm(tick)
    told["process"] |= {"ready": False, "stopping": True}
    return told


def many(tick=0):
    names = [f"region-{n:03}" for n in range(100)]
    kinds = {7: ("cooling", 3, 12), 40: ("breaker_open", 5, 25), 77: ("absent", 50, 30), 90: ("drained", 500, None)}
    backends = [
        backend(name, tick, 0.01, tier=1 + n % 3, deployments=[deployment(f"gpt-4o-{m}", (n + m + tick) % 10 / 10) for m in range(3)])
        | (resting(*kinds[n]) if n in kinds else {})
        for n, name in enumerate(names)
    ]
    states = {told["name"]: (told["state"], told["until_ms"]) for told in backends}
    pools = [
        pool(f"deployment-{n:02}", *[[(name, None, 1, *states[name]) for name in names[(2 * n + 4 * t) % 96 :][:4]] for t in range(3)])
        for n in range(50)
    ]
    return state(tick, backends, pools, [client(f"client-{n:03}", n + 1) for n in range(60)])


def hostile(tick=0):
    """Every text is markup, and then some."""

    def spoil(value, key=None):
        if isinstance(value, dict):
            return {name: spoil(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [spoil(inner, key) for inner in value]
        kept = ("since", "until", "started", "loaded", "kind")
        return f"{HOSTILE}{value}" if isinstance(value, str) and key not in kept else value

    told = spoil(trouble(tick))
    told["clients"] += [client(name, 5) for name in ("__proto__", "constructor", HOSTILE, HOSTILE, "‮evil", "x" * 200)]
    told["backends"].append(backend("</script><script>alert(2)</script>", tick, state="__proto__", since="not a date"))
    told["backends"].append(backend("a/../b?c#d", tick, endpoint="'\"><b>", reason="javascript:alert(3)"))
    return told


def nulls(tick=0):
    """Everything that is there is unknown."""

    def empty(value):
        if isinstance(value, dict):
            return {name: empty(inner) for name, inner in value.items()}
        return [empty(inner) for inner in value] if isinstance(value, list) else None

    return empty(calm(tick))


def unknown(_=0):
    """Nothing is there."""
    return {"backends": None, "pools": [None, 7, {}], "clients": [{}], "timeline": None, "process": None, "build": None}


STATES = {made.__name__: made for made in (calm, trouble, stopping, many, hostile, nulls, unknown)}

if __name__ == "__main__":
    name, port = [*sys.argv[1:], *["calm", "0"][len(sys.argv) - 1 :]]
    with Mock(STATES[name], port=int(port)) as mock:
        print(f"{mock.url} shows the state {name}; Ctrl-C ends it", flush=True)
        mock.thread.join()
