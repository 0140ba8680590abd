"""The Responses API with the Python SDK: chains, forks, tools, reasoning, background, and ids that nobody has."""

import asyncio
import time

from openai import AsyncOpenAI, AzureOpenAI, BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel

from suite import KEY, URL, ask_runner, expect_turns, raises, run_tests, test

TURNS = 20
TOOL = {
    "type": "function",
    "name": "add_numbers",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"left": {"type": "integer"}, "right": {"type": "integer"}},
        "required": ["left", "right"],
        "additionalProperties": False,
    },
}
# Of every length and alphabet; none of them was ever given out.
STRANGE_IDS = [
    "x",
    "7",
    "resp_",
    "resp_" + "0" * 48,
    "resp_" + "Z" * 250,
    "resp_" + "a1-_" * 250,
    "resp_~.!*'()",
    "resp_with space",
    "resp_\"quoted\"",
    "resp_a+b=c&d;e?f#g",
]
# Those that a path cannot have.
STRANGE_PATH_IDS = ["resp_%2Fescaped", "resp_a/../b", "resp_back\\slash", "resp_ümlaut", "resp_日本語", "resp_😀"]

client = OpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0)
openai_client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
classic_client = AzureOpenAI(azure_endpoint=URL, api_key=KEY, api_version="2025-04-01-preview", max_retries=0)


def create(text, model="gpt-4o", by=client, **options):
    return by.responses.create(model=model, input=text, **options)


def assert_turn(response, number, beginning):
    expected = f"(Turn {number}; you began with: {beginning})"
    assert number == 1 or expected in response.output_text, f"{expected} is not in {response.output_text}"


@test("three chains of 20 turns, with requests of others between")
def _():
    start = time.time()
    latest = [create(f"Conversation {number}") for number in range(3)]
    for turn in range(2, TURNS + 1):
        for number, previous in enumerate(latest):
            # The same chain by all the forms of URL.
            by = [client, classic_client, openai_client][turn % 3]
            latest[number] = create(f"And {turn}?", by=by, previous_response_id=previous.id)
            assert_turn(latest[number], turn, f"Conversation {number}")
        create("Something else")
    said = create("What did I say?", previous_response_id=latest[1].id)
    assert said.output_text.startswith("You said: Conversation 1 | And 2? | And 3?"), said.output_text
    expect_turns(new=3 + TURNS - 1, learned=3 * (TURNS - 1) + 1)
    counts = ask_runner("count requests", start=start, end=time.time()).values()
    assert max(counts) - min(counts) <= 2, counts


@test("a long chain keeps the shares even over all requests")
def _():
    start = time.time()
    latest = create("A long one")
    for turn in range(2, TURNS + 1):
        latest = create("Go on", previous_response_id=latest.id)
        assert_turn(latest, turn, "A long one")
    for number in range(2 * TURNS):
        create(f"Other {number}")
    expect_turns(new=1 + 2 * TURNS, learned=TURNS - 1)
    counts = ask_runner("count requests", start=start, end=time.time()).values()
    assert max(counts) - min(counts) <= 3, counts


@test("streamed chains, many at once, async")
def _():
    async def run_chain(async_client, number):
        previous = None
        for turn in range(1, 8):
            async with async_client.responses.stream(model="gpt-4o", input=f"Chain {number}", previous_response_id=previous) as stream:
                text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
                response = await stream.get_final_response()
            assert text == response.output_text
            assert_turn(response, turn, f"Chain {number}")
            previous = response.id

    async def run_all():
        async with AsyncOpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0) as async_client:
            await asyncio.gather(*(run_chain(async_client, number) for number in range(6)))

    asyncio.run(run_all())
    expect_turns(new=6, learned=6 * 6)


@test("forks of a conversation")
def _():
    root = create("The root")
    trunk = create("The trunk", previous_response_id=root.id)
    for number in range(6):
        branch = create(f"Branch {number}", previous_response_id=trunk.id)
        assert_turn(branch, 3, "The root")
        twig = create("What did I say?", previous_response_id=branch.id)
        assert twig.output_text.startswith(f"You said: The root | The trunk | Branch {number} ("), twig.output_text
    expect_turns(new=1, learned=1 + 6 * 2)


@test("a loop of tools by previous_response_id, and by the whole input")
def _():
    answer = create("Please use the tool", tools=[TOOL])
    items = [{"role": "user", "content": "Please use the tool"}]
    replayed = answer
    for number in range(5):
        call = answer.output[-1]
        assert call.type == "function_call" and call.name == "add_numbers", call
        output = {"type": "function_call_output", "call_id": call.call_id, "output": f"sum {number}"}
        told = create([output], previous_response_id=answer.id, tools=[TOOL])
        assert f"The tool said: sum {number}" in told.output_text, told.output_text
        answer = create("Use the tool again", previous_response_id=told.id, tools=[TOOL])
        create("Something else")
    for number in range(5):
        call = next(item for item in replayed.output if item.type == "function_call")
        items += [item.to_dict() for item in replayed.output]
        items.append({"type": "function_call_output", "call_id": call.call_id, "output": f"product {number}"})
        told = create(items, tools=[TOOL])
        assert f"The tool said: product {number}" in told.output_text, told.output_text
        items += [item.to_dict() for item in told.output] + [{"role": "user", "content": "Use the tool again"}]
        replayed = create(items, tools=[TOOL])
    expect_turns(new=1 + 5, learned=5 * 4)


def run_stateless_chains(model, stream):
    """Each turn brings the whole conversation, and the model's earlier thoughts encrypted."""
    options = {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}}
    conversations = [[], [], []]
    for turn in range(8):
        for number, items in enumerate(conversations):
            items.append({"role": "user", "content": f"Thought {turn} of {number}"})
            if stream:
                with client.responses.stream(model=model, input=items, **options) as events:
                    response = events.get_final_response()
            else:
                response = create(items, model=model, **options)
            items += [item.to_dict() for item in response.output]
            assert any(item.get("encrypted_content") for item in items[-2:]), items[-2:]
        create("Something else")
    for number, items in enumerate(conversations):
        items.append({"role": "user", "content": "What did you think?"})
        thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(8))
        text = create(items, model=model, **options).output_text
        assert f"I thought: {thoughts}" in text, text
    expect_turns(new=3 + 8, learned=3 * 8)


@test("encrypted reasoning without anything stored")
def _():
    run_stateless_chains("gpt-5", stream=False)


@test("encrypted reasoning that comes in the last event of a stream only")
def _():
    run_stateless_chains("late", stream=True)


@test("encrypted reasoning alone, without an id")
def _():
    options = {"model": "gpt-5", "store": False, "include": ["reasoning.encrypted_content"]}
    for number in range(4):
        first = create(f"Thought {number}", **options)
        reasoning = next(item for item in first.output if item.type == "reasoning")
        bare = {"type": "reasoning", "summary": [], "encrypted_content": reasoning.encrypted_content}
        text = create([bare, {"role": "user", "content": "What did you think?"}], **options).output_text
        assert text.startswith(f"I thought: Thought {number}"), text
    expect_turns(new=4, learned=4)


@test("references to items")
def _():
    for number in range(4):
        first = create(f"Item {number}")
        items = [{"type": "item_reference", "id": first.output[-1].id}, {"role": "user", "content": "Go on"}]
        create(items)
        # As the service gives it out: a list of parts.
        listed = client.responses.input_items.list(first.id)
        assert listed.data[0].content[0].text == f"Item {number}"
    expect_turns(new=4, learned=4 * 2)


class Answer(BaseModel):
    answer: str


@test("structured output within a chain")
def _():
    first = create("Remember this")
    parsed = client.responses.parse(model="gpt-4o", input="And now?", previous_response_id=first.id, text_format=Answer)
    assert parsed.output_parsed.answer, parsed.output_text
    expect_turns(new=1, learned=1)


def poll(response):
    """The response when it is done, and how often it was asked for."""
    deadline, polls = time.monotonic() + 20, 0
    while response.status in ("queued", "in_progress"):
        assert time.monotonic() < deadline, response
        response, polls = client.responses.retrieve(response.id), polls + 1
        time.sleep(0.05)
    return response, polls


@test("background: polled, continued, cancelled")
def _():
    learned = 0
    for number in range(4):
        created = create(f"Background {number}", background=True)
        done, polls = poll(created)
        assert done.status == "completed" and f"Background {number}" in done.output_text, done
        following = create("Go on", background=True, previous_response_id=done.id)
        cancelled = client.responses.cancel(following.id)
        assert cancelled.status == "cancelled", cancelled
        assert client.responses.retrieve(following.id).status == "cancelled"
        client.responses.delete(done.id)
        error = raises(NotFoundError, client.responses.retrieve, done.id)
        assert error.status_code == 404, error
        learned += polls + 4
    expect_turns(new=4, learned=learned, refused=4, asked=4)


@test("background: a stream that breaks off is resumed")
def _():
    for number in range(4):
        stream = create(f"Resumed {number}", background=True, stream=True)
        seen = []
        for event in stream:
            seen.append(event)
            if event.type == "response.in_progress":
                break
        stream.close()
        response_id, last_seen = seen[0].response.id, seen[-1].sequence_number
        resumed = list(client.responses.retrieve(response_id, stream=True, starting_after=last_seen))
        assert resumed[0].sequence_number == last_seen + 1, resumed[0]
        assert resumed[-1].type == "response.completed" and f"Resumed {number}" in resumed[-1].response.output_text
    expect_turns(new=4, learned=4)


@test("a response that cannot be read yet")
def _():
    with client.responses.stream(model="lagging", input="Lagging") as stream:
        first = stream.get_final_response()
    assert client.responses.retrieve(first.id).id == first.id
    with client.responses.stream(model="lagging", input="Go on", previous_response_id=first.id) as stream:
        second = stream.get_final_response()
    third = create("And on", model="lagging", previous_response_id=second.id)
    assert_turn(third, 3, "Lagging")
    expect_turns(new=1, waited=2, learned=1)


@test("input items with ids of the client's own")
def _():
    for number, item_id in enumerate(STRANGE_IDS + STRANGE_PATH_IDS):
        message = {"type": "message", "id": item_id, "role": "user", "content": f"Own {number}"}
        assert f"Own {number}" in create([message]).output_text
        assert f"Own {number}" in create([message]).output_text
    count = len(STRANGE_IDS + STRANGE_PATH_IDS)
    # They bring their own content, which any resource can read.
    expect_turns(new=2 * count)


def ask_for_all(call, ids):
    """The errors of one call for each of these ids, all at once: an id of unknown age is asked for twice."""

    async def run_all():
        async with AsyncOpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0) as async_client:
            calls = (call(async_client, each) for each in ids)
            return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run_all())


@test("two conversations whose messages have the same ids of the client's own")
def _():
    message = lambda text: {"type": "message", "id": "msg_1", "role": "user", "content": text}
    options = {"model": "gpt-5", "store": False, "include": ["reasoning.encrypted_content"]}
    for number in range(3):
        create([message("One")], **options)
        first = create(f"Thought {number}", **options)
        items = [*(item.to_dict() for item in first.output), message("What did you think?")]
        assert f"I thought: Thought {number}" in create(items, **options).output_text
    expect_turns(new=2 * 3, learned=3)


@test("ids that nobody has, of every length and alphabet, in paths")
def _():
    errors = ask_for_all(lambda by, each: by.responses.retrieve(each), STRANGE_IDS)
    assert all(isinstance(error, NotFoundError) and "not found" in error.message for error in errors), errors
    # A path that proxies could understand in several ways is refused.
    refused = ask_for_all(lambda by, each: by.responses.retrieve(each), STRANGE_PATH_IDS)
    assert all(isinstance(error, BadRequestError) and "the path has" in error.message for error in refused), refused
    expect_turns(refused=len(STRANGE_IDS + STRANGE_PATH_IDS), asked=2 * 3 * len(STRANGE_IDS))


@test("ids that nobody has, of every length and alphabet, in bodies")
def _():
    ids = [f"in-body-{each}" for each in STRANGE_IDS + STRANGE_PATH_IDS]
    errors = ask_for_all(lambda by, each: by.responses.create(model="gpt-4o", input="Hello", previous_response_id=each), ids)
    assert all(getattr(error, "code", None) == "previous_response_not_found" for error in errors), errors
    expect_turns(refused=len(ids), asked=2 * 3 * len(ids))


run_tests()
