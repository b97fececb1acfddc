"""What every command shares: one place where errors become sentences and exit codes, progress and output."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from compress.core.errors import CompressError, Interrupted, StorageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from compress.core.types import RunRecord

JSON = typer.Option(False, "--json", help="Print the record as one JSON object and nothing else.")
QUIET = typer.Option(False, "--quiet", "-q", help="Print nothing but errors.")
VERBOSE = typer.Option(False, "--verbose", "-v", help="Show tracebacks and warnings of libraries.")
MODEL = typer.Argument(
    None, help="Folder, hub id or .gguf file. Left out: the built-in demo model.", show_default=False
)
OPTION = typer.Option(None, metavar="NAME=VALUE", help="Setting of the method, see below; repeatable.")
SCHEMES = typer.Option(
    None, help="int4-g64-sym, int8-row-sym, q4_1 ...; repeat it [default: 2 to 8 bits without zero points]."
)
CHOICES = typer.Option(
    None, help="What a budget chooses from, like int4-g128-sym; repeat it [default: 2 to 8 bits, two group sizes]."
)
COLUMNS = typer.Option(None, metavar="ROLE=COLUMN", help="Columns of labelled data, where names are unusual.")
LIKE = typer.Option(
    None, metavar="DATA", help="Sample of what the model is used on: says how far the calibration text is from it."
)
SPLIT = typer.Option(
    None, metavar="NAMES", help="Split to divide, or those to use as they are: train=NAME,validation=NAME,test=NAME."
)
FILTER = typer.Option(
    None,
    metavar="CONDITION",
    help="Rows to keep: column=value, column!=value, column~text (contains); repeatable.",
)
SELECT = typer.Option(
    None, metavar="ROWS", help="Rows to use, after --filter: 500 drawn by the seed, or a slice :500 or 100:600."
)
SEED = typer.Option(None, help="Seed of every random choice [default: 0].")
THREADS = typer.Option(None, help="Torch threads; 0 takes the physical cores [default: 0].")
RUNTIMES = typer.Option(
    None, "--runtime", metavar="NAME", help="Judge in this runtime; repeatable [default: all that are installed]."
)
RECIPE = typer.Option(None, help="YAML file of these settings; the command line wins.")
ALLOW_PICKLE = typer.Option(False, "--allow-pickle", help="Open .bin weights, with weights_only=True.")
TRUST = typer.Option(False, "--trust-remote-code", help="Run code that comes with the model.")
OVERWRITE = typer.Option(False, "--overwrite", help="Start over in an output folder of an earlier run.")
NOT_SETTINGS = {"json", "quiet", "verbose", "overwrite", "recipe"}  # options that are no part of a recipe


class Command(TyperCommand):
    """A command whose --help ends in `epilog` as it was written, line by line.

    kind: of plug-ins whose names and options are listed before it, empty for none.
    """

    kind = ""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the end of --help: what --method and --option take, then the examples, unwrapped."""
        del ctx
        if self.kind:
            from compress.commands._options import method_options

            what = "Formats" if self.kind == "format" else "Methods"
            formatter.write(f"\n{what}, and their options with defaults (--option NAME=VALUE):\n")
            with formatter.indentation():
                for line in method_options(self.kind):
                    formatter.write_text(line)
        formatter.write("\n" + "".join(f"{line}\n" for line in (self.epilog or "").splitlines()))


class Group(TyperGroup):
    """A command of commands whose --help ends in `epilog` as it was written."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, unwrapped."""
        del ctx
        formatter.write("\n" + "".join(f"{line}\n" for line in (self.epilog or "").splitlines()))


def epilog(*lines: str) -> str:
    """Examples for the end of a command's --help, one a line."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])


def summary(doc: str | None) -> str:
    """The help of a command from the docstring of its file: what follows "`compress verb`: ", as a sentence."""
    said = (doc or "").partition("`: ")[2].strip()
    return said[:1].upper() + said[1:]


def settings_of(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that were given, of a command's arguments: None, and False of a flag, mean that one was not.

    Raises RecipeError for a pair that is none.
    """
    found = {name: value for name, value in values.items() if name not in NOT_SETTINGS | {"option"}}
    found |= {"columns": roles(values.get("columns")), "options": named(values.get("option"))}
    return {name: value for name, value in found.items() if value is not None and value is not False}


def roles(columns: list[str] | None) -> dict[str, str] | None:
    """role -> column of every --columns. Raises RecipeError for one without both."""
    return _pairs("--columns", "ROLE=COLUMN", columns)


def named(options: list[str] | None) -> dict[str, str] | None:
    """name -> value of every --option. Raises RecipeError for one without both."""
    return _pairs("--option", "NAME=VALUE", options)


def _pairs(flag: str, form: str, items: list[str] | None) -> dict[str, str] | None:
    from compress.core.errors import RecipeError

    if not items:
        return None
    pairs = [item.partition("=") for item in items]
    for item, (name, _, value) in zip(items, pairs, strict=True):
        if not name or not value:
            raise RecipeError(f"{flag} {item!r} must look like {form}")
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Output:
    """How a command prints: `json` one object, `quiet` nothing, `verbose` tracebacks too.

    resumes: whether the same command goes on where this one was stopped.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False
    resumes: bool = False

    @property
    def silent(self) -> bool:
        """No progress and no notes."""
        return self.json or self.quiet

    @property
    def remedy(self) -> str:
        """What to do after something outside of the program was mended."""
        return "the same command resumes" if self.resumes else "run the same command again"


@contextmanager
def errors_as_sentences(output: Output) -> Iterator[None]:
    """Inside, whatever goes wrong ends the program with one sentence on stderr and the right exit code."""
    from compress.core.device import share_cores

    share_cores()
    try:
        with _terminated_like_interrupted(), _warnings_hidden(output):
            yield
    except CompressError as error:
        kept = "; finished blocks are kept" if output.resumes and isinstance(error, StorageError) else ""
        _leave(f"{error}{kept}", error.exit_code, output)
    except KeyboardInterrupt:
        _leave(f"interrupted; {output.remedy}", Interrupted.exit_code, output)
    except BrokenPipeError:
        with contextlib.suppress(OSError, ValueError):  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except MemoryError:
        _leave(f"memory ran out; {_less(output)}", 1, output)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _leave(f"{error.strerror or error}{where}; mend that and {output.remedy}", StorageError.exit_code, output)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        said = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        if "allocate memory" in said or type(error).__name__ == "OutOfMemoryError":  # torch's own kinds
            _leave(f"memory ran out ({said}); {_less(output)}", 1, output)
        _leave(f"internal error, {type(error).__name__}: {said}; run with -v and report what it prints", 1, output)


def _less(output: Output) -> str:
    if output.resumes:
        return "use fewer --samples or a shorter --seq-len, or a machine with more: there the same command resumes"
    return "close other programs, or use a machine with more"


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Inside, SIGTERM ends the program the way Ctrl-C does, so that children and temporary files go too."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _warnings_hidden(output: Output) -> Iterator[None]:
    """Inside, warnings of libraries are shown with --verbose only: what matters to users is said or raised."""
    with warnings.catch_warnings():
        if not output.verbose:
            warnings.simplefilter("ignore")
        yield


def _leave(sentence: str, code: int, output: Output) -> None:
    if output.verbose:
        traceback.print_exc(file=sys.stderr)
    # names come from files that others wrote: no control codes for the terminal
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(sentence.split()))
    typer.echo(f"compress: {shown}", err=True)
    raise typer.Exit(code) from None


class Bars:
    """Progress with an ETA on stderr: bars on a terminal, a line per stage elsewhere, nothing when silent.

    When silent, what libraries print is dropped too: stdout is for the record alone.
    """

    def __init__(self, output: Output) -> None:
        self.output = output
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._dropped = contextlib.ExitStack()

    def __enter__(self) -> Bars:
        if self.output.silent:
            self._dropped.enter_context(contextlib.redirect_stdout(io.StringIO()))
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
        self._dropped.close()
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
