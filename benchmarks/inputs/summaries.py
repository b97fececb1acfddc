"""Papers of computational linguistics and their summaries: what the problem was, what was done, what came out.

From aclsum 0.1.2 (MIT), 100, 50 and 100 papers for train, validation and test as its authors divided them. The document
is abstract, introduction and conclusion; the summary is its three sentences by aspect, one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.inputs._making import once
from benchmarks.shared import package_folder

SPLITS = {"train": "train", "val": "validation", "test": "test"}
SECTIONS = ("abstract", "introduction", "conclusion")
ASPECTS = ("challenge", "approach", "outcome")


def make(folder: Path) -> Path:
    """FOLDER/summaries/{train,validation,test}.jsonl: id, document, summary."""
    return once(folder / "summaries", _write)


def _write(folder: Path) -> None:
    for theirs, ours in SPLITS.items():
        source = package_folder("aclsum") / "dataset" / f"{theirs}.jsonl"
        papers = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        rows = (
            {
                "id": paper["id"],
                "document": "\n\n".join(" ".join(paper["sentences"][section]) for section in SECTIONS),
                "summary": " ".join(paper["summary"][aspect] for aspect in ASPECTS),
            }
            for paper in papers
        )
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (folder / f"{ours}.jsonl").write_text(text, encoding="utf-8")
