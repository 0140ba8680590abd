"""A small Debian with a real systemd, booted in its own namespaces, without a virtual machine or a daemon.

`prepare_debian_tree` makes a Debian tree with debootstrap, once; every boot uses a temporary overlay above
it. All processes end with this one, and mounts and network with their namespaces.
"""

import array
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path

SUITE = "bookworm"
# Increase this number to have the tree made anew.
TREE_VERSION = 2
INCLUDED_PACKAGES = ["systemd", "ca-certificates"]
# Packages that the commands of the documentation need. Their files are in this directory of the tree, and not installed, so
# that they cannot stand in for a package that aoai-lb depends on.
TOOL_PACKAGES = ["curl", "jq", "logrotate", "redis-server", "sudo"]
TOOLS = "/opt/tools"
REQUIRED_TOOLS = {"debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux", "setpriv": "util-linux", "mount": "mount"}
# Units that a machine for a single service does not need.
MASKED_UNITS = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-random-seed.service",
    "systemd-resolved.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
]
INSIDE_VARIABLE = "AOAI_LB_SYSTEMD_TEST"
CGROUP_PREFIX = "aoai-lb-test-"
BOOT_TIMEOUT = 30.0

# Run by the first process of the machine, in its own namespaces and cgroup; it finally executes systemd.
# The kernel settings of the host are read-only.
BOOT_SCRIPT = r"""
set -e
root=$1
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
[ ! -e "$root/proc/sysrq-trigger" ] || mount --bind /dev/null "$root/proc/sysrq-trigger"
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs "$root/sys"
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid tmpfs "$root/dev"
for device in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
    set -- $device
    mknod -m 666 "$root/dev/$1" c "$2" "$3"
done
ln -s null "$root/dev/console"
ln -s /proc/self/fd "$root/dev/fd"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
cd "$root"
mkdir -p .before
pivot_root . .before
umount -l /.before
# systemd itself does this only outside of containers, and LoadCredential= needs it.
mount --make-rshared /
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=aoai-lb-test \
    setpriv --bounding-set=-sys_time,-sys_module,-syslog \
    /lib/systemd/systemd --log-target=journal --show-status=no systemd.unit=multi-user.target
"""


class UnsupportedHostError(Exception):
    """The tests cannot run on this host and are skipped."""


class TestFailure(Exception):
    """A check has failed."""


def prepare_debian_tree(cache):
    """The Debian tree, made if it is missing. This needs the network of the host, so it is done outside of
    the namespaces."""
    if os.geteuid() != 0:
        raise UnsupportedHostError("root is needed")
    missing = sorted({package for tool, package in REQUIRED_TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise UnsupportedHostError("missing packages: " + " ".join(missing))
    check_namespaces()
    tree = cache / f"debian-root-{SUITE}-{TREE_VERSION}"
    if not tree.exists():
        print(f"making a Debian tree, once: {tree}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        new_tree = Path(tempfile.mkdtemp(prefix="debian-root-", dir=cache))
        try:
            # The second run finds what the first one has downloaded.
            run_debootstrap(cache, new_tree, INCLUDED_PACKAGES + TOOL_PACKAGES, "--download-only")
            run_debootstrap(cache, new_tree, INCLUDED_PACKAGES)
            keep_tools(new_tree)
            for unneeded in ["var/cache/apt", "var/lib/apt/lists", "usr/share/locale"]:
                for entry in (new_tree / unneeded).iterdir():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            for unit in MASKED_UNITS:
                (new_tree / "etc/systemd/system" / unit).unlink(missing_ok=True)
                (new_tree / "etc/systemd/system" / unit).symlink_to("/dev/null")
            settings = new_tree / "etc/systemd/journald.conf.d/test.conf"
            settings.parent.mkdir(parents=True)
            settings.write_text("[Journal]\nStorage=volatile\nRateLimitBurst=0\nReadKMsg=no\nAudit=no\n")
            (new_tree / "etc/hostname").write_text("machine\n")
            (new_tree / "etc/hosts").write_text("127.0.0.1 localhost machine\n::1 localhost\n")
            (new_tree / "etc/machine-id").write_text("")
            os.chmod(new_tree, 0o755)
            new_tree.rename(tree)
        finally:
            shutil.rmtree(new_tree, ignore_errors=True)
    return tree


def run_debootstrap(cache, tree, packages, *options):
    command = ["debootstrap", "--variant=minbase", "--include=" + ",".join(packages), *options, SUITE, tree]
    mirror = os.environ.get("AOAI_LB_DEBIAN_MIRROR")
    with (cache / "debootstrap.log").open("w") as log:
        completed = subprocess.run(command + ([mirror] if mirror else []), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    if completed.returncode != 0:
        text = (cache / "debootstrap.log").read_text()[-1500:]
        raise UnsupportedHostError(f"debootstrap could not make a Debian tree:\n{text}")


def keep_tools(tree):
    """Keeps the downloaded packages that are not installed."""
    installed = {path.name.removesuffix(".list").split(":")[0] for path in (tree / "var/lib/dpkg/info").glob("*.list")}
    tools = tree / TOOLS.lstrip("/")
    tools.mkdir(parents=True)
    for package in (tree / "var/cache/apt/archives").glob("*.deb"):
        if package.name.split("_")[0] not in installed:
            package.rename(tools / package.name)


def check_namespaces():
    script = "set -e; d=$(mktemp -d); trap 'umount $d/a $d; rmdir $d' EXIT; mount -t tmpfs tmpfs $d; mkdir $d/a; mount -t cgroup2 cgroup2 $d/a; g=$d/a/aoai-lb-test-try-$$; mkdir $g; rmdir $g"
    command = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise UnsupportedHostError(f"namespaces or cgroup2 are not available: {result.stderr.strip()}")


def reexec_in_namespaces(program, arguments):
    """Executes this program again in its own mount and network namespaces, with loopback only."""
    os.environ[INSIDE_VARIABLE] = "1"
    command = ["unshare", "--mount", "--net", "--propagation", "private", program, *arguments]
    os.execvp(command[0], [str(part) for part in command])


def is_inside():
    return INSIDE_VARIABLE in os.environ


def raise_loopback():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14s", b"lo", 1 | 0x40, b"")  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(control, 0x8914, array.array("B", request))  # SIOCSIFFLAGS


def die_with_parent():
    """For a child process: it is killed when this process ends for any reason."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Machine:
    """A booted Debian. Works only inside the namespaces of `reexec_in_namespaces`."""

    def __init__(self, tree):
        self.tree = tree
        self.process = self.init = None

    def __enter__(self):
        self.scratch = Path(tempfile.mkdtemp(prefix="aoai-lb-systemd-"))
        try:
            self.boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def boot(self):
        mount("-t", "tmpfs", "-o", "mode=700", "tmpfs", self.scratch)
        root, cgroups = self.scratch / "root", self.scratch / "groups"
        for folder in [root, cgroups, self.scratch / "upper", self.scratch / "work"]:
            folder.mkdir(mode=0o755)
        layers = f"lowerdir={self.tree},upperdir={self.scratch}/upper,workdir={self.scratch}/work"
        mount("-t", "overlay", "-o", layers, "overlay", root)
        mount("-t", "cgroup2", "cgroup2", cgroups)
        for leftover in cgroups.glob(CGROUP_PREFIX + "*"):
            remove_cgroup(leftover)  # left by a killed run; the cgroup of a running one is busy and stays
        self.cgroup = cgroups / f"{CGROUP_PREFIX}{os.getpid()}"
        self.cgroup.mkdir()

        def join():
            die_with_parent()
            (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))

        unshare_options = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--kill-child", "--propagation", "private"]
        errors = self.scratch / "errors"
        with errors.open("w") as log:
            command = ["unshare", *unshare_options, "sh", "-c", BOOT_SCRIPT, "sh", root]
            self.process = subprocess.Popen(command, preexec_fn=join, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        start = time.monotonic()
        try:
            wait_for_condition(self.is_up, BOOT_TIMEOUT, "the machine does not boot", lambda: self.process.poll() is not None)
        except TestFailure as problem:
            raise TestFailure(f"{problem}\n{errors.read_text()}") from None
        self.boot_seconds = time.monotonic() - start

    def is_up(self):
        if self.init is None:
            self.init = child_of(self.process.pid)
        try:
            if self.init is None or Path(os.readlink(f"/proc/{self.init}/exe")).name != "systemd":
                return False
        except OSError:
            return False
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            # All other processes of the machine end with its first one.
            if self.init:
                kill(self.init, signal.SIGKILL)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if hasattr(self, "group"):
            remove_cgroup(self.cgroup)
        for mount_point in ["groups", "root", "."]:
            subprocess.run(["umount", "-l", self.scratch / mount_point], capture_output=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def host_path(self, path_inside):
        """The path of a file of the machine, as seen by this process."""
        return Path(f"/proc/{self.init}/root") / path_inside.lstrip("/")

    def command(self, *arguments):
        nsenter_options = ["--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd"]
        env_command = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"]
        return ["nsenter", "--target", str(self.init), *nsenter_options, *env_command, *map(str, arguments)]

    def run(self, *arguments, check=True, timeout=60.0):
        """Runs a command in the machine, as root."""
        completed = subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        if check and completed.returncode != 0:
            raise TestFailure(f"`{' '.join(map(str, arguments))}` exits with {completed.returncode}:\n{completed.stdout}{completed.stderr}")
        return completed

    def start(self, *arguments):
        """Starts a command in the machine without waiting for it."""
        return subprocess.Popen(
            self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
        )

    def write_file(self, text, path_inside, mode=0o644, like=None):
        """Replaces a file as editors and package managers do: by renaming a new one."""
        path = self.host_path(path_inside)
        new_file = path.with_name(f".{path.name}.new")
        new_file.write_bytes(text if isinstance(text, bytes) else text.encode())
        os.chmod(new_file, mode)
        if like:
            owner = self.host_path(like).stat()
            os.chown(new_file, owner.st_uid, owner.st_gid)
        new_file.rename(path)


def mount(*arguments):
    completed = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if completed.returncode != 0:
        raise UnsupportedHostError(f"mount {' '.join(map(str, arguments))}: {completed.stderr.strip()}")


def remove_cgroup(cgroup):
    """Removes a cgroup without processes, and its child cgroups."""
    for _ in range(50):
        try:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                os.rmdir(folder)
            return
        except FileNotFoundError:
            return
        except OSError:
            if not cgroup.name.endswith(str(os.getpid())):
                return
            time.sleep(0.05)


def child_of(pid):
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def kill(pid, signal_number):
    try:
        os.kill(pid, signal_number)
    except ProcessLookupError:
        pass


def wait_for_condition(condition, seconds, failure_message, has_ended=lambda: False):
    """Waits until `condition` returns something true, and returns it."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if has_ended():
            raise TestFailure(f"{failure_message}: the process ended")
        if time.monotonic() > deadline:
            raise TestFailure(f"{failure_message} within {seconds:g} s")
        time.sleep(0.05)
