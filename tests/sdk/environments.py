"""Where the SDKs live: virtual environments and node_modules under target/sdk, made when they are
missing or when what they are made of has changed."""

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1] / "target" / "sdk"
MARK = ".made-of"


def python(name, requirements):
    """The interpreter of an environment with these requirements."""
    place, source = ROOT / name, HERE / requirements
    interpreter = place / "bin" / "python"

    def make():
        venv.create(place, with_pip=True, clear=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]
        installed([interpreter, *install, source])

    fresh(place, [source], make)
    return interpreter


def node_tools():
    """A node of at least version 20 and its npm: the system's, or one of our own, which comes as a
    Python package since Debian 12 has only version 18."""
    system = shutil.which("node")
    if system and shutil.which("npm"):
        version = subprocess.run([system, "--version"], capture_output=True, text=True).stdout
        if int(version.strip().lstrip("v").split(".")[0] or 0) >= 20:
            return system, ["npm"]
    scripts = python("nodejs", "requirements-node.txt").parent
    return scripts / "node", [scripts / "npm"]


def node():
    """A folder with node_modules, and with the scripts beside it, so that they import as users do."""
    place = ROOT / "node"
    sources = [HERE / "package.json", HERE / "package-lock.json", HERE / ".npmrc"]

    def make():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for source in sources:
            shutil.copy(source, place)
        executable, npm = node_tools()
        path = f"{Path(executable).parent}{os.pathsep}{os.environ['PATH']}"
        installed([*npm, "ci", "--no-audit", "--no-fund"], cwd=place, path=path)

    fresh(place, sources, make)
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, place)
    return place


def fresh(place, sources, make):
    """Makes a place anew unless it was made of the same sources."""
    parts = [sys.version.encode(), *(source.read_bytes() for source in sources)]
    made_of = hashlib.sha256(b"\0".join(parts)).hexdigest()
    mark = place / MARK
    if mark.exists() and mark.read_text() == made_of:
        return
    print(f"making target/sdk/{place.name}", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    make()
    mark.write_text(made_of)


def installed(command, cwd=None, path=None):
    environment = os.environ | ({"PATH": path} if path else {})
    done = subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")


def clean():
    """The environment of a suite: nothing in it that an SDK or a proxy would read."""
    prefixes = ("OPENAI_", "AZURE_", "PYTHON", "NODE_", "NPM_")
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith(prefixes) and not name.upper().endswith("_PROXY")
    }
    return kept | {"PYTHONDONTWRITEBYTECODE": "1"}
