"""Tests of the status page against made-up states of the admin API."""

import json
import re

from browser import LONG_TIMEOUT
from mock import MockAdminApi
from states import HOSTILE_MARKUP, STATES, affinity, healthy, resource, seconds_ago, service, unavailability
from suite import Suite


def in_seconds(time):
    hours, minutes, seconds = map(int, time.split(":"))
    return 3600 * hours + 60 * minutes + seconds


class MockedStateTests(Suite):
    """Tests with made-up states of the admin API."""

    def every_state_renders_without_errors_at_every_width(self):
        for name, state in STATES.items():
            with MockAdminApi(state) as mock:
                for width in (320, 375, 800, 1280, 1900):
                    self.page.set_viewport(width)
                    if width == 320:
                        self.page.open(mock.url, "#backends:not([hidden])")
                    self.page.wait_until(lambda: self.page.evaluate("innerWidth") == width, f"expected a window {width} px wide")
                    self.assert_no_horizontal_scroll(f"{name} at {width}")
                invalid_text = re.search(r"\b(NaN|undefined|null|Infinity|Invalid Date)\b|\[object", self.page.text("body"))
                assert not invalid_text, f"{name} says {invalid_text and invalid_text[0]}"
                complaints = self.page.take_errors()
                assert complaints == [], f"{name}: {complaints}"

    def every_state_is_accessible_in_light_and_dark(self):
        for name, state in STATES.items():
            with MockAdminApi(state) as mock:
                for dark, width in ((False, 1280), (True, 360)):
                    # One state with many rows is enough in each.
                    if name == "hundred_backends" or name == "forty_backends" and dark:
                        continue
                    self.page.set_viewport(width, dark=dark)
                    self.page.open(mock.url, "#backends:not([hidden])")
                    self.page.wait_until(lambda: self.page.text("#no-trouble") != "Loading …", "expected the recent trouble")
                    self.page.evaluate("void document.querySelectorAll('.expand').forEach((button, place) => place % 8 === 0 && button.click())")
                    self.assert_accessible(f"{name}, {'dark' if dark else 'light'}")

    def the_headline_is_the_state_that_the_server_tells(self):
        expected = {"healthy": "ok", "spilling": "note", "degraded": "warn", "failing": "bad", "a new state": "unknown"}
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            for state, level in expected.items():
                # Backends that are all healthy do not make another headline, and neither do bad ones.
                for backend_state in ("healthy", "breaker_open"):

                    def document(tick):
                        found = healthy(tick)
                        found["service"]["state"] = state
                        found["backends"][0]["state"] = backend_state
                        return found

                    mock.update(state=document)
                    self.page.wait_until(lambda: self.headline() == state, f"expected the headline {state}")
                    assert self.page.evaluate("document.getElementById('overview').dataset.level") == level
                    assert f" {state} – aoai-lb" in self.page.driver.title, self.page.driver.title
            since = self.page.text("#since")
            assert re.fullmatch(r"since \d\d:\d\d:\d\d, for 12 min \d+ s", since), since
            degraded = healthy()
            degraded["service"]["state"] = "degraded"
            mock.update(state=degraded)
            self.page.wait_until(lambda: "no problem at the moment" in self.page.text("#meaning"), "expected why the state is not healthy yet")

    def problems_are_listed_as_the_server_tells_them(self):
        with MockAdminApi(STATES["problems"], interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            problems = STATES["problems"]()["service"]["problems"]
            shown = self.page.texts("#problems li")
            assert len(shown) == 5 and self.page.text("#more-problems") == "Show all 7", shown
            self.page.click("#more-problems")
            for text, problem in zip(self.page.texts("#problems li"), problems, strict=True):
                assert f"{problem['subject']} {problem['text']}" in " ".join(text.split()), (text, problem)
            levels = self.page.evaluate("[...document.querySelectorAll('#problems li')].map(n => n.dataset.level)")
            assert levels == ["bad", *["warn"] * 5, "note"], levels
            notices = self.page.texts("#notices li")
            assert len(notices) == 2 and "are forgotten when this process ends" in notices[0], notices
            assert "listeners[0].address, server.threads" in notices[1], notices
            # A backend leads to its details.
            self.page.click("#problems li:nth-child(2) [data-field=link]")
            assert "ServiceUnavailable: The service is temporarily unable" in self.page.text("#backend-table .details:not([hidden])")
            assert self.page.evaluate("document.activeElement.matches('.expand')")

    def a_shutdown_is_shown(self):
        with MockAdminApi(STATES["stopping"]) as mock:
            self.page.open(mock.url)
            assert "This process is stopping: 12 requests still in flight" in self.page.text("#notices")
            assert self.headline() == "healthy"

    def figures_pools_and_clients_are_shown(self):
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert self.headline() == "healthy" and self.page.texts("#problems li") == []
            assert len(self.page.texts("#figures > div")) == 9
            pools = self.page.texts("#pool-rows > li")
            assert len(pools) == 3 and all(re.search(r"✓ \d healthy$", pool) for pool in pools), pools
            assert "Calls that name no deployment" in pools[2], pools
            clients = self.page.texts("#client-rows > tr")
            assert "team-a" in clients[0] and "12,000,000" in clients[0] and "91,000" in clients[0], clients
            assert self.page.evaluate("document.querySelectorAll('main h2').length") == 10
            assert self.page.evaluate("[...document.querySelectorAll('table')].every(n => n.caption || n.hasAttribute('aria-labelledby'))")
            assert self.page.announcement() == "The service is healthy", self.page.announcement()

    def pools_show_only_exceptions(self):
        with MockAdminApi(STATES["problems"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            pools = [" ".join(text.split()) for text in self.page.texts("#pool-rows > li")]
            assert pools[0] == "o3 ▲ none of 2 healthy Tier 1 eastus-ptu ✕ breaker_open 18 s left Tier 2 france ▲ credential", pools
            assert pools[1].startswith("gpt-4o ◑ 1 of 3 healthy, tier 2") and "sweden" not in pools[1] and "as gpt-4o-ptu ×2" in pools[1], pools
            assert pools[2] == "gpt-4o-mini ✓ 1 healthy", pools
            # Of many the worst, in whatever order the server lists them.
            mock.update(state=STATES["forty_in_trouble"])
            self.page.wait_until(lambda: self.page.text("#more-pools") == "Show all 20", "expected a part of the pools")
            assert all("✓" not in pool for pool in self.page.texts("#pool-rows > li")) and len(self.page.texts("#pool-rows > li")) == 6

    def stored_objects_are_shown_by_resource(self):
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert self.page.text("#objects-note") == "123,456 of 1.89M ids remembered (64.0 MiB), kept in the state directory.", self.page.text("#objects-note")
            rows = [" ".join(row.split()) for row in self.page.texts("#resource-table > tbody")]
            assert rows == [
                "contoso-eastus.openai.azure.com:443 123,456 240 12 3 7.2 s eastus-ptu, westus",
                "contoso-sweden.openai.azure.com:443 0 0 0 0 – sweden",
            ], rows
            self.assert_tip("#resource-table tbody [data-field=denied]", "did not have an object")
            self.page.click("[aria-label='westus, details']")
            details = " ".join(self.page.text("#backend-table .details:not([hidden])").split())
            assert "Objects 123,456 on contoso-eastus.openai.azure.com:443; 240 requests about them in the last minute" in details, details
            # What is lost with the process, and what was forgotten.
            mock.update(state=STATES["problems"])
            self.page.wait_until(lambda: "not kept beyond this process" in self.page.text("#objects-note"), "expected the problem")
            assert "1,234 forgotten since it was full (5 with a maker)" in self.page.text("#objects-note")
            assert "are forgotten when this process ends: cannot use /var/lib/aoai-lb: Permission denied" in self.page.text("#notices")
            for width in (320, 390, 700):
                self.page.set_viewport(width, 800)
                self.assert_no_horizontal_scroll(f"stored objects at {width} px")
            self.assert_accessible("stored objects on a phone")
            # Of many the fullest.
            many = [resource(f"resource-{index}", "a", entries=index) for index in range(25)]
            mock.update(state=lambda tick: healthy(tick) | {"affinity": affinity(*many)})
            self.page.wait_until(lambda: len(self.page.texts("#resource-table > tbody")) == 5, "expected five resources")
            assert self.page.texts("#resource-table > tbody")[0].startswith("resource-24")
            self.page.click("#more-resources")
            assert len(self.page.texts("#resource-table > tbody")) == 25
            # A version that does not tell.
            mock.update(state=lambda tick: {name: part for name, part in healthy(tick).items() if name != "affinity"})
            self.page.wait_until(lambda: not self.page.find("#objects").is_displayed(), "expected no section")
            self.page.assert_no_errors()

    def a_drain_says_what_still_refers_to_the_resource(self):
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            mock.homed = {"name": HOSTILE_MARKUP, "entries": 12, "last_minute_requests": 3, "other_backends": []}
            self.page.click("[aria-label='sweden, details']")
            self.page.click("[data-field=drain][aria-label='Drain sweden']")
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: self.page.texts("#result-lines li"), "expected the result")
            line = f"12 objects on its resource {HOSTILE_MARKUP}. Requests that refer to them (3 in the last minute) still go there: the resource has no other backend that is not drained."
            assert self.page.texts("#result-lines li") == [line], self.page.texts("#result-lines li")

    def unknown_values_are_never_shown_as_zero(self):
        for name in ("null_values", "missing_values"):
            with MockAdminApi(STATES[name]) as mock:
                self.page.set_viewport()
                self.page.open(mock.url, "#backends:not([hidden])")
                self.page.wait_until(lambda: self.page.text("#no-trouble") != "Loading …", "expected the recent trouble")
                values = self.page.texts("#figures dd") + self.page.texts("#backend-table .number") + self.page.texts("#client-rows td") + self.page.texts("#sink-table tbody .number") + self.page.texts("#resource-table tbody .number") + self.page.texts("#cost-table tbody .number")
                heads = ("In flight", "Attempts", "429", "Failed", "p50", "p95", "Waiting", "Oldest", "Dropped", "Dead letters", "Objects", "Requests", "Found there", "Not there", "Read lag", "Today", "This month", "Provisioned", "Without cost")
                values = [value for value in values if value not in heads]
                assert values and set(values) == {"–"}, values
                page_text = " ".join(self.page.texts("main > section:not(#timeline)"))
                # Labels of columns may contain numbers, values must not.
                page_text = re.sub(r"Show requests|401 403 404 429|\b30\b", "", page_text)
                zero_value = re.search(r"(?<![\d.])0\b.{0,20}", page_text)
                assert not zero_value, page_text[max(0, zero_value.start() - 100) : zero_value.end()]
                assert self.headline() == "unknown", self.headline()

    def markup_in_names_is_shown_as_text(self):
        with MockAdminApi(STATES["hostile_names"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            self.page.wait_until(lambda: self.page.texts("#trouble-table tbody"), "expected the recent trouble")
            self.page.click("#more-problems")
            self.page.evaluate("void document.querySelectorAll('.expand').forEach(button => button.click())")
            # Markup of every part of the status is on the page, as text.
            everywhere = ["#problems", "#notices", "#backend-table", "#backend-table .details", "#trouble-table", "#trouble-table .details", "#refusal-table", "#pools", "#clients", "#limit-table", "#cost-table", "#cost-note", "#resource-table", "#instance-table", "#instances-note", "#sink-table", "#expiries", "#facts"]
            for part in everywhere:
                assert HOSTILE_MARKUP in self.page.text(part), part
            assert any(HOSTILE_MARKUP in text for text in self.page.evaluate("[...document.querySelectorAll('#trouble-client option')].map(n => n.textContent)"))
            self.page.evaluate("void document.querySelectorAll('[data-tip]').forEach(node => node.dispatchEvent(new PointerEvent('pointerover', {bubbles: true})))")
            assert self.page.evaluate("document.querySelectorAll('img, iframe, object, embed').length") == 0
            assert self.page.evaluate("document.querySelectorAll('script').length") == 1
            own_styles = "'.bar i, .lane i, #tip'"
            assert self.page.evaluate(f"[...document.querySelectorAll('*')].filter(n => [...n.attributes].some(a => /^on/.test(a.name) || a.name === 'style' && !n.matches({own_styles}))).length") == 0
            self.page.click("[data-field=drain][aria-label='Drain a/../b?c#d']")
            assert self.page.text("#confirm-title") == "Drain a/../b?c#d?"
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: mock.posts, "expected a POST")
            assert mock.posts[0][0] == "/api/backends/a%2F..%2Fb%3Fc%23d/drain", mock.posts
            self.page.assert_no_errors()

    def the_content_security_policy_blocks_inline_scripts(self):
        """An injected inline script does not run, and its violation is recorded."""
        with MockAdminApi(healthy) as mock:
            self.page.open(mock.url)
            inline = "document.createElement('script')"
            self.page.evaluate(f"(s => {{ s.textContent = 'window.ran = 1'; document.head.append(s) }})({inline})")
            assert self.page.evaluate("window.ran ?? null") is None
            self.page.wait_until(lambda: any("securitypolicyviolation" in page_text for page_text in self.page.take_errors()), "expected a recorded policy violation")

    def the_token_is_requested_and_kept_only_in_memory(self):
        with MockAdminApi(healthy, token="the right one") as mock:
            self.page.set_viewport()
            self.page.open(mock.url, "#token:not([hidden])")
            assert self.page.evaluate("document.activeElement.id") == "token-input"
            self.assert_accessible("the form for the token")
            self.page.find("#token-input").send_keys("a wrong one\n")
            self.page.wait_until(lambda: "not accepted" in self.page.text("#token-reason"), "expected the wrong token to be rejected")
            assert self.page.evaluate("document.getElementById('timeline').hidden")
            self.page.find("#token-input").send_keys("the right one\n")
            self.page.wait_until(lambda: self.headline() == "healthy", "expected the status after the right token")
            assert not self.page.find("#token").is_displayed()
            stored_values = self.page.evaluate("JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, location.href, document.getElementById('token-input').value])")
            assert json.loads(stored_values) == [0, 0, "", mock.url, ""], stored_values
            self.page.click("#reload")
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: "reloaded" in self.page.text("#result-text"), "expected the result of the reload")
            assert mock.posts[0][1]["authorization"] == "Bearer the right one"
            # The token changes while the page is open: it asks for the new one and marks its data as stale.
            mock.update(token="a new one", mode="away")
            self.page.wait_until(lambda: mock.streams == 0, "expected the event stream to end")
            mock.update(mode="live")
            self.page.wait_until(lambda: self.page.find("#token").is_displayed(), "expected the page to ask for the token again")
            assert self.page.find("#stale").is_displayed()
            self.page.find("#token-input").send_keys("a new one\n")
            self.page.wait_until(lambda: self.headline() == "healthy", "expected the status after the new token")
            assert not self.page.find("#stale").is_displayed()

    def a_lost_connection_is_marked_as_stale(self):
        with MockAdminApi(STATES["problems"], interval=0.3) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert not self.page.find("#stale").is_displayed()
            mock.update(mode="away")
            self.page.wait_until(lambda: self.page.find("#stale").is_displayed(), "expected the data to be marked as stale")
            assert re.search(r"Stale. No update since \d\d:\d\d:\d\d \(\d+ s ago\): .+", self.page.text("#stale")), self.page.text("#stale")
            assert "stale: no update since" in self.page.announcement(), self.page.announcement()
            assert self.headline() == "unknown" and "since" in self.page.text("#since"), self.page.text("#summary")
            assert self.page.driver.title.startswith("? unknown since")
            assert self.page.text("#live") == "Disconnected"
            seconds_left = self.page.text("#backend-table tbody:nth-of-type(2) [data-field=left]")
            assert re.fullmatch(r"until \d\d:\d\d:\d\d", seconds_left), seconds_left
            # Filtering does not make the data look live.
            self.page.find("#filter").send_keys("west")
            assert self.headline() == "unknown"
            assert "left" not in " ".join(self.page.texts(".left"))
            self.page.find("#filter").clear()
            self.assert_accessible("stale")
            self.page.wait_until(lambda: "Retrying in" in self.page.text("#stale"), "expected the time of the next attempt")
            mock.update(mode="live")
            self.page.wait_until(lambda: not self.page.find("#stale").is_displayed(), "expected the page to recover")
            self.page.wait_until(lambda: self.page.announcement().startswith("Connected again"), "expected the recovery to be announced")
            assert self.headline() == "failing"
            self.page.assert_no_errors()

    def a_silent_connection_is_marked_as_stale(self):
        with MockAdminApi(healthy, interval=0.3) as mock:
            self.page.open(mock.url)
            mock.update(mode="silent")
            self.page.wait_until(lambda: self.page.find("#stale").is_displayed(), "expected the silent connection to be marked as stale", LONG_TIMEOUT)
            assert mock.streams == 1
            mock.update(mode="live")
            self.page.wait_until(lambda: not self.page.find("#stale").is_displayed(), "expected the page to recover")

    def reconnects_wait_longer_each_time(self):
        with MockAdminApi(healthy, interval=0.3) as mock:
            self.page.open(mock.url)
            mock.event_request_times.clear()
            mock.update(mode="away")
            self.page.wait_until(lambda: len(mock.event_request_times) >= 4, "expected more attempts to connect", LONG_TIMEOUT)
            pauses = [after - before for before, after in zip(mock.event_request_times, mock.event_request_times[1:])]
            assert all(later > 1.5 * earlier for earlier, later in zip(pauses, pauses[1:])), pauses
            mock.update(mode="live")
            before = len(mock.event_request_times)
            self.page.click("#retry")
            self.page.wait_until(lambda: not self.page.find("#stale").is_displayed(), "expected an attempt when the button is pressed")
            assert len(mock.event_request_times) == before + 1

    def draining_asks_for_confirmation(self):
        with MockAdminApi(healthy, interval=0.5) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            button = "[data-field=drain][aria-label$='rain eastus-ptu']"
            self.page.find("[aria-label='eastus-ptu, details']").send_keys("\n")
            self.page.find(button).send_keys("\n")
            assert self.page.text("#confirm-title") == "Drain eastus-ptu?"
            assert self.page.evaluate("document.activeElement.id") == "confirm-no", "expected the focus on the cancel button"
            assert not self.page.find("#confirm-warning").is_displayed()
            self.assert_accessible("the dialog")
            self.page.find("#confirm-no").send_keys("\n")
            assert not self.page.find("#confirm-dialog").is_displayed() and mock.posts == []
            assert self.page.evaluate("document.activeElement.dataset.field") == "drain", "expected the focus to return to the drain button"
            # An error is shown in the dialog, which stays open.
            mock.refusal = (404, "no backend has this name")
            self.page.click(button)
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: self.page.text("#confirm-error") == "Not done: no backend has this name", "expected the error in the dialog")
            mock.refusal = None
            mock.posts.clear()
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: not self.page.find("#confirm-dialog").is_displayed(), "expected the dialog to close")
            path, headers = mock.posts[0]
            headers = {name.lower(): value for name, value in headers.items()}
            assert path == "/api/backends/eastus-ptu/drain" and headers["x-aoai-lb-admin"] == "1", mock.posts
            assert len(mock.posts) == 1 and "authorization" not in headers, mock.posts
            assert self.page.text("#result-text") == "eastus-ptu is drained. 3 requests in flight."
            self.page.wait_until(lambda: self.page.text(button) == "Undrain …", "expected the button to change to undrain")
            assert "■ drained eastus-ptu" in self.row_of("eastus-ptu")
            self.page.click("#result-close")
            self.page.click(button)
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: self.page.text(button) == "Drain …", "expected the backend to be undrained")
            assert mock.posts[1][0] == "/api/backends/eastus-ptu/undrain"
            # Draining the last backend of a pool shows a warning.
            self.page.click("#result-close")
            self.page.click("[aria-label='westus, details']")
            self.page.click("[data-field=drain][aria-label='Drain westus']")
            assert "gpt-4o-mini" in self.page.text("#confirm-warning"), self.page.text("#confirm-warning")
            self.page.find("#confirm-no").send_keys("\ue00c")
            assert not self.page.find("#confirm-dialog").is_displayed()

    def a_reload_shows_its_result(self):
        with MockAdminApi(healthy) as mock:
            self.page.open(mock.url)
            self.page.click("#reload")
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: self.page.text("#result-text") == "The configuration was reloaded: version 4.", "expected the result")
            changes = ["backends: added france, changed westus (weight)", f"settings: {HOSTILE_MARKUP}", "takes effect with an upgrade: server.threads", "warning: a made-up warning"]
            assert self.page.texts("#result-lines li") == changes, self.page.texts("#result-lines li")
            self.assert_accessible("the result")
            assert mock.posts[0][0] == "/api/reload"
            self.page.click("#result-close")
            assert not self.page.find("#result").is_displayed()
            mock.refusal = (400, "reload failed, the previous configuration stays active: backends: must not be empty")
            self.page.click("#reload")
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: "backends: must not be empty" in self.page.text("#confirm-error"), "expected the error in the dialog")
            self.page.click("#confirm-no")

    def only_changes_are_announced_to_screen_readers(self):
        with MockAdminApi(healthy, interval=0.2) as mock:
            self.page.open(mock.url)
            self.page.wait_until(lambda: self.page.announcement() != "", "expected the first announcement")
            self.page.evaluate("void (window.announced = [], new MutationObserver(() => window.announced.push(document.getElementById('announcer').textContent))"
                         ".observe(document.getElementById('announcer'), {childList: true, characterData: true, subtree: true}))")
            before = mock.ticks
            # Long enough for the next change to be announced at once.
            self.page.wait_until(lambda: mock.ticks > before + 25, "expected more events", LONG_TIMEOUT)
            assert self.page.evaluate("window.announced") == [], self.page.evaluate("window.announced")

            def changed(tick):
                document = healthy(tick)
                # Throttling comes and goes, and is not announced.
                document["backends"][2] |= unavailability("cooling", 0, 30, "answered 429, or sent retry-after")
                document["backends"][1] |= unavailability("breaker_open", 0, 30, "failed too often")
                document["service"] = service("degraded", ("degraded", "westus", "breaker_open: failed too often"))
                return document

            mock.update(state=changed)
            self.page.wait_until(lambda: self.page.evaluate("window.announced"), "expected the change to be announced")
            assert self.page.evaluate("window.announced") == ["The service is degraded. westus: breaker_open. westus: breaker_open: failed too often"]

    def dark_mode_and_reduced_motion_are_respected(self):
        with MockAdminApi(healthy) as mock:
            for dark in (False, True):
                self.page.set_viewport(dark=dark)
                self.page.open(mock.url)
                light = self.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(n => n > 128)")
                assert light != dark
            moving = "getComputedStyle(document.querySelector('.bar i')).transitionDuration"
            self.page.set_viewport(reduced_motion=True)
            assert self.page.evaluate(moving) == "0s"
            self.page.set_viewport(reduced_motion=False)
            assert self.page.evaluate(moving) != "0s"

    def the_page_can_be_used_with_the_keyboard(self):
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            focused = []
            self.page.wait_until(lambda: self.page.texts("#trouble-table tbody"), "expected the recent trouble")
            for _ in range(80):
                self.page.driver.switch_to.active_element.send_keys("\ue004")
                focused.append(self.page.evaluate("[document.activeElement.id || document.activeElement.dataset.tip || document.activeElement.className || document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle, document.getElementById('tip').hidden]"))
                if focused[-1][0] == "reload":
                    break
            names = [name for name, *_ in focused]
            assert focused[0][0] in ("skip", "Skip to the status"), names
            for name in ("moment", "only-unhealthy", "filter", "p95", "expand", "trouble-client", "trouble-status", "trouble-id", "sort", "reload"):
                assert name in names, names
            assert all(outline != "none" for _, outline, _ in focused), focused
            # Every number has its meaning at the head of its column.
            assert all(not is_hidden for name, _, is_hidden in focused if name in ("figure", "share", "p95", "backlog", "duration")), focused

    def plots_have_axes_and_labels(self):
        with MockAdminApi(STATES["problems"], interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            labels = self.page.evaluate("[...document.querySelectorAll('#plots svg[role=img]')].map(svg => svg.getAttribute('aria-label'))")
            assert len(labels) == 5, labels
            assert re.fullmatch(r"Requests per second, last 15 minutes\. all: now [\d.]+, highest [\d.]+ at \d\d:\d\d:\d\d\. 429: now .+\. failed: now .+\.", labels[0]), labels[0]
            axis = self.page.evaluate("[...document.querySelectorAll('#plots figure:first-child svg[role=img] text')].map(n => n.textContent)")
            assert [label for label in axis if label] == ["0", "20", "40", "−15 min", "−10 min", "−5 min", "now"], axis
            # Unknown values make gaps in the curve.
            assert self.page.evaluate("document.querySelector('#plots figure:nth-child(2) svg[role=img] .curve').getAttribute('d').split('M').length") > 3

    def all_charts_show_the_same_moment(self):
        from selenium.webdriver import ActionChains

        moments = lambda: self.page.evaluate("[...document.querySelectorAll('#plots .moment-label')].map(n => n.textContent)")
        cursors = lambda: self.page.evaluate("[...document.querySelectorAll('#plots .cursor')].map(n => n.getAttribute('d'))")
        with MockAdminApi(STATES["problems"], interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            plot = self.page.find("#plots figure:nth-child(3) > svg")
            ActionChains(self.page.driver).move_to_element(plot).perform()
            self.page.wait_until(lambda: re.fullmatch(r"\d\d:\d\d:\d\d", moments()[0]), "expected the time under the pointer")
            assert len(moments()) == 5 and len(set(moments())) == 1 and all(cursors()), (moments(), cursors())
            assert self.page.text("#moment-text").startswith(f"{moments()[0]}, −"), self.page.text("#moment-text")
            # Each chart tells its values of that moment.
            index = self.page.evaluate("momentIndex(timelineOf(latest), sizeOf(timelineOf(latest)))")
            flight = self.page.evaluate("document.querySelector('#plots figure:nth-child(4) b').textContent")
            assert flight == str(mock.current_status()["timeline"]["in_flight"][index]), (flight, index)
            ActionChains(self.page.driver).move_to_element(self.page.find("#headline-text")).perform()
            self.page.wait_until(lambda: self.page.text("#moment-text") == "now" and not any(cursors()), "expected the moment to disappear")
            # The slider does the same with the keyboard, and keeps the moment while time goes on.
            self.page.find("#moment").send_keys("\ue012" * 3)
            self.page.wait_until(lambda: len(set(moments())) == 1 and moments()[0], "expected the moment of the slider")
            kept = moments()[0]
            before = int(self.page.find("#moment").get_attribute("value"))
            later = STATES["problems"]()
            later["timeline"]["until"] = seconds_ago(-10)
            mock.update(state=later)
            self.page.wait_until(lambda: int(self.page.find("#moment").get_attribute("value")) == before - 2, "expected the moment to move with time")
            assert abs(in_seconds(moments()[0]) - in_seconds(kept)) <= 5, (moments(), kept)
            assert self.page.find("#moment").get_attribute("aria-valuetext").startswith(moments()[0])
            self.page.find("#moment").send_keys("\ue010")
            self.page.wait_until(lambda: self.page.text("#moment-text") == "now", "expected the present again")

    def a_hundred_backends_render_quickly(self):
        with MockAdminApi(STATES["hundred_backends"], interval=0.25) as mock:
            self.page.set_viewport(1440)
            self.page.open(mock.url)
            assert len(self.page.texts("#backend-table > tbody")) == 100
            assert len(self.page.texts("#pool-rows > li")) == 6
            self.page.click("#more-pools")
            assert len(self.page.texts("#pool-rows > li")) == 50
            self.page.evaluate("void [...document.querySelectorAll('#backend-table > tbody, #pool-rows > li, #client-rows > tr')].forEach(n => n.old = true)")
            self.page.run_devtools_command("Performance.enable")

            def page_metrics():
                # "Nodes" counts nodes that are gone, too, until they are collected.
                self.page.run_devtools_command("HeapProfiler.collectGarbage")
                metrics = self.page.run_devtools_command("Performance.getMetrics")["metrics"]
                return {metric["name"]: metric["value"] for metric in metrics}

            settled_requests = lambda: self.page.evaluate("latest.settled")
            before, first = page_metrics(), settled_requests()
            self.page.wait_until(lambda: settled_requests() >= first + 31 * 12, "expected more events", LONG_TIMEOUT)
            after, ticks = page_metrics(), (settled_requests() - first) / 31
            names = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
            spent = {name: 1000 * (after[name] - before[name]) / ticks for name in names}
            self.note = ", ".join(f"{name.removesuffix('Duration').lower()} {ms:.1f} ms" for name, ms in spent.items()) + " per tick"
            # An event arrives every two seconds; even a slow machine should not spend a tenth of that.
            assert spent["TaskDuration"] < 200, spent
            assert after["Nodes"] < before["Nodes"] * 1.2, "expected nodes to be reused"
            assert self.page.evaluate("[...document.querySelectorAll('#backend-table > tbody, #pool-rows > li, #client-rows > tr')].every(n => n.old)")
            self.page.click("#only-unhealthy")
            assert len(self.page.texts("#backend-table > tbody")) == 4
            assert self.page.text("#shown-count") == "4 of 100"
            self.page.click("#only-unhealthy")
            self.page.find("#filter").send_keys("REGION-04")
            assert len(self.page.texts("#backend-table > tbody")) == 10
            self.page.find("#filter").clear()
            self.page.find("#filter").send_keys("no such thing")
            assert self.page.text("#no-backends") == "No backend matches the filter."

    def clients_are_sorted_and_collapsed(self):
        with MockAdminApi(STATES["hundred_backends"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert len(self.page.texts("#client-rows > tr")) == 5
            self.page.click("#more-clients")
            rows = self.page.texts("#client-rows > tr")
            assert len(rows) == 60 and rows[0].startswith("client-000"), rows[:2]
            self.page.evaluate("void (document.getElementById('sort').value = 'name', document.getElementById('sort').dispatchEvent(new Event('change')))")
            names = self.page.texts("#client-rows > tr th")
            assert names == sorted(names), names
