"""Speech in a cell of a table -> samples of one channel: wav files by the standard library, other files not at all."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.core.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 16
SUFFIXES = (".flac", ".mp3", ".m4a", ".mp4", ".ogg", ".opus", ".webm", ".aac", ".wma")


def read_samples(value: Any, rate: int, where: str) -> NDArray[np.int16]:
    """(n,) int16 samples at `rate` Hz of what a cell holds.

    value: the path of a wav file, its bytes, or {"bytes", "path"} as `datasets` stores audio. where: `row 3 of x.csv`,
    for errors. Raises DataError for anything but PCM of 16 bits, and for silence without a sample.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str | bytes) or not value:
        raise DataError(f"{where} has {value!r} where the path of a wav file should be")
    name = "bytes" if isinstance(value, bytes) else value
    try:
        with wave.open(io.BytesIO(value) if isinstance(value, bytes) else value) as file:
            channels, width, theirs = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise _unreadable(name, where, error) from None
    if 8 * width != BITS:
        raise DataError(f"{where}: {name} has {8 * width} bits a sample; {BITS} can be read; {_convert(name)}")
    samples = np.frombuffer(data[: len(data) // (2 * channels) * 2 * channels], "<i2").reshape(-1, channels)
    if not len(samples):
        raise DataError(f"{where}: {name} holds no sound; leave the row out")
    mono = samples[:, 0] if channels == 1 else samples.astype(np.float64).mean(1)
    return resampled(mono, theirs, rate)


def resampled(samples: NDArray[Any], theirs: int, ours: int) -> NDArray[np.int16]:
    """(n,) samples at `theirs` Hz -> int16 at `ours` Hz, by scipy's polyphase filter (zero phase, Kaiser window)."""
    if theirs == ours:
        found = samples.astype(np.float64)
    else:
        from scipy.signal import resample_poly

        common = math.gcd(theirs, ours)
        found = resample_poly(samples.astype(np.float64), ours // common, theirs // common)
    return np.clip(np.rint(found), -(2**15), 2**15 - 1).astype(np.int16)


def _unreadable(name: str, where: str, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{where} names {name}, which is not there; paths are relative to the file of the table")
    if isinstance(error, OSError):
        return DataError(f"{where}: {name} cannot be read ({error.strerror})")
    said = str(error) or "it ends too early"
    return DataError(f"{where}: {name} is no wav file of {BITS} bits PCM ({said}); {_convert(name)}")


def _convert(name: str) -> str:
    plain = Path(name).name
    shown = plain if Path(plain).suffix.lower() in (".wav", *SUFFIXES) else "FILE"
    return f"convert it, for example: ffmpeg -i {shown} -c:a pcm_s16le -ar 16000 -ac 1 new.wav"
