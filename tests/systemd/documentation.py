"""The part that runs the commands of the documentation, as they stand in the pages.

One service, installed as docs/installation.md says, is shared by all of them, in front of the simulated resources. Its
backends and its client have the names that the pages use. Commands for developers are rehearsed: `make` with --dry-run, tests
are listed, and benchmarks have to exist.
"""

import functools
import hashlib
import http.client
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import time

from load import CHAT
from machine import TOOLS, TestFailure, child_of, kill, wait_for_condition
from pages import FIRST_PAGE, SOURCE, read_commands
from service import ADDRESS, ADMIN_PORT, CONFIG, OPERATION_TIMEOUT, PORT, UNIT, UPSTREAM_PORTS

# No test runs these.
EXCEPTIONS = {
    r"az .*": "needs a subscription of Azure",
    r"ssh -L .*": "needs a second machine",
    r"rustup target add .*|apt-get install gcc-aarch64.*": "needs the network",
    r"python3 tests/sdk/.*": "is a part of `make sdk`, which CI runs",
    r"promtool .*": "is run by tests/integration/monitoring.rs",
    r"aoai-lb run -c FILE --upgrade": "is what the running process starts when `aoai-lb upgrade` is run",
}
RECORD_FILE = "/var/log/aoai-lb/exchanges.jsonl"
GREETING = {"messages": [{"role": "user", "content": "Say hello."}]}
# What takes the place of a placeholder, in this order. `{…}` is an attribute of `Documentation`.
SUBSTITUTIONS = [
    # A command that is only named.
    (r"^(aoai-lb (?:explain|import-apim|simulate|keys new))$", r"\1 --help"),
    (r"COMMAND", "status"),
    (r"simulate -c FILE", "simulate -c conf/simulate.yaml"),
    (r"run -c FILE", "run -c aoai-lb.yaml"),
    (r"-c FILE", f"-c {CONFIG}"),
    (r"--backends FILE", "--backends backends.json"),
    (r"-in FILE", "-in certificate.pem"),
    (r"FILE…", RECORD_FILE),
    (r"POLICY\.xml", "policy.xml"),
    (r"METHOD PATH", "POST /openai/v1/responses"),
    (r"POST PATH", "POST /openai/v1/responses"),
    (r"/deployments/NAME/", "/deployments/gpt-4o/"),
    (r"--model (?:M|NAME)$", "--model gpt-4o"),
    (r"--model M ", "--model gpt-4o "),
    (r"--client (?:C|NAME)", "--client team-a"),
    (r"(drain) (?:NAME|\{\{ \$labels\.backend \}\})", r"\1 westus"),
    (r"hosts NAME", "hosts localhost"),
    (r"keys new CLIENT", "keys new team-b"),
    (r"--refers-to (?:ID|resp_…)", "--refers-to {response_id}"),
    (r"find (?:ID|01a2077b-5c1e-7d30-8a44-4b1f0d6c9e21)", "find {request_id}"),
    (r"--cache-key KEY", "--cache-key a-conversation"),
    (r"--by KEYS", "--by client,deployment,class"),
    (r"--(since|until) TIME", r"--\1 7d"),
    (r"--step TIME", "--step 1s"),
    (r"--limit N", "--limit 5"),
    (r"--listen ADDRESS", "--listen 127.0.0.1:8090"),
    (r"--admin ADDRESS", "--admin 127.0.0.1:9990"),
    (r"http://HOST:PORT/", f"http://127.0.0.1:{PORT}/"),
    (r"https://HOST:9901/", f"http://127.0.0.1:{ADMIN_PORT}/"),
    (r"\bTOKEN\b", "a-token"),
    (r"\bENDPOINT\b", f"http://127.0.0.1:{UPSTREAM_PORTS[0]}/openai/v1/models"),
    (r">PASSWORD", ">{redis_password}"),
]
# Exit codes other than 0.
EXIT_CODES = {
    # A resource that answers, if only that the key is missing.
    r"curl -v ENDPOINT": 22,
}
# What a command prints, where the exit code says little.
OUTPUTS = {
    r"curl .*(?:chat/completions|/responses).*": "Say hello.",
    r"curl .*/drain": '"changed":true',
    r"curl .*/api/status": '"state"',
    r"aoai-lb explain .* --refers-to .*": "on the resource 127.0.0.1:",
    r"aoai-lb explain .*--model .*": "westus",
    r"aoai-lb status --all": "TOTAL (",
    r"aoai-lb status --check": "healthy",
    r"aoai-lb drain .*": "westus is drained",
    r"aoai-lb usage.*--format csv": "client,",
    r"aoai-lb keys new team-a": "sha256: ",
}
# These go on until they are stopped; what they print when they are ready.
ONGOING = {
    r"aoai-lb run .*": " serves on ",
    r"aoai-lb demo.*": "Stop it with Ctrl-C",
    r"aoai-lb simulate -c .*": "stop them with Ctrl-C",
    r"aoai-lb status --watch": "eastus-ptu",
}
# These need a terminal.
ON_TERMINAL = [r"systemctl edit .*"]
CHECKOUT, MIGRATION = "/root/checkout", "/root/migration"
EXAMPLES = "/usr/share/doc/aoai-lb/examples"
EDITOR = "/root/editor"
HASH_PLACEHOLDER = "REPLACE-ME: output of aoai-lb keys new"


def documentation(service, report):
    Documentation(service, report).run()


class Documentation:
    def __init__(self, service, report):
        self.service, self.report, self.machine = service, report, service.machine
        self.commands = read_commands()
        self.done, self.used, self.problems = set(), set(), []
        self.client_key, self.redis_password = "a-client-key", "a-redis-password"
        hashes = {f"{name}_SHA256": hash_of(name) for name in ["TEAM_B", "SUBSCRIPTION_1", "SUBSCRIPTION_2"]}
        self.resource_keys = {name: service.upstream_key for name in ["EASTUS_KEY", "WESTUS_KEY", "EAST_KEY", "WEST_KEY"]}
        others = {"AOAI_LB_KEY": self.client_key, "TEAM_A_SHA256": hash_of(self.client_key), "KEY": "a-key", "ADMIN_TOKEN": "a-token", "APP_SECRET": "a-secret"}
        self.variables = hashes | self.resource_keys | others | {"REDIS_PASSWORD": self.redis_password}
        self.variables |= {name: EDITOR for name in ["EDITOR", "SUDO_EDITOR", "SYSTEMD_EDITOR"]}

    def run(self):
        self.prepare()
        for command in self.commands:
            try:
                self.run_command(command)
            except (TestFailure, subprocess.TimeoutExpired) as problem:
                self.problems.append(f"{command}\n{problem}")
        self.run_logrotate()
        tables = [EXCEPTIONS, EXIT_CODES, OUTPUTS, ONGOING, dict.fromkeys(ON_TERMINAL), dict.fromkeys(pattern for pattern, _ in SUBSTITUTIONS)]
        self.problems += [f"no page has a command for this any more: {pattern}" for table in tables for pattern in table if pattern not in self.used]
        if self.problems:
            raise TestFailure("\n\n".join(self.problems))

    # What is there before the first command.

    def prepare(self):
        machine = self.machine
        self.remove_service()
        for name in ["redis-server", "cron"]:
            machine.host_path(f"/etc/systemd/system/{name}.service").symlink_to("/dev/null")
        # In any order: all that they depend on is there.
        machine.run("sh", "-c", f"dpkg --force-depends --force-unsafe-io --install {TOOLS}/*.deb", timeout=120)
        self.report.pass_check("the tools are installed")
        machine.run("redis-server", "--daemonize", "yes", "--save", "")
        wait_for_condition(lambda: machine.run("redis-cli", "ping", check=False).returncode == 0, OPERATION_TIMEOUT, "redis-server does not answer")
        packages = machine.host_path(CHECKOUT) / "target/debian"
        packages.mkdir(parents=True)
        # Built by other parts.
        home = machine.host_path("/root")
        shutil.copy(next(home.glob("aoai-lb_0.1.0_*.deb")), packages)
        tarball = next(home.glob("*.tar.gz"), None) or machine.host_path(self.service.build_tarball())
        shutil.copy(tarball, machine.host_path(CHECKOUT))
        shutil.copy(self.service.make_certificate()[0], machine.host_path(CHECKOUT) / "certificate.pem")
        (machine.host_path(CHECKOUT) / "conf").symlink_to(EXAMPLES)
        example = re.search(r"```yaml\n(listeners:.*?)```", (SOURCE / "README.md").read_text(), re.DOTALL)[1]
        machine.write_file(example.replace(HASH_PLACEHOLDER, hash_of(self.client_key)), f"{CHECKOUT}/aoai-lb.yaml")
        self.write_migration()
        machine.write_file(EDITOR_SCRIPT, EDITOR, 0o755)
        machine.write_file(self.config_yaml(), "/root/edited.yaml")
        machine.write_file("".join(f"{name}={self.variables[name]}\n" for name in ["EASTUS_KEY", "REDIS_PASSWORD"]), "/root/edited-environment")
        # As a client that checks the status would.
        machine.write_file("fail\nsilent\nshow-error\n", "/root/.curlrc")
        # The service connects with it.
        self.run_command(next(command for command in self.commands if command.text.startswith("redis-cli ")))

    def write_migration(self):
        """Policy and backends of an API Management, in front of the simulated resources."""
        self.machine.host_path(MIGRATION).mkdir()
        fixtures = SOURCE / "tests/integration/import_apim"
        policy = (fixtures / "cached-counter.xml").read_text()
        for name, port in zip(("east", "west"), UPSTREAM_PORTS):
            policy = policy.replace(f"https://contoso-{name}.openai.azure.com", f"http://127.0.0.1:{port}")
        self.machine.write_file(policy, f"{MIGRATION}/policy.xml")
        self.machine.write_file((fixtures / "pool.json").read_text(), f"{MIGRATION}/backends.json")
        for name in ["policy.xml", "backends.json"]:
            self.machine.host_path(f"{CHECKOUT}/{name}").symlink_to(f"{MIGRATION}/{name}")

    def config_yaml(self):
        backends = "".join(
            f"  - {{ name: {name}, endpoint: 'http://127.0.0.1:{port}', credential: {{ api_key: '${{EASTUS_KEY}}' }}, deployments: {{ gpt-4o: gpt-4o }} }}\n"
            for name, port in zip(("eastus-ptu", "westus"), UPSTREAM_PORTS)
        )
        return CONFIG_YAML.format(port=PORT, admin=ADMIN_PORT, backends=backends, key_hash=hash_of(self.client_key))

    def remove_service(self):
        """Removes the package, and what else is left of a service."""
        self.stop_service()
        self.machine.run("dpkg", "--purge", "aoai-lb", check=False)
        self.machine.run("rm", "-rf", "/etc/aoai-lb", "/var/log/aoai-lb", "/var/lib/aoai-lb", f"/etc/systemd/system/{UNIT}.d")
        self.service.systemctl("daemon-reload")

    def stop_service(self):
        # Killed, since a regular stop would wait for predecessors.
        self.service.systemctl("stop", "--no-block", UNIT, check=False)
        self.service.systemctl("kill", "--signal=KILL", UNIT, check=False)
        self.service.systemctl("stop", UNIT, check=False)

    def end_predecessors(self):
        """Ends processes that an upgrade has replaced; they would go on for some seconds."""
        main = self.service.main_pid()
        if others := [pid for pid in self.service.unit_pids() if pid != main]:
            self.machine.run("sh", "-c", "kill -KILL " + " ".join(map(str, others)))
            self.service.wait_for_single_process()

    def start_service(self):
        # Processes that were started by hand run as root.
        self.machine.run("chown", "-R", "aoai-lb:aoai-lb", "/var/lib/aoai-lb")
        self.service.systemctl("reset-failed", UNIT, check=False)
        self.service.systemctl("start", UNIT)
        self.service.wait_until_ready()

    # One command.

    def run_command(self, command):
        text = self.substituted(command.text)
        directory = self.directory(command.page)
        # An installation begins anew.
        if (directory, text) in self.done and command.page != FIRST_PAGE:
            return
        self.done.add((directory, text))
        if self.lookup(EXCEPTIONS, command.text) is not None:
            return
        if self.rehearse(text):
            return self.report.pass_check(f"{command} (rehearsed)")
        self.before(text)
        try:
            if awaited := self.lookup(ONGOING, text):
                self.run_ongoing(directory, text, awaited)
            else:
                self.run_to_end(command, directory, text)
        finally:
            self.after(text)
        self.report.pass_check(str(command))

    def lookup(self, table, text):
        text = text.removeprefix("sudo ")
        pattern = next((pattern for pattern in table if re.fullmatch(pattern, text, re.DOTALL)), None)
        self.used.add(pattern)
        return None if pattern is None else table[pattern]

    def substituted(self, text):
        for pattern, value in SUBSTITUTIONS:
            if re.search(pattern, text):
                self.used.add(pattern)
                value = re.sub(r"\{(\w+)\}", lambda name: getattr(self, name[1]), value)
                text = re.sub(pattern, value, text)
        return text

    def directory(self, page):
        if page.startswith("docs/migrating-from-api"):
            return MIGRATION
        return f"{CHECKOUT}/conf" if page.startswith("conf/") and page.endswith(".yaml") and page != "conf/simulate.yaml" else CHECKOUT

    def in_machine(self, directory, text):
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return ["env", *variables, "sh", "-c", f"cd {directory} && {text}"]

    def run_to_end(self, command, directory, text):
        is_on_terminal = text in [text for pattern in ON_TERMINAL if re.fullmatch(pattern, text)]
        self.used.update(pattern for pattern in ON_TERMINAL if re.fullmatch(pattern, text))
        typed = f"script --quiet --return --command {shlex.quote(text)} /dev/null" if is_on_terminal else text
        completed = self.machine.run(*self.in_machine(directory, typed), check=False)
        printed = completed.stdout + completed.stderr
        expected_code = self.lookup(EXIT_CODES, command.text) or 0
        if completed.returncode != expected_code:
            raise TestFailure(f"`{text}` exits with {completed.returncode}:\n{printed}")
        if (expected := self.lookup(OUTPUTS, text)) and expected not in printed:
            raise TestFailure(f"`{text}` does not print '{expected}':\n{printed}")
        if command.output:
            shown, lines = labels([self.request_id, *command.output[1:]]), iter(labels(printed.splitlines()))
            if missing := [label for label in shown if label not in lines]:
                raise TestFailure(f"`{text}` does not print what the page shows, {missing} in this order:\n{printed}")

    def run_ongoing(self, directory, text, awaited):
        """Runs a command until it is ready, and stops it with Ctrl-C."""
        process = self.machine.start(*self.in_machine(directory, f"exec {text}"))
        printed, deadline = "", time.monotonic() + 2 * OPERATION_TIMEOUT
        while awaited not in printed:
            is_readable, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
            part = os.read(process.stdout.fileno(), 65536) if is_readable else b""
            if not part:
                kill(child_of(process.pid) or process.pid, signal.SIGKILL)
                raise TestFailure(f"`{text}` does not print '{awaited}':\n{printed}")
            printed += part.decode(errors="replace")
        kill(child_of(process.pid), signal.SIGINT)
        rest, _ = process.communicate(timeout=2 * OPERATION_TIMEOUT)
        if process.returncode not in (0, 128 + signal.SIGINT, -signal.SIGINT):
            raise TestFailure(f"`{text}` exits with {process.returncode}:\n{printed}{rest}")

    def rehearse(self, text):
        """Checks a command for developers without running it; returns whether it is one."""
        parts = [part.removeprefix("sudo ") for part in text.split(" && ")]
        for part in parts:
            if part.startswith("make "):
                run_on_host(part.replace("make ", "make --dry-run ", 1))
            elif "cargo test " in part:
                if ": test" not in run_on_host(f"{part} --offline --quiet -- --list"):
                    raise TestFailure("there are no such tests")
            elif part.startswith("cargo update "):
                run_on_host(f"{part} --dry-run --offline")
            elif name := re.match(r"cargo bench --bench (\S+)", part):
                if name[1] not in benchmarks():
                    raise TestFailure("there is no such benchmark")
            else:
                return False
        return True

    # What surrounds some commands.

    def before(self, text):
        if text.startswith("tar -xzf"):
            self.remove_service()
        if text.startswith(("aoai-lb run", "aoai-lb demo")):
            self.stop_service()
        if text.startswith("aoai-lb simulate -c"):
            self.service.stop_simulator()
        if "USR2" in text:
            self.main_pid = self.service.main_pid()
        if "drain" in text or "reload" in text or text.endswith(("--all", "--uninstall")):
            # For some seconds after an upgrade, the admin API may be that of the old process, and a stop waits for it.
            self.end_predecessors()
        if RECORD_FILE in text and not self.machine.host_path(RECORD_FILE).exists():
            # A reload has begun a new one.
            self.send(CHAT, GREETING)

    def after(self, text):
        if text.endswith("install --uninstall"):
            self.machine.run("sh", "-c", f"apt-get -o Dpkg::Options::=--force-confold install --yes {CHECKOUT}/target/debian/*.deb")
            self.start_service()
        if text.startswith(("aoai-lb run", "aoai-lb demo")):
            self.start_service()
        if text.startswith("aoai-lb simulate -c"):
            self.service.start_simulator()
        if "drain" in text:
            self.machine.run("aoai-lb", "undrain", "westus")
        if "USR2" in text:
            wait_for_condition(lambda: self.service.main_pid() not in (0, self.main_pid), 30, "SIGUSR2 does not start a new main process")

    # Objects that commands are about.

    @functools.cached_property
    def request_id(self):
        return self.send(CHAT, GREETING)[0]

    @functools.cached_property
    def response_id(self):
        response_id = self.send("/openai/v1/responses", {"model": "gpt-4o", "input": "Say hello."})[1]["id"]
        explain = ["aoai-lb", "explain", "GET", "/openai/v1/responses/{id}", "--refers-to", response_id]
        wait_for_condition(lambda: "on the resource" in self.machine.run(*explain).stdout, OPERATION_TIMEOUT, "the response is not in the state directory")
        return response_id

    def send(self, path, body):
        """Sends a request; returns its id and the body of the response."""
        connection = http.client.HTTPConnection(*ADDRESS, timeout=OPERATION_TIMEOUT)
        try:
            headers = {"api-key": self.client_key, "Content-Type": "application/json", "User-Agent": "a-program", "x-ms-client-request-id": "a-request"}
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise TestFailure(f"{path}: {response.status}: {text}")
            return response.headers["x-aoai-lb-request-id"], json.loads(text)
        finally:
            connection.close()

    def run_logrotate(self):
        """Rotates the record file with the configuration of docs/logrotate.md."""
        block = re.search(r"```text\n(/var/log/aoai-lb.*?)```", (SOURCE / "docs/logrotate.md").read_text(), re.DOTALL)[1]
        file = "/etc/logrotate.d/aoai-lb"
        self.machine.write_file(block, file)
        records = self.machine.host_path(RECORD_FILE)
        before = records.read_text()
        self.machine.run("logrotate", "--force", file)
        last_id, _ = self.send(CHAT, GREETING)
        wait_for_condition(lambda: records.exists() and last_id in records.read_text(), OPERATION_TIMEOUT, "the request is not in the new file")
        if records.with_name("exchanges.jsonl.1").read_text() != before:
            raise TestFailure("logrotate has lost records")
        self.report.pass_check("docs/logrotate.md: logrotate rotates the record file")


def hash_of(key):
    return hashlib.sha256(key.encode()).hexdigest()


def labels(lines):
    """The first words of lines that do not go on."""
    return [line.split()[0] for line in lines if line and not line[0].isspace()]


def run_on_host(text):
    completed = subprocess.run(text, shell=True, cwd=SOURCE, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
    if completed.returncode != 0:
        raise TestFailure(f"`{text}` exits with {completed.returncode}:\n{completed.stdout}{completed.stderr}")
    return completed.stdout


@functools.cache
def benchmarks():
    metadata = json.loads(run_on_host("cargo metadata --no-deps --offline --format-version 1"))
    return {target["name"] for package in metadata["packages"] for target in package["targets"] if target["kind"] == ["bench"]}


# Writes what an operator would: the name of the file that is edited is its last argument.
EDITOR_SCRIPT = """#!/bin/sh
case $1 in
    *environment*) cat /root/edited-environment >"$1" ;;
    *.yaml) cat /root/edited.yaml >"$1" ;;
    *) printf '[Service]\\nTimeoutStopSec=60s\\n' >"$1" ;;
esac
"""
CONFIG_YAML = """
listeners: [ {{ address: '127.0.0.1:{port}' }} ]
backends:
{backends}
clients:
  - {{ name: team-a, keys: [ {{ sha256: {key_hash} }} ], stateful: true, limits: {{ requests_per_minute: 6000 }} }}
balance: prompt_cache
queue: {{}}
prices: {{ currency: USD, rows: [ {{ deployment: gpt-4o, input: 2.50, output: 10.00 }} ] }}
record:
  jsonl: {{ path: "${{LOGS_DIRECTORY:-/var/log/aoai-lb}}/exchanges.jsonl" }}
  spool: {{ path: "${{STATE_DIRECTORY:-/var/lib/aoai-lb}}/spool" }}
admin: {{ address: '127.0.0.1:{admin}' }}
shared: {{ redis: {{ url: 'redis://127.0.0.1:6379', username: aoai-lb, password: "${{REDIS_PASSWORD}}" }} }}
server: {{ threads: 2, grace_period: 30s, drain_delay: 200ms }}
"""
