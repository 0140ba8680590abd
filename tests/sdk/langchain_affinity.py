"""LangChain's ChatOpenAI and AzureChatOpenAI over the Responses API, with and without use_previous_response_id."""

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI

from suite import KEY, URL, expect_turns, run_tests, test

TURNS = 20


def v1_model(**options):
    return ChatOpenAI(**{"model": "gpt-4o", "base_url": f"{URL}/openai/v1/", "api_key": KEY, "max_retries": 0, "use_responses_api": True} | options)


def azure_model(**options):
    arguments = {"azure_deployment": "gpt-4o", "azure_endpoint": URL, "api_key": KEY, "api_version": "2025-04-01-preview"}
    return AzureChatOpenAI(**arguments | {"max_retries": 0, "use_responses_api": True} | options)


def text_of(message):
    return message.text if isinstance(message.text, str) else message.text()


def run_chains(model):
    histories = [[], [], []]
    for turn in range(1, TURNS + 1):
        for number, messages in enumerate(histories):
            messages.append(HumanMessage(f"Chain {number}" if turn == 1 else "Go on"))
            answer = model.invoke(messages)
            assert isinstance(answer, AIMessage)
            assert turn == 1 or f"(Turn {turn}; you began with: Chain {number})" in text_of(answer), text_of(answer)
            messages.append(answer)
        model.invoke("Something else")
    expect_turns(new=3 + TURNS, learned=3 * (TURNS - 1))


@test("chains of 20 turns with use_previous_response_id")
def _():
    run_chains(v1_model(use_previous_response_id=True))


@test("chains of 20 turns with use_previous_response_id, Azure")
def _():
    run_chains(azure_model(use_previous_response_id=True))


@test("chains of 20 turns with the whole history")
def _():
    run_chains(v1_model(output_version="responses/v1"))


@test("streamed turns with use_previous_response_id")
def _():
    model = v1_model(use_previous_response_id=True)
    for number in range(3):
        messages = []
        for turn in range(1, 6):
            messages.append(HumanMessage(f"Stream {number}" if turn == 1 else "Go on"))
            answer = None
            for chunk in model.stream(messages):
                answer = chunk if answer is None else answer + chunk
            assert turn == 1 or f"(Turn {turn}; you began with: Stream {number})" in text_of(answer), text_of(answer)
            messages.append(answer)
    expect_turns(new=3, learned=3 * 4)


@tool
def look_up(word: str) -> str:
    """Looks a word up."""
    return f"found {len(word)} letters"


@test("loops of tools")
def _():
    for options in [{"use_previous_response_id": True}, {"output_version": "responses/v1"}]:
        model = v1_model(**options).bind_tools([look_up])
        messages = [HumanMessage("Please use the tool")]
        for _ in range(5):
            answer = model.invoke(messages)
            assert len(answer.tool_calls) == 1, answer
            call = answer.tool_calls[0]
            messages += [answer, ToolMessage(look_up.invoke(call["args"]), tool_call_id=call["id"])]
            told = model.invoke(messages)
            assert "The tool said: found" in text_of(told), told
            messages += [told, HumanMessage("Use the tool again")]
            v1_model().invoke("Something else")
    expect_turns(new=2 * (1 + 5), learned=2 * 9)


@test("thoughts that come back encrypted")
def _():
    model = v1_model(
        model="gpt-5", store=False, include=["reasoning.encrypted_content"], reasoning={"effort": "low"}, output_version="responses/v1"
    )
    histories = [[], [], []]
    for turn in range(6):
        for number, messages in enumerate(histories):
            messages.append(HumanMessage(f"Thought {turn} of {number}"))
            messages.append(model.invoke(messages))
    for number, messages in enumerate(histories):
        text = text_of(model.invoke([*messages, HumanMessage("What did you think?")]))
        thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(6))
        assert f"I thought: {thoughts}" in text, text
    expect_turns(new=3, learned=3 * 6)


run_tests()
