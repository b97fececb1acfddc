"""Sections of one long text, and which documents are held out."""

from __future__ import annotations

import itertools

import pytest

from calibrate.split import RUN, Document, Wanted, partition, sections
from calibrate.tokens import Frame, Windows, calibration_set
from compress.core.errors import DataError

TEXT = "".join(f"Sentence number {i} ends here. " for i in range(2000))


def spans(made: list[str]) -> list[tuple[int, int]]:
    return [(TEXT.index(section), TEXT.index(section) + len(section)) for section in made]


@pytest.mark.parametrize(("target", "plenty"), [(1000, False), (100, True)])
def test_neighbouring_sections_do_not_continue_each_other(target: int, plenty: bool) -> None:
    made, gapped = sections(TEXT, target, plenty)
    assert gapped
    assert len(made) > 10
    for (_, end), (start, _) in itertools.pairwise(spans(made)):
        assert TEXT[end:start].strip().startswith("Sentence")
    if not plenty:
        assert sum(map(len, made)) > 0.85 * len(TEXT)


def test_scarce_text_of_few_units_is_kept_whole() -> None:
    made, gapped = sections(TEXT, 100, False)
    assert not gapped
    assert " ".join(made) == TEXT.strip()


def numbered(*lengths: int) -> list[Document]:
    """Documents without a common token."""
    starts = itertools.accumulate(lengths, initial=0)
    return [Document(i, tuple(range(s, s + n))) for i, (s, n) in enumerate(zip(starts, lengths, strict=False))]


def test_heldout_comes_first_where_text_is_plenty() -> None:
    halves = partition(numbered(*[100] * 20), Wanted(500, 4))
    assert [d.number for d in halves.heldout] == [0, 1, 2, 3]
    assert [d.number for d in halves.calibration] == list(range(4, 20))


def test_heldout_is_at_most_a_quarter_where_text_is_scarce() -> None:
    halves = partition(numbered(300, 100, 100, 100, 100, 100, 100), Wanted(10_000, 4))
    assert [d.number for d in halves.heldout] == [1, 2]


def test_of_two_documents_the_smaller_is_held_out() -> None:
    halves = partition(numbered(300, 100), Wanted(10_000, 4))
    assert [d.number for d in halves.heldout] == [1]


def test_documents_with_a_common_passage_stay_together() -> None:
    passage = tuple(range(9000, 9000 + RUN))
    documents = numbered(*[100] * 12)
    documents[0] = Document(0, documents[0].ids + passage)
    documents[7] = Document(7, passage + documents[7].ids[:50])
    halves = partition(documents, Wanted(300, 3))
    assert [d.number for d in halves.heldout] == [0, 1, 2]
    assert 7 not in {d.number for d in halves.calibration}


def test_boilerplate_of_all_documents_does_not_forbid_the_split() -> None:
    header = tuple(range(9000, 9000 + 2 * RUN))
    documents = [Document(d.number, header + d.ids) for d in numbered(*[100] * 12)]
    halves = partition(documents, Wanted(300, 3))
    assert halves.boilerplate
    assert len(halves.heldout) == 3
    assert not partition(numbered(*[100] * 12), Wanted(300, 3)).boilerplate


def test_one_document_cannot_be_divided() -> None:
    twice = [Document(0, tuple(range(50))), Document(1, tuple(range(50)))]
    with pytest.raises(DataError, match=r"the text has 1 distinct document of use.* or --eval-samples 0"):
        partition(twice, Wanted(100, 2))


def test_a_separator_that_is_there_is_not_doubled() -> None:
    halves = partition([Document(0, (1, 2, 99, 5)), Document(1, (3, 4))], Wanted(7, 0))
    made = calibration_set(halves, Frame((), (), (99,)), Windows(1, 7, 0, "test"))
    assert made.sequences[0].tolist() == [1, 2, 99, 5, 3, 4, 99]
