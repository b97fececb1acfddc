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
from tests import tiny
from tests.exporting import artifact, written
from tests.faults import plant
from tests.integration.test_clients import as_real_ones

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


READS = {
    "bert-classifier": "pipeline text-classification",
    "bert-tagger": "pipeline token-classification",
    "bert-embedder": "pipeline feature-extraction",
    "bert": "pipeline fill-mask",
    "bert-answerer": "ORTModelForQuestionAnswering",
    "bart": "ORTModelForSeq2SeqLM.generate",
    "whisper": "ORTModelForWhisper.generate",
}


@pytest.mark.parametrize("name", list(READS))
def test_optimum_is_asked_as_its_users_ask(
    base: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("bert", "bart", "whisper"):  # a mask; settings of beams and beginnings
        monkeypatch.setattr(tiny, "save_tiny", as_real_ones)
    if name == "bert-answerer":
        monkeypatch.setitem(tiny.AUTO, "bert", "AutoModelForQuestionAnswering")
    out = artifact("bert" if name == "bert-answerer" else name, base / f"optimum-{name}", bits=8)
    found = asked(written(out, "onnx", where=tmp_path / "x")[0], out, "optimum")
    lines = [line for line in found.lines if "client" in line]
    assert found.passed, [line for line in found.lines if not line["passed"]]
    assert len(lines) == (2 if name == "bart" else 1)
    assert all(line["client"].endswith(READS[name]) for line in lines)
    assert all(line["equal"] == line["of"] > 0 for line in lines if "equal" in line)


V2 = {"checkpoint_format": "gptq_v2"}
KINDS = {
    "4 bits, zero": ({}, V2),
    "4 bits, symmetric, zero - 1": ({"symmetric": True}, {"checkpoint_format": "gptq"}),
    "4 bits, symmetric, zero": ({"symmetric": True}, V2),
    "3 bits, zero": ({"bits": 3}, V2),
    "8 bits, zero": ({"bits": 8}, V2),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_gptqmodel_agrees(base: Path, tmp_path: Path, kind: str) -> None:
    settings, options = KINDS[kind]
    out = artifact("llama", base / str(settings), **settings)
    line = answered(asked(written(out, "gptq", where=tmp_path / "x", **options)[0], out, "gptqmodel"))
    assert line["client"].endswith("GPTQModel.generate")


@pytest.mark.parametrize("fault", ["off-by-one zero", "transposed block", "wrong rope theta"])
def test_gptqmodel_alone_sees_planted_faults(
    base: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = artifact("llama", base / "{}")
    where, _ = written(plant(fault, Source(out), tmp_path / "faulty"), "gptq", where=tmp_path / "x", **V2)
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    wrong = [line["check"] for line in asked(where, out, "gptqmodel").lines if not line["passed"]]
    assert any(check.startswith("outputs") for check in wrong)
