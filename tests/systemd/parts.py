"""The parts of the tests, in the order in which they run."""

import json
import os
import resource
import shutil
import socket
import stat
import time

from documentation import documentation
from machine import TestFailure, wait_for_condition
from service import CONFIG, GOOD_COPY, INSTALLED_BINARY, OPERATION_TIMEOUT, UNIT

MAX_EXPOSURE = 2.0
UPGRADE_COUNT = RELOAD_COUNT = 10
# How many exchanges of the load end between two of them: about a third of a second.
EXCHANGES_BETWEEN = 20
WATCHDOG_SECONDS = 2
# How long a restart by systemd may take, in seconds, with RestartSec=1s.
RESTART_TIMEOUT = 6.0


def installation(service, report):
    machine = service.machine
    package = service.package = service.build_package("0.1.0", service.binary, "a")
    completed = machine.run("apt-get", "install", "--yes", package, check=False)
    report.expect("the package installs on a bare Debian", completed.returncode == 0, completed.stdout + completed.stderr)
    message = "installed and enabled, but not started" in completed.stdout and "systemctl start aoai-lb" in completed.stdout
    report.expect("the package prints the next steps", message, completed.stdout)
    state = service.unit_properties("ActiveState", "UnitFileState", "NRestarts")
    expected_state = {"ActiveState": "inactive", "UnitFileState": "enabled", "NRestarts": "0"}
    report.expect("the service is enabled and not started", state == expected_state, str(state))
    warned = machine.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{UNIT}", check=False)
    # The tree has no man pages, so the one of the unit is missing, too.
    fault_lines = [line for line in (warned.stdout + warned.stderr).splitlines() if "man " not in line]
    report.expect("systemd-analyze verify accepts the unit", not fault_lines, "\n".join(fault_lines))
    report.expect("configuration and directories are accessible to the service only", not (problems := mode_problems(service, INSTALLED_FILES)), problems)
    completed = machine.run(INSTALLED_BINARY, "check", "-c", CONFIG, check=False)
    report.expect("check refuses the example configuration", completed.returncode == 1 and "clients[0] (team-a).keys[0]" in completed.stdout + completed.stderr, completed.stderr)
    completed = service.systemctl("start", UNIT, check=False)
    refused = completed.returncode != 0 or "upgrade" not in service.commands
    cursor_free = wait_for_condition(lambda: "clients[0]" in service.journal_text(lines=80), OPERATION_TIMEOUT, "the journal has no reason for the failure")
    report.expect("a start with the example fails, with the reason in the journal", refused and cursor_free)
    service.systemctl("stop", UNIT)
    service.systemctl("reset-failed", UNIT, check=False)


def start(service, report):
    machine = service.machine
    certificate, key = service.make_certificate()
    owner = machine.host_path("/etc/aoai-lb").stat().st_gid
    for file in (certificate, key):
        placed = machine.host_path("/etc/aoai-lb/tls") / file.name
        shutil.copy(file, placed)
        os.chown(placed, 0, owner)
        placed.chmod(0o640)
    machine.write_file(f"# keys\nUPSTREAM_KEY={service.upstream_key}\n", "/etc/aoai-lb/environment", 0o600)
    shutil.copy(machine.host_path(INSTALLED_BINARY), machine.host_path(GOOD_COPY))
    service.write_config(service.config_yaml())
    checked = machine.run("aoai-lb", "check", check=False)
    report.expect("check accepts the edited configuration", checked.returncode == 0, checked.stderr)
    service.write_drop_in()
    service.systemctl("start", UNIT)
    if "upgrade" in service.commands:
        report.expect("systemctl start returns when the service is ready", service.is_ready())
        report.expect("the unit has a status text", service.unit_properties("StatusText") != "", "StatusText is empty")
    else:
        service.wait_until_ready()
        report.pass_check("the service is ready")
    report.expect("a request succeeds", service.chat_status() == 200)
    report.expect("port 443 is bound by the user of the service", service.chat_status(tls=True) == 200)
    status = dict(line.split(":\t", 1) for line in service.read_main_proc_file("status").splitlines() if ":\t" in line)
    uid = machine.run("id", "-u", "aoai-lb").stdout.strip()
    report.expect("the process runs as aoai-lb", set(status["Uid"].split()) == {uid}, status["Uid"])
    capability_sets = {status[name] for name in ("CapPrm", "CapEff", "CapBnd")}
    report.expect("its only capability is to bind low ports", capability_sets == {f"{1 << 10:016x}"}, str(capability_sets))
    report.expect("it has a seccomp filter and no new privileges", (status["Seccomp"], status["NoNewPrivs"]) == ("2", "1"))
    files = service.open_files_limit()
    report.expect("it may open half a million files", files == (524288, 524288) or files == own_files_limit(), str(files))
    completed = machine.run("systemd-analyze", "security", f"--threshold={MAX_EXPOSURE * 10:.0f}", "--no-pager", UNIT, check=False)
    exposure = completed.stdout.strip().splitlines()[-1] if completed.stdout else completed.stderr
    report.expect(f"systemd-analyze security reports an exposure below {MAX_EXPOSURE}", completed.returncode == 0, exposure)
    print(f"        {exposure.strip()}")
    wait_for_condition(lambda: sum((service.try_record_counts("probe") or {}).values()) == 2, OPERATION_TIMEOUT, "two requests do not have two records")
    report.pass_check("both requests are recorded")
    report.expect("records and spool are accessible to the service only", not (problems := mode_problems(service, RUNTIME_FILES)), problems)


def own_files_limit():
    """The limit of a service if the tests themselves may not raise it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return (hard, hard)


# Path, mode, owner, group.
INSTALLED_FILES = [
    ("/etc/aoai-lb", 0o750, "root", "aoai-lb"),
    ("/etc/aoai-lb/tls", 0o750, "root", "aoai-lb"),
    (CONFIG, 0o640, "root", "aoai-lb"),
    ("/etc/aoai-lb/environment", 0o640, "root", "aoai-lb"),
    (INSTALLED_BINARY, 0o755, "root", "root"),
    ("/usr/lib/systemd/system/aoai-lb.service", 0o644, "root", "root"),
]
RUNTIME_FILES = [
    ("/run/aoai-lb", 0o700, "aoai-lb", "aoai-lb"),
    ("/var/log/aoai-lb", 0o750, "aoai-lb", "aoai-lb"),
    ("/var/log/aoai-lb/exchanges.jsonl", 0o640, "aoai-lb", "aoai-lb"),
    ("/var/lib/aoai-lb", 0o750, "aoai-lb", "aoai-lb"),
    ("/var/lib/aoai-lb/spool", 0o750, "aoai-lb", "aoai-lb"),
]
STATE_FILES = [
    ("/var/lib/aoai-lb/drains.json", 0o640, "aoai-lb", "aoai-lb"),
    ("/var/lib/aoai-lb/lock", 0o640, "aoai-lb", "aoai-lb"),
]


def mode_problems(service, files):
    wrong = []
    for path, mode, owner, group in files:
        actual = service.machine.run("stat", "--format=%a %U %G", path, check=False).stdout.strip()
        if actual != f"{mode:o} {owner} {group}":
            wrong.append(f"{path} is {actual or 'missing'}")
    spool = service.machine.host_path("/var/lib/aoai-lb/spool")
    for path in spool.rglob("*") if spool.exists() else []:
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode != (0o750 if path.is_dir() else 0o640):
            wrong.append(f"{path.name} in the spool is {mode:o}")
    return ", ".join(wrong)


def reload(service, report):
    service.start_fresh()
    before = service.main_pid()
    report.expect("a client that is not configured is refused", service.chat_status("later") == 401)
    service.write_config(service.config_yaml(clients=("load", "probe", "later")))
    service.systemctl("reload", UNIT)
    wait_for_condition(lambda: service.chat_status("later") == 200, OPERATION_TIMEOUT, "the new client is not accepted")
    report.pass_check("a valid file is applied")
    service.write_config(service.config_yaml(clients=("load",)) + "strange: true\n")
    completed = service.systemctl("reload", UNIT, check=False)
    report.expect("an invalid file makes systemctl reload fail", completed.returncode != 0)
    wait_for_condition(lambda: "strange" in service.journal_text(lines=60), OPERATION_TIMEOUT, "the journal does not name the problem")
    report.pass_check("the journal names the problem")
    report.expect("the invalid file changes nothing", service.chat_status("later") == service.chat_status() == 200)
    cursor = service.journal_cursor()
    service.signal_main("HUP")
    wait_for_condition(lambda: "strange" in service.journal_text(cursor), OPERATION_TIMEOUT, "the journal does not name the problem")
    report.expect("nor with a plain SIGHUP", service.chat_status("later") == service.chat_status() == 200)
    state = service.unit_properties("ActiveState", "SubState", "MainPID")
    report.expect("the unit keeps running", state == {"ActiveState": "active", "SubState": "running", "MainPID": str(before)}, str(state))
    # A further reload with a valid file works.
    service.write_config(service.config_yaml())
    service.systemctl("reload", UNIT)
    wait_for_condition(lambda: service.chat_status("later") == 401, OPERATION_TIMEOUT, "the client is still accepted")
    report.pass_check("a removed client is refused")


def upgrade(service, report):
    service.start_fresh()
    before, invocation, files = service.main_pid(), service.unit_properties("InvocationID"), service.open_files_limit()
    service.upgrade()
    after = service.main_pid()
    report.expect("aoai-lb upgrade returns with a new main process", after not in (0, before), f"{before}, {after}")
    report.expect("the new process answers", service.chat_status() == 200 and service.chat_status(tls=True) == 200)
    cursor = service.journal_cursor()
    service.signal_main("USR2")
    wait_for_condition(lambda: service.main_pid() not in (0, after), 30, "SIGUSR2 does not start a new main process")
    report.expect("SIGUSR2 starts a new main process, too", service.chat_status() == 200)
    service.wait_for_single_process()
    report.pass_check("the old processes exit")
    report.expect("systemd does not log that the main process is not its child", "not our child" not in service.journal_text(cursor))
    state = service.unit_properties("ActiveState", "SubState", "NRestarts", "InvocationID")
    expected_state = {"ActiveState": "active", "SubState": "running", "NRestarts": "0", "InvocationID": invocation}
    report.expect("the unit stayed active without a restart", state == expected_state, str(state))
    report.expect("the new process has the unit's limits", service.open_files_limit() == files, str(service.open_files_limit()))
    service.write_config(service.config_yaml(clients=("load", "probe", "later")))
    service.systemctl("reload", UNIT)
    wait_for_condition(lambda: service.chat_status("later") == 200, OPERATION_TIMEOUT, "the new client is not accepted")
    report.pass_check("a reload reaches the new process")
    before = service.main_pid()
    both = [service.machine.start(INSTALLED_BINARY, "upgrade", "-c", CONFIG) for _ in range(2)]
    codes = [process.wait(60) for process in both]
    report.expect("of two concurrent upgrades at least one succeeds", 0 in codes and service.main_pid() != before, str(codes))
    report.expect("the service answers after that", service.chat_status() == 200)
    third = service.main_pid()
    cursor = service.journal_cursor()
    service.signal_main("QUIT")
    wait_for_condition(lambda: "SIGQUIT is ignored" in service.journal_text(cursor), OPERATION_TIMEOUT, "SIGQUIT is not reported")
    report.expect("SIGQUIT is ignored", service.main_pid() == third and service.chat_status() == 200)
    start = time.monotonic()
    service.systemctl("stop", UNIT)
    result = service.unit_properties("Result")
    report.expect("a stop is quick and successful", time.monotonic() - start < 8 and result == "success", result)


def drains(service, report):
    service.start_fresh()
    completed = service.machine.run(INSTALLED_BINARY, "drain", "west", check=False)
    report.expect("aoai-lb drain finds the service by its installed configuration", completed.stdout.startswith("west is drained; "), completed.stderr)
    report.expect("the state directory is accessible to the service only", not (problems := mode_problems(service, STATE_FILES)), problems)
    service.systemctl("restart", UNIT)
    service.wait_until_ready()
    report.expect("a drain outlives systemctl restart", backend_states(service) == ["healthy", "drained"], str(backend_states(service)))
    service.upgrade()
    service.wait_for_single_process()
    report.expect("and an upgrade", backend_states(service) == ["healthy", "drained"], str(backend_states(service)))
    before = service.main_pid()
    service.signal_main("KILL")
    wait_for_condition(lambda: service.main_pid() not in (0, before), RESTART_TIMEOUT, "systemd does not restart the service")
    service.wait_until_ready()
    report.expect("and a kill", backend_states(service) == ["healthy", "drained"], str(backend_states(service)))
    service.machine.run(INSTALLED_BINARY, "undrain", "west")
    service.systemctl("restart", UNIT)
    service.wait_until_ready()
    report.expect("what was undrained stays so", backend_states(service) == ["healthy", "healthy"], str(backend_states(service)))
    completed = service.machine.run(INSTALLED_BINARY, "reload", check=False)
    report.expect("aoai-lb reload says what changed", completed.stdout.startswith("nothing changed\n"), completed.stdout + completed.stderr)


def backend_states(service):
    status = json.loads(service.machine.run(INSTALLED_BINARY, "status", "--json").stdout)
    return [backend["state"] for backend in status["backends"]]


def logrotate(service, report):
    service.start_fresh()
    ids, path = [], service.machine.host_path("/var/log/aoai-lb/exchanges.jsonl")
    with service.load_generator() as load:
        load.wait_for_each_kind()
        before = service.main_pid()
        for n in range(5):
            path.rename(path.with_name(f"exchanges.jsonl.{n}"))
            service.signal_main("USR1")
            has_records = lambda: path.exists() and path.stat().st_size > 0
            wait_for_condition(has_records, OPERATION_TIMEOUT, "SIGUSR1 does not open the record file again")
        report.expect("SIGUSR1 does not stop the service", service.main_pid() == before)
    report.expect("no request fails", not load.failures, str(load.failures[:3]))
    report.pass_check("each request has exactly one record", str(service.check_records("load", load.ids)))


def upgrades_and_reloads_under_load(service, report):
    service.start_fresh()
    upgrading, reloading = 0.0, 0.0
    with service.load_generator() as load:
        load.wait_for_each_kind()
        for n in range(max(UPGRADE_COUNT, RELOAD_COUNT)):
            start = time.monotonic()
            if n < RELOAD_COUNT:
                clients = ("load", "probe", "later") if n % 2 else ("load", "probe")
                service.write_config(service.config_yaml(clients=clients))
                service.systemctl("reload", UNIT)
                reloading += time.monotonic() - start
            load.wait_for_exchanges(EXCHANGES_BETWEEN)
            start = time.monotonic()
            if n < UPGRADE_COUNT:
                service.upgrade()
                upgrading += time.monotonic() - start
            load.wait_for_exchanges(EXCHANGES_BETWEEN)
            if load.failures:
                break
        load.wait_for_each_kind()
    if load.failures:
        raise TestFailure(f"{len(load.failures)} of {load.total_completed() + len(load.failures)} failed:\n" + "\n".join(load.failures[:12]))
    report.pass_check(f"{UPGRADE_COUNT} upgrades and {RELOAD_COUNT} reloads without a failed request", load.summary())
    print(f"        {upgrading / UPGRADE_COUNT:.2f} s per upgrade, {reloading / RELOAD_COUNT:.2f} s per reload, {load.reconnected} idle connections closed")
    report.pass_check("each request has exactly one record", str(service.check_records("load", load.ids)))
    service.wait_for_single_process()
    report.pass_check("no old process remains")
    restarts = service.unit_properties("NRestarts")
    report.expect("the unit was not restarted", restarts == "0", restarts)


def crash(service, report):
    service.start_fresh()
    before = service.main_pid()
    logs = service.machine.run("find", "/run/aoai-lb", "-name", "*.records").stdout.split()
    report.expect("there is a write-ahead log in /run", bool(logs))
    statuses = [service.chat_status() for _ in range(20)]
    service.machine.run("touch", "/run/aoai-lb/marker")
    service.signal_main("KILL")
    wait_for_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), RESTART_TIMEOUT, "the service is not restarted")
    statuses.append(service.chat_status())
    report.expect("the service is restarted after SIGKILL", statuses[-1] == 200 and service.unit_properties("NRestarts") == "1")
    is_kept = service.machine.run("rm", "/run/aoai-lb/marker", check=False).returncode == 0
    report.expect("what is in /run/aoai-lb outlives the process", is_kept)
    has_all = lambda: sum((service.try_record_counts("probe") or {}).values()) >= len(statuses)
    wait_for_condition(has_all, OPERATION_TIMEOUT, "records are missing after a kill")
    counts = service.record_counts("probe")
    report.expect("each request before and after has exactly one record", len(counts) == len(statuses) == sum(counts.values()), str(counts))


def crash_after_upgrade(service, report):
    service.start_fresh()
    stream = service.start_stream("400ms")
    service.upgrade()
    before = service.main_pid()
    report.expect("a stream keeps the old process running", len(service.unit_pids()) == 2, str(service.unit_pids()))
    service.signal_main("KILL")
    wait_for_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), RESTART_TIMEOUT, "the service is not restarted")
    report.expect("the service is restarted after SIGKILL of the new process", service.chat_status() == 200 and service.unit_properties("NRestarts") == "1")
    report.expect("no other process remains", service.unit_pids() == [service.main_pid()], str(service.unit_pids()))
    stream.result()


def upgrades_that_fail(service, report):
    failing_upgrade = FailingUpgrade(service, report)
    service.write_config(service.config_yaml() + "strange: true\n")
    failing_upgrade.expect_failure("an invalid file", ["strange"])
    service.write_config(service.config_yaml())
    failing_upgrade.install("#!/bin/sh\nexit 1\n")
    failing_upgrade.expect_failure("a binary that exits with 1", ["exit status: 1"])
    failing_upgrade.install('#!/bin/sh\n[ "$1" != check ] || exit 0\nexit 7\n')
    failing_upgrade.expect_failure("a binary that only knows `check`", ["ended", "exit", "7"])
    failing_upgrade.install(failing_upgrade.good_binary[: len(failing_upgrade.good_binary) // 2])
    failing_upgrade.expect_failure("half a binary", ["signal", "format", "exec"])
    service.machine.host_path(INSTALLED_BINARY).unlink()
    failing_upgrade.expect_failure("no binary", ["no such file", "not found", "missing"])
    failing_upgrade.install(failing_upgrade.good_binary)
    with socket.create_server(("127.0.0.1", 8099)):
        service.write_config(service.config_yaml(listeners=["  - address: 127.0.0.1:8099"]))
        failing_upgrade.expect_failure("a port in use", ["8099"])
    service.upgrade()
    report.expect("the next upgrade succeeds", service.main_pid() != failing_upgrade.main_pid and service.chat_status() == 200)
    with socket.create_connection(("127.0.0.1", 8099)):
        report.pass_check("the new process listens on the added address")


def upgrades_that_hang(service, report):
    failing_upgrade = FailingUpgrade(service, report)
    failing_upgrade.install("#!/bin/sh\nexec sleep 600\n")
    failing_upgrade.expect_failure("a binary that does nothing", ["within", "in time", "timed out"])
    failing_upgrade.install('#!/bin/sh\n[ "$1" != check ] || exit 0\nexec sleep 600\n')
    failing_upgrade.expect_failure("a binary that does nothing but `check`", ["within", "in time", "timed out"])


class FailingUpgrade:
    """An upgrade that must fail while the old process keeps running. The command itself runs from a good copy
    of the binary."""

    def __init__(self, service, report):
        service.start_fresh()
        self.service, self.report = service, report
        self.main_pid, self.good_binary = service.main_pid(), service.machine.host_path(GOOD_COPY).read_bytes()

    def install(self, content):
        self.service.machine.write_file(content, INSTALLED_BINARY, 0o755)

    def expect_failure(self, what, expected_words):
        service, report = self.service, self.report
        cursor = service.journal_cursor()
        completed = service.upgrade(check=False, program=GOOD_COPY)
        output_text = completed.stdout + completed.stderr
        report.expect(f"{what}: the upgrade fails with the reason", completed.returncode != 0 and any(word in output_text.lower() for word in expected_words), output_text)
        state = service.unit_properties("ActiveState", "SubState", "MainPID", "NRestarts")
        expected_state = {"ActiveState": "active", "SubState": "running", "MainPID": str(self.main_pid), "NRestarts": "0"}
        report.expect(f"{what}: the old process is still the main process", state == expected_state, str(state))
        report.expect(f"{what}: the old process answers", service.chat_status() == 200 and service.chat_status(tls=True) == 200)
        text = service.journal_text(cursor).lower()
        report.expect(f"{what}: the journal has the reason", any(word in text for word in expected_words), text)
        service.wait_for_single_process(OPERATION_TIMEOUT)


def start_without_vault(service, report):
    secret = "{ key_vault: \"https://127.0.0.1:9/secrets/away\" }"
    vault = ["key_vault:", "  credential: { entra: { client_secret: { tenant: 00000000-0000-0000-0000-000000000000,"]
    vault += ["    client_id: 00000000-0000-0000-0000-000000000000, secret: nothing }, authority: 'https://127.0.0.1:9' } }"]
    backend = ["  - name: vaulted", "    endpoint: https://vaulted.invalid", f"    credential: {secret}"]
    cursor = service.journal_cursor()
    service.start_fresh(service.config_yaml(backends=backend, extra=vault))
    report.expect("the service starts without the vault", service.chat_status() == 200)
    text = service.journal_text(cursor)
    report.expect("the journal names the backend without its credential", "backend vaulted is unavailable until its credential is fetched" in text, text)


def full_disks(service, report):
    """Records and state on disks that are full at the start, and later while the service runs."""
    service.start_fresh()
    service.systemctl("stop", UNIT)
    disks = ["/var/log/aoai-lb", "/var/lib/aoai-lb"]
    try:
        for disk in disks:
            service.mount_small_disk(disk)
        for moment in ["at the start", "while it runs"]:
            cursor = service.journal_cursor()
            for disk in disks:
                service.fill_disk(disk)
            if moment == "at the start":
                service.systemctl("start", UNIT, timeout=2 * OPERATION_TIMEOUT)
                report.expect("the service starts with full disks", service.is_ready())
            statuses = {service.chat_status() for _ in range(20)}
            report.expect(f"requests succeed with disks that are full {moment}", statuses == {200}, str(statuses))
            is_told = lambda: "cannot write records to" in (text := service.journal_text(cursor)) and "disk is full" in text
            wait_for_condition(is_told, OPERATION_TIMEOUT, "the journal does not say that the disk is full")
            report.pass_check(f"the journal says that the disks are full {moment}")
            recorded = sum((service.try_record_counts("probe") or {}).values())
            for disk in disks:
                service.empty_disk(disk)
            is_recorded = lambda: service.chat_status() == 200 and sum((service.try_record_counts("probe") or {}).values()) > recorded
            wait_for_condition(is_recorded, OPERATION_TIMEOUT, "nothing is recorded although the disks have room")
            report.pass_check("requests are recorded as soon as there is room")
            # The file takes records at once, the spool is in trouble for some seconds more.
            is_over = lambda: all(f"records are written to {disk}" in service.journal_text(cursor) for disk in disks)
            wait_for_condition(is_over, 3 * OPERATION_TIMEOUT, "the journal does not say that records are written again")
        report.expect("the service was not restarted", service.unit_properties("NRestarts") == "0")
    finally:
        service.systemctl("kill", "--signal=KILL", UNIT, check=False)
        service.systemctl("stop", UNIT, check=False)
        for disk in disks:
            service.machine.run("umount", "-l", disk, check=False)


def stop(service, report):
    service.start_fresh()
    cursor = service.journal_cursor()
    stream = service.start_stream("80ms")
    service.systemctl("stop", UNIT)
    stopped = time.monotonic()
    problem = stream.result()
    report.expect("a stream is completed while the service stops", problem is None, problem)
    report.expect("the stop ends right after the stream", 0 <= stopped - stream.end_time < 2, f"{stopped - stream.end_time:.2f} s")
    text = service.journal_text(cursor)
    report.expect("no process was killed", service.unit_properties("Result") == "success" and "SIGKILL" not in text and "timed out" not in text)
    record_count = sum(service.record_counts("load").values())
    report.expect("the stream has its record", record_count == 1, f"{record_count} records")


def stop_after_upgrade(service, report):
    service.start_fresh()
    cursor = service.journal_cursor()
    old = service.start_stream("200ms")
    service.upgrade()
    new = service.start_stream("60ms")
    report.expect("each of two processes has a stream", len(service.unit_pids()) == 2, str(service.unit_pids()))
    service.systemctl("stop", UNIT)
    stopped = time.monotonic()
    problems = [old.result(), new.result()]
    report.expect("both streams are completed", problems == [None, None], str(problems))
    stop_delay = stopped - max(old.end_time, new.end_time)
    report.expect("the stop ends right after the last stream", 0 <= stop_delay < 2, f"{stop_delay:.2f} s")
    text = service.journal_text(cursor)
    report.expect("no process was killed", service.unit_properties("Result") == "success" and "SIGKILL" not in text and "timed out" not in text)
    report.expect("no process remains", not service.unit_pids())


def stop_during_upgrade(service, report):
    for wait in (0.05, 0.3, 0.7, 1.2):
        service.start_fresh()
        cursor = service.journal_cursor()
        asked = service.machine.start(INSTALLED_BINARY, "upgrade", "-c", CONFIG)
        time.sleep(wait)
        service.systemctl("stop", UNIT)
        asked.wait(60)
        wait_for_condition(lambda: not service.unit_pids(), OPERATION_TIMEOUT, "a process of the unit is left")
        state = service.unit_properties("ActiveState", "Result", "NRestarts")
        expected_state = {"ActiveState": "inactive", "Result": "success", "NRestarts": "0"}
        report.expect(f"{wait} s after the start of an upgrade: the stop succeeds", state == expected_state, str(state))
        report.expect(f"{wait} s after the start of an upgrade: no process was killed", "SIGKILL" not in service.journal_text(cursor))
        report.expect(f"{wait} s after the start of an upgrade: no process remains", not service.unit_pids() and not service.is_ready())


def credentials(service, report):
    service.machine.write_file(service.upstream_key, "/etc/aoai-lb/upstream-key", 0o600)
    credential = "LoadCredential=upstream:/etc/aoai-lb/upstream-key"
    read = service.config_yaml().replace("${UPSTREAM_KEY}", f"${{file:/run/credentials/{UNIT}/upstream}}")
    service.start_fresh(read, f"[Service]\n{credential}\n")
    report.expect("a file of LoadCredential= is read at the start", service.chat_status() == 200)
    if "upgrade" in service.commands:
        service.write_config(read.replace("  - { name: probe", "  # again\n  - { name: probe"))
        service.systemctl("reload", UNIT)
        report.expect("the file is read by a reload", service.chat_status() == 200)
        service.upgrade()
        report.expect("the file is read after an upgrade", service.chat_status() == 200)
        service.systemctl("reload", UNIT)
        report.expect("the file is read by a reload after the upgrade", service.chat_status() == 200)


def wait_for_watchdog(service):
    """Waits until the watchdog has been notified twice as long as it waits for one notification."""

    def notified_at():
        return int(service.unit_properties("WatchdogTimestampMonotonic")) / 1e6

    start = notified_at()
    wait_for_condition(lambda: notified_at() >= start + 2 * WATCHDOG_SECONDS, OPERATION_TIMEOUT, "the watchdog is not notified")


def watchdog(service, report):
    service.start_fresh(drop_in=f"[Service]\nWatchdogSec={WATCHDOG_SECONDS}s\n")
    before = service.main_pid()
    wait_for_watchdog(service)
    report.expect("the watchdog is notified", service.main_pid() == before and service.unit_properties("NRestarts") == "0")
    service.upgrade()
    before = service.main_pid()
    wait_for_watchdog(service)
    report.expect("the new process notifies the watchdog after an upgrade", service.main_pid() == before and service.unit_properties("NRestarts") == "0")
    service.signal_main("STOP")
    wait_for_condition(lambda: service.main_pid() not in (0, before) and service.is_ready(), WATCHDOG_SECONDS + 10 + RESTART_TIMEOUT, "the service is not restarted")
    report.expect("a stopped process is replaced by the watchdog", service.chat_status() == 200 and service.unit_properties("NRestarts") == "1")


def package_upgrade(service, report):
    machine = service.machine
    service.start_fresh()
    changed = service.directory / "changed"
    changed.write_bytes((service.directory / "a/root/usr/bin/aoai-lb").read_bytes() + b"a later version\n")
    changed.chmod(0o755)
    package = service.build_package("0.1.1", changed, "b", service.changed_source())
    before, file = service.main_pid(), machine.host_path(CONFIG).read_text()
    with service.load_generator() as load:
        load.wait_for_each_kind()
        completed = machine.run("dpkg", "--force-confold", "--install", package, check=False)
        load.wait_for_each_kind()
    service.package = package
    report.expect("the new version installs", completed.returncode == 0, completed.stdout + completed.stderr)
    report.expect("the package reports that the service was replaced", "without a gap" in completed.stdout, completed.stdout + completed.stderr)
    report.expect("no request failed meanwhile", not load.failures and load.total_completed(), "\n".join(load.failures[:12]))
    report.pass_check("each request has exactly one record", str(service.check_records("load", load.ids)))
    inode = machine.run("stat", "--dereference", "--format=%i", f"/proc/{service.main_pid()}/exe", INSTALLED_BINARY).stdout.split()
    report.expect("the new binary runs", service.main_pid() != before and len(set(inode)) == 1, str(inode))
    report.expect("the edited configuration is unchanged", machine.host_path(CONFIG).read_text() == file)
    report.expect("its owner and mode are unchanged", not (problems := mode_problems(service, INSTALLED_FILES)), problems)
    state = service.unit_properties("ActiveState", "NRestarts", "UnitFileState")
    expected_state = {"ActiveState": "active", "NRestarts": "0", "UnitFileState": "enabled"}
    report.expect("the unit was not restarted", state == expected_state, str(state))
    service.write_config(service.config_yaml() + "strange: true\n")
    main = service.main_pid()
    completed = machine.run("dpkg", "--force-confold", "--install", package, check=False)
    report.expect("the package installs with an invalid configuration, too", completed.returncode == 0, completed.stdout + completed.stderr)
    has_instructions = "the old version goes on" in completed.stderr and "strange" in completed.stdout + completed.stderr
    report.expect("the package prints what to do", has_instructions, completed.stdout + completed.stderr)
    report.expect("the old process answers", service.main_pid() == main and service.chat_status() == 200)


def removal(service, report):
    machine = service.machine
    service.start_fresh()
    service.chat_status()
    stream = service.start_stream("40ms")
    completed = machine.run("dpkg", "--remove", "aoai-lb", check=False)
    report.expect("the package is removed", completed.returncode == 0, completed.stdout + completed.stderr)
    problem = stream.result()
    report.expect("a stream in flight is completed first", problem is None, problem)
    remaining = machine.run("sh", "-c", "for p in /proc/[0-9]*; do readlink $p/exe; done | grep -c aoai-lb", check=False).stdout.strip()
    report.expect("no process runs", remaining == "0", remaining)
    are_kept = all(machine.host_path(path).exists() for path in [CONFIG, "/var/log/aoai-lb/exchanges.jsonl"])
    report.expect("configuration and records remain", are_kept)
    completed = machine.run("apt-get", "install", "--yes", service.package, check=False)
    state = service.unit_properties("ActiveState", "UnitFileState")
    started = completed.returncode == 0 and state == {"ActiveState": "active", "UnitFileState": "enabled"}
    report.expect("after another installation the service starts with the old configuration", started, f"{state}\n{completed.stdout}{completed.stderr}")
    report.expect("the service answers", service.chat_status() == 200)
    # Made by the tests.
    shutil.rmtree(machine.host_path(f"/etc/systemd/system/{UNIT}.d"))
    completed = machine.run("dpkg", "--purge", "aoai-lb", check=False)
    report.expect("the package is purged", completed.returncode == 0, completed.stdout + completed.stderr)
    paths = ["/var/log/aoai-lb", "/var/lib/aoai-lb", "/run/aoai-lb", CONFIG, "/etc/aoai-lb/environment", INSTALLED_BINARY]
    remaining = [path for path in paths if machine.host_path(path).exists()]
    report.expect("its files are removed", not remaining, str(remaining))
    report.expect("the certificates of the operator remain", machine.host_path("/etc/aoai-lb/tls/key.pem").exists())
    links = machine.run("find", "/etc/systemd", "/var/lib/systemd", "-name", "*aoai-lb*").stdout
    report.expect("no link to the unit remains", not links, links)


def tarball(service, report):
    machine = service.machine
    # Unless the part before has done so.
    machine.run("dpkg", "--purge", "aoai-lb", check=False)
    path = service.build_tarball()
    machine.run("tar", "-xzf", path, "-C", "/root")
    script = path.removesuffix(".tar.gz") + "/install"
    completed = machine.run(script, check=False)
    report.expect("the tarball installs", completed.returncode == 0, completed.stdout + completed.stderr)
    report.expect("its files have the owners and modes of the package", not (problems := mode_problems(service, INSTALLED_FILES)), problems)
    service.write_config(service.config_yaml())
    machine.write_file(f"UPSTREAM_KEY={service.upstream_key}\n", "/etc/aoai-lb/environment", 0o640, like=CONFIG)
    service.systemctl("start", UNIT)
    report.expect("the service answers", service.chat_status() == 200)
    completed = machine.run(script, "--uninstall", check=False)
    report.expect("it is removed", completed.returncode == 0, completed.stdout + completed.stderr)
    remaining = machine.run("find", "/usr", "-name", "*aoai-lb*").stdout
    report.expect("its files are removed", not remaining, remaining)
    report.expect("the service has stopped", service.systemctl("is-active", UNIT, check=False).returncode != 0)
    report.expect("the configuration remains", machine.host_path(CONFIG).exists())


ALL_PARTS = [
    installation,
    start,
    reload,
    upgrade,
    drains,
    logrotate,
    upgrades_and_reloads_under_load,
    crash,
    crash_after_upgrade,
    upgrades_that_fail,
    upgrades_that_hang,
    start_without_vault,
    full_disks,
    stop,
    stop_after_upgrade,
    stop_during_upgrade,
    credentials,
    watchdog,
    package_upgrade,
    removal,
    tarball,
    documentation,
]
# These take minutes, mostly waiting, and run only if they are named on the command line.
SLOW_PARTS = [upgrades_that_hang]
# All other parts need these, so they always run.
PREREQUISITE_PARTS = [installation, start]
REQUIRED_COMMANDS = {
    part: ["upgrade"]
    for part in [
        reload,
        upgrade,
        upgrades_and_reloads_under_load,
        crash_after_upgrade,
        upgrades_that_fail,
        upgrades_that_hang,
        stop_after_upgrade,
        stop_during_upgrade,
        watchdog,
        package_upgrade,
    ]
}
