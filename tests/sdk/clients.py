"""Clients of the current Python SDK in four flavours, and helpers for their calls."""

import inspect

from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from suite import KEY, URL, test

VERSION = "2025-04-01-preview"
# More than the 64 KiB that Pingora itself could replay on a retry.
AUDIO = bytes(range(256)) * 1200


def azure_client(kind=AzureOpenAI, **options):
    # With a trailing slash, as it is copied from the Azure portal.
    arguments = {"azure_endpoint": f"{URL}/", "api_key": KEY, "api_version": VERSION, "max_retries": 0}
    return kind(**arguments | options)


def v1_client(kind=OpenAI, **options):
    return kind(**{"base_url": f"{URL}/openai/v1/", "api_key": KEY, "max_retries": 0} | options)


def openai_client(kind=OpenAI, **options):
    """As it is configured for OpenAI itself, with another host."""
    return v1_client(kind, **{"base_url": f"{URL}/v1"} | options)


FLAVOURS = {
    "azure": ("classic", azure_client),
    "azure async": ("classic", lambda: azure_client(AsyncAzureOpenAI)),
    "v1": ("v1", v1_client),
    "v1 async": ("v1", lambda: v1_client(AsyncOpenAI)),
    "base URL of OpenAI": ("v1", openai_client),
}


def for_each_flavour(name):
    """Registers a coroutine function once per flavour of the client."""

    def register(function):
        for flavour, (api, make_client) in FLAVOURS.items():

            async def run_with_client(api=api, make_client=make_client):
                client = make_client()
                await function(client, api)
                await resolve(client.close())

            test(f"{name}, {flavour}")(run_with_client)

    return register


async def resolve(value):
    """The result of a call of a sync or async client."""
    return await value if inspect.isawaitable(value) else value


async def collect_items(stream):
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


def user_message(text):
    return [{"role": "user", "content": text}]


def answer_to(text):
    return f"You said: {text} - and this is a simulated answer to it."


def check_stream(chunks, question):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer_to(question), text
    assert chunks[-1 if chunks[-1].choices else -2].choices[0].finish_reason == "stop"
    return text


def create_chat(client, model="gpt-4o", **options):
    return client.chat.completions.create(**{"model": model, "messages": user_message("Hello")} | options)


def ask(connection, text, model="gpt-4o-mini"):
    """A turn of the Responses WebSocket of a sync client: its text and its last event."""
    connection.response.create(model=model, input=text)
    said = ""
    for event in connection:
        said += event.delta if event.type == "response.output_text.delta" else ""
        if event.type in ("response.completed", "error"):
            return said, event
