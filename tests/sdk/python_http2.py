"""The current Python SDK over HTTP/2, through a balancer whose backend uses HTTP/2, too."""

import asyncio
import os

import openai

import suite
from clients import AUDIO, answer_to, azure_client, create_chat, check_stream, user_message, v1_client
from openai import AsyncAzureOpenAI, DefaultAsyncHttpxClient, DefaultHttpxClient
from suite import expect, own_deployment, raises, test

EDGE_URL, CA_FILE = os.environ["EDGE_URL"], os.environ["EDGE_CA"]
# As many as one connection of this client allows.
CONCURRENT_STREAMS = 90


def http2_transport(kind=DefaultHttpxClient):
    return kind(http2=True, verify=CA_FILE, timeout=30)


def classic_client(**options):
    return azure_client(azure_endpoint=EDGE_URL, http_client=http2_transport(), **options)


def v1_http2_client():
    return v1_client(base_url=f"{EDGE_URL}/openai/v1/", http_client=http2_transport())


@test("http/2 on both sides: chat, classic")
def _():
    raw = classic_client().chat.completions.with_raw_response.create(model="gpt-4o", messages=user_message("Over HTTP/2"))
    assert raw.http_response.http_version == "HTTP/2", raw.http_response.http_version
    assert raw.parse().choices[0].message.content == answer_to("Over HTTP/2")
    expect(status=200, operation="chat")


@test("http/2 on both sides: a stream, v1")
def _():
    check_stream(list(create_chat(v1_http2_client(), stream=True)), "Hello")
    expect(status=200, operation="chat", stream=True, outcome="answered")


@test("http/2 on both sides: an upload fails over completely")
def _():
    answer = v1_http2_client().audio.transcriptions.create(model=own_deployment("failover-dictation"), file=("speech.wav", AUDIO))
    assert f"{len(AUDIO)} bytes" in answer.text
    expect(operation="audio", status=200)


@test("http/2 on both sides: an error is an exception of the SDK")
def _():
    error = raises(openai.BadRequestError, create_chat, classic_client(), model=own_deployment("filtered"))
    assert error.code == "content_filter"
    expect(status=400)


@test(f"http/2 on both sides: {CONCURRENT_STREAMS} streams at once")
async def _():
    client = azure_client(AsyncAzureOpenAI, azure_endpoint=EDGE_URL, http_client=http2_transport(DefaultAsyncHttpxClient))

    async def read_stream():
        return [chunk async for chunk in await create_chat(client, stream=True)]

    for chunks in await asyncio.gather(*(read_stream() for _ in range(CONCURRENT_STREAMS))):
        check_stream(chunks, "Hello")
    for _ in range(CONCURRENT_STREAMS):
        expect(status=200, outcome="answered")
    await client.close()


suite.run_tests()
