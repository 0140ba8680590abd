"""The status page in a real browser: with made-up states, and with the running balancer.

    python3 tests/page/run.py [BINARY]

Without BINARY only the made-up states. Needs Debian's packages chromium and chromium-driver, Python 3.11
or later and Node's npm. One line per test; the last line counts them. `-k WORD` chooses tests.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.dont_write_bytecode = True

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "sdk"), str(HERE)]

import environments
import stack
from mock import HOSTILE, STATES, Mock, calm, policy, resting
from stack import Failed, Stack, await_condition

AXE = "4.14.1"
# For what should happen at once, and for what the page's own clock decides.
SOON, LATER = 15.0, 40.0
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Before the page's own script: whatever goes wrong in the page is kept, and a dialog would be noticed.
WATCH = """
window.complaints = [];
for (const kind of ['error', 'unhandledrejection', 'securitypolicyviolation'])
  addEventListener(kind, event => complaints.push(`${kind}: ${event.message ?? event.reason ?? event.violatedDirective}`), true);
for (const name of ['alert', 'confirm', 'prompt']) window[name] = text => complaints.push(`${name}: ${text}`);
"""


class Page:
    """A browser with the status page."""

    def __init__(self, folder):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = found("chromium")
        for flag in [*FLAGS, f"--user-data-dir={folder}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(found("chromedriver")))
        self.tell("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def tell(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def js(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def look(self, width=1280, height=900, dark=False, calm=True):
        self.tell("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if calm else "no-preference"
        self.tell("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()])

    def open(self, url, shows="main > section:not([hidden]) #plots path[d^='M']"):
        self.complaints()
        self.driver.get(url)
        self.wait(lambda: self.js("document.querySelector(arguments[0]) !== null", shows), f"the page shows no {shows}")

    def wait(self, holds, otherwise, seconds=SOON):
        try:
            await_condition(holds, seconds, otherwise)
        except Failed as failure:
            raise AssertionError(f"{failure}; the page says\n{self.text('main')[:600]}") from None

    def text(self, selector):
        return self.js("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector):
        return self.js("[...document.querySelectorAll(arguments[0])].filter(n => n.checkVisibility()).map(n => n.innerText)", selector)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def click(self, selector):
        self.find(selector).click()

    def voice(self):
        return self.js("document.getElementById('voice').textContent")

    def has_no_complaints(self):
        complaints = self.complaints()
        assert complaints == [], complaints

    def complaints(self):
        """What went wrong since the last call, but for answers that a test wants."""
        with contextlib.suppress(Exception):
            seen = self.js("window.complaints?.splice(0) ?? []")
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        return seen + [message for message in logged if "Failed to load resource" not in message]


class Tests:
    """With made-up states. Each is named by its method."""

    def __init__(self, page, axe):
        self.page, self.axe = page, axe

    def accessible(self, where):
        """axe-core finds nothing; it is given to the page past its policy, which it must not weaken."""
        self.page.tell("Runtime.evaluate", expression=self.axe)
        found = self.page.driver.execute_async_script(
            "const done = arguments[0]; axe.run(document, {resultTypes: ['violations'],"
            " runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']})"
            ".then(found => done(found.violations.map(v => `${v.id} (${v.impact}): ${v.nodes.slice(0, 3)"
            ".map(n => n.html.slice(0, 150) + ' ' + n.failureSummary).join(' | ')}`)), problem => done([String(problem)]))"
        )
        assert found == [], f"{where}: " + "\n".join(found)

    def fits(self, where):
        """Nothing makes the page scroll sideways."""
        wide, seen = self.page.js("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide <= seen, f"{where}: {wide} px in a window of {seen}"

    def every_state_shows_without_a_complaint_and_fits(self):
        for name, state in STATES.items():
            with Mock(state) as mock:
                for width in (320, 375, 800, 1280, 1900):
                    self.page.look(width)
                    if width == 320:
                        self.page.open(mock.url, "#backends:not([hidden])")
                    self.page.wait(lambda: self.page.js("innerWidth") == width, f"not {width} wide")
                    self.fits(f"{name} at {width}")
                bad = re.search(r"\b(NaN|undefined|null|Infinity|Invalid Date)\b|\[object", self.page.text("body"))
                assert not bad, f"{name} says {bad and bad[0]}"
                complaints = self.page.complaints()
                assert complaints == [], f"{name}: {complaints}"

    def every_state_is_accessible_in_light_and_dark(self):
        for name, state in STATES.items():
            with Mock(state) as mock:
                for dark, width in ((False, 1280), (True, 360)):
                    if name == "many" and dark:
                        continue
                    self.page.look(width, dark=dark)
                    self.page.open(mock.url, "#backends:not([hidden])")
                    self.accessible(f"{name}, {'dark' if dark else 'light'}")

    def calm_is_told_in_one_glance(self):
        with Mock(calm) as mock:
            self.page.look()
            self.page.open(mock.url)
            assert self.page.text("#head") == "All is well: all 3 backends serve"
            assert "All is well" in self.page.driver.title
            assert self.page.texts("#issues li") == []
            rows = self.page.texts("#backend-rows > tr")
            assert len(rows) == 3, rows
            for told in ("eastus-ptu", "serves", "41 %", "83 % utilized", "tier 1, weight 2", "Drain"):
                assert told in rows[0], (told, rows[0])
            assert "168K of 240K tokens" in rows[1], rows[1]
            pools = self.page.texts("#pool-rows > li")
            assert "all serve" in pools[0] and "as gpt-4o-ptu" in pools[0] and "×2" in pools[0], pools
            assert "Calls that name no deployment" in pools[2], pools
            clients = self.page.texts("#client-rows > tr")
            assert "team-a" in clients[0] and "12,000,000" in clients[0] and "91,000" in clients[0], clients
            assert self.page.js("document.querySelectorAll('main h2').length") == 5
            assert self.page.js("document.querySelectorAll('caption').length") == 2
            assert self.page.voice().startswith("All is well"), self.page.voice()

    def trouble_says_what_is_wrong_and_for_how_long(self):
        with Mock(STATES["trouble"], interval=60) as mock:
            self.page.look()
            self.page.open(mock.url)
            assert self.page.text("#head") == "All backends of o3 rest"
            assert self.page.js("document.getElementById('now').dataset.level") == "bad"
            issues = "\n".join(self.page.texts("#issues li"))
            for told in ("breaker open", "failed too often", "has no credential yet", "gpt-4o cooling", "images not permitted"):
                assert told in issues, (told, issues)
            for told in ("drained by the operator", "reload was refused", "must be at least 1", "listeners[0].address"):
                assert told in issues, (told, issues)
            pools = self.page.texts("#pool-rows > li")
            assert "1 of 3 serves, from tier 2" in pools[0] and "all rest" in pools[1], pools
            # Only the clock moves now: nothing new comes from the balancer.
            left = lambda: int(re.search(r"(\d+) s left", self.page.texts("#backend-rows > tr")[0])[1])
            before = left()
            assert 10 < before <= 18
            self.page.wait(lambda: left() < before, "the countdown does not move")
            # What rests comes first among the deployments, and the rest unfolds.
            assert len(self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")) == 3
            assert "cooling" in self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")[0]
            self.page.click("#backend-rows > tr:nth-child(2) [data-f=all]")
            assert len(self.page.texts("#backend-rows > tr:nth-child(2) .quota > li")) == 8

    def a_stop_is_told(self):
        with Mock(STATES["stopping"]) as mock:
            self.page.open(mock.url)
            assert self.page.text("#head") == "Stopping: 12 requests still in flight"

    def unknown_is_never_zero(self):
        for name in ("nulls", "unknown"):
            with Mock(STATES[name]) as mock:
                self.page.look()
                self.page.open(mock.url, "#backends:not([hidden])")
                values = self.page.texts("#figures dd") + self.page.texts("#backend-rows dd") + self.page.texts("#client-rows td")
                assert values and set(values) == {"–"}, values
                said = " ".join(self.page.texts("main > section:not(#timeline)"))
                # The names of columns have numbers; nothing else has.
                zero = re.search(r"(?<![\d.])0\b.{0,20}", said)
                assert not zero, zero
                assert "well" not in self.page.text("#head"), self.page.text("#head")

    def hostile_names_stay_text(self):
        with Mock(STATES["hostile"]) as mock:
            self.page.look()
            self.page.open(mock.url)
            assert f"{HOSTILE}eastus-ptu" in self.page.texts("#backend-rows > tr")[0]
            assert self.page.js("document.querySelectorAll('img, iframe, object, embed').length") == 0
            assert self.page.js("document.querySelectorAll('script').length") == 1
            assert self.page.js("[...document.querySelectorAll('*')].filter(n => [...n.attributes].some(a => /^on/.test(a.name) || a.name === 'style' && !n.matches('.bar i'))).length") == 0
            self.page.click("#backend-rows > tr:last-child [data-f=drain]")
            assert self.page.text("#ask-head") == "Drain a/../b?c#d?"
            self.page.click("#ask-yes")
            self.page.wait(lambda: mock.posts, "nothing is posted")
            assert mock.posts[0][0] == "/api/backends/a%2F..%2Fb%3Fc%23d/drain", mock.posts
            self.page.has_no_complaints()

    def the_policy_holds(self):
        """What the page must not be able to do, it cannot do; and the watch for complaints works."""
        with Mock(calm) as mock:
            self.page.open(mock.url)
            inline = "document.createElement('script')"
            self.page.js(f"(s => {{ s.textContent = 'window.ran = 1'; document.head.append(s) }})({inline})")
            assert self.page.js("window.ran ?? null") is None
            self.page.wait(lambda: any("securitypolicyviolation" in said for said in self.page.complaints()), "no violation is seen")

    def a_token_is_asked_for_and_kept_in_the_page_only(self):
        with Mock(calm, token="the right one") as mock:
            self.page.look()
            self.page.open(mock.url, "#token:not([hidden])")
            assert self.page.js("document.activeElement.id") == "token-input"
            self.accessible("the form for the token")
            self.page.find("#token-input").send_keys("a wrong one\n")
            self.page.wait(lambda: "not accepted" in self.page.text("#token-why"), "a wrong token is accepted")
            assert self.page.js("document.getElementById('timeline').hidden")
            self.page.find("#token-input").send_keys("the right one\n")
            self.page.wait(lambda: "All is well" in self.page.text("#head"), "the right token does not help")
            assert not self.page.find("#token").is_displayed()
            kept = self.page.js("JSON.stringify([localStorage.length, sessionStorage.length, document.cookie, location.href, document.getElementById('token-input').value])")
            assert json.loads(kept) == [0, 0, "", mock.url, ""], kept
            self.page.click("#reload")
            self.page.click("#ask-yes")
            self.page.wait(lambda: "reloaded" in self.page.text("#said-text"), "no result of the reload")
            assert mock.posts[0][1]["authorization"] == "Bearer the right one"
            # A new token while the page is open: it asks again, and says that it is not live.
            mock.change(token="a new one", mode="away")
            self.page.wait(lambda: mock.streams == 0, "the stream goes on")
            mock.change(mode="live")
            self.page.wait(lambda: self.page.find("#token").is_displayed(), "it does not ask again")
            assert self.page.find("#stale").is_displayed()
            self.page.find("#token-input").send_keys("a new one\n")
            self.page.wait(lambda: "All is well" in self.page.text("#head"), "the new token does not help")
            assert not self.page.find("#stale").is_displayed()

    def lost_data_never_looks_live(self):
        with Mock(STATES["trouble"], interval=0.3) as mock:
            self.page.look()
            self.page.open(mock.url)
            assert not self.page.find("#stale").is_displayed()
            mock.change(mode="away")
            self.page.wait(lambda: self.page.find("#stale").is_displayed(), "the loss does not show")
            assert re.search(r"Stale. Nothing new since \d\d:\d\d:\d\d \(\d+ s ago\): .+", self.page.text("#stale")), self.page.text("#stale")
            assert "stale: nothing new since" in self.page.voice(), self.page.voice()
            assert self.page.text("#head").startswith("Unknown since"), self.page.text("#head")
            assert self.page.driver.title.startswith("? Unknown since")
            assert self.page.text("#live") == "Not live"
            left = self.page.text("#backend-rows > tr [data-f=left]")
            assert re.fullmatch(r"until \d\d:\d\d:\d\d", left), left
            # Neither does it when it is filtered or measured anew.
            self.page.find("#filter").send_keys("west")
            assert self.page.text("#head").startswith("Unknown since")
            assert "left" not in " ".join(self.page.texts(".left"))
            self.page.find("#filter").clear()
            self.accessible("stale")
            self.page.wait(lambda: "Next try in" in self.page.text("#stale"), "no next try")
            mock.change(mode="live")
            self.page.wait(lambda: not self.page.find("#stale").is_displayed(), "it does not recover")
            self.page.wait(lambda: self.page.voice().startswith("Live again"), "the recovery is not spoken")
            assert self.page.text("#head") == "All backends of o3 rest"
            self.page.has_no_complaints()

    def a_silent_connection_is_stale_too(self):
        with Mock(calm, interval=0.3) as mock:
            self.page.open(mock.url)
            mock.change(mode="silent")
            self.page.wait(lambda: self.page.find("#stale").is_displayed(), "silence does not show", LATER)
            assert mock.streams == 1
            mock.change(mode="live")
            self.page.wait(lambda: not self.page.find("#stale").is_displayed(), "it does not recover")

    def it_comes_back_with_growing_pauses(self):
        with Mock(calm, interval=0.3) as mock:
            self.page.open(mock.url)
            mock.asked.clear()
            mock.change(mode="away")
            self.page.wait(lambda: len(mock.asked) >= 4, "it does not try again", LATER)
            pauses = [after - before for before, after in zip(mock.asked, mock.asked[1:])]
            assert all(later > 1.5 * earlier for earlier, later in zip(pauses, pauses[1:])), pauses
            mock.change(mode="live")
            before = len(mock.asked)
            self.page.click("#retry")
            self.page.wait(lambda: not self.page.find("#stale").is_displayed(), "it does not try when told")
            assert len(mock.asked) == before + 1

    def draining_is_confirmed_first(self):
        with Mock(calm, interval=0.5) as mock:
            self.page.look()
            self.page.open(mock.url)
            button = "#backend-rows > tr:first-child [data-f=drain]"
            self.page.find(button).send_keys("\n")
            assert self.page.text("#ask-head") == "Drain eastus-ptu?"
            assert self.page.js("document.activeElement.id") == "ask-no", "the harmless button has the focus"
            assert not self.page.find("#ask-warning").is_displayed()
            self.accessible("the dialog")
            self.page.find("#ask-no").send_keys("\n")
            assert not self.page.find("#ask").is_displayed() and mock.posts == []
            assert self.page.js("document.activeElement.dataset.f") == "drain", "the focus comes back"
            # A refusal stays in the dialog.
            mock.refusal = (404, "there is no backend of this name")
            self.page.click(button)
            self.page.click("#ask-yes")
            self.page.wait(lambda: self.page.text("#ask-problem") == "Not done: there is no backend of this name", "no refusal")
            mock.refusal = None
            mock.posts.clear()
            self.page.click("#ask-yes")
            self.page.wait(lambda: not self.page.find("#ask").is_displayed(), "the dialog stays")
            path, headers = mock.posts[0]
            headers = {name.lower(): value for name, value in headers.items()}
            assert path == "/api/backends/eastus-ptu/drain" and headers["x-aoai-lb-admin"] == "1", mock.posts
            assert len(mock.posts) == 1 and "authorization" not in headers, mock.posts
            assert self.page.text("#said-text") == "eastus-ptu is drained. 3 requests in flight."
            self.page.wait(lambda: self.page.text(button) == "Undrain …", "the button stays as it is")
            assert self.page.text("#head") == "1 of 3 backends rests: eastus-ptu (drained)"
            self.page.click(button)
            self.page.click("#ask-yes")
            self.page.wait(lambda: self.page.text(button) == "Drain …", "it stays drained")
            assert mock.posts[1][0] == "/api/backends/eastus-ptu/undrain"
            # The last one of a pool: the page says what that means.
            self.page.click("#backend-rows > tr:nth-child(2) [data-f=drain]")
            assert "gpt-4o-mini" in self.page.text("#ask-warning"), self.page.text("#ask-warning")
            self.page.find("#ask-no").send_keys("\ue00c")
            assert not self.page.find("#ask").is_displayed()

    def a_reload_tells_its_result(self):
        with Mock(calm) as mock:
            self.page.open(mock.url)
            self.page.click("#reload")
            self.page.click("#ask-yes")
            expected = "The configuration was reloaded: version 4. Warnings: a made-up warning."
            self.page.wait(lambda: self.page.text("#said-text") == expected, "no result")
            assert mock.posts[0][0] == "/api/reload"
            self.page.click("#said-close")
            assert not self.page.find("#said").is_displayed()
            mock.refusal = (400, "the configuration stays as it is: backends: must not be empty")
            self.page.click("#reload")
            self.page.click("#ask-yes")
            self.page.wait(lambda: "backends: must not be empty" in self.page.text("#ask-problem"), "no refusal")
            self.page.click("#ask-no")

    def only_changes_are_spoken(self):
        with Mock(calm, interval=0.2) as mock:
            self.page.open(mock.url)
            self.page.wait(lambda: self.page.voice() != "", "nothing is spoken")
            self.page.js("void (window.announced = [], new MutationObserver(() => window.announced.push(document.getElementById('voice').textContent))"
                         ".observe(document.getElementById('voice'), {childList: true, characterData: true, subtree: true}))")
            before = mock.ticks
            # Long enough for the next to be spoken at once.
            self.page.wait(lambda: mock.ticks > before + 25, "no ticks", LATER)
            assert self.page.js("window.announced") == [], self.page.js("window.announced")

            def changed(tick):
                told = calm(tick)
                told["backends"][1] |= resting("breaker_open", 0, 30, "failed too often")
                return told

            mock.change(state=changed)
            self.page.wait(lambda: self.page.js("window.announced"), "the change is not spoken")
            assert self.page.js("window.announced") == ["westus: breaker open. 1 of 3 backends rests: westus (breaker open)"]

    def dark_is_dark_and_nothing_moves_for_those_who_mind(self):
        with Mock(calm) as mock:
            for dark in (False, True):
                self.page.look(dark=dark)
                self.page.open(mock.url)
                light = self.page.js("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(n => n > 128)")
                assert light != dark
            moving = "getComputedStyle(document.querySelector('.bar i')).transitionDuration"
            self.page.look(calm=True)
            assert self.page.js(moving) == "0s"
            self.page.look(calm=False)
            assert self.page.js(moving) != "0s"

    def keys_are_enough(self):
        with Mock(calm) as mock:
            self.page.look()
            self.page.open(mock.url)
            seen = []
            for _ in range(25):
                self.page.driver.switch_to.active_element.send_keys("\ue004")
                seen.append(self.page.js("[document.activeElement.id || document.activeElement.dataset.f || document.activeElement.textContent, getComputedStyle(document.activeElement).outlineStyle]"))
                if seen[-1][0] == "reload":
                    break
            names = [name for name, _ in seen]
            assert names[0] == "Skip to the state", names
            for name in ("unwell", "filter", "drain", "sort", "reload"):
                assert name in names, names
            assert all(outline != "none" for _, outline in seen), seen

    def plots_have_axes_and_say_what_they_show(self):
        with Mock(STATES["trouble"], interval=60) as mock:
            self.page.look()
            self.page.open(mock.url)
            labels = self.page.js("[...document.querySelectorAll('#plots svg[role=img]')].map(svg => svg.getAttribute('aria-label'))")
            assert len(labels) == 5, labels
            assert re.fullmatch(r"Requests per second, last 15 minutes\. all: now [\d.]+, highest [\d.]+ at \d\d:\d\d:\d\d\. 429: now .+\. failed: now .+\.", labels[0]), labels[0]
            axis = self.page.js("[...document.querySelectorAll('#plots figure:first-child svg[role=img] text')].map(n => n.textContent)")
            assert axis == ["0", "20", "40", "−15 min", "−10 min", "−5 min", "now"], axis
            # A gap where nothing is known.
            assert self.page.js("document.querySelector('#plots figure:nth-child(2) svg[role=img] .curve').getAttribute('d').split('M').length") > 3
            plot = self.page.find("#plots figure:first-child svg[role=img]")
            from selenium.webdriver import ActionChains

            ActionChains(self.page.driver).move_to_element(plot).perform()
            self.page.wait(lambda: re.fullmatch(r"Requests per second, \d\d:\d\d:\d\d", self.page.text("#plots figure:first-child h3")), "no moment under the pointer")
            ActionChains(self.page.driver).move_to_element(self.page.find("#head")).perform()
            self.page.wait(lambda: self.page.text("#plots figure:first-child h3") == "Requests per second", "the moment stays")

    def a_hundred_backends_are_cheap(self):
        with Mock(STATES["many"], interval=0.25) as mock:
            self.page.look(1440)
            self.page.open(mock.url)
            assert len(self.page.texts("#backend-rows > tr")) == 100
            assert len(self.page.texts("#pool-rows > li")) == 50
            self.page.js("void [...document.querySelectorAll('#backend-rows > tr, #pool-rows > li, #client-rows > tr')].forEach(n => n.old = true)")
            self.page.tell("Performance.enable")

            def measured():
                metrics = self.page.tell("Performance.getMetrics")["metrics"]
                return {metric["name"]: metric["value"] for metric in metrics}

            seen = lambda: self.page.js("latest.settled")
            before, first = measured(), seen()
            self.page.wait(lambda: seen() >= first + 31 * 12, "too few ticks", LATER)
            after, ticks = measured(), (seen() - first) / 31
            names = ("TaskDuration", "ScriptDuration", "LayoutDuration", "RecalcStyleDuration")
            spent = {name: 1000 * (after[name] - before[name]) / ticks for name in names}
            self.note = ", ".join(f"{name.removesuffix('Duration').lower()} {ms:.1f} ms" for name, ms in spent.items()) + " per tick"
            # A tick is two seconds; even a slow machine should not spend a tenth of it.
            assert spent["TaskDuration"] < 200, spent
            assert after["Nodes"] < before["Nodes"] * 1.2, "nodes are made anew"
            assert self.page.js("[...document.querySelectorAll('#backend-rows > tr, #pool-rows > li, #client-rows > tr')].every(n => n.old)")
            self.page.click("#unwell")
            assert len(self.page.texts("#backend-rows > tr")) == 4
            assert self.page.text("#shown") == "4 of 100"
            self.page.click("#unwell")
            self.page.find("#filter").send_keys("REGION-04")
            assert len(self.page.texts("#backend-rows > tr")) == 10
            self.page.find("#filter").clear()
            self.page.find("#filter").send_keys("no such thing")
            assert self.page.text("#no-backends") == "No backend to show: none matches."

    def clients_are_sorted_and_folded(self):
        with Mock(STATES["many"]) as mock:
            self.page.look()
            self.page.open(mock.url)
            assert len(self.page.texts("#client-rows > tr")) == 20
            self.page.click("#more-clients")
            rows = self.page.texts("#client-rows > tr")
            assert len(rows) == 60 and rows[0].startswith("client-000"), rows[:2]
            self.page.js("void (document.getElementById('sort').value = 'name', document.getElementById('sort').dispatchEvent(new Event('change')))")
            names = self.page.texts("#client-rows > tr th")
            assert names == sorted(names), names


class Admin(Stack):
    """The stack of the SDKs' test, with an admin API and without its second balancer."""

    token = None

    def balancer_config(self, *arguments):
        port = stack.free_port()
        self.admin = f"http://127.0.0.1:{port}/"
        token = f", token: {self.token}" if self.token else ""
        return f"{super().balancer_config(*arguments)}admin: {{ address: '127.0.0.1:{port}'{token} }}\n"

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


class RealTests:
    """With the running balancer."""

    def __init__(self, page, running):
        self.page, self.running = page, running

    def the_page_comes_with_its_policy(self):
        status, headers, page = self.running.ask("GET", "/", self.running.admin)
        assert status == 200 and headers["content-type"].startswith("text/html"), (status, headers["content-type"])
        same = lambda text: set(text.replace(";", " ").split())
        assert same(headers["content-security-policy"]) == same(policy(page)), headers["content-security-policy"]

    def it_shows_what_the_balancer_knows(self):
        self.page.look()
        self.page.open(self.running.admin)
        status = self.running.status()
        names = self.page.texts("#backend-rows > tr [data-f=name]:first-child")
        assert [name for name in names if name] and {told["name"] for told in status["backends"]} <= set(names), names
        assert len(self.page.texts("#pool-rows > li")) == len(status["pools"])
        assert "well" in self.page.text("#head"), self.page.text("#head")
        self.page.has_no_complaints()

    def counts_rise(self):
        figure = lambda: self.page.js(
            "[...document.querySelectorAll('#figures > div')].find(n => /^Requests since/.test(n.textContent)).querySelector('dd').textContent"
        )
        before = int(figure().replace(",", ""))
        for _ in range(10):
            assert self.running.chat("gpt-4o-mini")[0] == 200
        self.page.wait(lambda: int(figure().replace(",", "")) == before + 10, f"not {before + 10} requests")
        row = lambda: next(row for row in self.page.texts("#client-rows > tr") if row.startswith("python"))
        self.page.wait(lambda: re.match(r"python\s+10\s", row()), "the client's requests do not show")
        assert self.running.status()["settled"] == before + 10

    def what_rests_shows(self):
        """A deployment that is throttled, on the backend `troubled`."""
        assert self.running.chat("throttled-python")[0] == 429
        self.page.wait(lambda: "throttled-python cooling" in self.page.text("#issues"), "the cooling does not show")
        assert re.search(r"throttled-python\s*:\s*all of its backends rest", self.page.text("#issues")), self.page.text("#issues")
        row = next(row for row in self.page.texts("#backend-rows > tr") if row.startswith("troubled"))
        assert re.search(r"\d+ s left", row), row

    def draining_drains(self):
        state = lambda: next(told["state"] for told in self.running.status()["backends"] if told["name"] == "sweden")
        button = f"[data-f=drain][aria-label$='rain sweden']"
        self.page.click(button)
        self.page.click("#ask-yes")
        self.page.wait(lambda: self.page.text("#said-text").startswith("sweden is drained."), "no result")
        assert state() == "drained"
        self.page.wait(lambda: self.page.text(button) == "Undrain …", "the page does not show it")
        status, headers, _ = self.running.chat("gpt-4o-mini")
        assert (status, headers["x-aoai-lb-backend"]) == (200, "westus")
        self.page.click(button)
        self.page.click("#ask-yes")
        self.page.wait(lambda: self.page.text(button) == "Drain …", "it stays drained")
        assert state() == "ok"

    def reloading_reloads(self):
        version = self.running.status()["configuration"]["version"]
        config = self.running.folder / "aoai-lb.yaml"
        good = config.read_text()
        config.write_text(good + "# changed\n")
        self.page.click("#reload")
        self.page.click("#ask-yes")
        self.page.wait(lambda: "was reloaded" in self.page.text("#said-text"), f"no result: {self.page.text('#ask-problem')}")
        assert self.running.status()["configuration"]["version"] > version
        config.write_text(good + "no_such_key: 1\n")
        self.page.click("#reload")
        self.page.click("#ask-yes")
        self.page.wait(lambda: "no_such_key" in self.page.text("#ask-problem"), "the refusal is not told")
        self.page.click("#ask-no")
        self.page.wait(lambda: "reload was refused" in self.page.text("#issues"), "the refusal is not among what to know")
        config.write_text(good)
        self.page.has_no_complaints()

    def a_stop_makes_it_stale(self):
        self.running.ask_to_stop()
        assert self.running.await_stop() == 0
        self.page.wait(lambda: self.page.find("#stale").is_displayed(), "the loss does not show")
        assert self.page.text("#head").startswith("Unknown since")


class TokenTests:
    """With a running balancer that wants a token."""

    def __init__(self, page, running):
        self.page, self.running = page, running

    def the_token_opens_the_page(self):
        self.page.look()
        self.page.open(self.running.admin, "#token:not([hidden])")
        self.page.find("#token-input").send_keys(f"{self.running.token}\n")
        self.page.wait(lambda: "well" in self.page.text("#head"), "the token does not help")
        self.page.click("[data-f=drain][aria-label='Drain westus']")
        self.page.click("#ask-yes")
        self.page.wait(lambda: self.page.text("#said-text").startswith("westus is drained."), "no result")
        self.page.has_no_complaints()


def found(program):
    return shutil.which(program) or sys.exit(f"{program} is missing; it is in Debian's packages chromium and chromium-driver")


def axe_core():
    """The text of axe-core, which judges accessibility."""
    place = environments.ROOT / f"axe-core-{AXE}"

    def make():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        node, npm = environments.node_tools()
        install = [*npm, "install", "--prefix", place, "--ignore-scripts", "--no-audit", "--no-fund", "--silent", f"axe-core@{AXE}"]
        environments.installed(install, cwd=place, path=f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}")

    environments.fresh(place, [], make)
    return (place / "node_modules/axe-core/axe.min.js").read_text()


class Tally:
    def __init__(self, word):
        self.word, self.passed, self.failed = word, 0, 0

    def run(self, tests):
        for name in [name for name, made in vars(type(tests)).items() if callable(made) and not name.startswith("_")]:
            if name in ("accessible", "fits") or self.word not in name:
                continue
            begun, problem, tests.note = time.monotonic(), None, None
            try:
                getattr(tests, name)()
            except Exception:
                problem = traceback.format_exc(limit=-2)
            self.tell(name.replace("_", " "), problem, f"{time.monotonic() - begun:.1f} s" + (f"; {tests.note}" if tests.note else ""))

    def tell(self, name, problem, more):
        if problem is None:
            self.passed += 1
            print(f"ok      {name} ({more})", flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}\n        " + problem.strip().replace("\n", "\n        "), flush=True)


def main():
    arguments = sys.argv[1:]
    word = ""
    if "-k" in arguments:
        at = arguments.index("-k")
        word = arguments[at + 1].replace(" ", "_")
        del arguments[at : at + 2]
    binary = Path(arguments[0]).resolve() if arguments else None
    if binary and not binary.exists():
        raise SystemExit(f"{binary} is missing; build it, or name another")
    found("chromium"), found("chromedriver")
    interpreter = environments.python("page", HERE / "requirements.txt")
    if Path(sys.prefix) != interpreter.parents[1]:
        os.execv(interpreter, [interpreter, __file__, *sys.argv[1:]])
    # So that what was started is stopped, too, when somebody stops this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tally, axe = Tally(word), axe_core()
    with tempfile.TemporaryDirectory(prefix="aoai-lb-page-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        page = Page(folder / "browser")
        try:
            tally.run(Tests(page, axe)) if not os.environ.get("ONLY_REAL") else None
            if binary:
                with_balancer(tally, page, binary, folder)
        finally:
            page.driver.quit()
    print(f"{tally.passed} passed, {tally.failed} failed", flush=True)
    return 1 if tally.failed else 0


def with_balancer(tally, page, binary, folder):
    for tests, token in ((RealTests, None), (TokenTests, "t0ken-of-the-page")):
        place = folder / tests.__name__
        place.mkdir()
        running, failed = Admin(binary, place), tally.failed
        running.token = token
        try:
            with running:
                tally.run(tests(page, running))
        except Failed as failure:
            tally.tell("processes", str(failure), "")
        if tally.failed > failed:
            print(f"\nthe balancer's log ends with\n{running.log('balancer.log')}")


if __name__ == "__main__":
    raise SystemExit(main())
