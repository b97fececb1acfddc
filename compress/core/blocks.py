"""Blocks, linear layers, roles, fused groups, ties and experts of a model, by looking at its module tree.

Nothing is traced and nothing is run, so a model on the meta device is enough and no architecture is refused:
one whose names are not in roles.json gets role `other`, one without a list of blocks is a single block, and
`Structure.generic` says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.core.errors import ModelError
from compress.core.linear_maps import LinearMap, bare_matrices, linear_maps
from compress.core.roles import OTHER, Roles, load_roles
from compress.core.types import BlockRef, LayerRef, Structure

STACK_SHARE = 0.02
"""A list of modules is a stack of blocks when it holds this share of all weights found in lists."""
BARE_SHARE = 0.01
"""Bare matrices are worth a sentence when they hold this share of a model's linear weights."""


def find_structure(model: nn.Module, config: Any) -> Structure:
    """Where the weight matrices of `model` are and what they are for.

    model: a transformers model, its parameters on any device, meta included. config: its config. Blocks are
    the elements of the outermost lists (encoder before decoder); embeddings, norms, biases and the routers of
    experts are no layers. A weight that several modules share is listed once, under its first name.
    Raises ModelError when there is no linear layer at all.
    """
    roles = load_roles()
    text = _text_config(config)
    architecture = type(model).__name__
    home = _homes(model)
    maps = linear_maps(model, text, roles)
    if not maps:
        raise ModelError(f"{architecture} holds no linear layer, so there is nothing to compress; give a transformer")
    embedding, head = _embedding(model, home), _head(model, maps)
    if embedding is not None and head is not None and home[head.param] == home[embedding.param]:
        head = replace(head, tied_to=embedding.param)
    elif head is not None and home[head.param] != head.param:
        head = replace(head, tied_to=home[head.param])
    taken = {home[ref.param] for ref in (embedding, head) if ref is not None}
    own = [m for m in maps if home[m.param] == m.param and m.param not in taken]
    stacks = _stacks(model, own, bool(getattr(config, "is_encoder_decoder", False)))
    blocks = _blocks(model, stacks, own, roles) if stacks else (_block(0, "", "", 0, own, roles),)
    inside = {layer.param for block in blocks for layer in block.layers}
    outside = [ref for m in own if m.param not in inside for ref in _refs(m, "", -1, OTHER)]
    return Structure(
        architecture=architecture,
        blocks=blocks,
        embedding=embedding,
        head=head,
        tied=embedding is not None and head is not None and head.tied_to == embedding.param,
        outside=tuple(outside),
        generic=_generic(architecture, blocks, bool(stacks), maps, _bare(model, maps, blocks, roles)),
    )


def steps_of(block: BlockRef) -> tuple[BlockRef, ...]:
    """`block` cut into the steps in which its layers run, each with its own layers only: what feeds attention, what
    attention feeds, and so on. One step, the whole block, when a role is not known."""
    roles = load_roles()
    found: dict[int | None, list[LayerRef]] = {}
    for layer in block.layers:
        found.setdefault(roles.step(layer.role), []).append(layer)
    if None in found:
        return (block,)
    return tuple(replace(block, layers=tuple(layers)) for _, layers in sorted(found.items(), key=lambda e: e[0] or 0))


def read_weight(layer: LayerRef, parameter: Tensor) -> Tensor:
    """The (O, I) matrix of `layer` as a new contiguous float32 tensor that shares nothing with `parameter`.

    parameter: the tensor called `layer.param`, any float dtype, with data; not modified. Raises ModelError
    when it is on the meta device, is not of a float dtype, or does not have the layer's shape.
    """
    view = _view(layer, parameter)
    return view.to(dtype=torch.float32, copy=True, memory_format=torch.contiguous_format)


def write_weight(layer: LayerRef, parameter: Tensor, weight: Tensor) -> None:
    """Put `weight` (O, I) into `parameter` in place, cast to its dtype: the inverse of `read_weight`.

    Experts other than `layer.expert` are not touched. Raises ModelError as `read_weight` does, and when
    `weight` does not have the layer's shape.
    """
    if tuple(weight.shape) != layer.shape:
        raise ModelError(
            f"a weight of shape {tuple(weight.shape)} cannot replace {layer.name}, which is {layer.shape}; "
            "pass it as (out features, in features)"
        )
    view = _view(layer, parameter)
    with torch.no_grad():
        view.copy_(weight.detach())


def _view(layer: LayerRef, parameter: Tensor) -> Tensor:
    """The (O, I) view of `layer` into its stored parameter."""
    data = parameter.detach()
    if data.is_meta:
        raise ModelError(f"{layer.param} has no data yet (meta device); load its block before its weights are used")
    if not data.is_floating_point():
        kind = str(data.dtype).removeprefix("torch.")
        raise ModelError(f"{layer.param} holds {kind}, not floats: it is quantized already; give the original model")
    if layer.container in ("experts", "experts_t"):
        if layer.expert is None or data.dim() != 3 or not 0 <= layer.expert < data.shape[0]:
            raise _misfit(layer, data)
        data = data[layer.expert]
    if layer.container in ("conv1d", "experts_t"):
        data = data.t() if data.dim() == 2 else data
    if tuple(data.shape) != layer.shape:
        raise _misfit(layer, parameter)
    return data


def _misfit(layer: LayerRef, parameter: Tensor) -> ModelError:
    which = "" if layer.expert is None else f" of expert {layer.expert}"
    return ModelError(
        f"{layer.param} has shape {tuple(parameter.shape)} and cannot hold the {layer.shape} matrix{which} "
        f"as {layer.container}; the weights and the config are of different models"
    )


def _text_config(config: Any) -> Any:
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def _homes(model: nn.Module) -> dict[str, str]:
    """For every parameter name, the name its storage is saved under; itself unless it is shared.

    Shared means one object under two names, or announced in `all_tied_weights_keys`, which is all there is
    before tensors are loaded; two loaded tensors that lie apart are not tied, whatever was announced. The
    home is the announced source, as transformers saves it, else the first name.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    home = {name: first.setdefault(id(p), name) for name, p in parameters.items()}
    announced: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in announced.items():
        if target not in parameters or source not in parameters:
            continue
        one, other = parameters[target], parameters[source]
        if one is other or one.is_meta or other.is_meta or one.data_ptr() == other.data_ptr():
            root = home[source] if source in announced else source
            merged = {home[target], home[source]}
            home.update({name: root for name, at in home.items() if at in merged})
    return home


def _embedding(model: nn.Module, home: dict[str, str]) -> LayerRef | None:
    """The token embedding (V, D), by the name it is saved under; None for a model that has none."""
    module = _ask(model, "get_input_embeddings")
    if not isinstance(module, nn.Embedding):
        return None
    name = _path_of(model, module)
    if name is None:
        return None
    saved = home[f"{name}.weight"].rpartition(".")[0]
    name = saved if isinstance(model.get_submodule(saved), nn.Embedding) else name
    rows, width = module.weight.shape
    return LayerRef(name, f"{name}.weight", (rows, width), -1, "embedding", "embedding")


def _head(model: nn.Module, maps: list[LinearMap]) -> LayerRef | None:
    """The output projection to the vocabulary, or None."""
    module = _ask(model, "get_output_embeddings")
    path = None if module is None else _path_of(model, module)
    for m in maps:
        if m.path == path and m.key == "weight" and m.experts is None:
            return LayerRef(m.path, m.param, m.shape, -1, "lm_head", m.container)
    return None


def _ask(model: nn.Module, getter: str) -> nn.Module | None:
    try:
        module = getattr(model, getter)()
    except (AttributeError, NotImplementedError):  # vision and speech encoders have no vocabulary to offer
        return None
    return module if isinstance(module, nn.Module) else None


def _path_of(model: nn.Module, module: nn.Module) -> str | None:
    return next((path for path, other in model.named_modules() if other is module), None)


def _stacks(model: nn.Module, maps: list[LinearMap], encoder_first: bool) -> list[str]:
    """Paths of the outermost module lists whose elements are blocks, in execution order."""
    weight: dict[str, int] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{outer}.") for outer in weight):
            continue
        if "expert" in path.rpartition(".")[2] or all(isinstance(e, nn.ModuleList) for e in module):
            continue  # a list of lists is looked into: its elements cannot be called
        deep = [m for m in maps if m.path.startswith(f"{path}.") and "." in m.path[len(path) + 1 :]]
        if deep:  # a list of bare linears is a helper (gemma3n's altup_projections), not a stack
            weight[path] = sum(m.numel for m in deep)
    total = sum(weight.values())
    kept = [path for path, numel in weight.items() if numel >= STACK_SHARE * total]
    if encoder_first:
        kept.sort(key=lambda path: "decoder" in path.split("."))
    return kept


def _blocks(model: nn.Module, stacks: list[str], maps: list[LinearMap], roles: Roles) -> tuple[BlockRef, ...]:
    """One BlockRef for every element; an element that repeats an earlier module has no layers of its own."""
    blocks: list[BlockRef] = []
    for stack in stacks:
        elements = model.get_submodule(stack)
        assert isinstance(elements, nn.ModuleList)
        for position in range(len(elements)):
            name = f"{stack}.{position}"
            inside = [m for m in maps if m.path.startswith(f"{name}.") or m.path == name]
            blocks.append(_block(len(blocks), name, stack, position, inside, roles))
    return tuple(blocks)


def _block(index: int, name: str, stack: str, position: int, maps: list[LinearMap], roles: Roles) -> BlockRef:
    """A block and its layers in execution order, as far as roles tell it; else as registered."""
    skip = len(name) + 1 if name else 0
    named = [(m, roles.of(m.label[skip:])) for m in maps]
    if all(role != OTHER for _, role in named):
        named = _in_order(named, roles)
    layers = [ref for m, role in named for ref in _refs(m, name, index, role)]
    if any(m.experts for m, _ in named):  # one expert after another, each whole
        layers = _experts_together(layers)
    return BlockRef(index, name, stack, position, tuple(_with_fusion(layers, roles)))


def _in_order(named: list[tuple[LinearMap, str]], roles: Roles) -> list[tuple[LinearMap, str]]:
    """Self-attention, cross-attention, feed-forward; modules as registered; within one, by role."""
    cross, ffn = roles.rank("cross_q_proj"), roles.rank("gate_proj")
    first: dict[str, int] = {}
    for at, (m, _) in enumerate(named):
        first.setdefault(m.label.rpartition(".")[0], at)

    def key(entry: tuple[LinearMap, str]) -> tuple[int, int, int]:
        rank = roles.rank(entry[1])
        return (rank >= cross) + (rank >= ffn), first[entry[0].label.rpartition(".")[0]], rank

    return sorted(named, key=key)


def _experts_together(layers: list[LayerRef]) -> list[LayerRef]:
    first: dict[str, int] = {}
    for at, layer in enumerate(layers):
        first.setdefault(layer.param.rpartition(".")[0], at)
    return sorted(layers, key=lambda layer: (first[layer.param.rpartition(".")[0]], layer.expert or 0))


def _refs(m: LinearMap, block: str, index: int, role: str) -> Iterable[LayerRef]:
    """The LayerRef of a map, or one for each of its experts."""
    if m.experts is None:
        yield LayerRef(m.path, m.param, m.shape, index, role, m.container, _expert_number(m.path, block))
        return
    tail = "" if m.key == "weight" else f".{m.key}"
    for expert in range(m.experts):
        yield LayerRef(f"{m.path}.{expert}{tail}", m.param, m.shape, index, role, m.container, expert)


def _expert_number(path: str, block: str) -> int | None:
    """3 for `...experts.3.w1` where every expert is a module of its own."""
    parts = path.removeprefix(block).split(".")
    return next((int(n) for name, n in itertools.pairwise(parts) if name == "experts" and n.isdigit()), None)


def _with_fusion(layers: list[LayerRef], roles: Roles) -> list[LayerRef]:
    """The layers, with `fused_with` set where a whole group reads one input."""
    groups: dict[str, tuple[str, ...]] = {}
    siblings: dict[str, dict[str, LayerRef]] = {}
    for layer in layers:
        siblings.setdefault(layer.name.rpartition(".")[0], {})[layer.role] = layer
    for by_role in siblings.values():
        for fused in roles.fused:
            members = [by_role[role] for role in fused if role in by_role]
            if len(members) == len(fused) and len({member.shape[1] for member in members}) == 1:
                names = tuple(member.name for member in members)
                groups.update(dict.fromkeys(names, names))
    return [replace(layer, fused_with=groups.get(layer.name, ())) for layer in layers]


def _bare(model: nn.Module, maps: list[LinearMap], blocks: tuple[BlockRef, ...], roles: Roles) -> list[str]:
    """Names of the matrices inside blocks that are in no linear module, when there are enough to matter."""
    inside = tuple(block.prefix for block in blocks)
    known = {m.param for m in maps}
    found = [(n, p.numel()) for n, p in bare_matrices(model, roles, known) if n.startswith(inside)]
    enough = sum(size for _, size in found) >= BARE_SHARE * sum(m.numel for m in maps)
    return [name for name, _ in found] if enough else []


def _generic(
    architecture: str, blocks: tuple[BlockRef, ...], listed: bool, maps: list[LinearMap], bare: list[str]
) -> str | None:
    """What was not recognised, in one sentence, or None."""
    said: list[str] = []
    if not listed:
        said.append("there is no list of blocks, so the whole model is one block")
    unknown = [layer.name for block in blocks for layer in block.layers if layer.role == OTHER]
    if unknown:
        said.append(f"the roles of {_some(unknown)} are not known, so each of them is handled alone")
    if bare:
        said.append(f"{_some(bare)} are matrices outside linear layers and stay as they are")
    unclear = [m.param for m in maps if not m.certain]
    if unclear:
        said.append(f"the shapes of {_some(unclear)} do not tell rows from columns; (experts, out, in) is assumed")
    return f"{architecture} was read by structure alone: {'; '.join(said)}." if said else None


def _some(names: list[str]) -> str:
    """The first three different names, numbers as `*`, and how many more."""
    short = list(dict.fromkeys(".".join("*" if p.isdigit() else p for p in n.split(".")) for n in names))
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    return ", ".join(short[:3]) + more
