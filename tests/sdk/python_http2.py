"""The current Python SDK over HTTP/2 and TLS, through a balancer whose backend speaks both, too."""

import asyncio
import os

import openai

import suite
from clients import AUDIO, answer_to, azure, chat, check_stream, each, says, v1
from openai import AsyncAzureOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient
from suite import expect, mine, raises, test

EDGE, AUTHORITY = os.environ["EDGE_URL"], os.environ["EDGE_CA"]
# As many as one connection of this client takes.
AT_ONCE = 90


def http2(kind=DefaultHttpxClient):
    return kind(http2=True, verify=AUTHORITY, timeout=30)


def classic(**options):
    return azure(azure_endpoint=EDGE, http_client=http2(), **options)


def current():
    return v1(base_url=f"{EDGE}/openai/v1/", http_client=http2())


@test("http/2 on both sides: chat, classic")
def _():
    raw = classic().chat.completions.with_raw_response.create(model="gpt-4o", messages=says("Over HTTP/2"))
    assert raw.http_response.http_version == "HTTP/2", raw.http_response.http_version
    assert raw.parse().choices[0].message.content == answer_to("Over HTTP/2")
    expect(status=200, operation="chat")


@test("http/2 on both sides: a stream, v1")
def _():
    check_stream(list(chat(current(), stream=True)), "Hello")
    expect(status=200, operation="chat", stream=True, outcome="answered")


@test("http/2 on both sides: an upload fails over whole")
def _():
    answer = current().audio.transcriptions.create(model=mine("failover-dictation"), file=("speech.wav", AUDIO))
    assert f"{len(AUDIO)} bytes" in answer.text
    expect(operation="audio", status=200)


@test("http/2 on both sides: a refusal is the SDK's exception")
def _():
    error = raises(openai.BadRequestError, chat, classic(), model=mine("filtered"))
    assert error.code == "content_filter"
    expect(status=400)


@test(f"http/2 on both sides: {AT_ONCE} streams at once")
async def _():
    client = azure(AsyncAzureOpenAI, azure_endpoint=EDGE, http_client=http2(DefaultAsyncHttpxClient))

    async def one():
        return [chunk async for chunk in await chat(client, stream=True)]

    for chunks in await asyncio.gather(*(one() for _ in range(AT_ONCE))):
        check_stream(chunks, "Hello")
    for _ in range(AT_ONCE):
        expect(status=200, outcome="answered")
    await client.close()


suite.run()
