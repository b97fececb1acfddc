"""The tagger of tweets_ner_full.py with a CRF over its tags, tuned with the same settings."""

from __future__ import annotations

from pathlib import Path

from benchmarks.inputs import tweets
from benchmarks.inputs._making import minilm, tuned
from benchmarks.inputs.tweets_ner_full import SETTINGS


def make(folder: Path) -> Path:
    """FOLDER/tweets-ner-full-crf: the model, and crf.json beside it."""
    return tuned(folder / "tweets-ner-full-crf", minilm(), tweets.make(folder), (*SETTINGS, "--crf"))
