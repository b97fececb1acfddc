"""Ids that a client gave: the end token kept or left out, and what parts from the reference by how much."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch

from export import judge
from export.judge import Bounds, Line
from export.runtimes._rules import rules

END, OTHER_END = 2, 3
ALLOWED = Bounds(0.1, 0.2, 0.1, "", {})


def line(
    found: list[int],
    expected: list[int],
    near: dict[int, float] | None = None,
    ends: Collection[int] = (END, OTHER_END),
) -> Line:
    """The reference prefers its own token by 5, and others less by what `near` says at the last position."""
    logits = torch.zeros(len(expected), 10)
    logits[torch.arange(len(expected)), torch.tensor(expected)] = 5.0
    for token, gap in (near or {}).items():
        logits[-1, token] = 5.0 - gap
    return judge.served_ids(found, expected, logits, ends, ALLOWED)


@pytest.mark.parametrize("found", [[7, 8, END], [7, 8], [7, 8, END, 0, 0]])
def test_an_end_token_is_kept_or_left_out(found: list[int]) -> None:
    told = line(found, [7, 8, END])
    assert (told["passed"], told["equal"], told["of"], "gap" in told) == (True, 3, 3, False)


def test_equal_ids_pass() -> None:
    told = line([7, 8, 9], [7, 8, 9])
    assert (told["check"], told["passed"], told["equal"], told["of"]) == ("served answer", True, 3, 3)


@pytest.mark.parametrize(("gap", "passed"), [(0.1, True), (1.0, False)])
@pytest.mark.parametrize(
    ("found", "expected", "near"),
    [
        ([7, 8, 9], [7, 8, END], 9),  # beyond the end
        ([7, 8], [7, 8, 9], END),  # stops early, its end token left out
        ([7, 8, OTHER_END], [7, 8, 9], OTHER_END),  # and kept
        ([7, 8, 5, 5], [7, 8, 9], 5),  # another token
        ([7, 8, OTHER_END], [7, 8, END], OTHER_END),  # another end
    ],
)
def test_what_parts_is_explained_by_the_gap_alone(
    found: list[int], expected: list[int], near: int, gap: float, passed: bool
) -> None:
    told = line(found, expected, {near: gap})
    assert (told["passed"], told["equal"], told["of"]) == (passed, 2, 3)
    assert told["gap"] == pytest.approx(gap, abs=1e-5)
    assert told["tolerance"] == ALLOWED.gap


def test_parts_that_no_gap_explains() -> None:
    assert not line([7], [7, 8, 9], {}, ())["passed"]  # nothing ends this model's texts
    assert not line([7, 8, 9, 5], [7, 8, 9])["passed"]  # more than was asked for
    assert not line([], [7, 8, 9])["passed"]
    forbidden = line([7, 8, 5], [7, 8, 9], {5: float("inf")})
    assert (forbidden["passed"], "gap" in forbidden) == (False, False)
    json.dumps(forbidden, allow_nan=False)


# ---- what a text begins with


def written(folder: Path, config: object, generation: object = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_older_models_say_everything_in_one_file(tmp_path: Path) -> None:
    said = {"decoder_start_token_id": 0, "bos_token_id": 5, "eos_token_id": [2, 3], "forced_bos_token_id": 7,
            "bad_words_ids": [[9], [1, 2]]}  # fmt: skip
    found = rules(written(tmp_path, said))
    assert (found.start, found.ends, found.never, found.forced) == (0, {2, 3}, (9,), 7)
    found = rules(written(tmp_path, said, {"eos_token_id": 4, "suppress_tokens": [6]}))
    assert (found.start, found.ends, found.never, found.forced) == (0, {4}, (6,), None)


def test_tokens_that_cannot_come_are_forbidden_in_either_kind_of_array(tmp_path: Path) -> None:
    file = {"suppress_tokens": [1], "begin_suppress_tokens": [2]}
    found = rules(written(tmp_path, {}, file))
    for rows in (torch.zeros(2, 4), np.zeros((2, 4), np.float32)):
        found.heed(rows, 0)
        assert [float(x) for x in rows[0]] == [0, -np.inf, -np.inf, 0]
        found.heed(rows, 1)
    later = torch.zeros(4)
    found.heed(later, 1)
    assert later.isinf().tolist() == [False, True, False, False]
    forced = torch.zeros(4)
    rules(written(tmp_path, {}, {**file, "forced_bos_token_id": 3})).heed(forced, 0)
    assert forced.isinf().tolist() == [True, True, True, False]


WHISPER = {
    "decoder_start_token_id": 10,
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 11, "<|de|>": 12},
    "task_to_id": {"translate": 13, "transcribe": 14},
    "no_timestamps_token_id": 15,
}


@pytest.mark.parametrize(
    ("more", "begins"),
    [
        ({}, [10, 12, 15]),
        ({"forced_decoder_ids": [[1, None], [2, 14]]}, [10, 12, 14, 15]),
        ({"forced_decoder_ids": [[1, 11], [2, 13]]}, [10, 11, 13, 15]),
        ({"language": "<|en|>"}, [10, 11, 14, 15]),
        ({"language": "de", "task": "translate"}, [10, 12, 13, 15]),
        ({"language": "English", "task": "transcribe"}, [10, 11, 14, 15]),
        ({"language": "en", "return_timestamps": True}, [10, 11, 14]),
        ({"lang_to_id": None, "task_to_id": None}, [10, 15]),
    ],
)
def test_whisper_begins_as_transformers_begins_it(tmp_path: Path, more: dict[str, object], begins: list[int]) -> None:
    found = rules(written(tmp_path, {}, WHISPER | more))
    assert found.beginning(lambda ids: max(ids)) == begins
