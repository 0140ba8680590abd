"""The installed service as an operator sees it: package, unit, files, journal and responses."""

import collections
import gzip
import hashlib
import http.client
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path

from load import CHAT, LoadGenerator, SingleStream
from machine import TestFailure, wait_for_condition, die_with_parent

SOURCE = Path(__file__).resolve().parents[2]
UNIT = "aoai-lb.service"
CONFIG = "/etc/aoai-lb/aoai-lb.yaml"
INSTALLED_BINARY = "/usr/bin/aoai-lb"
# A copy of the installed binary, for parts that replace it.
GOOD_COPY = "/opt/aoai-lb"
DROP_IN_FILE = f"/etc/systemd/system/{UNIT}.d/test.conf"
PORT, TLS_PORT, ADMIN_PORT, UPSTREAM_PORTS = 8080, 443, 9901, (8101, 8102)
ADDRESS = ("127.0.0.1", PORT)
GRACE_PERIOD_SECONDS = 30
# How long an operation may take, in seconds.
OPERATION_TIMEOUT = 10.0
# What fills a disk.
FILLER = "filler"


class Service:
    def __init__(self, machine, binary, directory, commands):
        self.machine, self.binary, self.directory, self.commands = machine, binary, directory, commands
        self.keys = {name: secrets.token_hex(16) for name in ["load", "probe", "later"]}
        self.upstream_key = secrets.token_hex(16)
        self.simulator = None

    # What the tests provide.

    def start_simulator(self):
        lines = ["resources:"]
        for name, port in zip(("east", "west"), UPSTREAM_PORTS):
            lines += [f"  - name: {name}", f"    address: 127.0.0.1:{port}", f"    keys: [{self.upstream_key}]"]
            lines += ["    first_byte: 5ms", "    between_events: 1ms", "    moods_by_header: true"]
            lines += ["    deployments: [ { name: gpt-4o }, { name: gpt-realtime } ]"]
        file = self.directory / "simulate.yaml"
        file.write_text("\n".join(lines) + "\n")
        with (self.directory / "simulator.log").open("w") as log:
            self.simulator = subprocess.Popen(
                [self.binary, "simulate", "-c", file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        for port in UPSTREAM_PORTS:
            wait_for_condition(lambda: is_open(port), 15, "the simulated resources do not listen", lambda: self.simulator.poll() is not None)

    def stop_simulator(self):
        if self.simulator:
            self.simulator.kill()
            self.simulator.wait()

    def make_certificate(self):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "90"]
        output_options = ["-keyout", self.directory / "key.pem", "-out", self.directory / "fullchain.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject, *output_options],
            check=True,
            capture_output=True,
        )
        return self.directory / "fullchain.pem", self.directory / "key.pem"

    def config_yaml(self, clients=("load", "probe"), listeners=(), backends=(), extra=()):
        tls = "{ certificate: /etc/aoai-lb/tls/fullchain.pem, private_key: /etc/aoai-lb/tls/key.pem }"
        lines = ["listeners:", f"  - address: 127.0.0.1:{PORT}", f"  - {{ address: '127.0.0.1:{TLS_PORT}', tls: {tls} }}"]
        lines += [*listeners, "backends:"]
        for name, port in zip(("east", "west"), UPSTREAM_PORTS):
            lines += [f"  - name: {name}", f"    endpoint: http://127.0.0.1:{port}"]
            lines += ['    credential: { api_key: "${UPSTREAM_KEY}" }']
        lines += [*backends, "clients:"]
        for name in clients:
            key_hash = hashlib.sha256(self.keys[name].encode()).hexdigest()
            lines += [f"  - {{ name: {name}, keys: [ {{ sha256: {key_hash} }} ] }}"]
        lines += ["record:", '  jsonl: { path: "${LOGS_DIRECTORY:-/var/log/aoai-lb}/exchanges.jsonl", keep: 100 }']
        lines += ['  spool: { path: "${STATE_DIRECTORY:-/var/lib/aoai-lb}/spool" }', f"admin: {{ address: 127.0.0.1:{ADMIN_PORT} }}"]
        lines += [f"server: {{ threads: 2, grace_period: {GRACE_PERIOD_SECONDS}s, drain_delay: 200ms }}", *extra]
        return "\n".join(lines) + "\n"

    def build_package(self, version, binary, name, source=SOURCE):
        """Builds a package as `make deb` does; its unpacked content stays in the directory `name`."""
        environment = os.environ | {"COMPRESSION": "none"}
        if name != "a":
            environment["STRIP"] = "no"
        result = subprocess.run(
            [source / "systemd/deb/build", binary, self.directory, self.directory / name, version],
            env=environment,
            capture_output=True,
            text=True,
        )
        if result.returncode != 0:
            raise TestFailure(f"the package cannot be built: {result.stderr}")
        path = Path(result.stdout.strip())
        shutil.copy(path, self.machine.host_path("/root"))
        return f"/root/{path.name}"

    def build_tarball(self):
        """Builds the tarball as `make tarball` does; returns its path in the machine."""
        command = [SOURCE / "systemd/tarball", self.binary, self.directory]
        result = subprocess.run(["sh", *command], capture_output=True, text=True)
        if result.returncode != 0:
            raise TestFailure(f"the tarball cannot be built: {result.stderr}")
        path = Path(result.stdout.strip())
        shutil.copy(path, self.machine.host_path("/root"))
        return f"/root/{path.name}"

    def changed_source(self):
        """A copy of the source files of a package, with a changed example configuration."""
        copy = self.directory / "source"
        for name in ["systemd", "conf", "docs", "README.md", "SECURITY.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT", "Cargo.toml"]:
            shutil.copytree(SOURCE / name, copy / name) if (SOURCE / name).is_dir() else (
                copy.mkdir(exist_ok=True),
                shutil.copy(SOURCE / name, copy / name),
            )
        with (copy / "conf/aoai-lb.yaml").open("a") as file:
            file.write("# A later version explains more.\n")
        return copy

    # Actions of an operator.

    def systemctl(self, *arguments, check=True, timeout=GRACE_PERIOD_SECONDS + 30.0):
        return self.machine.run("systemctl", *arguments, check=check, timeout=timeout)

    def write_config(self, text):
        """Replaces the configuration as an editor does, and keeps owner and mode."""
        self.machine.write_file(text, CONFIG, 0o640, like=CONFIG)

    def write_drop_in(self, text=""):
        path = self.machine.host_path(DROP_IN_FILE)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "upgrade" not in self.commands:
            # This binary does not notify systemd yet.
            text = f"[Service]\nType=exec\nWatchdogSec=0\n{text}"
        path.write_text(text)
        self.systemctl("daemon-reload")

    def start_fresh(self, config=None, drop_in=""):
        """Restarts the service without records. Every part of the tests starts with this."""
        # Killed, since a regular stop would wait for requests in flight; it has its own part.
        self.systemctl("stop", "--no-block", UNIT)
        self.systemctl("kill", "--signal=KILL", UNIT, check=False)
        self.systemctl("stop", UNIT)
        self.systemctl("reset-failed", UNIT, check=False)
        for directory in ["/var/log/aoai-lb", "/var/lib/aoai-lb"]:
            for entry in self.machine.host_path(directory).glob("*"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        good_binary = self.machine.host_path(GOOD_COPY).read_bytes()
        if not self.machine.host_path(INSTALLED_BINARY).exists() or self.machine.host_path(INSTALLED_BINARY).read_bytes() != good_binary:
            self.machine.write_file(good_binary, INSTALLED_BINARY, 0o755)
        self.write_config(config or self.config_yaml())
        self.write_drop_in(drop_in)
        self.systemctl("start", UNIT, timeout=2 * OPERATION_TIMEOUT)
        self.wait_until_ready()

    def upgrade(self, check=True, program=INSTALLED_BINARY):
        return self.machine.run(program, "upgrade", "-c", CONFIG, check=check, timeout=150)

    def load_generator(self):
        tls_context = ssl.create_default_context(cafile=self.directory / "fullchain.pem")
        return LoadGenerator(ADDRESS, self.keys["load"], (("127.0.0.1", TLS_PORT), tls_context))

    def start_stream(self, event_interval):
        return SingleStream(ADDRESS, self.keys["load"], event_interval)

    def mount_small_disk(self, path):
        """A disk of its own for a directory of the service."""
        owner = self.machine.host_path(path).stat()
        options = f"size=4m,mode=750,uid={owner.st_uid},gid={owner.st_gid}"
        self.machine.run("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)

    def fill_disk(self, path):
        """Fills a small disk up to its last byte."""
        filler = f"{path}/{FILLER}"
        self.machine.run("dd", "if=/dev/zero", f"of={filler}", "bs=4k", check=False)

    def empty_disk(self, path):
        self.machine.run("rm", f"{path}/{FILLER}")

    # Observations.

    def unit_properties(self, *names):
        text = self.systemctl("show", UNIT, *(f"--property={name}" for name in names)).stdout
        properties = dict(line.split("=", 1) for line in text.splitlines())
        return properties[names[0]] if len(names) == 1 else properties

    def main_pid(self):
        return int(self.unit_properties("MainPID"))

    def unit_pids(self):
        """The process ids of the unit, as seen inside the machine."""
        group = self.unit_properties("ControlGroup")
        listed = self.machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout
        return [int(pid) for pid in listed.split()] if group else []

    def read_main_proc_file(self, file):
        """A file in /proc of the main process."""
        return self.machine.run("cat", f"/proc/{self.main_pid()}/{file}").stdout

    def open_files_limit(self):
        line = next(line for line in self.read_main_proc_file("limits").splitlines() if line.startswith("Max open files"))
        return tuple(int(number) for number in line.split()[3:5])

    def signal_main(self, name):
        """Sends a signal to the main process only."""
        self.systemctl("kill", f"--signal={name}", "--kill-whom=main", UNIT)

    def journal_text(self, cursor=None, lines=None):
        limits = ([f"--after-cursor={cursor}"] if cursor else []) + ([f"--lines={lines}"] if lines else [])
        return self.machine.run("journalctl", "--no-pager", "--output=short-precise", *limits, check=False).stdout

    def journal_cursor(self):
        self.machine.run("journalctl", "--sync")
        text = self.machine.run("journalctl", "--lines=1", "--show-cursor", "--quiet").stdout
        return text.rpartition("-- cursor: ")[2].strip()

    def chat_status(self, client="probe", tls=False):
        """Sends a chat request; returns its status, or None without a response."""
        if tls:
            tls_context = ssl.create_default_context(cafile=self.directory / "fullchain.pem")
            connection = http.client.HTTPSConnection("localhost", TLS_PORT, timeout=OPERATION_TIMEOUT, context=tls_context)
        else:
            connection = http.client.HTTPConnection(*ADDRESS, timeout=OPERATION_TIMEOUT)
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
        try:
            connection.request("POST", CHAT, body, {"api-key": self.keys[client], "Content-Type": "application/json"})
            response = connection.getresponse()
            response.read()
            return response.status
        except OSError:
            return None
        finally:
            connection.close()

    def is_ready(self):
        connection = http.client.HTTPConnection(*ADDRESS, timeout=OPERATION_TIMEOUT)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def wait_until_ready(self):
        wait_for_condition(self.is_ready, OPERATION_TIMEOUT, "/readyz does not answer 200")

    def wait_for_single_process(self, seconds=GRACE_PERIOD_SECONDS):
        """Waits until the main process is the only process of the unit."""
        wait_for_condition(lambda: self.unit_pids() == [self.main_pid()], seconds, f"processes {self.unit_pids()} do not exit")

    def record_counts(self, client):
        """For each request id of a client, the number of its records in all files."""
        counts = collections.Counter()
        for path in self.machine.host_path("/var/log/aoai-lb").glob("exchanges*"):
            data = path.read_bytes()
            for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
                record = json.loads(line)
                if record["client"] == client:
                    # The responses of a WebSocket have ids that no client is told.
                    if record.get("socket_id") is None:
                        counts[record["request_id"]] += 1
        return counts

    def check_records(self, client, ids):
        """Checks that each request has exactly one record; returns the number of records."""
        expected_counts = collections.Counter(ids)
        deadline = time.monotonic() + OPERATION_TIMEOUT
        while (actual_counts := self.try_record_counts(client)) is None or sum(actual_counts.values()) < sum(expected_counts.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        actual_counts = actual_counts or {}
        missing, unexpected = set(expected_counts) - set(actual_counts), set(actual_counts) - set(expected_counts)
        duplicates = [name for name, count in actual_counts.items() if count > 1]
        if missing or unexpected or duplicates:
            raise TestFailure(
                f"{len(expected_counts)} responses, {len(actual_counts)} records: {len(missing)} missing, {len(unexpected)} without a response, "
                f"{len(duplicates)} more than once: {[*missing, *unexpected, *duplicates][:5]}"
            )
        return len(actual_counts)

    def try_record_counts(self, client):
        """Like `record_counts`; None while a file is being renamed, compressed or written."""
        try:
            return self.record_counts(client)
        except (FileNotFoundError, EOFError, gzip.BadGzipFile, json.JSONDecodeError):
            return None


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
