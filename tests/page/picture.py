"""Takes the picture of the status page in the README: the page of a running demo.

    python3 tests/page/picture.py BINARY FILE.png
"""

import base64
import os
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "sdk"), str(HERE)]

import environments
from browser import StatusPage
from demo import running_demo

# Enough for the charts to have lines, and for each step of the story to have been seen.
REQUESTS = 260
SECONDS = 400
REQUEST_COUNT = """\
Number([...document.querySelectorAll('#figures > div')].find(n => /^Since the start/.test(n.textContent))
  ?.querySelector('dd').textContent.replaceAll(',', '') ?? 0)
"""
IS_COOLING = "document.getElementById('backend-table').textContent.includes('cooling')"


def main():
    binary, file = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    interpreter = environments.python_environment("page", HERE / "requirements.txt")
    if Path(sys.prefix) != interpreter.parents[1]:
        os.execv(interpreter, [interpreter, __file__, *sys.argv[1:]])
    with tempfile.TemporaryDirectory(prefix="aoai-lb-page-", ignore_cleanup_errors=True) as directory, running_demo(binary) as demo:
        page = StatusPage(Path(directory) / "browser")
        try:
            page.set_viewport(width=1280, height=860)
            page.open(f"http://{demo.admin}/")
            page.wait_until(lambda: page.evaluate(REQUEST_COUNT) >= REQUESTS, f"expected {REQUESTS} requests", SECONDS)
            page.wait_until(lambda: page.evaluate(IS_COOLING), "expected the provisioned deployment to be full", SECONDS)
            picture = page.run_devtools_command("Page.captureScreenshot", format="png")["data"]
        finally:
            page.driver.quit()
    file.write_bytes(base64.b64decode(picture))


if __name__ == "__main__":
    main()
