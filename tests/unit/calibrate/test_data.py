"""What `prepare` hands to the pipeline, checked by decoding bytes back to text."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from calibrate.data import DataSettings, PreparedData, prepare
from compress.core.errors import DataError, ModelError
from compress.core.types import TokenSet

Prose = Callable[[int], str]
BOS, EOS, VOCAB = 256, 257, 259


def ask(data: Path | None, tokenizer: Any, **changes: Any) -> PreparedData:
    asked = {"text_column": None, "samples": 6, "seq_len": 64, "eval_samples": 3, "seed": 0} | changes
    return prepare(DataSettings(data=None if data is None else str(data), **asked), tokenizer, VOCAB)


@pytest.fixture
def articles(tmp_path: Path, prose: Prose) -> Path:
    """40 documents of 4 sentences, about 150 bytes each."""
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps({"text": prose(4)}) + "\n" for _ in range(40)))
    return path


def lines(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def decoded(ids: torch.Tensor, tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_windows_are_whole_and_documents_follow_each_other(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(articles, byte_tokenizer)
    assert [len(s) for s in made.calibration.sequences] == [64] * 6
    assert all(s.dtype == torch.int64 for s in made.calibration.sequences)
    stream = torch.cat(made.calibration.sequences).tolist()
    texts = lines(articles)
    first = made.calibration.documents[0]
    ids = [*texts[first].encode(), EOS]
    byte = {byte_tokenizer.convert_tokens_to_ids(t): b for b, t in enumerate_bytes(byte_tokenizer)}
    assert [byte.get(i, i) for i in stream[: len(ids)]] == ids


def test_text_that_judges_shares_no_document_with_any_other(articles: Path, byte_tokenizer: Any) -> None:
    made, without = (ask(articles, byte_tokenizer, judging=judging) for judging in (4, 0))
    assert made.judging is not None
    assert without.judging is None
    assert [len(s) for s in made.judging.sequences] == [64] * 4
    text = " ".join(decoded(s, byte_tokenizer) for s in made.judging.sequences)
    others = [decoded(s, byte_tokenizer) for s in (*made.calibration.sequences, *made.heldout.sequences)]
    assert not any(sentence in text for other in others for sentence in re.findall(r"[^.]{16,}", other))
    assert (made.calibration.digest, made.heldout.digest) == (without.calibration.digest, without.heldout.digest)
    assert made.card["judging"] == {"documents": len(set(made.judging.documents)), "sequences": 4, "tokens": 256,
                                    "digest": made.judging.digest}  # fmt: skip


@pytest.mark.parametrize("count", [12, 40, 400])
def test_text_that_judges_changes_no_other(tmp_path: Path, byte_tokenizer: Any, prose: Prose, count: int) -> None:
    """Where it is scarce, and where there is more than is read; of documents that share long runs with later ones."""
    path, shared = tmp_path / "rows.jsonl", [prose(2)[:80] for _ in range(3)]
    texts = [f"{prose(1)} {shared[n % 3] if n % 2 else prose(2)}" for n in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    asked = {"samples": 6, "eval_samples": 3, "seq_len": 64}
    made = [ask(path, byte_tokenizer, judging=judging, **asked) for judging in (0, 4, 4000)]
    assert len({one.calibration.digest for one in made}) == len({one.heldout.digest for one in made}) == 1


def test_there_is_no_text_that_judges_where_it_is_scarce(articles: Path, byte_tokenizer: Any) -> None:
    assert ask(articles, byte_tokenizer, judging=200).judging is None


def enumerate_bytes(tokenizer: Any) -> list[tuple[int, str]]:
    """`(byte, its token)` for the ASCII of the test texts."""
    return [(b, tokenizer.tokenize(chr(b))[0]) for b in range(32, 127)]


def test_heldout_sequences_are_the_beginnings_of_documents(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(articles, byte_tokenizer)
    texts = lines(articles)
    assert len(made.heldout.sequences) == 3
    for ids, number in zip(made.heldout.sequences, made.heldout.documents, strict=True):
        assert decoded(ids, byte_tokenizer) == texts[number][:64]


def test_no_heldout_text_is_in_calibration(articles: Path, byte_tokenizer: Any) -> None:
    articles.write_text(articles.read_text() * 3)
    made = ask(articles, byte_tokenizer, samples=1000)
    stream = "".join(decoded(s, byte_tokenizer) for s in made.calibration.sequences)
    for ids in made.heldout.sequences:
        assert decoded(ids, byte_tokenizer) not in stream
    assert not set(made.heldout.documents) & set(made.calibration.documents)
    assert (made.card["documents"], made.card["duplicates"]) == (40, 80)


def test_a_copy_with_another_ending_is_not_judged_and_calibrated(
    tmp_path: Path, byte_tokenizer: Any, prose: Prose
) -> None:
    openings = [prose(5) for _ in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": o + prose(2)}) + "\n" for o in openings * 2))
    made = ask(path, byte_tokenizer, samples=1000)
    stream = "".join(decoded(s, byte_tokenizer) for s in made.calibration.sequences)
    assert len(made.heldout.sequences) == 3
    assert not [ids for ids in made.heldout.sequences if decoded(ids, byte_tokenizer) in stream]


def test_every_window_has_the_tokenizers_frame(articles: Path, bos_tokenizer: Any) -> None:
    made = ask(articles, bos_tokenizer)
    for ids in (*made.calibration.sequences, *made.heldout.sequences):
        assert ids[0] == BOS
        assert (ids == BOS).sum() == 1
        assert len(ids) == 64


def test_the_templates_own_bos_is_not_doubled(tmp_path: Path, chat_tokenizer: Any, prose: Prose) -> None:
    path = tmp_path / "chats.jsonl"
    chats = [{"messages": [{"role": "user", "content": prose(3)}]} for _ in range(30)]
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    made = ask(path, chat_tokenizer)
    assert all((ids == BOS).sum() == 1 and ids[0] == BOS for ids in made.calibration.sequences)
    assert decoded(made.heldout.sequences[0], chat_tokenizer).startswith("[user] The ")


def test_same_settings_same_bytes_and_other_seed_other_split(articles: Path, byte_tokenizer: Any) -> None:
    one, two, other = (ask(articles, byte_tokenizer, seed=seed) for seed in (3, 3, 4))
    assert one.card == two.card
    assert all(torch.equal(a, b) for a, b in zip(one.calibration.sequences, two.calibration.sequences, strict=True))
    assert one.calibration.digest != other.calibration.digest
    assert one.heldout.documents != other.heldout.documents
    json.dumps(one.card)


def independent_digest(made: TokenSet, use: str, samples: int) -> str:
    settings = {"samples": samples, "seed": 0, "seq_len": 64, "use": use}
    raw = json.dumps(settings, sort_keys=True).encode()
    for ids in made.sequences:
        raw += struct.pack(f"<i{len(ids)}i", len(ids), *ids.tolist())
    return hashlib.sha256(raw).hexdigest()


def test_digests_are_over_ids_lengths_and_settings(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(articles, byte_tokenizer)
    assert made.calibration.digest == independent_digest(made.calibration, "calibration", 6)
    assert made.heldout.digest == independent_digest(made.heldout, "held-out", 3)
    assert made.card["calibration"]["digest"] == made.calibration.digest


def test_fewer_tokens_than_asked_are_said(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(articles, byte_tokenizer, samples=500, eval_samples=30)
    got = len(made.calibration.sequences)
    total = sum(len(text) for text in lines(articles))
    assert total * 3 // 4 // 64 <= got < total // 64
    held = sum(len(lines(articles)[number]) for number in made.heldout.documents)
    assert held <= total / 4
    said = " ".join(made.card["warnings"])
    assert f"{got} calibration sequences of 64 tokens, 500 were asked for" in said
    assert f"{len(made.heldout.sequences)} held-out documents, 30 were asked for" in said


def test_long_documents_take_turns(tmp_path: Path, byte_tokenizer: Any, prose: Prose) -> None:
    for i in range(10):
        (tmp_path / f"book{i}.txt").write_text(prose(400))
    made = ask(tmp_path, byte_tokenizer, samples=16, eval_samples=2)
    assert len(set(made.calibration.documents)) >= 4
    assert len(made.calibration.sequences) == 16


@pytest.mark.parametrize("joint", ["\n\n", "\n", " ", ""])
def test_one_document_is_cut_into_sections(tmp_path: Path, byte_tokenizer: Any, prose: Prose, joint: str) -> None:
    path = tmp_path / "book.txt"
    path.write_text(joint.join(prose(2) for _ in range(400)))
    made = ask(path, byte_tokenizer)
    assert (len(made.calibration.sequences), len(made.heldout.sequences)) == (6, 3)
    assert made.card["sections"] > 12
    assert any("1 document, cut into" in s and "with a gap" in s for s in made.card["warnings"])
    text = path.read_text()
    stream = "".join(decoded(s, byte_tokenizer) for s in made.calibration.sequences)
    for ids in made.heldout.sequences:
        assert decoded(ids, byte_tokenizer) in text
        assert decoded(ids, byte_tokenizer) not in stream


def test_chinese_without_spaces_or_line_breaks(tmp_path: Path, byte_tokenizer: Any) -> None:
    path = tmp_path / "zh.txt"
    path.write_bytes("".join(f"第{i}条：量化把权重变成低比特整数。" for i in range(500)).encode("gb18030"))
    made = ask(path, byte_tokenizer)
    assert made.card["encoding"] == "gb18030"
    assert (len(made.calibration.sequences), len(made.heldout.sequences)) == (6, 3)
    assert "量化" in decoded(made.heldout.sequences[0], byte_tokenizer)


def test_short_documents_only_when_all_are_short(tmp_path: Path, byte_tokenizer: Any, prose: Prose) -> None:
    short = [f"hello {i}" for i in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in [*short, *(prose(2) for _ in range(9))]))
    assert all(len(ids) >= 16 for ids in ask(path, byte_tokenizer).heldout.sequences)
    path.write_text("".join(json.dumps(t) + "\n" for t in [*short, "hello there"]))
    made = ask(path, byte_tokenizer)
    assert len(made.heldout.sequences) == 3
    assert decoded(made.heldout.sequences[0], byte_tokenizer) == "hello there"


def test_built_in_text_needs_nothing(byte_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = ask(None, byte_tokenizer, samples=64, eval_samples=16, seq_len=256)
    assert (len(made.calibration.sequences), len(made.heldout.sequences)) == (64, 16)
    assert made.card["source"] == "built-in (Python reference topics)"
    assert not caplog.records  # "sequence longer than the maximum" among them


def test_eval_samples_zero_holds_nothing_out(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(articles, byte_tokenizer, eval_samples=0)
    assert made.heldout.sequences == ()
    assert len(made.calibration.sequences) == 6


@pytest.mark.parametrize(
    ("text", "changes", "said"),
    [
        ("just one line", {}, "leaves .* tokens for calibration|need one each"),
        ("The same line again and again, nothing else.\n" * 500, {}, "need one each"),
        ("x", {"eval_samples": 0}, "leaves 2 tokens for calibration, .* of 64; give more text"),
        ("ten words " * 20, {"eval_samples": 0, "seq_len": 512}, "--seq-len 128 or more text"),
    ],
)
def test_too_little_text_names_the_remedy(
    tmp_path: Path, byte_tokenizer: Any, text: str, changes: dict[str, int], said: str
) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError, match=said):
        ask(tmp_path / "a.txt", byte_tokenizer, **changes)


def test_a_lone_surrogate_does_not_stop_the_run(tmp_path: Path, byte_tokenizer: Any, prose: Prose) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(prose(4) + "\ud800") + "\n" for _ in range(20)))
    assert len(ask(path, byte_tokenizer).calibration.sequences) == 6


def test_a_tokenizer_of_another_model_is_refused(articles: Path, byte_tokenizer: Any) -> None:
    settings = DataSettings(str(articles), None, 4, 64, 2, 0)
    with pytest.raises(ModelError, match=r"does not match the vocabulary \(id 257, vocabulary 250\)"):
        prepare(settings, byte_tokenizer, 250)


def test_a_tokenizer_that_knows_no_word_is_refused(articles: Path) -> None:
    known = Tokenizer(models.WordLevel({"<unk>": 0, "is": 1, "small": 2, "The": 3}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>")
    with pytest.raises(ModelError, match=r"maps \d\d% of the text to its unknown token"):
        ask(articles, tokenizer)


def test_sequences_longer_than_the_tokenizer_allows_are_said(articles: Path, byte_tokenizer: Any) -> None:
    made = ask(None, byte_tokenizer, samples=2, seq_len=8192, eval_samples=1)
    assert "Sequences of 8192 tokens exceed the tokenizer's maximum of 4096." in made.card["warnings"]
