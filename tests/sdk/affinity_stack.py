"""The processes under test of the affinity suites: three simulated resources of one tier, and balancers in front
of them that share nothing. What passes on both sides of the balancers is kept."""

import hashlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from types import SimpleNamespace

from stack import START_TIMEOUT, STOP_TIMEOUT, StackError, free_port, is_open, wait_for_condition
from traffic_tap import TapThread

# Each with the form of its ids: with and without a time in them, of every length.
RESOURCES = {"east": "chained", "west": "key_at_end", "north": "mixed"}
# `lagging` cannot be read for a while after a stream, `late` sends encrypted reasoning in the last event only, the
# streams of `slow` take a while, and `limited` has a rate limit.
DEPLOYMENTS = {"gpt-4o": "gpt-4o", "gpt-5": "gpt-5", "lagging": "gpt-4o", "late": "gpt-5", "slow": "gpt-4o", "limited": "gpt-4o"}
TOKENS_PER_MINUTE = {"limited": 50_000}
MOODS = {"lagging": "{read_lag: 900ms}", "late": "late_encrypted_content", "slow": "{drip: 100ms}"}
BACKGROUND_TIME = "400ms"
# `alone` is stopped and killed; `first` and `second` are behind one address; `owned` enforces owners.
INSTANCES = {"alone": "", "first": "", "second": "", "owned": "affinity: { owner: enforce }"}


class Instance:
    """A balancer with its own file, state directory and record."""

    def __init__(self, name, binary, directory, yaml):
        self.name, self.binary, self.directory = name, binary, directory / name
        self.directory.mkdir()
        self.config, self.record = self.directory / "aoai-lb.yaml", self.directory / "exchanges.jsonl"
        self.log_path, self.yaml = self.directory / "balancer.log", yaml
        self.process = self.pid = None
        # Those that were replaced, which end a while later.
        self.replaced_pids = []

    def start_on_free_ports(self):
        for attempts_left in (2, 1, 0):
            self.port, self.admin_port = free_port(), free_port()
            self.config.write_text(self.yaml(self))
            try:
                return self.start()
            except StackError:
                # Another process may have taken the port in the meantime.
                if attempts_left == 0 or "cannot listen" not in self.log():
                    raise

    def start(self):
        with self.log_path.open("a") as log:
            command = [self.binary, "run", "-c", self.config]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=self.environment())
        self.pid = self.process.pid
        wait_for_condition(self.is_ready, START_TIMEOUT, f"{self.name}: /readyz does not answer 200", self.process)

    def environment(self):
        # Its own directories for sockets and state: a real balancer may run on this machine.
        own = {"RUNTIME_DIRECTORY": str(self.directory / "run"), "STATE_DIRECTORY": str(self.directory / "state")}
        return os.environ | own

    def is_ready(self):
        try:
            return get(self.port, "/readyz")[0] == 200
        except OSError:
            return False

    def stop(self):
        self.end(signal.SIGTERM)

    def kill(self):
        self.end(signal.SIGKILL)

    def end(self, number):
        os.kill(self.pid, number)
        # It is a child unless it has replaced one, which ends as well.
        self.process.wait(STOP_TIMEOUT)
        # The main thread of a process may end before the others, which still have the sockets.
        is_gone = lambda: not is_running(self.pid) and not is_open(self.port)
        wait_for_condition(is_gone, STOP_TIMEOUT, f"{self.name}: process {self.pid} does not exit")

    def forget(self):
        """Deletes the state directory, while it is stopped."""
        shutil.rmtree(self.directory / "state")

    def run_command(self, name):
        completed = subprocess.run(
            [self.binary, name, "-c", self.config], capture_output=True, text=True, timeout=START_TIMEOUT, env=self.environment()
        )
        if completed.returncode != 0:
            raise StackError(f"{self.name}: {name} ended with {completed.returncode}:\n{completed.stdout}{completed.stderr}")
        return completed.stdout

    def replace_in_file(self, old, new):
        text = self.config.read_text()
        if old not in text:
            raise StackError(f"{self.name}: {old!r} is not in the file")
        self.config.write_text(text.replace(old, new))

    def reload(self):
        """Has it read a changed file."""
        version = self.status()["configuration"]["version"]
        self.config.write_text(self.config.read_text() + f"# changed at {time.time()}\n")
        self.run_command("reload")
        is_loaded = lambda: self.status()["configuration"]["version"] > version
        wait_for_condition(is_loaded, START_TIMEOUT, f"{self.name}: the new file is not loaded")

    def upgrade(self):
        """Replaces the process; the old one may still have requests to finish."""
        printed = self.run_command("upgrade")
        self.replaced_pids.append(self.pid)
        self.pid = int(re.search(r"process (\d+) is serving", printed)[1])
        is_serving = lambda: self.status()["process"]["pid"] == self.pid
        wait_for_condition(is_serving, START_TIMEOUT, f"{self.name}: process {self.pid} does not answer")

    def is_replaced(self):
        """Whether the processes that were replaced have ended."""
        # The first of them is a child.
        self.process.poll()
        self.replaced_pids = list(filter(is_running, self.replaced_pids))
        return not self.replaced_pids

    def status(self):
        return json.loads(get(self.admin_port, "/api/status")[1])

    def wait_until_saved(self):
        """Waits until the log of homes has not grown for longer than the balancer takes to write it."""
        log, deadline = self.directory / "state" / "homes.log", time.monotonic() + START_TIMEOUT
        while time.time() - log.stat().st_mtime < 1.0:
            if time.monotonic() > deadline:
                raise StackError(f"{self.name}: the log of homes keeps growing")
            time.sleep(0.02)

    def log(self, max_characters=4000):
        return self.log_path.read_text()[-max_characters:] if self.log_path.exists() else ""


class AffinityStack:
    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        # `client_fields` is what a client has next to its name and its keys.
        self.keys, self.client_fields = {}, {}
        self.resource_keys = {name: secrets.token_hex(16) for name in RESOURCES}
        self.simulator, self.instances, self.taps = None, {}, TapThread()

    def add_client(self, name, fields=""):
        self.keys[name], self.client_fields[name] = secrets.token_hex(16), fields

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for instance in self.instances.values():
            for pid in filter(None, [instance.pid, *instance.replaced_pids]):
                if is_running(pid):
                    os.kill(pid, signal.SIGKILL)
            if instance.process:
                instance.process.wait()
        if self.simulator and self.simulator.poll() is None:
            self.simulator.kill()
            self.simulator.wait()
        self.taps.close()

    def start(self):
        # The balancer brings its log to the disk each second, and would wait there for what was installed just now.
        os.sync()
        self.resource_ports = self.start_simulator()
        self.resource_taps = {name: self.taps.open([port]) for name, port in self.resource_ports.items()}
        for name, extra_yaml in INSTANCES.items():
            yaml = lambda instance, extra_yaml=extra_yaml: self.balancer_yaml(instance, extra_yaml)
            self.instances[name] = Instance(name, self.binary, self.directory, yaml)
            self.instances[name].start_on_free_ports()
        port_of = lambda name: self.instances[name].port
        self.client_taps = {name: self.taps.open([port_of(name)]) for name in ["alone", "owned"]}
        self.client_taps["pair"] = self.taps.open([port_of("first"), port_of("second")])

    def url(self, name):
        return f"http://127.0.0.1:{self.client_taps[name].port}"

    def start_simulator(self):
        config = self.directory / "simulate.yaml"
        config.write_text(self.simulator_yaml())
        with (self.directory / "simulator.log").open("w") as log:
            command = [self.binary, "simulate", "-c", config]
            self.simulator = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        ports = {}
        for line in self.simulator.stdout:
            if line.startswith("The simulated resources are running"):
                return ports
            name, _, rest = line.partition(": ")
            ports[name] = int(rest.split()[0].rpartition(":")[2])
        raise StackError(f"aoai-lb simulate ended:\n{(self.directory / 'simulator.log').read_text()}")

    def exhaust(self, resource):
        """Uses up the rate limit of the deployment `limited` of a resource, without a balancer."""
        body = json.dumps({"model": "limited", "input": "All of it", "max_output_tokens": TOKENS_PER_MINUTE["limited"] - 100})
        headers = {"api-key": self.resource_keys[resource], "content-type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self.resource_ports[resource], timeout=5)
        statuses = []
        while 429 not in statuses:
            connection.request("POST", "/openai/v1/responses", body, headers)
            response = connection.getresponse()
            content = response.read()
            statuses.append(response.status)
            if statuses[-1] not in (200, 429) or len(statuses) > 3:
                raise StackError(f"{resource} answers {statuses}: {content}")
        connection.close()

    def simulator_yaml(self):
        lines = ["resources:"]
        for name in RESOURCES:
            lines += [f"  - name: {name}", "    address: 127.0.0.1:0", f"    keys: [{self.resource_keys[name]}]"]
            lines += [f"    background_time: {BACKGROUND_TIME}", f"    ids: {RESOURCES[name]}", "    deployments:"]
            for deployment, model in DEPLOYMENTS.items():
                limit = f", tokens_per_minute: {TOKENS_PER_MINUTE[deployment]}" if deployment in TOKENS_PER_MINUTE else ""
                lines.append(f"      - {{name: {deployment}, model: {model}{limit}}}")
            lines += ["    mood:", "      per_deployment:"]
            lines += [f"        {deployment}: {mood}" for deployment, mood in MOODS.items()]
        return "\n".join(lines) + "\n"

    def balancer_yaml(self, instance, extra_yaml):
        lines = ["listeners:", f"  - address: 127.0.0.1:{instance.port}", "backends:"]
        for name, tap in self.resource_taps.items():
            credential = f"credential: {{ api_key: {self.resource_keys[name]} }}"
            lines.append(f"  - {{ name: {name}, endpoint: 'http://127.0.0.1:{tap.port}', {credential} }}")
        lines.append("clients:")
        for name, key in self.keys.items():
            digest = hashlib.sha256(key.encode()).hexdigest()
            lines.append(f"  - {{ name: {name}, keys: [ {{ sha256: {digest} }} ]{self.client_fields.get(name, '')} }}")
        lines.append("requests: { home: east }")
        lines.append(f"record: {{ jsonl: {{ path: {instance.record} }} }}")
        lines.append(f"admin: {{ address: '127.0.0.1:{instance.admin_port}' }}")
        lines.append("server: { threads: 2, drain_delay: 0s }")
        return "\n".join([*lines, extra_yaml]) + "\n"

    def log(self):
        """The ends of the logs that are not empty."""
        return "\n".join(f"{name}:\n{instance.log()}" for name, instance in self.instances.items())


class SingleStack(AffinityStack):
    """One balancer in front of the resources. What passes is not kept."""

    # A further line for each resource, and a further block of the balancer's file.
    resource_yaml, extra_yaml = "", ""

    def start(self):
        ports = self.start_simulator()
        self.resource_taps = {name: SimpleNamespace(port=port) for name, port in ports.items()}
        yaml = lambda instance: self.balancer_yaml(instance, self.extra_yaml)
        self.instance = self.instances["single"] = Instance("single", self.binary, self.directory, yaml)
        self.instance.start_on_free_ports()

    def simulator_yaml(self):
        return super().simulator_yaml().replace("    deployments:\n", f"    {self.resource_yaml}\n    deployments:\n")


def get(port, path):
    """The status and the body of a GET without a key."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_running(pid):
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
