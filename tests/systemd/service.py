"""The service as an operator has it on a machine: its package, unit, files, journal and answers."""

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

from load import CHAT, Load, OneStream
from machine import Failed, await_condition, die_with_parent

SOURCE = Path(__file__).resolve().parents[2]
UNIT = "aoai-lb.service"
CONFIG = "/etc/aoai-lb/aoai-lb.yaml"
INSTALLED = "/usr/bin/aoai-lb"
# The installed binary as it was, for when a part has replaced it.
GOOD_COPY = "/opt/aoai-lb"
DROP_IN = f"/etc/systemd/system/{UNIT}.d/test.conf"
PORT, TLS_PORT, ADMIN_PORT, UPSTREAM_PORTS = 8080, 443, 9901, (8101, 8102)
ADDRESS = ("127.0.0.1", PORT)
GRACE = 30
# What an operator waits for, at most.
SOON = 10.0


class Service:
    def __init__(self, machine, binary, folder, features):
        self.machine, self.binary, self.folder, self.features = machine, binary, folder, features
        self.keys = {name: secrets.token_hex(16) for name in ["load", "probe", "later"]}
        self.upstream_key = secrets.token_hex(16)
        self.simulator = None

    # What the tests bring along.

    def start_simulator(self):
        lines = ["resources:"]
        for name, port in zip(("east", "west"), UPSTREAM_PORTS):
            lines += [f"  - name: {name}", f"    address: 127.0.0.1:{port}", f"    keys: [{self.upstream_key}]"]
            lines += ["    first_byte: 5ms", "    between_events: 1ms", "    moods_by_header: true"]
            lines += ["    deployments: [ { name: gpt-4o }, { name: gpt-realtime } ]"]
        file = self.folder / "simulate.yaml"
        file.write_text("\n".join(lines) + "\n")
        with (self.folder / "simulator.log").open("w") as log:
            self.simulator = subprocess.Popen(
                [self.binary, "simulate", "-c", file],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        for port in UPSTREAM_PORTS:
            await_condition(lambda: is_open(port), 15, "no simulated resources", lambda: self.simulator.poll() is not None)

    def stop_simulator(self):
        if self.simulator:
            self.simulator.kill()
            self.simulator.wait()

    def certificate(self):
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "90"]
        pair = ["-keyout", self.folder / "key.pem", "-out", self.folder / "fullchain.pem"]
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", *subject, *pair],
            check=True,
            capture_output=True,
        )
        return self.folder / "fullchain.pem", self.folder / "key.pem"

    def config(self, clients=("load", "probe"), listeners=(), backends=(), extra=()):
        tls = "{ certificate: /etc/aoai-lb/tls/fullchain.pem, private_key: /etc/aoai-lb/tls/key.pem }"
        lines = ["listeners:", f"  - address: 127.0.0.1:{PORT}", f"  - {{ address: '127.0.0.1:{TLS_PORT}', tls: {tls} }}"]
        lines += [*listeners, "backends:"]
        for name, port in zip(("east", "west"), UPSTREAM_PORTS):
            lines += [f"  - name: {name}", f"    endpoint: http://127.0.0.1:{port}"]
            lines += ['    credential: { api_key: "${UPSTREAM_KEY}" }']
        lines += [*backends, "clients:"]
        for name in clients:
            hashed = hashlib.sha256(self.keys[name].encode()).hexdigest()
            lines += [f"  - {{ name: {name}, keys: [ {{ sha256: {hashed} }} ] }}"]
        lines += ["record:", '  jsonl: { path: "${LOGS_DIRECTORY:-/var/log/aoai-lb}/exchanges.jsonl", keep: 100 }']
        lines += ['  spool: { path: "${STATE_DIRECTORY:-/var/lib/aoai-lb}/spool" }', f"admin: {{ address: 127.0.0.1:{ADMIN_PORT} }}"]
        lines += [f"server: {{ threads: 2, grace_period: {GRACE}s, drain_delay: 200ms }}", *extra]
        return "\n".join(lines) + "\n"

    def build_package(self, version, binary, name, source=SOURCE):
        """A package as `make deb` makes it, unpacked as well in the folder `name`."""
        environment = os.environ | {"COMPRESSION": "none"}
        if name != "a":
            environment["STRIP"] = "no"
        built = subprocess.run(
            [source / "systemd/deb/build", binary, self.folder, self.folder / name, version],
            env=environment,
            capture_output=True,
            text=True,
        )
        if built.returncode != 0:
            raise Failed(f"the package cannot be built: {built.stderr}")
        path = Path(built.stdout.strip())
        shutil.copy(path, self.machine.path("/root"))
        return f"/root/{path.name}"

    def changed_source(self):
        """The parts of the source that a package is made of, with another example configuration."""
        copy = self.folder / "source"
        for name in ["systemd", "conf", "README.md", "LICENSE-MIT", "Cargo.toml"]:
            shutil.copytree(SOURCE / name, copy / name) if (SOURCE / name).is_dir() else (
                copy.mkdir(exist_ok=True),
                shutil.copy(SOURCE / name, copy / name),
            )
        with (copy / "conf/aoai-lb.yaml").open("a") as file:
            file.write("# A later version explains more.\n")
        return copy

    # What an operator does.

    def systemctl(self, *arguments, check=True, timeout=GRACE + 30.0):
        return self.machine.run("systemctl", *arguments, check=check, timeout=timeout)

    def configure(self, text):
        """As an editor does, that keeps owner and mode."""
        self.machine.put(text, CONFIG, 0o640, like=CONFIG)

    def drop_in(self, text=""):
        path = self.machine.path(DROP_IN)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "upgrade" not in self.features:
            # It does not notify yet.
            text = f"[Service]\nType=exec\nWatchdogSec=0\n{text}"
        path.write_text(text)
        self.systemctl("daemon-reload")

    def fresh(self, config=None, drop_in=""):
        """A service that has just started, without records, as every part of the tests begins."""
        # At once, whatever is in flight: how it stops is a part of its own.
        self.systemctl("stop", "--no-block", UNIT)
        self.systemctl("kill", "--signal=KILL", UNIT, check=False)
        self.systemctl("stop", UNIT)
        self.systemctl("reset-failed", UNIT, check=False)
        for folder in ["/var/log/aoai-lb", "/var/lib/aoai-lb"]:
            for entry in self.machine.path(folder).glob("*"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        good = self.machine.path(GOOD_COPY).read_bytes()
        if not self.machine.path(INSTALLED).exists() or self.machine.path(INSTALLED).read_bytes() != good:
            self.machine.put(good, INSTALLED, 0o755)
        self.configure(config or self.config())
        self.drop_in(drop_in)
        self.systemctl("start", UNIT, timeout=2 * SOON)
        self.await_ready()

    def upgrade(self, check=True, program=INSTALLED):
        return self.machine.run(program, "upgrade", "-c", CONFIG, check=check, timeout=150)

    def load(self):
        trusted = ssl.create_default_context(cafile=self.folder / "fullchain.pem")
        return Load(ADDRESS, self.keys["load"], (("127.0.0.1", TLS_PORT), trusted))

    def stream(self, drip):
        return OneStream(ADDRESS, self.keys["load"], drip)

    # What there is to see.

    def show(self, *names):
        text = self.systemctl("show", UNIT, *(f"--property={name}" for name in names)).stdout
        shown = dict(line.split("=", 1) for line in text.splitlines())
        return shown[names[0]] if len(names) == 1 else shown

    def main_pid(self):
        return int(self.show("MainPID"))

    def processes(self):
        """The processes of the unit, by the machine's numbers."""
        group = self.show("ControlGroup")
        listed = self.machine.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs", check=False).stdout
        return [int(pid) for pid in listed.split()] if group else []

    def of_main(self, file):
        """A file of the main process in /proc."""
        return self.machine.run("cat", f"/proc/{self.main_pid()}/{file}").stdout

    def files_limit(self):
        line = next(line for line in self.of_main("limits").splitlines() if line.startswith("Max open files"))
        return tuple(int(number) for number in line.split()[3:5])

    def signal(self, name):
        """To the main process alone."""
        self.systemctl("kill", f"--signal={name}", "--kill-whom=main", UNIT)

    def journal(self, cursor=None, lines=None):
        limits = ([f"--after-cursor={cursor}"] if cursor else []) + ([f"--lines={lines}"] if lines else [])
        return self.machine.run("journalctl", "--no-pager", "--output=short-precise", *limits, check=False).stdout

    def cursor(self):
        self.machine.run("journalctl", "--sync")
        text = self.machine.run("journalctl", "--lines=1", "--show-cursor", "--quiet").stdout
        return text.rpartition("-- cursor: ")[2].strip()

    def ask(self, client="probe", tls=False):
        """The status of a request; None when nobody answers."""
        if tls:
            trusted = ssl.create_default_context(cafile=self.folder / "fullchain.pem")
            connection = http.client.HTTPSConnection("localhost", TLS_PORT, timeout=SOON, context=trusted)
        else:
            connection = http.client.HTTPConnection(*ADDRESS, timeout=SOON)
        body = json.dumps({"messages": [{"role": "user", "content": "hello"}]})
        try:
            connection.request("POST", CHAT, body, {"api-key": self.keys[client], "Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            return answer.status
        except OSError:
            return None
        finally:
            connection.close()

    def is_ready(self):
        connection = http.client.HTTPConnection(*ADDRESS, timeout=SOON)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def await_ready(self):
        await_condition(self.is_ready, SOON, "/readyz does not answer 200")

    def await_drained(self, seconds=GRACE):
        """Until the main process is the only one."""
        await_condition(lambda: self.processes() == [self.main_pid()], seconds, f"{self.processes()} do not end")

    def records(self, client):
        """How often each request id of a client is in the files of records."""
        counts = collections.Counter()
        for path in self.machine.path("/var/log/aoai-lb").glob("exchanges*"):
            data = path.read_bytes()
            for line in (gzip.decompress(data) if path.suffix == ".gz" else data).splitlines():
                record = json.loads(line)
                if record["client"] == client:
                    counts[record["request_id"]] += 1
        return counts

    def compare_records(self, client, ids):
        """Each request is on record exactly once."""
        asked = collections.Counter(ids)
        deadline = time.monotonic() + SOON
        while (kept := self.read_calmly(client)) is None or sum(kept.values()) < sum(asked.values()):
            if time.monotonic() > deadline:
                break
            time.sleep(0.2)
        kept = kept or {}
        missing, strange = set(asked) - set(kept), set(kept) - set(asked)
        twice = [name for name, count in kept.items() if count > 1]
        if missing or strange or twice:
            raise Failed(
                f"{len(asked)} answers, {len(kept)} records: {len(missing)} missing, {len(strange)} of no answer, "
                f"{len(twice)} more than once: {[*missing, *strange, *twice][:5]}"
            )
        return len(kept)

    def read_calmly(self, client):
        """None where a file is renamed, compressed or half written right now."""
        try:
            return self.records(client)
        except (FileNotFoundError, EOFError, gzip.BadGzipFile, json.JSONDecodeError):
            return None


def is_open(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
