"""`compress doctor`: what this machine has and lacks, with install lines."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog("compress doctor", "compress doctor --bench", "compress doctor --json")


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("doctor", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    bench: bool = typer.Option(
        False, "--bench", help="Time the operators of runtimes: will int8 or int4 be faster here?"
    ),
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Show versions, extras, instruction sets, threads, memory and disk."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from compress.pipeline import doctor

        found = doctor.examine()
        if bench:
            with _run.Bars(output) as bars:
                found["operators"] = doctor.bench(bars.report)
        if output.json:
            from compress.core.types import RunRecord
            from compress.report.record import dumps

            typer.echo(dumps(RunRecord("doctor", {}, None, environment=found)))
        elif not output.quiet:
            doctor.show(found, _run.stdout_console())
