"""Where runtimes live: a virtual environment each, under the user's cache, from a list of versions that were tested
together.

Runtimes pin other versions of torch and transformers than each other and than we do; one environment for all of them
cannot exist. One that the user has already can be named instead, and then nothing is installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.core import device
from compress.core.errors import CompressError, UsageError
from compress.core.files import write_json
from compress.core.lock import hold
from compress.core.registry import load, names
from export.runtimes._kind import Runtime

READY = "ready.json"
NAMED = "interpreters.json"
DIGITS = 8
"""Of the digest of its packages, in the name of an environment."""


@dataclass(frozen=True)
class Place:
    """How a runtime can be used.

    interpreter: None when it is not there. how: own, installed, named. install: the line.
    """

    name: str
    interpreter: Path | None
    version: str | None
    how: str
    install: str


def known() -> list[str]:
    """The names of all runtimes."""
    return names("runtime")


def runtime(name: str) -> Runtime:
    """The runtime called `name`, written with - or with a dot (`llama.cpp`). Raises UsageError for another name."""
    found: Runtime = load("runtime", plain(name))
    return found


def refuses(name: str, export: Path) -> str | None:
    """Why the runtime `name` does not open this export; None where it may."""
    kind, config = runtime(name), export / "config.json"
    if kind.refuses is None or not config.is_file():
        return None
    return kind.refuses(json.loads(config.read_text(encoding="utf-8")))


def plain(name: str) -> str:
    """A runtime's name as its file has it."""
    return name.replace(".", "-").replace("_", "-").lower()


def folder() -> Path:
    """Where the environments are."""
    return device.cache_folder() / "runtimes"


def place(name: str) -> Place:
    """Where the runtime `name` is, if it is anywhere."""
    name = plain(name)
    kind = runtime(name)
    if (named := _named().get(name)) is not None and Path(named).is_file():
        return Place(name, Path(named), _version_there(Path(named), kind), "named", f"compress runtime install {name}")
    if not kind.packages:
        version = device.package_version(kind.distribution)
        line = f"pip install 'compress-models[{kind.extra}]'" if kind.extra else f"pip install {kind.distribution}"
        return Place(name, Path(sys.executable) if version else None, version, "own", line)
    home = _home(name, kind)
    ready = home / READY
    if ready.is_file():
        found = json.loads(ready.read_text(encoding="utf-8"))
        return Place(name, _python(home), found["version"], "installed", f"compress runtime install {name}")
    return Place(name, None, None, "installed", f"compress runtime install {name}")


def install(name: str, say: Callable[[str], None]) -> Place:
    """Make the environment of a runtime; one that is ready is left as it is. say: called with what is going on.

    Raises UsageError for a runtime that lives in our own environment, CompressError with pip's last words.
    """
    name = plain(name)
    kind = runtime(name)
    if not kind.packages:
        raise UsageError(f"{name} lives in the environment of compress; {place(name).install}")
    if (found := place(name)).interpreter is not None:
        return found
    home = _home(name, kind)
    home.parent.mkdir(parents=True, exist_ok=True)
    with hold(home.parent, wait=True):  # two that install would delete each other's half
        if (found := place(name)).interpreter is None:
            _make(name, kind, home, say)
            found = place(name)
    return found


def _make(name: str, kind: Runtime, home: Path, say: Callable[[str], None]) -> None:
    """The environment `home`, whole or not at all."""
    shutil.rmtree(home, ignore_errors=True)
    try:
        say(f"{name}: a new environment in {home}")
        _run([sys.executable, "-m", "venv", str(home)], {})
        pip = [str(_python(home)), "-m", "pip", "--disable-pip-version-check"]
        say(f"{name}: installing {', '.join(kind.packages)}")
        _run([*pip, "install", "--quiet", *kind.packages], dict(kind.build))
        if kind.alone:
            say(f"{name}: installing {', '.join(kind.alone)}")
            _run([*pip, "install", "--quiet", "--no-deps", *kind.alone], dict(kind.build))
        if kind.unwanted:
            _run([*pip, "uninstall", "--quiet", "--yes", *kind.unwanted], {})
        version = _version_there(_python(home), kind)
        if version is None:
            raise CompressError(f"{name}: {kind.distribution} is not there after its installation; report this")
        write_json(home / READY, {"packages": [*kind.packages, *kind.alone], "version": version})
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def use(name: str, interpreter: Path) -> Place:
    """Use an interpreter of the user's own for a runtime. Raises UsageError when the runtime is not in it."""
    name = plain(name)
    kind = runtime(name)
    where = interpreter.expanduser().absolute()
    if not where.is_file():
        raise UsageError(f"{interpreter} is no file; name the python of the environment that holds {kind.distribution}")
    if _version_there(where, kind) is None:
        raise UsageError(f"{interpreter} has no {kind.distribution}; install it there, or name another python")
    folder().mkdir(parents=True, exist_ok=True)
    write_json(folder() / NAMED, {**_named(), name: str(where)})
    return place(name)


def remove(name: str) -> bool:
    """Delete a runtime's environment, and forget an interpreter named for it; whether there was anything."""
    name = plain(name)
    runtime(name)  # a name that none has is an error
    there = _named()
    had = there.pop(name, None) is not None
    if had:
        write_json(folder() / NAMED, there)
    for home in folder().glob(f"{name}-{'[0-9a-f]' * DIGITS}"):  # no longer name's
        shutil.rmtree(home)
        had = True
    return had


def places() -> Iterator[Place]:
    """Every runtime and where it is."""
    for name in known():
        yield place(name)


def _named() -> dict[str, str]:
    file = folder() / NAMED
    if not file.is_file():
        return {}
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _home(name: str, kind: Runtime) -> Path:
    what = json.dumps(
        [kind.packages, kind.unwanted, dict(kind.build), sys.version_info[:2], *([kind.alone] if kind.alone else [])]
    )
    return folder() / f"{name}-{hashlib.sha256(what.encode()).hexdigest()[:DIGITS]}"


def _python(home: Path) -> Path:
    return home / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def _version_there(interpreter: Path, kind: Runtime) -> str | None:
    code = f"from importlib.metadata import version; print(version({kind.distribution!r}))"
    try:
        run = subprocess.run(
            [str(interpreter), "-c", code], capture_output=True, text=True, env=device.plain_environment(), check=False
        )
    except OSError:
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def _run(command: list[str], more: dict[str, str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True, env=device.plain_environment() | more, check=False)
    if run.returncode:
        said = " | ".join((run.stderr.strip() or run.stdout.strip() or "no message").splitlines()[-4:])
        raise CompressError(f"{' '.join(command[1:4])} failed: {said}")
