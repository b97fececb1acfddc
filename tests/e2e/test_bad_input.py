"""What cannot work: the right exit code, one sentence with the value and the remedy, the output folder whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compress.core.device import child_environment
from tests.e2e.conftest import QUICK, Run, data_start, edit_config, edit_weights

INPUT, FAILED, USAGE, INTERRUPTED = 3, 1, 2, 130


def refused(run: Run, model: object, *more: object, code: int = INPUT) -> str:
    """Quantize must end with `code` and leave no output folder; returns the sentence."""
    ended = run("quantize", model, "--out", "out", *QUICK, *more)
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert not Path("out").exists()
    return ended.sentence


# --- data ------------------------------------------------------------------------------------------------


def test_missing_data_file(run: Run, llama: Path) -> None:
    assert "nowhere.csv" in refused(run, llama, "--data", "nowhere.csv", "-q")


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "empty.csv", "empty.parquet", "empty.json"])
def test_empty_data_file(run: Run, llama: Path, name: str) -> None:
    Path(name).touch()
    assert name in refused(run, llama, "--data", name, "-q")


def test_a_column_that_is_not_there(run: Run, llama: Path) -> None:
    Path("reviews.csv").write_text("id,body\n1,Good.\n2,Bad.\n", encoding="utf-8")
    said = refused(run, llama, "--data", "reviews.csv", "--text-column", "text", "-q")
    assert "'text'" in said
    assert "body" in said
    assert "id" in said


def test_no_text_at_all(run: Run, llama: Path) -> None:
    Path("blank.txt").write_text("\n \n\t\n", encoding="utf-8")
    assert "blank.txt" in refused(run, llama, "--data", "blank.txt", "-q")
    Path("numbers.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    assert "a" in refused(run, llama, "--data", "numbers.jsonl", "-q")


def test_binary_data(run: Run, llama: Path) -> None:
    Path("noise.txt").write_bytes(bytes(range(256)) * 40)
    assert "noise.txt" in refused(run, llama, "--data", "noise.txt", "-q")


def test_fewer_tokens_than_asked_works_and_says_so(run: Run, llama: Path) -> None:
    lines = "".join(f"Sentence number {n} of a short file, about nothing in particular.\n\n" for n in range(30))
    Path("short.txt").write_text(lines, encoding="utf-8")
    sizes = ("--samples", "64", "--seq-len", "128", "--eval-samples", "2")
    ended = run("quantize", llama, "--out", "out", *QUICK, *sizes, "--data", "short.txt", "--json")
    assert ended.code == 0, ended.err
    record = json.loads(ended.out)
    assert record["data"]["calibration"]["tokens"] < 64 * 128
    assert any("64 were asked for" in note for note in record["notes"]), record["notes"]


# --- weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_a_number(run: Run, model: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(model, lambda tensors: tensors[name].view(-1)[5].fill_(value))
    ended = run("quantize", model, "--out", "out", *QUICK, "-q")
    assert ended.code == INPUT
    assert name in ended.sentence
    # block 0 was finished before: the folder resumes once the weights are whole, or says that they changed
    edit_weights(model, lambda tensors: tensors[name].view(-1)[5].fill_(0.0))
    again = run("quantize", model, "--out", "out", *QUICK, "-q")
    assert again.code == INPUT
    assert "model file model.safetensors" in again.sentence
    assert run("quantize", model, "--out", "out", *QUICK, "-q", "--overwrite").code == 0


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_activations_that_overflow_name_their_block(run: Run, model: Path, method: str) -> None:
    def blow_up(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.v_proj.weight"].fill_(1e38)
        tensors["model.layers.1.self_attn.o_proj.weight"].fill_(1e38)

    edit_weights(model, blow_up)
    ended = run("quantize", model, "--out", "out", *QUICK, "--method", method, "-q")
    assert ended.code == INPUT, ended
    assert "block 1" in ended.sentence


def test_truncated_weights(run: Run, model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    said = refused(run, model, "-q")
    assert "model.safetensors is truncated" in said
    assert "download it again" in said
    file.write_bytes(file.read_bytes()[:5])
    assert "not a whole safetensors file (5 bytes)" in refused(run, model, "-q")


def test_flipped_bits_in_the_header(run: Run, model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    unnoticed = []
    for position in [*range(8), *range(8, data_start(file), 97)]:
        for bit in (0, 3, 6):
            broken = bytearray(whole)
            broken[position] ^= 1 << bit
            file.write_bytes(broken)
            ended = run("inspect", model, "-q")
            if ended.code == 0:
                unnoticed.append((position, bit))
            else:
                assert ended.code == INPUT, (position, bit, ended.err)
                assert ended.sentence
    # what is left unnoticed changed no tensor: the value of a metadata entry, or one blank for another
    file.write_bytes(whole)
    expected = load_file(file)
    for position, bit in unnoticed:
        broken = bytearray(whole)
        broken[position] ^= 1 << bit
        file.write_bytes(broken)
        found = load_file(file)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_flipped_bit_of_a_hub_file(run: Run, llama: Path, tmp_path: Path) -> None:
    # a hub cache links names to blobs that are called by their sha256
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    shutil.copytree(llama, snapshot)
    blobs.mkdir()
    data = bytearray((snapshot / "model.safetensors").read_bytes())
    blob = blobs / hashlib.sha256(data).hexdigest()
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(blob)
    assert "links to" in refused(run, snapshot, "-q")  # the blob was never there
    blob.write_bytes(data)
    assert run("inspect", snapshot, "-q").code == 0
    data[-1] ^= 0x10
    blob.write_bytes(data)
    said = refused(run, snapshot, "-q")
    assert "sha256" in said
    assert str(blob) in said


def test_a_flipped_bit_of_our_own_artifact(run: Run, llama: Path) -> None:
    assert run("quantize", llama, "--out", "out", *QUICK, "-q").code == 0
    assert run("inspect", "out", "-q").code == 0
    file = Path("out/model.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    ended = run("inspect", "out", "-q")
    assert ended.code == INPUT
    assert "model.safetensors" in ended.sentence
    assert "--overwrite" in ended.sentence
    file.unlink()
    ended = run("quantize", llama, "--out", "out", *QUICK, "-q")
    assert ended.code == INPUT
    assert "model.safetensors is missing" in ended.sentence


def test_an_index_that_points_outside(run: Run, model: Path) -> None:
    outside = model.parent / "secret.safetensors"
    (model / "model.safetensors").rename(outside)
    names = list(load_file(outside))
    for target in ("../secret.safetensors", str(outside)):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
        (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        (model / "other.safetensors").write_bytes(b"")
        assert "points outside" in refused(run, model, "-q")


def test_a_damaged_index(run: Run, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    assert "index.json is damaged" in refused(run, model, "-q")
    index = {"weight_map": {"model.embed_tokens.weight": "gone-00001.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "gone-00001.safetensors is missing" in refused(run, model, "-q")


def test_a_missing_and_a_misshapen_tensor(run: Run, model: Path) -> None:
    edit_weights(model, lambda tensors: tensors.pop("model.norm.weight"))
    assert "model.norm.weight" in refused(run, model, "-q")
    edit_weights(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    said = run("quantize", model, "--out", "out", *QUICK, "-q").sentence
    assert "(63,)" in said
    assert "(64,)" in said


# --- config, tokenizer, architecture ----------------------------------------------------------------------


def test_config_missing_damaged_unknown(run: Run, model: Path) -> None:
    edit_config(model, model_type="martian", architectures=["MartianForCausalLM"])
    assert "martian" in refused(run, model, "-q")
    (model / "config.json").write_text("{not json", encoding="utf-8")
    assert "config.json is not valid JSON" in refused(run, model, "-q")
    (model / "config.json").write_text("[]", encoding="utf-8")
    assert "must hold an object" in refused(run, model, "-q")
    (model / "config.json").unlink()
    assert "no config.json" in refused(run, model, "-q")


def test_a_model_that_is_quantized_already(run: Run, llama: Path) -> None:
    assert run("quantize", llama, "--out", "first", *QUICK, "-q").code == 0
    said = refused(run, "first", "-q")
    assert "already quantized (compressed-tensors)" in said


def test_code_that_comes_with_a_model(run: Run, model: Path) -> None:
    edit_config(model, auto_map={"AutoModelForCausalLM": "evil.Evil"})
    (model / "evil.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    assert "--trust-remote-code" in refused(run, model, "-q")


def test_a_tokenizer_of_another_model(run: Run, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    edit_config(model, vocab_size=300)
    edit_weights(
        model,
        lambda tensors: tensors.update(
            {k: tensors[k][:300].clone() for k in ("model.embed_tokens.weight", "lm_head.weight")}
        ),
    )
    assert config["vocab_size"] > 300
    said = refused(run, model, "-q")
    assert "300" in said
    assert "tokenizer" in said


def test_no_tokenizer(run: Run, model: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    assert "no usable tokenizer" in refused(run, model, "-q")


# --- settings --------------------------------------------------------------------------------------------


def test_a_group_that_does_not_divide(run: Run, llama: Path) -> None:
    said = refused(run, llama, "--group-size", "48", "-q")
    assert "48 does not divide in_features 64 of model.layers.0.self_attn.q_proj" in said
    assert "64" in said.split("use ")[1]


@pytest.mark.parametrize(
    ("options", "code", "parts"),
    [
        (("--bits", "7"), INPUT, ("--bits 7", "2, 3, 4, 5, 6, 8")),
        (("--bits", "four"), USAGE, ("--bits", "--help")),
        (("--group-size", "7"), INPUT, ("7", "16 to 256")),
        (("--group-size", "big"), INPUT, ("'big'", "auto")),
        (("--method", "magic"), USAGE, ("'magic'", "gptq", "rtn")),
        (("--option", "damping=1"), INPUT, ("'damping'", "damp")),
        (("--option", "damp"), INPUT, ("'damp'", "NAME=VALUE")),
        (("--option", "damp=much"), INPUT, ("damp=much", "float")),
        (("--option", "act_order=maybe"), INPUT, ("act_order=maybe", "true or false")),
        (("--embeddings", "int3"), INPUT, ("int3", "keep")),
        (("--dtype", "float8"), INPUT, ("float8", "bfloat16")),
        (("--samples", "0"), INPUT, ("samples", "0")),
        (("--max-shard-size", "huge"), INPUT, ("huge", "5GB")),
        (("--device", "tpu"), USAGE, ("tpu", "cuda")),
        (("--recipe", "none.yaml"), INPUT, ("none.yaml",)),
        (("--no-such-option",), USAGE, ("--no-such-option", "--help")),
    ],
)
def test_settings_that_cannot_be(run: Run, llama: Path, options: tuple[str, ...], code: int, parts: tuple[str]) -> None:
    said = refused(run, llama, "-q", *options, code=code)
    for part in parts:
        assert part in said


def test_a_recipe_file_with_an_unknown_key(run: Run, llama: Path) -> None:
    Path("recipe.yaml").write_text("bits: 4\ngroupsize: 64\n", encoding="utf-8")
    assert "groupsize" in refused(run, llama, "--recipe", "recipe.yaml", "-q")
    Path("recipe.yaml").write_text("- 4\n", encoding="utf-8")
    assert "recipe.yaml" in refused(run, llama, "--recipe", "recipe.yaml", "-q")


# --- where models come from --------------------------------------------------------------------------------


def test_paths_that_are_no_model(run: Run, model: Path, tmp_path: Path) -> None:
    said = refused(run, tmp_path / "modle", "-q")
    assert "did you mean model?" in said
    assert "is a file" in refused(run, model / "config.json", "-q")
    (tmp_path / "empty").mkdir()
    assert "holds no weights" in refused(run, tmp_path / "empty", "-q")
    Path("broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(40))
    assert "broken.gguf" in refused(run, "broken.gguf", "-q")


def test_a_hub_id_without_a_connection(tmp_path: Path) -> None:
    # in a fresh process: the hub's client reads its settings when it is imported
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        environment = child_environment() | variables | {"HF_HOME": str(tmp_path / "hub")}
        started = time.monotonic()
        ended = subprocess.run(
            [sys.executable, "-m", "compress.cli", "inspect", "nobody/nothing", "-q"],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )
        assert ended.returncode == INPUT, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
        assert "nobody/nothing is not a local folder and the hub could not be reached" in ended.stderr
        assert "give a folder" in ended.stderr
        assert time.monotonic() - started < 250  # no minutes of retries


def to_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def test_pickles_need_permission(run: Run, model: Path) -> None:
    to_pickle(model)
    assert "--allow-pickle" in refused(run, model, "-q")
    assert run("quantize", model, "--out", "out", *QUICK, "-q", "--allow-pickle").code == 0


def test_a_pickle_gives_the_codes_of_its_safetensors(run: Run, llama: Path, model: Path) -> None:
    to_pickle(model)
    assert run("quantize", llama, "--out", "one", *QUICK, "-q").code == 0
    assert run("quantize", model, "--out", "two", *QUICK, "-q", "--allow-pickle").code == 0
    one, two = (Path(out, "model.safetensors").read_bytes() for out in ("one", "two"))
    assert one == two


class Evil:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


def test_a_pickle_that_runs_code_is_refused(run: Run, model: Path) -> None:
    (model / "model.safetensors").unlink()
    for write in (lambda path: torch.save({"weight": Evil()}, path), lambda p: p.write_bytes(pickle.dumps(Evil()))):
        write(model / "pytorch_model.bin")
        said = refused(run, model, "--allow-pickle", "-q")
        assert "refused" in said
        assert not Path("pwned").exists()


# --- the output folder and the disk ---------------------------------------------------------------------------


def test_an_output_folder_that_holds_something_else(run: Run, llama: Path) -> None:
    Path("out").mkdir()
    Path("out/thesis.txt").write_text("mine", encoding="utf-8")
    for more in ((), ("--overwrite",)):
        ended = run("quantize", llama, "--out", "out", *QUICK, "-q", *more)
        assert ended.code == INPUT
        assert "out holds files that are not of a run" in ended.sentence
        assert sorted(p.name for p in Path("out").rglob("*")) == ["thesis.txt"]
    Path("file").write_text("x", encoding="utf-8")
    ended = run("quantize", llama, "--out", "file", *QUICK, "-q")
    assert ended.code == INPUT
    assert "file is a file" in ended.sentence
    ended = run("quantize", llama, "--out", llama, *QUICK, "-q")
    assert ended.code == INPUT  # never into the model itself


def test_output_inside_the_model_folder(run: Run, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert run("quantize", ".", *QUICK, "-q").code == 0
    assert run("quantize", ".", *QUICK, "-q", "--bits", "8").code == 0
    names = {p.relative_to(model / "model-8bit").as_posix() for p in (model / "model-8bit").rglob("*")}
    assert "model.safetensors" in names
    assert not any("4bit" in name or "8bit" in name for name in names)


def test_two_runs_in_one_folder(run: Run, llama: Path) -> None:
    from compress.core.lock import hold

    Path("out/compress").mkdir(parents=True)
    with hold(Path("out/compress")):
        ended = run("quantize", llama, "--out", "out", *QUICK, "-q")
    assert ended.code == INPUT
    assert "another run of compress is working in out" in ended.sentence
    assert run("quantize", llama, "--out", "out", *QUICK, "-q").code == 0


def test_a_full_disk_then_space(run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("quantize", llama, "--out", "whole", *QUICK, "-q").code == 0
    expected = Path("whole/model.safetensors").read_bytes()
    real = os.write
    room = 60_000
    written = 0

    def write(handle: int, data: memoryview) -> int:
        nonlocal written
        if written + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written += len(data)
        return real(handle, data)

    for room in (60_000, 200_000, 400_000):  # noqa: B007 - read by write()
        written = 0
        with monkeypatch.context() as full:
            full.setattr(os, "write", write)
            ended = run("quantize", llama, "--out", "out", *QUICK, "-q")
        assert ended.code == FAILED
        assert "No space left on device" in ended.sentence
        assert "free some space and run the same command again" in ended.sentence
        assert not list(Path("out").rglob("*.compress-part"))
    assert run("quantize", llama, "--out", "out", *QUICK, "-q").code == 0
    assert Path("out/model.safetensors").read_bytes() == expected


# --- interruptions ----------------------------------------------------------------------------------------------


def as_in_a_terminal() -> None:
    """Programs started in the background of a script ignore Ctrl-C, and so do their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def interrupt(llama: Path, cwd: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """Send a signal to a real run once its first block is finished."""
    words = [sys.executable, "-m", "compress.cli", "quantize", str(llama), "--out", "out", *QUICK]
    words += ["--samples", "64", "--seq-len", "128", "--option", "steps=400", "--option", "rounds=40"]
    process = subprocess.Popen(
        words,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
        preexec_fn=as_in_a_terminal,
    )
    journal = cwd / "out" / "compress" / "journal.jsonl"
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if journal.is_file() and '"kind": "block"' in journal.read_text(encoding="utf-8"):
            process.send_signal(number)
            break
        time.sleep(0.005)
    out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_user(llama: Path, tmp_path: Path, number: signal.Signals) -> None:
    ended = interrupt(llama, tmp_path, number)
    assert ended.returncode == INTERRUPTED, ended.stderr
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1] == "compress: interrupted; the same command resumes"
    assert "Traceback" not in ended.stderr
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out/compress/journal.jsonl").read_text().splitlines()]
    assert kinds[0] == "start"
    assert "finished" not in kinds
    assert not list((tmp_path / "out").rglob("*.compress-part"))


def test_verbose_shows_the_traceback(run: Run, tmp_path: Path) -> None:
    ended = run("inspect", tmp_path / "none", "-v")
    assert ended.code == INPUT
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.strip().splitlines()[-1].startswith("compress: ")


def test_names_from_files_send_no_control_codes(run: Run, model: Path) -> None:
    index = {"weight_map": {"a": "\x1b[2J.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert "\x1b" not in refused(run, model, "-q")
