"""run_bench: what it measures, refuses and says. Models run in this process; the pipe has its own tests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from compress.core.errors import CompressError, DataError, ModelError, UsageError
from compress.core.types import Measurement, TokenSet
from compress.measure import bench, latency, lockstep
from compress.measure.bench import run_bench
from compress.measure.client import Worker
from compress.measure.latency import percentile
from compress.measure.settings import BenchSettings
from compress.measure.size import bits_per_weight, folder_bytes, locate, weight_bytes
from compress.measure.subject import WorkerSettings
from compress.measure.worker import Server
from tests.tiny import save_tiny, tiny_config


class Here(Worker):
    """A worker without a process: requests go straight to the server, through JSON as they would."""

    def __init__(self, settings: WorkerSettings, export: Any = None) -> None:
        self.name, self.description = "", None
        self._server, self._replies = Server(), list[Any]()
        self._server.handle({"verb": "settings", "arguments": {"values": {**vars(settings), "threads": 1}}})

    def send(self, verb: str, arguments: dict[str, Any]) -> None:
        request = json.loads(json.dumps({"verb": verb, "arguments": arguments}))
        self._replies.append(self._server.handle(request))

    def receive(self) -> Any:
        reply = self._replies.pop(0)
        if "error" in reply:
            raise ModelError(reply["error"]["message"])
        return reply["result"]

    def close(self, at_once: bool = False) -> None:
        self._server._subject = None


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    for module in (bench, latency, lockstep):
        monkeypatch.setattr(module, "Worker", Here)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny llama and the same with noise on its weights, in bfloat16."""
    home = tmp_path_factory.mktemp("pair")
    first = save_tiny("llama", home / "a")
    model = AutoModelForCausalLM.from_pretrained(first, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    model.to(torch.bfloat16).save_pretrained(home / "b")
    return first, home / "b"


def tokens(lengths: tuple[int, ...] = (80, 30, 80, 1), vocabulary: int = 416) -> TokenSet:
    generator = torch.Generator().manual_seed(0)
    ids = tuple(torch.randint(4, vocabulary, (n,), generator=generator) for n in lengths)
    return TokenSet(ids, tuple(range(len(ids))), "digest", "made up")


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total, what


def rows(measurements: list[Measurement]) -> dict[tuple[str, str], Measurement]:
    found = {(m.subject, m.name): m for m in measurements}
    assert len(found) == len(measurements), "a figure was reported twice"
    return found


def test_quality_and_sizes_of_two_subjects(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    data = tokens()
    found = rows(run_bench(BenchSettings((a, b), data, latency=False), quiet)[0])
    models = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).double().eval() for f in pair]
    nll, kl, n = [0.0, 0.0], 0.0, 0
    for ids in data.sequences[:3]:  # the last one predicts nothing
        with torch.inference_mode():
            p, q = (m(ids[None]).logits[0, :-1].log_softmax(-1) for m in models)
        targets = ids[1:, None]
        nll = [nll[0] - float(p.gather(1, targets).sum()), nll[1] - float(q.gather(1, targets).sum())]
        kl += float((p.exp() * (p - q)).sum())
        n += len(targets)
    assert found[a, "perplexity"].median == pytest.approx(math.exp(nll[0] / n), rel=1e-4)
    assert found[b, "perplexity"].median == pytest.approx(math.exp(nll[1] / n), rel=1e-4)
    assert found[b, "kl"].median == pytest.approx(kl / n, rel=1e-3)
    assert found[b, "kl"].n == 3
    assert found[b, "kl"].detail["tokens"] == n == 187
    assert (a, "kl") not in found
    sizes = [sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in pair]
    assert [found[s, "bytes"].median for s in (a, b)] == sizes
    parameters = sum(p.numel() for p in models[0].parameters())
    assert found[b, "bits_per_weight"].median == pytest.approx(8 * sizes[1] / parameters)
    assert 16 < found[b, "bits_per_weight"].median < 18 < found[a, "bits_per_weight"].median < 34


def test_the_reference_alone_has_its_perplexity(pair: tuple[Path, Path]) -> None:
    a = str(pair[0])
    found = rows(run_bench(BenchSettings((a,), tokens(), latency=False), quiet)[0])
    assert {name for _, name in found} == {"bytes", "bits_per_weight", "perplexity"}


def test_latency_rows_and_notes(pair: tuple[Path, Path]) -> None:
    a, b = map(str, pair)
    settings = BenchSettings((a, b), prompt_tokens=300, decode_tokens=4, repeats=3, rounds=2, quality=False)
    said: list[str] = []
    measurements, notes = run_bench(settings, lambda what, done, total: said.append(what))
    found = rows(measurements)
    for subject in (a, b):
        names = ("prefill_tokens_per_s", "decode_tokens_per_s", "latency_ms")
        for row in (found[subject, name] for name in names):
            assert row.n == 6
            assert row.low is not None
            assert row.high is not None
            assert 0 < row.low <= row.median <= row.high
            assert row.detail["threads"] == 1
            assert len(row.detail["load_average"]) == row.detail["rounds"] == 2
        assert found[subject, "latency_ms"].detail["p95"] >= found[subject, "latency_ms"].low
        step = 1000 / found[subject, "decode_tokens_per_s"].median
        assert found[subject, "latency_ms"].median < 5 * step
        assert found[subject, "peak_rss_bytes"].median > 50 << 20
    assert "prompts were cut from 300 to 252 tokens to fit 256 positions" in notes
    order = [what for what in said if what.startswith("latency of")]
    assert order == [f"latency of {s}" for s in (a, b, b, a)]


def test_encoders_are_compared_by_hidden_states(tmp_path: Path) -> None:
    folders = [str(save_tiny("bert", tmp_path / name)) for name in "ab"]
    settings = BenchSettings(tuple(folders), tokens((200, 40)), prompt_tokens=16, repeats=1, rounds=1)
    measurements, notes = run_bench(settings, quiet)
    found = rows(measurements)
    assert found[folders[1], "hidden_cosine"].median == pytest.approx(1.0, abs=1e-6)
    assert found[folders[1], "hidden_cosine"].detail["tokens"] == 200  # 160 positions and 40
    assert any("cut to 160 tokens" in note for note in notes)
    assert (folders[0], "latency_ms") in found
    assert (folders[0], "decode_tokens_per_s") not in found


def test_speech_models_get_sizes_only(tmp_path: Path) -> None:
    folder = str(save_tiny("whisper", tmp_path / "w"))
    measurements, notes = run_bench(BenchSettings((folder,), tokens()), quiet)
    assert [m.name for m in measurements] == ["bytes", "bits_per_weight"]
    assert any("only sizes were measured" in note for note in notes)


def test_subjects_that_cannot_be_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a = str(pair[0])
    config = tiny_config("llama")
    config.vocab_size = 300
    other = tmp_path / "other"
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    with pytest.raises(ModelError, match=f"{other} has a vocabulary of 300 tokens and {a} one of 416"):
        run_bench(BenchSettings((a, str(other)), tokens()), quiet)
    bert = str(save_tiny("bert", tmp_path / "bert"))
    with pytest.raises(ModelError, match=r"of kind decoder, .* of kind encoder"):
        run_bench(BenchSettings((a, bert), tokens()), quiet)
    data = TokenSet((torch.tensor([5, 900, 5]),), (0,), "", "")
    with pytest.raises(ModelError, match="token id 900 lies outside the vocabulary"):
        run_bench(BenchSettings((a,), data, latency=False), quiet)


def test_settings_that_measure_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a = str(pair[0])
    wrong: list[tuple[type[CompressError], str, BenchSettings]] = [
        (UsageError, "no subject", BenchSettings(())),
        (UsageError, "named twice", BenchSettings((a, a), tokens())),
        (UsageError, "repeats 0", BenchSettings((a,), tokens(), repeats=0)),
        (UsageError, "warmup -1", BenchSettings((a,), tokens(), warmup=-1)),
        (UsageError, "decode_tokens 256 do not fit", BenchSettings((a,), decode_tokens=256, quality=False)),
        (DataError, "no sequence has 2 tokens", BenchSettings((a,))),
        (DataError, "no sequence has 2 tokens", BenchSettings((a,), tokens((1, 0)))),
        (ModelError, "gone is not there", BenchSettings((a, str(tmp_path / "gone")), tokens())),
        (ModelError, "holds no weights", BenchSettings((a, str(tmp_path)), tokens())),
    ]
    for kind, said, settings in wrong:
        with pytest.raises(kind, match=said):
            run_bench(settings, quiet)


def test_sizes_of_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    files = {"model.safetensors": 1000, "sub/codes.safetensors": 50, "config.json": 2, "old.bin": 7}
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"x" * size)
    assert weight_bytes(tmp_path) == 1000
    assert folder_bytes(tmp_path) == 1059
    assert weight_bytes(tmp_path / "model.safetensors") == 1000 == folder_bytes(tmp_path / "model.safetensors")
    assert bits_per_weight(1000, 2000) == 4.0
    with pytest.raises(UsageError, match="of 0 parameters"):
        bits_per_weight(1000, 0)


def test_where_subjects_are(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    assert locate(str(file)).gguf_file == locate(str(tmp_path)).gguf_file == "m.gguf"
    assert locate(str(tmp_path)).folder == locate(str(file)).folder == str(tmp_path)
    hub = locate("someone/some-model")
    assert (hub.local, hub.folder, hub.gguf_file) == (False, "someone/some-model", None)
    (tmp_path / "n.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"2 .gguf files \(m.gguf, n.gguf\); name one"):
        locate(str(tmp_path))
    (tmp_path / "note.txt").write_text("x")
    for name in ("note.txt", "gone.gguf"):
        with pytest.raises(ModelError, match=name):
            locate(str(tmp_path / name))


def test_percentile_is_a_sample() -> None:
    assert percentile([float(i) for i in range(100, 0, -1)], 0.95) == 95.0
    assert percentile([2.0, 1.0], 0.95) == 2.0
    assert percentile([3.0], 0.5) == 3.0
