"""Runtimes without a server, asked by their users' client: `compress verify --serve` on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from compress.core.errors import UsageError, VerificationError
from compress.pipeline import verify as stage
from compress.pipeline.expected import VerifySettings
from compress.pipeline.hooks import Hooks
from compress.pipeline.verify import Verified, raise_if_wrong
from export import environments, judge
from export.source import Source
from tests.exporting import InProcess, artifact, written
from tests.faults import edit_json, reseal
from tests.integration.test_onnx import compressed

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clients")


def asked(where: Path, out: Path, runtime: str, **more: Any) -> Verified:
    return stage.verify(where, Source(out), VerifySettings((runtime,), 1, serve=True, **more), Hooks())


def of_client(found: Verified) -> dict[str, Any]:
    """The one line that a client made."""
    (line,) = [line for line in found.lines if "client" in line]
    return line


def test_a_pipeline_answers_what_the_reference_writes(base: Path, tmp_path: Path) -> None:
    out = artifact("qwen2", base)
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    found = asked(where, out, "transformers")
    line = of_client(found)
    assert found.passed
    assert (line["check"], line["equal"], line["of"]) == ("served answer", 32, 32)
    assert line["client"] == f"transformers {transformers.__version__}, pipeline text-generation"
    edit_json(where / "config.json", lambda config: config["rope_parameters"].update(rope_theta=3.0))
    reseal(where)
    assert not of_client(asked(where, out, "transformers"))["passed"]


def test_sampling_settings_of_the_file_do_not_change_the_answer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "static_lines", lambda *_: [{"check": "nothing", "runtime": "", "passed": True}])
    out = artifact("qwen2", base)
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    sampled = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    edit_json(where / "generation_config.json", lambda said: said.update(sampled))
    reseal(where)
    assert of_client(asked(where, out, "transformers"))["passed"]


@pytest.mark.parametrize("form", ["onnx", "compressed-tensors"])
def test_an_embedder_is_read_by_the_client(base: Path, tmp_path: Path, form: str) -> None:
    runtime = "onnxruntime" if form == "onnx" else "transformers"
    out = artifact("mpnet", base, bits=8)
    where = written(out, form, where=tmp_path / "x")[0]
    line = of_client(asked(where, out, runtime))
    assert (line["check"], line["passed"]) == ("served values: largest difference", True)
    assert line["difference"] < 1e-4


KINDS = {"BertForSequenceClassification": "text-classification", "BertForTokenClassification": "token-classification"}


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_are_those_of_the_reference(tmp_path: Path, kind: str) -> None:
    out = compressed(kind, tmp_path, bits=8, method="rtn")
    where = written(out, "compressed-tensors", where=tmp_path / "x")[0]
    line = of_client(asked(where, out, "transformers"))
    assert line["passed"], line
    assert line["client"].endswith(KINDS[kind])
    if kind == "BertForTokenClassification":
        assert line["equal"] == line["of"] > 8


def test_a_model_that_no_client_asks_is_said(base: Path, tmp_path: Path) -> None:
    out = artifact("bert", base, bits=8)  # a masked model: no pipeline but one that wants a mask
    found = asked(written(out, "compressed-tensors", where=tmp_path / "x")[0], out, "transformers")
    assert found.notes == ["transformers was not asked: it has no client for a model that does what this one does"]
    with pytest.raises(UsageError, match="optimum has neither a server nor a client; leave --serve out"):
        asked_absent(out, tmp_path)


def asked_absent(out: Path, tmp_path: Path) -> None:
    """--serve of a runtime that cannot be asked, as if it were installed."""
    with pytest.MonkeyPatch.context() as patch:
        there = environments.place("transformers").interpreter
        place = environments.Place("optimum", there, "1", "own", "")
        patch.setattr(stage.environments, "place", lambda _: place)
        asked(written(out, "onnx", where=tmp_path / "y")[0], out, "optimum")


def test_trust_in_a_models_code_reaches_the_session(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = artifact("mpnet", base, bits=8)
    where = written(out, "onnx", where=tmp_path / "x")[0]
    told: list[bool] = []

    class Listening(InProcess):
        def __init__(self, *given: Any, trusted: bool = False) -> None:
            super().__init__(*given, trusted=trusted)
            told.append(self._server.settings_given["trust_remote_code"])

    monkeypatch.setattr(stage, "RuntimeProcess", Listening)
    for trusted in (False, True):
        stage.verify(where, Source(out), VerifySettings(("onnxruntime",), 1, trusted), Hooks())
    assert told == [False, True]


def test_what_is_not_verified_names_no_flag_that_verify_has_not(tmp_path: Path) -> None:
    absent = Verified([{"check": "x", "runtime": "y", "passed": True}], [], ["z is not installed; install z"])
    with pytest.raises(VerificationError, match=r"not verified: z is not installed; install z$"):
        raise_if_wrong(tmp_path, absent)
    with pytest.raises(VerificationError, match=r"install z, or pass --no-verify$"):
        raise_if_wrong(tmp_path, absent, ", or pass --no-verify")


def test_labels_are_judged_by_what_may_differ() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.1, 0.0]])
    allowed = judge.Bounds(0.2, 0.2, 0.1, "", {})
    shares = logits.softmax(-1)

    def line(second: int, score: float) -> judge.Line:
        told = [[0, 0, float(shares[0, 0])], [1, second, score]]
        return judge.labels([logits], [told], allowed, "served labels")

    right, near, off = line(0, float(shares[1, 0])), line(1, float(shares[1, 1])), line(0, 0.9)
    assert (right["passed"], right["equal"]) == (True, 2)
    assert (near["passed"], near["equal"]) == (True, 1)
    assert not off["passed"]
    assert not judge.labels([logits], [[]], allowed, "served labels")["passed"]
    assert not judge.labels([logits], [[[0, 1, float(shares[0, 1])]]], allowed, "served labels")["passed"]
