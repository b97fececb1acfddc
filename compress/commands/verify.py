"""`compress verify`: an export in its runtimes, against the model in memory."""

from __future__ import annotations

import typer

from compress.commands import _run

EXAMPLES = _run.epilog(
    "compress verify ./my-model-4bit/exports/gguf",
    "compress verify ./my-model-4bit/exports/gptq --runtime vllm",
    "compress verify ./my-model-4bit/exports/gguf --serve       # asked as its users do: its server, or its client",
    "compress verify ./moved/gguf --against ./my-model-4bit",
)


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("verify", cls=_run.Command, help=_run.summary(__doc__), epilog=EXAMPLES)(command)


def command(
    export: str = typer.Argument(help="Folder of an export.", show_default=False),
    against: str | None = typer.Option(None, help="The artifact it was made from [default: where it was]."),
    runtime: list[str] | None = _run.RUNTIMES,
    serve: bool = typer.Option(False, "--serve", help="Also ask its server, or its users' client, and compare."),
    port: int = typer.Option(0, help="Port of the server, on this machine only; 0 takes a free one."),
    threads: int = typer.Option(0, help="Threads; 0 takes the physical cores."),
    trust_remote_code: bool = _run.TRUST,
    json: bool = _run.JSON,
    quiet: bool = _run.QUIET,
    verbose: bool = _run.VERBOSE,
) -> None:
    """Judge an export in its runtimes."""
    output = _run.Output(json, quiet, verbose)
    with _run.errors_as_sentences(output):
        from pathlib import Path

        from compress.pipeline.expected import VerifySettings
        from compress.pipeline.hooks import Hooks
        from compress.pipeline.verify import raise_if_wrong, verify_folder

        settings = VerifySettings(tuple(runtime or ()), threads, trust_remote_code, serve, port)
        with _run.Bars(output) as bars:
            hooks = Hooks(bars.report, bars.say)
            record, found = verify_folder(Path(export), Path(against) if against else None, settings, hooks)
        _run.show(record, output)
        raise_if_wrong(Path(export), found)
