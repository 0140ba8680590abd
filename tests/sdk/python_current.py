"""The current Python SDK: AzureOpenAI and OpenAI, sync and async, with the calls of an application."""

import asyncio
import base64
import hashlib
import json
import math

import openai
from openai import AsyncOpenAI

import suite
from clients import AUDIO, VERSION, answer_to, azure_client, create_chat, check_stream, resolve, for_each_flavour, collect_items, openai_client, user_message, v1_client
from suite import KEY, LIMITED_KEY, contains, expect, at_least, raises, test


# Chat


@for_each_flavour("chat")
async def _(client, api):
    call = client.chat.completions.with_raw_response.create(model="gpt-4o", messages=user_message("Hello there"))
    raw = await resolve(call)
    answer = raw.parse()
    text, usage = answer.choices[0].message.content, answer.usage
    assert text == answer_to("Hello there"), text
    assert answer._request_id, "expected a request id"
    expect(
        request_id=raw.headers["x-aoai-lb-request-id"],
        user_agent=contains("OpenAI/Python"),
        method="POST",
        path=f"/openai{'/v1' if api == 'v1' else '/deployments/gpt-4o'}/chat/completions",
        operation="chat",
        api=api,
        api_version=VERSION if api == "classic" else None,
        deployment="gpt-4o",
        stream=False,
        status=200,
        outcome="answered",
        refusal=None,
        backend=raw.headers["x-aoai-lb-backend"],
        region=raw.headers["x-ms-region"],
        apim_request_id=raw.headers["apim-request-id"],
        model=answer.model,
        statuses=[429] * (int(raw.headers["x-aoai-lb-attempts"]) - 1) + [200],
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        cached_tokens=usage.prompt_tokens_details.cached_tokens,
        reasoning_tokens=0,
        total_tokens=usage.total_tokens,
        usage_source="reported",
        finish_reason="stop",
        prompt=contains("Hello there"),
        completion=text,
        content_cut=False,
        client_ip="127.0.0.1",
        peer_ip="127.0.0.1",
        request_bytes=at_least(50),
        response_bytes=at_least(200),
    )


@for_each_flavour("stream without requested usage")
async def _(client, api):
    stream = client.chat.completions.create(model="gpt-4o", messages=user_message("Stream it"), stream=True)
    chunks = await collect_items(await resolve(stream))
    text = check_stream(chunks, "Stream it")
    # The balancer requests usage, which the client must not see.
    assert all(chunk.usage is None for chunk in chunks), "expected no usage that the client did not request"
    assert chunks[-1].choices, "expected no chunk without choices at the end"
    expect(
        operation="chat",
        api=api,
        stream=True,
        outcome="answered",
        completion=text,
        finish_reason="stop",
        input_tokens=at_least(1),
        output_tokens=at_least(10),
        total_tokens=at_least(11),
        usage_source="reported",
        first_byte_ms=at_least(0),
    )


@for_each_flavour("stream with requested usage")
async def _(client, api):
    requested = {"include_usage": True}
    question = user_message("Count it")
    stream = client.chat.completions.create(model="gpt-4o", messages=question, stream=True, stream_options=requested)
    chunks = await collect_items(await resolve(stream))
    text, usage = check_stream(chunks, "Count it"), chunks[-1].usage
    assert not chunks[-1].choices and usage.total_tokens > 0, chunks[-1]
    expect(
        operation="chat",
        stream=True,
        completion=text,
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        usage_source="reported",
    )


@test("twenty streams in a row are recorded as answered")
def _():
    # The SDK closes the connection at [DONE], before the last HTTP chunk. This must not count as a disconnect.
    for number in range(20):
        question = f"Number {number}"
        check_stream(list(create_chat(v1_client(), "gpt-4o-mini", messages=user_message(question), stream=True)), question)
        expect(stream=True, outcome="answered", usage_source="reported", prompt=contains(question))


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"input": {"type": "string"}}},
    },
}


@for_each_flavour("tools")
async def _(client, api):
    messages = user_message("Use the tool, please")
    create = client.chat.completions.create
    answer = await resolve(create(model="gpt-4o-mini", messages=messages, tools=[TOOL]))
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments)["input"]
    expect(operation="chat", finish_reason="tool_calls", completion=contains("weather"))

    messages += [answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    answer = await resolve(create(model="gpt-4o-mini", messages=messages, tools=[TOOL]))
    assert answer.choices[0].message.content == "The tool said: rain"
    expect(operation="chat", finish_reason="stop", completion="The tool said: rain", prompt=contains("rain"))

    messages = user_message("Use the tool, please")
    chunks = await collect_items(await resolve(create(model="gpt-4o-mini", messages=messages, tools=[TOOL], stream=True)))
    parts = [part for chunk in chunks if chunk.choices for part in chunk.choices[0].delta.tool_calls or []]
    arguments = "".join(part.function.arguments or "" for part in parts)
    assert parts[0].function.name == "weather" and json.loads(arguments)["input"]
    expect(operation="chat", stream=True, finish_reason="tool_calls", completion=contains("weather"))


@test("the SDK's stream helper, v1")
def _():
    with v1_client().chat.completions.stream(model="gpt-4o-mini", messages=user_message("Help me")) as stream:
        text = stream.get_final_completion().choices[0].message.content
    assert text == answer_to("Help me")
    expect(operation="chat", stream=True, completion=text)


@test("a prompt with a picture, and one larger than the record limit")
def _():
    picture = "data:image/png;base64," + base64.b64encode(AUDIO).decode()
    parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "What is it?"}]
    answer = create_chat(v1_client(), "gpt-4o-mini", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == answer_to("What is it?")
    expect(operation="chat", prompt=contains("sha256"), content_cut=False, request_bytes=at_least(len(picture)))
    create_chat(v1_client(), "gpt-4o-mini", messages=user_message("word " * 20_000))
    expect(operation="chat", status=200, content_cut=True, prompt=contains("word word"))


@test("twelve requests at once, v1 async")
async def _():
    client = v1_client(AsyncOpenAI)
    questions = [f"Question {number}" for number in range(12)]
    create = client.chat.completions.create
    calls = [create(model="gpt-4o-mini", messages=user_message(question)) for question in questions]
    answers = await asyncio.gather(*calls)
    for question, answer in zip(questions, answers):
        assert answer.choices[0].message.content == answer_to(question)
        expect(operation="chat", prompt=contains(question), completion=answer_to(question))
    await client.close()


@test("a bearer token on the classic path")
def _():
    client = azure_client(api_key=None, azure_ad_token=KEY)
    client.chat.completions.create(model="gpt-4o-mini", messages=user_message("As a bearer"))
    expect(operation="chat", api="classic", status=200)


@test("a client made for one deployment, with an old api-version")
def _():
    client = azure_client(azure_deployment="gpt-4o-mini", api_version="2024-06-01")
    stream = client.chat.completions.create(model="something-else", messages=user_message("Old"), stream=True)
    check_stream(list(stream), "Old")
    # This api-version does not support stream_options, so no usage is requested, and the tokens are counted.
    expect(
        deployment="gpt-4o-mini",
        api_version="2024-06-01",
        usage_source="estimated",
        input_tokens=at_least(1),
        output_tokens=at_least(1),
        total_tokens=at_least(2),
    )


@test("legacy completions, plain and streamed")
def _():
    model = "gpt-35-turbo-instruct"
    answer = azure_client().completions.create(model=model, prompt="Once upon a time")
    assert "Once upon a time" in answer.choices[0].text
    expect(operation="completions", total_tokens=answer.usage.total_tokens, completion=answer.choices[0].text)
    chunks = list(azure_client().completions.create(model=model, prompt="And then", stream=True))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert "And then" in text and not any(chunk.usage for chunk in chunks)
    expect(operation="completions", stream=True, completion=text, total_tokens=at_least(1), prompt=contains("And then"))


# Embeddings


@for_each_flavour("embeddings")
async def _(client, api):
    create = client.embeddings.create
    model = "text-embedding-3-small"
    # Without encoding_format the SDK requests base64 and decodes it.
    packed = await resolve(create(model=model, input=["one text", "another"]))
    plain = await resolve(create(model=model, input=["one text", "another"], encoding_format="float"))
    for one, other in zip(packed.data, plain.data):
        assert len(one.embedding) == len(other.embedding) == 1536
        assert all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(one.embedding, other.embedding))
    for answer in (packed, plain):
        tokens = answer.usage.total_tokens
        expect(
            operation="embeddings",
            api=api,
            deployment=model,
            stream=False,
            status=200,
            input_tokens=answer.usage.prompt_tokens,
            output_tokens=None,
            total_tokens=tokens,
            prompt=contains("another"),
        )


# Responses


@for_each_flavour("responses")
async def _(client, api):
    # Two responses, since two resources take turns; each is found again by its id.
    for question in ("First", "Second"):
        answer = await resolve(client.responses.create(model="gpt-4o-mini", input=question, instructions="Be kind"))
        assert answer.output_text == answer_to(question)
        expect(
            operation="responses",
            api=api,
            deployment="gpt-4o-mini",
            stream=False,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            total_tokens=answer.usage.total_tokens,
            prompt=contains(question),
            completion=answer.output_text,
        )
        again = await resolve(client.responses.retrieve(answer.id))
        assert again.output_text == answer.output_text
        expect(operation="responses", method="GET", status=200, path=contains(f"/responses/{answer.id}"))
        given = await resolve(client.responses.input_items.list(answer.id))
        assert given.data[0].content[0].text == question
        expect(operation="responses", method="GET", status=200, path=contains("/input_items"))
        await resolve(client.responses.delete(answer.id))
        expect(operation="responses", method="DELETE", status=200)
        try:
            await resolve(client.responses.retrieve(answer.id))
            raise AssertionError("a deleted response is still there")
        except openai.NotFoundError:
            expect(operation="responses", method="GET", status=404)


@for_each_flavour("responses streamed")
async def _(client, api):
    events = await collect_items(await resolve(client.responses.create(model="gpt-4o-mini", input="Go on", stream=True)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[0].type == "response.created" and events[-1].type == "response.completed", events[-1].type
    assert text == answer_to("Go on")
    usage = events[-1].response.usage
    expect(
        operation="responses",
        stream=True,
        outcome="answered",
        completion=text,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.input_tokens_details.cached_tokens,
        total_tokens=usage.total_tokens,
    )


# Files, models, batches


@for_each_flavour("files")
async def _(client, api):
    content = b'{"custom_id":"1"}\n' * 5000
    made = await resolve(client.files.create(file=("lines.jsonl", content), purpose="batch"))
    assert made.bytes == len(content) and made.filename == "lines.jsonl"
    expect(operation="files", method="POST", api=api, deployment=None, status=201, backend="westus")
    listed = await resolve(client.files.list())
    assert made.id in [file.id for file in listed.data]
    expect(operation="files", method="GET", status=200)
    found = await resolve(client.files.retrieve(made.id))
    assert found.id == made.id
    expect(operation="files", method="GET", status=200)
    body = await resolve(client.files.content(made.id))
    assert body.read() == content
    expect(operation="files", method="GET", status=200, response_bytes=len(content))
    assert (await resolve(client.files.delete(made.id))).deleted
    expect(operation="files", method="DELETE", status=200)
    try:
        await resolve(client.files.retrieve(made.id))
        raise AssertionError("a deleted file is still there")
    except openai.NotFoundError:
        expect(operation="files", method="GET", status=404)


@for_each_flavour("models")
async def _(client, api):
    models = (await resolve(client.models.list())).data
    if api == "classic":
        # The models of the resource that such calls go to.
        assert any(model.id.startswith("gpt-4o") for model in models)
        expect(operation="models", method="GET", api=api, status=200, deployment=None, backend="westus")
        return
    names = [model.id for model in models]
    assert names == sorted(names) and {"gpt-4o", "dictation", "miskeyed"} <= set(names), names
    assert all((model.object, model.created, model.owned_by) == ("model", 0, "aoai-lb") for model in models)
    expect(operation="models", method="GET", api=api, path="/openai/v1/models", status=200, backend=None, outcome="answered")
    model = await resolve(client.models.retrieve("GPT-4o"))
    assert (model.id, model.owned_by) == ("gpt-4o", "aoai-lb")
    expect(operation="models", method="GET", path="/openai/v1/models/GPT-4o", status=200, statuses=[])


@test("models of a client with a list, v1")
def _():
    for make_client in (v1_client, openai_client):
        client = make_client(api_key=LIMITED_KEY)
        assert [model.id for model in client.models.list()] == ["gpt-4o-mini"]
        expect(client="limited", operation="models", status=200)
        error = raises(openai.NotFoundError, client.models.retrieve, "gpt-4o")
        assert error.code == "DeploymentNotFound" and error.request_id
        expect(client="limited", operation="models", status=404, refusal="DeploymentNotFound")


@test("a batch, v1")
def _():
    client = v1_client()
    body = {"model": "gpt-4o", "messages": user_message("In a batch")}
    line = {"custom_id": "1", "method": "POST", "url": "/chat/completions", "body": body}
    file = client.files.create(file=("batch.jsonl", json.dumps(line).encode()), purpose="batch")
    expect(operation="files", method="POST", status=201)
    batch = client.batches.create(input_file_id=file.id, endpoint="/chat/completions", completion_window="24h")
    expect(operation="batches", method="POST", status=200)
    assert client.batches.retrieve(batch.id).id == batch.id
    expect(operation="batches", method="GET", status=200)


@test("a file uploaded in parts, v1")
def _():
    content = bytes(range(256)) * 4096
    size = len(content)
    upload = v1_client().uploads.upload_file_chunked(
        file=content,
        filename="a.bin",
        bytes=size,
        mime_type="application/octet-stream",
        purpose="batch",
        part_size=size // 2,
    )
    assert upload.status == "completed" and upload.file.bytes == size, upload
    expect(operation="uploads", method="POST", path="/openai/v1/uploads", status=200)
    for _ in range(2):
        expect(operation="uploads", path=contains("/parts"), status=200, request_bytes=at_least(size // 2))
    expect(operation="uploads", path=contains("/complete"), status=200)


# Audio and images


@for_each_flavour("audio upload")
async def _(client, api):
    # `dictation` is `whisper` on its resource: the path is rewritten in the classic API, the form in v1.
    for model in ("whisper", "dictation"):
        answer = await resolve(client.audio.transcriptions.create(model=model, file=("speech.wav", AUDIO)))
        assert answer.text == f"A simulated transcription of speech.wav, {len(AUDIO)} bytes long.", answer.text
        expect(
            operation="audio",
            api=api,
            deployment=model,
            upstream_deployment="whisper",
            status=200,
            request_bytes=at_least(len(AUDIO)),
            usage_source="reported",
            audio_seconds=-(-len(AUDIO) // 32_000),
            completion=answer.text,
        )


@test("audio upload in tokens, and streamed, v1")
def _():
    create = v1_client().audio.transcriptions.create
    answer = create(model="gpt-4o-transcribe", file=("speech.wav", AUDIO))
    usage = answer.usage
    expect(
        operation="audio",
        input_tokens=usage.input_tokens,
        input_audio_tokens=usage.input_token_details.audio_tokens,
        output_tokens=usage.output_tokens,
    )
    events = list(create(model="gpt-4o-transcribe", file=("speech.wav", AUDIO), stream=True))
    assert events[-1].type == "transcript.text.done"
    expect(operation="audio", stream=True, completion=events[-1].text, total_tokens=usage.total_tokens)


@for_each_flavour("translation")
async def _(client, api):
    answer = await resolve(client.audio.translations.create(model="whisper", file=("speech.mp3", AUDIO)))
    assert answer.text.startswith("A simulated translation of speech.mp3")
    expect(operation="audio", path=contains("/audio/translations"), status=200)


@for_each_flavour("speech")
async def _(client, api):
    answer = await resolve(client.audio.speech.create(model="tts", voice="alloy", input="Say this aloud"))
    sound = answer.read()
    assert len(sound) >= 4096
    # Audio is recorded as size and digest.
    said = f'{{"bytes":{len(sound)},"sha256":"{hashlib.sha256(sound).hexdigest()}"}}'
    expect(operation="audio", status=200, response_bytes=len(sound), completion=said, usage_source="none")


@test("speech read as a stream, v1")
def _():
    create = v1_client().audio.speech.with_streaming_response.create
    with create(model="tts", voice="alloy", input="Say this aloud") as answer:
        size = sum(len(piece) for piece in answer.iter_bytes(512))
    assert size >= 4096
    expect(operation="audio", status=200, response_bytes=size)


@for_each_flavour("images")
async def _(client, api):
    # `painter` is `gpt-image-1` on its resource.
    answer = await resolve(client.images.generate(model="painter", prompt="A lighthouse"))
    pixel = base64.b64decode(answer.data[0].b64_json)
    assert pixel.startswith(b"\x89PNG")
    expect(
        operation="images",
        deployment="painter",
        upstream_deployment="gpt-image-1",
        input_tokens=answer.usage.input_tokens,
        output_tokens=answer.usage.output_tokens,
        prompt=contains("lighthouse"),
    )
    edited = await resolve(client.images.edit(model="painter", image=("a.png", pixel), prompt="At night"))
    assert edited.data[0].b64_json
    expect(operation="images", path=contains("/images/edits"), status=200, prompt=contains("At night"))


suite.run_tests()
