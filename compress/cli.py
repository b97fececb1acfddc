"""The `compress` command. Verbs are files of compress.commands; none of them imports torch until it runs."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import typer

from compress import __version__, commands

app = typer.Typer(
    name="compress",
    help="Make a model smaller, know what it cost, and serve the file as it is.",
    epilog="Start with: compress quantize --bits 4      Then: compress bench MODEL OUT",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"compress {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Make a model smaller, know what it cost, and serve the file as it is."""


for _module in sorted(m.name for m in pkgutil.iter_modules(commands.__path__) if not m.name.startswith("_")):
    importlib.import_module(f"compress.commands.{_module}").register(app)


def main() -> None:
    """Entry point of the console script: runs a command and leaves with its exit code.

    A wrong option is one sentence like every other error, not the usage text over again.
    """
    try:
        code = app(prog_name="compress", standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message") or not hasattr(error, "ctx"):
            raise
        code = _usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Any) -> int:
    """Say what is wrong with the command line; called without a verb, show the help."""
    said = str(error.format_message())
    if "\n" in said:
        typer.echo(said, err=True)
    else:
        verb = error.ctx.command_path if error.ctx is not None else "compress"
        typer.echo(f"compress: {said.rstrip('.')}; see {verb} --help", err=True)
    return int(error.exit_code)


if __name__ == "__main__":
    main()
