"""The current Python SDK with clients that have limits: what it repeats, how long it waits, and what it raises."""

import asyncio
import json
import os
import re
import time

from openai import AsyncAzureOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient, OpenAI, RateLimitError

import suite
from clients import answer_to, ask, azure_client, create_chat, resolve, v1_client
from suite import NOT_NULL, ask_runner, expect, test

KEYS = json.loads(os.environ["LIMIT_KEYS"])
SLOW = {"x-simulate": "slow_first_byte: 400ms"}
# Timers may fire a little early.
TOLERANCE = 0.01
REFUSED = {"status": 429, "outcome": "refused", "statuses": []}
# Azure tells counters of this deployment.
COUNTED_DEPLOYMENT = "limited"


class Caller:
    """A client with a limit, and what its SDK has sent: of each request its times, its status and the hint when to repeat it."""

    def __init__(self, limit, kind, **options):
        self.name, self.sent = f"{limit}-{kind}", []
        if kind == "sync":
            hooks = {"request": [self.note_request], "response": [self.note_response]}
            self.client = v1_client(api_key=KEYS[self.name], http_client=DefaultHttpxClient(event_hooks=hooks), **options)
        else:

            async def on_request(request):
                self.note_request(request)

            async def on_response(response):
                self.note_response(response)

            http_client = DefaultAsyncHttpxClient(event_hooks={"request": [on_request], "response": [on_response]})
            self.client = azure_client(AsyncAzureOpenAI, api_key=KEYS[self.name], http_client=http_client, **options)

    def note_request(self, _):
        self.sent.append({"at": time.monotonic()})

    def note_response(self, response):
        hint = response.headers.get("retry-after-ms")
        self.sent[-1] |= {"status": response.status_code, "answered": time.monotonic(), "hint": hint and float(hint) / 1000}

    @property
    def statuses(self):
        return [request["status"] for request in self.sent]

    async def chat(self, **options):
        """A chat that is answered."""
        chat = await self.call(create_chat, self.client, **options)
        assert chat.choices[0].message.content == answer_to("Hello"), chat

    async def headers(self, **options):
        """The headers of the answer to a chat."""
        create = self.client.chat.completions.with_raw_response.create
        return (await self.call(create, messages=[{"role": "user", "content": "Hello"}], **options)).headers

    async def refused(self, **options):
        """The error of a chat that is refused."""
        try:
            await self.chat(**options)
        except RateLimitError as error:
            assert error.status_code == 429 and error.request_id, error
            return error
        raise AssertionError("no RateLimitError was raised")

    async def call(self, function, *arguments, **options):
        """Calls a function of the SDK; a sync one in a thread, so that several can wait."""
        return await resolve(await asyncio.to_thread(function, *arguments, **options))

    def expect(self, **fields):
        expect(client=self.name, **fields)


def for_each_kind(name):
    """Registers a coroutine function once per kind of client; it gets a function that makes one."""

    def register(function):
        for kind in ("sync", "async"):

            async def run(kind=kind):
                callers = []

                def make(limit, **options):
                    callers.append(Caller(limit, kind, **options))
                    return callers[-1]

                await function(make)
                for caller in callers:
                    await resolve(caller.client.close())

            test(f"{name}, {kind}")(run)

    return register


@for_each_kind("three calls at once where one may be in flight")
async def _(make):
    callers = [make("in-flight", max_retries=20) for _ in range(3)]
    await asyncio.gather(*(caller.chat(extra_headers=SLOW) for caller in callers))
    for caller in callers:
        for refused, repeated in zip(caller.sent, caller.sent[1:]):
            waited = repeated["at"] - refused["answered"]
            is_told = refused["status"] == 429 and refused["hint"] is not None
            assert is_told and waited > refused["hint"] - TOLERANCE, caller.sent
            caller.expect(limited_by="in_flight", refusal="rate_limit_exceeded", **REFUSED)
        caller.expect(status=200, limited_by=None)
    assert sum(len(caller.sent) for caller in callers) >= 5, "two of them were not refused at first"


@for_each_kind("a rate of requests")
async def _(make):
    caller = make("requests")
    for remaining in (1, 0):
        check_counters(await caller.headers(model=COUNTED_DEPLOYMENT), remaining)
        caller.expect(status=200, limited_by=None)
    error = await caller.refused()
    assert caller.statuses == [200, 200, 429], caller.statuses
    assert error.code == "rate_limit_exceeded" and error.type == "rate_limit_error", error.body
    assert "requests_per_minute" in error.message and caller.name in error.message, error.message
    headers = error.response.headers
    millis, seconds = int(headers["retry-after-ms"]), int(headers["retry-after"])
    assert 50_000 <= millis <= 61_000 and seconds == -(-millis // 1000), (millis, seconds)
    assert "x-should-retry" not in headers, headers
    check_counters(headers, 0)
    caller.expect(limited_by="requests_per_minute", refusal="rate_limit_exceeded", **REFUSED)
    # Other clients get the counters of Azure.
    unlimited = make("unlimited")
    headers = await unlimited.headers(model=COUNTED_DEPLOYMENT)
    assert int(headers["x-ratelimit-limit-requests"]) > 2 and "x-ratelimit-remaining-tokens" in headers, headers
    unlimited.expect(status=200, limited_by=None)


def check_counters(headers, remaining):
    """The counters are of the client's own limit, which has no tokens."""
    counters = {name: int(value) for name, value in headers.items() if name.startswith("x-ratelimit-")}
    reset = counters.pop("x-ratelimit-reset-requests")
    assert 50 <= reset <= 61, reset
    assert counters == {"x-ratelimit-limit-requests": 2, "x-ratelimit-remaining-requests": remaining}, counters


@for_each_kind("a budget that is used up")
async def _(make):
    caller = make("budget", max_retries=5)
    await caller.chat(max_tokens=50)
    caller.expect(status=200, limited_by=None)
    # Within the budget by itself, but not after the first.
    error = await caller.refused(max_tokens=75)
    assert caller.statuses == [200, 429], caller.statuses
    assert error.code == "insufficient_quota" and "tokens_per_day" in error.message, error.body
    headers = error.response.headers
    assert headers["x-should-retry"] == "false" and 1 <= int(headers["retry-after"]) <= 86_401, headers
    caller.expect(limited_by="tokens_per_day", refusal="insufficient_quota", **REFUSED)


@for_each_kind("a request that alone is more than a limit")
async def _(make):
    caller = make("tokens", max_retries=5)
    error = await caller.refused(max_tokens=5000)
    assert caller.statuses == [429], caller.statuses
    assert error.code == "rate_limit_exceeded" and "1000 tokens in 60 seconds" in error.message, error.body
    assert 5000 < int(re.search(r"about (\d+) tokens", error.message)[1]) < 5100, error.message
    headers = error.response.headers
    assert headers["x-should-retry"] == "false" and "retry-after" not in headers, headers
    caller.expect(limited_by="tokens_per_minute", refusal="rate_limit_exceeded", **REFUSED)
    await caller.chat(max_tokens=100)
    caller.expect(status=200, limited_by=None)


@for_each_kind("limits that are only observed")
async def _(make):
    caller = make("observed")
    ask_runner("change mode", old="enforce", new="observe")
    try:
        for limited_by in (None, "requests_per_minute"):
            await caller.chat()
            caller.expect(status=200, limited_by=limited_by, refusal=None, outcome="answered")
    finally:
        ask_runner("change mode", old="observe", new="enforce")
    await caller.refused()
    caller.expect(limited_by="requests_per_minute", refusal="rate_limit_exceeded", **REFUSED)


@for_each_kind("the class of a request")
async def _(make):
    header = {"x-aoai-lb-class": "batch"}
    caller, batch = make("unlimited"), make("unlimited", default_headers=header)
    await caller.chat()
    caller.expect(status=200, **{"class": "interactive"})
    await caller.chat(extra_headers=header)
    await batch.chat()
    for _ in range(2):
        caller.expect(status=200, **{"class": "batch"})


@test("turns of a Responses WebSocket beyond a rate")
def _():
    name = "socket-sync"
    turn = {"client": name, "method": "WEBSOCKET", "operation": "responses", "socket_id": NOT_NULL}
    with v1_client(OpenAI, api_key=KEYS[name]) as client, client.responses.connect() as connection:
        text, event = ask(connection, "Within the rate", "gpt-4o")
        assert text == answer_to("Within the rate"), (text, event)
        expect(status=200, limited_by=None, **turn)
        # The refusal leaves the socket open for the next turn.
        for _ in range(2):
            _, event = ask(connection, "Beyond the rate", "gpt-4o")
            assert (event.type, event.status, event.error.code) == ("error", 429, "rate_limit_exceeded"), event
            assert "requests_per_minute" in event.error.message and 50_000 <= event.retry_after_ms <= 61_000, event
            expect(limited_by="requests_per_minute", refusal="rate_limit_exceeded", **REFUSED, **turn)
    expect(client=name, method="GET", operation="responses", status=101, limited_by=None)


suite.run_tests()
