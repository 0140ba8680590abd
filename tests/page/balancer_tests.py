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
        prices = "prices: { currency: EUR, rows: [ { deployment: gpt-4o-mini, input: 1000, output: 2000 } ] }"
        return f"{super().balancer_yaml(*arguments)}admin: {{ address: '127.0.0.1:{port}'{token} }}\n{prices}\n"

    def start_edge(self, _):
        pass

    def status(self):
        return self.get_json("/api/status")

    def get_json(self, path):
        return json.loads(self.ask("GET", path, self.admin)[2])

    def ask(self, method, path, url, body=None, **headers):
        connection = http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=10)
        try:
            connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()
        finally:
            connection.close()

    def chat(self, deployment, **more_headers):
        path = f"/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21"
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
        headers = {"api_key": self.keys["python"], "content_type": "application/json"}
        return self.ask("POST", path, self.url, body, **headers, **more_headers)


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
        names = self.page.texts("#backend-table [data-field=name]")
        assert sorted(names) == sorted(backend["name"] for backend in status["backends"]), names
        assert len(self.page.texts("#pool-rows > li")) == min(len(status["pools"]), 6)
        assert self.page.text("#headline-text").lower() == status["service"]["state"] == "healthy", status["service"]
        sinks = [" ".join(row.split()) for row in self.page.texts("#sink-table > tbody")]
        assert len(sinks) == len(status["sinks"]) and all(sink.startswith("✓ delivers") for sink in sinks), sinks
        self.page.assert_no_errors()

    def request_counts_increase(self):
        figure = lambda: self.page.evaluate(
            "[...document.querySelectorAll('#figures > div')].find(n => /^Since the start/.test(n.textContent)).querySelector('dd').textContent"
        )
        before = int(figure().replace(",", ""))
        for _ in range(10):
            assert self.balancer.chat("gpt-4o-mini")[0] == 200
        self.page.wait_until(lambda: int(figure().replace(",", "")) == before + 10, f"expected {before + 10} requests")
        client_row = lambda: next(row for row in self.page.texts("#client-rows > tr") if row.startswith("python"))
        self.page.wait_until(lambda: re.match(r"python\s+10\s", client_row()), "expected ten requests of the client")
        assert self.balancer.status()["settled"] == before + 10

    def what_a_client_costs_today_and_in_this_month_is_shown(self):
        rows = lambda: [" ".join(row.split()) for row in self.page.texts("#cost-table > tbody")]
        [entry] = self.balancer.status()["costs"]["clients"]
        cost = entry["today"]["cost"]
        assert float(cost) > 0 and entry["month"]["cost"] == cost, entry
        self.page.wait_until(lambda: rows() == [f"python {cost} {cost} 0 0"], f"expected {cost}, not {rows()}")
        assert self.page.text("#cost-note").startswith("Costs are in EUR, of the requests that arrived today and in this month"), self.page.text("#cost-note")

    def a_cooldown_is_shown(self):
        """A deployment of the backend `troubled` is throttled."""
        assert self.balancer.chat("throttled-python")[0] == 429
        row = lambda: " ".join(self.page.evaluate("document.querySelector(\"[aria-label='troubled, details']\").closest('tr').innerText").split())
        self.page.wait_until(lambda: "throttled-python: cooling" in row(), "expected the cooldown to be shown")
        pool = next(" ".join(pool.split()) for pool in self.page.texts("#pool-rows > li") if pool.startswith("throttled-python"))
        assert re.fullmatch(r"throttled-python ▲ none of 1 healthy Tier \d troubled ◑ cooling \d+ s left", pool), pool

    def the_request_is_in_the_recent_trouble_and_its_client_is_counted(self):
        self.page.evaluate("void document.getElementById('trouble').scrollIntoView()")
        rows = lambda: [" ".join(row.split()) for row in self.page.texts("#trouble-table > tbody")]
        self.page.wait_until(lambda: rows() and re.search(r"refused 429 python throttled-python 1 .+ troubled: 429", rows()[0]), f"expected the request, not {rows()}")
        self.page.find("#trouble-table .expand").send_keys(" ")
        request = self.balancer.get_json("/api/requests?status=429&client=python")["requests"][0]
        details = " ".join(self.page.text("#trouble-table .details").split())
        assert request["id"] in details and re.search(r"1 attempt troubled 429 began at \d+ ms, first byte after \d+ ms, took \d+ ms", details), details
        refused = [" ".join(row.split()) for row in self.page.texts("#refusal-table > tbody")]
        assert refused == ["python 0 0 0 1 0 0 1 Show requests"], refused

    def a_recent_request_is_found_by_each_of_its_ids(self):
        trace = "0af7651916cd43dd8448eb211c80319c"
        status, headers, _ = self.balancer.chat("throttled-python", x_ms_client_request_id="order-4711", traceparent=f"00-{trace}-b7ad6b7169203331-01")
        assert status == 429
        field = self.page.find("#trouble-id")
        found = lambda: [" ".join(row.split()) for row in self.page.texts("#trouble-table > tbody")]
        for wanted in (headers["x-aoai-lb-request-id"], "order-4711", trace):
            field.clear()
            field.send_keys(f"{wanted}\n")
            self.page.wait_until(lambda: self.page.text("#trouble-count").startswith("1 of 2 match"), f"expected one request with {wanted}, not {found()}")
            assert len(found()) == 1 and "refused 429 python throttled-python" in found()[0], found()
            self.page.find("#trouble-table .expand").send_keys(" ")
            details = lambda: " ".join(self.page.text("#trouble-table .details").split())
            self.page.wait_until(lambda: headers["x-aoai-lb-request-id"] in details(), f"expected its details, not {details()}")
            assert f"Client's id order-4711 Trace {trace}" in details(), details()
            self.page.find("#trouble-table .expand").send_keys(" ")
        # One that went well has a record, and the page says where to look for it.
        answered = self.balancer.chat("gpt-4o-mini")[1]["x-aoai-lb-request-id"]
        field.clear()
        field.send_keys(f"{answered}\n")
        self.page.wait_until(lambda: "aoai-lb find ID searches all records" in self.page.text("#no-trouble"), "expected where to look")
        self.page.click("#trouble-filter button[type=reset]")
        self.page.wait_until(lambda: len(found()) == 2, "expected both requests")

    def draining_stops_new_requests_to_the_backend(self):
        state = lambda: next(expected_text["state"] for expected_text in self.balancer.status()["backends"] if expected_text["name"] == "sweden")
        button = "[data-field=drain][aria-label$='rain sweden']"
        self.page.find("[aria-label='sweden, details']").send_keys(" ")
        self.page.click(button)
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: self.page.text("#result-text").startswith("sweden is drained."), "expected the result")
        assert state() == "drained"
        self.page.wait_until(lambda: self.page.text(button) == "Undrain …", "expected the button to change to undrain")
        self.page.click("#result-close")
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
        config.write_text(good.replace("retry: { attempts: 3 }", "retry: { attempts: 2 }"))
        self.page.click("#reload")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: "was reloaded" in self.page.text("#result-text"), f"expected the result of the reload, not: {self.page.text('#confirm-error')}")
        assert self.page.texts("#result-lines li")[0] == "settings: retry.attempts", self.page.texts("#result-lines li")
        assert self.balancer.status()["configuration"]["version"] > version
        self.page.click("#result-close")
        config.write_text(good + "no_such_key: 1\n")
        self.page.click("#reload")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: "no_such_key" in self.page.text("#confirm-error"), "expected the error in the dialog")
        self.page.click("#confirm-no")
        self.page.wait_until(lambda: "configuration the last reload failed" in " ".join(self.page.text("#problems").split()), "expected the error among the problems")
        config.write_text(good)
        self.page.assert_no_errors()

    def a_stopped_balancer_makes_the_page_stale(self):
        self.balancer.send_sigterm()
        assert self.balancer.wait_for_exit() == 0
        self.page.wait_until(lambda: self.page.find("#stale").is_displayed(), "expected the data to be marked as stale")
        assert self.page.driver.title.startswith("? unknown since")


class TokenTests:
    """Tests with a running balancer whose admin API requires a token."""

    def __init__(self, page, balancer):
        self.page, self.balancer = page, balancer

    def the_token_unlocks_the_page(self):
        self.page.set_viewport()
        self.page.open(self.balancer.admin, "#token:not([hidden])")
        self.page.find("#token-input").send_keys(f"{self.balancer.token}\n")
        self.page.wait_until(lambda: "healthy" in self.page.driver.title, "expected the status after the token")
        self.page.find("[aria-label='westus, details']").send_keys(" ")
        self.page.click("[data-field=drain][aria-label='Drain westus']")
        self.page.click("#confirm-yes")
        self.page.wait_until(lambda: self.page.text("#result-text").startswith("westus is drained."), "expected the result")
        self.page.assert_no_errors()
