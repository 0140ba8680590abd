"""The Python SDK before version 1, called as by users of API Management: settings on the module, `engine=`,
and the subscription key as api_key or in its own header."""

import asyncio
import io
import math

import openai

import suite
from suite import COLLEAGUE_KEY, KEY, LIMITED_KEY, URL, contains, expect, at_least, own_deployment, raises, test

VERSION = "2023-05-15"
AUDIO = bytes(range(256)) * 1200

openai.api_type = "azure"
openai.api_base = URL
openai.api_version = VERSION
openai.api_key = KEY

KEY_IN_HEADER = {"api_key": "dummy", "headers": {"Ocp-Apim-Subscription-Key": KEY}}


def user_message(text):
    return [{"role": "user", "content": text}]


def answer_to(text):
    return f"You said: {text} - and this is a simulated answer to it."


def create_chat(engine="gpt-4o", text="Hello", **options):
    return openai.ChatCompletion.create(**{"engine": engine, "messages": user_message(text)} | options)


def expect_chat(answer, **fields):
    expect(
        operation="chat",
        api="classic",
        api_version=VERSION,
        stream=False,
        status=200,
        outcome="answered",
        input_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
        total_tokens=answer.usage.total_tokens,
        usage_source="reported",
        finish_reason="stop",
        completion=answer.choices[0].message.content,
        **fields,
    )


# A base with a trailing slash makes two slashes in the path, which the balancer merges.
for name, base in {"": URL, ", api_base with a slash at its end": f"{URL}/"}.items():

    @test(f"chat{name}")
    def _(base=base):
        answer = create_chat(text="Hello there", api_base=base)
        assert answer.choices[0].message.content == answer_to("Hello there")
        path = "/openai/deployments/gpt-4o/chat/completions"
        expect_chat(answer, path=path, deployment="gpt-4o", prompt=contains("Hello there"))

    @test(f"stream{name}")
    def _(base=base):
        chunks = list(create_chat(text="Stream it", stream=True, api_base=base))
        deltas = [chunk.choices[0].delta.get("content") or "" for chunk in chunks if chunk.choices]
        assert "".join(deltas) == answer_to("Stream it")
        assert not any("usage" in chunk for chunk in chunks)
        # This api-version does not support stream_options, so no usage is requested, and the tokens are counted.
        counted = {"usage_source": "estimated", "total_tokens": at_least(2)}
        expect(operation="chat", stream=True, completion=answer_to("Stream it"), **counted)

    @test(f"completions{name}")
    def _(base=base):
        answer = openai.Completion.create(engine="gpt-35-turbo-instruct", prompt="Once upon", api_base=base)
        assert "Once upon" in answer.choices[0].text
        expect(operation="completions", completion=answer.choices[0].text, total_tokens=answer.usage.total_tokens)

    @test(f"embeddings{name}")
    def _(base=base):
        create = openai.Embedding.create
        # Without encoding_format the SDK requests base64 and decodes it.
        packed = create(engine="text-embedding-3-small", input="a text", api_base=base)
        plain = create(engine="text-embedding-3-small", input="a text", encoding_format="float", api_base=base)
        pairs = zip(packed.data[0].embedding, plain.data[0].embedding, strict=True)
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs)
        for answer in (packed, plain):
            tokens = answer.usage.prompt_tokens
            expect(operation="embeddings", status=200, input_tokens=tokens, prompt=contains("a text"))


@test("stream of a completion")
def _():
    chunks = list(openai.Completion.create(engine="gpt-35-turbo-instruct", prompt="And then", stream=True))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert "And then" in text
    expect(operation="completions", stream=True, completion=text)


@test("deployment_id in place of engine")
def _():
    answer = openai.ChatCompletion.create(deployment_id="gpt-4o-mini", messages=user_message("Otherwise"))
    expect_chat(answer, deployment="gpt-4o-mini")


@test("a stream whose usage the balancer requests")
def _():
    chunks = list(create_chat("gpt-4o-mini", "Newer", stream=True, api_version="2024-10-21"))
    assert not any(chunk.get("usage") for chunk in chunks), "expected no usage that the client did not request"
    assert chunks[-1].choices, "expected no chunk without choices at the end"
    expect(api_version="2024-10-21", stream=True, usage_source="reported", total_tokens=at_least(1))


@test("async, plain and streamed")
def _():
    async def both():
        answer = await openai.ChatCompletion.acreate(engine="gpt-4o-mini", messages=user_message("Async"))
        expect_chat(answer)
        stream = await openai.ChatCompletion.acreate(engine="gpt-4o-mini", messages=user_message("Async"), stream=True)
        chunks = [chunk async for chunk in stream]
        deltas = [chunk.choices[0].delta.get("content") or "" for chunk in chunks if chunk.choices]
        assert "".join(deltas) == answer_to("Async")
        expect(operation="chat", stream=True, completion=answer_to("Async"))

    asyncio.run(both())


@test("subscription key in a header, with a dummy api_key")
def _():
    expect_chat(create_chat(**KEY_IN_HEADER))
    list(create_chat(stream=True, **KEY_IN_HEADER))
    expect(operation="chat", stream=True, status=200)
    openai.Completion.create(engine="gpt-35-turbo-instruct", prompt="Once", **KEY_IN_HEADER)
    expect(operation="completions", status=200)
    openai.Embedding.create(engine="text-embedding-3-small", input="a text", **KEY_IN_HEADER)
    expect(operation="embeddings", status=200)


@test("subscription key as a token of api_type azure_ad")
def _():
    expect_chat(create_chat("gpt-4o-mini", api_type="azure_ad"))


@test("audio upload")
def _():
    file = io.BytesIO(AUDIO)
    file.name = "speech.wav"
    answer = openai.Audio.transcribe("whisper-1", file, deployment_id="dictation")
    assert f"{len(AUDIO)} bytes" in answer.text, answer
    expect(operation="audio", deployment="dictation", upstream_deployment="whisper", completion=answer.text)


@test("files")
def _():
    made = openai.File.create(io.BytesIO(b"{}\n"), purpose="fine-tune", user_provided_filename="a.jsonl")
    expect(operation="files", method="POST", status=201)
    assert made.id in [file.id for file in openai.File.list().data]
    expect(operation="files", method="GET", status=200)
    assert openai.File.retrieve(made.id).filename == "a.jsonl"
    expect(operation="files", method="GET", status=200)
    assert openai.File.download(made.id) == b"{}\n"
    expect(operation="files", method="GET", status=200, path=contains("/content"))
    openai.File.delete(made.id)
    expect(operation="files", method="DELETE", status=200)


@test("one backend throttled")
def _():
    answer = create_chat(own_deployment("failover-chat"))
    expect_chat(answer, statuses=[429, 200], backends=["troubled", "westus"])
    openai.Embedding.create(engine=own_deployment("failover-vectors"), input="a text")
    expect(operation="embeddings", statuses=[429, 200])


def check(error, status, code, **fields):
    assert error.http_status == status, error.http_status
    # This SDK sets error.code for some kinds of errors only.
    assert error.json_body["error"]["code"] == code, error.json_body
    assert error.headers["x-aoai-lb-request-id"]
    expect(request_id=error.headers["x-aoai-lb-request-id"], status=status, **fields)


@test("wrong key")
def _():
    error = raises(openai.error.AuthenticationError, create_chat, api_key="wrong")
    check(error, 401, "invalid_api_key", client=None, outcome="refused", refusal="invalid_api_key")
    error = raises(openai.error.AuthenticationError, create_chat, api_key="wrong", stream=True)
    check(error, 401, "invalid_api_key", client=None, outcome="refused", refusal="invalid_api_key")


@test("keys of two clients")
def _():
    error = raises(openai.error.AuthenticationError, create_chat, headers={"Ocp-Apim-Subscription-Key": COLLEAGUE_KEY})
    check(error, 401, "invalid_api_key", client=None)


@test("deployment not allowed for this client")
def _():
    error = raises(openai.error.PermissionError, create_chat, api_key=LIMITED_KEY)
    check(error, 403, "deployment_not_allowed", client="limited", deployment="gpt-4o")


@test("unknown deployment")
def _():
    error = raises(openai.error.InvalidRequestError, create_chat, "no-such-deployment")
    check(error, 404, "DeploymentNotFound", outcome="refused", statuses=[])


@test("all backends throttled")
def _():
    error = raises(openai.error.RateLimitError, create_chat, own_deployment("throttled"))
    assert 20_000 < float(error.headers["retry-after-ms"]) <= 30_000, error.headers
    assert 20 < float(error.headers["retry-after"]) <= 30, error.headers
    check(error, 429, "429", statuses=[429])


@test("a bad request is relayed")
def _():
    error = raises(openai.error.InvalidRequestError, create_chat, "gpt-4o-mini", messages=[])
    check(error, 400, error.json_body["error"]["code"], outcome="answered", statuses=[400])


@test("a content filter error is relayed")
def _():
    error = raises(openai.error.InvalidRequestError, create_chat, own_deployment("filtered"))
    check(error, 400, "content_filter", statuses=[400])


@test("a resource that is down")
def _():
    error = raises(openai.error.ServiceUnavailableError, create_chat, own_deployment("down"))
    # For this error the SDK keeps the status and drops the body.
    assert error.http_status == 503
    expect(status=503, backends=["troubled"] * 4)


suite.run_tests()
