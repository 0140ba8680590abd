"""The status page in a headless Chromium, driven by Selenium."""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import environments
from stack import StackError, wait_for_condition

AXE = "4.14.1"
# In seconds: for what happens at once, and for what waits for the timers of the page.
SHORT_TIMEOUT, LONG_TIMEOUT = 15.0, 40.0
BROWSER_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Runs before the script of the page: it records errors, policy violations and dialogs.
ERROR_RECORDER_SCRIPT = """
window.recordedErrors = [];
for (const kind of ['error', 'unhandledrejection', 'securitypolicyviolation'])
  addEventListener(kind, event => recordedErrors.push(`${kind}: ${event.message ?? event.reason ?? event.violatedDirective}`), true);
for (const name of ['alert', 'confirm', 'prompt']) window[name] = text => recordedErrors.push(`${name}: ${text}`);
"""


class StatusPage:
    """A browser that shows the status page."""

    def __init__(self, folder):
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        options.binary_location = find_program("chromium")
        for flag in [*BROWSER_FLAGS, f"--user-data-dir={folder}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(find_program("chromedriver")))
        self.run_devtools_command("Page.addScriptToEvaluateOnNewDocument", source=ERROR_RECORDER_SCRIPT)

    def run_devtools_command(self, command, **parameters):
        return self.driver.execute_cdp_cmd(command, parameters)

    def evaluate(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def set_viewport(self, width=1280, height=900, dark=False, reduced_motion=True):
        self.run_devtools_command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        features = {"prefers-color-scheme": "dark" if dark else "light"}
        features["prefers-reduced-motion"] = "reduce" if reduced_motion else "no-preference"
        self.run_devtools_command("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features.items()])

    def open(self, url, shows="main > section:not([hidden]) #plots figure > svg path[d^='M']"):
        self.take_errors()
        self.driver.get(url)
        self.wait_until(lambda: self.evaluate("document.querySelector(arguments[0]) !== null", shows), f"expected the page to show {shows}")

    def wait_until(self, condition, failure_message, seconds=SHORT_TIMEOUT):
        try:
            wait_for_condition(condition, seconds, failure_message)
        except StackError as failure:
            raise AssertionError(f"{failure}; the text of the page:\n{self.text('main')[:600]}") from None

    def text(self, selector):
        return self.evaluate("document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector):
        return self.evaluate("[...document.querySelectorAll(arguments[0])].filter(n => n.checkVisibility()).map(n => n.innerText)", selector)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def click(self, selector):
        self.find(selector).click()

    def announcement(self):
        return self.evaluate("document.getElementById('announcer').textContent")

    def assert_no_errors(self):
        complaints = self.take_errors()
        assert complaints == [], complaints

    def take_errors(self):
        """The errors since the last call, except failed requests, which tests cause on purpose."""
        with contextlib.suppress(Exception):
            recorded = self.evaluate("window.recordedErrors?.splice(0) ?? []")
        logged = [entry["message"] for entry in self.driver.get_log("browser")]
        return recorded + [message for message in logged if "Failed to load resource" not in message]


def find_program(program):
    return shutil.which(program) or sys.exit(f"{program} is missing: install the Debian packages chromium and chromium-driver")


def load_axe_core():
    """The source of axe-core, which checks accessibility."""
    directory = environments.ENVIRONMENTS_DIRECTORY / f"axe-core-{AXE}"

    def make():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        node, npm = environments.find_node_and_npm()
        install = [*npm, "install", "--prefix", directory, "--ignore-scripts", "--no-audit", "--no-fund", "--silent", f"axe-core@{AXE}"]
        environments.run_install(install, cwd=directory, path=f"{Path(node).parent}{os.pathsep}{os.environ['PATH']}")

    environments.make_if_changed(directory, [], make)
    return (directory / "node_modules/axe-core/axe.min.js").read_text()
