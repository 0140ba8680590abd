"""One slow stream; the runner stops the balancer in the middle of it."""

from openai import AzureOpenAI

import suite
from suite import URL, contains, expect, own_deployment, test

LONG_PROMPT = " ".join(f"word{number}" for number in range(40))


@test("a stream that runs at SIGTERM is completed")
def _():
    client = AzureOpenAI(azure_endpoint=URL, api_key=suite.KEY, api_version="2024-10-21", max_retries=0)
    messages = [{"role": "user", "content": LONG_PROMPT}]
    text = ""
    for chunk in client.chat.completions.create(model=own_deployment("slow"), messages=messages, stream=True):
        delta = chunk.choices[0].delta.content if chunk.choices else None
        if delta and not text:
            suite.report(reached="a stream")
        text += delta or ""
    assert LONG_PROMPT in text and text.endswith("to it."), text
    expect(operation="chat", stream=True, status=200, outcome="answered", completion=contains(text))


suite.run_tests()
