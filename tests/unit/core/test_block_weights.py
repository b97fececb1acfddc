"""read_weight and write_weight against F.linear: what is written is the map that the module computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from compress.core.blocks import find_structure, read_weight, write_weight
from compress.core.errors import ModelError
from compress.core.types import LayerRef
from tests.tiny import TINY, tiny_model


def random_like(layer: LayerRef, seed: int) -> Tensor:
    return torch.randn(layer.shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_a_written_weight_is_the_map_that_the_module_computes(name: str) -> None:
    """Oracle: F.linear with the weight that was written, for every layer in its own module."""
    model = tiny_model(name)
    found = find_structure(model, model.config)
    for seed, layer in enumerate(r for r in (*found.layers, *found.outside) if r.container in ("linear", "conv1d")):
        weight = random_like(layer, seed)
        write_weight(layer, model.get_parameter(layer.param), weight)
        module: Any = model.get_submodule(layer.name)
        x = torch.randn(5, layer.shape[1], generator=torch.Generator().manual_seed(-seed - 1))
        torch.testing.assert_close(module(x), F.linear(x, weight, module.bias), rtol=1e-5, atol=1e-4)


def transposed_model(name: str) -> Any:
    """gpt_oss and llama4 keep experts as (E, in, out); only the dims or `is_transposed` tell."""
    sizes = {"num_local_experts": 3, "intermediate_size": 32, "hidden_size": 64, "num_hidden_layers": 1}
    more = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 64,
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(name, **sizes, **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model.eval()


def expert_model(name: str) -> Any:
    return tiny_model(name) if name in TINY else transposed_model(name)


def run_expert(name: str, module: Any, x: Tensor, expert: int) -> Tensor:
    """What one expert alone makes of x (n, H), by the model's own forward."""
    if name == "llama4_text":  # wants one row of inputs for every expert
        every = x.repeat(module.num_experts, 1)
        return module(every).view(module.num_experts, *x.shape)[expert]
    index = torch.full((x.shape[0], 1), expert)
    out: Tensor = module(x, index, torch.ones(x.shape[0], 1))
    return out


def expert_oracle(name: str, module: Any, x: Tensor, maps: tuple[Tensor, Tensor, int]) -> Tensor:
    """The same with F.linear and the (O, I) matrices."""
    up_weight, down_weight, expert = maps
    if name == "gpt_oss":  # biases, and gate and up interleaved
        both = F.linear(x, up_weight, module.gate_up_proj_bias[expert])
        gate, up = both[:, 0::2].clamp(max=module.limit), both[:, 1::2].clamp(-module.limit, module.limit)
        mixed = (up + 1) * gate * torch.sigmoid(gate * module.alpha)
        return F.linear(mixed, down_weight, module.down_proj_bias[expert])
    gate, up = F.linear(x, up_weight).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down_weight)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss", "llama4_text"])
def test_a_written_expert_is_the_map_that_the_module_computes(name: str) -> None:
    model = expert_model(name)
    found = find_structure(model, model.config)
    assert found.generic is None
    experts = [r for r in found.layers if r.container in ("experts", "experts_t") and r.block == 0]
    transposed = name in ("gpt_oss", "llama4_text")
    assert {r.container for r in experts} == {"experts_t" if transposed else "experts"}
    module: Any = model.get_submodule(experts[0].param.rpartition(".")[0])
    x = torch.randn(6, 96 if name == "qwen3_moe" else 64, generator=torch.Generator().manual_seed(7))
    for up, down in zip(experts[0::2], experts[1::2], strict=True):
        assert up.expert is not None
        assert up.expert == down.expert
        before = [read_weight(r, model.get_parameter(r.param)) for r in experts if r.expert != up.expert]
        weights = random_like(up, 1) / 8, random_like(down, 2) / 8
        for layer, weight in zip((up, down), weights, strict=True):
            write_weight(layer, model.get_parameter(layer.param), weight)
        wanted = expert_oracle(name, module, x, (*weights, up.expert))
        torch.testing.assert_close(run_expert(name, module, x, up.expert), wanted, rtol=1e-4, atol=1e-4)
        after = [read_weight(r, model.get_parameter(r.param)) for r in experts if r.expert != up.expert]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_write_then_read_is_the_cast_weight(name: str, dtype: torch.dtype) -> None:
    model = expert_model(name).to(dtype)
    found = find_structure(model, model.config)
    assert found.embedding is not None
    assert found.head is not None
    for layer in (*found.blocks[0].layers, found.embedding, found.head):
        parameter, weight = model.get_parameter(layer.param), random_like(layer, 3)
        write_weight(layer, parameter, weight)
        read = read_weight(layer, parameter)
        assert torch.equal(read, weight.to(dtype).float())
        assert read.is_contiguous()
        assert read.dtype == torch.float32
        kept = parameter.detach().clone()
        read.zero_()
        assert torch.equal(parameter, kept), "read_weight must not hand out the model's own storage"


def test_weight_access_refuses_what_does_not_fit() -> None:
    layer = LayerRef("m.0.fc", "m.0.fc.weight", (4, 6), 0, "fc1")
    with pytest.raises(ModelError, match=r"shape \(6, 5\).*\(4, 6\)"):
        read_weight(layer, torch.zeros(6, 5))
    with pytest.raises(ModelError, match=r"\(6, 4\) cannot replace m.0.fc"):
        write_weight(layer, torch.zeros(4, 6), torch.zeros(6, 4))
    with pytest.raises(ModelError, match="meta device"):
        read_weight(layer, torch.zeros(4, 6, device="meta"))
    with pytest.raises(ModelError, match=r"holds uint8.*quantized already"):
        read_weight(layer, torch.zeros(4, 6, dtype=torch.uint8))
    expert = replace(layer, container="experts", expert=3)
    for stored in (torch.zeros(3, 4, 6), torch.zeros(4, 6)):
        with pytest.raises(ModelError, match="of expert 3 as experts"):
            read_weight(expert, stored)
