"""What every command shares: one place where errors become sentences and exit codes, progress and output."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from compress.core.errors import CompressError, Interrupted, StorageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from compress.core.types import RunRecord

JSON = typer.Option(False, "--json", help="Print the record as one JSON object and nothing else.")
QUIET = typer.Option(False, "--quiet", "-q", help="Print nothing but errors.")
VERBOSE = typer.Option(False, "--verbose", "-v", help="Show tracebacks.")
MODEL = typer.Argument(None, help="Folder, hub id or .gguf file. Left out: the built-in demo model.", show_default=False)


@dataclass(frozen=True)
class Output:
    """How a command prints: `json` one object, `quiet` nothing, `verbose` tracebacks too."""

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    @property
    def silent(self) -> bool:
        """No progress and no notes."""
        return self.json or self.quiet


@contextmanager
def errors_as_sentences(output: Output) -> Iterator[None]:
    """Inside, whatever goes wrong ends the program with one sentence on stderr and the right exit code."""
    try:
        yield
    except CompressError as error:
        _leave(str(error), error.exit_code, output)
    except KeyboardInterrupt:
        _leave("interrupted; the same command resumes", Interrupted.exit_code, output)
    except BrokenPipeError:
        raise typer.Exit(0) from None
    except MemoryError:
        _leave("memory ran out; use fewer --samples or a shorter --seq-len, the same command resumes", 1, output)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _leave(f"{error.strerror or error}{where}; mend that and run the same command again", StorageError.exit_code, output)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        _leave(f"internal error, {type(error).__name__}: {said}; run again with -v and report what it prints", 1, output)


def _leave(sentence: str, code: int, output: Output) -> None:
    if output.verbose:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"compress: {' '.join(sentence.split())}", err=True)
    raise typer.Exit(code) from None


class Bars:
    """Progress with an ETA on stderr: bars on a terminal, a line per stage elsewhere, nothing when silent."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""

    def __enter__(self) -> Bars:
        if not self.output.silent and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.progress import TimeRemainingColumn as Remaining

            columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn())
            times = (TextColumn("elapsed"), TimeElapsedColumn(), TextColumn("left"), Remaining())
            self._progress = Progress(*columns, *times, console=Console(stderr=True), transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of `stage` are finished."""
        if self.output.silent:
            return
        if self._progress is None:
            if stage != self._stage:
                typer.echo(f"{stage} ...", err=True)
        elif stage != self._stage:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = self._progress.add_task(stage, total=total, completed=done)
        elif self._task is not None:
            self._progress.update(self._task, completed=done, total=total)
        self._stage = stage

    def say(self, sentence: str) -> None:
        """Print a note above the bars."""
        if not self.output.silent:
            if self._progress is not None:
                self._progress.console.print(sentence, markup=False)
            else:
                typer.echo(sentence, err=True)


def stdout_console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console()


def show(record: RunRecord, output: Output) -> None:
    """Print a record the way the user asked for."""
    if output.json:
        from compress.report.record import dumps

        typer.echo(dumps(record))
    elif not output.quiet:
        from compress.report.terminal import show as show_record

        show_record(record, stdout_console())


def epilog(*lines: str) -> str:
    """Examples for the end of a command's --help, one a line."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


