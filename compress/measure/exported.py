"""An export as a subject: `FOLDER` or `FOLDER@RUNTIME`, opened by the runtime it is for, in that runtime's own
process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.core.errors import ModelError
from compress.core.registry import load
from export import environments, folder
from export.client import worker_command


@dataclass(frozen=True)
class Exported:
    """name: as it was given. where: the export. form: its format. artifact: what it was made from."""

    name: str
    where: Path
    form: str
    artifact: Path
    runtime: str

    @property
    def nbytes(self) -> int:
        """Bytes of all that is served."""
        return folder.payload_bytes(self.where)

    def command(self) -> tuple[list[str], dict[str, str]]:
        """What starts the runtime's worker, and its environment. Raises MissingRuntimeError."""
        return worker_command(self.runtime)


def exported(subject: str) -> Exported | None:
    """The export that `subject` names; None when it names something else.

    Raises ModelError for a runtime that does not open it. One that is not installed is named nonetheless: `command`
    says how to get it.
    """
    where, runtime = Path(subject).expanduser(), ""
    if "@" in subject and not (where / folder.EXPORT).is_file():
        path, _, runtime = subject.rpartition("@")
        where = Path(path).expanduser()
    if not (where / folder.EXPORT).is_file():
        return None
    told = folder.card(where)
    known = load("format", told["format"]).runtimes
    if runtime and environments.plain(runtime) not in known:
        raise ModelError(f"{runtime} does not open {where}, which is {told['format']}; {', '.join(known)} do")
    there = [name for name in known if environments.place(name).interpreter is not None]
    chosen = environments.plain(runtime) if runtime else (there or list(known))[0]
    return Exported(subject, where, told["format"], folder.artifact_of(where, told), chosen)
