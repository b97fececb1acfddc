"""Models in processes of their own, against the same models opened here."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compress.core.child import _error
from compress.core.errors import CompressError, MissingExtraError, ModelError
from compress.measure.client import Worker
from compress.measure.subject import Description, Subject, WorkerSettings, describe
from compress.measure.worker import Server
from tests.tiny import save_tiny

SETTINGS = WorkerSettings(threads=1)
IDS = torch.arange(4, 104)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama", shard="200KB")


@pytest.fixture(scope="module")
def worker(llama: Path) -> Iterator[Worker]:
    with Worker.open(str(llama), SETTINGS) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(llama: Path) -> torch.nn.Module:
    opened: torch.nn.Module = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    return opened


def test_logits_are_those_of_transformers(worker: Worker, model: torch.nn.Module) -> None:
    with torch.inference_mode():
        expected = model(IDS[None]).logits[0]
    got = worker.logits(IDS)
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    assert float((got - expected).abs().max()) < 1e-4  # thread counts may differ, nothing else


def test_rows_are_pieces_of_the_pass(worker: Worker) -> None:
    whole = worker.logits(IDS)
    worker.forward(IDS)
    assert worker.shape() == tuple(whole.shape)
    assert torch.equal(worker.rows(60, 90), whole[60:90])
    assert worker.rows(5, 5).shape == (0, whole.shape[1])


def test_greedy_is_generate_without_sampling(worker: Worker, model: torch.nn.Module) -> None:
    expected = model.generate(  # type: ignore[operator]
        IDS[None],
        attention_mask=torch.ones_like(IDS[None]),
        max_new_tokens=16,
        do_sample=False,
        eos_token_id=None,
    )
    assert worker.greedy(IDS, 16) == expected[0, len(IDS) :].tolist()


def test_generate_goes_through_the_chat_template(worker: Worker, llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)
    turns = [{"role": "user", "content": "where is the river?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    answers = worker.generate(["where is the river?", "a"], 6)
    assert len(answers) == 2
    plain = worker.greedy(torch.tensor(ids), 6)
    end = plain.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in plain else 6
    assert answers[0] == {
        "text": tokenizer.decode(plain[:end], skip_special_tokens=True),
        "ids": plain[:end],
    }


def test_latency_and_memory_have_the_asked_shapes(worker: Worker) -> None:
    timed = worker.latency(prompt=12, decode=5, repeats=3, warmup=1)
    assert timed["threads"] == 1
    assert len(timed["prefill_seconds"]) == 3
    assert [len(row) for row in timed["step_seconds"]] == [5, 5, 5]
    assert min(timed["prefill_seconds"]) > 0
    rss = worker.rss()
    assert rss["peak"] >= rss["current"] > rss["baseline"] > 50 << 20


def test_a_bad_request_does_not_end_the_worker(worker: Worker, llama: Path) -> None:
    with pytest.raises(ModelError, match=f"token id 9999 lies outside the vocabulary of {llama}, which has 416"):
        worker.logits(torch.tensor([4, 9999]))
    with pytest.raises(CompressError, match="300 tokens are more than the 256 positions"):
        worker.logits(torch.full((300,), 5))
    with pytest.raises(CompressError, match="given no token"):
        worker.logits(torch.tensor([], dtype=torch.int64))
    with pytest.raises(CompressError, match="nosuch failed: KeyError"):
        worker.ask("nosuch", {})
    assert worker.logits(IDS[:3]).shape == (3, 416)


def test_a_killed_worker_says_so_and_leaves_no_process(llama: Path) -> None:
    with Worker(SETTINGS) as worker:
        worker.name = str(llama)
        worker.send("describe", {"subject": str(llama)})
        os.kill(worker.pid, signal.SIGKILL)  # in the middle of an answer
        for ask in (worker.receive, worker.rss):
            with pytest.raises(CompressError, match=rf"{llama} was killed by SIGKILL \(\d+\.\d GiB were") as caught:
                ask()
            assert caught.value.exit_code == 1
    assert not Path(f"/proc/{worker.pid}").exists()
    with pytest.raises(CompressError, match="was closed; open another"):
        worker.rss()


def test_closing_ends_a_worker_that_still_computes(llama: Path) -> None:
    worker = Worker(SETTINGS)
    worker.send("describe", {"subject": str(llama)})
    worker.close()
    assert not Path(f"/proc/{worker.pid}").exists()
    worker.close()  # a second time does nothing


def test_settings_are_checked_in_the_process() -> None:
    reply = Server().handle({"verb": "settings", "arguments": {"values": {"threads": -3}}})
    assert reply["error"]["kind"] == "UsageError"
    assert "-3 threads" in reply["error"]["message"]
    assert (
        Server()
        .handle({"verb": "rows", "arguments": {"start": 0, "stop": 1}})["error"]["message"]
        .endswith("send load first")
    )


def test_errors_keep_their_class_and_exit_code() -> None:
    error = _error({"kind": "MissingExtraError", "message": "needs gguf; install it"}, "x.gguf")
    assert isinstance(error, MissingExtraError)
    assert (str(error), error.exit_code) == ("x.gguf: needs gguf; install it", 2)
    assert type(_error({"kind": "os", "message": "?"}, "x")) is CompressError


# --- what cannot be opened: in this process, which is quicker -------------------------------------------------


def broken(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "broken"))


def test_missing_folder_fails_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone is not there; give the folder") as caught:
        Worker.open(str(tmp_path / "gone"), SETTINGS)
    assert caught.value.exit_code == 3


def test_truncated_shard(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"broken cannot be opened by transformers \(SafetensorError"):
        Subject(str(folder), SETTINGS)


def test_missing_shard(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path)
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ModelError, match=f"broken lacks {shard.name}, which its index names"):
        Subject(str(folder), SETTINGS)


def test_index_that_points_outside(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "../../secret.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"points at '../../secret.safetensors', outside its folder"):
        Subject(str(folder), SETTINGS)


def test_weights_that_would_be_random(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = broken(llama, tmp_path)
    tensors = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    for file in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        file.unlink()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights \(model.layers.1.mlp.up_proj.weight\)"):
        Subject(str(folder), SETTINGS)


def test_pickles_are_refused_unless_allowed(tmp_path: Path, llama: Path, model: torch.nn.Module) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copyfile(llama / "config.json", folder / "config.json")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"holds only .bin pickles.*--allow-pickle"):
        Subject(str(folder), SETTINGS)
    opened = Subject(str(folder), WorkerSettings(threads=1, allow_pickle=True))
    assert opened.forward([5, 6]) == (2, 416)


def test_config_that_is_no_config(llama: Path, tmp_path: Path) -> None:
    folder = broken(llama, tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="broken cannot be opened by transformers"):
        describe(str(folder), SETTINGS)
    (folder / "config.json").write_text('{"model_type": "nosuch"}')
    with pytest.raises(ModelError, match="nosuch"):
        describe(str(folder), SETTINGS)


@pytest.mark.parametrize(
    ("name", "kind", "positions", "text"),
    [
        ("gpt2", "decoder", 256, True),
        ("bert", "encoder", 160, True),
        ("roberta", "encoder", 159, True),  # pad is 0: positions start at 1
        ("marian", "encoder-decoder", 160, True),
        ("whisper", "encoder-decoder", None, False),
    ],
)
def test_other_kinds(name: str, kind: str, positions: int | None, text: bool, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path / name)
    subject = Subject(str(folder), SETTINGS)
    told: Description = subject.description
    assert (told.kind, told.positions, told.reads_text) == (kind, positions, text)
    assert told.parameters == sum(p.numel() for p in subject.model.parameters())
    if not text:
        with pytest.raises(ModelError, match="does not read token ids"):
            subject.forward([4, 5])
        return
    longest = [4 + i % 300 for i in range(positions or 64)]
    assert subject.forward(longest)[0] == len(longest)
    if kind != "decoder":
        with pytest.raises(ModelError, match="only decoders write text"):
            subject.greedy([4, 5], 2)
