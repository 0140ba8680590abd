"""Clients of the current Python SDK, in all four flavours, and what is said through them."""

import inspect

from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI

from suite import KEY, URL, test

VERSION = "2025-04-01-preview"
# More than the engine would replay by itself (64 KiB).
AUDIO = bytes(range(256)) * 1200


def azure(kind=AzureOpenAI, **options):
    # With a trailing slash, as people copy it from the portal.
    given = {"azure_endpoint": f"{URL}/", "api_key": KEY, "api_version": VERSION, "max_retries": 0}
    return kind(**given | options)


def v1(kind=OpenAI, **options):
    return kind(**{"base_url": f"{URL}/openai/v1/", "api_key": KEY, "max_retries": 0} | options)


FLAVOURS = {
    "azure": ("classic", azure),
    "azure async": ("classic", lambda: azure(AsyncAzureOpenAI)),
    "v1": ("v1", v1),
    "v1 async": ("v1", lambda: v1(AsyncOpenAI)),
}


def each(name):
    """Registers a coroutine function once per flavour of the client."""

    def register(function):
        for flavour, (api, make) in FLAVOURS.items():

            async def one(api=api, make=make):
                client = make()
                await function(client, api)
                await done(client.close())

            test(f"{name}, {flavour}")(one)

    return register


async def done(value):
    """The result of a call, be the client sync or async."""
    return await value if inspect.isawaitable(value) else value


async def items(stream):
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


def says(text):
    return [{"role": "user", "content": text}]


def answer_to(text):
    return f"You said: {text} - and this is a simulated answer to it."


def check_stream(chunks, question):
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer_to(question), text
    assert chunks[-1 if chunks[-1].choices else -2].choices[0].finish_reason == "stop"
    return text


def chat(client, model="gpt-4o", **options):
    return client.chat.completions.create(**{"model": model, "messages": says("Hello")} | options)
