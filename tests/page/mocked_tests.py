"""Tests of the status page against made-up states of the admin API."""

import json
import re

from browser import LONG_TIMEOUT
from mock import HOSTILE_MARKUP, STATES, MockAdminApi, healthy, unavailability


class MockedStateTests:
    """Tests with made-up states of the admin API."""

    def __init__(self, page, axe):
        self.page, self.axe = page, axe

    def assert_accessible(self, where):
        """axe-core finds no violation. It is injected by the debugger, so that the policy of the page need not allow it."""
        self.page.run_devtools_command("Runtime.evaluate", expression=self.axe)
        find_program = self.page.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations'],"
            " runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
            ".then(found => done(found.violations.map(v => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3)"
            ".map(n => n.html.slice(0, 150) + ' ' + n.failureSummary).join(' | ')}`)), problem => done([String(problem)]))"
        )
        assert find_program == [], f"{where}: " + "\n".join(find_program)

    def assert_no_horizontal_scroll(self, where):
        """The content is not wider than the window."""
        content_width, window_width = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert content_width <= window_width, f"{where}: {content_width} px in a window of {window_width}"

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
                    if name == "hundred_backends" and dark:
                        continue
                    self.page.set_viewport(width, dark=dark)
                    self.page.open(mock.url, "#backends:not([hidden])")
                    self.assert_accessible(f"{name}, {'dark' if dark else 'light'}")

    def a_healthy_balancer_is_summarized_at_the_top(self):
        with MockAdminApi(healthy) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert self.page.text("#headline-text") == "All 3 backends are healthy"
            assert "All 3 backends are healthy" in self.page.driver.title
            assert self.page.texts("#issues li") == []
            rows = self.page.texts("#backend-rows > tr")
            assert len(rows) == 3, rows
            for expected_text in ("eastus-ptu", "healthy", "41 %", "83 % utilized", "tier 1, weight 2", "Drain"):
                assert expected_text in rows[0], (expected_text, rows[0])
            assert "168K of 240K tokens" in rows[1], rows[1]
            pools = self.page.texts("#pool-rows > li")
            assert "all healthy" in pools[0] and "as gpt-4o-ptu" in pools[0] and "×2" in pools[0], pools
            assert "Calls that name no deployment" in pools[2], pools
            clients = self.page.texts("#client-rows > tr")
            assert "team-a" in clients[0] and "12,000,000" in clients[0] and "91,000" in clients[0], clients
            assert self.page.evaluate("document.querySelectorAll('main h2').length") == 5
            assert self.page.evaluate("document.querySelectorAll('caption').length") == 2
            assert self.page.announcement().startswith("All 3 backends are healthy"), self.page.announcement()

    def problems_are_listed_with_their_reason_and_remaining_time(self):
        with MockAdminApi(STATES["problems"], interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert self.page.text("#headline-text") == "All backends of o3 are unavailable"
            assert self.page.evaluate("document.getElementById('overview').dataset.level") == "bad"
            issues = "\n".join(self.page.texts("#issues li"))
            for expected_text in ("breaker open", "failed too often", "has no credential yet", "gpt-4o cooling down", "images not permitted"):
                assert expected_text in issues, (expected_text, issues)
            for expected_text in ("drained by the operator", "last reload failed", "must be at least 1", "listeners[0].address"):
                assert expected_text in issues, (expected_text, issues)
            pools = self.page.texts("#pool-rows > li")
            assert "1 of 3 healthy, from tier 2" in pools[0] and "all unavailable" in pools[1], pools
            # No event arrives now, so the countdown must run on the clock of the page.
            seconds_left = lambda: int(re.search(r"(\d+) s left", self.page.texts("#backend-rows > tr")[0])[1])
            before = seconds_left()
            assert 10 < before <= 18
            self.page.wait_until(lambda: seconds_left() < before, "expected the countdown to count down")
            # Unavailable deployments come first; the others are shown on request.
            assert len(self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")) == 3
            assert "cooling" in self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")[0]
            self.page.click("#backend-rows > tr:nth-child(2) [data-field=all]")
            assert len(self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")) == 8

    def a_shutdown_is_shown(self):
        with MockAdminApi(STATES["stopping"]) as mock:
            self.page.open(mock.url)
            assert self.page.text("#headline-text") == "Stopping: 12 requests still in flight"

    def unknown_values_are_never_shown_as_zero(self):
        for name in ("null_values", "missing_values"):
            with MockAdminApi(STATES[name]) as mock:
                self.page.set_viewport()
                self.page.open(mock.url, "#backends:not([hidden])")
                values = self.page.texts("#figures dd") + self.page.texts("#backend-rows dd") + self.page.texts("#client-rows td")
                assert values and set(values) == {"–"}, values
                page_text = " ".join(self.page.texts("main > section:not(#timeline)"))
                # Labels of columns may contain numbers, values must not.
                zero_value = re.search(r"(?<![\d.])0\b.{0,20}", page_text)
                assert not zero_value, zero_value
                assert "healthy" not in self.page.text("#headline-text"), self.page.text("#headline-text")

    def markup_in_names_is_shown_as_text(self):
        with MockAdminApi(STATES["hostile_names"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert f"{HOSTILE_MARKUP}eastus-ptu" in self.page.texts("#backend-rows > tr")[0]
            assert self.page.evaluate("document.querySelectorAll('img, iframe, object, embed').length") == 0
            assert self.page.evaluate("document.querySelectorAll('script').length") == 1
            assert self.page.evaluate("[...document.querySelectorAll('*')].filter(n => [...n.attributes].some(a => /^on/.test(a.name) || a.name === 'style' && !n.matches('.bar i'))).length") == 0
            self.page.click("#backend-rows > tr:last-child [data-field=drain]")
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
            self.page.wait_until(lambda: "healthy" in self.page.text("#headline-text"), "expected the status after the right token")
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
            self.page.wait_until(lambda: "healthy" in self.page.text("#headline-text"), "expected the status after the new token")
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
            assert self.page.text("#headline-text").startswith("Unknown since"), self.page.text("#headline-text")
            assert self.page.driver.title.startswith("? Unknown since")
            assert self.page.text("#live") == "Disconnected"
            seconds_left = self.page.text("#backend-rows > tr [data-field=left]")
            assert re.fullmatch(r"until \d\d:\d\d:\d\d", seconds_left), seconds_left
            # Filtering does not make the data look live.
            self.page.find("#filter").send_keys("west")
            assert self.page.text("#headline-text").startswith("Unknown since")
            assert "left" not in " ".join(self.page.texts(".left"))
            self.page.find("#filter").clear()
            self.assert_accessible("stale")
            self.page.wait_until(lambda: "Retrying in" in self.page.text("#stale"), "expected the time of the next attempt")
            mock.update(mode="live")
            self.page.wait_until(lambda: not self.page.find("#stale").is_displayed(), "expected the page to recover")
            self.page.wait_until(lambda: self.page.announcement().startswith("Connected again"), "expected the recovery to be announced")
            assert self.page.text("#headline-text") == "All backends of o3 are unavailable"
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
            button = "#backend-rows > tr:first-child [data-field=drain]"
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
            assert self.page.text("#headline-text") == "1 of 3 backends is unavailable: eastus-ptu (drained)"
            self.page.click(button)
            self.page.click("#confirm-yes")
            self.page.wait_until(lambda: self.page.text(button) == "Drain …", "expected the backend to be undrained")
            assert mock.posts[1][0] == "/api/backends/eastus-ptu/undrain"
            # Draining the last backend of a pool shows a warning.
            self.page.click("#backend-rows > tr:nth-child(2) [data-field=drain]")
            assert "gpt-4o-mini" in self.page.text("#confirm-warning"), self.page.text("#confirm-warning")
            self.page.find("#confirm-no").send_keys("\ue00c")
            assert not self.page.find("#confirm-dialog").is_displayed()

    def a_reload_shows_its_result(self):
        with MockAdminApi(healthy) as mock:
            self.page.open(mock.url)
            self.page.click("#reload")
            self.page.click("#confirm-yes")
            expected = "The configuration was reloaded: version 4. Warnings: a made-up warning."
            self.page.wait_until(lambda: self.page.text("#result-text") == expected, "expected the result")
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
                document["backends"][1] |= unavailability("breaker_open", 0, 30, "failed too often")
                return document

            mock.update(state=changed)
            self.page.wait_until(lambda: self.page.evaluate("window.announced"), "expected the change to be announced")
            assert self.page.evaluate("window.announced") == ["westus: breaker open. 1 of 3 backends is unavailable: westus (breaker open)"]

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
            for _ in range(25):
                self.page.driver.switch_to.active_element.send_keys("\ue004")
                focused.append(self.page.evaluate("[document.activeElement.id || document.activeElement.dataset.field || document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"))
                if focused[-1][0] == "reload":
                    break
            names = [name for name, _ in focused]
            assert names[0] == "Skip to the status", names
            for name in ("only-unhealthy", "filter", "drain", "sort", "reload"):
                assert name in names, names
            assert all(outline != "none" for _, outline in focused), focused

    def plots_have_axes_and_labels(self):
        with MockAdminApi(STATES["problems"], interval=60) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            labels = self.page.evaluate("[...document.querySelectorAll('#plots svg[role=img]')].map(svg => svg.getAttribute('aria-label'))")
            assert len(labels) == 5, labels
            assert re.fullmatch(r"Requests per second, last 15 minutes\. all: now [\d.]+, highest [\d.]+ at \d\d:\d\d:\d\d\. 429: now .+\. failed: now .+\.", labels[0]), labels[0]
            axis = self.page.evaluate("[...document.querySelectorAll('#plots figure:first-child svg[role=img] text')].map(n => n.textContent)")
            assert axis == ["0", "20", "40", "−15 min", "−10 min", "−5 min", "now"], axis
            # Unknown values make gaps in the curve.
            assert self.page.evaluate("document.querySelector('#plots figure:nth-child(2) svg[role=img] .curve').getAttribute('d').split('M').length") > 3
            plot = self.page.find("#plots figure:first-child svg[role=img]")
            from selenium.webdriver import ActionChains

            ActionChains(self.page.driver).move_to_element(plot).perform()
            self.page.wait_until(lambda: re.fullmatch(r"Requests per second, \d\d:\d\d:\d\d", self.page.text("#plots figure:first-child h3")), "expected the time under the pointer")
            ActionChains(self.page.driver).move_to_element(self.page.find("#headline-text")).perform()
            self.page.wait_until(lambda: self.page.text("#plots figure:first-child h3") == "Requests per second", "expected the time to disappear")

    def a_hundred_backends_render_quickly(self):
        with MockAdminApi(STATES["hundred_backends"], interval=0.25) as mock:
            self.page.set_viewport(1440)
            self.page.open(mock.url)
            assert len(self.page.texts("#backend-rows > tr")) == 100
            assert len(self.page.texts("#pool-rows > li")) == 50
            self.page.evaluate("void [...document.querySelectorAll('#backend-rows > tr, #pool-rows > li, #client-rows > tr')].forEach(n => n.old = true)")
            self.page.run_devtools_command("Performance.enable")

            def page_metrics():
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
            assert self.page.evaluate("[...document.querySelectorAll('#backend-rows > tr, #pool-rows > li, #client-rows > tr')].every(n => n.old)")
            self.page.click("#only-unhealthy")
            assert len(self.page.texts("#backend-rows > tr")) == 4
            assert self.page.text("#shown-count") == "4 of 100"
            self.page.click("#only-unhealthy")
            self.page.find("#filter").send_keys("REGION-04")
            assert len(self.page.texts("#backend-rows > tr")) == 10
            self.page.find("#filter").clear()
            self.page.find("#filter").send_keys("no such thing")
            assert self.page.text("#no-backends") == "No backend matches the filter."

    def clients_are_sorted_and_collapsed(self):
        with MockAdminApi(STATES["hundred_backends"]) as mock:
            self.page.set_viewport()
            self.page.open(mock.url)
            assert len(self.page.texts("#client-rows > tr")) == 20
            self.page.click("#more-clients")
            rows = self.page.texts("#client-rows > tr")
            assert len(rows) == 60 and rows[0].startswith("client-000"), rows[:2]
            self.page.evaluate("void (document.getElementById('sort').value = 'name', document.getElementById('sort').dispatchEvent(new Event('change')))")
            names = self.page.texts("#client-rows > tr th")
            assert names == sorted(names), names
