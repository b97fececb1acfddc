"""The program as a user meets it: `run("quantize", ...)` gives exit code, stdout and stderr."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny

QUICK = ("--samples", "2", "--seq-len", "32", "--eval-samples", "2", "--generate", "0", "--no-verify", "--threads", "1")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr; fails when there is not exactly one, or when it is a traceback."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("compress: "), self.err
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        return lines[0]


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Calls the entry point in this process, in an empty working directory, with a cache of its own."""
    from compress.cli import main

    threads = torch.get_num_threads()
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        said = capsys.readouterr()
        torch.set_num_threads(threads)
        return Ended(int(left.value.code or 0), said.out, said.err)

    return call


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with its tokenizer; not to be changed."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy of the tiny llama that a test may break."""
    return shutil.copytree(llama, tmp_path / "model")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite model.safetensors after `change` was applied to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}), encoding="utf-8")


def data_start(file: Path) -> int:
    """The first byte of tensor data in a safetensors file."""
    return 8 + int(struct.unpack("<Q", file.read_bytes()[:8])[0])
