"""The Codex CLI: sessions of several turns, each turn a process of its own, that send their reasoning back
encrypted."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from suite import KEY, URL, ask_runner, expect_turns, run_tests, test

CODEX = sys.argv[1]
TIMEOUT = 30
CONFIG = """
model = "gpt-5"
model_provider = "balancer"
approval_policy = "never"
sandbox_mode = "read-only"
check_for_update_on_startup = false

[model_providers.balancer]
name = "Balancer"
base_url = "{url}/openai/v1"
env_key = "BALANCER_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = {retries}
supports_websockets = {websockets}

# They are fetched from GitHub.
[features]
plugins = false

[analytics]
enabled = false

[feedback]
enabled = false

[otel]
exporter = "none"
trace_exporter = "none"
metrics_exporter = "none"
"""


class Codex:
    """Codex with a directory of its own."""

    def __init__(self, directory, websockets=False):
        self.home, self.work = Path(directory, "home"), Path(directory, "work")
        self.home.mkdir()
        self.work.mkdir()
        (self.home / "config.toml").write_text(CONFIG.format(url=URL, websockets=str(websockets).lower(), retries=2 if websockets else 0))
        # No proxy and no account of whoever runs the tests.
        kept = {name: os.environ[name] for name in ["PATH", "LANG", "TZ"] if name in os.environ}
        self.environment = kept | {"HOME": directory, "CODEX_HOME": str(self.home), "BALANCER_KEY": KEY}

    def run(self, *arguments):
        """Runs a turn; returns the id of the session, its items, and what the model said."""
        command = [CODEX, "exec", *arguments[:-1], "--json", "--skip-git-repo-check", arguments[-1]]
        completed = subprocess.run(
            command, cwd=self.work, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
        )
        events = [json.loads(line) for line in completed.stdout.splitlines()]
        kinds = [event["type"] for event in events]
        assert completed.returncode == 0 and "turn.completed" in kinds, f"{completed.stdout}\n{completed.stderr}"
        assert "error" not in kinds and "turn.failed" not in kinds, completed.stdout
        session = next(event["thread_id"] for event in events if event["type"] == "thread.started")
        # On a busy machine, a turn may end before its command does.
        items = [event["item"] for event in events if event["type"] in ("item.started", "item.completed")]
        return session, items, "\n".join(item["text"] for item in items if item["type"] == "agent_message" and item["text"])


@test("a command that the model runs, and forks of a session")
def _():
    with tempfile.TemporaryDirectory() as directory:
        codex = Codex(directory)
        # The simulated model takes the prompt as the arguments of the tool.
        session, items, text = codex.run("echo use the tool")
        commands = [item["command"] for item in items if item["type"] == "command_execution"]
        assert commands and "echo use the tool" in commands[0] and "The tool said:" in text, items
        forks = [codex.run("fork", session, f"Branch {number}")[0] for number in range(2)]
        assert session not in forks
        for number, fork in enumerate(forks):
            _, _, said = codex.run("resume", fork, "What did I say?")
            assert f"echo use the tool | Branch {number} (" in said, said
    expect_turns(new=1, learned=1 + 2 * 2)


@test("three sessions in turn, over an upgrade")
def _():
    with tempfile.TemporaryDirectory() as directory:
        codex = Codex(directory)
        sessions = [codex.run(f"Thought 0 of {number}")[0] for number in range(3)]
        for turn in range(1, 3):
            for number, session in enumerate(sessions):
                codex.run("resume", session, f"Thought {turn} of {number}")
        ask_runner("upgrade")
        for number, session in enumerate(sessions):
            _, _, text = codex.run("resume", session, "What did you think?")
            thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(3))
            assert f"I thought: {thoughts} (Turn" in text, text
            _, _, said = codex.run("resume", session, "What did I say?")
            assert said.index(f"Thought 0 of {number}") < said.index(f"Thought 2 of {number}"), said
    # Codex gives each message an id of its own, so that even the first turn refers to something.
    expect_turns(new=3, learned=3 * 4)


def create_over_http(text):
    body = json.dumps({"model": "gpt-5", "input": text}).encode()
    headers = {"api-key": KEY, "content-type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{URL}/openai/v1/responses", body, headers), timeout=TIMEOUT).close()


@test("three sessions over sockets, and a command that the model runs")
def _():
    # As long as it accepts connections as well, it asks for what it has not learned itself.
    ask_runner("wait for old process")
    with tempfile.TemporaryDirectory() as directory:
        codex = Codex(directory, websockets=True)
        sessions = [codex.run(f"Thought 0 of {number}")[0] for number in range(3)]
        for turn in range(1, 3):
            # What Codex begins with, to warm up the socket, now comes to another resource than that of the session.
            # If the turn continues that, it has to be told to connect again.
            create_over_http("Something else")
            for number, session in enumerate(sessions):
                codex.run("resume", session, f"Thought {turn} of {number}")
        for number, session in enumerate(sessions):
            _, _, text = codex.run("resume", session, "What did you think?")
            thoughts = " | ".join(f"Thought {turn} of {number}" for turn in range(3))
            assert f"I thought: {thoughts} (Turn" in text, text
        _, items, text = codex.run("echo use the tool")
        commands = [item["command"] for item in items if item["type"] == "command_execution"]
        assert commands and "echo use the tool" in commands[0] and "The tool said:" in text, items
    # No turn came over HTTP.
    expect_turns(new=2, over_sockets_at_least=3 * 4 + 2)


run_tests()
