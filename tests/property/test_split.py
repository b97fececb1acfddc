"""Whatever the documents, held-out and calibration tokens do not overlap."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.split import HELD_SHARE, RUN, Document, Partition, Wanted, partition, sections, unique
from calibrate.tokens import Frame, Windows, calibration_set, heldout_set
from compress.core.errors import CompressError, DataError

FRAME = Frame((900,), (), (901,))


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    """Documents made of few building stones, so that copies and shared passages are common."""
    stones = draw(st.lists(st.integers(1, 130), min_size=1, max_size=8))
    passages = [tuple((i * 131 + j * 7) % 800 for j in range(n)) for i, n in enumerate(stones)]
    recipe = st.lists(st.integers(0, len(passages) - 1), min_size=0, max_size=3)
    made = draw(st.lists(recipe, min_size=0, max_size=25))
    return [Document(n, tuple(t for i in r for t in passages[i])) for n, r in enumerate(made)]


wants = st.builds(Wanted, tokens=st.integers(1, 4000), eval_samples=st.integers(1, 9))


def runs(documents: tuple[Document, ...]) -> set[tuple[int, ...]]:
    """Every run of RUN tokens, the slow way."""
    return {d.ids[i : i + RUN] for d in documents for i in range(len(d.ids) - RUN + 1)}


@settings(deadline=None, max_examples=200)
@given(corpora(), wants)
def test_halves_share_no_document_and_no_long_run(documents: list[Document], wanted: Wanted) -> None:
    try:
        halves = partition(documents, wanted)
    except DataError:
        whole = {d.ids for d in documents if d.ids}
        usable = len(whole) < 2 or max(map(len, whole)) < 2 or bool(runs(tuple(documents)))
        assert usable, "refused although two documents can be told apart"
        return
    kept, held = {d.ids for d in halves.calibration}, {d.ids for d in halves.heldout}
    assert kept
    assert 1 <= len(halves.heldout) <= wanted.eval_samples
    assert len(held) == len(halves.heldout)
    assert not kept & held
    assert not {d.number for d in halves.calibration} & {d.number for d in halves.heldout}
    if not halves.boilerplate:
        assert not runs(halves.calibration) & runs(halves.heldout)
    if len(halves.heldout) > 1:
        everything = sum(len(ids) for ids in {d.ids for d in documents})
        left = sum(map(len, kept))
        assert HELD_SHARE * sum(map(len, held)) <= everything or left >= wanted.tokens


@settings(deadline=None, max_examples=100)
@given(corpora(), st.integers(1, 9), st.integers(8, 40))
def test_token_sets_come_from_their_half(documents: list[Document], samples: int, seq_len: int) -> None:
    windows = Windows(samples, seq_len, 0, "test")
    try:
        halves = partition(documents, Wanted(samples * seq_len, samples))
        calibration = calibration_set(halves, FRAME, windows)
    except DataError:
        return
    heldout = heldout_set(halves, FRAME, windows)
    assert set(calibration.documents) <= {d.number for d in halves.calibration}
    assert set(heldout.documents) <= {d.number for d in halves.heldout}
    assert {len(s) for s in calibration.sequences} == {seq_len}
    body = [int(t) for s in calibration.sequences for t in s[1:]]
    pool = sorted(t for d in halves.calibration for t in (*d.ids, 901))
    assert all(body.count(t) <= pool.count(t) + body.count(901) * (t == 901) for t in set(body))
    for ids, number in zip(heldout.sequences, heldout.documents, strict=True):
        assert tuple(ids[1:].tolist()) == documents[number].ids[: seq_len - 1]


@given(st.lists(st.text(alphabet="ab \n\t", max_size=6), max_size=20))
def test_texts_that_differ_in_white_space_only_are_one(texts: list[str]) -> None:
    kept = unique(texts)
    assert len(kept) == len({" ".join(t.split()) for t in texts} - {""})
    assert set(kept) <= set(texts)


@settings(deadline=None)
@given(st.text(alphabet="abcdefgh .。!\n", max_size=2000), st.integers(8, 300), st.booleans())
def test_sections_are_parts_of_the_text_in_order(text: str, target: int, plenty: bool) -> None:
    made, _ = sections(text, target, plenty)
    assert sum(map(len, made)) <= len(text)
    assert all(len(section) <= 2 * target for section in made)
    rest = iter("".join(text.split()))
    wanted = "".join("".join(section.split()) for section in made)
    assert all(letter in rest for letter in wanted)  # a subsequence: nothing invented, nothing reordered


@pytest.mark.parametrize("other", [Document(1, (5, 6)), Document(2, (7, 8))])
def test_a_partition_with_a_common_document_cannot_be_made(other: Document) -> None:
    with pytest.raises(CompressError, match="in both halves"):
        Partition((Document(1, (7, 8)),), (other,))
