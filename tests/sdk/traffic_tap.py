"""TCP forwarders that keep what passes, so that tests can compare the bytes on both sides of the balancer.

The bytes go through unchanged. A forwarder with several targets hands its connections to them in turn, as a
load balancer for TCP does.
"""

import asyncio
import bisect
import hashlib
import threading
import time
from dataclasses import dataclass, field

from websocket_turns import TurnReader

CHUNK_BYTES = 64 * 1024


@dataclass
class Exchange:
    """A request and its response, as they passed, or a turn of a Responses WebSocket. `status` is None until its
    response has passed."""

    time: float
    method: str
    target: str
    request_headers: dict
    request_sha256: str | None = None
    status: int | None = None
    response_headers: dict = field(default_factory=dict)
    response_sha256: str | None = None
    response_bytes: int = 0


class Tap:
    """Forwards connections to the next of its ports of 127.0.0.1."""

    def __init__(self, ports):
        self.ports, self.port = ports, None
        self.connections = []
        self.accepted = 0

    async def open(self):
        self.server = await asyncio.start_server(self.forward, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def forward(self, reader, writer):
        target = self.ports[self.accepted % len(self.ports)]
        self.accepted += 1
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            return writer.transport.abort()
        connection = TappedConnection()
        self.connections.append(connection)
        # The loop itself does not keep a task alive.
        connection.task = asyncio.current_task()
        relays = [relay(reader, target_writer, connection.client_bytes), relay(target_reader, writer, connection.server_bytes)]
        try:
            await asyncio.gather(*relays)
        except asyncio.CancelledError:
            # The thread of the taps ends.
            pass

    def exchanges_between(self, start, end):
        exchanges = [exchange for connection in list(self.connections) for exchange in connection.parse()]
        return sorted((each for each in exchanges if start <= each.time <= end), key=lambda each: each.time)


class TapThread:
    """The event loop of the taps."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def open(self, ports):
        tap = Tap(ports)
        asyncio.run_coroutine_threadsafe(tap.open(), self.loop).result(10)
        return tap

    def close(self):
        async def cancel_all():
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


async def relay(reader, writer, kept):
    try:
        while data := await reader.read(CHUNK_BYTES):
            kept.add(data)
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        # The other side is told in the same way.
        writer.transport.abort()


class KeptBytes:
    """The bytes of one direction of a connection, and when they came."""

    def __init__(self):
        self.data, self.position, self.arrivals = bytearray(), 0, []

    def add(self, data):
        self.arrivals.append((len(self.data), time.time()))
        self.data += data

    def arrival_time(self, position):
        return self.arrivals[max(bisect.bisect_right(self.arrivals, (position, float("inf"))) - 1, 0)][1]

    def read_message(self, has_body=True):
        """Start line, headers and body of the next message if it has passed completely; else None."""
        end = self.data.find(b"\r\n\r\n", self.position)
        if end < 0:
            return None
        start_line, *lines = bytes(self.data[self.position : end]).decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        start = end + 4
        if not has_body or start_line.startswith("HTTP/1.1 1"):
            body, after = b"", start
        elif "chunked" in headers.get("transfer-encoding", ""):
            body, after = self.read_chunks(start)
        else:
            after = start + int(headers.get("content-length", 0))
            body = bytes(self.data[start:after]) if after <= len(self.data) else None
        if body is None:
            return None
        self.position = after
        return start_line, headers, body

    def read_chunks(self, position):
        parts = []
        while (end := self.data.find(b"\r\n", position)) >= 0:
            size = int(bytes(self.data[position:end]).split(b";")[0], 16)
            if len(self.data) < end + 2 + size + 2:
                break
            parts.append(bytes(self.data[end + 2 : end + 2 + size]))
            position = end + 2 + size + 2
            if size == 0:
                return b"".join(parts), position
        return None, position


class TappedConnection:
    """The bytes of a connection, and the exchanges that they contain."""

    def __init__(self):
        self.client_bytes, self.server_bytes = KeptBytes(), KeptBytes()
        self.exchanges, self.answered = [], 0
        self.turns = self.task = None
        self.lock = threading.Lock()

    def parse(self):
        """All of them; in place of an upgrade, the turns on its WebSocket."""
        with self.lock:
            if self.turns is None:
                self.parse_requests()
                self.parse_responses()
            turns = self.turns.parse(Exchange) if self.turns else []
            return [exchange for exchange in self.exchanges if exchange.status != 101] + turns

    def parse_requests(self):
        # A client waits for the answer to an upgrade before it sends anything else.
        while not self.exchanges or "upgrade" not in self.exchanges[-1].request_headers:
            start = self.client_bytes.position
            message = self.client_bytes.read_message()
            if message is None:
                return
            (method, target, _), headers, body = message[0].split(" ", 2), message[1], message[2]
            exchange = Exchange(self.client_bytes.arrival_time(start), method, target, headers)
            exchange.request_sha256 = hashlib.sha256(body).hexdigest()
            self.exchanges.append(exchange)

    def parse_responses(self):
        while self.answered < len(self.exchanges):
            exchange = self.exchanges[self.answered]
            message = self.server_bytes.read_message(has_body=exchange.method != "HEAD")
            if message is None:
                return
            status = int(message[0].split(" ")[1])
            if status == 101:
                exchange.status = status
                self.turns = TurnReader(exchange, self.client_bytes, self.server_bytes)
                return
            if status < 200:
                continue
            exchange.status, exchange.response_headers = status, message[1]
            exchange.response_sha256 = hashlib.sha256(message[2]).hexdigest()
            exchange.response_bytes = len(message[2])
            self.answered += 1
