"""The training loop: the HF Trainer with a task's batches, scored on validation rows, stopped by name at a NaN.

Everything that makes a run repeatable is the Trainer's own: seeds of data order and dropout, optimizer, schedule and
random states in its checkpoints. What is added: the task's own score decides which checkpoint is best, and a checkpoint
that a kill has left half written is deleted before the run goes on from the one before it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from compress.core.crf import Crf
from compress.core.errors import DataError, ModelError
from compress.core.task import Context, Task
from compress.recipe import TuneRecipe
from compress.train.score import Part, score

Report = Callable[[str, int, int], None]  # stage, done, total
WEIGHTS = "trained.safetensors"
CRF_RATE = 100


@dataclass(frozen=True)
class Settings:
    """How to train: the recipe, and what it leaves open. folder: where checkpoints go.

    weights: of the classes in the loss, or None.
    """

    recipe: TuneRecipe
    learning_rate: float
    folder: Path
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class History:
    """What happened: a line per log ({"step", "loss"} or {"step", "epoch", metric...}); best: its step."""

    lines: list[dict[str, float]]
    best: int | None = None
    stopped_early: bool = False


class _Scored(Trainer):  # type: ignore[misc]
    """The Trainer, asking the task for its score; `job` is set right after it was made."""

    job: _Job

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation figures under the names that the Trainer wants."""
        job = self.job
        totals = score(self.model, job.task, job.context, job.validation).sum(0, keepdims=True)
        values = job.task.figures(totals)[0]
        found = {f"eval_{m.name}": float(v) for m, v in zip(job.task.metrics, values, strict=True)}
        self.log(dict(found))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss; with a CRF that of the CRF, with weights of classes the weighted cross entropy."""
        crf = crf_of(model)
        if self.job.settings.weights is None and crf is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        if crf is not None:
            loss = crf.loss(outputs.logits[:, -labels.shape[1] :], labels)
            return (loss, outputs) if kwargs.get("return_outputs") else loss
        flat = outputs.logits.reshape(-1, outputs.logits.shape[-1])
        weight = torch.tensor(self.job.settings.weights, dtype=flat.dtype, device=flat.device)
        loss = nn.functional.cross_entropy(flat, labels.reshape(-1), weight=weight)
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's, with steps of a CRF CRF_RATE times as large: its few scores start from next to nothing."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if (crf := crf_of(self.model)) is not None:
            chain = {id(parameter) for parameter in crf.parameters()}
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in chain]
            rate = self.job.settings.learning_rate * CRF_RATE
            optimizer.add_param_group({"params": list(crf.parameters()), "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Weights of a checkpoint: exactly the parameters that are trained, whatever the method.

        peft saves less for p-tuning, the embeddings that its network makes but not the network, and training cannot
        go on from those.
        """
        del state_dict
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        found = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(found, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Put the trained parameters of a checkpoint back."""
        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        parameters = dict((model or self.model).named_parameters())
        with torch.no_grad():
            for name, tensor in stored.items():
                parameters[name].copy_(tensor)

    def _load_best_model(self) -> None:
        """The same for the checkpoint that scored best."""
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One step. Raises ModelError when its loss is not finite."""
        loss: Tensor = super().training_step(*args, **kwargs)
        settings = self.job.settings
        if not math.isfinite(float(loss)):
            raise ModelError(
                f"the loss is {float(loss)} at step {self.state.global_step + 1}; lower --learning-rate "
                f"{settings.learning_rate:g}; the last good checkpoint is in {settings.folder}"
            )
        self.job.report("training", self.state.global_step, self.state.max_steps)
        return loss


@dataclass(frozen=True)
class _Job:
    task: Task
    context: Context
    validation: Part
    settings: Settings
    report: Report


def crf_of(model: nn.Module) -> Crf | None:
    """The CRF that was put beside a model, wherever a wrapper has moved it."""
    return next((module for module in model.modules() if isinstance(module, Crf)), None)


def train(
    model: nn.Module, task: Task, context: Context, parts: tuple[Part, Part], settings: Settings, report: Report
) -> History:
    """Train `model` in place on parts[0]; it ends as the checkpoint that scored best on parts[1].

    Goes on from the newest whole checkpoint in settings.folder. Raises ModelError at a NaN loss, naming the step.
    """
    trained, validation = parts
    if not trained.features:
        raise DataError("no row is left to train on; give more rows")
    recipe = settings.recipe
    steps = math.ceil(len(trained.features) / (recipe.batch_size * recipe.accumulate))
    trainer = _Scored(
        model=model,
        args=_arguments(task, settings, steps),
        train_dataset=list(trained.features),
        eval_dataset=list(validation.features),
        data_collator=lambda features: task.collate(features, context),
        callbacks=[EarlyStoppingCallback(recipe.patience)] if recipe.patience else [],
    )
    if settings.weights is not None or crf_of(model) is not None:
        trainer.model_accepts_loss_kwargs = False  # our losses are means of a batch, not of all batches of a step
    trainer.job = _Job(task, context, validation, settings, report)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=newest_checkpoint(settings.folder))
    state = trainer.state
    lines = [line_of(line) for line in state.log_history]
    return History(lines, state.best_global_step, state.global_step < state.max_steps)


def _arguments(task: Task, settings: Settings, steps: int) -> Any:
    """steps: of one epoch; the loss is logged about ten times in it."""
    recipe = settings.recipe
    return TrainingArguments(
        output_dir=str(settings.folder),
        num_train_epochs=recipe.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        gradient_checkpointing=recipe.checkpointing,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=task.metrics[0].name,
        greater_is_better=not task.metrics[0].lower_is_better,
        logging_steps=max(1, steps // 10),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def line_of(logged: dict[str, float]) -> dict[str, float]:
    """A line of the Trainer's log under our names."""
    kept = {"step": logged["step"], "epoch": round(logged.get("epoch", 0.0), 3)}
    names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
    kept |= {ours: float(logged[name]) for name, ours in names.items() if name in logged}
    return kept | {name.removeprefix("eval_"): float(v) for name, v in logged.items() if name.startswith("eval_")}


def newest_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint; broken ones, the traces of a kill, are deleted. None when there is none.

    The state of a checkpoint is its last file, so one that can be read means that the others are there.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    while found:
        newest = found.pop()
        try:
            json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(newest, ignore_errors=True)
            continue
        return str(newest)
    return None
