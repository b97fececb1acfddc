"""Tables and tiny models for tasks that write: texts with summaries, tones with what they say."""

from __future__ import annotations

import csv
import json
import random
import wave
from pathlib import Path

import numpy as np
import torch
import transformers

from tests.faults import edit_json
from tests.tiny import MELS, save_tiny, tiny_tokenizer

WORDS = ("river", "market", "window", "report", "engine", "garden", "minute", "school")
SIGNS = {"goal": "sport news", "chip": "a new code", "bread": "salt and food"}
TONES = {"low": 300.0, "middle": 1200.0, "high": 4000.0}


def write_summaries(path: Path, rows: int = 60) -> Path:
    """Documents of which one word tells the summary."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["document", "summary"])
        for number in range(rows):
            sign = sorted(SIGNS)[number % 3]
            words = [*draw.choices(WORDS, k=3), *[sign] * 3, str(number)]
            draw.shuffle(words)
            writer.writerow([" ".join(words), SIGNS[sign]])
    return path


def write_speech(folder: Path, rows: int = 30, rate: int = 8000) -> Path:
    """An audio folder: metadata.csv and wav files, each a tone whose height is what is said."""
    (folder / "clips").mkdir(parents=True)
    draw = random.Random(0)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "transcription"])
        for number in range(rows):
            tone = sorted(TONES)[number % 3]
            name = f"clips/{number:02d}.wav"
            write_tone(folder / name, TONES[tone] * draw.uniform(0.9, 1.1), rate)
            writer.writerow([name, f"a {tone} tone {number}"])
    return folder


def write_tone(path: Path, hertz: float, rate: int, seconds: float = 0.3) -> None:
    """A sine in 16 bits."""
    samples = 12000 * np.sin(2 * np.pi * min(hertz, rate / 2.1) * np.arange(int(rate * seconds)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def save_writer(name: str, folder: Path) -> Path:
    """A tiny encoder-decoder, with the feature extractor of a window of 2 s where it hears."""
    save_tiny(name, folder)
    if name == "whisper":
        extractor = transformers.WhisperFeatureExtractor(feature_size=MELS, chunk_length=2, hop_length=125)
        extractor.save_pretrained(folder)
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        assert config["num_mel_bins"] == MELS
    return folder


def save_listener(name: str, folder: Path) -> Path:
    """The tiny whisper as the real ones are: their kind of tokenizer, two languages of which none is said, a task, no
    timestamps, tokens never said, and settings of beams that a greedy answer does not heed."""
    save_writer(name, folder)
    core = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    said = ["<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>"]
    merges = [tuple(pair) for pair in core["merges"]]
    words = transformers.WhisperTokenizer(core["vocab"], merges, pad_token="<|endoftext|>", extra_special_tokens=said)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / file).unlink()
    words.save_pretrained(folder)
    ids = dict(zip(said, words.convert_tokens_to_ids(said), strict=True))
    own = {
        "decoder_start_token_id": ids[said[0]],
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.eos_token_id,
    }
    edit_json(folder / "config.json", lambda config: config.update(own))
    rules = {
        "is_multilingual": True,
        "lang_to_id": {name: ids[name] for name in said[1:3]},
        "task_to_id": {name.strip("<|>"): ids[name] for name in said[3:5]},
        "no_timestamps_token_id": ids[said[5]],
        "forced_decoder_ids": [[1, None], [2, ids["<|transcribe|>"]]],
        "suppress_tokens": [*range(4, 24), *ids.values()],
        "begin_suppress_tokens": [words.eos_token_id],
        "num_beams": 3,
        "no_repeat_ngram_size": 2,
    }
    (folder / "generation_config.json").write_text(json.dumps(own | rules), encoding="utf-8")
    return folder


def original_of(folder: Path, auto: str) -> torch.nn.Module:
    """The model as transformers opens it, in float32."""
    model: torch.nn.Module = getattr(transformers, auto).from_pretrained(folder, dtype=torch.float32).eval()
    return model
