"""Wav files as people have them: rates, channels, bytes; what cannot be read says what to do."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.core.audio import read_samples, resampled
from compress.core.errors import DataError


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray[Any, Any]:
    return (12000 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype("<i2")


def wav(samples: np.ndarray[Any, Any], rate: int, width: int = 2) -> bytes:
    """samples: (n,) or (n, channels)."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def test_samples_at_the_wanted_rate_are_untouched(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(tone(16000), 16000))
    for cell in (str(path), path.read_bytes(), {"bytes": path.read_bytes(), "path": None}, {"path": str(path)}):
        assert np.array_equal(read_samples(cell, 16000, "row 1"), tone(16000))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_another_rate_gives_the_same_tone(rate: int) -> None:
    found = read_samples(wav(tone(rate), rate), 16000, "row 1").astype(float)
    assert len(found) == 8000
    inner = slice(400, -400)  # without the edges, where the filter sees silence
    assert np.abs(found - tone(16000))[inner].max() < 0.005 * 12000


def test_what_is_above_half_the_rate_is_filtered_out() -> None:
    found = read_samples(wav(tone(48000, hertz=15000), 48000), 16000, "row 1")
    assert np.abs(found[400:-400].astype(int)).max() < 0.01 * 12000


def test_channels_become_their_mean() -> None:
    both = np.stack([tone(16000), np.zeros(8000, "<i2")], axis=1)
    assert np.abs(read_samples(wav(both, 16000), 16000, "row 1") - tone(16000) / 2).max() <= 1


def test_loud_sound_is_clipped_and_does_not_wrap() -> None:
    square = np.repeat(np.array([32767, -32768] * 40, "<i2"), 50)
    found = resampled(square, 8000, 16000)
    assert found.max() == 32767
    assert np.sign(found[120:180]).tolist() == np.sign(np.repeat(square, 2)[120:180]).tolist()


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "row 7 has None where the path of a wav file should be"),
        (3.5, "has 3.5 where"),
        ({"path": None, "bytes": None}, "where the path"),
        ("gone.wav", "which is not there; paths are relative"),
        (wav(tone(16000).astype("<i4"), 16000, width=4), "has 32 bits a sample; 16 can be read; convert it"),
        (wav(np.zeros(0, "<i2"), 16000), "holds no sound"),
        (b"ID3\x04 not sound at all", "no wav file of 16 bits PCM.*ffmpeg -i FILE"),
        (b"RIFF", "no wav file"),
    ],
)
def test_what_cannot_be_read_says_why(cell: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_samples(cell, 16000, "row 7")


def test_another_format_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "talk.mp3"
    path.write_bytes(b"ID3" + bytes(100))
    with pytest.raises(DataError, match=r"talk\.mp3 is no wav file.*ffmpeg -i talk\.mp3 -c:a pcm_s16le -ar 16000"):
        read_samples(str(path), 16000, "row 1")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_samples(str(tmp_path), 16000, "row 1")
