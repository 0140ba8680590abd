"""The OpenAI Agents SDK: runs with tools, sessions, previous_response_id, conversations and stateless reasoning."""

import asyncio

from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    SQLiteSession,
    function_tool,
    responses_websocket_session,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from openai.types.shared import Reasoning

from suite import KEY, URL, expect_turns, run_tests, test

TURNS = 20

set_tracing_disabled(True)


def connect():
    return AsyncOpenAI(base_url=f"{URL}/openai/v1/", api_key=KEY, max_retries=0)


def make_agent(client, model="gpt-4o", **options):
    return Agent(name="Assistant", instructions="Answer briefly.", model=OpenAIResponsesModel(model, client), **options)


async def run(agent, text, **options):
    return await Runner.run(agent, text, run_config=RunConfig(tracing_disabled=True), **options)


@test("chains of 20 turns by previous_response_id")
async def _():
    async with connect() as client:
        agent, previous = make_agent(client), [None] * 3
        for turn in range(1, TURNS + 1):
            for number in range(3):
                text = f"Agent {number}" if turn == 1 else "Go on"
                result = await run(agent, text, previous_response_id=previous[number])
                assert turn == 1 or f"(Turn {turn}; you began with: Agent {number})" in result.final_output, result.final_output
                previous[number] = result.last_response_id
            await run(agent, "Something else")
    expect_turns(new=3 + TURNS, learned=3 * (TURNS - 1))


@function_tool
def look_up(word: str) -> str:
    """Looks a word up."""
    return f"found {len(word)} letters"


@test("loops of tools, with the whole input and with previous_response_id")
async def _():
    async with connect() as client:
        agent = make_agent(client, tools=[look_up])
        for number in range(3):
            result = await run(agent, "Please use the tool")
            assert "The tool said: found" in result.final_output, result.final_output
            items = result.to_input_list() + [{"role": "user", "content": "Use the tool again"}]
            again = await run(agent, items)
            assert "The tool said: found" in again.final_output, again.final_output
            result = await run(agent, "Use the tool once more", previous_response_id=again.last_response_id, auto_previous_response_id=True)
            assert "The tool said: found" in result.final_output, result.final_output
            await run(agent, "Something else")
    expect_turns(new=2 * 3, learned=5 * 3)


@test("streamed runs with a tool")
async def _():
    async with connect() as client:
        agent = make_agent(client, tools=[look_up])
        for number in range(3):
            result = Runner.run_streamed(agent, "Please use the tool", run_config=RunConfig(tracing_disabled=True))
            events = [event async for event in result.stream_events()]
            assert "The tool said: found" in result.final_output, events
    expect_turns(new=3, learned=3)


@test("a session that keeps the items, and thoughts that come back encrypted")
async def _():
    settings = ModelSettings(store=False, response_include=["reasoning.encrypted_content"], reasoning=Reasoning(effort="low"))
    async with connect() as client:
        agent = make_agent(client, model="gpt-5", model_settings=settings)
        sessions = [SQLiteSession(f"session {number}") for number in range(3)]
        for turn in range(6):
            for number, session in enumerate(sessions):
                await run(agent, f"Thought {turn} of {number}", session=session)
        for number, session in enumerate(sessions):
            result = await run(agent, "What did you think?", session=session)
            thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(6))
            assert f"I thought: {thoughts}" in result.final_output, result.final_output
            session.close()
    expect_turns(new=3, learned=3 * 6)


@test("a session that is a conversation of the service")
async def _():
    async with connect() as client:
        agent = make_agent(client)
        for number in range(3):
            session = OpenAIConversationsSession(openai_client=client)
            await run(agent, f"Talk {number}", session=session)
            result = await run(agent, "Go on", session=session)
            assert f"(Turn 2; you began with: Talk {number})" in result.final_output, result.final_output
            assert len(await session.get_items()) == 4
            await session.clear_session()
    # The session looks at its items before and after each run, and adds the input and the output.
    expect_turns(default=3, new=3, learned=3 * 9)


@test("runs in a conversation")
async def _():
    async with connect() as client:
        agent = make_agent(client)
        for number in range(3):
            conversation = await client.conversations.create()
            await run(agent, f"Talk {number}", conversation_id=conversation.id)
            result = await run(agent, "Go on", conversation_id=conversation.id)
            assert f"(Turn 2; you began with: Talk {number})" in result.final_output, result.final_output
    expect_turns(default=3, learned=2 * 3)


@test("runs over a WebSocket: loops of tools, and chains")
async def _():
    async with responses_websocket_session(api_key=KEY, base_url=f"{URL}/openai/v1/") as session:
        agent = Agent(name="Assistant", instructions="Answer briefly.", model="gpt-4o", tools=[look_up])
        for number in range(3):
            result = await session.run(agent, "Please use the tool")
            assert "The tool said: found" in result.final_output, result.final_output
            items = result.to_input_list() + [{"role": "user", "content": "Use the tool again"}]
            again = await session.run(agent, items)
            assert "The tool said: found" in again.final_output, again.final_output
            more = {"previous_response_id": again.last_response_id, "auto_previous_response_id": True}
            streamed = session.run_streamed(agent, "Use the tool once more", **more)
            kinds = {event.type async for event in streamed.stream_events()}
            assert "raw_response_event" in kinds and "The tool said: found" in streamed.final_output, streamed.final_output
    expect_turns(new=3, learned=3 * 5, socket=1, over_sockets=3 * 6)


run_tests()
