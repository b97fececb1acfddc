"""find_structure on every promised architecture against what a person reads off the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from compress.core.blocks import find_structure
from compress.core.types import LayerRef, Structure
from tests.tiny import TINY, meta_model, tiny_model

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
CROSS = ("cross_q_proj", "cross_k_proj", "cross_v_proj", "cross_o_proj")
QKV, CROSS_KV, GATE_UP = ATTENTION[:3], CROSS[1:3], ("gate_proj", "up_proj")


@dataclass(frozen=True)
class Block:
    """One kind of block: its layers as `path:role` in execution order, and the roles that are fused."""

    layers: tuple[str, ...]
    fused: tuple[tuple[str, ...], ...] = ()


def block(text: str, *fused: tuple[str, ...]) -> Block:
    return Block(tuple(text.split()), fused)


LLAMA = block(
    "self_attn.q_proj:q_proj self_attn.k_proj:k_proj self_attn.v_proj:v_proj self_attn.o_proj:o_proj "
    "mlp.gate_proj:gate_proj mlp.up_proj:up_proj mlp.down_proj:down_proj",
    QKV,
    GATE_UP,
)
EXPERTS = " ".join(f"mlp.experts.{e}.gate_up_proj:gate_up_proj mlp.experts.{e}.down_proj:down_proj" for e in range(4))
MOE = block(
    "self_attn.q_proj:q_proj self_attn.k_proj:k_proj self_attn.v_proj:v_proj self_attn.o_proj:o_proj " + EXPERTS,
    QKV,
)
BERT = block(
    "attention.self.query:q_proj attention.self.key:k_proj attention.self.value:v_proj "
    "attention.output.dense:o_proj intermediate.dense:fc1 output.dense:fc2",
    QKV,
)
DEBERTA = block(
    "attention.self.query_proj:q_proj attention.self.key_proj:k_proj attention.self.value_proj:v_proj "
    "attention.output.dense:o_proj intermediate.dense:fc1 output.dense:fc2",
    QKV,
)
MPNET = block(
    "attention.attn.q:q_proj attention.attn.k:k_proj attention.attn.v:v_proj attention.attn.o:o_proj "
    "intermediate.dense:fc1 output.dense:fc2",
    QKV,
)
DISTILBERT = block(
    "attention.q_lin:q_proj attention.k_lin:k_proj attention.v_lin:v_proj attention.out_lin:o_proj "
    "ffn.lin1:fc1 ffn.lin2:fc2",
    QKV,
)
BART_SELF = "self_attn.q_proj:q_proj self_attn.k_proj:k_proj self_attn.v_proj:v_proj self_attn.out_proj:o_proj "
BART_CROSS = (
    "encoder_attn.q_proj:cross_q_proj encoder_attn.k_proj:cross_k_proj "
    "encoder_attn.v_proj:cross_v_proj encoder_attn.out_proj:cross_o_proj "
)
BART_ENCODER = block(BART_SELF + "fc1:fc1 fc2:fc2", QKV)
BART_DECODER = block(BART_SELF + BART_CROSS + "fc1:fc1 fc2:fc2", QKV, CROSS_KV)
PHI3 = block(
    "self_attn.qkv_proj:qkv_proj self_attn.o_proj:o_proj mlp.gate_up_proj:gate_up_proj mlp.down_proj:down_proj"
)
GPT2 = block("attn.c_attn:qkv_proj attn.c_proj:o_proj mlp.c_fc:fc1 mlp.c_proj:fc2")
NEOX = block("attention.query_key_value:qkv_proj attention.dense:o_proj mlp.dense_h_to_4h:fc1 mlp.dense_4h_to_h:fc2")
T5_SELF = (
    "layer.0.SelfAttention.q:q_proj layer.0.SelfAttention.k:k_proj "
    "layer.0.SelfAttention.v:v_proj layer.0.SelfAttention.o:o_proj "
)
T5_ENCODER = block(
    T5_SELF + "layer.1.DenseReluDense.wi_0:gate_proj layer.1.DenseReluDense.wi_1:up_proj "
    "layer.1.DenseReluDense.wo:down_proj",
    QKV,
    GATE_UP,
)
T5_DECODER = block(
    T5_SELF + "layer.1.EncDecAttention.q:cross_q_proj layer.1.EncDecAttention.k:cross_k_proj "
    "layer.1.EncDecAttention.v:cross_v_proj layer.1.EncDecAttention.o:cross_o_proj "
    "layer.2.DenseReluDense.wi_0:gate_proj layer.2.DenseReluDense.wi_1:up_proj "
    "layer.2.DenseReluDense.wo:down_proj",
    QKV,
    CROSS_KV,
    GATE_UP,
)


@dataclass(frozen=True)
class Expected:
    """What a person reads off the architecture. stacks: (path, number of blocks, kind), encoder first."""

    stacks: tuple[tuple[str, int, Block], ...]
    embedding: str
    head: str | None
    tied: bool
    outside: tuple[str, ...] = ()


def decoder(count: int, kind: Block, tied: bool = False, stack: str = "model.layers", table: str = "") -> Expected:
    return Expected(((stack, count, kind),), table or "model.embed_tokens", "lm_head", tied)


EXPECTED = {
    "llama": decoder(3, LLAMA),
    "qwen2": decoder(2, LLAMA, tied=True),
    "qwen3": decoder(2, LLAMA, tied=True),
    "gemma3": decoder(3, LLAMA, tied=True),
    "mistral": decoder(2, LLAMA),
    "phi3": decoder(2, PHI3),
    "gpt2": decoder(2, GPT2, True, "transformer.h", "transformer.wte"),
    "opt": decoder(2, BART_ENCODER, True, "model.decoder.layers", "model.decoder.embed_tokens"),
    "gpt_neox": decoder(2, NEOX, False, "gpt_neox.layers", "gpt_neox.embed_in"),
    "mixtral": decoder(2, MOE),
    "qwen3_moe": decoder(2, MOE),
    "bert": Expected(
        (("bert.encoder.layer", 2, BERT),),
        "bert.embeddings.word_embeddings",
        "cls.predictions.decoder",
        True,
        ("cls.predictions.transform.dense",),
    ),
    "distilbert": Expected(
        (("distilbert.transformer.layer", 2, DISTILBERT),),
        "distilbert.embeddings.word_embeddings",
        "vocab_projector",
        True,
        ("vocab_transform",),
    ),
    "roberta": Expected(
        (("roberta.encoder.layer", 2, BERT),),
        "roberta.embeddings.word_embeddings",
        "lm_head.decoder",
        True,
        ("lm_head.dense",),
    ),
    "mpnet": Expected(
        (("encoder.layer", 3, MPNET),),
        "embeddings.word_embeddings",
        None,
        False,
        ("pooler.dense",),
    ),
    "electra": Expected(
        (("electra.encoder.layer", 2, BERT),),
        "electra.embeddings.word_embeddings",
        "generator_lm_head",
        True,
        ("electra.embeddings_project", "generator_predictions.dense"),
    ),
    "deberta-v2": Expected(
        (("deberta.encoder.layer", 2, DEBERTA),),
        "deberta.embeddings.word_embeddings",
        "cls.predictions.decoder",
        True,
        ("cls.predictions.transform.dense",),
    ),
    "t5": Expected(
        (("encoder.block", 2, T5_ENCODER), ("decoder.block", 3, T5_DECODER)),
        "shared",
        "lm_head",
        True,
    ),
    "bart": Expected(
        (("model.encoder.layers", 2, BART_ENCODER), ("model.decoder.layers", 2, BART_DECODER)),
        "model.shared",
        "lm_head",
        True,
    ),
    "marian": Expected(
        (("model.encoder.layers", 2, BART_ENCODER), ("model.decoder.layers", 2, BART_DECODER)),
        "model.shared",
        "lm_head",
        True,
    ),
    "whisper": Expected(
        (("model.encoder.layers", 2, BART_ENCODER), ("model.decoder.layers", 2, BART_DECODER)),
        "model.decoder.embed_tokens",
        "proj_out",
        True,
    ),
}


def structure_of(name: str) -> tuple[Any, Structure]:
    model = tiny_model(name)
    return model, find_structure(model, model.config)


def test_every_tiny_model_has_an_expectation() -> None:
    assert set(EXPECTED) == set(TINY)


@pytest.mark.parametrize("name", EXPECTED)
def test_blocks_layers_and_roles(name: str) -> None:
    _, found = structure_of(name)
    wanted = [(f"{s}.{p}", s, p, kind.layers) for s, n, kind in EXPECTED[name].stacks for p in range(n)]
    seen = [
        (b.name, b.stack, b.position, tuple(f"{r.name[len(b.name) + 1 :]}:{r.role}" for r in b.layers))
        for b in found.blocks
    ]
    assert seen == wanted
    assert [b.index for b in found.blocks] == list(range(len(wanted)))
    assert all(layer.block == b.index for b in found.blocks for layer in b.layers)
    assert found.generic is None


@pytest.mark.parametrize("name", EXPECTED)
def test_fused_groups(name: str) -> None:
    _, found = structure_of(name)
    kinds = [kind for _, count, kind in EXPECTED[name].stacks for _ in range(count)]
    for b, kind in zip(found.blocks, kinds, strict=True):
        by_role = {layer.role: layer.name for layer in b.layers}
        groups = {role: tuple(by_role[r] for r in fused) for fused in kind.fused for role in fused}
        assert [layer.fused_with for layer in b.layers] == [groups.get(layer.role, ()) for layer in b.layers]


@pytest.mark.parametrize("name", EXPECTED)
def test_embedding_head_ties_and_outside(name: str) -> None:
    model, found = structure_of(name)
    wanted = EXPECTED[name]
    assert found.embedding is not None
    assert (found.embedding.name, found.embedding.param) == (wanted.embedding, f"{wanted.embedding}.weight")
    assert (found.embedding.role, found.embedding.container, found.embedding.block) == (
        "embedding",
        "embedding",
        -1,
    )
    assert found.embedding.shape == tuple(model.get_input_embeddings().weight.shape)
    assert found.tied is wanted.tied
    if wanted.head is None:
        assert found.head is None
    else:
        assert found.head is not None
        assert (found.head.name, found.head.role, found.head.block) == (wanted.head, "lm_head", -1)
        assert found.head.tied_to == (found.embedding.param if wanted.tied else None)
        same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert same is wanted.tied
    assert tuple(layer.name for layer in found.outside) == wanted.outside
    assert {layer.block for layer in found.outside} <= {-1}


@pytest.mark.parametrize("name", EXPECTED)
def test_meta_device_gives_the_same_structure(name: str) -> None:
    model = meta_model(name)
    assert all(p.is_meta for p in model.parameters())
    assert find_structure(model, model.config) == structure_of(name)[1]


@pytest.mark.parametrize("name", EXPECTED)
def test_every_matrix_is_listed_once(name: str) -> None:
    """No linear weight is lost, none is listed twice."""
    model, found = structure_of(name)
    listed = Counter((r.param, r.expert) for r in (*found.layers, *found.outside))
    assert max(listed.values()) == 1
    kept = {id(model.get_parameter(r.param)) for r in (found.embedding, found.head) if r is not None}
    ids = {id(model.get_parameter(param)) for param, _ in listed} | kept
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or parameter.dim() == 3:
                wanted = parameter.dim() > 1 and not isinstance(module, nn.Conv1d)
                assert (id(parameter) in ids) is wanted, f"{path}.{key}"


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_have_their_shape_number_and_parameter(name: str) -> None:
    model, found = structure_of(name)
    path = "model.layers.1.mlp.experts"
    up = next(r for r in found.layers if r.name == f"{path}.3.gate_up_proj")
    stored = model.get_parameter(f"{path}.gate_up_proj")
    assert up == LayerRef(up.name, f"{path}.gate_up_proj", tuple(stored.shape[1:]), 1, "gate_up_proj", "experts", 3)
    assert not any(r.name.startswith("model.layers.1.mlp.gate") for r in found.layers)
