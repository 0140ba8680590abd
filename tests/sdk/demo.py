"""`aoai-lb demo` as a process: simulated resources with the balancer in front, and what it prints."""

import itertools
import os
import re
import signal
import subprocess
import tempfile
from contextlib import contextmanager

from stack import START_TIMEOUT, STOP_TIMEOUT, free_port, is_open, wait_for_condition


class Demo:
    """A running demo."""

    def __init__(self, listen, admin, printed):
        self.listen, self.admin, self.printed = listen, admin, printed
        self.key = re.search(r'-H "api-key: (.+?)"', printed)[1]


@contextmanager
def running_demo(binary):
    """Starts the demo on free ports, and stops it at the end."""
    with tempfile.TemporaryDirectory(prefix="aoai-lb-demo-") as directory:
        port, admin = free_port(), f"127.0.0.1:{free_port()}"
        demo = subprocess.Popen(
            [binary, "demo", "--listen", f"127.0.0.1:{port}", "--admin", admin],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Where its records go.
            env=os.environ | {"TMPDIR": directory},
            text=True,
        )
        try:
            printed = "".join(itertools.takewhile(lambda line: "Stop it" not in line, demo.stdout))
            wait_for_condition(lambda: is_open(port), START_TIMEOUT, "the demo does not listen", demo)
            yield Demo(f"127.0.0.1:{port}", admin, printed)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(STOP_TIMEOUT)
