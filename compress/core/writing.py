"""What tasks have in common whose answers are texts that an encoder-decoder writes: targets, generation, decoding."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compress.core.errors import ModelError
from compress.core.task import IGNORED, Context, Feature, Row, Task, text_of

if TYPE_CHECKING:
    from torch import Tensor

SLACK = 1.5  # an answer may be this much longer than the longest target of the training rows


class WritingTask(Task):
    """A row has a target text. Context.settings: `start`, the token that decoding begins with; `new_tokens`, how many
    an answer may have."""

    peft = "SEQ_2_SEQ_LM"
    classes = False
    score_batch: ClassVar[int] = 8
    target: ClassVar[str]  # role of the column of targets

    def settings(self, folder: Path) -> dict[str, Any]:
        """The token that decoding begins with. Raises ModelError where the config names none."""
        config = read_config(folder)
        start = config.get("decoder_start_token_id", config.get("bos_token_id"))
        if not isinstance(start, int):
            raise ModelError(f"{folder}/config.json has no decoder_start_token_id; add the one of the original model")
        return {"start": start}

    def surveyed(self, rows: Sequence[Row], context: Context) -> Context:
        """With `new_tokens`: as many as the longest target takes, and SLACK."""
        longest = max((len(self.target_ids(row, n, context)) for n, row in enumerate(rows)), default=1)
        most = min(round(SLACK * longest), context.max_length)
        return replace(context, settings={**context.settings, "new_tokens": max(1, most)})

    def target_ids(self, row: Row, number: int, context: Context) -> list[int]:
        """Labels of a row: its target's tokens up to the end token, without the start token. Raises DataError."""
        tokenizer, column = context.tokenizer, context.columns[self.target]
        text = text_of(row, column, number)
        full = tokenizer(text_target=text, truncation=True, max_length=context.max_length)
        ids: list[int] = list(full["input_ids"])
        if ids and ids[0] == context.settings.get("start"):
            ids = ids[1:]
        end = tokenizer.eos_token_id
        if end is not None and (not ids or ids[-1] != end):  # cut off, or a tokenizer that ends nothing
            ids = [*ids[: context.max_length - 1], end]
        return ids

    @abstractmethod
    def encoder_inputs(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """What the encoder reads of some features, padded."""

    def collate(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Encoder inputs, and `labels` (B, T) padded on the right with IGNORED."""
        import torch

        labels = [torch.tensor(f.inputs["labels"]) for f in features]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        return {**self.encoder_inputs(features, context), "labels": padded}

    def forced(self, features: Sequence[Feature], context: Context) -> dict[str, Tensor]:
        """Inputs of features of one shape, the decoder reading start token and target: what follows each is known."""
        import torch

        read = self.encoder_inputs(features, context)
        read.pop("attention_mask", None)  # of one length: nothing is padded
        start = int(context.settings["start"])
        return {**read, "decoder_input_ids": torch.tensor([[start, *f.inputs["labels"]] for f in features])}

    def predict(self, model: Any, batch: Mapping[str, Tensor], context: Context) -> Tensor:
        """Token ids (B, T) that `model` writes for a batch of encoder inputs: greedy, whatever beams its files ask for.

        Everything else is as its generation config has it (tokens never said, a language forced).
        """
        decode_at_once(model)
        tokens = int(context.settings["new_tokens"])
        # transformers 5.24 makes T5's cache as deep as its encoder, and a deeper decoder finds no place in it
        fits = int(getattr(model.config, "num_decoder_layers", 0)) <= int(model.config.num_hidden_layers)
        written: Tensor = model.generate(**batch, max_new_tokens=tokens, num_beams=1, do_sample=False, use_cache=fits)
        return written

    def answers(self, outputs: Sequence[Tensor], features: Sequence[Feature], context: Context) -> list[str]:
        """Texts of the ids that `predict` gave, one a row."""
        del features
        return [context.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip() for ids in outputs]


def decode_at_once(model: Any) -> None:
    """Make `generate` run on a model whose inputs compressed-tensors rounds (W8A8); any other is left as it is.

    compressed-tensors 0.20 decodes such weights in the model's own first forward, and `generate` runs the encoder
    before that: it finds int8 codes. The wrappers that decoding leaves around modules make a plain dict of the
    encoder's output, in which the decoder asks for item 0. export/runtimes/transformers.py does the same.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is None:
        return
    from compressed_tensors.offload import remove_dispatch

    if hasattr(model, "ct_decompress_hook"):
        compressor.decompress_model(model)
    remove_dispatch(model)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder; {} where there is none. Raises ModelError when it is no JSON."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        raise ModelError(f"{path} is no JSON; fetch the model again") from None
    return found if isinstance(found, dict) else {}
