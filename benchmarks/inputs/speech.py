"""Synthetic English speech: sentences of the BBC articles read by Debian's espeak-ng, as wav files and metadata.csv.

The layout is that of an audio folder of `datasets`: file_name, transcription. Sentences are plain words, so that what
was said has one spelling; voices and speeds vary. Needs espeak-ng (apt-get install espeak-ng).
"""

from __future__ import annotations

import csv
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.inputs._making import once
from benchmarks.shared import bbc

SENTENCES = 150
"""A fifth is held out by `compress quantize`, which gives the 30 that are judged."""
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3")
SPEEDS = (140, 155, 170)  # words a minute
WORDS = range(7, 19)
PLAIN = re.compile(r"[A-Z][a-z]+(?:,? [a-z]+(?:'[a-z]+)?)+\.")
"""No digits, names or quotations: a capital only at the beginning."""


def make(folder: Path, sentences: int = SENTENCES) -> Path:
    """FOLDER/speech: so many wav files of 22,050 Hz and metadata.csv. Raises SystemExit without espeak-ng."""
    if shutil.which("espeak-ng") is None:
        raise SystemExit("espeak-ng is not installed; run: apt-get install espeak-ng")
    return once(folder / "speech", lambda staged: _write(staged, sentences))


def _write(folder: Path, sentences: int) -> None:
    found = sorted(set(plain_sentences()))
    draw = random.Random(0)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "transcription"))
        for number, text in enumerate(draw.sample(found, sentences)):
            name = f"{number:04d}.wav"
            voice = ("-v", draw.choice(VOICES), "-s", str(draw.choice(SPEEDS)))
            subprocess.run(["espeak-ng", *voice, "-w", str(folder / name), text], check=True, capture_output=True)
            writer.writerow((name, text))


def plain_sentences() -> Iterator[str]:
    """Sentences of the articles that are plain words only."""
    for path in sorted(bbc().glob("*/*.txt")):
        text = " ".join(path.read_text(encoding="utf-8", errors="replace").split())
        for sentence in re.split(r"(?<=[.!?]) ", text):
            if len(sentence.split()) in WORDS and PLAIN.fullmatch(sentence):
                yield sentence
