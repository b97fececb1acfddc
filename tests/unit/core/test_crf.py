"""The CRF against all paths, and its file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.core.crf import FILE, ILLEGAL, Crf, read_crf
from compress.core.errors import ModelError
from compress.core.task import IGNORED

LABELS = ("O", "B-a", "I-a", "B-b")


def random_crf(seed: int) -> Crf:
    torch.manual_seed(seed)
    crf = Crf(LABELS)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def score(crf: Crf, emissions: Tensor, tags: tuple[int, ...]) -> float:
    chain = crf.chain
    total = chain.start_transitions[tags[0]] + chain.end_transitions[tags[-1]]
    total = total + sum(emissions[n, tag] for n, tag in enumerate(tags))
    return float(total + sum(chain.transitions[a, b] for a, b in itertools.pairwise(tags)))


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_best_path_are_those_of_all_paths(seed: int) -> None:
    """Sub-words that are not scored lie between the words; one sentence has none that is."""
    crf = random_crf(seed)
    logits = torch.randn(3, 7, len(LABELS))
    labels = torch.full((3, 7), IGNORED)
    labels[0, [1, 2, 4, 5]] = torch.tensor([0, 1, 2, 3])
    labels[2, [3]] = torch.tensor([1])
    expected, words = 0.0, 0
    with torch.no_grad():
        for row in (0, 2):
            scored = (labels[row] != IGNORED).nonzero()[:, 0]
            emissions = logits[row, scored]
            paths = list(itertools.product(range(len(LABELS)), repeat=len(scored)))
            scores = [score(crf, emissions, path) for path in paths]
            normaliser = math.log(sum(math.exp(s) for s in scores))
            expected += normaliser - score(crf, emissions, tuple(labels[row, scored].tolist()))
            words += len(scored)
            assert tuple(crf.decode(emissions)) == paths[scores.index(max(scores))]
    assert crf.loss(logits, labels).item() == pytest.approx(expected / words, rel=1e-4)


def test_what_nothing_begins_starts_unlikely() -> None:
    chain = Crf(LABELS).chain
    assert chain.transitions[0, 2] == chain.transitions[3, 2] == chain.start_transitions[2] == ILLEGAL
    assert chain.transitions[1, 2] == chain.transitions[2, 2] == 0
    assert chain.transitions[2, 1] == chain.start_transitions[1] == 0


def test_the_file_holds_all_of_it(tmp_path: Path) -> None:
    crf = random_crf(0)
    (tmp_path / FILE).write_bytes(crf.dumps())
    found = read_crf(tmp_path, LABELS)
    assert found is not None
    for ours, read in zip(crf.parameters(), found.parameters(), strict=True):
        assert torch.equal(ours, read)
    assert read_crf(tmp_path / "none", LABELS) is None
    with pytest.raises(ModelError, match="is of a model with the tags O, B-a"):
        read_crf(tmp_path, ("O", "B-a"))
    (tmp_path / FILE).write_text('{"labels": 3}', encoding="utf-8")
    with pytest.raises(ModelError, match="is damaged"):
        read_crf(tmp_path, LABELS)
