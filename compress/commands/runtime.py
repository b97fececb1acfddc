"""`compress runtime`: the runtimes that exports are judged in."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress runtime list",
    "compress runtime install llama.cpp          # a virtual environment under the cache; nothing else changes",
    "compress runtime use vllm /opt/vllm/bin/python   # an interpreter that has it already",
    "compress runtime remove llama.cpp",
)
_app = typer.Typer(
    cls=_run.Group,
    help=_run.summary(__doc__),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    epilog=EXAMPLES,
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.add_typer(_app, name="runtime")


@_app.command("list")
def show(json: bool = _run.JSON, quiet: bool = _run.QUIET, verbose: bool = _run.VERBOSE) -> None:
    """Which runtimes there are, and where."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from export import environments

        if output.json:
            from compress.core.types import RunRecord
            from compress.pipeline.doctor import runtimes
            from compress.report.record import dumps

            typer.echo(dumps(RunRecord("runtime", {}, None, environment={"runtimes": runtimes()})))
            return
        for place in () if quiet else environments.places():
            where = str(place.interpreter) if place.interpreter else f"not installed: {place.install}"
            typer.echo(f"{place.name:<20} {place.version or '-':<12} {where}")


@_app.command("install")
def install(name: str, quiet: bool = _run.QUIET, verbose: bool = _run.VERBOSE) -> None:
    """Make the environment of a runtime, from a list of versions that were tested together."""
    output = _run.Output(False, quiet, verbose)
    with _run.errors_as_sentences(output):
        from export import environments

        with _run.Bars(output) as bars:
            place = environments.install(name, bars.say)
        if not quiet:
            typer.echo(f"{place.name} {place.version} is ready: {place.interpreter}")


@_app.command("use")
def use(name: str, interpreter: str, quiet: bool = _run.QUIET, verbose: bool = _run.VERBOSE) -> None:
    """Use an interpreter of your own for a runtime."""
    output = _run.Output(False, quiet, verbose)
    with _run.errors_as_sentences(output):
        from pathlib import Path

        from export import environments

        place = environments.use(name, Path(interpreter))
        if not quiet:
            typer.echo(f"{place.name} {place.version} is used from {place.interpreter}")


@_app.command("remove")
def remove(name: str, quiet: bool = _run.QUIET, verbose: bool = _run.VERBOSE) -> None:
    """Delete the environment of a runtime, and forget an interpreter that was named for it."""
    output = _run.Output(False, quiet, verbose)
    with _run.errors_as_sentences(output):
        from export import environments

        had = environments.remove(name)
        if not quiet:
            typer.echo(f"{name} is removed" if had else f"{name} was not there")
