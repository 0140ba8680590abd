"""Tests of the tables of the status page: backends, recent trouble, who is refused, records and what expires."""

import math
import re

from mock import MockAdminApi
from states import HOSTILE_MARKUP, STATES, backend, costs, healthy, problems, queue, refused, seconds_ago, trouble_list, unavailability
from suite import Suite

STATE_WORDS = ["credential", "unresolvable", "stalled", "breaker_open", "failing", "absent", "permission", "cooling", "drained", "disabled", "healthy"]


class TableTests(Suite):
    """Tests with made-up states of the admin API."""

    def forty_backends_fit_on_a_page(self):
        with MockAdminApi(STATES["forty_backends"]) as mock:
            self.open_with_trouble(mock)
            assert len(self.page.texts("#trouble-table > tbody")) == 6
            assert len(self.names_in_order()) == 40
            height = lambda: self.page.evaluate("document.documentElement.scrollHeight")
            calm = height()
            assert calm < 3000, calm
            # One line each, calm or not.
            mock.update(state=STATES["forty_in_trouble"])
            self.page.wait_until(lambda: "credential" in self.page.text("#backend-table > tbody"), "expected the trouble")
            heights = self.page.evaluate("[...document.querySelectorAll('#backend-table tr.main')].map(n => n.offsetHeight)")
            assert max(heights) - min(heights) <= 1 and max(heights) < 30, heights
            # Trouble takes room: problems, pools, who is refused, why records are not delivered.
            self.note = f"{calm} px, in trouble {height()} px"
            assert height() < 3300, height()
            self.assert_no_horizontal_scroll("forty backends in trouble")

    def a_backend_is_one_line_that_can_be_expanded(self):
        with MockAdminApi(problems, interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            row = self.row_of("eastus-ptu")
            assert re.fullmatch(r"✕ breaker_open eastus-ptu 1 ×2 0 % \d 0 2 0 \d+ ms 2\.\d s 1\d s left failed too often; last: 503 ServiceUnavailable", row), row
            assert re.fullmatch(r"◑ healthy westus .+ gpt-4o: cooling", self.row_of("westus")), self.row_of("westus")
            # No event arrives now, so the countdown must run on the clock of the page.
            seconds_left = lambda: int(re.search(r"(\d+) s left", self.row_of("eastus-ptu"))[1])
            before = seconds_left()
            self.page.wait_until(lambda: seconds_left() < before, "expected the countdown to count down")
            assert self.page.evaluate("document.querySelector('#backend-table .sheet')") is None, "expected details only on request"
            self.page.find("[aria-label='eastus-ptu, details']").send_keys(" ")
            details = " ".join(self.page.text("#backend-table .details:not([hidden])").split())
            for expected in (
                "State breaker_open: failed too often",
                "Last error 503 ServiceUnavailable: The service is temporarily unable to process your request. (",
                "Endpoint contoso-eastus-ptu.openai.azure.com",
                "the oldest has waited for 34 s",
                "11,890 answered, 120 throttled, 4 failed, 18 refused, 2 client gone",
                "Drain …",
            ):
                assert expected in details, (expected, details)
            # An overdrawn quota is nothing, and the tip has what the backend reported.
            assert "gpt-4o-overdrawn 0 of 240K tokens, 0 of 1.44K requests" in details, details
            self.assert_tip("#backend-table .quota [data-field=details]", "-1200 tokens, -3 requests")
            self.page.find("[aria-label='eastus-ptu, details']").send_keys(" ")
            assert self.page.texts("#backend-table .details") == []
            # A click anywhere on the line does the same. Unavailable deployments come first.
            self.page.click("#backend-table > tbody:nth-of-type(3) .reason")
            quotas = self.page.texts("#backend-table > tbody:nth-of-type(3) .quota > li")
            assert len(quotas) == 8 and "gpt-4o ◑ cooling" in " ".join(quotas[0].split()), quotas

    def tips_say_what_numbers_mean(self):
        with MockAdminApi(problems) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            self.assert_tip("#backend-table > tbody:nth-of-type(2) [data-field=flight]", "The oldest has waited for 34 s.")
            # It stays while the pointer is on it, and Escape closes it.
            self.assert_tip("#tip", "Attempts that have not ended")
            self.page.find("body").send_keys("\ue00c")
            assert not self.page.find("#tip").is_displayed()
            head = self.page.find("#backend-table [data-tip=p95]")
            self.page.evaluate("void arguments[0].focus()", head)
            assert "95 %" in self.page.text("#tip") and head.get_attribute("aria-describedby") == "tip"
            self.assert_accessible("with a tip")
            self.page.find("#only-unhealthy").send_keys(" ")
            assert not self.page.find("#tip").is_displayed() and head.get_attribute("aria-describedby") is None
            # Each name of a number has a meaning.
            without = self.page.evaluate("[...document.querySelectorAll('.term')].filter(node => tipOf(node) === '').map(node => node.textContent)")
            assert without == [], without

    def the_worst_backends_come_first_then_the_order_of_the_file(self):
        def document(tick):
            found = healthy(tick)
            states = [*STATE_WORDS[::-1], "healthy", "healthy"]
            found["backends"] = [backend(f"b{place:02}", **unavailability(state, 60)) for place, state in enumerate(states)]
            found["backends"][12]["resting"] = [{"deployment": "gpt-4o", "operation": None, "reason": "cooling", "since": seconds_ago(3), "until": None, "until_ms": None}]
            return found

        with MockAdminApi(document) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            names = [f"b{place:02}" for place in (10, 9, 8, 7, 6, 5, 4, 3, 12, 2, 1, 0, 11)]
            assert self.names_in_order() == names, self.names_in_order()
            words = self.page.evaluate("[...document.querySelectorAll('#backend-table [data-field=state] > :last-child')].map(n => n.textContent)")
            assert [word for word in words if word != "healthy"] == STATE_WORDS[:-1], words

    def rows_do_not_jump(self):
        from selenium.webdriver import ActionChains

        def ill(name):
            def document(tick):
                found = healthy(tick)
                next(backend for backend in found["backends"] if backend["name"] == name).update(unavailability("cooling", 1, 30, "answered 429, or sent retry-after"))
                return found

            return document

        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            mock.update(state=ill("sweden"))
            self.page.wait_until(lambda: self.names_in_order() == ["sweden", "eastus-ptu", "westus"], "expected the ill backend first")
            # What is better stays for half a minute, so that a backend that cools down again and again does not jump.
            mock.update(state=healthy)
            self.page.wait_until(lambda: "healthy" in self.row_of("sweden"), "expected the backend to be healthy")
            assert self.names_in_order()[0] == "sweden"
            # Nothing moves under the pointer, nor while a row has the focus.
            ActionChains(self.page.driver).move_to_element(self.page.find("#backend-table > tbody:nth-of-type(3) .reason")).perform()
            mock.update(state=ill("westus"))
            self.page.wait_until(lambda: "cooling" in self.row_of("westus"), "expected the state")
            assert self.names_in_order()[0] == "sweden"
            self.page.find("[aria-label='westus, details']").send_keys(" ")
            self.page.evaluate("void (tableUsedAt = 0)")
            mock.update()
            self.page.wait_until(lambda: self.names_in_order()[0] == "westus", "expected the order when the table is left alone")
            assert self.page.evaluate("document.activeElement.ariaLabel") == "westus, details", "expected the focus to move with the row"

    def a_full_provisioned_backend_does_not_look_like_trouble(self):
        with MockAdminApi(STATES["spilling"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert self.headline() == "spilling" and "normal" in self.page.text("#meaning")
            levels = self.page.evaluate("[...document.querySelectorAll('.badge')].filter(n => n.checkVisibility() && n.closest('#backends, #pools')).map(n => n.dataset.level)")
            assert set(levels) == {"ok", "note"}, levels

    def recent_trouble_is_listed_with_its_attempts(self):
        with MockAdminApi(problems) as mock:
            self.open_with_trouble(mock)
            rows = [" ".join(row.split()) for row in self.page.texts("#trouble-table > tbody")]
            assert re.fullmatch(r"\d\d:\d\d:\d\d ✕ failed 502 team-b gpt-4o 2 817 ms eastus-ptu: connection refused, westus: 503", rows[1]), rows[1]
            assert self.page.text("#trouble-count") == "120 kept"
            self.page.find("#trouble-table > tbody:nth-of-type(2) .expand").send_keys("\n")
            details = " ".join(self.page.text("#trouble-table .details:not([hidden])").split())
            request = trouble_list(2)[1]
            for expected in (request["id"], "Client team-b, 10.1.2.3", "Answered by no backend", "2 attempts", "Waited 300 ms between attempts", "Queued 1.5 s in the queue", "westus 503", "began at 5 ms, first byte after 811 ms, took 812 ms", "eastus-ptu connect_refused"):
                assert expected in details, (expected, details)
            # The id can be copied, or is at least selected.
            self.page.click("#trouble-table .details:not([hidden]) [data-field=copy]")
            copied = lambda: self.page.text("#trouble-table [data-field=copied]")
            self.page.wait_until(lambda: copied() in ("copied", "selected"), "expected the id to be copied")
            if copied() == "selected":
                assert self.page.evaluate("String(getSelection())") == request["id"]
            # The row stays open when newer requests come.
            opened = lambda: self.page.evaluate("document.querySelector('#trouble-table .details:not([hidden]) code')?.textContent")
            assert opened() == request["id"]
            self.page.click("#more-trouble")
            self.page.wait_until(lambda: len(self.page.texts("#trouble-table > tbody")) == 120 and opened() == request["id"], "expected all requests")

    def recent_trouble_can_be_filtered(self):
        with MockAdminApi(problems) as mock:
            self.open_with_trouble(mock)
            count = lambda text: self.page.wait_until(lambda: self.page.text("#trouble-count") == text, f"expected {text}, not {self.page.text('#trouble-count')}")
            choose = lambda value: self.page.evaluate(
                "void (document.getElementById('trouble-client').value = arguments[0], document.getElementById('trouble-client').dispatchEvent(new Event('change')))", value
            )
            self.page.find("#trouble-status").send_keys("5")
            self.page.wait_until(lambda: "429" in self.page.text("#trouble-hint"), "expected what a status is like")
            self.assert_accessible("with a hint")
            self.page.find("#trouble-status").send_keys("xx")
            count("24 of 120 match")
            assert self.page.text("#trouble-hint") == ""
            # Names with blanks and plus signs arrive as they are.
            choose("=batch jobs+nightly")
            count("8 of 120 match")
            assert mock.queries[-1][1] == {"limit": "6", "client": "batch jobs+nightly", "status": "5xx"}, mock.queries[-1]
            self.page.click("#trouble-filter button[type=reset]")
            count("120 kept")
            choose("=")
            count("24 of 120 match")
            assert mock.queries[-1][1]["client"] == "", mock.queries[-1]
            choose("")
            self.page.find("#trouble-id").send_keys(f"  {trouble_list(5)[4]['id'].upper()} \n")
            count("1 of 120 match")
            self.page.find("#trouble-id").send_keys("0")
            count("0 of 120 match")
            # It may have gone well: then it has a record.
            assert "aoai-lb find ID searches all records" in self.page.text("#no-trouble"), self.page.text("#no-trouble")
            self.page.find("#trouble-id").clear()
            self.page.find("#trouble-status").send_keys("418")
            self.page.wait_until(lambda: self.page.text("#no-trouble") == "No request matches the filter.", "expected no match")
            assert all("5" != query.get("status") for _, query in mock.queries), "expected only whole statuses to be asked for"
            # An error is told, and what was there stays.
            self.page.click("#trouble-filter button[type=reset]")
            count("120 kept")
            mock.requests_refusal = (503, "the process stops")
            self.page.find("#trouble-status").send_keys("429")
            self.page.wait_until(lambda: self.page.text("#no-trouble") == "Not loaded: the process stops", "expected the error")
            assert len(self.page.texts("#trouble-table > tbody")) == 6
            self.page.assert_no_errors()

    def recent_trouble_is_asked_for_only_while_it_is_looked_at(self):
        with MockAdminApi(problems, interval=0.3) as mock:
            self.open_with_trouble(mock)
            self.page.evaluate("void document.getElementById('trouble').scrollIntoView()")
            self.page.wait_until(lambda: len(mock.queries) >= 2, "expected it to be asked for again")
            times = [at for at, _ in mock.queries]
            assert times[1] - times[0] > 4, times

            def asks_when_it_is_time():
                """Whether the page asks again within a few events, once the time for that has come."""
                before, ticks = len(mock.queries), mock.ticks
                self.page.evaluate("void (troubleRequestedAt = 1)")
                self.page.wait_until(lambda: mock.ticks > ticks + 3, "expected more events")
                return len(mock.queries) > before

            assert asks_when_it_is_time()
            hide = lambda hidden: self.page.evaluate(
                "void (Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true}), document.dispatchEvent(new Event('visibilitychange')))", hidden
            )
            hide(True)
            assert not asks_when_it_is_time(), "expected no requests from a hidden page"
            before = len(mock.queries)
            hide(False)
            self.page.wait_until(lambda: len(mock.queries) == before + 1, "expected it to be asked for at once")
            # Far away on a tall page.
            mock.update(state=STATES["hundred_backends"])
            self.page.wait_until(lambda: len(self.names_in_order()) == 100, "expected more backends")
            self.page.evaluate("void scrollTo(0, 0)")
            self.page.wait_until(lambda: not self.page.evaluate("isTroubleNear"), "expected the section to be far away")
            assert not asks_when_it_is_time(), "expected no requests for what nobody sees"

    def who_is_refused_is_counted_by_status(self):
        with MockAdminApi(problems) as mock:
            self.open_with_trouble(mock)
            rows = [" ".join(row.split()) for row in self.page.texts("#refusal-table > tbody")]
            assert rows == ["unknown clients 240 0 0 0 0 0 4,012 Show requests", "team-b 0 0 7 52 0 9 1,116 Show requests", "batch jobs+nightly 0 0 0 0 0 0 2 Show requests"], rows
            self.page.find("#refusal-table [aria-label='Show requests of team-b']").send_keys("\n")
            self.page.wait_until(lambda: self.page.text("#trouble-count") == "32 of 120 match", "expected the requests of the client")
            assert self.page.evaluate("document.activeElement.id") == "trouble-client"
            self.page.click("#refusal-table [aria-label='Show requests of unknown clients']")
            self.page.wait_until(lambda: self.page.text("#trouble-count") == "24 of 120 match", "expected the requests of unknown clients")
            # That most requests are refused is told at the top; the state is about backends.
            everybody = {"client": None} | refused() | {"last_minute": refused(unauthorized=900, not_found=100)}

            def refusing(requests):
                document = healthy()
                document["timeline"]["requests"] = [5000] * 167 + [0] * 12 + [requests]
                return document | {"refusals": [everybody]}

            notice = "◑1,000 of 2,000 requests of the last minute were refused for their key, deployment or path (401: 900, 403: 0, 404: 100)"
            mock.update(state=lambda tick: refusing(2000))
            self.page.wait_until(lambda: notice in "".join(self.page.texts("#notices li")).replace("\n", ""), "expected that most are refused")
            assert self.headline() == "healthy"
            mock.update(state=lambda tick: refusing(2001))
            self.page.wait_until(lambda: self.page.texts("#notices li") == [], "expected no notice")
            mock.update(state=healthy)
            self.page.wait_until(lambda: self.page.text("#no-refusals") == "Nobody since the start.", "expected nobody")

    def records_and_what_expires_have_rows(self):
        with MockAdminApi(problems) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            sinks = [" ".join(row.split()) for row in self.page.texts("#sink-table > tbody")]
            assert re.fullmatch(r"✓ delivers spool 0 – \d\d:\d\d:\d\d 0 0 none", sinks[0]), sinks
            assert re.fullmatch(r"✕ not delivered log_analytics 700\.0 MiB|✕ not delivered log_analytics 700 MiB 1 h 30 min .+ 1,200 \(12 now\) 4 since .+: 403 from the endpoint: .+", sinks[2]), sinks
            expiries = [" ".join(row.split()) for row in self.page.texts("#expiries > li")]
            assert len(expiries) == 3, expiries
            assert re.fullmatch(r"✕ expired /etc/aoai-lb/tls/listener\.pem expired .+, 1 d 12 h ago; used by listener 0\.0\.0\.0:443", expiries[0]), expiries
            assert re.fullmatch(r"▲ not renewed credential of france token, ends .+, in 2 d 0 h, cannot be renewed: the vault refuses: 403", expiries[1]), expiries
            assert expiries[2].startswith("◑ ends soon /etc/aoai-lb/tls/backend.pem"), expiries
            assert self.page.text("#expiries-note").startswith("2 others end in more than 30 days; the first on "), self.page.text("#expiries-note")
            assert "failed: backends[2].weight: must be at least 1" in self.page.text("#facts")
            mock.update(state=healthy)
            self.page.wait_until(lambda: self.page.texts("#expiries > li") == [], "expected one short line")
            assert self.page.text("#expiries-note").startswith("2 certificates and 2 credentials end in more than 30 days; the first on ")
            mock.update(state=lambda tick: healthy(tick) | {"sinks": [], "certificates": [], "credentials": []})
            self.page.wait_until(lambda: self.page.find("#no-sinks").is_displayed(), "expected that there are no records")
            assert self.page.text("#expiries-note") == "None has a known end."

    def nothing_shifts_when_numbers_change(self):
        """The place of every cell stays the same, from no traffic to a lot."""

        def with_traffic(factor):
            def document(tick):
                found = STATES["forty_backends"](tick)
                for entry in found["backends"]:
                    entry["in_flight"] *= factor
                    entry["last_minute"] = {"attempts": 151 * factor, "throttled": 3 * factor, "failed": factor, "share": min(1, factor / 40), "p50_ms": 2 * factor + 1, "p95_ms": 61 * factor}
                for name, row in found["timeline"].items():
                    if isinstance(row, list):
                        most = 60_000 if name.endswith("_ms") else math.inf
                        found["timeline"][name] = [value and min(most, value * factor) for value in row]
                return found

            return document

        places = "[...document.querySelectorAll('#backend-table tr.main > *, #plots figure > svg, #figures > div, h2')].map(n => { const r = n.getBoundingClientRect(); return [Math.round(r.x), Math.round(r.y + scrollY), Math.round(r.width), Math.round(r.height)].join() })"
        with MockAdminApi(with_traffic(0)) as mock:
            self.open_with_trouble(mock)
            before = self.page.evaluate(places)
            for factor in (1, 40, 999):
                mock.update(state=with_traffic(factor))
                self.page.wait_until(lambda: f" {151 * factor:,} " in self.row_of("region-000"), "expected the numbers")
                after = self.page.evaluate(places)
                moved = [pair for pair in zip(before, after) if pair[0] != pair[1]]
                assert not moved, (factor, moved[:4])

    def hostile_requests_are_text(self):
        with MockAdminApi(STATES["hostile_names"]) as mock:
            self.open_with_trouble(mock)
            assert HOSTILE_MARKUP in self.page.text("#trouble-table > tbody")
            self.page.find("#refusal-table > tbody:nth-of-type(2) [data-field=show]").send_keys("\n")
            self.page.wait_until(lambda: mock.queries and mock.queries[-1][1].get("client") == f"{HOSTILE_MARKUP}team-b", "expected the name of the client as it is")
            self.page.assert_no_errors()

    def the_queue_is_shown_while_there_is_one(self):
        document = healthy()
        with MockAdminApi(lambda tick=0: document) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            figure = lambda: [text for text in self.page.texts("#figures > div") if "queue" in text]
            shown = lambda: self.page.find("#queue-note").is_displayed()
            assert not shown() and figure() == [], figure()
            bounds = "At most 1,000 requests may wait, each for at most 5.0 s."
            hostile = {HOSTILE_MARKUP: 1}
            for state, count, text in [
                (queue(), "0", f"Queue: no request waits. {bounds}"),
                (queue(batch=1, none=1), "1", f"Queue: 1 request waits for a free backend (1 batch): calls without a deployment 1. {bounds}"),
                (queue(2, 1, 1200, a=1195, b=3, c=2, d=1, e=1, f=1), "1,203", f"Queue: 1,203 requests wait for a free backend (2 interactive, 1 standard, 1,200 batch): a 1,195, b 3, c 2, d 1, e 1, and 1 more deployment. {bounds}"),
                (queue(standard=1, **hostile), "1", f"Queue: 1 request waits for a free backend (1 standard): {HOSTILE_MARKUP} 1. {bounds}"),
                ({"waiting": None, "lines": "x"}, "–", "Queue: –. At most – requests may wait, each for at most –."),
            ]:
                document["queue"] = state
                mock.update()
                self.page.wait_until(lambda: self.page.text("#queue-note") == text, f"expected {text!r}")
                assert figure()[0].split() == ["In", "the", "queue", count], figure()
                assert len(self.page.texts("#figures > div")) == 10
            self.assert_accessible("with a queue")
            self.assert_no_horizontal_scroll("with a queue")
            document["queue"] = None
            mock.update()
            self.page.wait_until(lambda: not shown() and figure() == [], "expected no queue")
            self.page.assert_no_errors()

    def limits_of_clients_are_shown_the_most_used_first(self):
        document = healthy()
        with MockAdminApi(lambda tick=0: document) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            rows = [" ".join(row.split()) for row in self.page.texts("#limit-table > tbody")]
            assert rows == [
                "team-b tokens_per_day batch 1,200 1,000 0 ◑ 120 %",
                "team-a deployments.gpt-4o.tokens_per_minute interactive 199,999 200,000 1 ■ 99 %",
                "team-a requests_per_minute interactive 12 600 588 2 %",
            ], rows
            assert self.page.text("#limits-note") == "Requests beyond these limits are refused."
            document["limits"] |= {"mode": "observe", "budgets_not_saved": "disk full"}
            mock.update()
            self.page.wait_until(lambda: "only observed" in self.page.text("#limits-note"), "expected the other mode")
            assert self.page.text("#limits-note").endswith("forgotten when this process ends: disk full")
            document["limits"] = None
            mock.update()
            self.page.wait_until(lambda: not self.page.text("#limits-note"), "expected no limits")
            assert self.page.texts("#limit-table > tbody") == []

    def what_clients_cost_is_shown_the_most_expensive_first(self):
        document = healthy()
        with MockAdminApi(lambda tick=0: document) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            rows = lambda: [" ".join(row.split()) for row in self.page.texts("#cost-table > tbody")]
            # Name, today, this month, and in this month the responses of provisioned backends and those without a cost.
            assert rows() == ["team-a 1.000001 120.25 4,000 1", "team-b 0.75 12.5 3 2", "unknown clients 0 0 0 7"], rows()
            note = "Costs are in EUR, of the requests that arrived today and in this month (UTC)."
            assert self.page.text("#cost-note") == note, self.page.text("#cost-note")
            document["costs"]["not_saved"] = "disk full"
            mock.update()
            expected = note + " The sums are forgotten when this process ends: disk full"
            self.page.wait_until(lambda: self.page.text("#cost-note") == expected, "expected that the sums are not saved")
            self.assert_accessible("with costs")
            self.assert_no_horizontal_scroll("with costs")
            # Of many the most expensive.
            document["costs"] = costs(*[(f"client-{number}", ("0",), (f"{number}.5",)) for number in range(30)])
            mock.update()
            self.page.wait_until(lambda: len(rows()) == 5 and rows()[0] == "client-29 0 29.5 0 0", "expected the most expensive clients")
            self.page.click("#more-costs")
            assert len(rows()) == 30
            self.page.find("#filter").send_keys("client-17")
            self.page.wait_until(lambda: rows() == ["client-17 0 17.5 0 0"], "expected the filter to apply")
            self.page.find("#filter").clear()
            # Without prices.
            document["costs"] = None
            mock.update()
            self.page.wait_until(lambda: not self.page.find("#cost-note").is_displayed() and rows() == [], "expected no costs")
            assert not self.page.find("#cost-table").is_displayed()
            self.page.assert_no_errors()
