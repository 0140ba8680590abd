"""A mock of the admin API with made-up states, for the tests of the status page and for work on it.

    python3 tests/page/mock.py [STATE [PORT]]

STATE is one of those in states.py: healthy, problems, forty_backends, forty_in_trouble and others.
"""

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from states import HOSTILE_MARKUP, STATES, seconds_ago

PAGE_DIRECTORY = Path(__file__).resolve().parents[2] / "src/admin/page"


def assemble_page():
    """The page, put together from its files as the balancer does."""
    markup = (PAGE_DIRECTORY / "page.html").read_text()
    return re.sub(r"@@([\w.]+)@@\n", lambda match: (PAGE_DIRECTORY / match[1]).read_text(), markup)


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
        # The queries of `GET /api/requests`, and when they came.
        self.queries = []
        # A status and a message with which `GET /api/requests` is refused, or None.
        self.requests_refusal = None
        # When each request for events arrived.
        self.event_request_times = []
        # The behaviour for requests for events: live, silent (keeps the connection open without events),
        # away (closes the connection).
        self.mode = "live"
        # A status and a message with which every POST is refused, or None.
        self.refusal = None
        # `resource` in the response to a drain, or None.
        self.homed = None
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

    def current_document(self):
        return self.state(self.ticks) if callable(self.state) else self.state

    def current_status(self):
        document = {name: value for name, value in self.current_document().items() if name != "trouble"}
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
            page = assemble_page()
            self.reply(200, "text/html; charset=utf-8", page.encode(), content_security_policy=content_security_policy(page))
        elif not self.has_valid_token():
            self.refuse(401, "the admin API requires its token: Authorization: Bearer TOKEN")
        elif self.path == "/api/status":
            self.json(200, self.mock.current_status())
        elif self.path == "/api/events" and self.mock.mode != "away":
            self.send_events()
        elif self.path == "/api/events":
            self.close_connection = True
        elif urlsplit(self.path).path == "/api/requests":
            self.list_requests()
        else:
            self.refuse(404, "there is no such path")

    def list_requests(self):
        """The recent trouble of the state, filtered as the balancer does."""
        # The balancer takes a plus sign for a plus sign.
        mock, pairs = self.mock, [pair.partition("=") for pair in urlsplit(self.path).query.split("&") if pair]
        query = {name: unquote(value) for name, _, value in pairs}
        mock.queries.append((time.monotonic(), query))
        if mock.requests_refusal:
            return self.refuse(*mock.requests_refusal)
        trouble = mock.current_document().get("trouble")
        if not isinstance(trouble, list):
            return self.json(200, trouble)
        status = query.get("status", "")
        if status and not re.fullmatch(r"[1-5](xx|\d\d)", status, re.IGNORECASE):
            return self.refuse(400, "status must be a status such as 429, or a class such as 4xx or 5xx")
        has_status = lambda request: str(request["status"]).startswith(status[0] if status.lower().endswith("xx") else status)
        matching = [
            request
            for request in trouble
            if query.get("client", request["client"] or "") == (request["client"] or "")
            and (not status or has_status(request))
            and query.get("id", request["id"] or "").lower() == (request["id"] or "").lower()
        ]
        limit = int(query.get("limit", 100))
        self.json(200, {"requests": matching[:limit], "matching": len(matching), "kept": len(trouble), "limit": limit})

    def do_POST(self):
        mock, name = self.mock, unquote(self.path.removeprefix("/api/backends/").rpartition("/")[0])
        mock.posts.append((self.path, dict(self.headers)))
        if self.headers["x-aoai-lb-admin"] != "1" or not self.has_valid_token():
            self.refuse(403, "a POST needs the header x-aoai-lb-admin: 1")
        elif mock.refusal:
            self.refuse(*mock.refusal)
        elif self.path == "/api/reload":
            summary = ["backends: added france, changed westus (weight)", f"settings: {HOSTILE_MARKUP}"]
            self.json(200, {"result": "success", "version": 4, "summary": summary, "needs_upgrade": ["server.threads"], "warnings": ["a made-up warning"]})
        else:
            is_drain = self.path.endswith("/drain")
            (mock.drained.add if is_drain else mock.drained.discard)(name)
            self.json(200, {"backend": name, "drained": is_drain, "changed": True, "in_flight": 3, "resource": self.mock.homed if is_drain else None})
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


if __name__ == "__main__":
    name, port = [*sys.argv[1:], *["healthy", "0"][len(sys.argv) - 1 :]]
    with MockAdminApi(STATES[name], port=int(port)) as mock:
        print(f"{mock.url} shows the state {name}; press Ctrl-C to stop", flush=True)
        mock.thread.join()
