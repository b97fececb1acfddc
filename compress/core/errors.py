"""Every error this program raises on purpose. Each knows its exit code and says value, rule and remedy.

CompressError ................ 1  the program failed
|-- HessianError ............. 1  a hessian that no damping makes definite
|-- StorageError ............. 1  a full or failing disk
|-- UsageError ............... 2  options that do not go together
|   `-- MissingExtraError .... 2  an optional dependency is not installed
|-- InputError ............... 3  what was given cannot be used
|   |-- ModelError ........... 3  the model: weights, index, config, tokenizer
|   |-- DataError ............ 3  the data: files, columns, text
|   |-- RecipeError .......... 3  the settings: a scheme no layer can hold
|   `-- OutputError .......... 3  the output folder holds something else
|-- BudgetError .............. 4  a budget that cannot be met
|-- VerificationError ........ 5  the written file does not agree with the model
|   `-- MissingRuntimeError .... 5  the runtime that should judge it is not installed
`-- Interrupted .............. 130  Ctrl-C; the same command resumes
"""

from __future__ import annotations


class CompressError(Exception):
    """The program failed. The message is one sentence: the value, the rule, the remedy."""

    exit_code = 1


class HessianError(CompressError):
    """A hessian stayed indefinite after damping reached ten times its mean diagonal."""


class StorageError(CompressError):
    """The disk is full or refused a write; finished blocks are kept."""


class UsageError(CompressError):
    """Options that do not go together."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional dependency is not installed; the message carries the install line."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs the package {package}; install it with: pip install 'compress-models[{extra}]'")


class InputError(CompressError):
    """What was given cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """The model cannot be opened: missing files, broken weights, wrong tokenizer, refused pickle."""


class DataError(InputError):
    """The data cannot be used: missing file, missing column, no text, unknown encoding."""


class RecipeError(InputError):
    """A setting that this model or format cannot hold."""


class OutputError(InputError):
    """The output folder holds something that is not this run's."""


class BudgetError(CompressError):
    """No plan fits the budget."""

    exit_code = 4


class VerificationError(CompressError):
    """The written artifact does not agree with the compressed model in memory."""

    exit_code = 5


class MissingRuntimeError(VerificationError):
    """A runtime that is not installed; the message carries the install line."""

    def __init__(self, name: str, install: str) -> None:
        super().__init__(f"the runtime {name} is not installed; install it with: {install}")


class Interrupted(CompressError):
    """Stopped by the user; the same command resumes."""

    exit_code = 130
