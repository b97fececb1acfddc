"""profile.json: what each layer costs at each scheme, for people and for plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.core.errors import DataError, InputError
from compress.core.files import write_json
from compress.core.fingerprint import digest
from compress.core.types import Sensitivity

PLACE = Path("compress") / "profile.json"


@dataclass(frozen=True)
class Profile:
    """unit: of the values. mark: the fingerprint of the run, model files by hash included."""

    unit: str
    sensitivities: tuple[Sensitivity, ...]
    mark: Mapping[str, Any]


def write(path: Path, found: Profile) -> None:
    """Write the profile, a line of figures for each layer and scheme."""
    layers: dict[str, dict[str, dict[str, float]]] = {}
    for one in found.sensitivities:
        rest = {name: value for name, value in asdict(one).items() if name not in ("layer", "scheme")}
        layers.setdefault(one.layer, {})[one.scheme] = rest
    write_json(path, {"unit": found.unit, "layers": layers, "fingerprint": dict(found.mark)})


def mark(path: Path) -> str:
    """The digest of the figures at `path`, for the fingerprint of a run. Raises as `read` does."""
    found = read(path)
    return digest([found.unit, [[s.layer, s.scheme, s.value, s.low, s.high] for s in found.sensitivities]])


def read(path: Path) -> Profile:
    """The profile at `path`. Raises InputError when there is none, DataError when it holds none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = [
            Sensitivity(layer, scheme, **row) for layer, rows in data["layers"].items() for scheme, row in rows.items()
        ]
        return Profile(str(data["unit"]), tuple(found), dict(data["fingerprint"]))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; run compress sensitivity first") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} holds no profile, or was cut; run compress sensitivity again with --overwrite"
        ) from None
