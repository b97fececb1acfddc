"""The `compress` command. Verbs are files of compress.commands; none of them imports torch until it runs."""

from __future__ import annotations

import importlib
import pkgutil

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
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
