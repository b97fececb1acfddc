"""What --freeze leaves untrained, by structure, in models of several shapes."""

from __future__ import annotations

from typing import Any

import pytest
import transformers

from compress.core.errors import RecipeError
from compress.train.freeze import freeze
from tests.tiny import tiny_config


def trained(model: Any, what: str, fresh: tuple[str, ...] = ()) -> set[str]:
    freeze(model, what, fresh)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def bert() -> Any:
    return transformers.BertForSequenceClassification(tiny_config("bert"))


def test_embeddings_of_a_bert_with_their_norm() -> None:
    left = trained(bert(), "embeddings")
    assert not [name for name in left if name.startswith("bert.embeddings")]
    assert "bert.encoder.layer.0.attention.self.query.weight" in left


def test_a_number_of_blocks_and_what_is_below() -> None:
    left = trained(bert(), "1")
    assert not [name for name in left if name.startswith(("bert.embeddings", "bert.encoder.layer.0."))]
    assert "bert.encoder.layer.1.output.dense.bias" in left


def test_the_encoder_leaves_head_and_pooler() -> None:
    left = trained(bert(), "encoder")
    assert left == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}


def test_tables_of_positions_too() -> None:
    left = trained(transformers.GPT2ForSequenceClassification(tiny_config("gpt2")), "0")
    assert not {"transformer.wte.weight", "transformer.wpe.weight"} & left
    assert "transformer.h.0.attn.c_attn.weight" in left


def test_of_an_encoder_decoder_the_encoder() -> None:
    left = trained(transformers.BartForConditionalGeneration(tiny_config("bart")), "encoder")
    assert not [name for name in left if name.startswith("model.encoder.layers")]
    assert [name for name in left if name.startswith("model.decoder.layers")]


def test_new_modules_are_trained_anyway() -> None:
    left = trained(bert(), "encoder", ("bert.encoder.layer.1.output.dense",))
    assert {"bert.encoder.layer.1.output.dense.weight", "bert.encoder.layer.1.output.dense.bias"} <= left


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(RecipeError, match="--freeze 9 asks for more blocks than the 2 of BertForSequenceClassif"):
        freeze(bert(), "9", ())
