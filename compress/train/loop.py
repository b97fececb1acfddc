"""The training loop: the HF Trainer with a task's batches, scored on validation rows, stopped by name at a NaN.

Everything that makes a run repeatable is the Trainer's own: seeds of data order and dropout, optimizer, schedule and
random states in its checkpoints. What is added: the task's own score decides which checkpoint is best, and a checkpoint
that a kill has left half written is deleted before the run goes on from the one before it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from compress.core.crf import Crf
from compress.core.errors import DataError, ModelError
from compress.core.task import Context, Feature, Metric, Task
from compress.recipe import TuneRecipe
from compress.train.score import Part, score

Report = Callable[[str, int, int], None]  # stage, done, total
Example = tuple[Feature, ...]
WEIGHTS = "trained.safetensors"
CRF_RATE = 100


@dataclass(frozen=True)
class Settings:
    """How to train: the recipe, and what it leaves open. folder: where checkpoints go.

    weights: of the classes in the loss, or None. batch_size, accumulate: rows of a forward pass, passes of a step.
    """

    recipe: TuneRecipe
    learning_rate: float
    folder: Path
    weights: tuple[float, ...] | None = None
    batch_size: int = 1
    accumulate: int = 1
    bf16: bool = False

    def with_pace(self, batch_size: int, accumulate: int, bf16: bool) -> Settings:
        """The same at another pace."""
        return replace(self, batch_size=batch_size, accumulate=accumulate, bf16=bf16)


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
        try:
            totals = score(self.model, job.task, job.context, job.validation).sum(0, keepdims=True)
        except ModelError as error:
            raise self._broken(str(error)) from None
        values = job.task.figures(totals)[0]
        scored = zip(job.task.metrics, values, strict=True)
        found = {f"eval_{m.name}": float(v) for m, v in scored if math.isfinite(v)}
        self.log(dict(found))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, num_items_in_batch: Any = None, **__: Any
    ) -> Any:
        """The mean loss of a batch: what `own_loss` gives, else the model's own.

        num_items_in_batch: labels of all passes of a step. Where it is known, the mean counts by this pass' share of
        them, so that passes weigh by their labels, as they would in one batch; else the Trainer weighs them alike.
        """
        job = self.job
        loss = own_loss(model, inputs, job.task, job.context, job.settings.weights)
        loss = super().compute_loss(model, inputs) if loss is None else loss
        if num_items_in_batch is None:
            return loss
        return loss * (self._get_num_items_in_batch([inputs], loss.device) / num_items_in_batch)

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
        if not math.isfinite(float(loss)):
            raise self._broken(f"the loss is {float(loss)}")
        self.job.report("training", self.state.global_step, self.state.max_steps)
        return loss

    def _broken(self, what: str) -> ModelError:
        """The error of a run that has left the finite numbers."""
        settings = self.job.settings
        kept = newest_checkpoint(settings.folder)
        there = f"the last good checkpoint is {kept}" if kept else "no checkpoint was written before"
        return ModelError(
            f"{what} at step {self.state.global_step + 1}; lower --learning-rate {settings.learning_rate:g} and pass "
            f"--overwrite to begin again; {there}"
        )


@dataclass(frozen=True)
class _Job:
    task: Task
    context: Context
    validation: Part
    settings: Settings
    report: Report


def own_loss(
    model: nn.Module, batch: dict[str, Tensor], task: Task, context: Context, weights: tuple[float, ...] | None
) -> Tensor | None:
    """The loss of a batch where it is not the model's own: the CRF's, weighted by classes, the task's; else None."""
    crf = crf_of(model)
    if weights is None and crf is None:
        return task.loss(model, batch, context)
    labels = batch["labels"]
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    if crf is not None:
        return crf.loss(logits[:, -labels.shape[1] :], labels)
    flat = logits.reshape(-1, logits.shape[-1])
    weight = torch.tensor(weights, dtype=flat.dtype, device=flat.device)
    return nn.functional.cross_entropy(flat, labels.reshape(-1), weight=weight)


def step_loss(
    model: nn.Module, examples: Sequence[Example], task: Task, context: Context, weights: tuple[float, ...] | None
) -> Tensor:
    """The loss that a training step on `examples` has, with gradients."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in _collated(examples, task, context).items()}
    loss = own_loss(model, batch, task, context, weights)
    return model(**batch).loss if loss is None else loss


def _collated(examples: Sequence[Example], task: Task, context: Context) -> dict[str, Tensor]:
    return task.collate([feature for example in examples for feature in example], context)


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
    if not trained.examples:
        raise DataError("no row is left to train on; give more rows")
    recipe = settings.recipe
    steps = math.ceil(len(trained.examples) / (settings.batch_size * settings.accumulate))
    trainer = _Scored(
        model=model,
        args=_arguments(task.aim(context), settings, steps),
        train_dataset=list(trained.examples),
        eval_dataset=list(validation.features),
        data_collator=lambda examples: _collated(examples, task, context),
        callbacks=[EarlyStoppingCallback(recipe.patience)] if recipe.patience else [],
    )
    trainer.model_accepts_loss_kwargs = True  # it counts the labels of a step; `compute_loss` says who weighs what
    trainer.job = _Job(task, context, validation, settings, report)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=newest_checkpoint(settings.folder))
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)  # no bfloat16 in what follows
    state = trainer.state
    lines = [line_of(line) for line in state.log_history]
    return History(lines, state.best_global_step, state.global_step < state.max_steps)


def _arguments(aim: Metric, settings: Settings, steps: int) -> Any:
    """aim: the figure to maximise. steps: of one epoch; the loss is logged about ten times in it."""
    recipe = settings.recipe
    return TrainingArguments(
        output_dir=str(settings.folder),
        num_train_epochs=recipe.epochs or passes_for(steps),
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        gradient_checkpointing=recipe.checkpointing,
        warmup_steps=recipe.warmup,
        weight_decay=recipe.weight_decay,
        lr_scheduler_type=recipe.schedule,
        bf16=settings.bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=recipe.seed,
        data_seed=recipe.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model=aim.name,
        greater_is_better=not aim.lower_is_better,
        logging_steps=max(1, steps // 10),
        report_to=[],
        disable_tqdm=True,
        average_tokens_across_devices=False,  # each device weighs its own passes
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def passes_for(steps: int) -> int:
    """Epochs of `steps` steps each, where none are asked for: three, more where that is few steps.

    Few rows need more passes than three: Mosbach et al., "On the Stability of Fine-tuning BERT", 2021, take 20.
    """
    return min(20, max(3, math.ceil(300 / steps)))


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
