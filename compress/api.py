"""The Python API: the same stages that the commands call."""

from __future__ import annotations

from collections.abc import Callable

from compress.core.types import RunRecord, TokenSet
from compress.measure.bench import run_bench
from compress.measure.settings import BenchSettings
from compress.pipeline import quantize as stage
from compress.pipeline import sensitivity as profiling_stage
from compress.pipeline import tune as tuning_stage
from compress.pipeline.hooks import Hooks
from compress.recipe import Recipe, SensitivityRecipe, TuneRecipe

__all__ = ["bench", "quantize", "sensitivity", "tune"]


def quantize(
    model: str | Recipe = "demo",
    out: str = "",
    bits: int = 4,
    data: str | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunRecord:
    """Quantize a model and return the record of the run; calling it again resumes or returns the finished run.

    model: a folder, hub id or .gguf file, or a whole Recipe (then `out`, `bits` and `data` are taken from it).
    out: output folder, by default named after the model. progress: called with (stage, done, total).

    Raises the errors of compress.core.errors: InputError for models, data and settings that cannot be used,
    VerificationError when the written file does not agree with the compressed model.
    """
    recipe = model if isinstance(model, Recipe) else Recipe.build(model=model, out=out, bits=bits, data=data)
    hooks = Hooks(report=progress) if progress else Hooks()
    return stage.quantize(recipe, overwrite, hooks)


def tune(
    model: str | TuneRecipe,
    data: str = "",
    out: str = "",
    method: str = "full",
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunRecord:
    """Make or adapt a task model and return the record of the run; calling it again resumes or returns a finished run.

    model: a folder, hub id or .gguf file, or a whole TuneRecipe (then `data`, `out` and `method` are taken from it).
    data: rows with labels, as a file, a folder or a hub name. out: output folder, by default named after the model and
    the task. method: `full`, `lora` ... progress: called with (stage, done, total).

    Raises the errors of compress.core.errors: InputError for models, data and settings that cannot be used,
    VerificationError when what was written does not answer as the trained model does.
    """
    if not isinstance(model, TuneRecipe):
        model = TuneRecipe.build(model=model, data=data, out=out, method=method)
    hooks = Hooks(report=progress) if progress else Hooks()
    return tuning_stage.tune(model, overwrite, hooks)


def sensitivity(
    model: str | SensitivityRecipe = "demo",
    out: str = "",
    data: str | None = None,
    schemes: list[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> RunRecord:
    """What each layer of a model costs at each scheme; `record.sensitivity` has unit, texts, answers and layers.

    model: a folder, hub id or .gguf file, or a whole SensitivityRecipe (then the next three are taken from it).
    schemes: names like int4-g64-sym; 2, 3, 4, 5, 6 and 8 bits without. progress: called with (stage, done, total).

    Raises the errors of compress.core.errors: InputError for models, data and settings that cannot be used.
    """
    if not isinstance(model, SensitivityRecipe):
        model = SensitivityRecipe.build(model=model, out=out, data=data, schemes=schemes or [])
    hooks = Hooks(report=progress) if progress else Hooks()
    return profiling_stage.sensitivity(model, overwrite, hooks)


def bench(subjects: tuple[str, ...], heldout: TokenSet | None = None, dtype: str = "float32") -> RunRecord:
    """Measure model folders side by side, each opened by plain transformers in a fresh process.

    subjects: the first is the reference. heldout: token ids to score (None: speed, memory and size only).
    """
    settings = BenchSettings(subjects=subjects, data=heldout, dtype=dtype, quality=heldout is not None)
    measurements, notes = run_bench(settings, lambda *_: None)
    return RunRecord("bench", {"name": subjects[0]}, None, measurements=tuple(measurements), notes=tuple(notes))
