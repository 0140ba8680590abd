"""Constant load that forgives nothing: short requests, long streams and WebSockets.

A connection that was closed while nothing was under way on it is opened anew. Everything else that is
not a whole, right answer is a failure, and so is a connection that is refused.
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

LIMIT = 60.0  # of one exchange
VERSION = "2024-10-21"
CHAT = f"/openai/deployments/gpt-4o/chat/completions?api-version={VERSION}"
REALTIME = f"/openai/realtime?api-version={VERSION}&deployment=gpt-realtime"
REQUEST_ID = "x-aoai-lb-request-id"
# Pauses between requests on kept connections: busy ones, and such as rest now and then.
PAUSES = [0.02, 0.02, 0.05, 0.1, 0.3, 0.7, 1.5]
# Each way, for the clients that are far away: their next request may be on its way when the balancer
# closes the connection, and no answer comes.
DELAY = 0.02
# Between two events of a stream; an answer has about fifty.
DRIPS = ["20ms", "60ms", "90ms", "120ms"]
WORDS = " ".join(f"word{n}" for n in range(45))
TURNS = 8


class Wrong(Exception):
    """What a client would complain about."""


class Load(threading.Thread):
    """Runs from `start` to `finish`."""

    def __init__(self, address, key, secure=None):
        super().__init__(daemon=True)
        self.address, self.key = address, key
        # The address with TLS, and how to connect there; without it everything is in clear.
        self.secure = secure
        self.stopping = threading.Event()
        self.failures, self.ids = [], []
        self.done = {"short": 0, "stream": 0, "websocket": 0}
        self.reconnected = self.connections = 0
        self.begun = time.monotonic()

    def finish(self):
        """Ends when everything under way is complete."""
        self.stopping.set()
        self.join(LIMIT + 10)
        if self.is_alive():
            self.failures.append("the load did not end")
        return self

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.finish()

    def total(self):
        return sum(self.done.values())

    def summary(self):
        counts = ", ".join(f"{count} {kind}" for kind, count in self.done.items())
        return f"{counts} in {time.monotonic() - self.begun:.0f} s over {self.connections} connections"

    def run(self):
        asyncio.run(self.all())

    async def all(self):
        far, tls = Relay(self.address, DELAY), None
        await far.listen()
        workers = [self.short(pause) for pause in PAUSES]
        workers += [self.short(pause, address=far.address) for pause in PAUSES]
        workers += [self.short(0.05, kept=False), self.short(0.05, kept=False, address=far.address)]
        workers += [self.streams(drip) for drip in DRIPS]
        workers += [self.websockets(pause) for pause in (0.1, 0.4, 0.6)]
        if self.secure:
            tls = Relay(self.secure[0], 0, self.secure[1])
            await tls.listen()
            workers += [self.short(pause, address=tls.address) for pause in PAUSES[:4]]
            workers += [self.streams("90ms", tls.address)]
        await asyncio.gather(*(self.guarded(worker) for worker in workers))
        for relay in filter(None, [far, tls]):
            relay.close()

    async def guarded(self, worker):
        try:
            await worker
        except Exception as problem:
            self.failures.append(f"the load itself: {problem!r}")

    @contextlib.asynccontextmanager
    async def noted(self, kind):
        """Counts what went well, and notes what did not."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(LIMIT):
                yield
            self.done[kind] += 1
        except (Wrong, OSError, TimeoutError) as problem:
            at = f"{time.monotonic() - self.begun:.2f} s, {time.monotonic() - begun:.3f} s after its begin"
            self.failures.append(f"{kind}: {problem or type(problem).__name__} (at {at})")
            await self.rest(0.1)

    async def connect(self, address=None):
        self.connections += 1
        return await Wire.connect(address or self.address)

    async def short(self, pause, kept=True, address=None):
        wire, n = None, 0
        while not self.stopping.is_set():
            n += 1
            if wire and wire.was_closed_while_idle():
                self.reconnected += 1
                wire = wire.close()
            said = f"number {n} of {pause}"
            ended = False
            async with self.noted("short"):
                wire = wire or await self.connect(address)
                answer = await wire.ask(self.chat(said, kept=kept))
                self.known(answer)
                text = json.loads(answer.body)["choices"][0]["message"]["content"]
                if not text.startswith(f"You said: {said}"):
                    raise Wrong(f"the answer is another's: {text[:80]!r}")
                ended = kept and not answer.closes
            if not ended and wire:
                wire = wire.close()
            await self.rest(pause)
        if wire:
            wire.close()

    async def streams(self, drip, address=None):
        while not self.stopping.is_set():
            async with self.noted("stream"):
                await self.one_stream(drip, address=address)

    async def one_stream(self, drip, begun=lambda: None, address=None):
        """A stream from its request to its terminating chunk, on a connection of its own."""
        wire = await self.connect(address)
        try:
            answer = await wire.ask(self.chat(WORDS, drip=drip), begun=begun)
            self.known(answer)
            events = [line[6:] for line in answer.body.decode().split("\n\n") if line.startswith("data: ")]
            if not events or events[-1] != "[DONE]":
                raise Wrong(f"a stream without its end, after {len(events)} events")
            choices = [json.loads(event)["choices"] for event in events[:-1]]
            text = "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)
            if not text.startswith("You said: word0 word1 word2 ") or not text.endswith("simulated answer to it."):
                raise Wrong(f"a stream with a hole: {text!r}")
        finally:
            wire.close()

    async def websockets(self, pause):
        while not self.stopping.is_set():
            async with self.noted("websocket"):
                await self.one_websocket(pause)

    async def one_websocket(self, pause):
        """A conversation of several turns, to the closing handshake."""
        wire = await self.connect()
        try:
            key = base64.b64encode(os.urandom(16)).decode()
            upgrade = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            answer = await wire.ask(self.head("GET", REALTIME, upgrade).encode(), expected=101)
            self.known(answer)
            if (await wire.hear())["type"] != "session.created":
                raise Wrong("a WebSocket without its session")
            for turn in range(TURNS):
                said = f"turn {turn} after {pause} s"
                content = [{"type": "input_text", "text": said}]
                await wire.say({"type": "conversation.item.create", "item": {"type": "message", "role": "user", "content": content}})
                await wire.say({"type": "response.create"})
                while (event := await wire.hear())["type"] != "response.done":
                    pass
                text = event["response"]["output"][0]["content"][0]["text"]
                if not text.startswith(f"You said: {said}"):
                    raise Wrong(f"a WebSocket says {text[:80]!r}")
                await asyncio.sleep(pause)
            await wire.frame(8, struct.pack("!H", 1000))
            code, _ = await wire.next_frame()
            if code != 8:
                raise Wrong(f"frame {code} in place of the closing one")
        finally:
            wire.close()

    async def rest(self, seconds):
        until = time.monotonic() + seconds
        while not self.stopping.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))

    def known(self, answer):
        if REQUEST_ID not in answer.headers:
            raise Wrong(f"an answer without {REQUEST_ID}")
        self.ids.append(answer.headers[REQUEST_ID])

    def chat(self, text, kept=True, drip=None):
        body = {"messages": [{"role": "user", "content": text}]} | ({"stream": True} if drip else {})
        body = json.dumps(body).encode()
        fields = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        fields += "" if kept else "Connection: close\r\n"
        fields += f"x-simulate: drip: {drip}\r\n" if drip else ""
        return self.head("POST", CHAT, fields).encode() + body

    def head(self, method, target, fields):
        return f"{method} {target} HTTP/1.1\r\nHost: localhost\r\napi-key: {self.key}\r\n{fields}\r\n"


class Relay:
    """Between clients and the balancer: a long way, or TLS. What ends on one side ends on the other."""

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
            # A client that is refused is told so, as far as it can be.
            writer.transport.abort()
            return
        await asyncio.gather(self.pass_on(reader, far_writer), self.pass_on(far_reader, writer))

    async def pass_on(self, reader, writer):
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()

        async def deliver():
            while True:
                due, data = await queue.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
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


class OneStream(threading.Thread):
    """A single stream; `begun` is set with its first bytes, `problem` says how it ended."""

    def __init__(self, address, key, drip):
        super().__init__(daemon=True)
        self.load, self.drip = Load(address, key), drip
        self.begun, self.problem, self.ended = threading.Event(), "it did not end", None
        self.start()
        self.begun.wait(10)

    def run(self):
        async def once():
            async with asyncio.timeout(LIMIT):
                await self.load.one_stream(self.drip, self.begun.set)

        try:
            asyncio.run(once())
            self.problem = None
        except (Wrong, OSError, TimeoutError) as problem:
            self.problem = str(problem) or type(problem).__name__
        self.ended = time.monotonic()
        self.begun.set()

    def result(self):
        """None, or what was wrong with it."""
        self.join(LIMIT + 5)
        return self.problem


class Answer:
    def __init__(self, status, headers):
        self.status, self.headers, self.body = status, headers, b""
        self.closes = headers.get("connection", "").lower() == "close"


class Wire:
    """One connection, read and written as bytes."""

    @classmethod
    async def connect(cls, address):
        wire = cls()
        wire.socket = socket.socket()
        wire.socket.setblocking(False)
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.loop, wire.buffer = asyncio.get_running_loop(), b""
        try:
            await wire.loop.sock_connect(wire.socket, address)
        except OSError as problem:
            wire.socket.close()
            raise Wrong(f"no connection: {problem}") from None
        return wire

    def close(self):
        self.socket.close()

    def was_closed_while_idle(self):
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    async def more(self, during):
        try:
            data = await self.loop.sock_recv(self.socket, 65536)
        except ConnectionError as problem:
            raise Wrong(f"{problem} {during}") from None
        if not data:
            raise Wrong(f"closed {during}")
        self.buffer += data

    async def until(self, mark, during):
        while (at := self.buffer.find(mark)) < 0:
            await self.more(during)
        taken, self.buffer = self.buffer[:at], self.buffer[at + len(mark) :]
        return taken

    async def exactly(self, count, during):
        while len(self.buffer) < count:
            await self.more(during)
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    async def ask(self, request, expected=200, begun=lambda: None):
        """A request and its whole answer."""
        try:
            await self.loop.sock_sendall(self.socket, request)
        except ConnectionError as problem:
            raise Wrong(f"{problem} while the request was sent") from None
        head = (await self.until(b"\r\n\r\n", "before the answer")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
        answer = Answer(int(head[0].split()[1]), headers)
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await self.until(b"\r\n", "between two chunks")).split(b";")[0], 16):
                answer.body += await self.exactly(size, "within a chunk")
                begun()
                if await self.exactly(2, "after a chunk") != b"\r\n":
                    raise Wrong("a chunk with another length than it said")
            await self.until(b"\r\n", "before the end of the terminating chunk")
        elif answer.status != 101:
            answer.body = await self.exactly(int(headers["content-length"]), "within the answer")
            begun()
        if answer.status != expected:
            raise Wrong(f"status {answer.status}: {answer.body[:200]!r}")
        return answer

    async def say(self, event):
        await self.frame(1, json.dumps(event).encode())

    async def frame(self, code, payload):
        mask = os.urandom(4)
        size = bytes([0x80 | len(payload)]) if len(payload) < 126 else bytes([0xFE]) + struct.pack("!H", len(payload))
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        try:
            await self.loop.sock_sendall(self.socket, bytes([0x80 | code]) + size + mask + masked)
        except ConnectionError as problem:
            raise Wrong(f"{problem} while a WebSocket was written to") from None

    async def next_frame(self):
        code, size = await self.exactly(2, "within a WebSocket")
        if size == 126:
            (size,) = struct.unpack("!H", await self.exactly(2, "within a frame"))
        elif size == 127:
            (size,) = struct.unpack("!Q", await self.exactly(8, "within a frame"))
        return code & 15, await self.exactly(size, "within a frame")

    async def hear(self):
        while True:
            code, payload = await self.next_frame()
            if code == 8:
                raise Wrong(f"a WebSocket was closed: {payload[:80]!r}")
            if code == 9:
                await self.frame(10, payload)
            if code in (1, 2):
                return json.loads(payload)
