"""Constant load of short requests, long streams and WebSockets, without retries.

A connection that was closed while idle is replaced. Every other response that is not complete and correct
counts as a failure, and so does a refused connection.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
import struct
import threading
import time

from machine import wait_for_condition

EXCHANGE_TIMEOUT = 60.0  # seconds
VERSION = "2024-10-21"
CHAT = f"/openai/deployments/gpt-4o/chat/completions?api-version={VERSION}"
REALTIME = f"/openai/realtime?api-version={VERSION}&deployment=gpt-realtime"
REQUEST_ID = "x-aoai-lb-request-id"
# Seconds between requests on reused connections: some are busy, some are idle now and then.
REQUEST_PAUSES = [0.02, 0.02, 0.05, 0.1, 0.3, 0.7, 1.5]
# Seconds of delay in each direction for distant clients. Their next request may be on its way when the
# balancer closes the connection, and would get no response.
RELAY_DELAY = 0.02
# The time between two events of a stream; a response has about fifty.
STREAM_EVENT_INTERVALS = ["20ms", "60ms", "90ms", "120ms"]
STREAM_PROMPT = " ".join(f"word{number}" for number in range(45))
CONVERSATION_TURNS = 8


class ResponseError(Exception):
    """A response that is missing, incomplete or wrong."""


class LoadGenerator(threading.Thread):
    """Load that runs in its own thread from `start` to `finish`."""

    def __init__(self, address, api_key, tls_target=None):
        super().__init__(daemon=True)
        self.address, self.api_key = address, api_key
        # The address with TLS and the TLS context for it, or None for plain HTTP only.
        self.tls_target = tls_target
        self.stopping = threading.Event()
        self.failures, self.ids = [], []
        self.completed = {"short": 0, "stream": 0, "websocket": 0}
        self.reconnected = self.connections = 0
        self.start_time = time.monotonic()

    def finish(self):
        """Stops the load after the requests in flight."""
        self.stopping.set()
        self.join(EXCHANGE_TIMEOUT + 10)
        if self.is_alive():
            self.failures.append("the load did not end")
        return self

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def total_completed(self):
        return sum(self.completed.values())

    def wait_for_each_kind(self):
        """Waits until an exchange of each kind has been completed from now on, or one has failed."""
        before = dict(self.completed)
        wait_for_condition(
            lambda: self.failures or all(self.completed[kind] > count for kind, count in before.items()),
            EXCHANGE_TIMEOUT,
            "the load has not completed an exchange of each kind",
        )

    def wait_for_exchanges(self, count):
        """Waits until so many more exchanges have been completed, or one has failed."""
        before = self.total_completed()
        wait_for_condition(
            lambda: self.failures or self.total_completed() >= before + count,
            EXCHANGE_TIMEOUT,
            f"the load has not completed {count} exchanges",
        )

    def summary(self):
        counts = ", ".join(f"{count} {kind}" for kind, count in self.completed.items())
        return f"{counts} in {time.monotonic() - self.start_time:.0f} s over {self.connections} connections"

    def run(self):
        asyncio.run(self.run_workers())

    async def run_workers(self):
        distant_relay, tls = Relay(self.address, RELAY_DELAY), None
        await distant_relay.listen()
        workers = [self.send_short_requests(pause) for pause in REQUEST_PAUSES]
        workers += [self.send_short_requests(pause, address=distant_relay.address) for pause in REQUEST_PAUSES]
        workers += [self.send_short_requests(0.05, keep_alive=False), self.send_short_requests(0.05, keep_alive=False, address=distant_relay.address)]
        workers += [self.send_streams(event_interval) for event_interval in STREAM_EVENT_INTERVALS]
        workers += [self.hold_conversations(pause) for pause in (0.1, 0.4, 0.6)]
        if self.tls_target:
            tls = Relay(self.tls_target[0], 0, self.tls_target[1])
            await tls.listen()
            workers += [self.send_short_requests(pause, address=tls.address) for pause in REQUEST_PAUSES[:4]]
            workers += [self.send_streams("90ms", tls.address)]
        await asyncio.gather(*(self.run_guarded(worker) for worker in workers))
        for relay in filter(None, [distant_relay, tls]):
            relay.close()

    async def run_guarded(self, worker):
        try:
            await worker
        except Exception as error:
            self.failures.append(f"error in the load generator: {error!r}")

    @contextlib.asynccontextmanager
    async def counted_exchange(self, kind):
        """Counts a successful exchange, or notes its failure."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(EXCHANGE_TIMEOUT):
                yield
            self.completed[kind] += 1
        except (ResponseError, OSError, TimeoutError) as error:
            timing = f"{time.monotonic() - self.start_time:.2f} s, {time.monotonic() - start:.3f} s after the start of the exchange"
            self.failures.append(f"{kind}: {error or type(error).__name__} (at {timing})")
            await self.pause(0.1)

    async def connect(self, address=None):
        self.connections += 1
        return await Connection.connect(address or self.address)

    async def send_short_requests(self, pause, keep_alive=True, address=None):
        connection, number = None, 0
        while not self.stopping.is_set():
            number += 1
            if connection and connection.was_closed_while_idle():
                self.reconnected += 1
                connection = connection.close()
            prompt = f"number {number} of {pause}"
            can_reuse = False
            async with self.counted_exchange("short"):
                connection = connection or await self.connect(address)
                response = await connection.send_request(self.chat_request(prompt, keep_alive=keep_alive))
                self.record_request_id(response)
                text = json.loads(response.body)["choices"][0]["message"]["content"]
                if not text.startswith(f"You said: {prompt}"):
                    raise ResponseError(f"the response belongs to another request: {text[:80]!r}")
                can_reuse = keep_alive and not response.closes
            if not can_reuse and connection:
                connection = connection.close()
            await self.pause(pause)
        if connection:
            connection.close()

    async def send_streams(self, event_interval, address=None):
        while not self.stopping.is_set():
            async with self.counted_exchange("stream"):
                await self.one_stream(event_interval, address=address)

    async def one_stream(self, event_interval, on_first_bytes=lambda: None, address=None):
        """Sends a request on a new connection and reads the stream up to its terminating chunk."""
        connection = await self.connect(address)
        try:
            response = await connection.send_request(self.chat_request(STREAM_PROMPT, event_interval=event_interval), on_first_bytes=on_first_bytes)
            self.record_request_id(response)
            events = [line[6:] for line in response.body.decode().split("\n\n") if line.startswith("data: ")]
            if not events or events[-1] != "[DONE]":
                raise ResponseError(f"a stream without its last event, after {len(events)} events")
            choices = [json.loads(event)["choices"] for event in events[:-1]]
            text = "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)
            if not text.startswith("You said: word0 word1 word2 ") or not text.endswith("simulated answer to it."):
                raise ResponseError(f"a stream with missing content: {text!r}")
        finally:
            connection.close()

    async def hold_conversations(self, pause):
        while not self.stopping.is_set():
            async with self.counted_exchange("websocket"):
                await self.hold_conversation(pause)

    async def hold_conversation(self, pause):
        """Holds a conversation of several turns, up to the closing handshake."""
        connection = await self.connect()
        try:
            websocket_key = base64.b64encode(os.urandom(16)).decode()
            upgrade_fields = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {websocket_key}\r\n"
            response = await connection.send_request(self.request_head("GET", REALTIME, upgrade_fields).encode(), expected_status=101)
            self.record_request_id(response)
            if (await connection.receive_event())["type"] != "session.created":
                raise ResponseError("a WebSocket without a session")
            for turn in range(CONVERSATION_TURNS):
                prompt = f"turn {turn} after {pause} s"
                content = [{"type": "input_text", "text": prompt}]
                await connection.send_event({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
                await connection.send_event({"type": "response.create"})
                while (event := await connection.receive_event())["type"] != "response.done":
                    pass
                text = event["response"]["output"][0]["content"][0]["text"]
                if not text.startswith(f"You said: {prompt}"):
                    raise ResponseError(f"a wrong response on a WebSocket: {text[:80]!r}")
                await asyncio.sleep(pause)
            await connection.send_frame(8, struct.pack("!H", 1000))
            opcode, _ = await connection.read_frame()
            if opcode != 8:
                raise ResponseError(f"a frame with opcode {opcode} instead of the closing frame")
        finally:
            connection.close()

    async def pause(self, seconds):
        until = time.monotonic() + seconds
        while not self.stopping.is_set() and (remaining := until - time.monotonic()) > 0:
            await asyncio.sleep(min(remaining, 0.1))

    def record_request_id(self, response):
        if REQUEST_ID not in response.headers:
            raise ResponseError(f"a response without {REQUEST_ID}")
        self.ids.append(response.headers[REQUEST_ID])

    def chat_request(self, text, keep_alive=True, event_interval=None):
        body = {"messages": [{"role": "user", "content": text}]} | ({"stream": True} if event_interval else {})
        body = json.dumps(body).encode()
        header_lines = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        header_lines += "" if keep_alive else "Connection: close\r\n"
        header_lines += f"x-simulate: drip: {event_interval}\r\n" if event_interval else ""
        return self.request_head("POST", CHAT, header_lines).encode() + body

    def request_head(self, method, target, header_lines):
        return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\napi-key: {self.api_key}\r\n{header_lines}\r\n"


class Relay:
    """A relay between clients and the balancer that adds a delay or TLS. It forwards the end of each side."""

    def __init__(self, target, delay, tls=None):
        self.target, self.delay, self.tls = target, delay, tls

    async def listen(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.address = self.server.sockets[0].getsockname()

    def close(self):
        self.server.close()

    async def serve(self, reader, writer):
        try:
            name = "localhost" if self.tls else None
            far_reader, far_writer = await asyncio.open_connection(*self.target, ssl=self.tls, server_hostname=name)
        except OSError:
            # Reset the connection, so that the client notices the refusal.
            writer.transport.abort()
            return
        await asyncio.gather(self.forward(reader, far_writer), self.forward(far_reader, writer))

    async def forward(self, reader, writer):
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        async def deliver():
            while True:
                deliver_at, data = await queue.get()
                if deliver_at > loop.time():
                    await asyncio.sleep(deliver_at - loop.time())
                if not data:
                    return writer.close()
                writer.write(data)

        delivery = asyncio.create_task(deliver())
        while True:
            try:
                data = await reader.read(65536)
            except OSError:
                data = b""
            queue.put_nowait((loop.time() + self.delay, data))
            if not data:
                break
        with contextlib.suppress(OSError):
            await delivery


class SingleStream(threading.Thread):
    """A single stream in its own thread. `has_begun` is set at its first bytes; `error` is what went wrong."""

    def __init__(self, address, api_key, event_interval):
        super().__init__(daemon=True)
        self.load, self.event_interval = LoadGenerator(address, api_key), event_interval
        self.has_begun, self.error, self.end_time = threading.Event(), "the stream did not end", None
        self.start()
        self.has_begun.wait(10)

    def run(self):
        async def run_stream():
            async with asyncio.timeout(EXCHANGE_TIMEOUT):
                await self.load.one_stream(self.event_interval, self.has_begun.set)

        try:
            asyncio.run(run_stream())
            self.error = None
        except (ResponseError, OSError, TimeoutError) as error:
            self.error = str(error) or type(error).__name__
        self.end_time = time.monotonic()
        self.has_begun.set()

    def result(self):
        """Waits for the end of the stream; returns None, or what went wrong."""
        self.join(EXCHANGE_TIMEOUT + 5)
        return self.error


class Response:
    def __init__(self, status, headers):
        self.status, self.headers, self.body = status, headers, b""
        self.closes = headers.get("connection", "").lower() == "close"


class Connection:
    """A client connection that reads and writes bytes."""

    @classmethod
    async def connect(cls, address):
        connection = cls()
        connection.socket = socket.socket()
        connection.socket.setblocking(False)
        connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.loop, connection.buffer = asyncio.get_running_loop(), b""
        try:
            await connection.loop.sock_connect(connection.socket, address)
        except OSError as error:
            connection.socket.close()
            raise ResponseError(f"cannot connect: {error}") from None
        return connection

    def close(self):
        self.socket.close()

    def was_closed_while_idle(self):
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    async def read_more(self, phase):
        try:
            data = await self.loop.sock_recv(self.socket, 65536)
        except ConnectionError as error:
            raise ResponseError(f"{error} {phase}") from None
        if not data:
            raise ResponseError(f"the connection was closed {phase}")
        self.buffer += data

    async def read_until(self, delimiter, phase):
        while (position := self.buffer.find(delimiter)) < 0:
            await self.read_more(phase)
        data_read, self.buffer = self.buffer[:position], self.buffer[position + len(delimiter) :]
        return data_read

    async def read_exactly(self, count, phase):
        while len(self.buffer) < count:
            await self.read_more(phase)
        data_read, self.buffer = self.buffer[:count], self.buffer[count:]
        return data_read

    async def send_request(self, request, expected_status=200, on_first_bytes=lambda: None):
        """Sends a request and reads the complete response."""
        try:
            await self.loop.sock_sendall(self.socket, request)
        except ConnectionError as error:
            raise ResponseError(f"{error} while sending the request") from None
        head = (await self.read_until(b"\r\n\r\n", "before the response")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        response = Response(int(head[0].split()[1]), headers)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self.read_until(b"\r\n", "between two chunks")).split(b";")[0], 16):
                response.body += await self.read_exactly(size, "within a chunk")
                on_first_bytes()
                if await self.read_exactly(2, "after a chunk") != b"\r\n":
                    raise ResponseError("a chunk whose length is wrong")
            await self.read_until(b"\r\n", "before the end of the terminating chunk")
        elif response.status != 101:
            response.body = await self.read_exactly(int(headers["content-length"]), "within the response")
            on_first_bytes()
        if response.status != expected_status:
            raise ResponseError(f"status {response.status}: {response.body[:200]!r}")
        return response

    async def send_event(self, event):
        await self.send_frame(1, json.dumps(event).encode())

    async def send_frame(self, opcode, payload):
        mask = os.urandom(4)
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0xFE]) + struct.pack("!H", len(payload))
        masked = bytes(byte ^ mask[position % 4] for position, byte in enumerate(payload))
        try:
            await self.loop.sock_sendall(self.socket, bytes([0x80 | opcode]) + size + mask + masked)
        except ConnectionError as error:
            raise ResponseError(f"{error} while writing to a WebSocket") from None

    async def read_frame(self):
        opcode, size = await self.read_exactly(2, "within a WebSocket")
        if size == 126:
            (size,) = struct.unpack("!H", await self.read_exactly(2, "within a frame"))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.read_exactly(8, "within a frame"))
        return opcode & 15, await self.read_exactly(size, "within a frame")

    async def receive_event(self):
        while True:
            opcode, payload = await self.read_frame()
            if opcode == 8:
                raise ResponseError(f"the WebSocket was closed: {payload[:80]!r}")
            if opcode == 9:
                await self.send_frame(10, payload)
            if opcode in (1, 2):
                return json.loads(payload)
