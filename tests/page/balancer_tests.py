"""Tests of the status page against a running balancer."""

import http.client
import json
import re

import stack
from mock import content_security_policy
from stack import Stack


class AdminStack(Stack):
    """The stack of the SDK tests, with an admin API and without its second balancer."""

    token = None

    def balancer_yaml(self, *arguments):
        port = stack.free_port()
        self.admin = f"http://127.0.0.1:{port}/"
        token = f", token: {self.token}" if self.token else ""
        return f"{super().balancer_yaml(*arguments)}admin: {{ address: '127.0.0.1:{port}'{token} }}\n"

    def start_edge(self, _):
        pass

    def status(self):
        return json.loads(self.ask("GET", "/api/status", self.admin)[2])

    def ask(self, method, path, url, body=None, **headers):
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def chat(self, deployment):
        path = f"/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21"
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
        return self.ask("POST", path, self.url, body, api_key=self.keys["python"], content_type="application/json")


class RunningBalancerTests:
    """Tests with a running balancer."""

    def __init__(self, page, balancer):
        self.page, self.balancer = page, balancer

    def the_page_is_served_with_its_content_security_policy(self):
        status, headers, page = self.balancer.ask("GET", "/", self.balancer.admin)
        assert status == 200 and headers["content-type"].startswith("text/html"), (status, headers["content-type"])
        policy_parts = lambda text: set(text.replace(";", " ").split())
        assert policy_parts(headers["content-security-policy"]) == policy_parts(content_security_policy(page)), headers["content-security-policy"]

    def the_page_shows_the_status_of_the_balancer(self):
        self.page.set_viewport()
        self.page.open(self.balancer.admin)
        status = self.balancer.status()
        names = self.page.texts("#backend-rows > tr [data-field=name]:first-child")
        assert [name for name in names if name] and {expected_text["name"] for expected_text in status["backends"]} <= set(names), names
        assert len(self.page.texts("#pool-rows > li")) == len(status["pools"])
        assert "healthy" in self.page.text("#headline-text"), self.page.text("#headline-text")
        self.page.assert_no_errors()

    def request_counts_increase(self):
        figure = lambda: self.page.evaluate(
            "[...document.querySelectorAll('#figures > div')].find(n => /^Requests since/.test(n.textContent)).querySelector('dd').textContent"
        )
        before = int(figure().replace(",", ""))
        for _ in range(10):
            assert self.balancer.chat("gpt-4o-mini")[0] == 200
        self.page.wait_until(lambda: int(figure().replace(",", "")) == before + 10, f"expected {before + 10} requests")
        client_row = lambda: next(row for row in self.page.texts("#client-rows > tr") if row.startswith("python"))
        self.page.wait_until(lambda: re.match(r"python\s+10\s", client_row()), "expected ten requests of the client")
        assert self.balancer.status()["settled"] == before + 10

    def a_cooldown_is_shown(self):
        """A deployment of the backend `troubled` is throttled."""
        assert self.balancer.chat("throttled-python")[0] == 429
        self.page.wait_until(lambda: "throttled-python cooling" in self.page.text("#issues"), "expected the cooldown to be shown")
        assert re.search(r"throttled-python\s*:\s*all backends are unavailable", self.page.text("#issues")), self.page.text("#issues")
        row = next(row for row in self.page.texts("#backend-rows > tr") if row.startswith("troubled"))
        assert re.search(r"\d+ s left", row), row

    def draining_stops_new_requests_to_the_backend(self):
        state = lambda: next(expected_text["state"] for expected_text in self.balancer.status()["backends"] if expected_text["name"] == "sweden")
        button = "[data-field=drain][aria-label$='rain sweden']"
        self.page.click(button)
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: self.page.text("#result-text").startswith("sweden is drained."), "expected the result")
        assert state() == "drained"
        self.page.wait_until(lambda: self.page.text(button) == "Undrain …", "expected the button to change to undrain")
        status, headers, _ = self.balancer.chat("gpt-4o-mini")
        assert (status, headers["x-aoai-lb-backend"]) == (200, "westus")
        self.page.click(button)
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: self.page.text(button) == "Drain …", "expected the backend to be undrained")
        assert state() == "healthy"

    def reloading_applies_the_changed_file(self):
        version = self.balancer.status()["configuration"]["version"]
        config = self.balancer.directory / "aoai-lb.yaml"
        good = config.read_text()
        config.write_text(good + "# changed\n")
        self.page.click("#reload")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: "was reloaded" in self.page.text("#result-text"), f"expected the result of the reload, not: {self.page.text('#confirm-error')}")
        assert self.balancer.status()["configuration"]["version"] > version
        config.write_text(good + "no_such_key: 1\n")
        self.page.click("#reload")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: "no_such_key" in self.page.text("#confirm-error"), "expected the error in the dialog")
        self.page.click("#confirm-no")
        self.page.wait_until(lambda: "last reload failed" in self.page.text("#issues"), "expected the error among the issues")
        config.write_text(good)
        self.page.assert_no_errors()

    def a_stopped_balancer_makes_the_page_stale(self):
        self.balancer.send_sigterm()
        assert self.balancer.wait_for_exit() == 0
        self.page.wait_until(lambda: self.page.find("#stale").is_displayed(), "expected the data to be marked as stale")
        assert self.page.text("#headline-text").startswith("Unknown since")


class TokenTests:
    """Tests with a running balancer whose admin API requires a token."""

    def __init__(self, page, balancer):
        self.page, self.balancer = page, balancer

    def the_token_unlocks_the_page(self):
        self.page.set_viewport()
        self.page.open(self.balancer.admin, "#token:not([hidden])")
        self.page.find("#token-input").send_keys(f"{self.balancer.token}\n")
        self.page.wait_until(lambda: "healthy" in self.page.text("#headline-text"), "expected the status after the token")
        self.page.click("[data-field=drain][aria-label='Drain westus']")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: self.page.text("#result-text").startswith("westus is drained."), "expected the result")
        self.page.assert_no_errors()
