"""The installed SDKs: virtual environments and node_modules under target/sdk. They are installed when they
are missing or when their requirements have changed."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ENVIRONMENTS_DIRECTORY = HERE.parents[1] / "target" / "sdk"
SOURCE_HASH_FILE = ".made-of"


def python_environment(name, requirements):
    """The interpreter of a virtual environment with these requirements."""
    directory, source = ENVIRONMENTS_DIRECTORY / name, HERE / requirements
    interpreter = directory / "bin" / "python"

    def make():
        venv.create(directory, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]
        run_install([interpreter, *install, source])

    make_if_changed(directory, [source], make)
    return interpreter


def find_node_and_npm():
    """Node of at least version 20 and its npm: those of the system, or else a Python package that contains
    them, since Debian 12 has only version 18."""
    system_node = shutil.which("node")
    if system_node and shutil.which("npm"):
        version = subprocess.run([system_node, "--version"], capture_output=True, text=True).stdout
        if int(version.strip().lstrip("v").split(".")[0] or 0) >= 20:
            return system_node, ["npm"]
    scripts = python_environment("nodejs", "requirements-node.txt").parent
    return scripts / "node", [scripts / "npm"]


def node_environment():
    """A directory with node_modules and copies of the scripts, so that they import the SDK as users do."""
    directory = npm_project("node", HERE)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, directory)
    return directory


def codex_program():
    """The program of the Codex CLI itself, which its script for Node starts."""
    modules = npm_project("codex", HERE / "codex") / "node_modules"
    return modules / ".bin" / "codex"


def npm_project(name, source_directory):
    """A directory with the node_modules of the package.json and the lock file of another."""
    directory = ENVIRONMENTS_DIRECTORY / name
    sources = [source_directory / "package.json", source_directory / "package-lock.json", HERE / ".npmrc"]

    def make():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        for source in sources:
            shutil.copy(source, directory)
        node_program, npm = find_node_and_npm()
        path = f"{Path(node_program).parent}{os.pathsep}{os.environ['PATH']}"
        run_install([*npm, "ci", "--no-audit", "--no-fund"], cwd=directory, path=path)

    make_if_changed(directory, sources, make)
    return directory


def make_if_changed(directory, sources, make):
    """Calls `make` for a directory unless it was made from the same sources."""
    hashed_parts = [sys.version.encode(), *(source.read_bytes() for source in sources)]
    source_hash = hashlib.sha256(b"\0".join(hashed_parts)).hexdigest()
    hash_file = directory / SOURCE_HASH_FILE
    if hash_file.exists() and hash_file.read_text() == source_hash:
        return
    print(f"making target/sdk/{directory.name}", flush=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    make()
    hash_file.write_text(source_hash)


def run_install(command, cwd=None, path=None):
    environment = os.environ | ({"PATH": path} if path else {})
    completed = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if completed.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{completed.stdout}")


def clean_variables():
    """The environment variables of a suite, without those that an SDK or a proxy setting would use."""
    prefixes = ("OPENAI_", "AZURE_", "PYTHON", "NODE_", "NPM_")
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(prefixes) and not name.upper().endswith("_PROXY")
    }
    return variables | {"PYTHONDONTWRITEBYTECODE": "1"}
