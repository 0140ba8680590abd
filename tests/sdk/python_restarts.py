"""Chains that outlive a kill, restarts, a reload and upgrades of the balancer; instances that share nothing; and
clients that may not reach what others have made."""

import os
import threading
import time

from openai import BadRequestError, NotFoundError, OpenAI

from suite import COLLEAGUE_KEY, KEY, URL, ask_runner, expect_turns, raises, run_tests, test

PAIR_URL, OWNED_URL = os.environ["PAIR_URL"], os.environ["OWNED_URL"]
TURNS = 20
STATELESS = {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}}


def connect(url=URL, key=KEY):
    return OpenAI(base_url=f"{url}/openai/v1/", api_key=key, max_retries=0)


def create(text, by=None, model="gpt-4o", **options):
    # A client of its own, as after a restart of the application.
    with by or connect() as client:
        return client.responses.create(model=model, input=text, **options)


def assert_turn(response, number, beginning):
    expected = f"(Turn {number}; you began with: {beginning})"
    assert expected in response.output_text, f"{expected} is not in {response.output_text}"


def run_chain(beginning, actions):
    """A chain of 20 turns with actions of the runner after some of them."""
    latest = create(beginning)
    for turn in range(2, TURNS + 1):
        if turn - 1 in actions:
            ask_runner(actions[turn - 1])
        latest = create("Go on", previous_response_id=latest.id)
        assert_turn(latest, turn, beginning)
        create("Something else")
    return latest


@test("a chain over kill -9, restart, reload and upgrade")
def _():
    run_chain("Survivor", {4: "save and kill", 8: "restart", 12: "reload", 16: "upgrade and wait"})
    expect_turns(new=TURNS, learned=TURNS - 1)


@test("kill -9 at once: what was not yet saved is found by asking")
def _():
    first = latest = create("Killed")
    for number in range(4):
        latest = create(f"Turn {number}", previous_response_id=first.id)
    ask_runner("kill")
    following = create("Go on", previous_response_id=latest.id)
    assert_turn(following, 3, "Killed")
    again = create("Go on", previous_response_id=following.id)
    assert_turn(again, 4, "Killed")
    # Whether the last id was saved depends on the moment; the first may not have been either.
    expect_turns(new=1, learned_or_found=6, asked=2)


@test("chains without the state directory: each is asked for once")
def _():
    beginnings = [f"Forgotten {number}" for number in range(3)]
    chains = [create(beginning) for beginning in beginnings]
    stateless = []
    for number in range(3):
        items = [{"role": "user", "content": f"Thought {number}"}]
        items += [item.to_dict() for item in create(items, model="gpt-5", **STATELESS).output]
        stateless.append(items)
    with connect() as client:
        files = [client.files.create(file=("kept.txt", b"kept"), purpose="assistants") for _ in range(2)]
        containers = [client.containers.create(name="kept") for _ in range(2)]
    ask_runner("forget")
    for turn in range(2, 6):
        for number, beginning in enumerate(beginnings):
            chains[number] = create("Go on", previous_response_id=chains[number].id)
            assert_turn(chains[number], turn, beginning)
    for number, items in enumerate(stateless):
        for _ in range(3):
            question = {"role": "user", "content": "What did you think?"}
            text = create([*items, question], model="gpt-5", **STATELESS).output_text
            assert text.startswith(f"I thought: Thought {number}"), text
    with connect() as client:
        for _ in range(3):
            assert all(client.files.content(file.id).read() == b"kept" for file in files)
            assert all(client.containers.retrieve(container.id).name == "kept" for container in containers)
    expect_turns(new=6, default=4, found=3 + 3 + 4, learned=3 * 3 + 3 * 2 + 4 * 2, asked=2 * (3 + 3 + 4))


@test("files of another home: what is made from them is made there")
def _():
    with connect() as client:
        line = b'{"custom_id": "one", "method": "POST", "url": "/v1/responses", "body": {"model": "gpt-4o", "input": "Hi"}}'
        file = client.files.create(file=("input.jsonl", line), purpose="batch")
        text = client.files.create(file=("lake.txt", b"The lake is deep."), purpose="assistants")
        ask_runner("move home")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")
        assert client.batches.cancel(batch.id).id == batch.id
        store = client.vector_stores.create(file_ids=[text.id])
        assert store.file_counts.total == 1
        container = client.containers.create(name="with a file", file_ids=[text.id])
        assert len(list(client.containers.files.list(container.id))) == 1
        elsewhere = client.files.create(file=("new.txt", b"New"), purpose="assistants")
        assert client.files.content(elsewhere.id).read() == b"New"
        # No resource has both files.
        error = raises(BadRequestError, client.vector_stores.create, file_ids=[text.id, elsewhere.id])
        assert error.code == "mixed_resources" and text.id in error.message and elsewhere.id in error.message, error
    expect_turns(default=3, learned=6, refused=1)


@test("an upgrade in the middle of a stream, and in the middle of its chain")
def _():
    text = " ".join(f"word{number}" for number in range(38))
    with connect() as client:
        first = client.responses.create(model="gpt-4o", input="Begun before")
        received, is_streaming = [], threading.Event()

        def read_stream():
            with client.responses.stream(model="slow", input=text, previous_response_id=first.id) as stream:
                for event in stream:
                    if event.type == "response.output_text.delta":
                        is_streaming.set()
                    received.append(event)

        reader = threading.Thread(target=read_stream)
        reader.start()
        assert is_streaming.wait(20)
        ask_runner("upgrade")
        assert received[-1].type != "response.completed", "the stream has ended too early"
        # The new process knows what the old one has learned, while that still has a stream.
        meanwhile = create("Meanwhile", previous_response_id=first.id)
        assert_turn(meanwhile, 2, "Begun before")
        reader.join(30)
    completed = received[-1]
    assert completed.type == "response.completed", completed
    assert text in completed.response.output_text
    following = create("Go on", previous_response_id=completed.response.id)
    assert_turn(following, 3, "Begun before")
    # For a while both processes accept connections, and the old one is not told what the new one learns.
    expect_turns(new=1, learned_or_found=3, asked=2)


@test("two instances that share nothing, with the turns in alternation")
def _():
    beginnings = [f"Alternating {number}" for number in range(3)]
    latest = [None] * 3
    for turn in range(1, TURNS + 1):
        for number, beginning in enumerate(beginnings):
            text = beginning if turn == 1 else "Go on"
            response = create(text, by=connect(PAIR_URL), previous_response_id=latest[number])
            if turn > 1:
                assert_turn(response, turn, beginning)
            latest[number] = response.id
    # With an odd number of chains, each turn of a chain comes to the other instance than the one before: it
    # knows no id of a turn that it has not seen.
    expect_turns(new=3, found=3 * (TURNS - 1), asked=2 * 3 * (TURNS - 1))


@test("two instances: a stateless chain is asked for at most once by each")
def _():
    conversations = [[], [], []]
    for turn in range(TURNS):
        for number, items in enumerate(conversations):
            items.append({"role": "user", "content": f"Thought {turn} of {number}"})
            items += [item.to_dict() for item in create(items, by=connect(PAIR_URL), model="gpt-5", **STATELESS).output]
    for number, items in enumerate(conversations):
        question = {"role": "user", "content": "What did you think?"}
        text = create([*items, question], by=connect(PAIR_URL), model="gpt-5", **STATELESS).output_text
        thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(TURNS))
        assert f"I thought: {thoughts}" in text, text
    expect_turns(new=3, found=3, learned=3 * (TURNS - 1), asked=2 * 3)


@test("two instances: a connection that is kept stays with its instance")
def _():
    with connect(PAIR_URL) as client:
        latest = client.responses.create(model="gpt-4o", input="Kept")
        for turn in range(2, TURNS + 1):
            latest = client.responses.create(model="gpt-4o", input="Go on", previous_response_id=latest.id)
            assert_turn(latest, turn, "Kept")
    expect_turns(new=1, learned=TURNS - 1)


@test("owners: what another client has made does not exist")
def _():
    owner, colleague = connect(OWNED_URL), connect(OWNED_URL, COLLEAGUE_KEY)
    response = owner.responses.create(model="gpt-4o", input="Mine")
    refused = 0
    for call in [colleague.responses.retrieve, colleague.responses.cancel, colleague.responses.delete, colleague.responses.input_items.list]:
        error = raises(NotFoundError, call, response.id)
        assert f"Response with id '{response.id}' not found." in error.message, error.message
        refused += 1
    error = raises(BadRequestError, colleague.responses.create, model="gpt-4o", input="Theirs", previous_response_id=response.id)
    assert error.code == "previous_response_not_found", error
    reference = [{"type": "item_reference", "id": response.output[0].id}]
    error = raises(NotFoundError, colleague.responses.create, model="gpt-4o", input=reference)
    assert "not found" in error.message, error
    thought = owner.responses.create(model="gpt-5", input="Secret", **STATELESS)
    reasoning = next(item for item in thought.output if item.type == "reasoning")
    items = [{"type": "reasoning", "summary": [], "encrypted_content": reasoning.encrypted_content}]
    items.append({"role": "user", "content": "What did you think?"})
    error = raises(BadRequestError, colleague.responses.create, model="gpt-5", input=items, **STATELESS)
    assert error.code == "invalid_encrypted_content", error
    file = owner.files.create(file=("mine.txt", b"mine"), purpose="assistants")
    raises(NotFoundError, colleague.files.content, file.id)
    raises(NotFoundError, colleague.vector_stores.create, file_ids=[file.id])
    conversation = owner.conversations.create()
    raises(NotFoundError, colleague.conversations.items.list, conversation.id)
    raises(NotFoundError, colleague.responses.create, model="gpt-4o", input="Theirs", conversation=conversation.id)
    refused += 7
    # Its maker reaches all of it.
    assert "I thought: Secret" in owner.responses.create(model="gpt-5", input=items, **STATELESS).output_text
    assert owner.files.content(file.id).read() == b"mine"
    assert_turn(owner.responses.create(model="gpt-4o", input="Go on", previous_response_id=response.id), 2, "Mine")
    expect_turns(new=2, default=2, learned=3, refused=refused)


run_tests()
