"""What is checked, part by part, in this order."""

import os
import resource
import shutil
import socket
import stat
import time

from machine import Failed, await_condition
from service import CONFIG, GOOD_COPY, INSTALLED, SOON, UNIT

EXPOSURE = 2.0
UPGRADES = RELOADS = 10
# What a restart by systemd takes, with RestartSec=1s.
RESTART = 6.0


def installation(service, tally):
    machine = service.machine
    package = service.package = service.build_package("0.1.0", service.binary, "a")
    done = machine.run("apt-get", "install", "--yes", package, check=False)
    tally.expect("the package installs on a bare Debian", done.returncode == 0, done.stdout + done.stderr)
    message = "installed and enabled, but not started" in done.stdout and "systemctl start aoai-lb" in done.stdout
    tally.expect("and says what is to be done", message, done.stdout)
    state = service.show("ActiveState", "UnitFileState", "NRestarts")
    wanted = {"ActiveState": "inactive", "UnitFileState": "enabled", "NRestarts": "0"}
    tally.expect("the service is enabled and not started", state == wanted, str(state))
    warned = machine.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{UNIT}", check=False)
    # Without man pages in the tree there is no man page either.
    words = [line for line in (warned.stdout + warned.stderr).splitlines() if "man " not in line]
    tally.expect("systemd finds no fault with the unit", not words, "\n".join(words))
    tally.expect("configuration and directories are the service's alone", not (bad := wrong_modes(service, FILES)), bad)
    done = machine.run(INSTALLED, "check", "-c", CONFIG, check=False)
    tally.expect("the example is refused", done.returncode == 1 and "clients[0].keys[0]" in done.stdout + done.stderr, done.stderr)
    done = service.systemctl("start", UNIT, check=False)
    refused = done.returncode != 0 or "upgrade" not in service.features
    cursor_free = await_condition(lambda: "clients[0]" in service.journal(lines=80), SOON, "the journal has no reason")
    tally.expect("a start with it fails, with the reason in the journal", refused and cursor_free)
    service.systemctl("stop", UNIT)
    service.systemctl("reset-failed", UNIT, check=False)


def start(service, tally):
    machine = service.machine
    certificate, key = service.certificate()
    owner = machine.path("/etc/aoai-lb").stat().st_gid
    for file in (certificate, key):
        placed = machine.path("/etc/aoai-lb/tls") / file.name
        shutil.copy(file, placed)
        os.chown(placed, 0, owner)
        placed.chmod(0o640)
    machine.put(f"# keys\nUPSTREAM_KEY={service.upstream_key}\n", "/etc/aoai-lb/environment", 0o600)
    shutil.copy(machine.path(INSTALLED), machine.path(GOOD_COPY))
    service.configure(service.config())
    checked = machine.run("sh", "-ac", f". /etc/aoai-lb/environment; aoai-lb check -c {CONFIG}", check=False)
    tally.expect("`aoai-lb check` finds no fault with the operator's file", checked.returncode == 0, checked.stderr)
    service.drop_in()
    service.systemctl("start", UNIT)
    if "upgrade" in service.features:
        tally.expect("`systemctl start` returns when it serves", service.is_ready())
        tally.expect("and says so", service.show("StatusText") != "", "its STATUS is empty")
    else:
        service.await_ready()
        tally.ok("it serves")
    tally.expect("a request passes", service.ask() == 200)
    tally.expect("port 443 is bound, by its own user", service.ask(tls=True) == 200)
    status = dict(line.split(":\t", 1) for line in service.of_main("status").splitlines() if ":\t" in line)
    uid = machine.run("id", "-u", "aoai-lb").stdout.strip()
    tally.expect("it runs as aoai-lb", set(status["Uid"].split()) == {uid}, status["Uid"])
    rights = {status[name] for name in ("CapPrm", "CapEff", "CapBnd")}
    tally.expect("with no right but to bind ports", rights == {f"{1 << 10:016x}"}, str(rights))
    tally.expect("filtered, without new privileges", (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"))
    files = service.files_limit()
    tally.expect("with half a million files", files == (524288, 524288) or files == own_limit(), str(files))
    done = machine.run("systemd-analyze", "security", f"--threshold={EXPOSURE * 10:.0f}", "--no-pager", UNIT, check=False)
    exposure = done.stdout.strip().splitlines()[-1] if done.stdout else done.stderr
    tally.expect(f"systemd-analyze security: below {EXPOSURE}", done.returncode == 0, exposure)
    print(f"        {exposure.strip()}")
    await_condition(lambda: sum((service.read_calmly("probe") or {}).values()) == 2, SOON, "two requests have no two records")
    tally.ok("both are on record")
    tally.expect("records and spool are the service's alone", not (bad := wrong_modes(service, RUNNING)), bad)


def own_limit():
    """What a service gets where the tests themselves may not raise the limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (hard, hard)


# Path, mode, owner, group.
FILES = [
    ("/etc/aoai-lb", 0o750, "root", "aoai-lb"),
    ("/etc/aoai-lb/tls", 0o750, "root", "aoai-lb"),
    (CONFIG, 0o640, "root", "aoai-lb"),
    (INSTALLED, 0o755, "root", "root"),
    ("/usr/lib/systemd/system/aoai-lb.service", 0o644, "root", "root"),
]
RUNNING = [
    ("/run/aoai-lb", 0o700, "aoai-lb", "aoai-lb"),
    ("/var/log/aoai-lb", 0o750, "aoai-lb", "aoai-lb"),
    ("/var/log/aoai-lb/exchanges.jsonl", 0o640, "aoai-lb", "aoai-lb"),
    ("/var/lib/aoai-lb", 0o750, "aoai-lb", "aoai-lb"),
    ("/var/lib/aoai-lb/spool", 0o750, "aoai-lb", "aoai-lb"),
]


def wrong_modes(service, files):
    wrong = []
    for path, mode, owner, group in files:
        have = service.machine.run("stat", "--format=%a %U %G", path, check=False).stdout.strip()
        if have != f"{mode:o} {owner} {group}":
            wrong.append(f"{path} is {have or 'missing'}")
    spool = service.machine.path("/var/lib/aoai-lb/spool")
    for path in spool.rglob("*") if spool.exists() else []:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (0o750 if path.is_dir() else 0o640):
            wrong.append(f"{path.name} in the spool is {mode:o}")
    return ", ".join(wrong)


def reload(service, tally):
    service.fresh()
    before = service.main_pid()
    tally.expect("a client that is not in the file is refused", service.ask("later") == 401)
    service.configure(service.config(clients=("load", "probe", "later")))
    service.systemctl("reload", UNIT)
    await_condition(lambda: service.ask("later") == 200, SOON, "the new client is not admitted")
    tally.ok("a good file is in place")
    service.configure(service.config(clients=("load",)) + "strange: true\n")
    done = service.systemctl("reload", UNIT, check=False)
    tally.expect("a bad file makes `systemctl reload` fail", done.returncode != 0)
    await_condition(lambda: "strange" in service.journal(lines=60), SOON, "the journal does not name the problem")
    tally.ok("the journal says why")
    tally.expect("and changes nothing", service.ask("later") == service.ask() == 200)
    cursor = service.cursor()
    service.signal("HUP")
    await_condition(lambda: "strange" in service.journal(cursor), SOON, "the journal does not name the problem")
    tally.expect("nor does a plain SIGHUP", service.ask("later") == service.ask() == 200)
    state = service.show("ActiveState", "SubState", "MainPID")
    tally.expect("the unit runs on", state == {"ActiveState": "active", "SubState": "running", "MainPID": str(before)}, str(state))
    # What systemd reads anew only with a restart must not end it.
    service.configure(service.config())
    service.systemctl("reload", UNIT)
    await_condition(lambda: service.ask("later") == 401, SOON, "the client is still admitted")
    tally.ok("a client that is taken out is refused")


def upgrade(service, tally):
    service.fresh()
    before, invocation, files = service.main_pid(), service.show("InvocationID"), service.files_limit()
    service.upgrade()
    after = service.main_pid()
    tally.expect("`aoai-lb upgrade` returns with another main process", after not in (0, before), f"{before}, {after}")
    tally.expect("that serves", service.ask() == 200 and service.ask(tls=True) == 200)
    cursor = service.cursor()
    service.signal("USR2")
    await_condition(lambda: service.main_pid() not in (0, after), 30, "SIGUSR2 brings no other main process")
    tally.expect("so does SIGUSR2", service.ask() == 200)
    service.await_drained()
    tally.ok("the old processes end")
    tally.expect("without a word about a process that is no child", "not our child" not in service.journal(cursor))
    state = service.show("ActiveState", "SubState", "NRestarts", "InvocationID")
    wanted = {"ActiveState": "active", "SubState": "running", "NRestarts": "0", "InvocationID": invocation}
    tally.expect("the unit was active all the time, without a restart", state == wanted, str(state))
    tally.expect("the new process has the unit's limits", service.files_limit() == files, str(service.files_limit()))
    service.configure(service.config(clients=("load", "probe", "later")))
    service.systemctl("reload", UNIT)
    await_condition(lambda: service.ask("later") == 200, SOON, "the new client is not admitted")
    tally.ok("a reload reaches the new process")
    before = service.main_pid()
    both = [service.machine.start(INSTALLED, "upgrade", "-c", CONFIG) for _ in range(2)]
    codes = [process.wait(60) for process in both]
    tally.expect("of two upgrades at once, one is done or both are", 0 in codes and service.main_pid() != before, str(codes))
    tally.expect("and it serves", service.ask() == 200)
    third = service.main_pid()
    service.signal("QUIT")
    time.sleep(2)
    tally.expect("SIGQUIT does nothing", service.main_pid() == third and service.ask() == 200)
    begun = time.monotonic()
    service.systemctl("stop", UNIT)
    result = service.show("Result")
    tally.expect("a stop is quick and clean", time.monotonic() - begun < 8 and result == "success", result)


def upgrades_and_reloads_under_load(service, tally):
    service.fresh()
    upgrading, reloading = 0.0, 0.0
    with service.load() as load:
        time.sleep(2)
        for n in range(max(UPGRADES, RELOADS)):
            begun = time.monotonic()
            if n < RELOADS:
                clients = ("load", "probe", "later") if n % 2 else ("load", "probe")
                service.configure(service.config(clients=clients))
                service.systemctl("reload", UNIT)
                reloading += time.monotonic() - begun
            time.sleep(0.3)
            begun = time.monotonic()
            if n < UPGRADES:
                service.upgrade()
                upgrading += time.monotonic() - begun
            time.sleep(0.3)
            if load.failures:
                break
        time.sleep(2)
    if load.failures:
        raise Failed(f"{len(load.failures)} of {load.total() + len(load.failures)} failed:\n" + "\n".join(load.failures[:12]))
    tally.ok(f"{UPGRADES} upgrades and {RELOADS} reloads, nothing failed", load.summary())
    print(f"        {upgrading / UPGRADES:.2f} s per upgrade, {reloading / RELOADS:.2f} s per reload, {load.reconnected} idle connections closed")
    tally.ok("each request is on record exactly once", str(service.compare_records("load", load.ids)))
    service.await_drained()
    tally.ok("no old process is left")
    restarts = service.show("NRestarts")
    tally.expect("there was no restart", restarts == "0", restarts)


def crash(service, tally):
    service.fresh()
    before = service.main_pid()
    service.signal("KILL")
    await_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), RESTART, "it does not come back")
    tally.expect("after kill -9 it serves again", service.ask() == 200 and service.show("NRestarts") == "1")


def crash_after_upgrade(service, tally):
    service.fresh()
    stream = service.stream("400ms")
    service.upgrade()
    before = service.main_pid()
    tally.expect("a stream keeps the old process", len(service.processes()) == 2, str(service.processes()))
    service.signal("KILL")
    await_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), RESTART, "it does not come back")
    tally.expect("after kill -9 of the new one it serves again", service.ask() == 200 and service.show("NRestarts") == "1")
    tally.expect("and no other process is left", service.processes() == [service.main_pid()], str(service.processes()))
    stream.result()


def upgrades_that_fail(service, tally):
    attempt = Attempt(service, tally)
    service.configure(service.config() + "strange: true\n")
    attempt.fails("a file that is wrong", ["strange"])
    service.configure(service.config())
    attempt.install("#!/bin/sh\nexit 1\n")
    attempt.fails("a binary that exits with 1", ["exit status: 1"])
    attempt.install('#!/bin/sh\n[ "$1" != check ] || exit 0\nexit 7\n')
    attempt.fails("a binary that only knows `check`", ["ended", "exit", "7"])
    attempt.install(attempt.good[: len(attempt.good) // 2])
    attempt.fails("half a binary", ["signal", "format", "exec"])
    service.machine.path(INSTALLED).unlink()
    attempt.fails("no binary", ["no such file", "not found", "missing"])
    attempt.install(attempt.good)
    with socket.create_server(("127.0.0.1", 8099)):
        service.configure(service.config(listeners=["  - address: 127.0.0.1:8099"]))
        attempt.fails("a port that is taken", ["8099"])
    service.upgrade()
    tally.expect("afterwards an upgrade works", service.main_pid() != attempt.main and service.ask() == 200)
    with socket.create_connection(("127.0.0.1", 8099)):
        tally.ok("and listens on what was added")


def upgrades_that_hang(service, tally):
    attempt = Attempt(service, tally)
    attempt.install("#!/bin/sh\nexec sleep 600\n")
    attempt.fails("a binary that does nothing", ["within", "in time", "timed out"])
    attempt.install('#!/bin/sh\n[ "$1" != check ] || exit 0\nexec sleep 600\n')
    attempt.fails("a binary that does nothing but `check`", ["within", "in time", "timed out"])


class Attempt:
    """An upgrade that is to fail, while the old process goes on. It is asked for with a good binary."""

    def __init__(self, service, tally):
        service.fresh()
        self.service, self.tally = service, tally
        self.main, self.good = service.main_pid(), service.machine.path(GOOD_COPY).read_bytes()

    def install(self, content):
        self.service.machine.put(content, INSTALLED, 0o755)

    def fails(self, what, words):
        service, tally = self.service, self.tally
        cursor = service.cursor()
        done = service.upgrade(check=False, program=GOOD_COPY)
        said = done.stdout + done.stderr
        tally.expect(f"{what}: refused, with the reason", done.returncode != 0 and any(word in said.lower() for word in words), said)
        state = service.show("ActiveState", "SubState", "MainPID", "NRestarts")
        wanted = {"ActiveState": "active", "SubState": "running", "MainPID": str(self.main), "NRestarts": "0"}
        tally.expect(f"{what}: the old process is still the main one", state == wanted, str(state))
        tally.expect(f"{what}: and serves", service.ask() == 200 and service.ask(tls=True) == 200)
        text = service.journal(cursor).lower()
        tally.expect(f"{what}: the journal has the reason", any(word in text for word in words), text)
        service.await_drained(SOON)


def a_vault_that_is_away(service, tally):
    secret = "{ key_vault: \"https://127.0.0.1:9/secrets/away\" }"
    vault = ["key_vault:", "  credential: { entra: { client_secret: { tenant: 00000000-0000-0000-0000-000000000000,"]
    vault += ["    client_id: 00000000-0000-0000-0000-000000000000, secret: nothing }, authority: 'https://127.0.0.1:9' } }"]
    backend = ["  - name: vaulted", "    endpoint: https://vaulted.invalid", f"    credential: {secret}"]
    cursor = service.cursor()
    service.fresh(service.config(backends=backend, extra=vault))
    tally.expect("it starts all the same", service.ask() == 200)
    text = service.journal(cursor)
    tally.expect("and says which backend is left out", "vaulted" in text and "left out" in text, text)


def stop(service, tally):
    service.fresh()
    cursor = service.cursor()
    stream = service.stream("80ms")
    time.sleep(0.5)
    service.systemctl("stop", UNIT)
    stopped = time.monotonic()
    problem = stream.result()
    tally.expect("a stream ends whole while the service stops", problem is None, problem)
    tally.expect("which ends right after", 0 <= stopped - stream.ended < 2, f"{stopped - stream.ended:.2f} s")
    text = service.journal(cursor)
    tally.expect("nothing was killed", service.show("Result") == "success" and "SIGKILL" not in text and "timed out" not in text)
    kept = sum(service.records("load").values())
    tally.expect("its record is there", kept == 1, f"{kept} records")


def stop_after_upgrade(service, tally):
    service.fresh()
    cursor = service.cursor()
    old = service.stream("200ms")
    service.upgrade()
    new = service.stream("60ms")
    tally.expect("two processes have a stream each", len(service.processes()) == 2, str(service.processes()))
    service.systemctl("stop", UNIT)
    stopped = time.monotonic()
    problems = [old.result(), new.result()]
    tally.expect("both streams end whole", problems == [None, None], str(problems))
    late = stopped - max(old.ended, new.ended)
    tally.expect("the stop ends right after the last one", 0 <= late < 2, f"{late:.2f} s")
    text = service.journal(cursor)
    tally.expect("nothing was killed", service.show("Result") == "success" and "SIGKILL" not in text and "timed out" not in text)
    tally.expect("no process is left", not service.processes())


def stop_amid_upgrade(service, tally):
    for wait in (0.05, 0.3, 0.7, 1.2):
        service.fresh()
        cursor = service.cursor()
        asked = service.machine.start(INSTALLED, "upgrade", "-c", CONFIG)
        time.sleep(wait)
        service.systemctl("stop", UNIT)
        asked.wait(60)
        time.sleep(0.5)
        state = service.show("ActiveState", "Result", "NRestarts")
        wanted = {"ActiveState": "inactive", "Result": "success", "NRestarts": "0"}
        tally.expect(f"{wait} s after an upgrade began: the stop is clean", state == wanted, str(state))
        tally.expect(f"{wait} s after an upgrade began: nothing was killed", "SIGKILL" not in service.journal(cursor))
        tally.expect(f"{wait} s after an upgrade began: no process is left", not service.processes() and not service.is_ready())


def credentials(service, tally):
    service.machine.put(service.upstream_key, "/etc/aoai-lb/upstream-key", 0o600)
    credential = "LoadCredential=upstream:/etc/aoai-lb/upstream-key"
    read = service.config().replace("${UPSTREAM_KEY}", f"${{file:/run/credentials/{UNIT}/upstream}}")
    service.fresh(read, f"[Service]\n{credential}\n")
    tally.expect("a file of LoadCredential= is read", service.ask() == 200)
    if "upgrade" in service.features:
        service.configure(read.replace("  - { name: probe", "  # again\n  - { name: probe"))
        service.systemctl("reload", UNIT)
        tally.expect("by a reload, too", service.ask() == 200)
        service.upgrade()
        tally.expect("and after an upgrade", service.ask() == 200)
        service.systemctl("reload", UNIT)
        tally.expect("and by a reload after that", service.ask() == 200)


def watchdog(service, tally):
    service.fresh(drop_in="[Service]\nWatchdogSec=2s\n")
    before = service.main_pid()
    time.sleep(5)
    tally.expect("it tells systemd that it lives", service.main_pid() == before and service.show("NRestarts") == "0")
    service.upgrade()
    before = service.main_pid()
    time.sleep(4)
    tally.expect("so does the new process after an upgrade", service.main_pid() == before and service.show("NRestarts") == "0")
    service.signal("STOP")
    await_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), 2 + 10 + RESTART, "it does not come back")
    tally.expect("a process that stands still is replaced", service.ask() == 200 and service.show("NRestarts") == "1")


def package_upgrade(service, tally):
    machine = service.machine
    service.fresh()
    changed = service.folder / "changed"
    changed.write_bytes((service.folder / "a/root/usr/bin/aoai-lb").read_bytes() + b"a later version\n")
    changed.chmod(0o755)
    package = service.build_package("0.1.1", changed, "b", service.changed_source())
    before, file = service.main_pid(), machine.path(CONFIG).read_text()
    with service.load() as load:
        time.sleep(2)
        done = machine.run("dpkg", "--force-confold", "--install", package, check=False)
        time.sleep(2)
    service.package = package
    tally.expect("it installs", done.returncode == 0, done.stdout + done.stderr)
    tally.expect("and says that the service was replaced", "without a gap" in done.stdout, done.stdout + done.stderr)
    tally.expect("nothing failed meanwhile", not load.failures and load.total(), "\n".join(load.failures[:12]))
    tally.ok("each request is on record exactly once", str(service.compare_records("load", load.ids)))
    inode = machine.run("stat", "--dereference", "--format=%i", f"/proc/{service.main_pid()}/exe", INSTALLED).stdout.split()
    tally.expect("the new binary runs", service.main_pid() != before and len(set(inode)) == 1, str(inode))
    tally.expect("the operator's file is as it was", machine.path(CONFIG).read_text() == file)
    tally.expect("with its owner and mode", not (bad := wrong_modes(service, FILES)), bad)
    state = service.show("ActiveState", "NRestarts", "UnitFileState")
    wanted = {"ActiveState": "active", "NRestarts": "0", "UnitFileState": "enabled"}
    tally.expect("without a restart", state == wanted, str(state))
    service.configure(service.config() + "strange: true\n")
    main = service.main_pid()
    done = machine.run("dpkg", "--force-confold", "--install", package, check=False)
    tally.expect("with a file that is wrong it installs as well", done.returncode == 0, done.stdout + done.stderr)
    said = "the old version goes on" in done.stderr and "strange" in done.stdout + done.stderr
    tally.expect("and says what to do", said, done.stdout + done.stderr)
    tally.expect("while the old process serves", service.main_pid() == main and service.ask() == 200)


def removal(service, tally):
    machine = service.machine
    service.fresh()
    service.ask()
    stream = service.stream("40ms")
    done = machine.run("dpkg", "--remove", "aoai-lb", check=False)
    tally.expect("the package is removed", done.returncode == 0, done.stdout + done.stderr)
    problem = stream.result()
    tally.expect("after the answers in flight", problem is None, problem)
    left = machine.run("sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done | grep -c aoai-lb", check=False).stdout.strip()
    tally.expect("nothing runs", left == "0", left)
    kept = all(machine.path(path).exists() for path in [CONFIG, "/var/log/aoai-lb/exchanges.jsonl"])
    tally.expect("configuration and records are still there", kept)
    done = machine.run("apt-get", "install", "--yes", service.package, check=False)
    state = service.show("ActiveState", "UnitFileState")
    started = done.returncode == 0 and state == {"ActiveState": "active", "UnitFileState": "enabled"}
    tally.expect("installed again, with a good configuration, it starts", started, f"{state}\n{done.stdout}{done.stderr}")
    tally.expect("and serves as before", service.ask() == 200)
    # The test's own.
    shutil.rmtree(machine.path(f"/etc/systemd/system/{UNIT}.d"))
    done = machine.run("dpkg", "--purge", "aoai-lb", check=False)
    tally.expect("the package is purged", done.returncode == 0, done.stdout + done.stderr)
    paths = ["/var/log/aoai-lb", "/var/lib/aoai-lb", "/run/aoai-lb", CONFIG, "/etc/aoai-lb/environment", INSTALLED]
    left = [path for path in paths if machine.path(path).exists()]
    tally.expect("and nothing of it is left", not left, str(left))
    tally.expect("but the operator's certificates", machine.path("/etc/aoai-lb/tls/key.pem").exists())
    links = machine.run("find", "/etc/systemd", "/var/lib/systemd", "-name", "*aoai-lb*").stdout
    tally.expect("systemd has forgotten it", not links, links)


ALL = [
    installation,
    start,
    reload,
    upgrade,
    upgrades_and_reloads_under_load,
    crash,
    crash_after_upgrade,
    upgrades_that_fail,
    upgrades_that_hang,
    a_vault_that_is_away,
    stop,
    stop_after_upgrade,
    stop_amid_upgrade,
    credentials,
    watchdog,
    package_upgrade,
    removal,
]
# Minutes, most of them waiting: only where they are asked for by name.
SLOW = [upgrades_that_hang]
# The others rest on these.
FIRST = [installation, start]
NEEDS = {
    part: ["upgrade"]
    for part in [
        reload,
        upgrade,
        upgrades_and_reloads_under_load,
        crash_after_upgrade,
        upgrades_that_fail,
        upgrades_that_hang,
        stop_after_upgrade,
        stop_amid_upgrade,
        watchdog,
        package_upgrade,
    ]
}
