"""Many Responses WebSockets when the balancer is replaced, stopped or killed."""

import asyncio
import json
import time

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from suite import KEY, URL, ask_runner, run_tests, test

SOCKETS = 500
TIMEOUT = 40
OPENED_AT_A_TIME = 50


class Socket:
    def __init__(self, number):
        self.number, self.turns, self.done = number, 0, []
        self.is_answering = asyncio.Event()

    async def open(self, limit):
        async with limit:
            url = URL.replace("http://", "ws://") + "/openai/v1/responses"
            self.connection = await connect(url, additional_headers={"api-key": KEY}, compression=None, proxy=None, open_timeout=TIMEOUT)

    async def run_turn(self, **options):
        """A turn; returns the id of its response."""
        self.turns += 1
        name = f"turn-{self.number}-{self.turns}"
        await self.connection.send(json.dumps({"type": "response.create", "model": "gpt-4o", "input": name} | options))
        text = ""
        while True:
            event = json.loads(await self.connection.recv())
            match event["type"]:
                case "response.output_text.delta":
                    text += event["delta"]
                    self.is_answering.set()
                case "response.completed":
                    assert text == event["response"]["output"][0]["content"][0]["text"] and name in text, text
                    self.done.append(name)
                    return event["response"]["id"]
                case "error" | "response.failed":
                    raise AssertionError(f"{name}: {event}")

    async def expect_end(self):
        """The balancer ends the socket as Azure does."""
        event = json.loads(await self.connection.recv())
        assert (event["type"], event["status"]) == ("error", 400), event
        assert event["error"]["code"] == "websocket_connection_limit_reached", event
        try:
            await self.connection.recv()
            raise AssertionError("the socket goes on")
        except ConnectionClosed as closed:
            assert closed.rcvd and (closed.rcvd.code, closed.rcvd.reason) == (1001, "websocket_connection_limit_reached"), closed


async def open_sockets(count):
    limit = asyncio.Semaphore(OPENED_AT_A_TIME)
    sockets = [Socket(number) for number in range(count)]
    await for_each(sockets, lambda socket: socket.open(limit))
    return sockets


async def for_each(sockets, action):
    async with asyncio.timeout(TIMEOUT):
        return await asyncio.gather(*map(action, sockets))


async def check_records(start, sockets, opened, others=False):
    turns = [name for socket in sockets for name in socket.done]
    arguments = {"start": start, "end": time.time(), "turns": turns, "sockets": opened, "others": others}
    problem = (await asyncio.to_thread(ask_runner, "find problem in records", **arguments))["problem"]
    assert problem is None, problem


@test("500 sockets in the middle of a turn, over an upgrade")
async def _():
    start = time.time()
    sockets = await open_sockets(SOCKETS)
    limit = asyncio.Semaphore(OPENED_AT_A_TIME)

    async def run_over_upgrade(socket):
        first = await socket.run_turn()
        await socket.expect_end()
        await socket.open(limit)
        second = await socket.run_turn(previous_response_id=first)
        await socket.connection.close()
        return second

    running = asyncio.create_task(for_each(sockets, run_over_upgrade))
    all_answering = asyncio.create_task(for_each(sockets, lambda socket: socket.is_answering.wait()))
    await asyncio.wait([running, all_answering], return_when=asyncio.FIRST_COMPLETED)
    done = sum(len(socket.done) for socket in sockets)
    await asyncio.to_thread(ask_runner, "upgrade")
    await running
    assert done == 0, f"{done} turns were over before the upgrade"
    await asyncio.to_thread(ask_runner, "await exit of the old process")
    await check_records(start, sockets, opened=2 * SOCKETS)


@test("sockets at SIGTERM, between two turns and in the middle of one")
async def _():
    start = time.time()
    sockets = await open_sockets(60)
    idle, busy = sockets[:40], sockets[40:]
    await for_each(idle, lambda socket: socket.run_turn())

    async def run_to_end(socket):
        await socket.run_turn()
        await socket.expect_end()

    running = asyncio.create_task(for_each(busy, run_to_end))
    await for_each(busy, lambda socket: socket.is_answering.wait())
    restarted = asyncio.create_task(asyncio.to_thread(ask_runner, "restart"))
    await for_each(idle, lambda socket: socket.expect_end())
    await running
    await restarted
    await check_records(start, sockets, opened=60)


@test("kill -9 after 50 turns, in the middle of 50 others")
async def _():
    start = time.time()
    sockets = await open_sockets(100)
    completing, others = sockets[:50], sockets[50:]
    turns = asyncio.create_task(for_each(completing, lambda socket: socket.run_turn()))
    await for_each(completing, lambda socket: socket.is_answering.wait())
    async with asyncio.TaskGroup() as group:

        async def run_until_killed(socket):
            try:
                await socket.run_turn()
            except ConnectionClosed:
                pass

        for socket in others:
            group.create_task(run_until_killed(socket))
        await turns
        await asyncio.to_thread(ask_runner, "kill")
    assert not any(socket.done for socket in others), "turns were over before the kill"
    await check_records(start, completing, opened=None, others=True)


run_tests()
