"""Runtimes of their own environment without a server, asked by the clients of their users, on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from compress.pipeline.verify import Verified
from export import environments
from export.source import Source
from tests.exporting import artifact, written

pytestmark = pytest.mark.runtimes


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


def asked(where: Path, out: Path, runtime: str) -> Verified:
    place = environments.place(runtime)
    if place.interpreter is None:
        pytest.skip(f"needs {runtime}: {place.install}")
    return stage.verify(where, Source(out), VerifySettings((runtime,), 1, serve=True), Hooks())


def answered(found: Verified) -> dict[str, Any]:
    """What the client said."""
    assert found.passed, [line for line in found.lines if not line["passed"]]
    return next(line for line in found.lines if line["check"] == "served answer")


@pytest.mark.parametrize(
    ("form", "runtime", "client"),
    [("onnx-genai", "onnxruntime-genai", "Generator"), ("openvino", "openvino", "OVModelForCausalLM")],
)
def test_clients_say_what_the_reference_writes(
    base: Path, tmp_path: Path, form: str, runtime: str, client: str
) -> None:
    if environments.place(runtime).interpreter is None:  # its own builder writes the export
        pytest.skip(f"needs {runtime}: {environments.place(runtime).install}")
    out = artifact("llama", base)
    line = answered(asked(written(out, form, where=tmp_path / "x")[0], out, runtime))
    assert line["client"].endswith(client)
    assert line["equal"] == line["of"]


@pytest.mark.parametrize("settings", [{}, {"symmetric": True}, {"bits": 8}, {"bits": 3}], ids=str)
@pytest.mark.parametrize("form", ["auto", "gptq_v2"])
def test_gptqmodel_opens_both_zero_conventions(base: Path, tmp_path: Path, form: str, settings: dict[str, Any]) -> None:
    out = artifact("llama", base / str(settings), **settings)
    where = written(out, "gptq", where=tmp_path / "x", checkpoint_format=form)[0]
    line = answered(asked(where, out, "gptqmodel"))
    assert line["client"].endswith("GPTQModel.generate")
