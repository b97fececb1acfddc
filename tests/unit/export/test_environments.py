"""Runtimes: where they are, which interpreter was named, what is said of those that are not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from compress.cli import app
from compress.core.errors import CompressError, MissingRuntimeError, UsageError
from export import environments
from export.client import RuntimeProcess


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    return tmp_path


def test_what_is_not_there_says_how_to_get_it() -> None:
    place = environments.place("llama.cpp")
    assert (place.name, place.interpreter, place.version) == ("llama-cpp", None, None)
    with pytest.raises(MissingRuntimeError, match="install it with: compress runtime install llama-cpp") as missing:
        RuntimeProcess("llama.cpp")
    assert missing.value.exit_code == 5


def test_our_own_environment_is_never_made() -> None:
    assert environments.place("transformers").interpreter == Path(sys.executable)
    with pytest.raises(UsageError, match="transformers lives in the environment of compress"):
        environments.install("transformers", print)


def test_an_interpreter_can_be_named_and_forgotten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file; name the python"):
        environments.use("vllm", tmp_path / "nothing")
    with pytest.raises(UsageError, match="has no vllm"):
        environments.use("vllm", Path(sys.executable))
    found = environments.use("transformers", Path(sys.executable))
    assert found.how == "named"
    assert environments.remove("transformers")
    assert environments.place("transformers").how == "own"
    assert not environments.remove("transformers")


def test_removing_one_runtime_leaves_those_whose_names_begin_alike(cache: Path) -> None:
    other = cache / "runtimes" / "onnxruntime-genai-0123abcd"
    older = cache / "runtimes" / "llama-cpp-0123abcd"
    for home in (other, older):
        home.mkdir(parents=True)
        (home / "pyvenv.cfg").touch()
    assert not environments.remove("onnxruntime")
    assert environments.remove("llama.cpp")
    assert (other.is_dir(), older.exists()) == (True, False)


def test_a_named_interpreter_that_is_gone_is_not_used(cache: Path, tmp_path: Path) -> None:
    environments.use("transformers", Path(sys.executable))
    environments.write_json(cache / "runtimes" / environments.NAMED, {"transformers": str(tmp_path / "gone")})
    assert environments.place("transformers").how == "own"


def test_a_failed_installation_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(command: list[str], more: dict[str, str]) -> None:
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
            return
        raise CompressError("pip install failed: no space")

    monkeypatch.setattr(environments, "_run", fails)
    with pytest.raises(CompressError, match="no space"):
        environments.install("openvino", lambda _: None)
    assert list((cache / "runtimes").iterdir()) == []
    assert environments.place("openvino").interpreter is None


def test_the_list_of_all(cache: Path) -> None:
    told = CliRunner().invoke(app, ["runtime", "list"])
    assert told.exit_code == 0
    assert "not installed: compress runtime install vllm" in told.output
    found = CliRunner().invoke(app, ["runtime", "list", "--json"])
    assert '"command": "runtime"' in found.output
    wrong = CliRunner().invoke(app, ["runtime", "install", "magic"])
    assert wrong.exit_code == 2
