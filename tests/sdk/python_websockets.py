"""The current Python SDK over WebSockets: the realtime API, and responses over a WebSocket."""

import time

from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

import suite
from clients import answer_to, ask, azure_client, v1_client
from suite import LIMITED_KEY, NOT_NULL, URL, at_least, contains, expect, raises, test


def sockets():
    base = URL.replace("http://", "ws://")
    yield "azure", azure_client(AsyncAzureOpenAI, websocket_base_url=f"{base}/openai")
    yield "v1", v1_client(AsyncOpenAI, websocket_base_url=f"{base}/openai/v1")


def expect_turn(operation, **fields):
    expect(operation=operation, method="WEBSOCKET", socket_id=NOT_NULL, **{"api": "v1", "status": 200, "outcome": "answered"} | fields)


def expect_socket(operation, **fields):
    nothing = {"socket_id": None, "total_tokens": None}
    expect(operation=operation, method="GET", status=101, outcome="answered", **nothing | fields)


@test("realtime")
async def _():
    for name, client in sockets():
        api = "v1" if name == "v1" else "classic"
        async with client.realtime.connect(model="gpt-realtime") as connection:
            first = await connection.recv()
            assert first.type == "session.created", first.type
            for text in ["Speak", "Speak again"]:
                part = {"type": "input_text", "text": text}
                await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
                await connection.response.create()
                said = ""
                async for event in connection:
                    said += event.delta if event.type.endswith("text.delta") else ""
                    if event.type == "response.done":
                        break
                assert said == answer_to(text), said
                usage = event.response.usage
                tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
                expect_turn("realtime", api=api, deployment="gpt-realtime", backend="westus", **tokens)
        expect_socket("realtime", api=api, deployment="gpt-realtime", backend="westus")
        await client.close()


@test("responses over a WebSocket")
def _():
    with v1_client(OpenAI) as client, client.responses.connect() as connection:
        for model, question in [("gpt-4o-mini", "Over a socket"), ("gpt-4o", "Another model"), ("gpt-4o-mini", "The first again")]:
            text, event = ask(connection, question, model)
            assert text == answer_to(question), (text, event)
            usage = event.response.usage
            tokens = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, "total_tokens": usage.total_tokens}
            expect_turn("responses", deployment=model, completion=contains(text), stream=True, backend=NOT_NULL, **tokens)
    expect_socket("responses", backend=None, deployment=None)


@test("a client that closes a WebSocket does not wait")
def _():
    with v1_client(OpenAI) as client:
        connection = client.responses.connect().enter()
        ask(connection, "Hello")
        start = time.monotonic()
        connection.close()
        elapsed = time.monotonic() - start
        assert elapsed < 1, f"{elapsed:.1f} s"
    expect_turn("responses", deployment="gpt-4o-mini")
    expect_socket("responses")


@test("errors of turns leave a WebSocket open")
def _():
    with v1_client(OpenAI, api_key=LIMITED_KEY) as client, client.responses.connect() as connection:
        _, event = ask(connection, "Not allowed", "gpt-4o")
        assert (event.status, event.error.code) == (403, "deployment_not_allowed"), event
        expect_turn("responses", client="limited", status=403, outcome="refused", refusal="deployment_not_allowed")
        text, event = ask(connection, "Allowed")
        assert text == answer_to("Allowed"), (text, event)
        expect_turn("responses", client="limited", deployment="gpt-4o-mini", total_tokens=at_least(1))
    expect_socket("responses", client="limited")


@test("a WebSocket with a wrong key")
async def _():
    base = URL.replace("http://", "ws://")
    client = v1_client(AsyncOpenAI, websocket_base_url=f"{base}/openai/v1", api_key="wrong")
    for operation, connect in [("realtime", lambda: client.realtime.connect(model="gpt-realtime")), ("responses", client.responses.connect)]:
        try:
            async with connect():
                problem = None
        except Exception as error:
            problem = str(error)
        assert problem is not None and "401" in problem, f"{operation}: {problem}"
        expect(client=None, operation=operation, method="GET", status=401, outcome="refused", refusal="invalid_api_key")
    with v1_client(OpenAI, api_key="wrong") as sync_client:
        problem = raises(Exception, sync_client.responses.connect().enter)
        assert "401" in str(problem), repr(problem)
    expect(client=None, operation="responses", method="GET", status=401, outcome="refused", refusal="invalid_api_key")
    await client.close()


suite.run_tests()
