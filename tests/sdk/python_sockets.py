"""Responses WebSockets of the Python SDK in front of three resources: chains, models, throttling, and the same
conversations over HTTP."""

import time
from contextlib import AsyncExitStack, ExitStack

from openai import AsyncOpenAI, OpenAI
from websockets.exceptions import ConnectionClosed

from suite import KEY, URL, ask_runner, expect_turns, raises, run_tests, test

CHAIN = 10


def connect(kind=OpenAI):
    return kind(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0)


class Conversation:
    """A WebSocket of the sync client."""

    def __init__(self, connection):
        self.connection = connection

    def events(self, text, model="gpt-4o", **options):
        """All events of a turn."""
        self.connection.response.create(model=model, input=text, **options)
        events = []
        for event in self.connection:
            events.append(event)
            if event.type in ("response.completed", "error"):
                return events

    def ask(self, text, **options):
        """The response of a turn."""
        events = self.events(text, **options)
        assert events[-1].type == "response.completed", events[-1]
        return events[-1].response


async def ask_async(connection, text, model="gpt-4o", **options):
    await connection.response.create(model=model, input=text, **options)
    async for event in connection:
        if event.type in ("response.completed", "error"):
            assert event.type == "response.completed", event
            return event.response


def assert_turn(response, number, beginning):
    expected = f"(Turn {number}; you began with: {beginning})"
    assert expected in response.output_text, f"{expected} is not in {response.output_text}"


@test("three chains of 10 turns on one socket, with turns of others between")
def _():
    with connect() as client, client.responses.connect() as connection:
        socket = Conversation(connection)
        latest = [socket.ask(f"Conversation {number}") for number in range(3)]
        for turn in range(2, CHAIN + 1):
            for number in range(3):
                latest[number] = socket.ask("Go on", previous_response_id=latest[number].id)
                assert_turn(latest[number], turn, f"Conversation {number}")
            socket.ask("Something else")
    turns = 3 * CHAIN + CHAIN - 1
    expect_turns(new=3 + CHAIN - 1, learned=3 * (CHAIN - 1), socket=1, over_sockets=turns)


@test("three chains of 10 turns that are not stored, each on its socket")
async def _():
    async with connect(AsyncOpenAI) as client, AsyncExitStack() as open_sockets:
        # A socket keeps its latest response only.
        connections = [await open_sockets.enter_async_context(client.responses.connect()) for _ in range(3)]
        latest = [await ask_async(connection, f"Unstored {number}", store=False) for number, connection in enumerate(connections)]
        for turn in range(2, CHAIN + 1):
            for number, connection in enumerate(connections):
                previous = latest[number].id
                latest[number] = await ask_async(connection, "Go on", previous_response_id=previous, store=False)
                assert_turn(latest[number], turn, f"Unstored {number}")
    expect_turns(new=3, learned=3 * (CHAIN - 1), socket=3, over_sockets=3 * CHAIN)


@test("a chain that goes on over other sockets and over HTTP")
def _():
    with connect() as client:
        latest = client.responses.create(model="gpt-4o", input="Moving")
        for turn in range(2, 8):
            if turn % 3 == 0:
                latest = client.responses.create(model="gpt-4o", input="Go on", previous_response_id=latest.id)
            else:
                with client.responses.connect() as connection:
                    latest = Conversation(connection).ask("Go on", previous_response_id=latest.id)
            assert_turn(latest, turn, "Moving")
    expect_turns(new=1, learned=6, socket=4, over_sockets=4)


@test("two models in turn on one socket")
def _():
    with connect() as client, client.responses.connect() as connection:
        socket = Conversation(connection)
        latest = {}
        for turn in range(1, 5):
            for model in ["gpt-4o", "gpt-5"]:
                options = {"previous_response_id": latest[model].id} if turn > 1 else {}
                latest[model] = socket.ask("Go on" if turn > 1 else f"Hello {model}", model=model, **options)
                assert latest[model].model.startswith(model), latest[model].model
                if turn > 1:
                    assert_turn(latest[model], turn, f"Hello {model}")
    expect_turns(new=2, learned=6, socket=1, over_sockets=8)


@test("the same conversation over HTTP and over a socket")
def _():
    def run_script(events_of):
        told, previous = [], None
        for text in ["My name is Ada", "What did I say?", "word " * 200, "Go on"]:
            events = events_of(text, previous_response_id=previous)
            response = events[-1].response
            previous = response.id
            said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
            usage = response.usage
            told.append((said, response.output_text, usage.input_tokens, usage.output_tokens, [event.type for event in events]))
        return told

    with connect() as client, client.responses.connect() as connection:
        over_http = lambda text, **options: list(client.responses.create(model="gpt-4o", input=text, stream=True, **options))
        by_http, by_socket = run_script(over_http), run_script(Conversation(connection).events)
    assert by_http == by_socket, f"{by_http}\n{by_socket}"
    expect_turns(new=2, learned=6, socket=1, over_sockets=4)


@test("a resource that is throttled at the first event of a turn gets no further ones")
def _():
    with connect() as client, client.responses.connect() as connection:
        socket, start = Conversation(connection), time.time()
        # Each resource has a socket.
        for _ in range(3):
            socket.ask("Before", model="limited")
        ask_runner("exhaust", resource="west")
        for _ in range(6):
            assert socket.ask("After", model="limited").output_text.startswith("You said: After")
    statuses = ask_runner("count statuses", start=start, end=time.time(), turns=9)
    assert statuses == {"east 200": 4, "north 200": 4, "west 200": 1, "west 429": 1}, statuses
    expect_turns(new=9, socket=1, over_sockets=9)


@test("a turn that nobody can take gets the time to wait, and the socket stays open")
def _():
    with connect() as client, client.responses.connect() as connection:
        socket = Conversation(connection)
        for resource in ["east", "north"]:
            ask_runner("exhaust", resource=resource)
        # The balancer has not heard of these.
        error = socket.events("Nobody", model="limited")[-1]
        assert (error.type, error.status) == ("error", 429), error
        assert 0 < error.to_dict()["retry_after_ms"] <= 60_000, error
        assert socket.ask("Another model").output_text.startswith("You said: Another model")
    expect_turns(refused=1, new=1, socket=1, over_sockets=2)


@test("a turn that needs two resources, because what it continues is not stored")
def _():
    options = {"model": "gpt-5", "store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}}
    question = {"role": "user", "content": "What did you think?"}
    closed = 0
    with connect() as client, ExitStack() as open_sockets:
        thought = client.responses.create(input="Thought of before", **options)
        items = [{"role": "user", "content": "Thought of before"}, *(item.to_dict() for item in thought.output), question]
        # One of these is begun on the resource of that thought.
        connections = [open_sockets.enter_context(client.responses.connect()) for _ in range(3)]
        begun = [Conversation(connection).ask("Begun", **options) for connection in connections]
        for connection, response in zip(connections, begun):
            last = Conversation(connection).events(items, previous_response_id=response.id, **options)[-1]
            if last.type == "error":
                assert (last.status, last.error.code) == (400, "websocket_connection_limit_reached"), last
                error = raises(ConnectionClosed, connection.recv)
                assert error.rcvd.code == 1001, error
                with client.responses.connect() as another:
                    last = Conversation(another).events(items, **options)[-1]
                closed += 1
            assert "I thought: Thought of before" in last.response.output_text, last
    assert closed == 2, closed
    expect_turns(new=4, learned=3, refused=2, socket=5, over_sockets=8)


run_tests()
