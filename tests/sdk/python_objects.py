"""Conversations, files, batches, vector stores and containers with the Python SDK."""

import io
import json
import time

from openai import AzureOpenAI, NotFoundError, OpenAI

from suite import KEY, URL, expect_turns, raises, run_tests, test

client = OpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0)
classic_client = AzureOpenAI(azure_endpoint=URL, api_key=KEY, api_version="2025-04-01-preview", max_retries=0)
CONTENT = b"".join(f"Line {number}: the lake of Constance is {number} deep.\n".encode() for number in range(200))


def create(text, **options):
    return client.responses.create(**{"model": "gpt-4o", "input": text} | options)


@test("conversations, with requests of others between")
def _():
    conversations = [client.conversations.create(metadata={"number": str(number)}) for number in range(3)]
    for turn in range(1, 7):
        for number, conversation in enumerate(conversations):
            name = {"id": conversation.id} if turn % 2 else conversation.id
            response = create(f"Talk {number}" if turn == 1 else f"And {turn}?", conversation=name)
            assert turn == 1 or f"(Turn {turn}; you began with: Talk {number})" in response.output_text, response.output_text
        create("Something else")
    for number, conversation in enumerate(conversations):
        added = client.conversations.items.create(conversation.id, items=[{"type": "message", "role": "user", "content": "By hand"}])
        item = client.conversations.items.retrieve(added.data[0].id, conversation_id=conversation.id)
        assert item.content[0].text == "By hand", item
        items = list(client.conversations.items.list(conversation.id, limit=100))
        assert len(items) == 2 * 6 + 1, items
        assert client.conversations.retrieve(conversation.id).metadata == {"number": str(number)}
        said = create("What did I say?", conversation=conversation.id)
        assert said.output_text.startswith(f"You said: Talk {number} | And 2?") and "By hand" in said.output_text, said.output_text
        client.conversations.delete(conversation.id)
        raises(NotFoundError, client.conversations.retrieve, conversation.id)
    # A new conversation names no deployment.
    expect_turns(default=3, new=6, learned=3 * 6 + 3 * 6, refused=3, asked=3)


def wait_for_batch(by, batch):
    deadline, polls = time.monotonic() + 20, 0
    while batch.status not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < deadline, batch
        batch, polls = by.batches.retrieve(batch.id), polls + 1
        time.sleep(0.05)
    return batch, polls


@test("from files to batches to output files")
def _():
    learned = 0
    for by, url in [(client, "/v1/chat/completions"), (client, "/v1/responses"), (classic_client, "/chat/completions")]:
        text = {"input": "Batch"} if "responses" in url else {"messages": [{"role": "user", "content": "Batch"}]}
        lines = [{"custom_id": str(number), "method": "POST", "url": url, "body": {"model": "gpt-4o"} | text} for number in range(5)]
        upload = "\n".join(map(json.dumps, lines)).encode()
        file = by.files.create(file=("input.jsonl", upload), purpose="batch")
        assert by.files.content(file.id).read() == upload
        create("Something else")
        batch = by.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
        batch, polls = wait_for_batch(by, batch)
        assert batch.status == "completed" and batch.request_counts.completed == 5, batch
        output = [json.loads(line) for line in by.files.content(batch.output_file_id).read().splitlines()]
        assert [line["custom_id"] for line in output] == [str(number) for number in range(5)], output
        assert by.files.retrieve(batch.output_file_id).purpose == "batch_output"
        cancelled = by.batches.create(input_file_id=file.id, endpoint=url, completion_window="24h")
        assert by.batches.cancel(cancelled.id).status in ("cancelling", "cancelled")
        by.files.delete(file.id)
        raises(NotFoundError, by.files.retrieve, file.id)
        learned += polls + 7
    expect_turns(default=3, new=3, learned=learned, refused=3, asked=3)


@test("vector stores and their search")
def _():
    for number in range(3):
        file = client.files.create(file=(f"lake-{number}.txt", CONTENT), purpose="assistants")
        other = client.files.create(file=("other.txt", f"The heron {number} nests in reeds.".encode()), purpose="assistants")
        store = client.vector_stores.create(name=f"store {number}", file_ids=[file.id])
        create("Something else")
        added = client.vector_stores.files.create_and_poll(vector_store_id=store.id, file_id=other.id)
        assert added.status == "completed"
        batch = client.vector_stores.file_batches.create(vector_store_id=store.id, file_ids=[file.id, other.id])
        assert client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id).status == "completed"
        hits = list(client.vector_stores.search(store.id, query="heron reeds"))
        assert f"The heron {number} nests" in hits[0].content[0].text, hits
        tool = {"type": "file_search", "vector_store_ids": [store.id]}
        found = create("heron reeds", tools=[tool], include=["file_search_call.results"])
        assert f"I found in other.txt: The heron {number}" in found.output_text, found.output_text
        again = create("depth of Constance", tools=[tool], previous_response_id=found.id)
        assert f"I found in lake-{number}.txt" in again.output_text, again.output_text
        seen = create([{"role": "user", "content": [{"type": "input_file", "file_id": file.id}]}])
        assert f"I read lake-{number}.txt, {len(CONTENT)} bytes." in seen.output_text, seen.output_text
        client.vector_stores.delete(store.id)
    # create_and_poll asks once for what it has created.
    expect_turns(default=3 * 2, new=3, learned=3 * 10)


@test("containers of the code interpreter, and their files")
def _():
    for number in range(3):
        first = create(f"Compute {number}", tools=[{"type": "code_interpreter", "container": {"type": "auto"}}])
        call = next(item for item in first.output if item.type == "code_interpreter_call")
        citation = first.output[-1].content[0].annotations[0]
        assert citation.container_id == call.container_id
        create("Something else")
        content = client.containers.files.content.retrieve(citation.file_id, container_id=call.container_id).read()
        assert content == f"Compute {number}".encode(), content
        added = client.containers.files.create(call.container_id, file=("mine.bin", CONTENT))
        assert client.containers.files.content.retrieve(added.id, container_id=call.container_id).read() == CONTENT
        second = create("Once more", tools=[{"type": "code_interpreter", "container": call.container_id}], previous_response_id=first.id)
        assert call.container_id in second.to_json(), second
        assert len(list(client.containers.files.list(call.container_id))) == 3
        client.containers.delete(call.container_id)
        raises(NotFoundError, client.containers.retrieve, call.container_id)
    file = client.files.create(file=("data.csv", CONTENT), purpose="assistants")
    container = client.containers.create(name="own", file_ids=[file.id])
    listed = list(client.containers.files.list(container.id))
    assert client.containers.files.content.retrieve(listed[0].id, container_id=container.id).read() == CONTENT
    expect_turns(new=3 * 2, default=1, learned=3 * 6 + 3, refused=3, asked=3)


@test("a large file of any bytes, there and back")
def _():
    content = bytes(range(256)) * (8 * 4096)
    file = client.files.create(file=("large.bin", content), purpose="assistants")
    assert client.files.content(file.id).read() == content
    expect_turns(default=1, learned=1)


@test("uploads in parts")
def _():
    for number in range(3):
        size = len(CONTENT)
        upload = client.uploads.create(filename="parts.txt", bytes=2 * size, mime_type="text/plain", purpose="assistants")
        parts = [client.uploads.parts.create(upload.id, data=io.BytesIO(CONTENT)) for _ in range(2)]
        create("Something else")
        completed = client.uploads.complete(upload.id, part_ids=[part.id for part in parts])
        assert client.files.content(completed.file.id).read() == CONTENT * 2
    expect_turns(default=3, new=3, learned=3 * 4)


run_tests()
