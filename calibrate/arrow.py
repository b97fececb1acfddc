"""Rows through Hugging Face `datasets`: parquet and arrow files, `save_to_disk` folders, the hub.

Everything is streamed or memory-mapped, so nothing is written to a cache and a large set costs only the
rows that are looked at.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrate.formats import Row
from compress.core.errors import DataError

BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves beside its arrow files
HUB_TIMEOUT = 10.0  # seconds


@dataclass(frozen=True)
class Table:
    """Rows of a data set. split: the one that was read, or empty; splits: all there are. note: see TextFile."""

    rows: list[Row]
    split: str = ""
    note: str = ""
    splits: tuple[str, ...] = ()


def read_file(path: Path, name: str, max_chars: int, audio: bool = False) -> Table:
    """Rows of one .parquet or .arrow file, until they hold `max_chars` characters. Raises DataError.

    audio: with columns of sound, as {"bytes", "path"}, here and below.
    """
    import datasets

    # only lock files land in the cache
    with tempfile.TemporaryDirectory(prefix="compress-data-") as cache, _quiet():
        try:
            stream = datasets.load_dataset(
                BUILDERS[path.suffix.lower()],
                data_files=str(path),
                split="train",
                streaming=True,
                cache_dir=cache,
            )
            rows, note = _take(stream, name, max_chars, audio)
        except DataError:
            raise
        except Exception as error:  # pyarrow raises a dozen unrelated types for a damaged file
            said = f"is not a readable {path.suffix} file ({_first_line(error)})"
            raise DataError(f"{name} {said}; write it again") from None
    return Table(rows, note=note)


def read_saved(path: Path, name: str, max_chars: int, wanted: str = "", audio: bool = False) -> Table:
    """Rows of a `save_to_disk` folder; of several splits the wanted one, `train`, else the first. Raises DataError."""
    import datasets

    try:
        with _quiet():
            loaded = datasets.load_from_disk(str(path))
        split, splits = "", tuple(map(str, loaded)) if isinstance(loaded, datasets.DatasetDict) else ()
        if wanted and wanted not in splits:
            raise DataError(f"{name} has no split {wanted!r}; there is {', '.join(splits[:20]) or 'none'}")
        if splits:
            split = wanted or _preferred(list(splits))
            loaded = loaded[split]
        rows, note = _take(loaded, name, max_chars, audio)
    except DataError:
        raise
    except Exception as error:  # as above
        said = f"is not a readable save_to_disk folder ({_first_line(error)})"
        raise DataError(f"{name} {said}; save it again") from None
    return Table(rows, split, note, splits)


def read_hub(name: str, max_chars: int, audio: bool = False) -> Table:
    """Rows of a hub data set `NAME[:CONFIG[:SPLIT]]`, streamed; split `train`, else the first.

    Raises DataError in one sentence, within seconds when there is no network.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, OfflineModeIsEnabled, RepositoryNotFoundError

    repo, config, split = [*name.split(":"), "", ""][:3]
    offline = False
    try:  # asked first because load_dataset retries for half a minute before it gives up
        huggingface_hub.HfApi().dataset_info(repo, timeout=HUB_TIMEOUT)
    except GatedRepoError:
        raise DataError(
            f"the hub data set {repo} needs permission; accept its terms and log in with: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"there is no file, folder or hub data set called {repo!r}; check the spelling of --data"
        ) from None
    except OfflineModeIsEnabled:
        offline = True  # the local cache may still have it, and datasets does not retry in this mode
    except Exception as error:  # the http library's own tree, which changes between versions
        raise DataError(
            f"{repo!r} is no file or folder here and the hub cannot be reached ({type(error).__name__}: "
            f"{_first_line(error)}); give --data a local file, or leave it out for the built-in text"
        ) from None
    try:
        with _quiet():
            splits = [] if split else datasets.get_dataset_split_names(repo, config or None)
            split = split or _preferred(splits)
            stream = datasets.load_dataset(repo, config or None, split=split, streaming=not offline)
            rows, note = _take(stream, name, max_chars, audio)
    except DataError:
        raise
    except Exception as error:  # datasets raises ValueError, KeyError, OSError and its own for the same cause
        raise DataError(
            f"the hub data set {name} cannot be read ({_first_line(error)}); name it as NAME:CONFIG:SPLIT"
        ) from None
    return Table(rows, split, note, tuple(splits))


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no log lines from `datasets`: what goes wrong is said once, by the error."""
    import datasets

    level = datasets.logging.get_verbosity()
    bars = not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()


def _preferred(splits: list[str]) -> str:
    if not splits:
        raise DataError("the data set has no splits; save it again with at least one row")
    return "train" if "train" in splits else splits[0]


def _take(data: Any, name: str, max_chars: int, audio: bool) -> tuple[list[Row], str]:
    """Rows in order until their strings hold `max_chars` characters, and a sentence when some were left."""
    rows: list[Row] = []
    chars = 0
    for row in _undecoded(data, audio):
        if chars >= max_chars:
            return rows, f"only the first {len(rows)} rows of {name} were read ({chars} characters)"
        rows.append(dict(row))
        chars += sum(_size(value) for value in row.values() if value is not None)
    return rows, ""


def _size(value: Any) -> int:
    sound = value.get("bytes") if isinstance(value, dict) else value
    return len(sound) if isinstance(sound, str | bytes) else len(str(value))


def _undecoded(data: Any, audio: bool) -> Iterable[Row]:
    """Images and sound are left out, for decoding them needs libraries that text does not; or sound stays bytes."""
    import datasets

    features = getattr(data, "features", None)
    media: tuple[type, ...] = (datasets.Image, datasets.Audio, datasets.Video)
    if not features:
        return data  # type: ignore[no-any-return]
    if audio:
        for column in [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]:
            data = data.cast_column(column, datasets.Audio(decode=False))
        media = (datasets.Image, datasets.Video)
    keep = [column for column, feature in features.items() if not isinstance(feature, media)]
    return data.select_columns(keep) if len(keep) < len(features) else data  # type: ignore[no-any-return]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
