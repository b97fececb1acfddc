"""find_structure on models outside the promised list: made-up ones, shared weights, odd ties, other MoE."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from compress.core.blocks import find_structure
from compress.core.errors import ModelError
from compress.core.types import Structure
from tests.tiny import tiny_config, tiny_model


class OddConfig(PreTrainedConfig):
    model_type = "odd"
    hidden_size = 32


class OddBlock(nn.Module):
    """A residual map with names that nobody else uses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.zig = nn.Linear(width, 2 * width)
        self.zag = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.zag(torch.tanh(self.zig(x))))


class Odd(PreTrainedModel):
    """Base of the made-up models: no embedding, no head, whatever `fill` adds."""

    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.fill(config.hidden_size)
        self.post_init()

    def fill(self, width: int) -> None:
        raise AssertionError("each model says what it holds")


class OddNames(Odd):
    def fill(self, width: int) -> None:
        self.pile = nn.ModuleList(OddBlock(width) for _ in range(3))
        self.finish = nn.Linear(width, 5)


class NoList(Odd):
    def fill(self, width: int) -> None:
        self.first = OddBlock(width)
        self.second = OddBlock(width)


class OneLayerThrice(Odd):
    """One module used three times, as universal transformers do."""

    def fill(self, width: int) -> None:
        layer = OddBlock(width)
        self.layers = nn.ModuleList([layer, layer, layer])


class SharedParameters(Odd):
    """Decoder blocks whose first weight is the encoder's, as two modules round one parameter."""

    def fill(self, width: int) -> None:
        self.encoder = nn.ModuleList(OddBlock(width) for _ in range(2))
        self.decoder = nn.ModuleList(OddBlock(width) for _ in range(2))
        for one, other in zip(self.encoder, self.decoder, strict=True):
            other.get_submodule("zig").weight = one.get_submodule("zig").weight


class HelperList(Odd):
    """Beside the blocks a list of plain linears and a list of tiny modules: neither is a stack."""

    def fill(self, width: int) -> None:
        self.helpers = nn.ModuleList(nn.Linear(8 * width, 8 * width) for _ in range(4))
        self.layers = nn.ModuleList(OddBlock(8 * width) for _ in range(2))
        self.probes = nn.ModuleList(OddBlock(2) for _ in range(2))


class Bare(Odd):
    """A block that multiplies by a parameter of its own."""

    def fill(self, width: int) -> None:
        self.layers = nn.ModuleList(OddBlock(width) for _ in range(2))
        for layer in self.layers:
            layer.register_parameter("mix", nn.Parameter(torch.zeros(width, width)))


class DecoderFirst(Odd):
    """An encoder-decoder that registers its decoder first."""

    def fill(self, width: int) -> None:
        self.decoder = nn.Sequential()
        self.decoder.add_module("layers", nn.ModuleList([OddBlock(width)]))
        self.encoder = nn.Sequential()
        self.encoder.add_module("layers", nn.ModuleList([OddBlock(width)]))


class SquareExperts(Odd):
    """Experts whose two sides are equal, so that only the module itself can tell how they lie."""

    transposed: bool | None = None

    def fill(self, width: int) -> None:
        layer, square = OddBlock(width), nn.Module()
        square.register_parameter("up_proj", nn.Parameter(torch.zeros(2, width, width)))
        if self.transposed is not None:
            square.is_transposed = self.transposed
        layer.add_module("experts", square)
        self.layers = nn.ModuleList([layer])


class SquareTransposed(SquareExperts):
    transposed = True


class ListOfLists(Odd):
    """Stages of blocks, as in funnel: the outer list's elements are lists, which nobody can call."""

    def fill(self, width: int) -> None:
        self.stages = nn.ModuleList(nn.ModuleList(OddBlock(width) for _ in range(2)) for _ in range(2))


class OtherInputs(Odd):
    """Queries from one input, keys and values from a wider one: nothing that a server could fuse."""

    def fill(self, width: int) -> None:
        layer = nn.Module()
        for name, wide in (("q_proj", 1), ("k_proj", 2), ("v_proj", 2)):
            layer.add_module(name, nn.Linear(wide * width, width))
        holder = nn.Module()
        holder.add_module("self_attn", layer)
        self.layers = nn.ModuleList([holder])


class NothingToDo(Odd):
    def fill(self, width: int) -> None:
        self.convolution = nn.Conv1d(width, width, 3)


def odd(kind: type[Odd]) -> Structure:
    model = kind(OddConfig())
    return find_structure(model, model.config)


def names(found: Structure) -> list[list[str]]:
    return [[layer.name for layer in block.layers] for block in found.blocks]


def test_odd_names_keep_their_blocks_and_say_so() -> None:
    found = odd(OddNames)
    assert names(found) == [[f"pile.{i}.zig", f"pile.{i}.zag"] for i in range(3)]
    assert {(layer.role, layer.fused_with) for layer in found.layers} == {("other", ())}
    assert [layer.name for layer in found.outside] == ["finish"]
    assert (found.embedding, found.head, found.tied) == (None, None, False)
    assert found.generic == (
        "OddNames was read by structure alone: the roles of pile.*.zig, pile.*.zag are not known, "
        "so each of them is handled alone."
    )


def test_without_a_list_the_model_is_one_block() -> None:
    found = odd(NoList)
    assert [(b.index, b.name, b.stack, b.position) for b in found.blocks] == [(0, "", "", 0)]
    assert names(found) == [["first.zig", "first.zag", "second.zig", "second.zag"]]
    assert found.outside == ()
    assert found.generic is not None
    assert "there is no list of blocks, so the whole model is one block" in found.generic


def test_a_layer_used_thrice_is_three_blocks_and_one_set_of_layers() -> None:
    found = odd(OneLayerThrice)
    assert [b.name for b in found.blocks] == ["layers.0", "layers.1", "layers.2"]
    assert names(found) == [["layers.0.zig", "layers.0.zag"], [], []]


def test_a_parameter_shared_by_two_modules_is_listed_under_its_first_name() -> None:
    found = odd(SharedParameters)
    first = [[f"encoder.{i}.zig", f"encoder.{i}.zag"] for i in range(2)]
    assert names(found) == [*first, ["decoder.0.zag"], ["decoder.1.zag"]]


def test_lists_of_linears_and_of_small_modules_are_no_stacks() -> None:
    found = odd(HelperList)
    assert {b.stack for b in found.blocks} == {"layers"}
    helpers = [f"helpers.{i}" for i in range(4)]
    probes = [f"probes.{i}.{name}" for i in range(2) for name in ("zig", "zag")]
    assert [layer.name for layer in found.outside] == helpers + probes


def test_the_encoder_comes_first_whatever_the_order_of_registration() -> None:
    model = DecoderFirst(OddConfig(is_encoder_decoder=True))
    found = find_structure(model, model.config)
    assert [(b.index, b.name) for b in found.blocks] == [(0, "encoder.layers.0"), (1, "decoder.layers.0")]


@pytest.mark.parametrize(("kind", "container"), [(SquareExperts, "experts"), (SquareTransposed, "experts_t")])
def test_square_experts_lie_as_the_module_says(kind: type[Odd], container: str) -> None:
    found = odd(kind)
    square = [layer for layer in found.layers if layer.param == "layers.0.experts.up_proj"]
    assert [(layer.name, layer.expert, layer.container) for layer in square] == [
        (f"layers.0.experts.{e}.up_proj", e, container) for e in range(2)
    ]
    unclear = "the shapes of layers.*.experts.up_proj do not tell rows from columns"
    assert found.generic is not None
    assert (unclear in found.generic) is (container == "experts")


def test_a_list_of_lists_is_looked_into() -> None:
    found = odd(ListOfLists)
    assert [(b.name, b.stack) for b in found.blocks] == [
        (f"stages.{i}.{j}", f"stages.{i}") for i in range(2) for j in range(2)
    ]


def test_layers_that_read_different_inputs_are_not_fused() -> None:
    found = odd(OtherInputs)
    assert [layer.role for layer in found.layers] == ["q_proj", "k_proj", "v_proj"]
    assert {layer.fused_with for layer in found.layers} == {()}


def test_matrices_outside_linear_layers_are_named() -> None:
    found = odd(Bare)
    assert found.generic is not None
    assert "layers.*.mix are matrices outside linear layers and stay as they are" in found.generic


def test_no_linear_layer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"NothingToDo holds no linear layer.*give a transformer"):
        odd(NothingToDo)


def build(auto: str, kind: str, **settings: Any) -> tuple[Any, Structure]:
    """A model of another architecture on the meta device, and its structure."""
    config = AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        model = getattr(transformers, auto).from_config(config)
    return model, find_structure(model, config)


BERT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "vocab_size": 64}
LLAMA = BERT | {"num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 8, "pad_token_id": 0}
BART = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "vocab_size": 64}
HEADS = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 1, "decoder_layers": 1}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}


def test_albert_shares_one_group_among_its_layers() -> None:
    _, found = build("AutoModelForMaskedLM", "albert", **BERT, embedding_size=16, num_hidden_layers=6)
    assert [b.name for b in found.blocks] == ["albert.encoder.albert_layer_groups.0"]
    roles = [layer.role for layer in found.layers]
    assert roles == ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
    outside = ["albert.encoder.embedding_hidden_mapping_in", "predictions.dense"]
    assert [layer.name for layer in found.outside] == outside
    assert found.generic is None


def test_linear_routers_and_shared_expert_gates_stay_out() -> None:
    moe = {"num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    model, found = build("AutoModelForCausalLM", "qwen2_moe", **LLAMA, **moe, num_experts_per_tok=2)
    assert isinstance(model.model.layers[0].mlp.shared_expert_gate, nn.Linear)
    listed = {layer.name for layer in (*found.layers, *found.outside)}
    assert not any(name.endswith(("mlp.gate", "shared_expert_gate")) for name in listed)
    shared = [layer for layer in found.blocks[0].layers if "mlp.shared_expert." in layer.name]
    assert [layer.role for layer in shared] == ["gate_proj", "up_proj", "down_proj"]
    assert shared[0].fused_with == (shared[0].name, shared[1].name)
    assert shared[0].expert is None
    assert found.generic is None


def test_llama4_keeps_its_router_although_it_is_a_linear() -> None:
    moe = {"num_local_experts": 4, "intermediate_size_mlp": 64}
    model, found = build("AutoModelForCausalLM", "llama4_text", **LLAMA, **moe)
    assert isinstance(model.model.layers[0].feed_forward.router, nn.Linear)
    assert not any("router" in layer.name for layer in (*found.layers, *found.outside))


def test_experts_as_modules_carry_their_number() -> None:
    class Experts(Odd):
        def fill(self, width: int) -> None:
            self.layers = nn.ModuleList([nn.Module(), nn.Module()])
            for layer in self.layers:
                layer.add_module("experts", nn.ModuleList(OddBlock(width) for _ in range(2)))
                layer.add_module("gate", nn.Linear(width, 2))

    found = odd(Experts)
    assert [b.name for b in found.blocks] == ["layers.0", "layers.1"]
    numbered = [layer.name for layer in found.layers if layer.expert == 1]
    assert numbered == [f"layers.{b}.experts.1.{name}" for b in range(2) for name in ("zig", "zag")]
    assert not any(layer.name.endswith(".gate") for layer in found.layers)


def test_plain_t5_has_no_gate() -> None:
    t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 1, "vocab_size": 64}
    _, found = build("AutoModelForSeq2SeqLM", "t5", **t5, feed_forward_proj="relu")
    assert [layer.role for layer in found.blocks[0].layers][-2:] == ["up_proj", "down_proj"]
    assert found.blocks[0].layers[-2].fused_with == ()


def test_marian_with_two_vocabularies_ties_its_head_to_the_decoder() -> None:
    separate = {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 64}
    _, found = build("AutoModelForSeq2SeqLM", "marian", **BART, **HEADS, **IDS, **separate)
    assert found.embedding is not None
    assert found.head is not None
    assert found.embedding.param == "model.encoder.embed_tokens.weight"
    assert found.head.tied_to == "model.decoder.embed_tokens.weight"
    assert found.tied is False, "tied means tied to the input embedding"


def test_opt_with_a_narrow_embedding_has_its_projections_outside() -> None:
    opt = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "vocab_size": 64,
    }
    _, found = build("AutoModelForCausalLM", "opt", **opt, word_embed_proj_dim=16)
    outside = {layer.name: layer.shape for layer in found.outside}
    assert outside == {"model.decoder.project_out": (16, 32), "model.decoder.project_in": (32, 16)}


def test_gpt2_with_cross_attention() -> None:
    gpt2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 64}
    _, found = build("AutoModelForCausalLM", "gpt2", **gpt2, add_cross_attention=True, is_decoder=True)
    first = ["qkv_proj", "o_proj", "cross_q_proj", "cross_kv_proj", "cross_o_proj", "fc1", "fc2"]
    assert [layer.role for layer in found.layers] == first


def test_xlnet_says_which_matrices_it_keeps() -> None:
    xlnet = {"d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 64, "vocab_size": 64}
    _, found = build("AutoModelForCausalLM", "xlnet", **xlnet)
    assert found.generic is not None
    assert "transformer.layer.*.rel_attn.q" in found.generic
    assert [layer.role for layer in found.layers] == ["fc1", "fc2"]


def test_an_announced_tie_that_the_loaded_weights_contradict_is_no_tie() -> None:
    model = tiny_model("qwen2")
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    found = find_structure(model, model.config)
    assert model.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert found.head is not None
    assert (found.tied, found.head.tied_to) == (False, None)


def test_a_tie_without_shared_objects_is_known_from_the_announcement_on_meta() -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(tiny_config("qwen2"))
        model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    found = find_structure(model, model.config)
    assert found.head is not None
    assert (found.tied, found.head.tied_to) == (True, "model.embed_tokens.weight")
