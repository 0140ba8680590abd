"""Runs the snippets of the documentation and of the demo as they are printed, with the address of a running balancer.

    python3 tests/sdk/documentation_run.py [target/debug/aoai-lb]
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True

import environments
from affinity_stack import AffinityStack
from demo import running_demo
from suite_process import TestReport

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/clients.md"]
PRINTED_ADDRESS = "127.0.0.1:8080"
TIMEOUT = 60.0
# The simulated model's answer to "Say hello." contains the prompt.
EXPECTED = "Say hello."
# So that Codex calls nothing but the balancer, and only answers.
CODEX_TEST_SETTINGS = """
[features]
plugins = false

[analytics]
enabled = false

[otel]
exporter = "none"
trace_exporter = "none"
metrics_exporter = "none"
"""


def snippets():
    """The page, its heading, the language and the code of each snippet."""
    for page in PAGES:
        heading = None
        text = (ROOT / page).read_text()
        for match in re.finditer(r"^(?:#+ (?P<heading>[^\n]*)|```(?P<language>\w+)\n(?P<code>.*?)^```)$", text, re.DOTALL | re.MULTILINE):
            heading = match["heading"] or heading
            # Other commands for a shell are run by tests/systemd/documentation.py.
            if match["language"] in RUNNERS and (match["language"] != "sh" or PRINTED_ADDRESS in match["code"]):
                yield page, heading, match["language"], match["code"]


def run_python(code, variables, _):
    requirements = ("langchain", "requirements-langchain.txt") if "langchain" in code else ("python", "requirements.txt")
    return run([environments.python_environment(*requirements), "-"], variables, input=code)


def run_javascript(code, variables, _):
    directory = environments.node_environment()
    script = directory / "documentation.mjs"
    script.write_text(code)
    return run([environments.find_node_and_npm()[0], script], variables)


def run_shell(code, variables, _):
    return run(["sh", "-e"], variables, input=code)


def run_codex(code, variables, directory):
    home = Path(directory)
    (home / "config.toml").write_text(code + CODEX_TEST_SETTINGS)
    kept = {name: os.environ[name] for name in ["PATH", "LANG", "TZ"] if name in os.environ}
    own = {"HOME": directory, "CODEX_HOME": directory, "AOAI_LB_KEY": variables["AOAI_LB_KEY"]}
    command = [environments.codex_program(), "exec", "--skip-git-repo-check", EXPECTED]
    return subprocess.run(command, cwd=home, env=kept | own, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)


RUNNERS = {"python": run_python, "javascript": run_javascript, "sh": run_shell, "toml": run_codex}


def run(command, variables, **options):
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environments.clean_variables() | variables, **options)


def run_documentation_snippets(binary, report):
    run_schema_check(report)
    with running_demo(binary) as demo:
        run_printed_conversation(demo, report)
    with tempfile.TemporaryDirectory(prefix="aoai-lb-documentation-") as directory:
        # Its resources throttle nobody.
        stack = AffinityStack(binary, Path(directory))
        stack.add_client("reader")
        with stack:
            count = 0
            for page, heading, language, code in snippets():
                count += 1
                problem = run_snippet(code, language, stack.url("alone").removeprefix("http://"), stack.keys["reader"])
                report.add(f"documentation: {page}, {heading}, {language}", problem)
            report.add("documentation: snippets", None if count >= 9 else f"only {count} were found")


def run_snippet(code, language, address, key):
    """What is wrong with a snippet; None if it works."""
    if PRINTED_ADDRESS not in code:
        return f"no address of the balancer:\n{code}"
    code = code.replace(PRINTED_ADDRESS, address)
    with tempfile.TemporaryDirectory(prefix="aoai-lb-snippet-") as directory:
        completed = RUNNERS[language](code, {"AOAI_LB_KEY": key}, directory)
    is_right = completed.returncode == 0 and EXPECTED in completed.stdout
    return None if is_right else f"exit code {completed.returncode}\n{code}\n{completed.stdout}\n{completed.stderr}"


def run_schema_check(report):
    """Checks the examples against the schema that editors use."""
    files = [ROOT / "conf" / name for name in ["aoai-lb.schema.json", "aoai-lb.yaml", "minimal.yaml", "apim-replacement.yaml"]]
    command = [environments.python_environment("schema", "requirements-schema.txt"), ROOT / "tests/sdk/schema_check.py", *files]
    completed = run(command, {})
    report.add("documentation: the schema of the configuration", completed.stdout + completed.stderr if completed.returncode else None)


def run_printed_conversation(demo, report):
    """Runs the Python snippet that `aoai-lb demo` prints: a conversation of three turns, all on one resource."""
    snippet = re.search(r"^python3 - <<'PYTHON'.*?\n(.*?)^PYTHON$", demo.printed, re.DOTALL | re.MULTILINE)[1]
    completed = run([environments.python_environment("python", "requirements.txt"), "-"], {}, input=snippet)
    lines = completed.stdout.splitlines()
    # A provisioned deployment and a standard one are backends of one resource.
    resources = {line.partition(":")[0].removesuffix("-ptu") for line in lines}
    is_right = len(lines) == 3 and len(resources) == 1 and "You said: My name is Ada | What does" in lines[-1]
    report.add("demo: the printed conversation", None if is_right else f"{demo.printed}\n{completed.stdout}{completed.stderr}")


if __name__ == "__main__":
    report = TestReport()
    run_documentation_snippets(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug/aoai-lb").resolve(), report)
    print(f"{report.passed} passed, {report.failed} failed", flush=True)
    raise SystemExit(1 if report.failed else 0)
