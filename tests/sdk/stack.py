"""The processes under test: simulated Azure OpenAI resources, the balancer in front of them, and a second
balancer (the edge) in front of that, with HTTP/2."""

import hashlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import time

START_TIMEOUT = 15.0
STOP_TIMEOUT = 15.0

THROTTLED_MOOD = "{throttled: {retry_after_ms: 30000, retry_after: '30'}}"
# For each case, the mood of a deployment of the resource `troubled`, and the deployment of `westus` in the
# next tier that can answer instead, if any. Each suite has its own deployments (`throttled-python`, …), so
# that cooldowns caused by one suite do not affect the others.
MOOD_CASES = {
    "throttled": (THROTTLED_MOOD, None),
    "failover-chat": (THROTTLED_MOOD, "gpt-4o"),
    "failover-vectors": (THROTTLED_MOOD, "text-embedding-3-small"),
    "failover-dictation": (THROTTLED_MOOD, "whisper"),
    "again": ("{sequence: [{throttled: {retry_after_ms: 600, retry_after: '1'}}, calm]}", None),
    "hidden-chat": ("{error_first: {order: error_alone}}", "gpt-4o"),
    "hidden-created": ("{error_first: {order: created_error_failed, retry_after: '4'}}", "gpt-4o"),
    "hidden-failed": ("{error_first: {order: failed_then_error, retry_after: '4'}}", "gpt-4o"),
    "hidden-alone": ("{error_first: {order: error_alone}}", "gpt-4o"),
    "filtered": ("{refuses: content_filter}", None),
    "down": ("{refuses: 503}", None),
    "breaking": ("{reset_mid_body: {events: 5}}", None),
    "slow": ("{drip: 40ms}", None),
}
# For each failure, the mood of a deployment with its own backend and so its own breaker; `westus` can
# answer instead.
FAILING_MOODS = {
    "failing-503": "{refuses: 503}",
    "failing-500": "{refuses: server_error_html}",
    "failing-reset": "reset_before_head",
    "failing-close": "close_before_head",
    "failing-early": "{early_answer: {refuses: 503, close: true}}",
    "failing-absent": "{refuses: deployment_not_found}",
    "failing-locked": "{refuses: firewall}",
}
SUITES = ["python", "python-028", "node"]
# The deployments of two standard resources.
STANDARD_RESOURCES = {
    "westus": [
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-35-turbo-instruct",
        "gpt-realtime",
        "text-embedding-3-small",
        "whisper",
        "gpt-4o-transcribe",
        "tts",
        "gpt-image-1",
    ],
    "sweden": ["gpt-4o", "gpt-4o-mini", "text-embedding-3-small"],
}


class StackError(Exception):
    """A process under test did not start or stop as expected."""


class Stack:
    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        self.record = directory / "exchanges.jsonl"
        self.keys = {name: secrets.token_hex(16) for name in [*SUITES, "limited", "colleague"]}
        self.resource_keys = {name: secrets.token_hex(16) for name in ["eastus-ptu", *STANDARD_RESOURCES, "troubled"]}
        self.simulator = self.balancer = self.edge = self.url = self.tls_url = self.edge_url = None
        self.certificate = directory / "localhost.pem"

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Kills the processes that still run, which happens only after a failure."""
        for process in filter(None, [self.edge, self.balancer, self.simulator]):
            if process.poll() is None:
                process.kill()
                process.wait()

    def start(self):
        endpoints = self.start_simulator()
        self.make_certificate()
        for attempts_left in (2, 1, 0):
            port, tls_port = free_port(), free_port()
            self.url, self.tls_url = f"http://127.0.0.1:{port}", f"https://localhost:{tls_port}"
            config = self.directory / "aoai-lb.yaml"
            config.write_text(self.balancer_yaml(port, tls_port, endpoints))
            self.balancer = self.spawn("run", config, "balancer.log")
            try:
                self.wait_until_ready()
                return self.start_edge(tls_port)
            except StackError:
                # Another process may have taken the port in the meantime.
                if attempts_left == 0 or "cannot listen" not in self.log("balancer.log"):
                    raise

    def make_certificate(self):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject]
        command += ["-keyout", self.directory / "localhost.key", "-out", self.certificate]
        subprocess.run(command, check=True, capture_output=True)

    def start_edge(self, port):
        """Starts a second balancer whose only backend is the first, with TLS and HTTP/2 on both sides."""
        for attempts_left in (2, 1, 0):
            edge_port = free_port()
            self.edge_url = f"https://localhost:{edge_port}"
            config = self.directory / "edge.yaml"
            config.write_text(self.edge_yaml(edge_port, port))
            self.edge = self.spawn("run", config, "edge.log")
            try:
                is_listening = lambda: " serves on " in self.log("edge.log") and is_open(edge_port)
                return wait_for_condition(is_listening, START_TIMEOUT, "the edge does not listen", self.edge)
            except StackError:
                if attempts_left == 0 or "cannot listen" not in self.log("edge.log"):
                    raise

    def stop_edge(self):
        """Stops the edge; returns its exit code."""
        self.edge.send_signal(signal.SIGTERM)
        return self.edge.wait(STOP_TIMEOUT)

    def start_simulator(self):
        config = self.directory / "simulate.yaml"
        config.write_text(self.simulator_yaml())
        self.simulator = self.spawn("simulate", config, "simulator.log", stdout=subprocess.PIPE)
        endpoints = {}
        for line in self.simulator.stdout:
            if line.startswith("The simulated resources are running"):
                return endpoints
            name, _, rest = line.partition(": ")
            endpoints[name] = rest.split()[0]
        raise StackError(f"aoai-lb simulate ended:\n{self.log('simulator.log')}")

    def spawn(self, command, config, log, **options):
        # Its own directories for sockets and state: a real balancer may run on this machine.
        own = {"RUNTIME_DIRECTORY": str(self.directory / f"run-{log}"), "STATE_DIRECTORY": str(self.directory / f"state-{log}")}
        environment = options.pop("env", os.environ) | own
        with (self.directory / log).open("w") as errors:
            return subprocess.Popen(
                [self.binary, command, "-c", config],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                text=True,
                cwd=self.directory,
                env=environment,
                **options,
            )

    def wait_until_ready(self):
        wait_for_condition(lambda: self.get_status("/readyz") == 200, START_TIMEOUT, "/readyz does not answer 200", self.balancer)

    def get_status(self, path):
        """The status of a GET without a key; None if there is no connection."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return None
        finally:
            connection.close()

    def send_sigterm(self):
        self.balancer.send_signal(signal.SIGTERM)

    def wait_for_exit(self):
        """Waits for the balancer to exit; returns its exit code."""
        return self.balancer.wait(STOP_TIMEOUT)

    def stop_simulator(self):
        """Stops the simulator as Ctrl-C does; returns its exit code."""
        self.simulator.send_signal(signal.SIGINT)
        return self.simulator.wait(STOP_TIMEOUT)

    def log(self, name, max_characters=4000):
        """The end of a log, or all of it without `max_characters`."""
        path = self.directory / name
        text = path.read_text() if path.exists() else ""
        return text[-max_characters:] if max_characters else text

    def simulator_yaml(self):
        lines = ["resources:"]

        def resource(name, region, deployments, mood=None):
            lines.append(f"  - name: {name}")
            lines.append("    address: 127.0.0.1:0")
            lines.append(f"    region: {region}")
            lines.append(f"    keys: [{self.resource_keys[name]}]")
            lines.append("    deployments:")
            lines.extend(f"      - {deployment}" for deployment in deployments)
            if mood:
                lines.append("    mood:")
                lines.append("      per_deployment:")
                lines.extend(f"        {name}: {mood}" for name, mood in mood.items())

        # Its capacity is used up after a few responses, so that some requests spill over to the next tier.
        provisioned_deployment = "{name: gpt-4o-ptu, model: gpt-4o, provisioned: true, tokens_per_minute: 1000}"
        resource("eastus-ptu", "East US", [provisioned_deployment])
        for name, deployments in STANDARD_RESOURCES.items():
            limited = [f"{{name: {deployment}, tokens_per_minute: 1000000}}" for deployment in deployments]
            resource(name, name.title(), limited)
        cases = {case: mood for case, (mood, _) in MOOD_CASES.items()} | FAILING_MOODS
        moods = {f"{case}-{suite}": mood for case, mood in cases.items() for suite in SUITES}
        chat_deployments = [f"{{name: {name}, model: gpt-4o}}" for name in [*moods, "gpt-4o"]]
        resource("troubled", "Sweden Central", chat_deployments, moods | {"otherwise": "calm"})
        return "\n".join(lines) + "\n"

    def tls_yaml(self):
        return "{ certificate: localhost.pem, private_key: localhost.key }"

    def edge_yaml(self, port, backend):
        lines = ["listeners:", f"  - {{ address: '127.0.0.1:{port}', tls: {self.tls_yaml()}, http2: true }}"]
        lines += ["backends:", "  - name: inner", f"    endpoint: https://localhost:{backend}", "    http2: true"]
        lines += ["    tls: { ca: localhost.pem }", f"    credential: {{ api_key: {self.keys[SUITES[0]]} }}"]
        return "\n".join([*lines, "clients: open", "server: { threads: 2, drain_delay: 0s }"]) + "\n"

    def balancer_yaml(self, port, tls_port, endpoints):
        deployments_by_resource = {name: {deployment: deployment for deployment in names} for name, names in STANDARD_RESOURCES.items()}
        # Other names for deployments of the resources, so that paths and bodies have to be rewritten.
        deployments_by_resource["westus"] |= {"dictation": "whisper", "painter": "gpt-image-1"}
        troubled_deployments = {}
        for suite in SUITES:
            for case, (_, helping_deployment) in MOOD_CASES.items():
                name = f"{case}-{suite}"
                troubled_deployments[name] = name
                if helping_deployment:
                    deployments_by_resource["westus"][name] = helping_deployment
        failing_backends = [f"{case}-{suite}" for case in FAILING_MOODS for suite in SUITES]
        deployments_by_resource["westus"] |= dict.fromkeys(failing_backends, "gpt-4o")
        lines = ["listeners:", f"  - address: 127.0.0.1:{port}"]
        lines += [f"  - {{ address: '127.0.0.1:{tls_port}', tls: {self.tls_yaml()}, http2: true }}", "backends:"]

        def backend(name, tier, resource, key, deployments):
            lines.append(f"  - name: {name}")
            lines.append(f"    endpoint: {endpoints[resource]}")
            lines.append(f"    tier: {tier}")
            lines.append(f"    credential: {{ api_key: {key} }}")
            lines.append("    deployments:")
            lines.extend(f"      {name}: {upstream}" for name, upstream in deployments.items())

        keys = self.resource_keys
        backend("eastus-ptu", 1, "eastus-ptu", keys["eastus-ptu"], {"gpt-4o": "gpt-4o-ptu"})
        backend("troubled", 1, "troubled", keys["troubled"], troubled_deployments)
        backend("miskeyed", 1, "troubled", secrets.token_hex(16), {"miskeyed": "gpt-4o"})
        for name in failing_backends:
            backend(name, 1, "troubled", keys["troubled"], {name: name})
        for name, deployments in deployments_by_resource.items():
            backend(name, 2, name, keys[name], deployments)
        lines.append("clients:")
        for name, key in self.keys.items():
            lines.append(f"  - name: {name}")
            lines.append(f"    keys: [ {{ sha256: {hashlib.sha256(key.encode()).hexdigest()} }} ]")
            if name == "limited":
                lines.append("    deployments: [gpt-4o-mini]")
        lines.append("requests: { api_version: '2024-10-21', home: westus }")
        lines.append("retry: { attempts: 3 }")
        lines.append(f"record: {{ jsonl: {{ path: {self.record} }} }}")
        lines.append("server: { threads: 2, drain_delay: 1s }")
        return "\n".join(lines) + "\n"


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for_condition(condition, seconds, failure_message, process=None):
    deadline = time.monotonic() + seconds
    while not condition():
        if process and process.poll() is not None:
            raise StackError(f"{failure_message}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise StackError(f"{failure_message} within {seconds:g} s")
        time.sleep(0.02)
