"""The current Python SDK over WebSockets: the realtime API, and responses over a WebSocket."""

from openai import AsyncAzureOpenAI, AsyncOpenAI

import suite
from clients import answer_to, azure_client, v1_client
from suite import URL, expect, test


def sockets():
    base = URL.replace("http://", "ws://")
    yield "azure", azure_client(AsyncAzureOpenAI, websocket_base_url=f"{base}/openai")
    yield "v1", v1_client(AsyncOpenAI, websocket_base_url=f"{base}/openai/v1")


@test("realtime")
async def _():
    for name, client in sockets():
        async with client.realtime.connect(model="gpt-realtime") as connection:
            first = await connection.recv()
            assert first.type == "session.created", first.type
            part = {"type": "input_text", "text": "Speak"}
            await connection.conversation.item.create(item={"type": "message", "role": "user", "content": [part]})
            await connection.response.create()
            text = ""
            async for event in connection:
                text += event.delta if event.type == "response.text.delta" else ""
                if event.type == "response.done":
                    break
        assert text == answer_to("Speak"), text
        expect(
            operation="realtime",
            method="GET",
            api="v1" if name == "v1" else "classic",
            deployment="gpt-realtime",
            status=101,
            outcome="answered",
            backend="westus",
        )
        await client.close()


@test("responses over a WebSocket")
async def _():
    base = URL.replace("http://", "ws://")
    client = v1_client(AsyncOpenAI, websocket_base_url=f"{base}/openai/v1")
    async with client.responses.connect() as connection:
        await connection.response.create(model="gpt-4o-mini", input="Over a socket")
        text = ""
        async for event in connection:
            text += event.delta if event.type == "response.output_text.delta" else ""
            if event.type in ("response.completed", "error"):
                break
    assert text == answer_to("Over a socket"), (text, event)
    # The handshake names no deployment, so it goes to the default backend.
    expect(operation="responses", method="GET", status=101, outcome="answered", backend="westus")
    await client.close()


@test("realtime with a wrong key")
async def _():
    base = URL.replace("http://", "ws://")
    client = v1_client(AsyncOpenAI, websocket_base_url=f"{base}/openai/v1", api_key="wrong")
    try:
        async with client.realtime.connect(model="gpt-realtime"):
            raise AssertionError("expected the wrong key to be rejected")
    except AssertionError:
        raise
    except Exception as error:
        assert "401" in str(error), repr(error)
    expect(client=None, operation="realtime", status=401, outcome="refused", refusal="invalid_api_key")
    await client.close()


suite.run_tests()
